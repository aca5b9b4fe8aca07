"""A counter of the node that grows too fast freezes the minutes around it: the kernel's own counter, in a namespace."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from capture import counter_freezer
from capture.counter_freezer import parse_trigger, sample
from capture.errors import UsageError
from capture.freezes import read_freezes
from capture.triggers import Trigger

SECOND = 1_000_000_000


@pytest.mark.parametrize(
    "text", ["", "tcp_retrans_segs", "tcp_retrans_segs=", "tcp_retrans_segs=-1", "nothing=5", "=3"]
)
def test_what_is_no_trigger_is_refused_with_the_counters_that_there_are(text: str) -> None:
    with pytest.raises(UsageError, match=r"COUNTER=RATE.*tcp_retrans_segs"):
        parse_trigger(text)


def test_a_counter_that_grows_too_fast_freezes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections to a closed port are refused: the kernel counts each reset that it sends."""
    import socket

    trigger = parse_trigger("tcp_out_rsts=2")
    trigger.over_ns = SECOND // 100
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = closed.getsockname()
    begun = time.time_ns()
    for _ in range(4):
        sample(tmp_path, [trigger])
        for _ in range(20):
            with socket.socket() as client:
                assert client.connect_ex(address)
        time.sleep(0.02)
    (freeze,), problems = read_freezes(tmp_path)
    assert problems == []
    assert freeze.since_ns < begun < freeze.until_ns
    assert (freeze.by, freeze.reason) == (counter_freezer.BY, "tcp_out_rsts grew by more than 2 a second")


def test_a_folder_that_is_gone_does_not_stop_the_agent(tmp_path: Path) -> None:
    trigger = Trigger("tcp_out_segs", -1.0, over_ns=0)
    for _ in range(2):
        sample(tmp_path / "gone" / "node", [trigger])


def test_the_journal_below_the_same_root_is_frozen_too(tmp_path: Path) -> None:
    node, writer = tmp_path / "cluster" / "node", tmp_path / "_journal" / "journal-0"
    for each in (node, writer):
        each.mkdir(parents=True)
    trigger = Trigger("tcp_out_segs", -1.0, over_ns=0)
    for _ in range(2):
        sample(node, [trigger])
    (freeze,), _ = read_freezes(node)
    (kept,), _ = read_freezes(writer)
    assert (kept.id, kept.since_ns, kept.reason) == (freeze.id, freeze.since_ns, freeze.reason)
