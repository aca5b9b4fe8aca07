"""pcapng: sections, interfaces and statistics read here, packet blocks by the kernel (draft-ietf-opsawg-pcapng)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from analysis.framing_kernels import (
    BAD_PACKET,
    CLOCK,
    CORRUPT,
    MAX_BLOCK_BYTES,
    MAX_OFFSET_S,
    MAX_TICKS_PER_SECOND,
    MIN_BLOCK_BYTES,
    NEEDS_MORE,
    SECTION_HEADER,
    TS_LIMIT,
    UNKNOWN_INTERFACE,
    find_block,
    scan_blocks,
)
from analysis.layout import FRAME, NANOSECONDS
from analysis.pcap import Damages, Interface, with_room

_INTERFACE_DESCRIPTION: Final = 1
_INTERFACE_STATISTICS: Final = 5
_IF_NAME: Final = 2
_IF_TSRESOL: Final = 9
_IF_TSOFFSET: Final = 14
_ISB_IFDROP: Final = 5
_ISB_OSDROP: Final = 7
_MOST_DROPS: Final = 1 << 40  # more means "unknown" (all bits set), or damage
_BYTE_ORDER_MAGIC: Final = 0x1A2B3C4D
_SMALLEST_PACKET_BLOCK: Final = 16  # a simple packet block without data


class PcapngFramer:
    """Makes frames of the content of one pcapng file, given piece by piece.

    `interfaces` grows as they are described, over all sections; `dropped` is the sum
    of the drop counts that packets carried, None if none did.
    """

    format: Final = "pcapng"

    def __init__(self) -> None:
        self.interfaces: list[Interface] = []
        self.damages = Damages()
        self.dropped: int | None = None
        self._big = False
        self._first_interface = 0  # of this section
        self._clocks = np.zeros(8, CLOCK)  # of this section, with room for more
        self._previous_ts = 0
        self._lost_at: int | None = None
        self._stranger_met = False  # in this section
        self._unsupported = False
        self._room = np.empty(0, FRAME)

    @staticmethod
    def recognises(head: bytes) -> bool:
        """Whether a file that starts with `head` (4 bytes) is a pcapng."""
        return head == struct.pack(">I", SECTION_HEADER)

    def frames(self, data: npt.NDArray[np.uint8], offset: int, final: bool) -> tuple[np.ndarray, int]:
        """Frames of the whole blocks in `data`, which is the content from `offset` on, and the bytes consumed.

        The next call's data must begin with what was not consumed, and its frames take the place of these. `final`:
        nothing follows this data.
        """
        frames = self._room = with_room(self._room, len(data) // _SMALLEST_PACKET_BLOCK + 1)
        count = position = 0
        while not self._unsupported:
            if self._lost_at is not None:
                found, position = find_block(data, position, self._big, final)
                if not found:
                    break
                self._report_damage(f"skipped {offset + position - self._lost_at:,} bytes to the next block")
            clocks = self._clocks[: len(self.interfaces) - self._first_interface]
            count, position, stop, self._previous_ts, dropped = scan_blocks(
                data, position, offset, self._big, self._first_interface, clocks, self._previous_ts, frames, count
            )
            if dropped:
                self.dropped = (self.dropped or 0) + dropped
            if stop == NEEDS_MORE:
                break
            size = 0 if stop == CORRUPT else self._read_block(data, position, offset, stop)
            if size is None:
                break
            if size == 0:
                self._lost_at = offset + position
                position += 1
            position += size
        if self._unsupported:
            return frames[:count], len(data)
        if final and self._lost_at is not None:
            self._report_damage("nothing readable follows")
            position = len(data)
        return frames[:count], position

    def _report_damage(self, outcome: str) -> None:
        assert self._lost_at is not None
        self.damages.add(self._lost_at, f"the lengths of a pcapng block make no sense; {outcome}")
        self._lost_at = None

    def _read_block(self, data: npt.NDArray[np.uint8], position: int, offset: int, stop: int) -> int | None:
        """Take in a block the kernel leaves to us; returns its size: None = not whole yet, 0 = corrupt."""
        kind, size, magic = struct.unpack(self._order + "III", data[position : position + 12].tobytes())
        if kind == SECTION_HEADER:
            return self._read_section_header(data, position, offset)
        block = data[position : position + size].tobytes()
        if stop == UNKNOWN_INTERFACE:
            number = magic if kind != 2 else struct.unpack(self._order + "H", block[8:10])[0]
            self._report_stranger(number if kind != 3 else 0, offset + position)
        elif stop == BAD_PACKET:
            self.damages.add(offset + position, "a packet is longer than the pcapng block around it; skipped")
        elif kind == _INTERFACE_DESCRIPTION:
            self._read_interface(block, offset + position)
        elif kind == _INTERFACE_STATISTICS:
            self._read_statistics(block)
        return int(size)

    @property
    def _order(self) -> str:
        return ">" if self._big else "<"

    def _read_section_header(self, data: npt.NDArray[np.uint8], position: int, offset: int) -> int | None:
        head = data[position : position + 16].tobytes()
        if len(head) < 16:
            return None
        order = next((o for o in "<>" if struct.unpack(o + "I", head[8:12])[0] == _BYTE_ORDER_MAGIC), None)
        if order is None:
            return 0
        size, _, major, minor = struct.unpack(order + "IIHH", head[4:])
        if size < 28 or size > MAX_BLOCK_BYTES:
            return 0
        if size > len(data) - position:
            return None
        if struct.unpack(order + "I", data[position + size - 4 : position + size].tobytes())[0] != size:
            return 0
        self._big = order == ">"
        self._first_interface = len(self.interfaces)
        self._stranger_met = False
        if major != 1:
            self._unsupported = True
            self.damages.add(offset + position, f"pcapng version {major}.{minor} is not supported (only 1.x is)")
        return int(size)

    def _report_stranger(self, number: int, at: int) -> None:
        if not self._stranger_met:
            self.damages.add(at, f"packets of interface {number}, which the file does not describe, are skipped")
            self._stranger_met = True

    def _read_interface(self, block: bytes, at: int) -> None:
        if len(block) < MIN_BLOCK_BYTES + 8:
            self.damages.add(at, "an interface description is too short; taken as Ethernet")
            block = block[:8] + struct.pack(self._order + "HHI", 1, 0, 0) + block[8:]
        link_type, _, snaplen = struct.unpack(self._order + "HHI", block[8:16])
        name, resolution, offset_s = None, 6, 0
        for code, value in _options(block[16:-4], self._order):
            if code == _IF_NAME:
                name = value.rstrip(b"\0").decode("utf-8", "replace") or None
            elif code == _IF_TSRESOL and len(value) == 1:
                resolution = value[0]
            elif code == _IF_TSOFFSET and len(value) == 8:
                offset_s = struct.unpack(self._order + "q", value)[0]
        index = len(self.interfaces) - self._first_interface
        if index == len(self._clocks):
            self._clocks = np.concatenate([self._clocks, np.zeros_like(self._clocks)])
        self._clocks[index] = _clock(resolution, offset_s, snaplen)
        self.interfaces.append(Interface(name, link_type, snaplen))

    def _read_statistics(self, block: bytes) -> None:
        """Counters run from the start of the capture, so the last block of an interface says it all."""
        if len(block) < MIN_BLOCK_BYTES + 12:
            return
        number = self._first_interface + struct.unpack(self._order + "I", block[8:12])[0]
        if number >= len(self.interfaces):
            return
        for code, value in _options(block[20:-4], self._order):
            if code in (_ISB_IFDROP, _ISB_OSDROP) and len(value) == 8:
                drops = struct.unpack(self._order + "Q", value)[0]
                if drops > _MOST_DROPS:
                    continue
                if code == _ISB_IFDROP:
                    self.interfaces[number].drops_interface = drops
                else:
                    self.interfaces[number].drops_kernel = drops


def _clock(resolution: int, offset_s: int, snaplen: int) -> tuple[int, int, int, int, int]:
    """A CLOCK; `resolution` is if_tsresol: a negative power of 10, or of 2 if its highest bit is set."""
    exponent = resolution & 0x7F
    ticks_per_second = min(1 << exponent if resolution & 0x80 else 10**exponent, MAX_TICKS_PER_SECOND)
    tick_ns, rest = divmod(NANOSECONDS, ticks_per_second)
    plain_below = 0 if rest or offset_s else (TS_LIMIT >> 32) // tick_ns
    return ticks_per_second, max(-MAX_OFFSET_S, min(offset_s, MAX_OFFSET_S)), tick_ns, plain_below, snaplen


def _options(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """(code, value) of each whole option."""
    at = 0
    while len(data) - at >= 4:
        code, size = struct.unpack(order + "HH", data[at : at + 4])
        if code == 0 or size > len(data) - at - 4:
            return
        yield code, data[at + 4 : at + 4 + size]
        at += 4 + (size + 3 & ~3)
