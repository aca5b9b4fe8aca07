"""Recordings as input: manifests, unsealed segments, what lies beside them, and what it says in the tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from analysis.pipeline import analyze, enrich
from analysis.segments import find_segments
from capture.contract import (
    Bundle,
    BundleNode,
    Clock,
    Counters,
    DerivedFrom,
    Interface,
    JournalRecord,
    Ledger,
    Tombstone,
    to_json,
)
from tests.node_recordings import LINKTYPE_RAW, Node, at, datagram, syn, write_journal
from tests.tables import analysed, assert_same_tables, stored

A, B = "10.1.0.5", "10.1.0.6"


def talk(seconds: float, sport: int = 40000, index: int = 7) -> tuple[int, int, object]:
    return at(seconds), index, datagram(A, B, sport, 9000)


def veth(name: str = "caliabc", index: int = 7, **more: object) -> Interface:
    return Interface(index, name, kind="veth", role="pod", cni="calico", **more)  # type: ignore[arg-type]


def ns(time: Any) -> int | None:
    return None if time is None else int(time.value)


# --- finding ---------------------------------------------------------------------------------------------------------


def test_a_recording_is_read_as_a_root_a_node_or_a_file(tmp_path: Path) -> None:
    node = Node(tmp_path / "root", "node-7", interfaces=[veth()])
    node.segment(at(0), at(60), [talk(1)])
    one = node.segment(at(60), at(120), [talk(61)], compressed=True)
    node.part(at(120), [talk(121)])
    (node.folder / "freezes").mkdir()
    (node.folder / "freezes" / "1.json").write_text("{}")
    (node.folder / "tombstones.jsonl").write_text("")
    (tmp_path / "root" / "bundle.json.sha256").write_text("0")
    one.with_name("x.chain.json").write_text("{}")
    write_journal(tmp_path / "root", [JournalRecord("list_complete", at(0), "Pod")])
    for place, files in ((tmp_path / "root", 3), (node.folder, 3), (one, 1)):
        segments, problems = find_segments([str(place)])
        assert (len(segments), problems) == (files, [])
        assert {(segment.cluster, segment.node) for segment in segments} == {("prod", "node-7")}
    assert [segment.unsealed for segment in find_segments([str(tmp_path)])[0]] == [False, False, True]


def test_names_that_can_not_be_folders_are_the_manifests(tmp_path: Path) -> None:
    node = Node(tmp_path, "Knoten 7/a", "prod/eu")
    node.segment(at(0), at(60), [talk(1)])
    node.part(at(60), [talk(61)])
    segments, _ = find_segments([str(tmp_path)])
    assert {(segment.cluster, segment.node) for segment in segments} == {("prod/eu", "Knoten 7/a")}


def test_a_segment_whose_manifest_is_none_is_read_and_told(tmp_path: Path) -> None:
    node = Node(tmp_path, "node-7")
    path = node.segment(at(0), at(60), [talk(1)])
    manifest = path.with_suffix(".json")
    manifest.write_text('{"cluster": "prod"}')
    lake = analysed(tmp_path)
    (problem,) = lake.problems
    assert problem.path == str(manifest)
    (row,) = lake.rows("segments")
    assert (row["packets"], row["unsealed"], row["sha256_ok"], row["cluster"]) == (1, True, None, "prod")


def test_an_altered_segment_is_told(tmp_path: Path) -> None:
    path = Node(tmp_path, "node-7").segment(at(0), at(60), [talk(1)], sha256="0" * 64)
    lake = analysed(tmp_path)
    assert [problem.path for problem in lake.problems] == [str(path)]
    assert lake.rows("segments")[0]["sha256_ok"] is False


def test_an_empty_segment_is_fine(tmp_path: Path) -> None:
    node = Node(tmp_path, "node-7")
    node.segment(at(0), at(60))
    node.segment(at(60), at(120), [talk(61)])
    lake = analysed(tmp_path)
    assert lake.problems == []
    empty, _ = sorted(lake.rows("segments"), key=lambda row: row["packets"])
    assert (empty["packets"], empty["first_ts"].value) == (0, at(0))


def test_a_segment_counts_once_also_where_a_bundle_has_a_part_of_it(tmp_path: Path) -> None:
    whole = Node(tmp_path / "root", "node-7")
    whole.segment(at(0), at(60), [talk(1), talk(50)])
    cut = Node(tmp_path / "bundle", "node-7")
    cut.segment(at(0), at(60), [talk(50)], derived_from=DerivedFrom("0" * 64, "0" * 64, 2, at(40), at(60)))
    assert [row["packets"] for row in analysed(tmp_path).rows("segments")] == [2]


def test_a_segment_that_is_being_compressed_counts_once(tmp_path: Path) -> None:
    path = Node(tmp_path, "node-7").segment(at(0), at(60), [talk(1)])
    path.with_name(path.name + ".zst.part").write_bytes(b"(\xb5/\xfd")
    assert [row["packets"] for row in analysed(tmp_path).rows("segments")] == [1]


def test_segments_are_one_recording_also_where_the_clock_jumped_back(tmp_path: Path) -> None:
    """One flow, cut in two; an hour back, a file by itself would be another place's."""
    node = Node(tmp_path, "node-7", interfaces=[veth()])
    node.segment(at(3600), at(3660), [talk(3601), talk(3655)])
    node.segment(at(3661), at(3700), [talk(3640), talk(3656)])
    flows = analysed(tmp_path).rows("flows")
    assert [flow["orig_packets"] for flow in flows] == [4]


