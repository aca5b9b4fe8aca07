"""The table coverage, its seconds and its report: what was recorded of each node, and what is missing.

Truth is what the hand-made recordings hold; of a real agent, when it was killed and what its socket sent.
"""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from analysis.errors import PodtapError, UsageError
from analysis.lake_reader import Lake, open_lake
from analysis.pipeline import analyze, enrich
from capture.contract import Bundle, BundleNode, DerivedFrom, JournalRecord, Ledger, Tombstone, to_json
from podtap import main
from tests.agents import Agent, blast, numbered, start, wire  # noqa: F401 (fixtures)
from tests.node_recordings import NANOSECONDS, Node, Record, at, datagram, pcap, write_journal
from tests.wire import Wire, records

A, B = "10.1.0.5", "10.1.0.6"


def each_second(since: int, until: int) -> list[Record]:
    """Two packets in each second."""
    return [
        (at(second + part), 7, datagram(A, B, 40000, 9000)) for second in range(since, until) for part in (0.2, 0.7)
    ]


def ledger(written: int, **dropped: int) -> Ledger:
    return Ledger(accepted=written + sum(dropped.values()), written=written, interface=0, **dropped)


def lake_of(tmp_path: Path, *inputs: Path) -> Lake:
    lake = tmp_path / "lake"
    analyze([str(each) for each in inputs or (tmp_path / "root",)], lake, jobs=1)
    return open_lake(lake)


def table(lake: Lake) -> list[tuple[Any, ...]]:
    """(node, from, until, kind, complete, packets), seconds since the recording's START."""
    rows = lake.arrow(
        """SELECT node, epoch_ns("start") AS since, epoch_ns("end") AS until, kind, complete, packets
        FROM coverage ORDER BY node NULLS FIRST, since"""
    ).to_pylist()
    return [
        (
            row["node"],
            *(round((row[end] - at(0)) / NANOSECONDS, 1) for end in ("since", "until")),
            *list(row.values())[3:],
        )
        for row in rows
    ]


