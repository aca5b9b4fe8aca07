"""How much of a packet the kernel keeps, and whether it is in the scope: the kernel's own answer for packets that scapy
made, and whose headers scapy measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.all import (  # type: ignore[attr-defined]
    ARP,
    DNS,
    DNSQR,
    GRE,
    ICMP,
    IP,
    TCP,
    UDP,
    Dot1Q,
    Ether,
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    IPv6,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    Packet,
    PadN,
    Raw,
)
from scapy.contrib.geneve import GENEVE, GeneveOptions
from scapy.layers.sctp import SCTP, SCTPChunkData
from scapy.layers.vxlan import VXLAN

from capture.bpf import FilterError
from capture.filtering import Wanted, program
from capture.libpcap import LINUX_SLL2, Handle
from capture.scope_file import Scope
from tests.wire import Wire, read_all

PAYLOAD = b"secret " * 40
E = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
A, B = "10.0.0.1", "10.0.0.2"
A6, B6 = "fd00::1", "fd00::2"
OPTIONS = [("NOP", None), ("NOP", None), ("Timestamp", (1, 2))]
QUERY = DNS(rd=1, qd=DNSQR(qname="a-name-that-is-not-short.example.com"))


def headers(packet: Packet) -> int:
    """Bytes up to the payload, as scapy has the layers."""
    return len(packet) - len(PAYLOAD)


def tcp(**fields: Any) -> Packet:
    return TCP(sport=40000, dport=80, **fields) / Raw(PAYLOAD)


def udp(port: int = 4000) -> Packet:
    return UDP(sport=40000, dport=port) / Raw(PAYLOAD)


HEADERS_ONLY = {
    "tcp": E / IP(src=A, dst=B) / tcp(),
    "tcp options": E / IP(src=A, dst=B) / tcp(options=OPTIONS),
    "ip options": E / IP(src=A, dst=B, options=b"\x01" * 12) / tcp(options=OPTIONS),
    "udp": E / IP(src=A, dst=B) / udp(),
    "sctp": E / IP(src=A, dst=B) / SCTP(sport=1, dport=2) / SCTPChunkData(data=PAYLOAD),
    "echo": E / IP(src=A, dst=B) / ICMP() / Raw(PAYLOAD),
    "first fragment": E / IP(src=A, dst=B, flags="MF") / udp(),
    "tcp over ipv6": E / IPv6(src=A6, dst=B6) / tcp(options=OPTIONS),
    "udp over ipv6": E / IPv6(src=A6, dst=B6) / udp(),
    "echo over ipv6": E / IPv6(src=A6, dst=B6) / ICMPv6EchoRequest(data=PAYLOAD),
    "ipv6 extensions": E
    / IPv6(src=A6, dst=B6)
    / IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0" * 12)])
    / IPv6ExtHdrFragment(m=1)
    / tcp(),
    "vxlan": E
    / IP(src=A, dst=B)
    / UDP(sport=40000, dport=4789)
    / VXLAN(vni=7)
    / E
    / IP(src=A, dst=B)
    / tcp(options=OPTIONS),
    "vxlan of flannel": E
    / IP(src=A, dst=B)
    / UDP(sport=40000, dport=8472)
    / VXLAN(vni=1)
    / E
    / IP(src=A, dst=B)
    / udp(),
    "vxlan of weave": E
    / IP(src=A, dst=B)
    / UDP(sport=40000, dport=6784)
    / VXLAN(vni=1)
    / E
    / IPv6(src=A6, dst=B6)
    / tcp(),
    "vlan in vxlan": E
    / IP(src=A, dst=B)
    / UDP(sport=40000, dport=4789)
    / VXLAN(vni=7)
    / E
    / Dot1Q(vlan=5)
    / IP(src=A, dst=B)
    / tcp(),
    "geneve": E
    / IP(src=A, dst=B)
    / UDP(sport=40000, dport=6081)
    / GENEVE(vni=7, proto=0x6558, options=[GeneveOptions(data=b"12345678")])
    / E
    / IP(src=A, dst=B)
    / tcp(options=OPTIONS),
    "ip in geneve": E
    / IPv6(src=A6, dst=B6)
    / UDP(sport=40000, dport=6081)
    / GENEVE(vni=7, proto=0x0800)
    / IP(src=A, dst=B)
    / tcp(),
    "ipip": E / IP(src=A, dst=B) / IP(src=A, dst=B) / tcp(options=OPTIONS),
    "6in4": E / IP(src=A, dst=B) / IPv6(src=A6, dst=B6) / tcp(),
    "gre": E / IP(src=A, dst=B) / GRE(proto=0x0800) / IP(src=A, dst=B) / tcp(),
    "gre with all": E
    / IP(src=A, dst=B)
    / GRE(chksum_present=1, key_present=1, seqnum_present=1, proto=0x6558)
    / E
    / IP(src=A, dst=B)
    / tcp(),
    "qinq": E / Dot1Q(vlan=5, type=0x8100) / Dot1Q(vlan=6) / IP(src=A, dst=B) / tcp(),
}
WHOLE = {
    "dns": E / IP(src=A, dst=B) / UDP(sport=40000, dport=53) / QUERY,
    "dns answer": E / IP(src=A, dst=B) / UDP(sport=53, dport=40000) / QUERY,
    "dns over tcp": E / IP(src=A, dst=B) / TCP(sport=40000, dport=53) / Raw(bytes(QUERY)),
    "dns over ipv6": E / IPv6(src=A6, dst=B6) / UDP(sport=40000, dport=53) / QUERY,
    "dns in vxlan": E
    / IP(src=A, dst=B)
    / UDP(sport=40000, dport=8472)
    / VXLAN(vni=1)
    / E
    / IP(src=A, dst=B)
    / UDP(sport=53)
    / QUERY,
    "dns over tcp in geneve": E
    / IP(src=A, dst=B)
    / UDP(sport=40000, dport=6081)
    / GENEVE(proto=0x6558)
    / E
    / IP(src=A, dst=B)
    / TCP(dport=53)
    / Raw(bytes(QUERY)),
    "dns in ipip": E / IP(src=A, dst=B) / IP(src=A, dst=B) / UDP(dport=53) / QUERY,
    "arp": E / ARP(psrc=A, pdst=B),
    "neighbour solicitation": E / IPv6(src=A6, dst=B6) / ICMPv6ND_NS(tgt=B6) / Raw(b"\x01\x01\x02\0\0\0\0\x01"),
    "runt tcp": E / IP(src=A, dst=B, proto=6) / Raw(b"1234567"),
    "runt udp": E / IP(src=A, dst=B, proto=17) / Raw(b"123"),
    "runt ip": E / Raw(b"\x45\0\0\x14"),
    "ip header beyond the end": E / IP(src=A, dst=B, ihl=15, proto=6, len=20),
    "runt ipv6 extension": E / IPv6(src=A6, dst=B6, nh=0, plen=2) / Raw(b"\x06\x20"),
    "runt vxlan": E / IP(src=A, dst=B) / UDP(sport=40000, dport=4789) / Raw(b"\x08\0\0\0\0\0\x07\0abc"),
    "runt icmp": E / IP(src=A, dst=B, proto=1) / Raw(b"\x08"),
    "empty": E,
}
# Bytes behind the last header that is known.
OTHER = {
    "later fragment": (E / IP(src=A, dst=B, frag=100, proto=17) / Raw(PAYLOAD), 14 + 20),
    "icmp error": (E / IP(src=B, dst=A) / ICMP(type=3, code=1) / IP(src=A, dst=B) / tcp(), 14 + 20 + 8 + 20 + 8),
    "icmpv6 error": (E / IPv6(src=B6, dst=A6) / ICMPv6DestUnreach() / IPv6(src=A6, dst=B6) / udp(), 14 + 40 + 8 + 48),
    "unknown ethertype": (Ether(src=E.src, dst=E.dst, type=0x88B5) / Raw(PAYLOAD), 14 + 16),
    "unknown protocol": (E / IP(src=A, dst=B, proto=253) / Raw(PAYLOAD), 14 + 20 + 16),
    "wireguard": (E / IP(src=A, dst=B) / UDP(sport=51820, dport=51820) / Raw(PAYLOAD), 14 + 20 + 8 + 16),
    "no vxlan": (E / IP(src=A, dst=B) / UDP(sport=40000, dport=8472) / Raw(b"\0" * 200), 14 + 20 + 8),
    "tunnel in a tunnel": (E / IP(src=A, dst=B) / IP(src=A, dst=B) / IP(src=A, dst=B) / tcp(), 14 + 20 + 20 + 16),
}
KEPT = (
    {name: (bytes(packet), headers(packet)) for name, packet in HEADERS_ONLY.items()}
    | {name: (bytes(packet), len(packet)) for name, packet in WHOLE.items()}
    | {name: (bytes(packet), size) for name, (packet, size) in OTHER.items()}
)


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    made = Wire()
    yield made
    made.close()


@pytest.mark.parametrize("device", ["wire", "any"])
def test_the_kernel_keeps_headers_and_dns(wire: Wire, device: str, tmp_path: Path) -> None:
    with wire.sniffing(lambda handle: program(handle, Wanted()), device) as sniffer:
        wire.send([frame for frame, _ in KEPT.values()])
        found = read_all(sniffer, tmp_path / "x.pcap")
    expected = {name: (max(kept, 14), len(frame)) for name, (frame, kept) in KEPT.items()}
    if sniffer.link_type == LINUX_SLL2:
        # 20 bytes instead of Ethernet's 14; and the kernel strips the outer VLAN tag, which has no place in SLL2.
        expected = {name: (kept + 6, length + 6) for name, (kept, length) in expected.items()}
        expected["qinq"] = (expected["qinq"][0] - 4, expected["qinq"][1] - 4)
    assert {name: record[1:3] for name, record in zip(KEPT, found, strict=True)} == expected
    assert not any(PAYLOAD[:17] in record.data for record in found)


NEIGHBOURS = tuple(f"10.1.2.{last}" for last in range(3, 200, 2)) + tuple(f"fd00:1::{last:x}" for last in range(1, 90))
STRANGERS = tuple(f"10.{number}.{number * 7 % 256}.1" for number in range(2, 120)) + tuple(
    f"fd00:{number:x}::{number * 77:x}:1" for number in range(2, 60)
)
"""No two share a prefix."""


NEAR = ("10.1.2.0", "10.1.2.2", "10.1.2.4", "10.1.1.3", "10.1.3.3", "10.2.14.2", "0.0.0.0", "255.255.255.255")
NEAR += ("fd00:1::", "fd00:1::5a", "fd00:1:0:1::1", "fd00:1::1:0:1", "fd01:1::1", "fd00:2::9a:2", "::")


def between(first: str, second: str) -> list[bytes]:
    ip: Any = IPv6 if ":" in first else IP
    inner = ip(src=first, dst=second) / tcp()
    vxlan = E / IP(src="192.168.0.1", dst="192.168.0.2") / UDP(sport=40000, dport=4789) / VXLAN(vni=7) / E
    packets = [E / inner, vxlan / inner, E / Dot1Q(vlan=3) / Dot1Q(vlan=4) / inner]
    if ip is IP:
        packets += [E / ARP(psrc=first, pdst=second), vxlan / ARP(psrc=first, pdst=second)]
    return [bytes(packet) for packet in packets]


@pytest.fixture(scope="module")
def conversations() -> list[tuple[str, bytes]]:
    """Frames from and to addresses of pods, and others that nearly are."""
    addresses = {*NEIGHBOURS[::5], *STRANGERS[::7], NEIGHBOURS[0], STRANGERS[-1], *NEAR}
    found = []
    for address in sorted(addresses):
        other = "198.51.100.1" if "." in address else "2001:db8::1"
        found += [(address, frame) for frame in between(address, other) + between(other, address)]
    return found


@pytest.mark.parametrize("device", ["wire", "any"])
@pytest.mark.parametrize("pods", [NEIGHBOURS, STRANGERS, NEIGHBOURS + STRANGERS, NEIGHBOURS[:1], STRANGERS[-1:], ()])
def test_the_scope_is_these_pods_inside_the_overlay_too(
    wire: Wire, device: str, conversations: list[tuple[str, bytes]], pods: tuple[str, ...], tmp_path: Path
) -> None:
    expected = [frame for address, frame in conversations if address in pods]
    scope = Scope(1, pods)
    wanted = Wanted(headers_only=False)
    with wire.sniffing(lambda handle: program(handle, wanted, scope=scope), device) as sniffer:
        wire.send([frame for _, frame in conversations])
        found = read_all(sniffer, tmp_path / "x.pcap")
    if sniffer.link_type == LINUX_SLL2:
        strip = {frame[14:] if frame[12:14] != b"\x81\x00" else frame[18:] for frame in expected}
        assert len(found) == len(expected)
        assert {record.data[20:] for record in found} == strip
    else:
        assert [record.data for record in found] == expected


def test_more_pods_than_a_filter_can_tell_apart_are_refused() -> None:
    scope = Scope(1, tuple(f"fd00:{number * 7919 % 65536:x}:{number:x}::{number * 77:x}:1" for number in range(600)))
    with pytest.raises(FilterError, match="4096 at most"):
        program(Handle.dead(LINUX_SLL2), Wanted(), scope=scope)