def test_two_clusters_with_nodes_of_one_name_are_two_recordings(tmp_path: Path) -> None:
    for cluster in ("prod", "test"):
        Node(tmp_path, "node-7", cluster).segment(at(0), at(60), [talk(1)])
    flows = analysed(tmp_path).rows("flows")
    assert sorted((flow["cluster"], flow["orig_packets"]) for flow in flows) == [("prod", 1), ("test", 1)]


@pytest.mark.parametrize("is_named", [False, True])
def test_a_recording_that_goes_on_is_analysed_again_and_counts_once(tmp_path: Path, is_named: bool) -> None:
    """Also where the lake learnt names meanwhile."""
    node, lake = Node(tmp_path / "root", "node-7", interfaces=[veth()]), tmp_path / "lake"
    node.segment(at(0), at(60), [talk(1)])
    part = node.part(at(60), [talk(61), talk(62)])
    analyze([str(tmp_path / "root")], lake, jobs=1)
    if is_named:
        owner = {"kind": "Pod", "metadata": {"name": "a", "uid": "u"}, "status": {"podIP": A}}
        (tmp_path / "dump.json").write_text(json.dumps(owner))
        enrich(lake, [str(tmp_path / "dump.json")])
    part.unlink()
    node.seq -= 1
    node.segment(at(60), at(120), [talk(61), talk(62), talk(63)])
    node.segment(at(120), at(180))
    for _ in range(2):
        analyze([str(tmp_path / "root")], lake, jobs=1)
        tables = stored(lake)
        assert [flow["orig_packets"] for flow in tables["flows"].to_pylist()] == [4]
        assert sorted(row["packets"] for row in tables["segments"].to_pylist()) == [0, 1, 3]
    node.segment(at(180), at(240))
    analyze([str(tmp_path / "root")], lake, jobs=1)
    assert sorted(row["packets"] for row in stored(lake)["segments"].to_pylist()) == [0, 0, 1, 3]


# --- interfaces ------------------------------------------------------------------------------------------------------


def test_interfaces_have_the_names_of_their_time(tmp_path: Path) -> None:
    """Index 7 is renamed, later the name goes to another one; the segment that is still written knows both."""
    node = Node(tmp_path, "node-7")
    node.interfaces = [
        veth("old", until_ns=at(30)),
        veth("new", since_ns=at(30), until_ns=at(70)),
        veth("old", 8, since_ns=at(80)),
    ]
    node.segment(at(0), at(60), [talk(1, 40001), talk(31, 40002)])
    node.segment(at(60), at(120), [talk(61, 40003), talk(81, 40004, 8)])
    node.part(at(120), [talk(121, 40005, 8), talk(122, 40006, 9)])
    flows = {flow["orig_port"]: flow["interface"] for flow in analysed(tmp_path).rows("flows")}
    assert flows == {40001: "old", 40002: "new", 40003: "new", 40004: "old", 40005: "old", 40006: "if9"}


def test_a_named_interface_is_named_by_the_manifest(tmp_path: Path) -> None:
    Node(tmp_path, "node-7").segment(at(0), at(60), [talk(1)], link_type=LINKTYPE_RAW, capture=["eth0"])
    assert [flow["interface"] for flow in analysed(tmp_path).rows("flows")] == ["eth0"]


