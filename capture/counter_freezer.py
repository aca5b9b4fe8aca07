"""Freezes the minutes around it where a counter of the node grows too fast: the agent's own trigger."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from capture import log
from capture.errors import UsageError
from capture.node_counters import read_counters
from capture.node_freeze import ELSEWHERE, freeze_node
from capture.triggers import Trigger

EVERY_S: Final = 5.0
BY: Final = "agent"


def parse_trigger(text: str) -> Trigger:
    """`COUNTER=RATE`, such as tcp_retrans_segs=100. UsageError tells what it must be, and which counters there are."""
    name, _, rate = text.partition("=")
    counters = read_counters().values
    try:
        per_second = float(rate)
    except ValueError:
        per_second = -1.0
    if per_second < 0 or name not in counters:
        known = ", ".join(sorted(counter for counter in counters if ":" not in counter))
        raise UsageError(f"--freeze-when {text}: it must be COUNTER=RATE, by the second; this node counts {known}")
    return Trigger(name, per_second)


def watch(folder: Path, triggers: Sequence[Trigger]) -> Callable[[], None]:
    """Looks every few seconds, in a thread of its own; returns what ends it."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(EVERY_S):
            sample(folder, triggers)

    thread = threading.Thread(target=look, name="counter-freezer", daemon=True)
    thread.start()

    def end() -> None:
        ended.set()
        thread.join()

    return end


def sample(folder: Path, triggers: Sequence[Trigger]) -> None:
    """One look at the counters. A freeze that can't be written is told, and the recording goes on."""
    counters = read_counters().values
    for trigger in triggers:
        window = trigger.observe(time.time_ns(), counters.get(trigger.name, 0))
        if window is None:
            continue
        try:
            done = freeze_node(folder.parents[1], [folder], window, trigger.reason(), BY)
        except OSError as error:
            log.error("a freeze can't be written", reason=trigger.reason(), error=str(error))
        else:
            journal = f"not frozen: {done.journal_problem}; {ELSEWHERE}" if done.journal_problem else "frozen"
            log.warning("frozen", id=done.freeze.id, reason=done.freeze.reason, journal=journal)
