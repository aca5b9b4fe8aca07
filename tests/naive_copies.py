"""What copies_kernels does, slowly and obviously: every packet is compared with all that came before it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
TCP, SCTP = 6, 132
TCP_CUT = 2
MILLISECOND = 1_000_000


@dataclass
class Shown:
    """One packet as it was shown once."""

    ts: int
    look: Any
    bare: Any
    content: Any
    is_cut: bool
    is_stream: bool
    seq: int
    length: int
    payload: int
    ip_id: int
    ack: int
    nth: int = 1
    nth_bare: int = 1
    before: int = 0
    is_first: bool = False
    is_copy: bool = False


@dataclass
class Lane:
    new: list[int] = field(default_factory=list)
    """Lengths of packets, and one for each."""
    known: list[int] = field(default_factory=list)
    first_repeats: int = 0
    has_first: bool = False

    def times(self) -> int:
        if len(self.new) >= 16 and sum(self.known) >= 0.75 * sum(self.new):
            return max(1 + self.first_repeats, 1 + int(sum(self.known) / sum(self.new) + 0.5))
        return 1 if len(self.new) >= 64 and 8 * sum(self.known) < sum(self.new) else 1 + self.first_repeats


@dataclass
class Side:
    shown: list[Shown] = field(default_factory=list)
    lanes: dict[Any, Lane] = field(default_factory=lambda: defaultdict(Lane))


def copies(packets: Iterable[Any], data: bytes, mixed: bool) -> list[bool]:
    """Whether each PACKET, all of flows that began with them, is a copy."""
    sides: dict[tuple[int, int], Side] = defaultdict(Side)
    counted = {False: 0, True: 0}
    found = []
    for p in packets:
        flow, from_orig = int(p["flow"]), int(p["from_orig"])
        if p["starts_flow"] == 1:
            sides[flow, 0], sides[flow, 1] = Side(), Side()
        found.append(_is_copy(p, data, sides[flow, from_orig], counted, mixed))
    return found


def _is_copy(p: Any, data: bytes, side: Side, counted: dict[bool, int], mixed: bool) -> bool:
    now = _shown(p, data)
    recent = _recent(side.shown, now)
    like = [each for each in recent if _shows_again(each, now)]
    crossing = [each for each in like if each.is_cut != now.is_cut]
    same = [each for each in like if each.content == now.content and each.is_cut == now.is_cut]
    if now.ip_id:
        same = [each for each in like if each in same or each in crossing]
    if now.ip_id:  # nothing but the last that looks so, and what came after it, says more
        looking_so = [place for place, each in enumerate(same) if each.look == now.look]
        same = same[looking_so[-1] :] if looking_so else same
    alike = [each for each in same if each.look == now.look]
    again, new = counted[True], counted[False]
    compared = now.ip_id > 0 or 0 < min(int(p["payload_length"]), 64) <= int(p["payload_captured"])
    can_tell = now.is_stream or (compared and (mixed or 8 * again > new))
    lane = side.lanes[now.look]
    if can_tell and any(each.is_first and now.ts - each.ts < 20 * MILLISECOND for each in alike):
        lane.first_repeats = lane.first_repeats + 1 if now.ip_id else max(lane.first_repeats, len(alike))
    times = lane.times() if can_tell else 1
    if can_tell and not now.is_stream and not mixed:
        times = max(times, 1 + int(again / new + 0.5))
    if now.ip_id:
        known = any(each.look != now.look or each.is_copy for each in same)
        now.is_copy = bool(same) and (known or (mixed and p["protocol"] != SCTP) or times > 1)
    else:
        if alike and not now.is_stream:
            now.before = alike[-1].before + 1
        now.nth = 1 + (len(alike) if now.is_stream else now.before) // times
        older = like[: like.index(alike[0])] if alike else like
        earlier = max((each.nth_bare for each in older if each.look == now.look), default=0)
        now.nth_bare = 1 + earlier + len(alike) // times
        now.is_copy = bool(same) and now.nth <= max(each.nth for each in same)
        now.is_copy |= bool(crossing) and now.nth_bare <= max(each.nth_bare for each in crossing)
    repeats = bool(alike) and (now.is_copy or now.ip_id > 0)
    (lane.known if repeats else lane.new).append(now.length + 1)
    if now.is_stream or now.ip_id:
        counted[repeats] += 1
    now.is_first = not lane.has_first and not repeats and (now.length > 0 or not now.is_stream)
    lane.has_first |= now.is_first
    side.shown.append(now)
    return now.is_copy


def _shown(p: Any, data: bytes) -> Shown:
    flags = int(p["tcp_flags"])
    is_stream = bool(p["protocol"] == TCP and p["tcp_analyzable"] and not p["fragment"])
    bare = (int(p["tcp_ack"]), int(p["tcp_window"]), flags & (SYN | RST | ACK))
    content: tuple[Any, ...] = (*bare, *(int(p[name]) for name in ("tsval", "tsecr")))
    if is_stream:
        content = (*content, int(p["sack_blocks"]))
    else:
        names = ("tcp_seq", "payload_length", "tcp_flags", "fragment_offset")
        begin = int(p["payload_offset"])
        content = (*content, *(int(p[name]) for name in names), data[begin:][: min(int(p["payload_captured"]), 64)])
    return Shown(
        ts=int(p["ts"]),
        look=tuple(int(p[name]) for name in ("l2_source", "ttl", "encapsulation", "direction", "vlan")),
        bare=bare,
        content=content,
        is_cut=is_stream and p["tcp_analyzable"] == TCP_CUT,
        is_stream=is_stream,
        seq=int(p["tcp_seq"]),
        length=int(p["payload_length"]) + bool(flags & SYN) + bool(flags & FIN) if is_stream else 0,
        payload=int(p["payload_length"]),
        ip_id=max(int(p["ip_id"]), 0),
        ack=int(p["tcp_ack"]),
    )


def _recent(shown: list[Shown], now: Shown) -> list[Shown]:
    """Those of the last 100 ms; none if something in `now` is new since there was nothing for as long."""
    times = [each.ts for each in shown]
    stretch = len(shown)
    while stretch > 1 and times[stretch - 1] - times[stretch - 2] < 100 * MILLISECOND:
        stretch -= 1
    first = len(shown)
    while first and abs(now.ts - times[first - 1]) < 100 * MILLISECOND:
        first -= 1
    known = shown[max(stretch - 1, 0) :]
    if now.is_stream and now.length and not any(_after(each, now.seq + now.length) >= 0 for each in known):
        return []
    return shown[first:]


def _after(shown: Shown, number: int) -> int:
    """By how much its end is beyond a sequence number."""
    distance = (shown.seq + shown.length - number) % (1 << 32)
    return distance - (1 << 32) if distance >= 1 << 31 else distance


def _shows_again(before: Shown, now: Shown) -> bool:
    if (before.bare, before.is_stream, before.ip_id > 0) != (now.bare, now.is_stream, now.ip_id > 0):
        return False
    if not now.is_stream:
        return before.ip_id == now.ip_id
    offset = (now.seq - before.seq) % (1 << 32)
    if not now.length or not before.length:
        return (now.length, offset, now.ip_id) == (before.length, 0, before.ip_id)
    if offset == 0 or (offset < before.length and not now.ip_id):
        return now.ip_id == before.ip_id
    if offset >= before.length:
        return False
    segments = (now.ip_id - before.ip_id) % (1 << 16)
    if segments == 0:
        return True
    if offset % segments or offset // segments < 500:
        return False
    size = offset // segments
    is_last = offset + now.length >= before.length
    fits = now.payload % size == 0 or (is_last and now.payload < size)
    return now.payload == size or (size >= 1200 and fits)
