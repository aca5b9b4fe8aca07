"""Flows in plain Python, for packets seen at one place: which packets make a flow, and what Zeek would say of it.

The rules are those of flows.py; states and history are Zeek's (TCPSessionAdapter.cc, TCP_Endpoint.cc,
base/protocols/conn/main.zeek). Twin of flows_kernels and accounts_kernels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
TCP, UDP = 6, 17
SECOND = 1_000_000_000
WRAP = 1 << 32
SERVER_PORT_LIMIT = 1024

End = tuple[int, int]
"""Address and port."""


@dataclass(frozen=True)
class Packet:
    """What decides about flows in a TCP or UDP packet; `length` is the payload's."""

    ts: int
    protocol: int
    src: End
    dst: End
    length: int
    flags: int = 0
    seq: int = 0
    ack: int = 0
    window: int = 1


@dataclass
class Side:
    """One end of a flow, as Zeek's TCP_Endpoint."""

    packets: int = 0
    bytes: int = 0
    state: str = "INACTIVE"
    state_before: str = "INACTIVE"
    last_seq: int | None = None
    letters: set[str] = field(default_factory=set)
    numbers: dict[str, int] = field(default_factory=dict)
    """The last S, F and R by their sequence numbers."""
    often: dict[str, int] = field(default_factory=dict)

    def become(self, state: str) -> None:
        if state != self.state:
            self.state_before, self.state = self.state, state


class Flow:
    """One flow: its packets by number, and what became of it."""

    def __init__(self, first: Packet) -> None:
        self.protocol = first.protocol
        sender_is_orig = _sender_opened(first)
        self.orig, self.resp = (first.src, first.dst) if sender_is_orig else (first.dst, first.src)
        self.history = "" if sender_is_orig else "^"
        self.sides = {self.orig: Side(), self.resp: Side()}
        self.last_seen = first.ts
        self.numbers: list[int] = []
        self.syns: dict[End, int] = {}
        self.firsts: dict[End, Packet] = {}
        self.closed = False

    def goes_on_after_idle_time(self, p: Packet) -> Flow:
        """A new flow, of what is still the same TCP connection."""
        flow = Flow(p)
        flow.orig, flow.resp = self.orig, self.resp
        flow.history = "" if p.src == self.orig else "^"
        flow.syns, flow.firsts, flow.closed = self.syns, self.firsts, self.closed
        return flow

    def add(self, number: int, p: Packet) -> None:
        self.numbers.append(number)
        self.last_seen = max(self.last_seen, p.ts)
        me, you = self.sides[p.src], self.sides[p.dst]
        me.packets += 1
        me.bytes += p.length
        if p.protocol == UDP:
            self._write_once(p, me, "D")
            return
        self._write_history(p, me, you)
        _advance(p, me, you, p.src == self.orig)
        if p.flags & SYN and not p.flags & ACK:
            self.syns[p.src] = p.seq
        else:
            self.firsts.setdefault(p.src, p)
            self.closed |= bool(p.flags & (FIN | RST))

    def is_over(self, p: Packet) -> bool:
        """Whether `p`, of the same 5-tuple, begins another flow."""
        if p.protocol == UDP:
            return p.ts - self.last_seen > 60 * SECOND
        if self.is_answer_to_unseen(p):
            return True
        if p.flags & (SYN | ACK | RST | FIN) != SYN:
            return p.ts - self.last_seen > 300 * SECOND
        if p.src in self.syns:
            return self.syns[p.src] != p.seq
        if p.dst in self.syns:  # a simultaneous open, unless more than SYNs was seen
            return bool(self.firsts)
        answers_it = [self.firsts[p.src].seq] if p.src in self.firsts else []
        answers_it += [self.firsts[p.dst].ack] if p.dst in self.firsts else []
        return self.closed or (p.seq + 1) % WRAP not in answers_it

    def is_answer_to_unseen(self, p: Packet) -> bool:
        """Whether a SYN-ACK after the end of the connection answers a SYN that did not pass here."""
        repeats = p.src in self.firsts and self.firsts[p.src].seq == p.seq
        answers = p.dst in self.syns and (self.syns[p.dst] + 1) % WRAP == p.ack
        return p.flags & (SYN | ACK | RST | FIN) == SYN | ACK and self.closed and not repeats and not answers

    def _write(self, p: Packet, letter: str) -> None:
        self.history += letter if p.src == self.orig else letter.lower()

    def _write_once(self, p: Packet, me: Side, letter: str) -> None:
        if letter not in me.letters:
            me.letters.add(letter)
            self._write(p, letter)

    def _write_again(self, p: Packet, me: Side, kind: str, letter: str, number: int) -> None:
        if me.numbers.get(kind) != number:
            self._write(p, letter)
        me.numbers[kind] = number

    def _write_often(self, p: Packet, me: Side, letter: str) -> None:
        count = me.often[letter] = me.often.get(letter, 0) + 1
        if count in (1, 10, 100, 1000):
            self._write(p, letter)

    def _write_history(self, p: Packet, me: Side, you: Side) -> None:
        end = (p.seq + p.length + bool(p.flags & SYN) + bool(p.flags & FIN)) % WRAP
        control = [flag for flag in (SYN, FIN, RST) if p.flags & flag]
        if len(control) > 1:
            self._write_once(p, me, "I" if p.flags & FIN and p.flags & RST else "Q")
        elif p.flags & SYN:
            self._write_again(p, me, "SYN", "H" if p.flags & ACK else "S", p.seq)
        elif p.flags & FIN:
            self._write_again(p, me, "FIN", "F", end)
        elif p.flags & RST:
            self._write_again(p, me, "RST", "R", p.seq)
        elif p.length:
            self._write_once(p, me, "D")
        elif p.flags & ACK:
            self._write_once(p, me, "A")
        if p.window == 0 and not p.flags & RST and you.state != "CLOSED" and me.state != "RESET":
            self._write_often(p, me, "W")
        if me.last_seq is None:
            me.last_seq = end
        elif 0 < (end - me.last_seq) % WRAP < WRAP // 2:
            if not p.flags & RST:
                me.last_seq = end
        elif p.length and me.state != "RESET" and not p.flags & RST:
            self._write_often(p, me, "T")

    def conn_state(self) -> str:
        orig, resp = self.sides[self.orig], self.sides[self.resp]
        if self.protocol == UDP:
            return {(True, True): "SF", (True, False): "S0"}.get((orig.packets > 0, resp.packets > 0), "SHR")
        o, r = orig.state, resp.state
        o_inactive, r_inactive = o in ("INACTIVE", "PARTIAL"), r in ("INACTIVE", "PARTIAL")
        if r == "RESET":
            nothing_sent = orig.bytes == resp.bytes == 0
            if o in ("SYN_SENT", "SYN_ACK_SENT") or (o == "RESET" and nothing_sent):
                return "REJ"
            return "RSTRH" if o_inactive else "RSTR"
        if o == "RESET":
            if r_inactive:
                return "RSTOS0" if re.fullmatch(r"\^?S[^HAFGIQ]*R.*", self.history) else "OTH"
            return "RSTO"
        if o == r == "CLOSED":
            return "SF"
        if o == "CLOSED":
            return "SH" if r_inactive else "S2"
        if r == "CLOSED":
            return "SHR" if o_inactive else "S3"
        if (o, r) == ("SYN_SENT", "INACTIVE"):
            return "S0"
        return "S1" if o == r == "ESTABLISHED" else "OTH"