def test_the_interface_table_is_in_the_lake_once_for_each_change(tmp_path: Path) -> None:
    node = Node(tmp_path, "node-7")
    node.interfaces = [
        veth(reaches=[A], until_ns=at(70)),
        Interface(2, "eth0", role="uplink", mtu=1500, up=True, until_ns=at(20)),
        Interface(2, "eth0", role="uplink", mtu=1500, up=False, since_ns=at(20)),
    ]
    for minute in range(3):
        node.segment(at(60 * minute), at(60 * minute + 60), [talk(60 * minute + 1)])
    rows = sorted(analysed(tmp_path).rows("interfaces"), key=lambda row: row["index"])
    assert [(row["name"], row["start"], ns(row["end"])) for row in rows] == [
        ("eth0", None, None),
        ("caliabc", None, at(70)),
    ]
    assert rows[1]["reaches"] == [A]
    assert [(row["seen_from"].value, row["seen_until"].value) for row in rows] == [(at(0), at(180)), (at(0), at(70))]


# --- what manifests tell ---------------------------------------------------------------------------------------------


def test_counters_are_rows_with_what_they_grew_by(tmp_path: Path) -> None:
    node = Node(tmp_path, "node-7")
    samples = [Counters(at(second), {"softnet_dropped": value}) for second, value in ((0, 5), (60, 8), (120, 8))]
    node.segment(at(0), at(60), [talk(1)], counters=samples[:2])
    node.segment(at(60), at(120), [talk(61)], counters=samples[1:])
    node.segment(at(200), at(260), [talk(201)], counters=[Counters(at(200), {"softnet_dropped": 1})], boot_id="next")
    rows = sorted(analysed(tmp_path).rows("node_counters"), key=lambda row: row["ts"].value)
    assert [(row["value"], row["delta"]) for row in rows] == [(5, None), (8, 3), (8, 0), (1, None)]


def test_segments_say_what_their_manifests_do(tmp_path: Path) -> None:
    node = Node(tmp_path, "node-7")
    ledger = Ledger(accepted=20, written=1, kernel=3, libpcap=4, disk=5, policy=7, interface=2)
    clock = Clock(synchronised=True, max_error_ns=1000, stepped=True)
    node.segment(at(0), at(60), [talk(1)], ledger=ledger, clock=clock, filter="udp", payload="headers")
    part = DerivedFrom("a" * 64, "b" * 64, 9, at(70), at(80), [A])
    node.segment(at(60), at(120), [talk(71)], gap_before_ns=7, derived_from=part)
    node.segment(at(120), at(900), [talk(121)], salvaged=True)
    first, second, third = sorted(analysed(tmp_path).rows("segments"), key=lambda row: row["first_ts"].value)
    drops = {name: value for name, value in first.items() if name.startswith("drops_")}
    assert drops == {
        "drops_kernel": 3,
        "drops_interface": 2,
        "drops_libpcap": 4,
        "drops_disk": 5,
        "drops_policy": 7,
    }
    assert (first["filter"], first["payload"], first["run_id"], first["sha256_ok"]) == ("udp", "headers", "run", True)
    assert (first["clock_synchronised"], first["clock_max_error_ns"], first["clock_stepped"]) == (True, 1000, True)
    assert (second["opened"].value, second["sealed"].value) == (at(70), at(80))
    assert (second["gap_before_ns"], second["derived_from"], second["only_addresses"]) == (7, "a" * 64, A)
    assert (third["salvaged"], third["drops_kernel"], third["drops_disk"]) == (True, None, None)
    assert third["sealed"].value == at(121), "sealed by a later start: recorded until its last packet"


def test_the_same_packets_give_the_same_tables_in_one_segment_or_three(tmp_path: Path) -> None:
    packets = [(at(second), 7, syn(A, B, 40000 + second % 5, 80)) for second in range(120)]
    for name, sizes in (("one", [120]), ("three", [40, 40, 40])):
        node = Node(tmp_path / name, "node-7", interfaces=[veth()])
        first = 0
        for size in sizes:
            node.segment(at(first), at(first + size), packets[first : first + size], compressed=name == "three")
            first += size
    assert_same_tables(analysed(tmp_path / "one"), analysed(tmp_path / "three"))


# --- gaps ------------------------------------------------------------------------------------------------------------


def gaps(root: Path) -> list[tuple[object, ...]]:
    names = ("cluster", "node", "kind", "start", "end", "reason", "packets")
    rows = [tuple(getattr(row[name], "value", row[name]) for name in names) for row in analysed(root).rows("gaps")]
    return sorted(rows, key=str)


