"""Loops that walk over the records of a capture file and fill FRAME records; `pcap.py` and `pcapng.py` wrap them.

Everything is int64 but pcapng's tick counter, which uses all 64 bits. Nothing here raises, whatever the bytes.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from analysis.kernel_compiler import inner, kernel
from analysis.layout import CACHE_LINE, DIRECTION_IN, DIRECTION_OUT, DIRECTION_UNKNOWN, NANOSECONDS
from analysis.loads import be16, be32, le16, le32, prefetch

Bytes = npt.NDArray[np.uint8]

# Why a kernel stopped before the end of the data.
NEEDS_MORE: Final = 0  # the next record is not whole
CORRUPT: Final = 1  # the next bytes are no record
OTHER_BLOCK: Final = 2  # a pcapng block that holds no packet
BAD_PACKET: Final = 3  # a sound pcapng block around a packet that makes no sense
UNKNOWN_INTERFACE: Final = 4  # a packet of an interface that was never described

CLOCK: Final = np.dtype(
    [
        ("ticks_per_second", "u8"),  # up to MAX_TICKS_PER_SECOND
        ("offset_s", "i8"),  # if_tsoffset, within +-MAX_OFFSET_S
        ("tick_ns", "i8"),  # where a tick is a whole number of nanoseconds,
        ("plain_below", "i8"),  # a time stamp whose high half is below this is just ticks * tick_ns
        ("snaplen", "i8"),  # 0 = unlimited
    ]
)
"""What a kernel must know of a pcapng interface."""

SECTION_HEADER: Final = 0x0A0D0D0A
OLD_PACKET: Final = 2
SIMPLE_PACKET: Final = 3
ENHANCED_PACKET: Final = 6
MAX_BLOCK_BYTES: Final = 16 << 20
MIN_BLOCK_BYTES: Final = 12

TS_LIMIT: Final = (1 << 62) - 1  # years 1823 to 2116: the difference of any two times fits in int64
MAX_LENGTH: Final = 0x7FFFFFFF
MAX_OFFSET_S: Final = 1 << 60
MAX_TICKS_PER_SECOND: Final = 1 << 60  # ten times that still fits in uint64
_TICKS_LIMIT: Final = np.uint64(1 << 34)  # ticks per second up to which a rest times 10^9 fits in uint64
_SECONDS_LIMIT: Final = TS_LIMIT // NANOSECONDS
_PACKET_OUTGOING: Final = 4  # linux/if_packet.h

_AHEAD_BYTES: Final = 2048
_RESYNC_RECORDS: Final = 3
_RESYNC_SECONDS: Final = 86_400


@inner
def _u16(data: Bytes, at: int, big: bool) -> Any:
    return be16(data, at) if big else le16(data, at)


@inner
def _u32(data: Bytes, at: int, big: bool) -> Any:
    return be32(data, at) if big else le32(data, at)


@inner
def _look_ahead(data: Bytes, position: int) -> None:
    """Ask for the bytes behind: where the next record begins is known only once this one's length was there."""
    for line in range(_AHEAD_BYTES, _AHEAD_BYTES + 5 * CACHE_LINE, CACHE_LINE):
        prefetch(data, position + line)


@kernel
def scan_records(
    data: Bytes,
    position: int,
    file_offset: int,
    big: bool,
    tick_ns: int,
    header_bytes: int,
    max_captured: int,
    old_lengths: bool,
    frames: np.ndarray,
    count: int,
) -> tuple[int, int, int]:
    """Fill `frames` from `count` on with the pcap records from `data[position:]`.

    `old_lengths`: libpcap before 2.4 may have written both lengths in the other order (Wireshark: MAYBE_SWAPPED).
    Returns (count, position, stop): stop is NEEDS_MORE or CORRUPT, position that of the record it is about.
    """
    end = data.size
    while end - position >= header_bytes:
        _look_ahead(data, position)
        captured = _u32(data, position + 8, big)
        length = _u32(data, position + 12, big)
        if old_lengths and captured > length:
            captured, length = length, captured
        if captured > max_captured:
            return count, position, CORRUPT
        if end - position - header_bytes < captured:
            break
        direction = DIRECTION_UNKNOWN
        if header_bytes == 24:  # Kuznetzov's: the last bytes are ifindex, protocol, packet type
            direction = DIRECTION_OUT if data[position + 22] == _PACKET_OUTGOING else DIRECTION_IN
        frame = frames[count]
        frame["ts"] = _u32(data, position, big) * NANOSECONDS + _u32(data, position + 4, big) * tick_ns
        frame["file_offset"] = file_offset + position
        frame["offset"] = position + header_bytes
        frame["captured"] = captured
        frame["length"] = min(length, MAX_LENGTH)
        frame["interface"] = 0
        frame["direction"] = direction
        count += 1
        position += header_bytes + captured
    return count, position, NEEDS_MORE