def told(lake: Lake, since: float, until: float, **asked: Any) -> dict[int, tuple[Any, ...]]:
    """By second since START: (packets, complete, kinds)."""
    frame = lake.coverage(since=str(at(since) / NANOSECONDS), until=str(at(until) / NANOSECONDS), **asked)
    seconds = [int((time_.value - at(0)) // NANOSECONDS) for time_ in frame["second"]]
    answers = zip(frame["packets"], frame["complete"], frame["kinds"], strict=True)
    return dict(zip(seconds, answers, strict=True))


def printed(lake: Lake, report: str, *options: str) -> str:
    """A report on standard output; of an empty table the foot."""
    result = CliRunner().invoke(main, ["report", report, "--lake", str(lake.path), *options])
    assert result.exit_code == 0, result.output
    return result.stdout


# --- The table -------------------------------------------------------------------------------------------------------


def test_what_follows_each_other_whole_is_one_row_and_every_second_of_it_is_complete(tmp_path: Path) -> None:
    node = Node(tmp_path / "root", "node-7")
    for since in (0, 10, 20):
        node.segment(at(since), at(since + 10.2), each_second(since, since + 10))
    lake = lake_of(tmp_path)
    assert table(lake) == [("node-7", 0.0, 30.2, "recorded", True, 60)]
    assert told(lake, 0, 30) == dict.fromkeys(range(30), (2, True, "recorded"))
    assert told(lake, 29.5, 32) == {
        29: (2, True, "recorded"),
        30: (0, False, "recorded"),
        31: (0, False, ""),
    }, "the last segment was sealed in the middle of a second"


def test_an_agent_that_was_stopped_or_crashed_leaves_a_hole_and_nobody_knows_what_it_dropped_before_a_crash(
    tmp_path: Path,
) -> None:
    node = Node(tmp_path / "root", "node-7")
    node.segment(at(0), at(10), each_second(0, 10), run_id="1")
    node.segment(at(13), at(20), each_second(13, 18), run_id="2", gap_before_ns=3 * NANOSECONDS, salvaged=True)
    gap_ns = at(25.5) - each_second(17, 18)[-1][0]
    node.segment(at(25.5), at(30), each_second(26, 30), run_id="3", gap_before_ns=gap_ns)
    lake = lake_of(tmp_path)
    assert table(lake) == [
        ("node-7", 0.0, 10.0, "recorded", True, 20),
        ("node-7", 10.0, 13.0, "stopped", False, None),
        ("node-7", 13.0, 17.7, "unreported", None, 10),
        ("node-7", 17.7, 25.5, "crashed", False, None),
        ("node-7", 25.5, 30.0, "recorded", True, 8),
    ]
    complete = {second: each for second, (_, each, _) in told(lake, 0, 30).items()}
    expected = dict.fromkeys(range(10), True) | dict.fromkeys(range(10, 13), False)
    expected |= dict.fromkeys(range(13, 17)) | dict.fromkeys(range(17, 26), False)  # type: ignore[arg-type]
    assert complete == expected | dict.fromkeys(range(26, 30), True)


def test_what_could_not_be_written_is_a_hole_in_what_the_segment_before_claims(tmp_path: Path) -> None:
    node = Node(tmp_path / "root", "node-7")
    node.segment(at(0), at(10), each_second(0, 6))
    node.segment(at(10), at(20), each_second(10, 20), gap_before_ns=4 * NANOSECONDS)
    assert [row[1:5] for row in table(lake_of(tmp_path))] == [
        (0.0, 6.0, "recorded", True),
        (6.0, 10.0, "not_written", False),
        (10.0, 20.0, "recorded", True),
    ]


def test_drops_are_of_a_segment_and_of_none_of_its_seconds_for_certain(tmp_path: Path) -> None:
    node = Node(tmp_path / "root", "node-7")
    node.segment(at(0), at(10), each_second(0, 10))
    node.segment(at(10), at(20), each_second(10, 20), ledger=ledger(20, kernel=5, disk=2, policy=9))
    node.segment(at(20), at(30), each_second(20, 30), ledger=ledger(20, policy=3))
    lake = lake_of(tmp_path)
    assert [row[1:5] for row in table(lake)] == [
        (0.0, 10.0, "recorded", True),
        (10.0, 20.0, "dropped", False),
        (20.0, 30.0, "recorded", True),
    ]
    answers = told(lake, 0, 30)
    assert [answers[second] for second in (9, 10, 19, 20)] == [
        (2, True, "recorded"),
        (2, None, "dropped"),
        (2, None, "dropped"),
        (2, True, "recorded"),
    ]
    frame = lake.coverage(node="node-7").set_index("second")
    assert list(frame["dropped"]) == [0] * 10 + [7] * 10 + [0] * 10
    eleventh = frame.iloc[11]
    assert (eleventh["dropped_since"].value, eleventh["dropped_until"].value) == (at(10), at(20))


def test_what_the_ring_evicted_is_told_before_the_first_segment_and_between_two(tmp_path: Path) -> None:
    node = Node(tmp_path / "root", "node-7")
    node.segment(at(10), at(20), each_second(10, 20))
    node.segment(at(30), at(40), each_second(30, 40))
    tombstones = [
        Tombstone("x/1", "a", at(50), "quota", None, at(0.2), at(9.7), 20),
        Tombstone("x/3", "c", at(51), "asked", "b", at(20.2), at(29.7), 19),
    ]
    (node.folder / "tombstones.jsonl").write_bytes(b"".join(map(to_json, tombstones)))
    lake = lake_of(tmp_path)
    assert [row[1:] for row in table(lake)] == [
        (0.2, 10.0, "evicted", False, 20),
        (10.0, 20.0, "recorded", True, 20),
        (20.0, 30.0, "evicted", False, 19),
        (30.0, 40.0, "recorded", True, 20),
    ]
    answers = told(lake, 0, 40)
    assert [answers[second][1] for second in range(40)] == [second // 10 in (1, 3) for second in range(40)]
    notes = printed(lake, "flows")
    assert "complete on 0 of 1 nodes" in notes
    assert "node-7: nothing from 2026-03-01T14:03:20Z to 2026-03-01T14:03:30Z (evicted by its ring: asked)\n" in notes


def test_a_short_segment_that_was_evicted_is_a_hole_however_short(tmp_path: Path) -> None:
    """A moment between two segments of one run is none, unless a tombstone says what was there."""
    for name in ("with", "without"):
        node = Node(tmp_path / name, "node-7")
        node.segment(at(0), at(10), each_second(0, 10))
        node.segment(at(10.8), at(20), each_second(11, 20))
    tombstone = Tombstone("x/2", "b", at(50), "asked", None, at(10.1), at(10.7), 3)
    (tmp_path / "with" / "prod" / "node-7" / "tombstones.jsonl").write_bytes(to_json(tombstone))
    for name, complete in (("with", False), ("without", True)):
        assert told(lake_of(tmp_path / name, tmp_path / name), 9, 12)[10][1] is complete


def test_a_file_that_is_cut_short_is_told_from_where_it_ends(tmp_path: Path) -> None:
    node = Node(tmp_path / "root", "node-7")
    path = node.segment(at(0), at(10), each_second(0, 10))
    node.segment(at(10), at(20), each_second(10, 20))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])  # 11 records of 20
    lake = lake_of(tmp_path)
    assert [row[3:] for row in table(lake)] == [
        ("damaged", None, 11),
        ("damaged", False, None),
        ("recorded", True, 20),
    ]
    answers = told(lake, 0, 20)
    assert [answers[second][1] for second in (0, 4, 5, 9, 10)] == [None, None, False, False, True]


def test_parts_and_a_segment_that_is_being_written_are_told(tmp_path: Path) -> None:
    node = Node(tmp_path / "root", "node-7")
    part = DerivedFrom("a" * 64, "b" * 64, 30, at(2), at(10), [A])
    node.segment(at(0), at(10), each_second(2, 10), derived_from=part)
    torn = node.part(at(10), each_second(12, 14))
    torn.write_bytes(torn.read_bytes() + b"half a record")
    assert [row[1:5] for row in table(lake_of(tmp_path))] == [
        (2.0, 10.0, "cut_out", False),
        (10.0, 13.7, "unreported", None),
    ]


def test_a_second_is_complete_only_if_all_of_it_is_known_to_be(tmp_path: Path) -> None:
    """The first half of second 10 was recorded whole; of the other one the agent has not told yet."""
    node = Node(tmp_path / "root", "node-7")
    node.segment(at(0), at(10.5), each_second(0, 10))
    node.part(at(10.5), [(at(second), 7, datagram(A, B, 40000, 9000)) for second in (10.7, 11.2)])
    Node(tmp_path / "root", "node-8").segment(at(0), at(11), [])
    lake = lake_of(tmp_path)
    assert told(lake, 9, 11, node="node-7") == {9: (2, True, "recorded"), 10: (1, None, "recorded, unreported")}
    frame = lake.coverage()
    assert list(frame[frame["node"] == "node-7"]["dropped"].fillna(-1)) == [0] * 10 + [-1] * 2
    assert frame.groupby("node")["packets"].sum().to_dict() == {"node-7": 22, "node-8": 0}


def test_a_capture_of_no_agent_says_what_it_has_and_not_what_it_dropped(tmp_path: Path) -> None:
    (tmp_path / "one.pcap").write_bytes(pcap(each_second(0, 5)))
    (tmp_path / "two.pcap").write_bytes(pcap(each_second(60, 65)))
    lake = lake_of(tmp_path, tmp_path / "one.pcap", tmp_path / "two.pcap")
    assert [row[3:] for row in table(lake)] == [
        ("unreported", None, 10),
        ("unknown", None, None),
        ("unreported", None, 10),
    ]
    answers = told(lake, 0, 66)
    assert {each for _, each, _ in answers.values()} == {None}
    assert [answers[second][0] for second in (0, 4, 5, 60, 65)] == [2, 2, 0, 2, 0]


def test_a_node_of_which_a_bundle_has_nothing_has_no_complete_second(tmp_path: Path) -> None:
    Node(tmp_path / "root", "node-1").segment(at(0), at(60), each_second(0, 60))
    nodes = [BundleNode("prod", "node-1", True), BundleNode("prod", "node-2", False, missing=["no agent"])]
    (tmp_path / "root" / "bundle.json").write_bytes(to_json(Bundle(at(99), at(0), at(60), nodes, [])))
    lake = lake_of(tmp_path)
    assert table(lake)[1] == ("node-2", 0.0, 60.0, "not_collected", False, None)
    assert told(lake, 0, 60, node="node-2") == dict.fromkeys(range(60), (0, False, "not_collected"))
    assert told(lake, 0, 60, node="node-1") == dict.fromkeys(range(60), (2, True, "recorded"))


def gap_in_the_journal(tmp_path: Path) -> Path:
    """From 30 to 50."""
    return write_journal(
        tmp_path,
        [
            JournalRecord("list_complete", at(0), "Pod"),
            JournalRecord("bookmark", at(20), "Pod"),
            JournalRecord("gap", at(50), "Pod", since_ns=at(30), reason="refused"),
            JournalRecord("list_complete", at(50), "Pod"),
            JournalRecord("bookmark", at(60), "Pod"),
            JournalRecord("stopped", at(60)),
        ],
    )


def test_a_gap_of_the_journal_is_no_gap_of_the_packets(tmp_path: Path) -> None:
    Node(tmp_path / "root", "node-7").segment(at(0), at(60), each_second(0, 60))
    gap_in_the_journal(tmp_path / "root")
    lake = lake_of(tmp_path)
    assert table(lake)[0] == (None, 30.0, 50.0, "journal", False, None)
    assert told(lake, 0, 60) == dict.fromkeys(range(60), (2, True, "recorded"))
    assert list(lake.coverage()["journal_gap"]) == [30 <= second < 50 for second in range(60)]
    assert list(lake.report("coverage", node="node-7")["kind"]) == ["journal", "recorded"]
    notes = printed(lake, "retransmits")
    assert "complete on 1 of 1 nodes" in notes and "the journal saw nothing" in notes and "lower bound" not in notes


def test_a_hole_between_two_analyses_is_told_and_gone_when_it_is_filled(tmp_path: Path) -> None:
    node = Node(tmp_path / "root", "node-7")
    first = node.segment(at(0), at(10), each_second(0, 10))
    node.segment(at(10), at(20), each_second(10, 20))
    last = node.segment(at(20), at(30), each_second(20, 30))
    lake = lake_of(tmp_path, first)
    lake = lake_of(tmp_path, last)
    assert [row[1:4] for row in table(lake)][1] == (10.0, 20.0, "missing")
    lake = lake_of(tmp_path)
    assert table(lake) == [("node-7", 0.0, 30.0, "recorded", True, 60)]


# --- Reports ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def holed(tmp_path: Path) -> Lake:
    """node-a recorded whole, node-b not from 10 to 40; no retransmissions."""
    Node(tmp_path / "root", "node-a").segment(at(0), at(60), each_second(0, 60))
    node = Node(tmp_path / "root", "node-b")
    node.segment(at(0), at(10), each_second(0, 10), run_id="1")
    node.segment(at(40), at(60), each_second(40, 60), run_id="2", gap_before_ns=30 * NANOSECONDS)
    return lake_of(tmp_path)


HOLE = "node-b: nothing from 2026-03-01T14:03:10Z to 2026-03-01T14:03:40Z (its agent was not running)"
BOUND = "0 retransmissions are a lower bound: not all of node-b was captured"


def test_no_retransmissions_over_a_gap_are_a_lower_bound(holed: Lake) -> None:
    lines = printed(holed, "retransmits").splitlines()
    assert lines[0] == "the lake has no retransmits"
    assert "complete on 1 of 2 nodes" in lines[1]
    assert lines[2:4] == [HOLE, BOUND]


@pytest.mark.parametrize(
    ("since", "until", "hole"),
    [
        ("14:03:00", "14:03:10", None),
        ("14:03:41", "14:03:59", None),
        ("14:03:40", None, None),
        ("14:03:20", "14:03:30", "14:03:20Z to 2026-03-01T14:03:30Z"),
        ("14:03:05", "14:03:15", "14:03:10Z to 2026-03-01T14:03:15Z"),
        ("14:03:35", None, "14:03:35Z to 2026-03-01T14:03:40Z"),
    ],
)
def test_only_a_gap_in_the_window_counts(holed: Lake, since: str, until: str | None, hole: str | None) -> None:
    window = ["--since", f"2026-03-01T{since}Z", *(["--until", f"2026-03-01T{until}Z"] if until else [])]
    lines = printed(holed, "retransmits", *window)
    assert (BOUND in lines) is (hole is not None)
    if hole:
        assert f"node-b: nothing from 2026-03-01T{hole}" in lines


def test_the_report_tells_the_spans_of_each_node(holed: Lake) -> None:
    rows = json.loads(printed(holed, "coverage", "-o", "json", "--node", "node-b"))
    assert [(row["start"][11:19], row["end"][11:19], row["complete"], row["kind"]) for row in rows] == [
        ("14:03:00", "14:03:10", "yes", "recorded"),
        ("14:03:10", "14:03:40", "no", "stopped"),
        ("14:03:40", "14:04:00", "yes", "recorded"),
    ]
    assert {row["node"] for row in rows} == {"node-b"}


def test_the_report_tells_which_end_of_a_window_no_segment_reaches(holed: Lake) -> None:
    frame = holed.report("coverage", since="2026-03-01T14:02:00Z", until="2026-03-01T14:05:00Z", node="node-a")
    assert list(zip(frame["complete"], frame["kind"], frame["packets"].fillna(-1), strict=True)) == [
        ("no", "missing", -1),
        ("yes", "recorded", 120),
        ("no", "missing", -1),
    ]
    frame = holed.report("coverage", since="2026-03-01T14:02:00Z", until="2026-03-01T14:02:30Z")
    assert list(frame["node"]) == ["node-a", "node-b"] and set(frame["kind"]) == {"missing"}
    for window in ({"since": "2026-03-01T15:00:00Z"}, {"until": "2026-03-01T13:00:00Z"}):
        assert holed.report("coverage", **window).empty, "nothing else is in that time"


def test_a_node_that_was_recorded_only_later_is_missing_before(holed: Lake, tmp_path: Path) -> None:
    Node(tmp_path / "root", "node-c").segment(at(50), at(60), each_second(50, 60))
    lake = lake_of(tmp_path)
    frame = lake.report("coverage", until="2026-03-01T14:03:30Z")
    last = frame.iloc[-1]
    assert (last["node"], last["kind"], last["start"].value, last["end"].value) == ("node-c", "missing", at(0), at(30))
    assert "complete on 1 of 3 nodes" in printed(lake, "retransmits", "--until", "2026-03-01T14:03:30Z")


def test_coverage_is_of_nodes(holed: Lake) -> None:
    with pytest.raises(UsageError, match="coverage is of nodes"):
        holed.report("coverage", pod="web-1")
    assert printed(holed, "coverage", "--node", "node-x").startswith("there is no node 'node-x' in the lake")


def test_drops_alone_make_a_zero_a_lower_bound(tmp_path: Path) -> None:
    Node(tmp_path / "root", "node-a").segment(at(0), at(60), each_second(0, 60), ledger=ledger(120, kernel=8))
    lines = printed(lake_of(tmp_path), "retransmits").splitlines()
    assert "node-a: 8 packets dropped (8 by kernel)" in lines
    assert "0 retransmissions are a lower bound: not all of node-a was captured" in lines


def journal_of_a_pod(tmp_path: Path) -> Path:
    """It saw nothing from 30 to 50."""
    pod = {
        "kind": "Pod",
        "metadata": {"name": "web", "namespace": "shop", "uid": "u"},
        "spec": {"nodeName": "node-7"},
        "status": {"phase": "Running", "startTime": "2026-03-01T14:00:00Z", "podIPs": [{"ip": A}]},
    }
    return write_journal(
        tmp_path / "other",
        [
            JournalRecord("listed", at(0), "Pod", "u", "1", pod),
            JournalRecord("list_complete", at(0), "Pod"),
            JournalRecord("bookmark", at(20), "Pod"),
            JournalRecord("gap", at(50), "Pod", since_ns=at(30), reason="refused"),
            JournalRecord("listed", at(50), "Pod", "u", "1", pod),
            JournalRecord("list_complete", at(50), "Pod"),
            JournalRecord("stopped", at(60)),
        ],
    )


BLIND = (None, 30.0, 50.0, "journal")


def test_a_journal_that_comes_later_is_told(tmp_path: Path) -> None:
    Node(tmp_path / "root", "node-7").segment(at(0), at(60), each_second(0, 60))
    lake = lake_of(tmp_path)
    assert not lake.coverage()["journal_gap"].any()
    enrich(tmp_path / "lake", [str(journal_of_a_pod(tmp_path))])
    assert list(open_lake(tmp_path / "lake").coverage()["journal_gap"]) == [30 <= each < 50 for each in range(60)]


def test_a_journal_alone_is_analysed_with_what_the_lake_has(tmp_path: Path) -> None:
    """Its gap is told once, however often it was given."""
    node = Node(tmp_path / "root", "node-7")
    node.segment(at(0), at(60), each_second(0, 60))
    lake_of(tmp_path)
    journal = str(journal_of_a_pod(tmp_path))
    for is_new in (True, False):
        summary = analyze([str(tmp_path / "root")], tmp_path / "lake", metadata=[journal], jobs=1)
        assert (summary.unchanged, summary.learned) == (True, is_new)
        lake = open_lake(tmp_path / "lake")
        assert [row[:4] for row in table(lake)] == [BLIND, ("node-7", 0.0, 60.0, "recorded")]
        assert "the journal saw nothing" in printed(lake, "retransmits")
    enrich(tmp_path / "lake", [journal])
    node.segment(at(60), at(80), each_second(60, 80))
    analyze([str(tmp_path / "root")], tmp_path / "lake", metadata=[journal], jobs=1)
    assert [row[:4] for row in table(open_lake(tmp_path / "lake"))] == [BLIND, ("node-7", 0.0, 80.0, "recorded")]


def test_a_journal_is_all_that_is_given(tmp_path: Path) -> None:
    Node(tmp_path / "root", "node-7").segment(at(0), at(60), each_second(0, 60))
    journal_of_a_pod(tmp_path)
    other = str(tmp_path / "other")
    with pytest.raises(PodtapError, match=r"no captures in .*, and no lake"):
        analyze([other], tmp_path / "lake", jobs=1)
    lake_of(tmp_path)
    summary = analyze([other], tmp_path / "lake", jobs=1)
    assert (summary.unchanged, summary.learned) == (True, True)
    lake = open_lake(tmp_path / "lake")
    assert [row[:4] for row in table(lake)] == [BLIND, ("node-7", 0.0, 60.0, "recorded")]


def test_what_a_ring_evicted_is_told_though_no_capture_is_new(tmp_path: Path) -> None:
    node = Node(tmp_path / "root", "node-7")
    kept = node.segment(at(10), at(20), each_second(10, 20))
    lake_of(tmp_path, kept)
    tombstone = Tombstone("x/1", "a", at(50), "quota", None, at(0.2), at(9.7), 20)
    (node.folder / "tombstones.jsonl").write_bytes(to_json(tombstone))
    for _ in range(2):
        assert [row[1:] for row in table(lake_of(tmp_path))] == [
            (0.2, 10.0, "evicted", False, 20),
            (10.0, 20.0, "recorded", True, 20),
        ]
    node.segment(at(20), at(30), each_second(20, 30))
    assert table(lake_of(tmp_path))[0][1:] == (0.2, 10.0, "evicted", False, 20)


# --- A real agent ----------------------------------------------------------------------------------------------------


class Trickle:
    """Twenty packets a second, none near the turn of a second; `sent` counts them by second."""

    def __init__(self, cable: Wire) -> None:
        with cable.left.entered():
            self._out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            self._out.bind(("wire", 0))
        self.sent: Counter[int] = Counter()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Trickle:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._out.close()

    def _run(self) -> None:
        while not self._ended.wait(0.05 - (time.time() - 0.025) % 0.05):
            now = time.time()
            if 0.02 < now % 1 < 0.98:
                self._out.send(numbered(0))
                self.sent[int(now)] += 1


def test_each_second_of_a_real_agent_is_told_right(
    wire: Wire,  # noqa: F811
    start: Callable[..., Agent],  # noqa: F811
    tmp_path: Path,
) -> None:
    """Its small ring runs over, it is killed and started 3 s later, and one of its segments is removed."""
    options = ("-i", "wire", "-s", "0", "-G", "2", "-B", "1024")
    with Trickle(wire) as trickle:
        agent = start(*options)
        time.sleep(6)
        blocked = int(time.time())
        agent.process.send_signal(signal.SIGSTOP)
        blast(wire, 50_000, 50_000)
        agent.process.send_signal(signal.SIGCONT)
        time.sleep(6)
        killed = int(time.time())
        agent.process.kill()
        agent.process.wait()
        time.sleep(3)
        agent = start(*options)
        time.sleep(4)
    assert agent.stop() == 0
    removed = agent.manifests()[1]
    for suffix in (".json", ".pcap"):
        removed["path"].with_suffix(suffix).unlink()
    assert start(*options).stop() == 0  # it finds what is gone

    lake = lake_of(tmp_path, agent.root)
    frame = lake.coverage(node="n")
    seconds = [int(each.value // NANOSECONDS) for each in frame["second"]]
    captured = dict(zip(seconds, frame["packets"], strict=True))
    complete = dict(zip(seconds, frame["complete"], strict=True))
    assert sum(captured.values()) == sum(len(records(path)) for path in agent.root.rglob("*.pcap"))
    whole = {second for second, each in complete.items() if each is True}
    sent = [second for second in seconds if second in trickle.sent]
    assert [captured[second] for second in whole & set(sent)] == [trickle.sent[second] for second in whole & set(sent)]
    lacking = {second for second in sent if captured[second] < trickle.sent[second]}
    assert lacking >= {killed + 1, killed + 2}
    assert {complete[second] for second in lacking} <= {False, None}
    assert complete[blocked + 1] is None
    gone = range(int(removed["opened_ns"] / 1e9) + 1, int(removed["first_packet_ns"] / 1e9) + 2)
    assert {complete[second] for second in (killed + 1, killed + 2, *gone)} == {False}
    assert len(whole) >= 5, "and what was recorded whole is told to be"
    (counted,) = lake.arrow("SELECT sum(drops_kernel)::BIGINT AS n FROM coverage").to_pylist()
    dropped = sum(each["ledger"]["kernel"] for each in agent.manifests())
    assert counted["n"] == dropped > 0
