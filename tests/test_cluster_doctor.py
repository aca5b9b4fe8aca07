"""One report out of many nodes'. With real agents: tests/lab/test_cluster_doctor.py."""

from __future__ import annotations

import json
from typing import Any

import pytest

from capture.cluster_doctor import NodeReport, grouped, text, understand
from capture.contract import Clock
from capture.errors import PodtapError
from capture.findings import Finding

SECOND = 10**9
MINUTE = 60 * SECOND
NOW = 1_772_373_781 * SECOND  # 2026-03-01 14:03:01 UTC
OK = Finding("ok", "recording", "Process 1.")
SLOW = Finding("warn", "clock", "It is off.", "is chrony running?")


def node(name: str, *findings: Finding, **values: Any) -> NodeReport:
    known: dict[str, Any] = {"report": {}, "time_ns": NOW, "oldest_ns": NOW - 130 * MINUTE, "accepted": 2e6}
    known |= {"overwritten_ns": NOW + 48 * SECOND, "clock": Clock(True, 2_000_000)}
    return NodeReport(name, list(findings or (OK,)), **(known | values))


def silent(name: str) -> NodeReport:
    return NodeReport(name, [Finding("bad", "recording", "Its agent could not be asked: no route to host.")])


def test_a_line_for_each_node_the_worst_first() -> None:
    reports = [
        node("node-a"),
        node("node-b", SLOW, oldest_ns=NOW - 4 * MINUTE, lost=1204, clock=Clock(False, 16 * SECOND)),
        silent("node-c"),
        node("node-d", oldest_ns=None, overwritten_ns=None, accepted=None, clock=Clock()),
    ]
    found = text("prod", NOW, reports, [Finding("ok", "journal", "1 of 1 pods run: j.")], 100, False)
    assert found == [
        "prod at 2026-03-01T14:03:01Z: 4 nodes",
        "",
        "      node    reaches back to       for         overwritten in  drops   clock",
        "bad   node-c  ?                     ?           ?               ?       ?",
        "warn  node-b  2026-03-01T13:59:01Z       4 min            48 s  0.06 %  not synchronised",
        "ok    node-a  2026-03-01T11:53:01Z  2 h 10 min            48 s  none    ± 2 ms",
        "ok    node-d  nothing yet                       ?               ?       ?",
        "",
        "ok    journal    1 of 1 pods run: j.",
        "warn  clock      node-b: It is off.",
        "                 -> is chrony running?",
        "bad   recording  node-c: Its agent could not be asked: no route to host.",
        "",
        "2 of 4 nodes reach back to 2026-03-01T13:59:01Z (node-b the least); bad: recording; to look at: clock",
    ]


def test_what_is_the_same_on_many_nodes_is_said_once() -> None:
    reports = [node(f"n{number:04}", SLOW) for number in range(5000)]
    assert [each.text for each in grouped(reports)] == ["all nodes: It is off."]
    reports[0] = node("n0000")
    assert [each.text for each in grouped(reports)] == ["n0001, n0002, n0003, n0004, n0005 and 4,994 more: It is off."]
    different = [node(f"n{number}", Finding("warn", "drops", f"{number} packets")) for number in range(12)]
    assert [each.text for each in grouped(different)] == [
        "n0: 0 packets",
        "n1: 1 packets",
        "n2: 2 packets",
        "likewise on n3, n4, n5, n6, n7 and 4 more",
    ]
    shown = text("prod", NOW, reports, [], 100, False)
    assert len(shown) < 60
    assert "and 4,960 more nodes, which are no worse" in shown


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b"{}",
        b"null",
        b"[null]",
        b"[{}]",
        b'[{"findings": [{}]}]',
        b'[{"findings": [{"level": "fine", "subject": "x", "text": "y"}]}]',
        b'[{"findings": [{"level": "ok", "subject": 1, "text": "y"}]}]',
        b'[{"findings": [], "ring": 7, "clock": {}, "metrics": {}}]',
        b'[{"findings": [], "ring": null, "clock": null, "metrics": {}, "time_ns": 1}]',
        b'[{"findings": [], "ring": {"oldest_ns": "x"}, "clock": {}, "metrics": {}, "time_ns": 1}]',
        b"\xff\xfe",
    ],
)
def test_an_answer_that_is_none(answer: bytes) -> None:
    with pytest.raises(PodtapError, match="can't be understood"):
        understand("node-a", answer)


def test_names_do_not_move_the_terminals_cursor() -> None:
    report = {"findings": [], "ring": None, "clock": {"synchronised": None, "max_error_ns": None}, "metrics": {}}
    odd = understand("node\x1b[2J", json.dumps([report | {"time_ns": NOW}]).encode())
    odd.findings.append(Finding("bad", "x\x1b]0;y\x07", "z\r\n\x9b31m"))
    shown = text("prod\x1b[0m", NOW, [odd, silent("a\x07")], [], 100, False)
    assert not any(character < " " or "\x7f" <= character <= "\x9f" for line in shown for character in line)
