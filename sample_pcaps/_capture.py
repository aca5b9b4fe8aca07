"""The frames of one sample capture, and the files they are written to: nanosecond pcap or pcapng.

Byte layouts: draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng, LINKTYPE_LINUX_SLL2 (https://www.tcpdump.org/linktypes).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

US = 1_000
MS = 1_000_000
S = 1_000_000_000

ETHERNET = 1
SLL2 = 276

IN, OUT = "in", "out"


def utc(text: str) -> int:
    """Nanoseconds since 1970 of a clock time such as '2026-03-14T14:00:00'."""
    return int(datetime.fromisoformat(text + "+00:00").timestamp()) * S


@dataclass(eq=False)
class Seen:
    """One frame at one observation point. `number` is valid once the capture is sorted."""

    ts: int
    frame: bytes
    interface: int
    direction: str | None
    number: int = 0
    known: dict[str, Any] = field(default_factory=dict)
    """What its author knows of the packet inside, by the columns of the packets table."""


@dataclass(frozen=True)
class Interface:
    """One pcapng interface; `resolution` is the power of ten of its clock, the drops go into its statistics."""

    name: str
    resolution: int = 9
    dropped_interface: int | None = None
    dropped_kernel: int | None = None


@dataclass
class Capture:
    """What a tap saw. Times are given in nanoseconds after `start`; frames may be added in any order."""

    start: int
    interfaces: tuple[Interface, ...] = (Interface(""),)
    link_type: int = ETHERNET
    snaplen: int = 262_144
    seen: list[Seen] = field(default_factory=list)

    def see(self, at: int, packet: Packet | bytes, interface: int = 0, direction: str | None = None) -> Seen:
        resolution = 10 ** (9 - self.interfaces[interface].resolution)
        one = Seen((self.start + at) // resolution * resolution, bytes(packet), interface, direction)
        self.seen.append(one)
        return one

    def number(self) -> list[Seen]:
        """The frames in the order of the file, each with its frame number."""
        self.seen.sort(key=lambda one: one.ts)
        for number, one in enumerate(self.seen, start=1):
            one.number = number
        return self.seen

    def packets(self) -> list[tuple[int, bytes]]:
        """(ts_ns, whole frame) in the order of the file."""
        return [(one.ts, one.frame) for one in self.number()]

    def write(self, path: Path) -> None:
        path.write_bytes(self.pcapng() if path.suffix == ".pcapng" else self.pcap())

    def pcap(self) -> bytes:
        """Classic pcap, little-endian, nanoseconds."""
        out = [struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, self.snaplen, self.link_type)]
        for one in self.number():
            kept = one.frame[: self.snaplen]
            out.append(struct.pack("<IIII", one.ts // S, one.ts % S, len(kept), len(one.frame)) + kept)
        return b"".join(out)

    def pcapng(self) -> bytes:
        """One section: an interface block each, enhanced packet blocks, and statistics of what was dropped."""
        out = [_block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1) + _option(4, b"podtap samples") + _END)]
        out += [_interface_block(one, self.link_type, self.snaplen) for one in self.interfaces]
        out += [self._packet_block(one) for one in self.number()]
        last = max(one.ts for one in self.seen)
        for index, one in enumerate(self.interfaces):
            if one.dropped_kernel is not None:
                out.append(_statistics_block(index, one, last))
        return b"".join(out)

    def _packet_block(self, one: Seen) -> bytes:
        kept = one.frame[: self.snaplen]
        ticks = one.ts // 10 ** (9 - self.interfaces[one.interface].resolution)
        head = struct.pack("<IIIII", one.interface, ticks >> 32, ticks & 0xFFFFFFFF, len(kept), len(one.frame))
        flags = b"" if one.direction is None else _option(2, struct.pack("<I", 1 if one.direction == IN else 2)) + _END
        return _block(6, head + _padded(kept) + flags)


_END = struct.pack("<HH", 0, 0)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + _padded(value)


def _block(kind: int, body: bytes) -> bytes:
    length = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + length + body + length


def _interface_block(one: Interface, link_type: int, snaplen: int) -> bytes:
    options = _option(2, one.name.encode()) + _option(9, bytes([one.resolution])) + _END
    return _block(1, struct.pack("<HHI", link_type, 0, snaplen) + options)


def _statistics_block(index: int, one: Interface, ts: int) -> bytes:
    ticks = ts // 10 ** (9 - one.resolution)
    counters = _option(5, struct.pack("<Q", one.dropped_interface or 0))
    counters += _option(7, struct.pack("<Q", one.dropped_kernel or 0))
    return _block(5, struct.pack("<III", index, ticks >> 32, ticks & 0xFFFFFFFF) + counters + _END)


Wrap = Callable[[Packet], Packet | bytes]
"""Puts an IP packet into what is on the wire at one observation point: link layer, NAT, tunnel."""


@dataclass(frozen=True)
class Point:
    """One observation point that a conversation crosses; `orig` wraps what orig sends, `resp` what resp sends.

    A packet is seen `orig_delay` (or `resp_delay`) nanoseconds after the time that the story gives.
    """

    orig: Wrap
    resp: Wrap
    interface: int = 0
    orig_direction: str | None = None
    resp_direction: str | None = None
    orig_delay: int = 0
    resp_delay: int = 0
    resp_ip: str | None = None
    """resp's address here, where NAT changes it; the wraps do the translation."""
    resp_port: int | None = None
    encapsulation: str | None = None
    orig_vni: int | None = None
    resp_vni: int | None = None
    outer_ips: tuple[str | None, str | None] = (None, None)
    """Tunnel ends on orig's and on resp's side."""


