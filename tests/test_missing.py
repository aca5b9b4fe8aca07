"""What the foot of a report says of nodes and times that were not recorded whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from analysis.derive import coverage_of
from analysis.lake_reader import open_lake
from analysis.reports.missing import missing
from analysis.reports.window import Window
from tests.lakes import SECOND, at, write

T = at("2026-03-01T14:00:00")


def segment(seconds: float, until: float, **more: Any) -> dict[str, Any]:
    """A segment of an agent, recorded from and until then."""
    times = {"opened": T + int(seconds * SECOND), "sealed": T + int(until * SECOND)}
    packets = {"first_ts": times["opened"], "last_ts": times["sealed"], "packets": 1}
    drops = dict.fromkeys(("drops_kernel", "drops_libpcap", "drops_disk"), 0)
    return {"cluster": "prod", "segment": f"{seconds}.pcap", "salvaged": False, **times, **packets, **drops} | more


def gap(node: str | None, kind: str, seconds: float, until: float, reason: str | None = None) -> dict[str, Any]:
    times = {"start": T + int(seconds * SECOND), "end": T + int(until * SECOND)}
    return {"cluster": "prod", "node": node, "kind": kind, "reason": reason, **times}


def window(since: float | None = None, until: float | None = None) -> Window:
    return Window(*(None if each is None else T + int(each * SECOND) for each in (since, until)))


def notes(root: Path, *window_of: float | None) -> tuple[str, list[str]]:
    (root / "coverage").mkdir(exist_ok=True)
    pq.write_table(coverage_of(root), root / "coverage" / "part-0.parquet")
    found = missing(open_lake(root), window(*window_of))
    return found.summary(), found.notes()


def test_nodes_that_were_recorded_whole_take_no_line(tmp_path: Path) -> None:
    for node in ("n1", "n2"):
        write(tmp_path, "segments", [segment(0, 60), segment(60, 120.4), segment(120.9, 180)], node=node)
    assert notes(tmp_path) == ("complete on 2 of 2 nodes", [])
    assert notes(tmp_path, 30, 170) == ("complete on 2 of 2 nodes", [])


def test_captures_of_no_agent_say_nothing_of_nodes(tmp_path: Path) -> None:
    write(tmp_path, "segments", [segment(0, 60, cluster=None), segment(100, 160, cluster=None)])
    assert notes(tmp_path) == ("", [])


def test_a_hole_between_segments_is_told_with_its_reason_where_it_lies_in_the_window(tmp_path: Path) -> None:
    write(tmp_path, "segments", [segment(0, 60), segment(90, 180)], node="n1")
    write(tmp_path, "segments", [segment(0, 180)], node="n2")
    write(tmp_path, "gaps", [gap("n1", "evicted", 62, 89, "quota")])
    hole = "n1: nothing from 2026-03-01T14:01:00Z to 2026-03-01T14:01:30Z (evicted by its ring: quota)"
    assert notes(tmp_path) == (
        "complete on 1 of 2 nodes",
        [hole, "counts are a lower bound: not all of n1 was captured"],
    )
    assert notes(tmp_path, 100, 150) == ("complete on 2 of 2 nodes", [])


def test_a_window_that_begins_before_a_node_was_recorded_is_not_complete(tmp_path: Path) -> None:
    write(tmp_path, "segments", [segment(60, 120)])
    assert notes(tmp_path) == ("complete on 1 of 1 nodes", [])
    assert notes(tmp_path, 0, 180)[1][0] == (
        "n1: nothing from 2026-03-01T14:00:00Z to 2026-03-01T14:01:00Z, "
        "nothing from 2026-03-01T14:02:00Z to 2026-03-01T14:03:00Z"
    )


def test_a_gap_that_only_the_agent_knows_of_is_told(tmp_path: Path) -> None:
    write(tmp_path, "segments", [segment(0, 100), segment(100, 120, gap_before_ns=40 * SECOND)])
    hole = "n1: nothing from 2026-03-01T14:01:00Z to 2026-03-01T14:01:40Z"
    assert notes(tmp_path)[1][0] == f"{hole} (its agent could not write)"


def test_a_node_of_which_nothing_was_collected_counts(tmp_path: Path) -> None:
    write(tmp_path, "segments", [segment(0, 60)], node="n1")
    write(tmp_path, "gaps", [gap("n2", "not_collected", 0, 60, "could not be reached")])
    for times in ((None, None), (0, 60)):
        summary, (first, _) = notes(tmp_path, *times)
        assert summary == "complete on 1 of 2 nodes"
        assert first.startswith("n2: nothing") and first.endswith("(not collected: could not be reached)")


def test_drops_crashes_and_parts_make_a_node_incomplete(tmp_path: Path) -> None:
    write(tmp_path, "segments", [segment(0, 60, drops_kernel=3, drops_disk=1200)], node="n1")
    write(tmp_path, "segments", [segment(0, 60, salvaged=True, drops_kernel=None)], node="n2")
    write(tmp_path, "segments", [segment(0, 60, only_addresses="10.1.0.5")], node="n3")
    write(tmp_path, "segments", [segment(0, 60, drops_interface=5, drops_policy=7)], node="n4")
    summary, lines = notes(tmp_path)
    assert summary == "complete on 1 of 4 nodes"
    assert lines[:3] == [
        "n1: 1,203 packets dropped (3 by kernel and 1,200 by disk)",
        "n2: its agent crashed, so what it dropped is not known",
        "n3: only packets of some addresses were collected",
    ]
    assert notes(tmp_path, 100, 120)[0] == "complete on 0 of 4 nodes"


def test_many_incomplete_nodes_take_few_lines(tmp_path: Path) -> None:
    for number in range(9):
        write(tmp_path, "segments", [segment(0, 60, drops_kernel=1)], node=f"n{number}")
    summary, lines = notes(tmp_path)
    assert (summary, len(lines), lines[4]) == (
        "complete on 0 of 9 nodes",
        6,
        "and 5 more nodes: see podtap report coverage",
    )


def test_what_the_journal_did_not_see_is_told_in_its_window(tmp_path: Path) -> None:
    write(tmp_path, "segments", [segment(0, 200)])
    write(tmp_path, "gaps", [gap(None, "journal", 60, 90), gap(None, "journal", 120, 130)])
    told = "the journal saw nothing from 2026-03-01T14:01:00Z to 2026-03-01T14:01:30Z"
    assert notes(tmp_path)[1] == [f"{told} and 1 times more: pods of that time may have no name"]
    assert notes(tmp_path, 10, 100)[1] == [f"{told}: pods of that time may have no name"]
    assert notes(tmp_path, 150, 190)[1] == []


def test_nodes_of_two_clusters_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path, "segments", [segment(0, 60), segment(0, 60, cluster="test", drops_kernel=1)])
    summary, lines = notes(tmp_path)
    assert (summary, lines[0]) == ("complete on 1 of 2 nodes", "test/n1: 1 packets dropped (1 by kernel)")
