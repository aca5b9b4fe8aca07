"""A tiny TCP: two sides that keep sequence numbers, IP ids, TSvals and SACK ranges as Linux does.

The story decides what is sent when, what is lost, and why something is sent again; the sides work out the headers.
Sequence numbers inside are relative: the SYN is 0, the first data byte 1.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace

from _capture import MS, US, Point, Seen
from _conversation import OTHER, RETRANSMISSIONS, Conversation, Retransmit, Side, Story
from scapy.layers.inet import TCP
from scapy.packet import Raw

FILLER = b"The quick brown fox jumps over the lazy dog. " * 2000
WINDOW_SCALE = 7


@dataclass
class TcpSide(Side):
    """One end of a connection; `clock` is the TSval at the start of the capture, in milliseconds."""

    isn: int = 0
    mss: int = 1410
    clock: int = 1_000_000
    window: int = 64_256
    end: int = 0
    """Next new sequence number."""
    stream: bytearray = field(default_factory=bytearray)
    received: list[tuple[int, int]] = field(default_factory=list)
    """What arrived from the peer, as ranges, the latest changed first (RFC 2018 section 4)."""
    expected: int = 0
    ts_recent: int = 0

    def tsval(self, at: int) -> int:
        return self.clock + at // MS

    def receive(self, start: int, end: int, tsval: int) -> None:
        """Take [start, end) of the peer."""
        if start <= self.expected:
            self.ts_recent = tsval
        if start == end:
            return
        for one in [old for old in self.received if old[0] <= end and start <= old[1]]:
            self.received.remove(one)
            start, end = min(start, one[0]), max(end, one[1])
        if start <= self.expected:
            self.expected = max(self.expected, end)
        else:
            self.received.insert(0, (start, end))


@dataclass(eq=False)
class Sent:
    """One packet as its sender sent it, and where it was seen, one entry a point."""

    who: str
    flags: str
    start: int
    length: int
    segments: int
    seen: list[Seen]
    first: Sent | None = None
    """The first send of the same first byte; None: this is it."""
    attempt: int = 0
    ip_id: int = 0
    tsval: int = 0

    def parts(self, size: int) -> list[Sent]:
        """The TCP segments of a GSO packet, each of which can be lost and sent again on its own."""
        ends = range(self.start, self.start + self.length, size)
        return [replace(self, start=at, length=min(size, self.start + self.length - at), segments=1) for at in ends]


class Connection(Conversation):
    """One TCP connection. `at` is always the time at the first point, in nanoseconds after the capture's start."""

    protocol = "TCP"

    def __init__(
        self,
        story: Story,
        orig: tuple[str, int],
        resp: tuple[str, int],
        points: tuple[Point, ...],
        *,
        rtt: int = 500 * US,
        orig_ttl: int = 64,
        resp_ttl: int = 62,
        sack: bool = True,
        mss: int = 1410,
        orig_isn: int | None = None,
    ) -> None:
        seed = zlib.crc32(f"{orig}{resp}".encode())
        isn = seed if orig_isn is None else orig_isn
        sides = (
            TcpSide(*orig, ttl=orig_ttl, ip_id=seed & 0xFFFF, isn=isn, mss=mss, clock=0x10000000 + (seed & 0xFFFFFF)),
            TcpSide(
                *resp,
                ttl=resp_ttl,
                ip_id=seed >> 16,
                isn=seed ^ 0x5BD1E995,
                mss=mss,
                clock=0x60000000 - (seed & 0xFFFFFF),
            ),
        )
        super().__init__(story.capture, *sides, points)
        self.orig, self.resp = sides
        self.story = story
        self.rtt = rtt
        self.sack = sack
        story.conversations.append(self)
        for flow in self.flows:
            flow |= dict.fromkeys(
                ("orig_tcp_segments", "resp_tcp_segments", "orig_retransmits", "resp_retransmits",
                 "orig_out_of_order", "resp_out_of_order", "zero_windows", "missed_bytes"), 0
            )  # fmt: skip
            flow["handshake_rtt_ns"] = None

    # --- what applications do ---

    def handshake(self, at: int) -> int:
        """SYN, SYN-ACK, ACK; returns the time of the ACK."""
        syn = self.syn("orig", at)
        self.syn("resp", at + self.rtt)
        return self.established(at + self.rtt + 20 * US, syn)

    def syn(self, who: str, at: int, *, lost: bool = False) -> Sent:
        return self._put(who, at, "S" if who == "orig" else "SA", 0, 0, lost=lost)

    def established(self, at: int, last_syn: Sent, *, lost: bool = False) -> int:
        """The ACK that ends the handshake."""
        ack = self.ack("orig", at, lost=lost)
        for flow, begin, end in zip(self.flows, last_syn.seen, ack.seen, strict=True):
            flow["handshake_rtt_ns"] = end.ts - begin.ts
        self.state("S1")
        return at

    def send(
        self, who: str, at: int, data: bytes | int, *, segments: int = 1, lost: bool = False, captured: bool = True
    ) -> Sent:
        """New data: bytes, or a number of filler bytes. `lost`: beyond the tap. `captured=False`: the tap missed it."""
        side = self._side(who)
        text = FILLER[:data] if isinstance(data, int) else data
        start = side.end
        side.stream[start - 1 :] = text
        self.add(f"{who}_bytes", len(text))
        return self._put(who, at, "PA", start, len(text), segments=segments, lost=lost, captured=captured)

    def arrive(self, sent: Sent) -> None:
        """A packet in flight (sent as `lost`) reaches the other side: what is sent from now on knows it."""
        self._side(OTHER[sent.who]).receive(sent.start, sent.start + sent.length, sent.tsval)

    def arrive_late(self, sent: Sent, at: int, evidence: tuple[str, ...] = ()) -> Sent:
        """An original that the tap sees after its successors: with the IP id and TSval of when it was sent."""
        self.add(f"{sent.who}_out_of_order", 1)
        return self._put(
            sent.who, at, sent.flags, sent.start, sent.length, ip_id=sent.ip_id, tsval=sent.tsval,
            kind="out_of_order", evidence=evidence,
        )  # fmt: skip

    def duplicate(self, sent: Sent, at: int) -> Sent:
        """The network delivers the same packet twice."""
        return self._put(
            sent.who, at, sent.flags, sent.start, sent.length, ip_id=sent.ip_id, tsval=sent.tsval,
            kind="network_duplicate", evidence=("ip_id",),
        )  # fmt: skip

    def resend(
        self, sent: Sent, at: int, kind: str, evidence: tuple[str, ...] = (), *, lost: bool = False,
    ) -> Sent:  # fmt: skip
        """The sender sends it again, with a new IP id and a new TSval."""
        return self._put(
            sent.who, at, sent.flags, sent.start, sent.length, segments=sent.segments, again=sent, kind=kind,
            evidence=evidence, lost=lost,
        )  # fmt: skip

    def ack(
        self, who: str, at: int, *, window: int | None = None, dsack: Sent | None = None, lost: bool = False
    ) -> Sent:
        """A pure ACK; SACK blocks are those of what arrived beyond a hole, a DSACK names what arrived twice."""
        return self._put(who, at, "A", self._side(who).end, 0, window=window, dsack=dsack, lost=lost)

    def probe(self, who: str, at: int, kind: str, length: int = 0, evidence: tuple[str, ...] = ()) -> Sent:
        """A keep-alive or a zero-window probe: the byte before the next one, or the next one (length 1)."""
        side = self._side(who)
        start = side.end - 1 + length
        side.stream[side.end - 1 :] = FILLER[:length]
        probe = self._put(who, at, "A", start, length, kind=kind, evidence=evidence, lost=length > 0)
        side.end = start + 1 - length
        return probe

    def capture_gap(self, sent: Sent, ack: Sent) -> None:
        """`ack` acknowledges `sent`, which the tap missed."""
        self.add("missed_bytes", sent.length)
        self._event(ack, "capture_gap", (), sent.who, sent.start, sent.length)

    def fin(self, who: str, at: int, *, lost: bool = False) -> Sent:
        return self._put(who, at, "FA", self._side(who).end, 0, lost=lost)

    def close(self, at: int) -> None:
        """The client's FIN, the server's FIN, the last ACK."""
        self.fin("orig", at)
        self.fin("resp", at + self.rtt)
        self.ack("orig", at + self.rtt + 30 * US)
        self.state("SF")

    def reset(self, who: str, at: int) -> Sent:
        return self._put(who, at, "RA", self._side(who).end, 0, window=0)

    def exchange(self, at: int, request: bytes | int, response: bytes | int, think: int = 2 * MS) -> int:
        """A request and its response, one packet each; returns the time of the last ACK."""
        self.send("orig", at, request)
        self.ack("resp", at + self.rtt)
        self.send("resp", at + self.rtt + think, response)
        self.ack("orig", at + self.rtt + think + 40 * US)
        return at + self.rtt + think + 40 * US

    # --- what goes on the wire ---

    def _side(self, who: str) -> TcpSide:
        return self.orig if who == "orig" else self.resp

    def _put(
        self, who: str, at: int, flags: str, start: int, length: int, *, segments: int = 1, again: Sent | None = None,
        kind: str | None = None, evidence: tuple[str, ...] = (), lost: bool = False, captured: bool = True,
        ip_id: int | None = None, tsval: int | None = None, window: int | None = None, dsack: Sent | None = None,
    ) -> Sent:  # fmt: skip
        """Build the packet, let it cross the points, deliver it unless it is lost, and write down what it was."""
        me, peer = self._side(who), self._side(OTHER[who])
        if flags == "SA" or (flags == "RA" and me.end == 0):
            ip_id = 0  # Linux: no socket owns these yet
        tsval = me.tsval(at) if tsval is None else tsval
        header = me.header(peer, segments, ip_id)
        sent_id = getattr(header, "id", 0)
        packet = header / self._tcp_header(who, flags, start, tsval, window, dsack)
        if length:
            packet /= Raw(bytes(me.stream[start - 1 : start - 1 + length]))
        seen = self.pass_by(who, at, packet) if captured else []
        sent = Sent(who, flags, start, length, segments, seen, ip_id=sent_id, tsval=tsval)
        end = start + length + ("S" in flags or "F" in flags)
        me.end = max(me.end, end)
        if again is not None:
            sent.first, sent.attempt = again.first or again, again.attempt + 1
        if captured:
            self._account(sent, window)
        if kind is not None:
            self._event(sent, kind, evidence, who, start, length, again)
        if not lost:
            peer.receive(start, end, tsval)
        return sent

    def _tcp_header(self, who: str, flags: str, start: int, tsval: int, window: int | None, dsack: Sent | None) -> TCP:
        me, peer = self._side(who), self._side(OTHER[who])
        shown = min(me.window, 65_535) if "S" in flags else me.window >> WINDOW_SCALE
        return TCP(
            sport=me.port,
            dport=peer.port,
            seq=(me.isn + start) & 0xFFFFFFFF,
            ack=(peer.isn + me.expected) & 0xFFFFFFFF if "A" in flags else 0,
            flags=flags,
            window=shown if window is None else window,
            options=self._options(me, peer, flags, tsval, dsack),
        )

    def _options(
        self, me: TcpSide, peer: TcpSide, flags: str, tsval: int, dsack: Sent | None
    ) -> list[tuple[str, object]]:
        """In the order of Linux."""
        if "R" in flags:
            return []
        times = ("Timestamp", (tsval, me.ts_recent if "A" in flags else 0))
        gap: list[tuple[str, object]] = [("NOP", None), ("NOP", None)]
        if "S" in flags:
            sack_permitted = [("SAckOK", b"")] if self.sack else gap
            return [("MSS", me.mss), *sack_permitted, times, ("NOP", None), ("WScale", WINDOW_SCALE)]
        blocks = [(dsack.start, dsack.start + dsack.length)] if dsack else []
        blocks += me.received[: 3 - len(blocks)]
        if not blocks or not self.sack:
            return [*gap, times]
        edges = tuple((peer.isn + edge) & 0xFFFFFFFF for block in blocks for edge in block)
        return [*gap, times, *gap, ("SAck", edges)]

    def _account(self, sent: Sent, window: int | None) -> None:
        if sent.length or "S" in sent.flags or "F" in sent.flags:
            self.add(f"{sent.who}_tcp_segments", sent.segments)
        if window == 0 and "R" not in sent.flags:
            self.add("zero_windows", 1)

    def _event(
        self, sent: Sent, kind: str, evidence: tuple[str, ...], sender: str, start: int, length: int,
        again: Sent | None = None,
    ) -> None:  # fmt: skip
        if kind in RETRANSMISSIONS:
            self.add(f"{sender}_retransmits", sent.segments)
        seq = (self._side(sender).isn + start) & 0xFFFFFFFF
        for place, (flow, seen) in enumerate(zip(self.flows, sent.seen, strict=True)):
            original = sent.first.seen[place] if sent.first and sent.first.seen else None
            previous = again.seen[place] if again and again.seen else None
            attempt = sent.attempt if original else None
            self.story.retransmits.append(
                Retransmit(kind, sender, flow, seen, seq, length, sent.segments, evidence, original, previous, attempt)
            )
