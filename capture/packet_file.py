"""A segment's file while packets are written to it: what of it is good, its SHA-256, and the times of its packets.

Rule: `size_bytes` moves only after a flush that succeeded. After one that did not, everything behind it is cut off and
counts as lost, be some of it whole or not; so nothing torn is ever kept.

What is written is hashed at once, while it is in the processor's cache: to read it again later costs a fifth more.

The buffer always begins where a block of the file does, so that large pieces can be written past the page cache: after
a flush, the beginning of a block that is not full yet is put into the buffer again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import sys
from typing import Final

from capture.contract import NANOSECONDS
from capture.direct_writing import BLOCK_BYTES, DirectWriting
from capture.libpcap import FILE_HEADER_BYTES, RECORD_HEADER_BYTES, Dumper, Handle
from capture.segment_writer import Part

BUFFER_BYTES: Final = 4 * 1024 * 1024
_PIECE_BYTES: Final = 512 * 1024
"""Through the page cache, larger pieces take longer."""
_RECORD: Final = struct.Struct("=IIII")
"""Seconds, nanoseconds, captured bytes, wire bytes; in this machine's byte order, as libpcap writes."""
_READ_BYTES: Final = 64 * 1024
_PROBE_BYTES: Final = 16 * 1024
_END_PACKETS: Final = 2048
"""So many at either end of a file are looked through for their times, at least."""


class PacketFile:
    """The packets of one part. OSError where the file can't even be begun: the part is to be discarded then."""

    def __init__(self, part: Part, handle: Handle, direct: DirectWriting) -> None:
        self.part = part
        self._direct = direct
        self.packets = 0
        """In the file, flushed."""
        self.size_bytes = 0
        """Where the last of them ends."""
        self._end = FILE_HEADER_BYTES
        """Where the last of all ends."""
        self.pending = 0
        """Given to the dumper since the last flush."""
        self._marks: list[tuple[int, int]] = []
        """Where packets begin, one in many, and how many there are before them."""
        self._is_in_order = True
        self._begin = self._latest_begin = (0, 0)
        """Time of the first packet behind what is flushed, and of the one before it that was one."""
        self._at = 0
        """Where the buffer begins."""
        self._head = b""
        """What the file holds from the last block's begin to `size_bytes`."""
        self._written = 0
        """So far the file is filled, and hashed: behind `_at`, where the buffer began with a head."""
        self._tail = b""
        """The same of what is written."""
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

    def add(self, packets: int) -> None:
        """So many more were given to the dumper."""
        self._marks.append((self._end, self.packets + self.pending))
        self.pending += packets
        self._end = self.dumper.tell()

    @property
    def end_bytes(self) -> int:
        """Where the last packet that was given ends."""
        return self._end

    @property
    def has_failed(self) -> bool:
        """Whether the next flush will."""
        return self.dumper.has_failed

    def flush(self) -> None:
        """Hand all to the system. OSError: what was pending is lost, what was flushed before stays, go on at will."""
        if not self.pending and self.size_bytes:
            return
        try:
            self.dumper.flush()
        except OSError:
            self.forget()
            raise
        if self.pending:
            self._is_in_order &= self._begin >= self._latest_begin
            self._latest_begin = self._begin
        self.packets += self.pending
        self.pending = 0
        self.size_bytes = self._end
        self._good_digest = self._digest.copy()
        self._begin_buffer(self._tail)

    def forget(self) -> None:
        """What is pending is lost. Where the file can't be cut off, it is written over."""
        self.pending = 0
        self._end = self.size_bytes
        self._marks = [mark for mark in self._marks if mark[0] < self._end]
        self._written = self.size_bytes
        self._digest = self._good_digest.copy()
        self._begin_buffer(self._head)
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

    def _begin_buffer(self, head: bytes) -> None:
        self._head = self._tail = head
        self._at = self.size_bytes - len(head)
        self.dumper.rewind(self._at, head)

    def _write(self, data: memoryview) -> None:
        """The buffer, of which some may be in the file already."""
        known = self._written - self._at
        if self._written == self.size_bytes and self.size_bytes:
            self._begin = _RECORD.unpack_from(data, known)[:2]
        done = max(known, self._direct.write(self.part.fd, data, self._at))
        self._digest.update(data[known:done])
        while done < len(data):
            count = os.pwrite(self.part.fd, data[done : done + _PIECE_BYTES], self._at + done)
            self._digest.update(data[done : done + count])
            done += count
        self._at += len(data)
        self._written = self._at
        self._tail = bytes(data[len(data) - self._at % BLOCK_BYTES :])

    def packet_times(self) -> tuple[int | None, int | None]:
        """The earliest and the latest time of a packet, in nanoseconds since 1970.

        Packets are in the order of their times but for some that several processors received at once: they are near to
        where they belong. So both ends are looked through, and all of it only where the clock went back in between.
        """
        if not self._marks:
            return None, None
        begin, _ = self._marks[0]
        late = next((at for at, before in reversed(self._marks) if self.packets - before >= _END_PACKETS), begin)
        if self._is_in_order:
            ends = [*self._times(begin, late, _END_PACKETS), *self._times(late, self.size_bytes)]
        else:
            ends = self._times(begin, self.size_bytes)
        return min(ends), max(ends)

    def _times(self, begin: int, end: int, least: int = sys.maxsize) -> list[int]:
        """Among them the earliest and the latest time of the packets between two offsets, or of so many at least."""
        ends: list[tuple[int, ...]] = []
        unpack, seen = _RECORD.unpack_from, 0
        while begin < end and seen < least:
            data = os.pread(self.part.fd, min(_READ_BYTES, end - begin), begin)
            at, last, records = 0, len(data) - RECORD_HEADER_BYTES, []
            while at <= last:
                record = unpack(data, at)
                records.append(record)
                at += RECORD_HEADER_BYTES + record[2]
            if not at:
                raise OSError(f"{self.part.path} is shorter than what was written to it")
            begin += at
            seen += len(records)
            ends += min(records), max(records)
        return [seconds * NANOSECONDS + nanoseconds for seconds, nanoseconds, _, _ in ends]
