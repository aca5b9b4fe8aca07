"""The packet loop: from the socket into segments, whatever the disk and the interface do.

The disk may fail at any time. Then packets are read on and dropped (and counted) for RETRY_S, and the same file is
tried again; a file that somebody removed is given up, with what was in it. The interface may go away: its socket is
opened again when it is back.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from capture import libpcap, log
from capture.direct_writing import DirectWriting
from capture.errors import PodtapError
from capture.ledger import Totals, add_lost, ledger_of
from capture.libpcap import Handle
from capture.metrics import WRITE_ERRORS, Metrics
from capture.packet_file import PacketFile
from capture.ring import Ring
from capture.rotation import Rotation
from capture.sealing import Sealing
from capture.segment_writer import SegmentFacts, is_removed
from capture.sniffer import ANY, BATCH, EMPTY_S, SETTLE_S, Sniffer

TICK_S: Final = 0.5
RETRY_S: Final = 1.0
MOST_CALLS: Final = 64
"""Batches until the loop looks at anything else."""
MOST_PAUSE_S: Final = 0.1
"""After packets, until it looks for the next ones: to wake up for each block of the ring costs more than to read it."""


@dataclass
class Recorder:
    """Reads packets and writes segments until it is told to stop; everything happens in run()'s thread."""

    sniffer: Sniffer
    ring: Ring
    sealing: Sealing
    rotation: Rotation
    metrics: Metrics
    facts: Callable[[], SegmentFacts]
    """What is the same for all segments, and what the scope is now."""
    every_tick: Callable[[], None] = lambda: None
    gap_before_ns: int | None = None
    """Until the first segment."""
    beat_s: float = field(default_factory=time.monotonic)
    """When the loop last looked for packets (monotonic)."""
    disk_problem: str = ""
    source_problem: str = ""
    written_bytes: int = 0
    """In segments that ended."""
    latest: Totals = field(default_factory=Totals)
    """As of the last tick."""

    def __post_init__(self) -> None:
        self._file: PacketFile | None = None
        self._opened_s = 0.0
        self._retry_s = 0.0
        self._failing_since_ns: int | None = None
        self._reopen_s = 0.0
        self._is_room_to_be_made = True
        """Now and then: the ring leaves room for a whole segment, and looks whether the file is still in its place."""
        self._poller: tuple[int, select.poll] | None = None
        self._base = Totals()
        self._direct = DirectWriting()
        self._model = Handle.dead(self.sniffer.link_type, self.sniffer.source.snaplen)

    # --- The loop ----------------------------------------------------------------------------------------------------

    def run(self, is_stopping: Callable[[], bool], wake_fd: int) -> None:
        """Until is_stopping() holds, which is looked at when `wake_fd` becomes readable, and every TICK_S."""
        next_tick_s = 0.0
        taken = 0
        pause_s = min(MOST_PAUSE_S, self.sniffer.source.full_s)
        while not is_stopping():
            if not taken:  # after a pause there is mostly something
                self._wait(wake_fd)
            self.beat_s = time.monotonic()
            taken = self._take()
            if self.beat_s >= next_tick_s:
                next_tick_s = self.beat_s + TICK_S
                self._tick()
            if taken:
                time.sleep(pause_s)

    def finish(self) -> None:
        """Stop receiving, and end the last segment."""
        self.sniffer.finish()
        deadline = time.monotonic() + EMPTY_S
        while self._take() or not (self.sniffer.is_empty() or time.monotonic() > deadline):
            time.sleep(SETTLE_S)
        self.sniffer.close()
        self._end_file()

    @property
    def bytes_so_far(self) -> int:
        """Written to segments."""
        file = self._file
        return self.written_bytes + (file.size_bytes if file else 0)

    def _wait(self, wake_fd: int) -> None:
        fileno = self.sniffer.fileno()
        if self._poller is None or self._poller[0] != fileno:
            poller = select.poll()
            poller.register(wake_fd, select.POLLIN)
            if fileno >= 0:
                poller.register(fileno, select.POLLIN)
            self._poller = fileno, poller
        _, poller = self._poller
        for descriptor, _ in poller.poll(TICK_S * 1000):
            if descriptor == wake_fd:
                with contextlib.suppress(OSError):
                    os.read(wake_fd, 64)

    def _take(self) -> int:
        """Read what waits, up to a bound. Returns how many packets."""
        taken = 0
        for _ in range(MOST_CALLS):
            file = self._writable()
            try:
                count, kept = self.sniffer.read(file.dumper if file else None)
            except libpcap.Error as error:
                self._source_failed(error)
                break
            taken += count
            if file and kept:
                file.add(kept)
                if file.has_failed:
                    self._flush()
                self._rotate()
            if count < BATCH:
                break
        return taken

    def _tick(self) -> None:
        self._is_room_to_be_made = True
        self._flush()
        self._rotate()
        self._writable()
        if not self.sniffer.is_open and self.beat_s >= self._reopen_s:
            self._reopen_source()
        self.latest = self.sniffer.totals()
        self.every_tick()

    # --- The file ----------------------------------------------------------------------------------------------------

    def _writable(self) -> PacketFile | None:
        """The file to write to; a new one if there is none. None while the disk is given time."""
        if self._retry_s and self.beat_s < self._retry_s:
            return None
        if self._file is None:
            self._open_file()
        return self._file

    def _open_file(self) -> None:
        now_ns = time.time_ns()
        try:
            part = self.ring.open(now_ns)
            try:
                self._file = PacketFile(part, self._model, self._direct)
            except OSError:
                self.ring.discard(part)
                raise
        except OSError as error:
            self._disk_failed(error, 0)
            return
        self._opened_s = time.monotonic()
        if self._failing_since_ns is not None:
            self.gap_before_ns = (self.gap_before_ns or 0) + max(0, now_ns - self._failing_since_ns)
            self._disk_works()

    def _flush(self) -> None:
        """Also where nothing is pending: somebody may have removed the file."""
        file = self._file
        if file is None:
            return
        pending = file.pending
        try:
            if self._is_room_to_be_made or file.end_bytes >= self.rotation.segment_bytes:
                self.ring.make_room(file.end_bytes - file.size_bytes)
                self._is_room_to_be_made = False
            file.flush()
            if self.beat_s < self._retry_s:
                return
            if self.disk_problem and not pending:
                file.probe()
            self._disk_works()
        except FileNotFoundError as error:
            self._abandon(file, error)
        except OSError as error:
            file.forget()
            self._disk_failed(error, pending)

    def _rotate(self) -> None:
        file = self._file
        if file and self.rotation.is_due(file.end_bytes, self._opened_s, self.beat_s):
            self._end_file()

    def _end_file(self) -> None:
        """Hand the file over to be sealed; the next one is opened when it is needed."""
        self._flush()
        file = self._file
        if file is None:
            return
        totals = self.latest = self.sniffer.totals()
        facts = self.facts()
        facts.link_type, facts.snaplen = self._model.link_type, self.sniffer.source.snaplen
        facts.packets, facts.size_bytes, facts.sha256 = file.packets, file.size_bytes, file.sha256
        facts.ledger = ledger_of(totals - self._base, self.sniffer.source.device != ANY)
        while not self.sealing.lost.empty():
            add_lost(facts.ledger, self.sealing.lost.get())
        facts.gap_before_ns, self.gap_before_ns = self.gap_before_ns, None
        self._base = totals
        self._file = None
        self.written_bytes += file.size_bytes
        self.sealing.submit(file, facts)

    def _abandon(self, file: PacketFile, error: OSError) -> None:
        """The file is not where it was: what is in it is lost, and counts with the next one.

        Where it was only moved, it counts when it is back, and salvaged.
        """
        self._failing_since_ns = self._failing_since_ns or file.part.opened_ns
        self._file = None
        file.close()
        lost = file.pending
        if is_removed(file.part):
            lost += file.packets
            with contextlib.suppress(OSError):
                self.ring.discard(file.part)
        else:
            self._base = replace(self._base, read=self._base.read + file.packets)
            self.ring.leave(file.part)
        self._disk_failed(error, lost)

    def _disk_failed(self, error: OSError, lost: int) -> None:
        self.sniffer.lost_on_disk(lost)
        self._retry_s = self.beat_s + RETRY_S
        self._failing_since_ns = self._failing_since_ns or time.time_ns()
        self.metrics.add(WRITE_ERRORS, 1, errno.errorcode.get(error.errno or 0, "other"))
        problem = f"can't write to {self.ring.folder}: {error.strerror or error}"
        if problem != self.disk_problem:
            self.disk_problem = problem
            log.error("packets are dropped until the disk works again", problem=problem, packets=lost)

    def _disk_works(self) -> None:
        self._retry_s = 0.0
        self._failing_since_ns = None
        if self.disk_problem:
            log.info("the disk works again", dropped_packets=self.sniffer.totals().disk)
            self.disk_problem = ""

    # --- The socket --------------------------------------------------------------------------------------------------

    def _source_failed(self, error: Exception) -> None:
        self._reopen_s = self.beat_s + TICK_S
        if not self.source_problem:
            self.source_problem = f"interface {self.sniffer.source.device}: {error}"
            log.warning("the interface is away, waiting for it", problem=self.source_problem)

    def _reopen_source(self) -> None:
        try:
            self.sniffer.open()
        except (libpcap.Error, OSError, PodtapError, ValueError) as error:
            self._source_failed(error)
            return
        if self.sniffer.link_type != self._model.link_type:
            self._end_file()
            self._model.close()
            self._model = Handle.dead(self.sniffer.link_type, self.sniffer.source.snaplen)
        log.info("the interface is back", interface=self.sniffer.source.device)
        self.source_problem = ""