def test_what_the_ring_evicted_is_a_gap_and_what_followed_is_one(tmp_path: Path) -> None:
    node = Node(tmp_path, "Node 7")
    node.segment(at(300), at(360), [talk(301)])
    tombstones = [
        Tombstone("x/1", "a", at(290), "quota", None, at(0), at(59), 10),
        Tombstone("x/2", "b", at(291), "quota", "a", at(60), at(119), 20),
        Tombstone("x/3", "c", at(292), "asked", "b", at(120), at(179), 30),
        Tombstone("x/4", "d", at(293), "asked", "c"),
    ]
    (node.folder / "tombstones.jsonl").write_bytes(b"".join(map(to_json, tombstones)) + b"{\n")
    assert gaps(tmp_path) == [
        ("prod", "Node 7", "evicted", at(0), at(119), "quota", 30),
        ("prod", "Node 7", "evicted", at(120), at(179), "asked", 30),
    ]
    (problem,) = analysed(tmp_path).problems
    assert problem.path.endswith("tombstones.jsonl")


def test_what_a_bundle_lacks_is_a_gap(tmp_path: Path) -> None:
    Node(tmp_path, "node-1").segment(at(0), at(60), [talk(1)])
    nodes = [
        BundleNode("prod", "node-1", True),
        BundleNode("prod", "node-2", False, missing=["could not be reached", "no agent"]),
    ]
    (tmp_path / "bundle.json").write_bytes(to_json(Bundle(at(99), at(0), at(60), nodes, [], journal_complete=False)))
    assert gaps(tmp_path) == [
        ("prod", "node-2", "not_collected", at(0), at(60), "could not be reached; no agent", None),
        (None, None, "journal", at(0), at(60), "not collected", None),
    ]


def test_when_the_journal_saw_nothing_is_a_gap(tmp_path: Path) -> None:
    Node(tmp_path, "node-1").segment(at(0), at(60), [talk(1)])
    write_journal(
        tmp_path,
        [
            JournalRecord("list_complete", at(0), "Pod"),
            JournalRecord("bookmark", at(20), "Pod"),
            JournalRecord("gap", at(50), "Pod", since_ns=at(30), reason="refused"),
            JournalRecord("list_complete", at(50), "Pod"),
            JournalRecord("stopped", at(60)),
        ],
    )
    assert gaps(tmp_path) == [("prod", None, "journal", at(30), at(50), None, None)]


# --- metadata --------------------------------------------------------------------------------------------------------


def pod(name: str, ip: str, start: str = "2026-03-01T14:00:00Z") -> dict[str, object]:
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "uid": f"uid-{name}"},
        "spec": {"nodeName": "node-1"},
        "status": {"phase": "Running", "startTime": start, "podIPs": [{"ip": ip}]},
    }


def journal_of(*pods: dict[str, object]) -> list[JournalRecord]:
    listed = [
        JournalRecord("listed", at(0), "Pod", str(each["metadata"]["uid"]), str(number), each)  # type: ignore[index]
        for number, each in enumerate(pods, start=1)
    ]
    return [*listed, JournalRecord("list_complete", at(0), "Pod", resource_version="9")]


def test_the_journal_of_a_recording_names_its_addresses_unasked(tmp_path: Path) -> None:
    Node(tmp_path / "root", "node-1").segment(at(0), at(60), [talk(1)])
    write_journal(tmp_path / "root", journal_of(pod("web", A)))
    (flow,) = analysed(tmp_path / "root").rows("flows")
    assert (flow["orig_pod"], flow["resp_pod"]) == ("web", None)


def test_a_journal_is_metadata_as_dumps_are_and_both_count(tmp_path: Path) -> None:
    Node(tmp_path / "root", "node-1").segment(at(0), at(60), [talk(1)])
    file = write_journal(tmp_path / "elsewhere", journal_of(pod("web", A)))
    dump = tmp_path / "cluster-20260301T140500Z.json"
    dump.write_text(json.dumps(pod("api", B)))
    for journal in (file, tmp_path / "elsewhere"):
        (flow,) = analysed(tmp_path / "root", metadata=[str(journal), str(dump)]).rows("flows")
        assert (flow["orig_pod"], flow["resp_pod"]) == ("web", "api")


def test_a_recording_as_metadata_gives_its_journal_and_no_manifest(tmp_path: Path) -> None:
    Node(tmp_path / "root", "node-1").segment(at(0), at(60), [talk(1)])
    write_journal(tmp_path / "root", journal_of(pod("web", A)))
    lake = tmp_path / "lake"
    analyze([str(next((tmp_path / "root").rglob("*.pcap")))], lake, metadata=[str(tmp_path / "root")], jobs=1)
    assert len(list((lake / "identities").iterdir())) == 1