def ethernet(orig_mac: str, resp_mac: str, **keywords: Any) -> Point:
    """A point where frames carry these two link addresses."""
    return Point(
        lambda packet: Ether(src=orig_mac, dst=resp_mac) / packet,
        lambda packet: Ether(src=resp_mac, dst=orig_mac) / packet,
        **keywords,
    )


def sll2(frame: bytes, ifindex: int, direction: str | None) -> bytes:
    """An Ethernet frame as the `any` device shows it: protocol, ifindex, ARPHRD_ETHER, packet type, source address."""
    packet_type = 4 if direction == OUT else 0
    return frame[12:14] + struct.pack(">HIHBB", 0, ifindex, 1, packet_type, 6) + frame[6:12] + b"\0\0" + frame[14:]


def tunnelled(point: Point, outer: Point, ends: tuple[str, str], port: int, header: tuple[Packet, Packet]) -> Point:
    """`point` inside UDP between two nodes: `ends` are the node addresses of orig and resp, `header` theirs to send."""

    def wrap(inner: Wrap, link: Wrap, src: str, dst: str, tunnel: Packet) -> Wrap:
        def apply(packet: Packet) -> Packet | bytes:
            whole = inner(packet)
            digest = zlib.crc32(bytes(whole))  # the outer source port is a hash of the inner flow, the id is random
            flow_hash = zlib.crc32(f"{packet.sport}{packet.dport}".encode()) % 16_384
            return link(
                IP(src=src, dst=dst, id=digest & 0xFFFF, ttl=64)
                / UDP(sport=49_152 + flow_hash, dport=port, chksum=0)
                / tunnel.copy()
                / whole
            )

        return apply

    name = type(header[0]).__name__.lower()
    return replace(
        outer,
        orig=wrap(point.orig, outer.orig, ends[0], ends[1], header[0]),
        resp=wrap(point.resp, outer.resp, ends[1], ends[0], header[1]),
        encapsulation=name,
        outer_ips=ends,
        orig_vni=header[0].vni,
        resp_vni=header[1].vni,
    )


def translated(point: Point, to: tuple[str, int], hops: int = 1) -> Point:
    """`point` behind a DNAT of the service address to the backend `to`, `hops` routers further on."""

    def outward(packet: Packet) -> Packet | bytes:
        changed = packet.copy()
        changed.dst, changed.ttl, changed.payload.dport = to[0], packet.ttl - hops, to[1]
        return point.orig(changed)

    def back(packet: Packet) -> Packet | bytes:
        changed = packet.copy()
        changed.src, changed.ttl, changed.payload.sport = to[0], packet.ttl + hops, to[1]
        return point.resp(changed)

    return replace(point, orig=outward, resp=back, resp_ip=to[0], resp_port=to[1])
