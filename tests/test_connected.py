"""What is put away and worked on part by part is what it would be at once."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import connected, derive, sightings
from analysis.connected import Parts
from analysis.lake_reader import open_lake
from analysis.pipeline import analyze
from analysis.shelves import Shelves

INCIDENT = Path(__file__).parents[1] / "sample_pcaps" / "incident"
RECORD = np.dtype([("flow", "i4"), ("what", "i8")], align=True)


def records(*rows: tuple[int, int]) -> Any:
    return np.array([*rows], RECORD)


def test_shelves_give_back_what_was_put_on_them_in_order(tmp_path: Path) -> None:
    with ExitStack() as open_:
        shelves = Shelves(tmp_path, RECORD, open_)
        shelves.put(records((1, 10), (2, 20), (3, 30)), np.array([4, 0, 4]))
        shelves.put_on(4, records((4, 40)))
        shelves.put(records(), np.empty(0, np.int64))
        assert shelves.take(4).tolist() == [(1, 10), (3, 30), (4, 40)]
        assert shelves.take(0).tolist() == [(2, 20)]
        assert shelves.take(1).tolist() == []
        assert [each.tolist() for each in shelves] == [[(2, 20)], [(1, 10), (3, 30), (4, 40)]]
        assert not [*tmp_path.iterdir()]


def test_a_part_has_whole_connections_whose_flows_are_numbered_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connected, "TOGETHER", 3)
    parts = Parts.of(np.array([0, 1, 0, 3, 1, 3]), np.array([1, 1, 1, 1, 1, 5]))
    assert [parts.flows(number).tolist() for number in range(len(parts))] == [[0, 2], [1, 4], [3, 5]]
    with ExitStack() as open_:
        wanted = np.array([True, True, False, False, False, False])
        shelves = parts.sort(
            [records((4, 1), (5, 2)), records((2, 3), (1, 4))], wanted, Shelves(tmp_path, RECORD, open_)
        )
        assert [shelves.take(number).tolist() for number in range(3)] == [[(1, 3)], [(1, 1), (0, 4)], []]


def test_many_parts_are_the_same_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captures = [str(path) for path in sorted(INCIDENT.glob("*.pcap*"))]
    assert len(captures) > 1
    analyze(captures, tmp_path / "one")
    for module, name in ((connected, "TOGETHER"), (sightings, "SIGHTINGS_TOGETHER"), (derive, "ROWS_TOGETHER")):
        monkeypatch.setattr(module, name, 300)
    analyze(captures, tmp_path / "many")
    lakes = [open_lake(tmp_path / name) for name in ("one", "many")]
    for table in ("connections", "connection_flows", "hops", "losses", "clocks"):
        one, many = (
            lake.sql(f"SELECT * FROM {table}").astype(str).pipe(lambda rows: rows.sort_values([*rows]))
            for lake in lakes
        )
        assert len(one), table
        pd.testing.assert_frame_equal(one.reset_index(drop=True), many.reset_index(drop=True))
