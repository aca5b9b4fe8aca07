"""Slow, obvious twins of the framing kernels: the whole content at hand, `struct`, fractions, and no state."""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from analysis.segments import Segment

TS_LIMIT = (1 << 62) - 1


class Frame(NamedTuple):
    ts: int
    file_offset: int
    packet: bytes
    length: int
    interface: int = 0
    direction: int = 0


class Read(NamedTuple):
    """What a whole file gives: its frames, where the damaged places begin, and where its cut last record begins."""

    frames: list[Frame]
    damages: list[int]
    cut_at: int | None


def read(segment: Segment, chunk_bytes: int) -> Read:
    """The same from our own reader."""
    frames = []
    for data, chunk in segment.chunks(chunk_bytes):
        assert data.dtype == np.uint8 and data.flags.c_contiguous and data.flags.writeable and len(chunk)
        for f in chunk:
            packet = data[f["offset"] : f["offset"] + f["captured"]].tobytes()
            assert len(packet) == f["captured"]
            frames.append(
                Frame(
                    int(f["ts"]),
                    int(f["file_offset"]),
                    packet,
                    int(f["length"]),
                    int(f["interface"]),
                    int(f["direction"]),
                )
            )
    offsets = [p.offset for p in segment.problems if p.offset is not None]
    cut_at = offsets.pop() if segment.truncated else None
    return Read(frames, offsets, cut_at)