@kernel
def find_records(
    data: Bytes, position: int, big: bool, tick_ns: int, header_bytes: int, max_captured: int, near_s: int, final: bool
) -> tuple[bool, int]:
    """Search for the next pcap records after damage: three plausible ones in a row, or all up to the file's end.

    Plausible: some bytes captured and no more than there were, a fraction below one second, and a time within a
    day of `near_s` (-1 = no time is known yet). Returns (found, position); if not found, position is that of the
    first byte that more data may still show to begin a record.
    """
    end = data.size
    while end - position >= header_bytes:
        at = position
        good = 0
        while good < _RESYNC_RECORDS and end - at >= header_bytes:
            captured = _u32(data, at + 8, big)
            if captured == 0 or captured > max_captured or captured > _u32(data, at + 12, big):
                break
            if _u32(data, at + 4, big) * tick_ns >= NANOSECONDS:
                break
            if near_s >= 0 and abs(_u32(data, at, big) - near_s) > _RESYNC_SECONDS:
                break
            good += 1
            at += header_bytes + captured
        else:
            if good == _RESYNC_RECORDS or (at == end and final):
                return True, position
            if not final:
                return False, position
        position += 1
    return False, position


@inner
def ticks_to_ns(high: int, low: int, ticks_per_second: np.uint64, offset_s: int) -> Any:
    """A pcapng time stamp (its int64 halves; else as in CLOCK) as nanoseconds, rounded down, within +-TS_LIMIT.

    One that is absurd as the unsigned number it should be is taken as signed: clocks that start at 0 and step back
    write those.
    """
    if high >= 1 << 31 and ticks_per_second <= np.uint64(NANOSECONDS):
        per_second = np.int64(ticks_per_second)
        ticks = ((high - (1 << 32)) << 32) + low
        whole = ticks // per_second
        fraction = (ticks - whole * per_second) * NANOSECONDS // per_second
    else:
        unsigned = np.uint64(high) << np.uint64(32) | np.uint64(low)
        rest = unsigned % ticks_per_second
        whole = np.int64(min(unsigned // ticks_per_second, np.uint64(2 * MAX_OFFSET_S)))
        if ticks_per_second <= _TICKS_LIMIT:
            fraction = np.int64(rest * np.uint64(NANOSECONDS) // ticks_per_second)
        else:
            fraction = np.int64(0)
            for _ in range(9):  # long division, a decimal digit at a time
                rest *= np.uint64(10)
                fraction = fraction * 10 + np.int64(rest // ticks_per_second)
                rest %= ticks_per_second
    whole += offset_s
    if whole >= _SECONDS_LIMIT or whole <= -_SECONDS_LIMIT:
        return TS_LIMIT if whole > 0 else -TS_LIMIT
    return whole * NANOSECONDS + fraction


@inner
def _packet_options(data: Bytes, at: int, end: int, big: bool) -> tuple[int, int]:
    """(direction, dropped packets) of the options of a packet block in data[at:end]."""
    direction = DIRECTION_UNKNOWN
    dropped = 0
    while end - at >= 4:
        code, size = _u16(data, at, big), _u16(data, at + 2, big)
        if code == 0 or size > end - at - 4:
            break
        if code == 2 and size == 4:  # epb_flags
            direction = _u32(data, at + 4, big) & 3
            if direction == 3:
                direction = DIRECTION_UNKNOWN
        elif code == 4 and size == 8:  # epb_dropcount: more than 2^32 are not believed
            dropped = _u32(data, at + (8 if big else 4), big)
        at += 4 + (size + 3 & ~3)
    return direction, dropped


@kernel
def scan_blocks(
    data: Bytes,
    position: int,
    file_offset: int,
    big: bool,
    first_interface: int,
    clocks: np.ndarray,
    previous_ts: int,
    frames: np.ndarray,
    count: int,
) -> tuple[int, int, int, int, int]:
    """Fill `frames` from `count` on with the packets of the pcapng blocks from `data[position:]`.

    `clocks`: CLOCK[interfaces of this section]; `first_interface`: number of the first of them in the file.
    `previous_ts`: the time a simple packet block, which has none, takes.
    Returns (count, position, stop, previous_ts, dropped): stop says why it stopped at the block at position;
    dropped is the sum of the drop counts that packets carried.
    """
    end = data.size
    all_dropped = 0
    while end - position >= MIN_BLOCK_BYTES:
        _look_ahead(data, position)
        kind = _u32(data, position, big)
        if kind == SECTION_HEADER:  # may change the byte order, also of its own length
            return count, position, OTHER_BLOCK, previous_ts, all_dropped
        total = _u32(data, position + 4, big)
        if total < MIN_BLOCK_BYTES or total > MAX_BLOCK_BYTES:
            return count, position, CORRUPT, previous_ts, all_dropped
        if total > end - position:
            break
        block_end = position + total - 4
        if _u32(data, block_end, big) != total:
            return count, position, CORRUPT, previous_ts, all_dropped
        if kind != ENHANCED_PACKET and kind != SIMPLE_PACKET and kind != OLD_PACKET:
            return count, position, OTHER_BLOCK, previous_ts, all_dropped

        body = position + 8
        packet = body + (4 if kind == SIMPLE_PACKET else 20)
        if packet > block_end:
            return count, position, BAD_PACKET, previous_ts, all_dropped
        interface = 0
        dropped_before = 0
        if kind == ENHANCED_PACKET:
            interface = _u32(data, body, big)
        elif kind == OLD_PACKET:
            interface = _u16(data, body, big)
            dropped_before = _u16(data, body + 2, big)
            if dropped_before == 0xFFFF:  # "unknown"
                dropped_before = 0
        if interface >= clocks.size:
            return count, position, UNKNOWN_INTERFACE, previous_ts, all_dropped
        clock = clocks[interface]
        if kind == SIMPLE_PACKET:
            length = _u32(data, body, big)
            captured = min(length, block_end - packet)
            if clock["snaplen"] > 0:
                captured = min(captured, clock["snaplen"])
        else:
            captured = _u32(data, body + 12, big)
            length = _u32(data, body + 16, big)
            if captured > block_end - packet:
                return count, position, BAD_PACKET, previous_ts, all_dropped
            high, low = _u32(data, body + 4, big), _u32(data, body + 8, big)
            if high < clock["plain_below"]:  # spares two divisions
                previous_ts = (high << 32 | low) * clock["tick_ns"]
            else:
                previous_ts = ticks_to_ns(high, low, clock["ticks_per_second"], clock["offset_s"])
        direction = DIRECTION_UNKNOWN
        if kind != SIMPLE_PACKET:
            direction, dropped = _packet_options(data, packet + (captured + 3 & ~3), block_end, big)
            all_dropped += dropped + dropped_before

        frame = frames[count]
        frame["ts"] = previous_ts
        frame["file_offset"] = file_offset + position
        frame["offset"] = packet
        frame["captured"] = captured
        frame["length"] = min(length, MAX_LENGTH)
        frame["interface"] = first_interface + interface
        frame["direction"] = direction
        count += 1
        position += total
    return count, position, NEEDS_MORE, previous_ts, all_dropped


@kernel
def find_block(data: Bytes, position: int, big: bool, final: bool) -> tuple[bool, int]:
    """Search for the next pcapng block of a standard type after damage, its length repeated at its end.

    Returns (found, position); if not found, position is that of the first byte that more data may still show
    to begin a block.
    """
    end = data.size
    while end - position >= MIN_BLOCK_BYTES:
        kind = _u32(data, position, big)
        total = _u32(data, position + 4, big)
        known = kind == SECTION_HEADER or 0 < kind <= ENHANCED_PACKET
        if known and MIN_BLOCK_BYTES <= total <= MAX_BLOCK_BYTES:
            if total > end - position:
                if not final:
                    return False, position
            elif _u32(data, position + total - 4, big) == total:
                return True, position
        position += 1
    return False, position
