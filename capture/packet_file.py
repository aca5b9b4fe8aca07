"""A segment's file while packets are written to it: what of it is good, its SHA-256, and the times of its packets.

Rule: `size_bytes` moves only after a flush that succeeded. After one that did not, everything behind it is cut off and
counts as lost, be some of it whole or not; so nothing torn is ever kept.

What is written is hashed at once, while it is in the processor's cache: to read it again later costs a fifth more.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import sys
from typing import Final

from capture.contract import NANOSECONDS
from capture.libpcap import FILE_HEADER_BYTES, RECORD_HEADER_BYTES, Dumper, Handle
from capture.segment_writer import Part

BUFFER_BYTES: Final = 1024 * 1024
_RECORD: Final = struct.Struct("=IIII")
"""Seconds, nanoseconds, captured bytes, wire bytes; in this machine's byte order, as libpcap writes."""
_READ_BYTES: Final = 256 * 1024
_PROBE_BYTES: Final = 16 * 1024
_END_PACKETS: Final = 2048
"""So many at either end of a file are looked through for their times, at least."""


class PacketFile:
    """The packets of one part. OSError where the file can't even be begun: the part is to be discarded then."""

    def __init__(self, part: Part, handle: Handle) -> None:
        self.part = part
        self.packets = 0
        """In the file, flushed."""
        self.size_bytes = 0
        """Where the last of them ends."""
        self.pending = 0
        """Given to the dumper since the last flush."""
        self._stretches: list[tuple[int, int]] = []
        """Where the packets of each flush begin, and how many there are before them."""
        self._is_in_order = True
        self._latest_begin = (0, 0)
        self._written = 0
        self._digest = hashlib.sha256()
        """Of what is written."""
        self._good_digest = self._digest.copy()
        """Of what is flushed."""
        self.dumper = Dumper(handle, self._write, BUFFER_BYTES)
        try:
            self.flush()
        except OSError:
            self.dumper.close()
            raise

    @property
    def buffered_bytes(self) -> int:
        """Not flushed yet."""
        return self.dumper.tell() - self.size_bytes

    def flush(self) -> None:
        """Hand all to the system. OSError: what was pending is lost, what was flushed before stays, go on at will."""
        if not self.pending and self.size_bytes:
            return
        end = self.dumper.tell()
        try:
            self.dumper.flush()
        except OSError:
            self.forget()
            raise
        if self.pending:
            self._stretches.append((self.size_bytes, self.packets))
            begin = self._record_time(self.size_bytes)
            self._is_in_order &= begin >= self._latest_begin
            self._latest_begin = begin
        self.packets += self.pending
        self.pending = 0
        self.size_bytes = end
        self._good_digest = self._digest.copy()

    def forget(self) -> None:
        """What is pending is lost. Where the file can't be cut off, it is written over."""
        self.pending = 0
        self.dumper.rewind(self.size_bytes)
        self._written = self.size_bytes
        self._digest = self._good_digest.copy()
        with contextlib.suppress(OSError):
            os.ftruncate(self.part.fd, self.size_bytes)

    def probe(self) -> None:
        """Whether more could be written. OSError: no."""
        os.pwrite(self.part.fd, bytes(_PROBE_BYTES), self.size_bytes)
        os.ftruncate(self.part.fd, self.size_bytes)

    @property
    def sha256(self) -> str:
        """Of what is flushed."""
        return self._good_digest.hexdigest()

    def close(self) -> None:
        """No more packets; the part's descriptor stays open."""
        self.dumper.close()

    def _write(self, data: memoryview) -> None:
        while data:
            count = os.pwrite(self.part.fd, data, self._written)
            self._digest.update(data[:count])
            self._written += count
            data = data[count:]

    def packet_times(self) -> tuple[int | None, int | None]:
        """The earliest and the latest time of a packet, in nanoseconds since 1970.

        Packets are in the order of their times but for some that several processors received at once: they are near to
        where they belong. So both ends are looked through, and all of it only where the clock went back in between.
        """
        if not self._stretches:
            return None, None
        begin, _ = self._stretches[0]
        late = next((at for at, before in reversed(self._stretches) if self.packets - before >= _END_PACKETS), begin)
        if self._is_in_order:
            ends = [*self._times(begin, late, _END_PACKETS), *self._times(late, self.size_bytes)]
        else:
            ends = self._times(begin, self.size_bytes)
        return min(ends), max(ends)

    def _record_time(self, offset: int) -> tuple[int, int]:
        seconds, nanoseconds, _, _ = _RECORD.unpack(os.pread(self.part.fd, RECORD_HEADER_BYTES, offset))
        return seconds, nanoseconds

    def _times(self, begin: int, end: int, least: int = sys.maxsize) -> list[int]:
        """Among them the earliest and the latest time of the packets between two offsets, or of so many at least."""
        ends: list[int] = []
        unpack, seen = _RECORD.unpack_from, 0
        while begin < end and seen < least:
            data = os.pread(self.part.fd, min(_READ_BYTES, end - begin), begin)
            at, last, times = 0, len(data) - RECORD_HEADER_BYTES, []
            while at <= last:
                seconds, nanoseconds, captured, _ = unpack(data, at)
                times.append(seconds * NANOSECONDS + nanoseconds)
                at += RECORD_HEADER_BYTES + captured
            if not at:
                raise OSError(f"{self.part.path} is shorter than what was written to it")
            begin += at
            seen += len(times)
            ends += min(times), max(times)
        return ends


assert FILE_HEADER_BYTES == 24
