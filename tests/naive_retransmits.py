"""Kinds of retransmissions in plain Python, for one connection: the twin of retransmits_kernels.

Sequence numbers are unbounded here, bytes are kept one by one, and nothing is ever forgotten. The rules are those on
top of retransmits.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
MILLISECOND = 1_000_000
SECOND = 1000 * MILLISECOND
RTO_MIN = 200 * MILLISECOND


@dataclass(frozen=True)
class Packet:
    """One TCP packet of one connection; `tsval` None: no timestamps; `ip_id` 0: none that tells anything."""

    ts: int
    from_orig: bool
    seq: int
    ack: int
    length: int
    flags: int
    window: int = 1000
    tsval: int | None = None
    ip_id: int = 0
    sack: tuple[tuple[int, int], ...] = ()

    @property
    def end(self) -> int:
        return self.seq + self.length + bool(self.flags & SYN) + bool(self.flags & FIN)


@dataclass
class Send:
    """A packet with data, SYN or FIN, and how often its first byte had been sent before."""

    packet: Packet
    attempt: int
    delay: int


@dataclass
class Side:
    """One end, as what it sends and what its peer says of it."""

    next: int | None = None
    sends: list[Send] = field(default_factory=list)
    missing: dict[int, Packet] = field(default_factory=dict)
    """Bytes jumped over, with the packet that did."""
    una: int | None = None
    dup_acks: int = 0
    sacked_end: int | None = None
    window: int = -1
    last_time: int = 0
    srtt: int = 0
    rttvar: int = 0
    min_rtt: int = 0
    timed: tuple[int, int] | None = None
    """(sent, end) of the packet that times the path."""
    recovering: tuple[int, int] | None = None
    """(since, until this sequence number) of a timeout."""


@dataclass
class Verdict:
    """What is said of one packet."""

    kind: str = ""
    evidence: set[str] = field(default_factory=set)
    delay: int | None = None
    attempt: int | None = None
    new_bytes: int = 0
    missed_bytes: int = 0


def judge(packets: Iterable[Packet]) -> list[Verdict]:
    sides = (Side(), Side())
    return [_judge(p, sides[not p.from_orig], sides[p.from_orig]) for p in packets]


def _judge(p: Packet, me: Side, you: Side) -> Verdict:
    verdict = Verdict()
    if p.flags & RST:
        return verdict
    if p.flags & ACK:
        _learn_ack(p, me, you, verdict)
        blocks = p.sack
        if blocks:
            inside = len(blocks) > 1 and blocks[1][0] <= blocks[0][0] and blocks[0][1] <= blocks[1][1]
            blocks = blocks[1:] if blocks[0][1] <= p.ack or inside else blocks
            for _, right in blocks:
                you.sacked_end = right if you.sacked_end is None else max(you.sacked_end, right)
    me.window = p.window
    verdict.kind = _probe(p, me, you)
    if not verdict.kind:
        if p.length or p.flags & (SYN | FIN):
            _judge_sent(p, me, verdict)
        elif me.next is None:
            me.next = p.seq
    me.last_time = p.ts
    return verdict


def _learn_ack(p: Packet, me: Side, you: Side, verdict: Verdict) -> None:
    if you.next is not None and me.next is not None:
        filled = [byte for byte in you.missing if byte < p.ack]
        verdict.missed_bytes = len(filled)
        for byte in filled:
            del you.missing[byte]
        if p.ack > you.next:
            if p.ack > you.next + 1:  # a single byte may be a FIN
                verdict.missed_bytes += p.ack - you.next
            you.next = p.ack
    if you.una is None or p.ack > you.una:
        if you.timed and p.ack >= you.timed[1]:
            _time_path(you, p.ts - you.timed[0])
            you.timed = None
        you.una, you.dup_acks = p.ack, 0
        if you.recovering and p.ack >= you.recovering[1]:
            you.recovering = None
        if you.sacked_end is not None and you.sacked_end <= p.ack:
            you.sacked_end = None
    elif p.ack == you.una and p.length == 0 and not p.flags & (SYN | FIN):
        in_flight = you.next is not None and you.next > you.una
        if in_flight and p.window == me.window:
            you.dup_acks += 1


def _time_path(side: Side, sample: int) -> None:
    if sample < 0:  # the clock stepped back
        return
    if side.srtt == 0:
        side.srtt, side.rttvar, side.min_rtt = max(sample, 1), sample // 2, sample
        return
    side.rttvar = (3 * side.rttvar + abs(side.srtt - sample)) // 4
    side.srtt = max((7 * side.srtt + sample) // 8, 1)
    side.min_rtt = min(side.min_rtt, sample)


def _probe(p: Packet, me: Side, you: Side) -> str:
    if p.length > 1 or p.flags & (SYN | FIN) or me.next is None:
        return ""
    just_below = p.seq == me.next - 1
    if you.window == 0 and (just_below or p.length == 1):
        return "zero_window_probe"
    idle = me.una is not None and me.una >= me.next and p.ts - me.last_time >= SECOND
    return "keep_alive" if just_below and idle else ""


def _judge_sent(p: Packet, me: Side, verdict: Verdict) -> None:
    if me.next is None:
        me.next = p.seq
    previous = next((send for send in reversed(me.sends) if send.packet.seq <= p.seq < send.packet.end), None)
    if p.seq < me.next:
        verdict.kind, verdict.evidence = _kind(p, me, previous)
        if previous:
            verdict.delay, verdict.attempt = p.ts - previous.packet.ts, previous.attempt + 1
        for byte in range(p.seq, p.end):
            me.missing.pop(byte, None)
        me.timed = None
    else:
        previous = None
        me.missing |= dict.fromkeys(range(me.next, p.seq), p)
        me.recovering = None
        me.timed = me.timed or (p.ts, p.end)
    if p.end > me.next:
        verdict.new_bytes = max(p.end - me.next - bool(p.flags & SYN) - bool(p.flags & FIN), 0)
        me.next = p.end
    me.sends.append(Send(p, verdict.attempt or 0, verdict.delay or 0))


def _timer(p: Packet, previous: Send | None) -> set[str]:
    backoff = previous and previous.attempt and 2 * (p.ts - previous.packet.ts) >= 3 * previous.delay
    return {"timer", "backoff"} if backoff else {"timer"}


def _kind(p: Packet, me: Side, previous: Send | None) -> tuple[str, set[str]]:
    assert me.next is not None
    if previous and p.ip_id > 0:
        earlier = previous.packet
        same = (p.ip_id, p.seq, p.length, p.flags, p.ack, p.tsval)
        if same == (earlier.ip_id, earlier.seq, earlier.length, earlier.flags, earlier.ack, earlier.tsval):
            return "network_duplicate", {"ip_id"}
    if p.flags & SYN:
        return "synack" if p.flags & ACK else "syn", _timer(p, previous)
    if p.flags & FIN and not p.length:
        return "fin", _timer(p, previous)
    if me.una is not None and p.end <= me.una:
        return "spurious", {"acked"}
    if p.seq in me.missing:
        return _kind_of_hole(p, me, me.missing[p.seq])
    return _kind_of_resend(p, me, previous)


def _kind_of_hole(p: Packet, me: Side, jumper: Packet) -> tuple[str, set[str]]:
    if p.tsval is not None and jumper.tsval is not None and p.tsval != jumper.tsval:
        return "unseen_original" if p.tsval > jumper.tsval else "out_of_order", {"hole", "tsval"}
    if p.ip_id and jumper.ip_id and p.ip_id != jumper.ip_id:
        newer = (p.ip_id - jumper.ip_id) % (1 << 16) < 1 << 15
        return "unseen_original" if newer else "out_of_order", {"hole", "ip_id"}
    late = p.ts - jumper.ts >= max(3 * MILLISECOND, me.min_rtt // 4)
    return "unseen_original" if late else "out_of_order", {"hole", "timer"}


def _kind_of_resend(p: Packet, me: Side, previous: Send | None) -> tuple[str, set[str]]:
    evidence = {"sack"} if me.sacked_end is not None and me.sacked_end > p.seq else set()
    evidence |= {"dup_ack"} if me.dup_acks >= 3 else set()
    reported = bool(evidence) or me.dup_acks >= 2
    if previous is None:
        if me.recovering:
            return "rto_recovery", evidence
    else:
        delay = p.ts - previous.packet.ts
        oldest = me.una is None or p.seq <= me.una < p.end
        if me.recovering and previous.packet.ts < me.recovering[0]:
            return "rto_recovery", evidence
        if oldest and 10 * delay >= 9 * max(me.srtt + 4 * me.rttvar, RTO_MIN):
            assert me.next is not None
            me.recovering = (p.ts, me.next)
            return "rto", evidence | _timer(p, previous)
        if me.recovering:
            return "rto_recovery", evidence
        if not reported and not me.dup_acks and p.end == me.next and me.srtt:
            in_time = 16 * me.srtt <= 10 * delay <= 30 * me.srtt + 40 * MILLISECOND
            delayed = oldest and delay >= RTO_MIN and 10 * delay <= 15 * (2 * me.srtt + RTO_MIN)
            if in_time or delayed:
                return "tlp", {"timer"}
    if reported:
        return "fast", evidence if me.dup_acks >= 3 else evidence | {"rack"}
    return "unknown", evidence
