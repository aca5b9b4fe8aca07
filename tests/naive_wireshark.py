"""Wireshark 4.0's TCP sequence analysis, packet by packet in plain Python: the twin of the kernel's `wireshark_kind`.

The rules are those of `tcp_analyze_sequence_number` in Wireshark's packet-tcp.c; numbers in the comments are the steps
of that function in its order. Every packet here is a TCP packet whose length is known.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
MILLISECOND = 1_000_000
UNSIGNED = 1 << 32
UNKNOWN_SCALE, NO_SCALE = -1, -2

KINDS = ("keep_alive", "spurious_retransmission", "fast_retransmission", "out_of_order", "retransmission")


@dataclass(frozen=True)
class TcpPacket:
    """One TCP packet. `stream` is the same for both directions, `forward` tells them apart."""

    stream: object
    forward: bool
    ts: int
    seq: int
    ack: int
    length: int
    flags: int
    window: int
    scale: int | None = None
    """Shift of the window scale option, None without the option."""


@dataclass
class _Side:
    nextseq: int = 0
    nextseq_time: int = 0
    maxseq: int = 0
    lastack: int = 0
    lastack_time: int = 0
    window: int = 0
    scale: int = UNKNOWN_SCALE
    first_ack: bool = False
    dupack: int = 0
    last_flags: frozenset[str] = frozenset()
    base_seq: int | None = None
    unacked: int = 0


@dataclass
class _Conversation:
    sides: tuple[_Side, _Side] = field(default_factory=lambda: (_Side(), _Side()))
    syn_time: int = 0
    first_rtt: int = 0


def _before(a: int, b: int) -> bool:
    """Signed 32-bit a - b < 0; at a distance of exactly 2**31 each is before the other, as in Wireshark."""
    return (a - b) % UNSIGNED >= UNSIGNED // 2


def _elapsed(now: int, then: int) -> int:
    """Unsigned, so that a clock that steps back looks like a very long time."""
    return (now - then) % (1 << 64)


def analyze(packets: Iterable[TcpPacket]) -> list[frozenset[str]]:
    """Flags of each packet, named as the last part of Wireshark's `tcp.analysis.*` fields.

    `retransmission` is set for the plain kind only: Wireshark's field is also there on fast and spurious ones.
    """
    conversations: dict[object, _Conversation] = {}
    return [_analyze(conversations, packet) for packet in packets]


def kind(flags: frozenset[str]) -> str | None:
    """The one of the five kinds that podtap keeps in `wireshark_kind`."""
    return next((name for name in KINDS if name in flags), None)


def _conversation(conversations: dict[object, _Conversation], p: TcpPacket, flags: set[str]) -> _Conversation:
    conversation = conversations.get(p.stream)
    if conversation is None:
        conversation = conversations[p.stream] = _Conversation()
    fwd = conversation.sides[p.forward]
    if p.flags & SYN and not p.flags & ACK and fwd.base_seq is not None:
        if p.seq != fwd.base_seq:
            conversation = conversations[p.stream] = _Conversation()
            flags.add("reused_ports")
        else:
            fwd.nextseq = fwd.maxseq
    elif p.flags & SYN and fwd.base_seq is not None and p.seq != fwd.base_seq:
        fwd.base_seq = p.seq
        flags.add("reused_ports")
    return conversation


def _analyze(conversations: dict[object, _Conversation], p: TcpPacket) -> frozenset[str]:
    flags: set[str] = set()
    conversation = _conversation(conversations, p, flags)
    fwd, rev = conversation.sides[p.forward], conversation.sides[not p.forward]
    if fwd.base_seq is None:
        fwd.base_seq = p.seq if p.flags & SYN else (p.seq - 1) % UNSIGNED
    if rev.base_seq is None and p.flags & ACK:
        rev.base_seq = (p.ack - 1) % UNSIGNED

    _window_flags(p, fwd, rev, flags)
    if p.ack != fwd.lastack:  # 9
        fwd.dupack = 0
    _acked_unseen(p, rev, flags)
    if (p.length or p.flags & (SYN | FIN)) and "keep_alive" not in flags:
        _retransmission(p, conversation, fwd, rev, flags)
    _remember(p, fwd, flags)
    _handshake(p, conversation)
    _window_scale(p, fwd, rev)
    return frozenset(flags)


def _window_flags(p: TcpPacket, fwd: _Side, rev: _Side, flags: set[str]) -> None:
    control = bool(p.flags & (SYN | FIN | RST))
    if p.length == 1 and p.seq == fwd.nextseq and rev.window == 0:  # 1
        flags.add("zero_window_probe")
        return
    if p.window == 0 and not control:  # 2
        flags.add("zero_window")
    if fwd.nextseq and _before(fwd.nextseq, p.seq) and not p.flags & RST:  # 3
        flags.add("lost_segment")
    if p.length <= 1 and p.seq == (fwd.nextseq - 1) % UNSIGNED and not control:  # 4
        flags.add("keep_alive")
    in_place = p.length == 0 and p.seq == fwd.nextseq and p.ack == fwd.lastack and not control
    if in_place and p.window and p.window != fwd.window:  # 5
        flags.add("window_update")
    shift = 0 if rev.first_ack or rev.scale < 0 else rev.scale
    edge = (rev.lastack + (rev.window << shift)) % UNSIGNED
    if p.length and rev.scale != UNKNOWN_SCALE and (p.seq + p.length) % UNSIGNED == edge and not control:  # 6
        flags.add("window_full")
    if in_place and p.window and p.window == fwd.window and "keep_alive" in rev.last_flags:  # 7
        flags.add("keep_alive_ack")
        return
    if in_place and p.window == 0 == fwd.window and "zero_window_probe" in rev.last_flags:
        flags.add("zero_window_probe_ack")
        return
    if in_place and p.window and p.window == fwd.window:  # 8
        fwd.dupack = (fwd.dupack + 1) % UNSIGNED or 1
        flags.add("duplicate_ack")


def _acked_unseen(p: TcpPacket, rev: _Side, flags: set[str]) -> None:
    if not p.flags & ACK or not rev.maxseq or not _before(rev.maxseq, p.ack):  # 10
        return
    if _before(rev.maxseq, rev.nextseq):
        rev.maxseq = rev.nextseq
        flags.add("ack_lost_segment")
    else:
        if rev.dupack == 0:
            flags.add("ack_lost_segment")
        rev.dupack = UNSIGNED - 1


def _retransmission(p: TcpPacket, conversation: _Conversation, fwd: _Side, rev: _Side, flags: set[str]) -> None:
    not_advanced = bool(fwd.nextseq) and _before(p.seq, fwd.nextseq)  # 11
    if p.length > 1 and p.seq == (fwd.nextseq - 1) % UNSIGNED:
        not_advanced = False
    end = p.seq + p.length
    end_with_flag = (end + bool(p.flags & (SYN | FIN))) % UNSIGNED
    patience = conversation.first_rtt % (1 << 64) or 3 * MILLISECOND
    acked = _before(end, rev.lastack) or end % UNSIGNED == rev.lastack
    if p.length and rev.lastack and acked:
        flags.add("spurious_retransmission")
    elif not not_advanced:
        return
    elif rev.dupack >= 2 and p.seq == rev.lastack and _elapsed(p.ts, rev.lastack_time) < 20 * MILLISECOND:
        flags.add("fast_retransmission")
    elif _elapsed(p.ts, fwd.nextseq_time) < patience and fwd.nextseq != end_with_flag:
        flags.add("out_of_order")
    else:
        flags.add("retransmission")


def _remember(p: TcpPacket, fwd: _Side, flags: set[str]) -> None:
    end = (p.seq + p.length + bool(p.flags & (SYN | FIN))) % UNSIGNED  # 12
    probe = "zero_window_probe" in flags
    if (_before(fwd.nextseq, end) or not fwd.nextseq) and not probe:
        fwd.nextseq, fwd.nextseq_time = end, p.ts
    if (p.seq == fwd.maxseq or not fwd.maxseq) and not probe:
        fwd.maxseq = fwd.nextseq
    fwd.window, fwd.lastack, fwd.lastack_time = p.window, p.ack, p.ts
    fwd.last_flags = frozenset(flags)


def _handshake(p: TcpPacket, conversation: _Conversation) -> None:
    if p.flags & SYN and not p.flags & ACK:
        conversation.syn_time = p.ts
    elif p.flags & ACK and not p.flags & SYN and conversation.syn_time and not conversation.first_rtt:
        conversation.first_rtt = p.ts - conversation.syn_time


def _window_scale(p: TcpPacket, fwd: _Side, rev: _Side) -> None:
    if p.flags & SYN:
        fwd.first_ack = True
        if p.scale is None or (p.flags & ACK and rev.scale == NO_SCALE):
            fwd.scale = rev.scale = NO_SCALE
        else:
            fwd.scale = min(p.scale, 14)
    elif p.flags & ACK:
        fwd.first_ack = False
