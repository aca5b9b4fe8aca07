"""Conversations as a tap sees them, and the truth about them that only their author knows.

A conversation crosses one or more observation points; each point is one flow of the truth. What the truth says is
counted from what was sent, never from the bytes of the capture.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from _capture import Capture, Point, Seen
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.packet import Packet, Raw

OTHER = {"orig": "resp", "resp": "orig"}


@dataclass
class Side:
    """One end: its address, and what its kernel puts into the IP header."""

    ip: str
    port: int
    ttl: int = 64
    ip_id: int = 1

    def header(self, peer: Side, ids: int = 1, ip_id: int | None = None, ttl: int | None = None) -> Packet:
        """The IP header of the next packet, which uses up `ids` identifications (a GSO packet: one per TCP segment)."""
        if ":" in self.ip:
            return IPv6(src=self.ip, dst=peer.ip, hlim=ttl or self.ttl)
        if ip_id is None:
            ip_id = self.ip_id
            self.ip_id = (self.ip_id + ids) & 0xFFFF
        return IP(src=self.ip, dst=peer.ip, id=ip_id, ttl=ttl or self.ttl, flags="DF")


class Conversation:
    """A capture, two sides and the points between them; subclasses speak a protocol."""

    protocol = ""

    def __init__(self, capture: Capture, orig: Side, resp: Side, points: tuple[Point, ...]) -> None:
        self.capture = capture
        self.sides = {"orig": orig, "resp": resp}
        self.points = points
        self.flows = [self._flow(point) for point in points]

    def _flow(self, point: Point) -> dict[str, Any]:
        orig, resp = self.sides["orig"], self.sides["resp"]
        return {
            "interface": self.capture.interfaces[point.interface].name or None,
            "protocol": self.protocol,
            "orig_ip": orig.ip,
            "orig_port": orig.port,
            "resp_ip": point.resp_ip or resp.ip,
            "resp_port": point.resp_port or resp.port,
            "encapsulation": point.encapsulation,
            "orig_vni": point.orig_vni,
            "resp_vni": point.resp_vni,
            **dict.fromkeys(
                ("orig_packets", "orig_bytes", "orig_ip_bytes", "resp_packets", "resp_bytes", "resp_ip_bytes"), 0
            ),
            "conn_state": "S0",
        }

    def pass_by(self, who: str, at: int, packet: Packet) -> list[Seen]:
        """Let `packet` of `who` cross the points, and count it there."""
        crossed = []
        for flow, point in zip(self.flows, self.points, strict=True):
            wrap, direction, delay = (
                (point.orig, point.orig_direction, point.orig_delay)
                if who == "orig"
                else (point.resp, point.resp_direction, point.resp_delay)
            )
            seen = self.capture.see(at + delay, wrap(packet), point.interface, direction)
            seen.known = self._known(who, point, flow)
            crossed.append(seen)
            flow[f"{who}_packets"] += 1
            flow[f"{who}_ip_bytes"] += len(packet)
            flow["first_seen"] = min(flow.get("first_seen", seen.ts), seen.ts)
            flow["last_seen"] = max(flow.get("last_seen", seen.ts), seen.ts)
        return crossed

    def _known(self, who: str, point: Point, flow: dict[str, Any]) -> dict[str, Any]:
        direction, vni = (
            (point.orig_direction, point.orig_vni) if who == "orig" else (point.resp_direction, point.resp_vni)
        )
        known = {"interface": flow["interface"], "direction": direction, "protocol": self.protocol}
        known |= {"encapsulation": point.encapsulation, "vni": vni}
        for end, side in (("src", who), ("dst", OTHER[who])):
            known[f"{end}_ip"] = flow[f"{side}_ip"]
            known[f"{end}_port"] = None if self.protocol.startswith("ICMP") else flow[f"{side}_port"]
            known[f"outer_{end}_ip"] = point.outer_ips[side == "resp"]
        return known

    def add(self, name: str, amount: int) -> None:
        for flow in self.flows:
            flow[name] = flow.get(name, 0) + amount

    def state(self, name: str) -> None:
        for flow in self.flows:
            flow["conn_state"] = name


class Datagrams(Conversation):
    """UDP between two sockets. Zeek's states: S0 without an answer, SF with one, SHR only answers."""

    protocol = "UDP"

    def send(
        self, who: str, at: int, payload: bytes, *, ttl: int | None = None, extension: Packet | None = None
    ) -> list[Seen]:
        """One datagram; `extension` are IPv6 extension headers."""
        me, peer = self.sides[who], self.sides[OTHER[who]]
        header = me.header(peer, ttl=ttl)
        packet = (header / extension if extension else header) / UDP(sport=me.port, dport=peer.port) / Raw(payload)
        seen = self.pass_by(who, at, packet)
        self.count(who, len(payload))
        return seen

    def send_fragments(self, who: str, at: int, payload: bytes, order: tuple[int, ...] = ()) -> list[Seen]:
        """One datagram in fragments of up to 1424 bytes, 8 us apart, in this order (default: the natural one)."""
        me, peer = self.sides[who], self.sides[OTHER[who]]
        header = me.header(peer)
        whole = bytes(header / UDP(sport=me.port, dport=peer.port) / Raw(payload))[len(header) :]
        pieces = [(at_byte, whole[at_byte : at_byte + 1424]) for at_byte in range(0, len(whole), 1424)]
        seen: list[Seen] = []
        for place, index in enumerate(order or range(len(pieces))):
            offset, piece = pieces[index]
            more = index < len(pieces) - 1
            if isinstance(header, IPv6):
                extension = IPv6ExtHdrFragment(nh=17, offset=offset // 8, m=int(more), id=0x5EED0000 + me.port)
                packet: Packet = header / extension / Raw(piece)
            else:
                packet = header.copy() / Raw(piece)
                packet.flags, packet.frag, packet.proto = ("MF" if more else 0), offset // 8, 17
            seen += self.pass_by(who, at + place * 8_000, packet)
        self.count(who, len(payload))
        return seen

    def count(self, who: str, payload: int) -> None:
        self.add(f"{who}_bytes", payload)
        both = [self.flows[0][f"{side}_packets"] for side in ("orig", "resp")]
        self.state("SF" if all(both) else "S0" if both[0] else "SHR")


RETRANSMISSIONS = {"syn", "synack", "fin", "fast", "rto", "rto_recovery", "tlp", "spurious", "unseen_original"}
"""The kinds that a kernel's RetransSegs counts."""


@dataclass(frozen=True)
class Retransmit:
    """One true event at one observation point: why the sender sent this packet."""

    kind: str
    sender: str
    flow: dict[str, Any]
    seen: Seen
    seq: int
    length: int
    segments: int
    evidence: tuple[str, ...] = ()
    original: Seen | None = None
    previous: Seen | None = None
    attempt: int | None = None

    def truth(self) -> dict[str, Any]:
        row: dict[str, Any] = {
            "frame_number": self.seen.number,
            "ts": self.seen.ts,
            "interface": self.flow["interface"],
            "sender": self.sender,
            "kind": self.kind,
            "seq": self.seq,
            "length": self.length,
            "tcp_segments": self.segments if self.kind in RETRANSMISSIONS else 0,
            "evidence": self.evidence,
        }
        if self.original is not None and self.previous is not None:
            row |= {
                "original_frame": self.original.number,
                "original_ts": self.original.ts,
                "delay_ns": self.seen.ts - self.previous.ts,
                "attempt": self.attempt,
            }
        return row


@dataclass
class Story:
    """A sample: its capture and all that is true about it."""

    capture: Capture
    conversations: list[Conversation] = field(default_factory=list)
    retransmits: list[Retransmit] = field(default_factory=list)
    dns: list[dict[str, Any]] = field(default_factory=list)

    def truth(self) -> dict[str, list[dict[str, Any]]]:
        """Plain rows of the tables, in time order; frame numbers are those of the written file."""
        packets = [
            {"frame_number": one.number, "ts": one.ts, "length": len(one.frame), **one.known}
            for one in self.capture.number()
        ]
        flows = [flow for one in self.conversations for flow in one.flows if "first_seen" in flow]
        return {
            "packets": packets,
            "flows": sorted(flows, key=lambda flow: (flow["first_seen"], str(flow["interface"]))),
            "retransmits": sorted((one.truth() for one in self.retransmits), key=lambda row: row["frame_number"]),
            "dns": [{name: number(value) for name, value in row.items()} for row in self.dns],
        }


def number(value: object) -> object:
    """A frame stands for its number."""
    return value.number if isinstance(value, Seen) else value