def read_pcap(content: bytes) -> Read:
    """Classic pcap of version 2.4."""
    if len(content) < 24:
        return Read([], [], 0)
    order, magic = next(
        (order, magic)
        for order in "<>"
        for magic in (0xA1B2C3D4, 0xA1B23C4D, 0xA1B2CD34)
        if content[:4] == struct.pack(order + "I", magic)
    )
    tick_ns = 1 if magic == 0xA1B23C4D else 1000
    header = 24 if magic == 0xA1B2CD34 else 16
    snaplen = struct.unpack(order + "I", content[16:20])[0]
    longest = max(262_144, min(snaplen, 16 << 20))

    def fields(at: int) -> tuple[int, int, int, int]:
        return struct.unpack(order + "IIII", content[at : at + 16])

    def plausible(at: int) -> bool:
        seconds, fraction, captured, length = fields(at)
        near = not frames or abs(seconds - frames[-1].ts // 10**9) <= 86_400
        return 0 < captured <= min(length, longest) and fraction * tick_ns < 10**9 and near

    def begins_records(at: int) -> bool:
        for _ in range(3):
            if at + header > len(content):
                return at == len(content)
            if not plausible(at):
                return False
            at += header + fields(at)[2]
        return True

    frames: list[Frame] = []
    damages = []
    at = 24
    while at + header <= len(content):
        seconds, fraction, captured, length = fields(at)
        if captured > longest:
            damages.append(at)
            last = len(content) - header
            at = next((a for a in range(at + 1, last + 1) if begins_records(a)), len(content))
            continue
        if at + header + captured > len(content):
            break
        direction = 0 if header == 16 else 2 if content[at + 22] == 4 else 1
        packet = content[at + header : at + header + captured]
        ts = seconds * 10**9 + fraction * tick_ns
        frames.append(Frame(ts, at, packet, min(length, 0x7FFFFFFF), 0, direction))
        at += header + captured
    return Read(frames, damages, at if at < len(content) else None)


def ticks_to_ns(ticks: int, resolution: int, offset_s: int) -> int:
    """An unsigned pcapng time stamp; `resolution` is if_tsresol."""
    exponent = resolution & 0x7F
    per_second = min(1 << 60, 2**exponent if resolution & 0x80 else 10**exponent)
    if ticks >= 1 << 63 and per_second <= 10**9:
        ticks -= 1 << 64
    ns = (Fraction(ticks, per_second) + offset_s) * 10**9
    return max(-TS_LIMIT, min(ns.__floor__(), TS_LIMIT))


class _Interface(NamedTuple):
    snaplen: int
    resolution: int
    offset_s: int


def options(data: bytes, order: str) -> dict[int, bytes]:
    found = {}
    while len(data) >= 4:
        code, size = struct.unpack(order + "HH", data[:4])
        if code == 0 or size > len(data) - 4:
            break
        found[code] = data[4 : 4 + size]
        data = data[4 + (size + 3) // 4 * 4 :]
    return found


def read_pcapng(content: bytes) -> Read:
    """A pcapng of which all sections are of version 1 and every interface description is whole."""
    frames: list[Frame] = []
    damages: list[int] = []
    order = "<"
    before = 0  # interfaces of earlier sections
    interfaces: list[_Interface] = []
    stranger_met = False
    ts = 0
    at = 0
    while at + 12 <= len(content):
        if content[at : at + 4] == b"\n\r\r\n":
            if at + 16 > len(content):
                break
            new = next((o for o in "<>" if struct.pack(o + "I", 0x1A2B3C4D) == content[at + 8 : at + 12]), None)
            block, sane = _block(content, at, new or order)
            sane = sane and new is not None and (block is None or len(block) >= 28)
        else:
            new = None
            block, sane = _block(content, at, order)
        if not sane:
            damages.append(at)
            at = next((a for a in range(at + 1, len(content) - 11) if _known(content, a, order)), len(content))
            continue
        if block is None:
            break
        if new:
            order, before, interfaces, stranger_met = new, before + len(interfaces), [], False
        kind = struct.unpack(order + "I", block[:4])[0]
        body = block[8:-4]
        if kind == 1:
            found = options(body[8:], order)
            resolution = found.get(9, b"\x06")
            offset_s = found.get(14, bytes(8))
            interfaces.append(
                _Interface(
                    struct.unpack(order + "I", body[4:8])[0],
                    resolution[0] if len(resolution) == 1 else 6,
                    struct.unpack(order + "q", offset_s)[0] if len(offset_s) == 8 else 0,
                )
            )
        elif kind in (2, 3, 6):
            fixed = 4 if kind == 3 else 20
            number = struct.unpack(order + "I", body[:4])[0] if kind == 6 and len(body) >= 4 else 0
            if kind == 2 and len(body) >= 2:
                number = struct.unpack(order + "H", body[:2])[0]
            if len(body) < fixed:
                damages.append(at)
            elif number >= len(interfaces):
                if not stranger_met:
                    damages.append(at)
                stranger_met = True
            else:
                frame = _packet(kind, body, order, interfaces[number], ts)
                if frame is None:
                    damages.append(at)
                else:
                    ts = frame.ts
                    frames.append(frame._replace(file_offset=at, interface=before + number))
        at += len(block)
    return Read(frames, damages, at if at < len(content) else None)


def _block(content: bytes, at: int, order: str) -> tuple[bytes | None, bool]:
    """(the block if it is whole, whether its lengths make sense so far)."""
    size = struct.unpack(order + "I", content[at + 4 : at + 8])[0]
    if not 12 <= size <= 16 << 20:
        return None, False
    if at + size > len(content):
        return None, True
    block = content[at : at + size]
    return block, block[-4:] == block[4:8]


def _known(content: bytes, at: int, order: str) -> bool:
    kind = struct.unpack(order + "I", content[at : at + 4])[0]
    block, sane = _block(content, at, order)
    return (kind in range(1, 7) or kind == 0x0A0D0D0A) and sane and block is not None


def _packet(kind: int, body: bytes, order: str, interface: _Interface, previous_ts: int) -> Frame | None:
    if kind == 3:
        length = struct.unpack(order + "I", body[:4])[0]
        packet = body[4:][:length][: interface.snaplen or None]
        return Frame(previous_ts, 0, packet, min(length, 0x7FFFFFFF))
    high, low, captured, length = struct.unpack(order + "IIII", body[4:20])
    if captured > len(body) - 20:
        return None
    found = options(body[20 + (captured + 3) // 4 * 4 :], order)
    flags = found.get(2, b"")
    direction = struct.unpack(order + "I", flags)[0] & 3 if len(flags) == 4 else 0
    ts = ticks_to_ns(high << 32 | low, interface.resolution, interface.offset_s)
    return Frame(ts, 0, body[20 : 20 + captured], min(length, 0x7FFFFFFF), 0, direction % 3)