def _sender_opened(p: Packet) -> bool:
    src_serves, dst_serves = p.src[1] < SERVER_PORT_LIMIT, p.dst[1] < SERVER_PORT_LIMIT
    if p.protocol == UDP:
        return not src_serves or dst_serves
    if p.flags & SYN:
        return not p.flags & ACK
    return not src_serves or (dst_serves and p.src[1] >= p.dst[1])


def _advance(p: Packet, me: Side, you: Side, is_orig: bool) -> None:
    syn, fin, rst, ack = (bool(p.flags & flag) for flag in (SYN, FIN, RST, ACK))
    if me.state == "INACTIVE":
        if syn and is_orig:
            me.become("SYN_ACK_SENT" if ack else "SYN_SENT")
        elif syn:
            if you.state == "SYN_SENT":
                you.become("ESTABLISHED")
            me.become("ESTABLISHED")
        if fin:
            me.become("CLOSED")
        if rst:
            me.become("RESET")
        acks_before_its_syn = not is_orig and p.length == 0 and you.state == "SYN_SENT"
        if not (syn or fin or rst or acks_before_its_syn):
            me.become("ESTABLISHED" if ack and you.state == "ESTABLISHED" else "PARTIAL")
    elif me.state in ("SYN_SENT", "SYN_ACK_SENT"):
        if fin:
            me.become("CLOSED")
        if rst:
            me.become("RESET")
    elif me.state in ("ESTABLISHED", "PARTIAL"):
        if syn and not ack and me.state == "PARTIAL" and you.state == "INACTIVE":
            me.become("SYN_SENT")
        if fin and not rst:
            me.become("CLOSED")
            if (you.state, you.state_before) == ("RESET", "CLOSED"):
                you.become("CLOSED")
        if rst:
            me.become("RESET")
    elif me.state == "CLOSED" and rst and you.state != "CLOSED":
        me.become("RESET")


def flows(packets: Iterable[Packet]) -> list[Flow]:
    """The flows of packets in order of time, each with the places of its packets."""
    current: dict[tuple[int, frozenset[End]], Flow] = {}
    found = []
    for number, p in enumerate(packets):
        key = (p.protocol, frozenset((p.src, p.dst)))
        flow = current.get(key)
        if flow is None or flow.is_over(p):
            is_new = flow is None or p.protocol == UDP or p.flags & (SYN | RST | FIN) == SYN
            flow = current[key] = Flow(p) if is_new else flow.goes_on_after_idle_time(p)
            found.append(flow)
        flow.add(number, p)
    return found


def firsts_of_fragments(fragments: Iterable[tuple[int, int, bool]]) -> list[int | None]:
    """For each fragment (ts, datagram, whether it is the first one) the place of the first one that it goes with."""
    found: list[int | None] = []
    seen: dict[int, int] = {}
    first: dict[int, int] = {}
    early: dict[int, list[int]] = {}
    for place, (ts, datagram, is_first) in enumerate(fragments):
        if ts - seen.get(datagram, ts) >= 60 * SECOND:
            first.pop(datagram, None)
            early.pop(datagram, None)
        seen[datagram] = ts
        if is_first:
            first[datagram] = place
            for other in early.pop(datagram, []):
                found[other] = place
        elif datagram not in first:
            early.setdefault(datagram, []).append(place)
        found.append(first.get(datagram))
    return found
