"""A segment's file while packets are written to it: what of it is good, and the times of its packets.

Rule: `size_bytes` moves only after a flush that succeeded. After one that did not, everything behind it is cut off and
counts as lost, be some of it whole or not; so nothing torn is ever kept.
"""

from __future__ import annotations

import os
import struct
from typing import Final

from capture.contract import NANOSECONDS
from capture.libpcap import FILE_HEADER_BYTES, RECORD_HEADER_BYTES, Dumper, Handle
from capture.segment_writer import Part

BUFFER_BYTES: Final = 1024 * 1024
_RECORD: Final = struct.Struct("=IIII")
"""Seconds, nanoseconds, captured bytes, wire bytes; in this machine's byte order, as libpcap writes."""
_READ_BYTES: Final = 1024 * 1024
_PROBE_BYTES: Final = 16 * 1024
_ENDS: Final = 2
"""So many stretches at either end of a file are looked through packet by packet for their times."""


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
        self._stretches: list[int] = []
        """Where the packets of each flush begin."""
        self._is_in_order = True
        self._latest_begin = (0, 0)
        self.dumper = Dumper(handle, os.dup(part.fd), BUFFER_BYTES)
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
            self._stretches.append(self.size_bytes)
            begin = self._record_time(self.size_bytes)
            self._is_in_order &= begin >= self._latest_begin
            self._latest_begin = begin
        self.packets += self.pending
        self.pending = 0
        self.size_bytes = end

    def forget(self) -> None:
        """What is pending is lost."""
        self.pending = 0
        self.dumper.rewind(self.size_bytes)

    def probe(self) -> None:
        """Whether more could be written. OSError: no."""
        os.pwrite(self.part.fd, bytes(_PROBE_BYTES), self.size_bytes)
        os.ftruncate(self.part.fd, self.size_bytes)

    def close(self) -> None:
        """No more packets; the part's own descriptor stays open."""
        self.dumper.close()

    def packet_times(self) -> tuple[int | None, int | None]:
        """The earliest and the latest time of a packet, in nanoseconds since 1970.

        Packets are in the order of their times but for some that several processors received at once: they are near to
        where they belong. So both ends are looked through, and all of it only where the clock went back in between.
        """
        if not self._stretches:
            return None, None
        if not self._is_in_order or len(self._stretches) <= 2 * _ENDS:
            times = self._times(self._stretches[0], self.size_bytes)
        else:
            times = self._times(self._stretches[0], self._stretches[_ENDS])
            late = self._times(self._stretches[-_ENDS], self.size_bytes)
            times = min(times[0], late[0]), max(times[1], late[1])
        return tuple(seconds * NANOSECONDS + nanoseconds for seconds, nanoseconds in times)  # type: ignore[return-value]

    def _record_time(self, offset: int) -> tuple[int, int]:
        seconds, nanoseconds, _, _ = _RECORD.unpack(os.pread(self.part.fd, RECORD_HEADER_BYTES, offset))
        return seconds, nanoseconds

    def _times(self, begin: int, end: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """(seconds, nanoseconds) of the earliest and the latest packet whose record is between two offsets."""
        earliest, latest = (1 << 32, 0), (0, 0)
        unpack = _RECORD.unpack_from
        while begin < end:
            data = os.pread(self.part.fd, min(_READ_BYTES, end - begin), begin)
            at = 0
            while at + RECORD_HEADER_BYTES <= len(data):
                seconds, nanoseconds, captured, _ = unpack(data, at)
                time = seconds, nanoseconds
                if time < earliest:
                    earliest = time
                if time > latest:
                    latest = time
                at += RECORD_HEADER_BYTES + captured
            if not at:
                raise OSError(f"{self.part.path} is shorter than what was written to it")
            begin += at
        return earliest, latest


assert FILE_HEADER_BYTES == 24
