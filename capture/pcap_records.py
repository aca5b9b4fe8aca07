"""Records of a classic pcap as they come in pieces, as far as they can be believed. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from capture.contract import NANOSECONDS

HEADER_BYTES: Final = 24
RECORD_HEADER_BYTES: Final = 16
MAXIMUM_SNAPLEN: Final = 262_144
"""libpcap's."""
_MAGICS: Final = {
    bytes.fromhex("4d3cb2a1"): ("<", 1),
    bytes.fromhex("a1b23c4d"): (">", 1),
    bytes.fromhex("d4c3b2a1"): ("<", 1000),
    bytes.fromhex("a1b2c3d4"): (">", 1000),
}

Record = tuple[int, int, int]
"""Offset of its header in the piece, time in nanoseconds, captured length."""


@dataclass(frozen=True)
class PcapHeader:
    """The first 24 bytes."""

    data: bytes
    byte_order: str
    unit_ns: int
    """Nanoseconds of one unit of a record's fraction of a second."""
    snaplen: int
    link_type: int


def read_header(data: bytes) -> PcapHeader | None:
    """The header at the beginning of `data`; None if there is none."""
    if len(data) < HEADER_BYTES or data[:4] not in _MAGICS:
        return None
    byte_order, unit_ns = _MAGICS[data[:4]]
    major, _, _, _, snaplen, link_type = struct.unpack(f"{byte_order}HHiIII", data[4:HEADER_BYTES])
    if major != 2:
        return None
    return PcapHeader(data[:HEADER_BYTES], byte_order, unit_ns, snaplen, link_type & 0xFFFF)


class RecordWalk:
    """Walks from header to header, and stops at the first that no writer can have written.

    `offset` is where the last whole record ended, in the file; `damage` tells why nothing more could be read there,
    and is "" while all was whole. After a crash a file's tail may be anything: a part of a record, zeros, or older
    contents of the disk.
    """

    def __init__(self, header: PcapHeader) -> None:
        self.header = header
        self.offset = HEADER_BYTES
        self.damage = ""
        self._longest = min(header.snaplen or MAXIMUM_SNAPLEN, MAXIMUM_SNAPLEN)
        self._fractions = NANOSECONDS // header.unit_ns

    def blocks(self, pieces: Iterable[bytes]) -> Iterator[tuple[bytes, list[Record]]]:
        """`pieces` of what follows the file's header -> bytes with the whole records in them."""
        rest = b""
        for piece in pieces:
            block = rest + piece
            records, end = self._records(block)
            self.offset += end
            rest = block[end:]
            yield block, records
            if self.damage:
                return
        if rest:
            self.damage = "a record is cut off"

    def _records(self, block: bytes) -> tuple[list[Record], int]:
        unpack = struct.Struct(f"{self.header.byte_order}IIII").unpack_from
        unit_ns, fractions, longest = self.header.unit_ns, self._fractions, self._longest
        records: list[Record] = []
        offset, last = 0, len(block) - RECORD_HEADER_BYTES
        while offset <= last:
            seconds, fraction, captured, length = unpack(block, offset)
            if fraction >= fractions or not 0 < captured <= longest or captured > length:
                self.damage = "what follows is no record"
                break
            end = offset + RECORD_HEADER_BYTES + captured
            if end > len(block):
                break
            records.append((offset, seconds * NANOSECONDS + fraction * unit_ns, captured))
            offset = end
        return records, offset
