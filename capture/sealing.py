"""The thread in which segments are sealed, one after the other, while the next one is being written."""

from __future__ import annotations

import errno
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from capture import log
from capture.clock import ClockSteps, read_clock
from capture.contract import Interface, Ledger
from capture.ledger import gone
from capture.metrics import SEALED_SEGMENTS, WRITE_ERRORS, Metrics
from capture.node_counters import read_counters
from capture.packet_file import PacketFile
from capture.ring import Ring
from capture.segment_writer import SegmentFacts

During = Callable[[int, int], list[Interface]]
"""The interface table from one time to another."""


@dataclass
class _Ended:
    file: PacketFile
    facts: SegmentFacts
    ended_ns: int


class Sealing:
    """Adds to a segment's facts what is slow to find out, and seals it."""

    def __init__(self, ring: Ring, during: During, metrics: Metrics) -> None:
        self._ring = ring
        self._during = during
        self._metrics = metrics
        self._steps = ClockSteps()
        self._counters = read_counters()
        self._queue: queue.SimpleQueue[_Ended | None] = queue.SimpleQueue()
        self.lost: queue.SimpleQueue[Ledger] = queue.SimpleQueue()
        """Of segments that somebody removed before they were sealed."""
        self._thread = threading.Thread(target=self._run, name="sealing", daemon=True)
        self._thread.start()

    def submit(self, file: PacketFile, facts: SegmentFacts) -> None:
        """Returns at once. No more packets may come into the file."""
        file.close()
        self._queue.put(_Ended(file, facts, time.time_ns()))

    def finish(self, seconds: float) -> bool:
        """Seal what waits, within that time. Whether all of it is sealed."""
        self._queue.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive() and not self._ring.state(time.time_ns()).waiting_segments

    def _run(self) -> None:
        waits: _Ended | None = None
        while ended := self._queue.get():
            if not self._try(ended):
                waits = ended
        if waits and self._ring.state(time.time_ns()).waiting_segments:
            self._try(waits)  # and with it all that waits: the disk may work by now

    def _try(self, ended: _Ended) -> bool:
        """Whether there is nothing to try again."""
        try:
            self._seal(ended)
        except FileNotFoundError as error:
            self.lost.put(gone(ended.facts.ledger, is_elsewhere=ended.file.part.is_elsewhere))
            log.error("a segment was removed before it was sealed", error=str(error))
        except OSError as error:
            self._metrics.add(WRITE_ERRORS, 1, _name(error))
            log.error("a segment could not be sealed, it is tried again", stem=ended.file.part.stem, error=str(error))
            return False
        return True

    def _seal(self, ended: _Ended) -> None:
        file = ended.file
        first_ns, last_ns = file.packet_times()
        before, self._counters = self._counters, read_counters()
        begin_ns = min(file.part.opened_ns, first_ns or file.part.opened_ns)
        facts = replace(
            ended.facts,
            first_packet_ns=first_ns,
            last_packet_ns=last_ns,
            counters=[before, self._counters],
            clock=replace(read_clock(), stepped=self._steps.step_ns() != 0),
            interfaces=self._during(begin_ns, max(ended.ended_ns, last_ns or 0)),
        )
        began_s = time.monotonic()
        manifest = self._ring.seal(file.part, facts)
        self._metrics.add(SEALED_SEGMENTS)
        log.info(
            "segment sealed",
            stem=manifest.stem,
            packets=manifest.packets,
            bytes=manifest.size_bytes,
            seconds=round(time.monotonic() - began_s, 3),
        )


def _name(error: OSError) -> str:
    """ENOSPC and the like."""
    return errno.errorcode.get(error.errno or 0, "other")
