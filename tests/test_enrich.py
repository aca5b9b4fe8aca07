"""Names for a lake that was made without them. Who owned the addresses is told by the dumps written here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from analysis import enrich as enrich_module
from analysis import lake
from analysis.dumps import parse_time
from analysis.enrich import enrich, known_identities
from analysis.errors import PodtapError
from analysis.identities import load_identities
from analysis.schemas import TABLES, TIME

Row = dict[str, Any]

CLIENT, SERVER = "10.1.0.5", "10.96.0.10"


def at(clock: str) -> int:
    return parse_time(f"2026-03-01T{clock}Z")


def rows(table: str, *given: Row) -> pa.Table:
    """Columns left out are null, or zero or empty where they may not be null."""
    columns = []
    for field in TABLES[table].schema:
        number = field.type == TIME or pa.types.is_integer(field.type)
        empty = False if pa.types.is_boolean(field.type) else 0 if number else ""
        values = [row.get(field.name, None if field.nullable else empty) for row in given]
        columns.append(pa.array(values, field.type))
    return pa.table(columns, schema=TABLES[table].schema)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two flows of one address, an hour apart; a retransmission and a lookup that belong to the first."""
    root = tmp_path / "lake"
    batch = lake.Batch(root, "first")
    sides = {"orig_ip": CLIENT, "orig_port": 40000, "resp_ip": SERVER, "resp_port": 53, "protocol": "UDP"}
    flows = [{"flow_uid": f"f{clock}", "first_seen": at(clock), **sides} for clock in ("11:10:00", "12:10:00")]
    late = {"ts": at("12:30:00"), "flow_first_seen": at("11:10:00")}
    batch.add("flows", rows("flows", *flows), "node-a")
    batch.add("retransmits", rows("retransmits", late | {k: v for k, v in sides.items() if k != "protocol"}), "node-a")
    batch.add("dns", rows("dns", late | {"client_ip": CLIENT, "server_ip": SERVER, "transport": "udp"}), "node-a")
    batch.add("flow_minutes", rows("flow_minutes", {"flow_uid": "f", "minute": at("11:10:00")}), "node-a")
    batch.commit()
    return root


def pod(name: str, start: str) -> Row:
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "uid": f"uid-{name}", "labels": {"app": name}},
        "spec": {"nodeName": "node-a"},
        "status": {"phase": "Running", "startTime": f"2026-03-01T{start}Z", "podIP": CLIENT},
    }


DNS_SERVICE = {
    "kind": "Service",
    "metadata": {"name": "kube-dns", "namespace": "kube-system", "uid": "uid-dns"},
    "spec": {"clusterIP": SERVER},
}


def dump(folder: Path, taken: str, *items: Row) -> str:
    path = folder / f"cluster-20260301T{taken.replace(':', '')}Z.json"
    path.write_text(json.dumps({"kind": "List", "apiVersion": "v1", "items": [*items, DNS_SERVICE]}))
    return str(path)


@pytest.fixture
def before(tmp_path: Path) -> str:
    return dump(tmp_path, "11:30:00", pod("old", "11:00:00"))


@pytest.fixture
def after(tmp_path: Path) -> str:
    return dump(tmp_path, "12:30:00", pod("new", "12:00:00"))


def column(root: Path, table: str, name: str) -> list[str | None]:
    frame = pd.read_parquet(root / table)
    return [None if pd.isna(value) else value for value in frame.sort_values(TABLES[table].time)[name]]


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_every_row_is_named_as_of_its_flows_first_packet(root: Path, before: str, after: str) -> None:
    assert enrich(root, [before, after]) == []
    assert column(root, "flows", "orig_pod") == ["old", "new"]
    assert column(root, "flows", "resp_service") == ["kube-dns", "kube-dns"]
    assert column(root, "retransmits", "orig_pod") == ["old"]
    assert column(root, "dns", "client_pod") == ["old"]
    assert column(root, "dns", "server_identity") == ["service"]
    assert sorted(pd.read_parquet(root / "identities")["name"]) == ["kube-dns", "new", "old"]


def test_nothing_but_names_changes(root: Path, before: str) -> None:
    def unnamed() -> Iterator[list[Row]]:
        for table in ("flows", "retransmits", "dns", "flow_minutes"):
            frame = pd.read_parquet(root / table)
            sides = ("orig_", "resp_", "client_", "server_")
            kept = [name for name in frame if not name.startswith(sides) or name.endswith(("_ip", "_port", "_bytes"))]
            yield frame[kept].astype(str).to_dict("records")

    was = list(unnamed())
    enrich(root, [before])
    assert list(unnamed()) == was


def test_twice_changes_nothing(root: Path, before: str, after: str) -> None:
    enrich(root, [before, after])
    once = content(root)
    for metadata in ([before, after], [after], [before]):
        enrich(root, metadata)
        assert content(root) == once


@pytest.mark.parametrize("order", [1, -1])
def test_what_is_learnt_bit_by_bit_is_what_is_learnt_at_once(root: Path, before: str, after: str, order: int) -> None:
    for path in [before, after][::order]:
        enrich(root, [path])
    at_once, _ = load_identities([before, after])
    assert known_identities(root).table.to_pylist() == at_once.table.to_pylist()
    assert column(root, "flows", "orig_pod") == ["old", "new"]


def test_later_knowledge_replaces_earlier_names(root: Path, before: str, after: str) -> None:
    enrich(root, [before])
    assert column(root, "flows", "orig_pod") == ["old", "old"], "nothing tells yet that the pod ended"
    enrich(root, [after])
    assert column(root, "flows", "orig_pod") == ["old", "new"]


def test_a_failure_on_the_way_leaves_the_lake_as_it_was(
    root: Path, before: str, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrich(root, [before])
    was = {name: held for name, held in content(root).items() if not name.startswith(lake.WIP)}

    def fail_late(identities: Any, table: str, of_table: pa.Table) -> pa.Table:
        if table == "dns":
            raise OSError("disk full")
        return of_table

    with monkeypatch.context() as patch:
        patch.setattr(enrich_module, "add_identities", fail_late)
        with pytest.raises(OSError, match="disk full"):
            enrich(root, [after])
    assert {name: held for name, held in content(root).items() if not name.startswith(lake.WIP)} == was
    enrich(root, [after])
    assert column(root, "flows", "orig_pod") == ["old", "new"]
    assert not (root / lake.WIP).exists()


def test_what_can_not_be_read_is_told_and_the_rest_is_used(root: Path, before: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    (problem,) = enrich(root, [before, str(tmp_path / "bad.json")])
    assert (problem.path, problem.offset) == (str(tmp_path / "bad.json"), 1)
    assert column(root, "flows", "orig_pod") == ["old", "old"]


def test_metadata_without_owners_changes_nothing(root: Path, tmp_path: Path) -> None:
    was = content(root)
    (tmp_path / "empty.json").write_text('{"kind": "PodList", "items": []}')
    with pytest.raises(PodtapError, match="no pods, services or nodes"):
        enrich(root, [str(tmp_path / "empty.json")])
    assert content(root) == was


def test_without_a_lake_it_says_how_to_make_one(tmp_path: Path, before: str) -> None:
    with pytest.raises(PodtapError, match="podtap analyze"):
        enrich(tmp_path / "nowhere", [before])
    assert not (tmp_path / "nowhere").exists()
