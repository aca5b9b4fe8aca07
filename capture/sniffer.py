"""The packet loop's source: a libpcap handle that comes back after its interface did, and what it counted.

A new socket receives before it can be filtered. So it is closed with a filter that accepts nothing, and emptied, before
the real one lets packets in; its counters begin there. A filter is exchanged on the living socket: no packet is missed.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from capture import libpcap
from capture.bpf import reject_all
from capture.ledger import Totals, Unwrapped
from capture.libpcap import Dumper, Handle, Instruction, Stats

ANY: Final = "any"
RETIRE_MS: Final = 100
"""The kernel hands over a block of its ring that is not full after once to twice so long."""
EMPTY_S: Final = 3 * RETIRE_MS / 1000
"""After so long without new packets nothing is in the ring."""
SETTLE_S: Final = 0.005
"""A packet that was under way when the filter was exchanged is in the ring by then."""
FASTEST_BYTES: Final = 1.25e9
FASTEST_PACKETS: Final = 3e6
"""What may come in a second, at most: a link of 10 Gbit/s, and what a socket takes."""
RING_HEADER_BYTES: Final = 82
HEADERS_BYTES: Final = 96
"""In the ring: before each packet, and what is kept of most where payload is not."""
BATCH: Final = 4096
"""Packets that are read with one call, at most."""

MakeProgram = Callable[[Handle], Sequence[Instruction]]
Keep = Callable[[bytes], bool]
"""Whether a frame is wanted."""


@dataclass(frozen=True)
class Source:
    """What is captured, and how."""

    device: str = ANY
    snaplen: int = libpcap.MOST_SNAPLEN
    ring_bytes: int = 32 * 1024 * 1024
    headers_only: bool = False
    """Whether the filter keeps little of most packets."""

    @property
    def full_s(self) -> float:
        """So soon may the ring be full, once more comes than a node of today can bring."""
        kept_bytes = HEADERS_BYTES if self.headers_only else self.snaplen
        return self.ring_bytes / min(FASTEST_BYTES, FASTEST_PACKETS * (kept_bytes + RING_HEADER_BYTES))


class Sniffer:
    """Reads packets of a source. `program` makes the socket's filter, for each socket anew."""

    def __init__(self, source: Source, program: MakeProgram) -> None:
        """Opens the socket. NoDeviceError, Error, FilterError, PermissionError."""
        self.source = source
        self._program = program
        self._closed = Totals()
        """Of sockets that are gone."""
        self._disk = self._policy = 0
        self._null: Dumper | None = None
        self._handle: Handle | None = None
        self._read = 0
        self._totals = Totals()
        self._keep: Keep = lambda frame: True
        self.link_type = -1
        self.open()

    def open(self) -> None:
        """Again, after the interface went away. Errors as at the start."""
        handle = Handle.live(self.source.device, self.source.snaplen, self.source.ring_bytes, RETIRE_MS)
        try:
            program = self._program(handle)
            handle.attach(reject_all())
            time.sleep(SETTLE_S)
            null = Dumper(handle, lambda data: None, 1 << 16)
            counters = Unwrapped(_empty(handle, null))
            handle.attach(program)
            self._attached = program
        except BaseException:
            handle.close()
            raise
        if self._null:
            self._null.close()
        self._handle, self._null, self._counters = handle, null, counters
        self._read = 0
        self._failed_s = 0.0
        self._doubtful = 0
        """So many of the packets that come next were accepted by an earlier filter."""
        self.link_type = handle.link_type

    @property
    def is_open(self) -> bool:
        return self._handle is not None

    def fileno(self) -> int:
        """To be polled; -1 while the interface is away."""
        return self._handle.fileno() if self._handle else -1

    def read(self, dumper: Dumper | None) -> tuple[int, int]:
        """A batch of packets into the dumper; None: onto the floor, which counts as the disk's fault.

        Returns how many were read, and how many of them are in the dumper. NoDeviceError where the interface went away:
        the socket is closed then.
        """
        if self._handle is None or self._null is None:
            return 0, 0
        try:
            if self._doubtful:
                most = min(BATCH, self._doubtful)
                count, kept = self._handle.dispatch_some(most, dumper or self._null, self._keep)
                self._doubtful -= count
            else:
                count = kept = self._handle.dispatch(BATCH, dumper or self._null)
        except libpcap.Error:
            # The interface may be gone, what it brought is still in the ring.
            self._failed_s = self._failed_s or time.monotonic()
            if self.is_empty() or time.monotonic() > self._failed_s + EMPTY_S:
                self.close()
                raise
            return 0, 0
        self._read += count
        self._policy += count - kept
        if dumper is None:
            self._disk += kept
            return count, 0
        return count, kept

    def lost_on_disk(self, packets: int) -> None:
        """So many of those that were read did not stay."""
        self._disk += packets

    def refilter(self, keep: Keep | None = None, between: MakeProgram | None = None) -> None:
        """Exchange the filter for what `program` makes now. OSError, FilterError: the old one stays.

        `keep` decides about those packets that wait in the ring: what it refuses counts as policy's. `between`: a short
        filter that accepts at least as much, for kernels that have no room for two long ones at once.
        """
        if self._handle is None:
            return
        program = self._program(self._handle)
        try:
            self._handle.attach(program)
        except OSError as error:
            if error.errno != errno.ENOMEM or between is None:
                raise
            self._handle.attach(between(self._handle))
            try:
                self._handle.attach(program)
            except OSError:
                self._handle.attach(self._attached)
                raise
        self._attached = program
        if keep:
            time.sleep(SETTLE_S)
            self._keep = keep
            self._doubtful = max(0, self.totals().waiting)

    def totals(self) -> Totals:
        """Up to now; asks the kernel."""
        if self._handle:
            with contextlib.suppress(libpcap.Error):  # the interface is just going away: what was known stays
                stats = self._counters.count(self._handle.stats())
                self._totals = Totals(stats.received, 0, stats.dropped, interface=stats.interface_dropped)
        living = replace(self._totals, read=self._read) if self._handle else Totals()
        return self._closed + living + Totals(disk=self._disk, policy=self._policy)

    def finish(self) -> None:
        """Accept nothing more. What waits is to be read until is_empty(); then close()."""
        if self._handle:
            self._handle.attach(reject_all())
            time.sleep(SETTLE_S)

    def is_empty(self) -> bool:
        """Whether all that was accepted is read. It never becomes so where libpcap keeps packets for itself."""
        return self.totals().waiting <= 0

    def close(self) -> None:
        """Let go of the socket. What it accepted and nobody read is libpcap's. May be called again."""
        if self._handle is None:
            return
        totals = self.totals()
        self._handle.close()
        self._handle = None
        own = replace(totals, disk=0, policy=0)
        self._closed = replace(own, libpcap=own.libpcap + own.waiting)
        self._totals = Totals()
        self._read = 0


def _empty(handle: Handle, dumper: Dumper) -> Stats:
    """Read what is in the ring of a socket that accepts nothing more. Returns its final counters."""
    read = 0
    deadline = time.monotonic() + EMPTY_S
    while True:
        while count := handle.dispatch(BATCH, dumper):
            read += count
        stats = handle.stats()
        if stats.received - stats.dropped == read or time.monotonic() > deadline:
            return stats
        time.sleep(SETTLE_S)


def loopback_index() -> int | None:
    """Of this network namespace's `lo`."""
    with contextlib.suppress(OSError):
        return socket.if_nametoindex("lo")
    return None


def indices(names: Sequence[str]) -> list[int]:
    """Of those interfaces that are there now."""
    found = []
    for name in names:
        with contextlib.suppress(OSError):
            found.append(socket.if_nametoindex(name))
    return found
