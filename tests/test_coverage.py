"""What is missing of a node's window, and when a counter's rise freezes one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from capture.contract import NANOSECONDS, JournalRecord, Manifest, Tombstone
from capture.coverage import missing
from capture.journal_records import journal_missing
from capture.recording import Window
from capture.triggers import Trigger
from tests.recordings import MINUTE, START, HandMade, journal

WINDOW = Window(START, START + 4 * MINUTE)


def manifests(tmp_path: Path) -> list[Manifest]:
    node = HandMade(tmp_path)
    return [node.segment(write=False) for _ in range(4)]


def test_nothing_is_missing_where_segments_follow_each_other(tmp_path: Path) -> None:
    assert missing(WINDOW, manifests(tmp_path), [], None) == []


def test_a_segment_that_is_not_there_is_missed_and_a_tombstone_says_why(tmp_path: Path) -> None:
    first, second, third, fourth = manifests(tmp_path)
    when = "2025-11-27T14:01:00Z to 2025-11-27T14:02:00Z"
    assert missing(WINDOW, [fourth, first, third], [], None) == [f"nothing was recorded from {when}"]
    buried = Tombstone(second.stem, "x", START + 9 * MINUTE, "age", None, second.first_packet_ns, second.last_packet_ns)
    assert missing(WINDOW, [first, third, fourth], [buried], None) == [
        f"{when} was evicted at 2025-11-27T14:09:00Z (age)"
    ]


def test_what_the_agent_knows_that_it_missed_is_missed(tmp_path: Path) -> None:
    first, second, third, fourth = manifests(tmp_path)
    third = replace(third, gap_before_ns=30 * NANOSECONDS)
    assert missing(WINDOW, [first, second, third, fourth], [], None) == [
        "nothing was recorded from 2025-11-27T14:01:30Z to 2025-11-27T14:02:00Z"
    ]


def test_a_segment_of_a_crash_covers_what_it_has(tmp_path: Path) -> None:
    first, second, third, fourth = manifests(tmp_path)
    second = replace(second, salvaged=True, sealed_ns=START + 30 * MINUTE)
    assert missing(WINDOW, [first, second, third, fourth], [], None) == [
        "the agent crashed: what came after 2025-11-27T14:01:54Z may be missing",
        "nothing was recorded from 2025-11-27T14:01:54Z to 2025-11-27T14:02:00Z",
    ]


def test_the_ends_of_the_window_and_a_segment_that_is_open(tmp_path: Path) -> None:
    known = manifests(tmp_path)
    window = Window(START - MINUTE, START + 5 * MINUTE)
    assert missing(window, known, [], START + 4 * MINUTE) == [
        "nothing was recorded from 2025-11-27T13:59:00Z to 2025-11-27T14:00:00Z",
        "the segment since 2025-11-27T14:04:00Z is still being written",
    ]
    assert len(missing(window, known, [], None)) == 2
    assert missing(WINDOW, [], [], None) == ["nothing was recorded from 2025-11-27T14:00:00Z to 2025-11-27T14:04:00Z"]


def test_a_trigger_fires_on_a_rise_once_and_forgets_a_counter_that_began_anew() -> None:
    trigger = Trigger("retransmits", per_second=10)
    second = NANOSECONDS
    assert trigger.observe(0, 1_000_000) is None
    assert trigger.observe(5 * second, 2_000_000) is None, "not long enough"
    assert trigger.observe(10 * second, 1_000_050) is None, "5 a second"
    assert trigger.observe(20 * second, 1_001_050) == Window(20 * second - 300 * second, 140 * second)
    assert trigger.observe(40 * second, 2_000_000) is None, "the same incident"
    assert trigger.observe(50 * second, 10) is None
    assert trigger.observe(60 * second, 20) is None, "1 a second"
    assert trigger.observe(1000 * second, 2_000_000) is not None
    assert trigger.reason() == "retransmits grew by more than 10 a second"


def test_the_journal_that_saw_most_of_the_window_counts(tmp_path: Path) -> None:
    assert journal_missing(tmp_path, WINDOW) == ["there is no journal"]
    seen = JournalRecord("list_complete", START, "Pod", resource_version="1")
    gap = JournalRecord("gap", START + 2 * MINUTE, "Pod", since_ns=START + MINUTE, reason="410 Gone")
    journal(tmp_path, [seen, gap], "one")
    assert journal_missing(tmp_path, WINDOW) == [
        "the journal saw no Pod from 2025-11-27T14:01:00Z to 2025-11-27T14:02:00Z: 410 Gone"
    ]
    journal(tmp_path, [seen], "two", START + MINUTE)
    assert len(journal_missing(tmp_path, WINDOW)) == 1
    journal(tmp_path, [seen], "three", START - MINUTE)
    assert journal_missing(tmp_path, WINDOW) == []
