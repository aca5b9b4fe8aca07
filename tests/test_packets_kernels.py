"""The decode kernel against Scapy, which knows what it built, and against its naive twin on damaged frames."""

from __future__ import annotations

import ipaddress
import os
import random
import struct
from collections.abc import Sequence

import numpy as np
import pytest
from scapy.contrib.geneve import GENEVE
from scapy.contrib.mpls import MPLS
from scapy.layers.inet import (
    GRE,
    ICMP,
    IP,
    TCP,
    UDP,
    IPOption,
    IPOption_LSRR,
    IPOption_NOP,
    IPOption_RR,
    IPOption_SSRR,
)
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    IPv6ExtHdrSegmentRouting,
)
from scapy.layers.l2 import ARP, CookedLinux, CookedLinuxV2, Dot1AD, Dot1Q, Ether, Loopback
from scapy.layers.ppp import HDLC, PPP
from scapy.layers.sctp import SCTP
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from analysis import layout
from analysis.packets import VXLAN_PORTS, decode_packets
from tests import naive_decode

pytestmark = pytest.mark.kernel

JITTED = os.environ.get("NUMBA_DISABLE_JIT", "0") != "1"
PACKETS_EACH = 400 if JITTED else 40
MUTATIONS_EACH = 12 if JITTED else 2

SET_BY_FLOWS = {
    "flow", "flow_uid", "from_a", "from_orig", "is_copy", "starts_flow", "waits",
    "earlier_ip_bytes", "earlier_payload", "earlier_fragments",
}  # fmt: skip
TRANSPORT_FIELDS = {
    "tcp_seq", "tcp_ack", "tcp_flags", "tcp_window", "tcp_mss", "tcp_window_scale",
    "tcp_analyzable", "has_timestamps", "tsval", "tsecr", "sack_blocks", "icmp_type", "icmp_code",
}  # fmt: skip
COMPARED = [name for name in layout.PACKET.names if name not in SET_BY_FLOWS]


def decode(frames: Sequence[tuple[bytes, int]], link_type: int) -> np.ndarray:
    """PACKET[n] of (captured bytes, wire length) pairs; each frame lies between bytes that are not its own."""
    records = np.zeros(len(frames), layout.FRAME)
    data = bytearray(b"\xa5" * 7)
    for record, (frame, length) in zip(records, frames, strict=True):
        record["offset"], record["captured"], record["length"] = len(data), len(frame), length
        data += frame + b"\xa5" * 7
    return decode_packets(
        np.frombuffer(bytes(data), np.uint8).copy(),
        records,
        link_types=np.array([link_type], np.int64),
        interfaces=np.zeros(1, np.int64),
        vxlan_ports=(),
        segment=0,
        first_frame_number=1,
    )


def naive(frames: Sequence[tuple[bytes, int]], link_type: int) -> np.ndarray:
    packets = np.zeros(len(frames), layout.PACKET)
    offset = 7
    for index, (frame, length) in enumerate(frames):
        fields = naive_decode.decode(frame, length, link_type, VXLAN_PORTS)
        for name in ("payload_offset", "sack_offset", "quote_offset", "quote_end"):
            if fields.get(name, -1) >= 0:
                fields[name] += offset
        fields["frame_number"] = index + 1
        for name, value in fields.items():
            packets[name][index] = np.array(value).astype(layout.PACKET[name])
        offset += len(frame) + 7
    return packets


def assert_same(frames: Sequence[tuple[bytes, int]], link_type: int) -> None:
    got, expected = decode(frames, link_type), naive(frames, link_type)
    for name in COMPARED:
        different = np.flatnonzero(got[name] != expected[name])
        if len(different):
            index = different[0]
            frame, length = frames[index]
            pytest.fail(
                f"{name}: kernel {got[name][index]}, twin {expected[name][index]}; link type {link_type}, "
                f"wire {length}, captured {frame.hex()}"
            )


class Builder:
    """Random packets, and what a decoder must find in them: `expected` holds PACKET fields by name."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def build(self, link_type: int) -> tuple[bytes, dict[str, int]]:
        self.expected: dict[str, int] = {"malformed": 0, "vlan": -1, "vni": -1, "encapsulation": 0}
        self.tunnels: list[int] = []
        inner = self.network(depth=self.random.choice((0, 0, 0, 1, 1, 2)))
        frame = bytes(self.link(inner, link_type))
        shifted = [tunnel << 4 * position for position, tunnel in enumerate(self.tunnels)]
        self.expected["encapsulation"] = sum(shifted)
        self.expected["length"] = len(frame)
        return frame, self.expected

    def address4(self) -> str:
        return str(ipaddress.IPv4Address(self.random.randrange(1 << 24, 0xE0000000)))

    def address6(self) -> str:
        return str(ipaddress.IPv6Address(self.random.randrange(1 << 120, 1 << 127)))

    def note_addresses(self, packet: Packet, prefix: str = "") -> None:
        for end in ("src", "dst"):
            value = ipaddress.ip_address(getattr(packet, end))
            number = int(value) | (0xFFFF << 32 if value.version == 4 else 0)
            self.expected[f"{prefix}{end}_hi"] = number >> 64
            self.expected[f"{prefix}{end}_lo"] = number & (1 << 64) - 1

    def vlan(self, rest: Packet) -> Packet:
        if self.random.random() < 0.3:
            self.expected["vlan"] = vlan = self.random.randrange(1, 4095)
            rest = Dot1Q(vlan=vlan) / rest
            if self.random.random() < 0.5:
                rest = Dot1AD(vlan=7) / rest
        return rest

    def link(self, network: Packet, link_type: int) -> Packet:
        if link_type == layout.LINKTYPE_ETHERNET:
            return Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / self.labels(network)
        if link_type == layout.LINKTYPE_SLL:
            self.expected["direction"] = self.random.choice((layout.DIRECTION_IN, layout.DIRECTION_OUT))
            kind = 4 if self.expected["direction"] == layout.DIRECTION_OUT else 0
            payload = self.vlan(network)
            return CookedLinux(pkttype=kind, lladdrlen=6, proto=ETHERTYPES[type(payload)]) / payload
        if link_type == layout.LINKTYPE_SLL2:
            self.expected["direction"] = self.random.choice((layout.DIRECTION_IN, layout.DIRECTION_OUT))
            self.expected["ifindex"] = self.random.randrange(1, 1 << 31)
            kind = 4 if self.expected["direction"] == layout.DIRECTION_OUT else 0
            link = CookedLinuxV2(proto=ETHERTYPES[type(network)], ifindex=self.expected["ifindex"], pkttype=kind)
            return link / network
        if link_type == layout.LINKTYPE_NULL:
            return Loopback(type=2 if isinstance(network, IP) else self.random.choice((24, 28, 30))) / network
        if link_type == layout.LINKTYPE_LOOP:
            return Raw((2 if isinstance(network, IP) else 24).to_bytes(4, "big")) / network
        if link_type == layout.LINKTYPE_PPP:
            return PPP(proto=0x21 if isinstance(network, IP) else 0x57) / network
        if link_type == layout.LINKTYPE_CISCO_HDLC or (
            link_type == layout.LINKTYPE_PPP_HDLC and self.random.random() < 0.5
        ):
            cisco = Raw(struct.pack("!BBH", self.random.choice((0x0F, 0x8F)), 0, ETHERTYPES[type(network)]))
            return cisco / network
        if link_type == layout.LINKTYPE_PPP_HDLC:
            return HDLC() / PPP(proto=0x21 if isinstance(network, IP) else 0x57) / network
        if link_type == layout.LINKTYPE_NFLOG:
            return Raw(self.nflog(bytes(network), 2 if isinstance(network, IP) else 10))
        return network

    def nflog(self, payload: bytes, family: int) -> bytes:
        """The payload and some of what comes before it, in either byte order."""
        order = self.random.choice("<>")
        attributes = [(1, bytes(4)), (4, bytes(4)), (10, b"a rule\0"), (9, payload)]  # packet header, indev, prefix
        frame = bytes([family, 0, 0, 30])
        for kind, value in attributes[self.random.randrange(4) :]:
            frame += struct.pack(f"{order}HH", 4 + len(value), kind) + value
            frame += bytes(-len(value) % 4) if kind != 9 else b""
        return frame

    def labels(self, network: Packet) -> Packet:
        if self.random.random() < 0.2:
            self.tunnels.insert(0, layout.ENCAPSULATION_MPLS)
            labels = self.random.randrange(1, 4)
            for position in range(labels):
                network = MPLS(label=16 + position, s=int(position == 0)) / network
        return self.vlan(network)

    def network(self, depth: int) -> Packet:
        if depth:
            return self.tunnel(self.network(depth - 1))
        packet, header = self.ip(note=True)
        transport, length = self.transport(isinstance(packet, IPv6))
        fragment = self.random.random() < 0.15
        more = self.random.random() < 0.5
        offset = self.random.choice((0, 8, 1480)) if fragment else 0
        if isinstance(packet, IP):
            packet.frag, packet.flags = offset // 8, "MF" if fragment and more else 0
            packet.proto = self.expected["protocol"]
        elif fragment:
            ident = self.random.randrange(1 << 32)
            packet = packet / IPv6ExtHdrFragment(offset=offset // 8, m=int(more), id=ident)
            self.expected["ip_id"] = ident
            header += 8
        self.expected["fragment_offset"] = offset
        if offset:
            self.expected["fragment"] = layout.FRAGMENT_LATER if more else layout.FRAGMENT_LAST
            self.forget_transport(len(bytes(transport)))
        else:
            self.expected["fragment"] = layout.FRAGMENT_FIRST if fragment and more else layout.FRAGMENT_NONE
            self.expected["payload_length"] = self.expected["payload_captured"] = length
        self.expected["ip_header_length"] = header
        self.expected["ip_length"] = header + len(bytes(transport))
        return packet / transport

    def forget_transport(self, length: int) -> None:
        self.expected.pop("src_port", None)  # without has_ports they mean nothing
        self.expected.pop("dst_port", None)
        self.expected["has_ports"] = 0
        for name in self.expected.keys() & TRANSPORT_FIELDS:
            self.expected[name] = 255 if name == "tcp_window_scale" else 0
        self.expected["payload_length"] = self.expected["payload_captured"] = length

    def ip(self, *, note: bool) -> tuple[Packet, int]:
        """An IP header, and the length of it with its options or extension headers."""
        r = self.random
        if r.random() < 0.6:
            packet = IP(src=self.address4(), dst=self.address4(), id=r.randrange(1 << 16), ttl=r.randrange(1, 256))
            header = 20
            if r.random() < 0.2:
                packet.options = [IPOption(b"\x94\x04\x00\x00")] * (words := r.randrange(1, 4))
                header += 4 * words
            found = {"ip_version": 4, "ip_id": packet.id, "ttl": packet.ttl}
        else:
            packet = IPv6(src=self.address6(), dst=self.address6(), hlim=r.randrange(1, 256))
            found = {"ip_version": 6, "ip_id": -1, "ttl": packet.hlim}
            header = 40
            for extension in r.sample((IPv6ExtHdrHopByHop, IPv6ExtHdrDestOpt), r.choice((0, 0, 1, 2))):
                packet, header = packet / extension(), header + 8
        if note:
            self.note_addresses(packet)
            self.expected |= found
        return packet, header

    def transport(self, is_ipv6: bool) -> tuple[Packet, int]:
        r = self.random
        payload = r.randbytes(r.choice((0, 1, 11, 100)))
        ports = {"sport": r.randrange(7000, 8000), "dport": r.randrange(7000, 8000)}
        choice = r.choice(("tcp", "tcp", "udp", "sctp", "icmp"))
        if choice != "icmp":
            self.expected |= {"src_port": ports["sport"], "dst_port": ports["dport"], "has_ports": 1}
        if choice == "tcp":
            return self.tcp(ports, payload), len(payload)
        if choice == "udp":
            self.expected["protocol"] = layout.UDP
            return UDP(**ports) / payload, len(payload)
        if choice == "sctp":
            self.expected["protocol"] = layout.SCTP
            return SCTP(**ports) / payload, len(payload)
        if is_ipv6:
            self.expected |= {"protocol": layout.ICMPV6, "icmp_type": 128, "icmp_code": 0}
            return ICMPv6EchoRequest(data=payload), len(payload)
        self.expected |= {"protocol": layout.ICMP, "icmp_type": 3, "icmp_code": 1}
        quoted = IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=53, dport=4000)
        return ICMP(type=3, code=1) / quoted, len(bytes(quoted))

    def tcp(self, ports: dict[str, int], payload: bytes) -> Packet:
        r = self.random
        numbers = {"seq": r.randrange(1 << 32), "ack": r.randrange(1 << 32), "window": r.randrange(1 << 16)}
        flags = r.randrange(1 << 9)
        options = []
        if r.random() < 0.5:
            options += [("MSS", 1460), ("WScale", shift := r.randrange(15)), ("NOP", None)]
            self.expected |= {"tcp_mss": 1460, "tcp_window_scale": shift}
        if r.random() < 0.5:
            options += [("Timestamp", stamps := (r.randrange(1 << 32), r.randrange(1 << 32)))]
            self.expected |= {"has_timestamps": 1, "tsval": stamps[0], "tsecr": stamps[1]}
        if r.random() < 0.3:
            options += [("SAck", (1, 2, 3, 4))]
            self.expected["sack_blocks"] = 2
        self.expected |= {f"tcp_{name}": value for name, value in numbers.items()}
        self.expected |= {"protocol": layout.TCP, "tcp_flags": flags, "tcp_analyzable": 1}
        return TCP(**ports, **numbers, flags=flags, options=options) / payload

    def tunnel(self, inner: Packet) -> Packet:
        outer, _ = self.ip(note=False)
        self.note_addresses(outer, "outer_")
        is_4 = isinstance(outer, IP)
        ethernet = Ether(src="02:00:00:00:00:03", dst="02:00:00:00:00:04") / inner
        kind = self.random.choice(("vxlan", "geneve", "gre", "ip"))
        if kind == "ip":
            names = {(True, True): "IPIP", (True, False): "6IN4", (False, True): "4IN6", (False, False): "6IN6"}
            self.tunnels.insert(0, getattr(layout, "ENCAPSULATION_" + names[is_4, isinstance(inner, IP)]))
            return outer / inner
        self.tunnels.insert(0, getattr(layout, "ENCAPSULATION_" + kind.upper()))
        if kind == "gre":
            if self.random.random() < 0.5:
                return outer / GRE(proto=0x6558, key_present=1, key=9) / ethernet
            return outer / GRE(proto=0x0800 if isinstance(inner, IP) else 0x86DD) / inner
        vni = self.random.randrange(1 << 24)
        if self.expected["vni"] < 0:
            self.expected["vni"] = vni
        if kind == "vxlan":
            port = self.random.choice(VXLAN_PORTS)
            return outer / UDP(sport=4000, dport=port) / VXLAN(vni=vni, flags=8) / ethernet
        return outer / UDP(sport=4000, dport=6081) / GENEVE(vni=vni, proto=0x6558) / ethernet


ETHERTYPES = {IP: 0x0800, IPv6: 0x86DD, Dot1Q: 0x8100, Dot1AD: 0x88A8}
LINK_TYPES = (
    layout.LINKTYPE_ETHERNET,
    layout.LINKTYPE_SLL,
    layout.LINKTYPE_SLL2,
    layout.LINKTYPE_RAW,
    layout.LINKTYPE_NULL,
    layout.LINKTYPE_LOOP,
    layout.LINKTYPE_PPP,
    layout.LINKTYPE_PPP_HDLC,
    layout.LINKTYPE_CISCO_HDLC,
    layout.LINKTYPE_NFLOG,
)


@pytest.mark.parametrize("link_type", LINK_TYPES)
def test_every_field_of_a_packet_is_what_scapy_put_there(link_type: int) -> None:
    builder = Builder(link_type)
    built = [builder.build(link_type) for _ in range(PACKETS_EACH)]
    got = decode([(frame, len(frame)) for frame, _ in built], link_type)
    for packet, (frame, expected) in zip(got, built, strict=True):
        found = {name: int(packet[name]) for name in expected}
        assert found == expected, frame.hex()


def damaged(random_: random.Random, frame: bytes) -> tuple[bytes, int]:
    """A frame with some bytes changed, and then cut short by a snaplen or by the wire itself."""
    changed = bytearray(frame)
    for _ in range(random_.choice((0, 1, 1, 3, 10))):
        position = min(random_.randrange(len(changed)), random_.randrange(len(changed)))  # headers rather than payload
        flipped = changed[position] ^ 1 << random_.randrange(8)
        changed[position] = random_.choice((0, 255, random_.randrange(256), flipped))
    kept = random_.choice((len(changed), random_.randrange(len(changed) + 1)))
    wire = random_.choice((len(changed), kept, kept + random_.randrange(40)))
    return bytes(changed[:kept]), max(kept, wire)


@pytest.mark.parametrize("link_type", LINK_TYPES)
def test_damaged_packets_decode_as_in_the_naive_twin(link_type: int) -> None:
    builder, random_ = Builder(1000 + link_type), random.Random(link_type)
    frames = [builder.build(link_type)[0] for _ in range(PACKETS_EACH)]
    assert_same([damaged(random_, frame) for frame in frames for _ in range(MUTATIONS_EACH)], link_type)


@pytest.mark.parametrize("link_type", [*LINK_TYPES, layout.LINKTYPE_PPP_ETHER, 147])
def test_noise_decodes_as_in_the_naive_twin(link_type: int) -> None:
    random_ = random.Random(link_type)
    frames = [random_.randbytes(random_.randrange(80)) for _ in range(PACKETS_EACH)]
    assert_same([(frame, len(frame) + random_.choice((0, 0, 100))) for frame in frames], link_type)


SOURCE_ROUTES: list[tuple[Packet, str]] = [
    (IP(options=[IPOption_LSRR(routers=["9.9.9.1", "9.9.9.2"])]), "9.9.9.2"),
    (IP(options=[IPOption_NOP(), IPOption_SSRR(routers=["9.9.9.1", "9.9.9.2"], pointer=8)]), "9.9.9.2"),
    (IP(options=[IPOption_RR(routers=["9.9.9.5"]), IPOption_LSRR(routers=["9.9.9.1"])]), "9.9.9.1"),
    (IP(options=[IPOption_LSRR(routers=["9.9.9.1", "9.9.9.2"], pointer=12)]), "2.2.2.2"),
    (IP(options=[IPOption_LSRR(routers=["9.9.9.1", "9.9.9.2"], pointer=11)]), "2.2.2.2"),
    (IP(options=[IPOption_LSRR(routers=["9.9.9.1", "9.9.9.2"], pointer=3)]), "2.2.2.2"),
    (IP(options=[IPOption_LSRR(routers=[])]), "2.2.2.2"),
    (IP(options=[IPOption_RR(routers=["9.9.9.1"])]), "2.2.2.2"),
]
"""Headers, and the destination that tshark 4.0 tells of each."""


ROUTING_HEADERS: list[tuple[Packet, str]] = [
    (IPv6ExtHdrRouting(addresses=["9::1", "9::2"], segleft=2), "9::2"),
    (IPv6ExtHdrRouting(addresses=["9::1", "9::2"], segleft=1), "9::2"),
    (IPv6ExtHdrRouting(addresses=["9::1", "9::2"], segleft=0), "2::2"),
    (IPv6ExtHdrRouting(addresses=[], segleft=1), "2::2"),
    (IPv6ExtHdrRouting(type=2, addresses=["9::1"], segleft=1), "9::1"),
    (IPv6ExtHdrRouting(type=9, addresses=["9::1"], segleft=1), "2::2"),
    (IPv6ExtHdrSegmentRouting(addresses=["9::1", "9::2", "9::3"], segleft=1), "9::1"),
    (IPv6ExtHdrSegmentRouting(addresses=["9::1", "9::2"], segleft=0), "2::2"),
    (IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting(addresses=["9::1"], segleft=1) / IPv6ExtHdrDestOpt(), "9::1"),
]


def routed() -> list[bytes]:
    for header, _ in SOURCE_ROUTES:
        header.src, header.dst = "1.1.1.1", "2.2.2.2"
    headers = [header for header, _ in SOURCE_ROUTES]
    headers += [IPv6(src="1::1", dst="2::2") / header for header, _ in ROUTING_HEADERS]
    return [bytes(header / TCP(sport=1000, dport=80) / b"hello") for header in headers]


def test_a_packet_is_for_the_end_of_its_route() -> None:
    packets = decode([(frame, len(frame)) for frame in routed()], layout.LINKTYPE_RAW)
    found = [ipaddress.IPv6Address((int(hi) << 64) | int(lo)) for hi, lo in packets[["dst_hi", "dst_lo"]]]
    assert [str(address.ipv4_mapped or address) for address in found] == [
        address for _, address in SOURCE_ROUTES + ROUTING_HEADERS
    ]
    assert (packets["dst_port"] == 80).all()


def test_damaged_routes_decode_as_in_the_naive_twin() -> None:
    random_ = random.Random(1)
    assert_same([damaged(random_, frame) for frame in routed() for _ in range(PACKETS_EACH)], layout.LINKTYPE_RAW)


def test_padding_behind_pppoe_is_no_payload() -> None:
    """Also where IP's own length says otherwise: 46 bytes of which PPPoE has 40, as tshark sees it."""
    segment = bytes(IP(src="1.1.1.1", dst="2.2.2.2", len=46) / TCP(sport=1000, dport=80))
    frame = bytes(Ether(type=0x8864) / Raw(struct.pack("!BBHHH", 0x11, 0, 7, 42, 0x21) + segment + bytes(12)))
    packet = decode([(frame, len(frame))], layout.LINKTYPE_ETHERNET)[0]
    assert (packet["ip_length"], packet["payload_length"]) == (40, 0)
    assert packet["malformed"] == layout.MALFORMED_IP


def test_damaged_pppoe_decodes_as_in_the_naive_twin() -> None:
    random_ = random.Random(2)
    segment = bytes(IP(src="1.1.1.1", dst="2.2.2.2") / TCP(sport=1000, dport=80) / b"hello")
    frame = bytes(Ether(type=0x8864) / Raw(struct.pack("!BBHHH", 0x11, 0, 7, 47, 0x21) + segment + bytes(9)))
    assert_same([damaged(random_, frame) for _ in range(10 * PACKETS_EACH)], layout.LINKTYPE_ETHERNET)


SWITCH_TAGS = {
    "a security group": ("8909 01010001 0064", 0),
    "a security group and a VLAN": ("8909 01010001 0064 8100 0005", 5),
    "a 64-bit timestamp": ("d28b 0001 0010 5ceeed57384f59c8", 0),
    "a 64-bit timestamp in UTC and a VLAN": ("d28b 0001 0110 5ceeed57384f59c8 8100 0005", 5),
    "a VLAN and a 48-bit timestamp": ("8100 0005 d28b 0001 0020 ed57384f59c8", 5),
    "a 48-bit timestamp in UTC": ("d28b 0001 0120 ed57384f59c8", 0),
}
"""What stands between MAC addresses and Ethertype, and the VLAN. tshark 4.0 tells the same of each."""


@pytest.mark.parametrize(("tags", "vlan"), SWITCH_TAGS.values(), ids=SWITCH_TAGS)
def test_what_switches_add_is_skipped(tags: str, vlan: int) -> None:
    segment = bytes(IP(src="1.1.1.1", dst="2.2.2.2") / TCP(sport=1000, dport=80) / b"hello")
    frame = bytes(12) + bytes.fromhex(tags) + b"\x08\x00" + segment
    (packet,) = decode([(frame, len(frame))], layout.LINKTYPE_ETHERNET)
    assert packet[["src_port", "dst_port", "payload_length"]].tolist() == (1000, 80, 5)
    assert packet["vlan"] == (vlan or -1)
    random_ = random.Random(3)
    assert_same([damaged(random_, frame) for _ in range(PACKETS_EACH)], layout.LINKTYPE_ETHERNET)
    assert_same([(frame[:size], len(frame)) for size in range(len(frame))], layout.LINKTYPE_ETHERNET)


def test_an_arista_header_of_another_kind_is_not_followed() -> None:
    frames = [bytes(12) + bytes.fromhex(f"d28b {kind} {'00' * 40}") for kind in ("0003 0010", "0001 0030", "cafe 0001")]
    got = decode([(frame, len(frame)) for frame in frames], layout.LINKTYPE_ETHERNET)
    assert got["ip_version"].tolist() == [0, 0, 0]


def test_arp_is_arp_also_behind_a_vlan_tag() -> None:
    frames = [bytes(Ether() / ARP()), bytes(Ether() / Dot1Q(vlan=5) / ARP())]
    got = decode([(frame, len(frame)) for frame in frames], layout.LINKTYPE_ETHERNET)
    assert got["network"].tolist() == [layout.NETWORK_ARP] * 2
    assert got["ip_version"].tolist() == [0, 0]


def test_an_ip_length_of_zero_is_the_length_of_the_frame() -> None:
    """GSO and BIG TCP packets are longer than IPv4's length field can say."""
    frame = bytearray(bytes(Ether() / IP(src="10.0.0.1", dst="10.0.0.2") / TCP() / bytes(100)))
    frame[16:18] = b"\0\0"
    (packet,) = decode([(bytes(frame), 14 + 40 + 70_000)], layout.LINKTYPE_ETHERNET)
    assert (packet["payload_length"], packet["payload_captured"]) == (70_000, 100)
    assert packet["malformed"] == 0


def test_ethernet_padding_is_no_payload() -> None:
    frame = bytes(Ether() / IP(src="10.0.0.1", dst="10.0.0.2") / TCP(flags="A")).ljust(60, b"\0")
    (packet,) = decode([(frame, 60)], layout.LINKTYPE_ETHERNET)
    assert (packet["payload_length"], packet["payload_captured"], packet["ip_length"]) == (0, 0, 40)


@pytest.mark.parametrize(("family", "version"), [(2, 4), (10, 6), (7, 0)])
def test_netfilter_logs_tell_ipv4_from_ipv6_by_their_family(family: int, version: int) -> None:
    """7: of a bridge."""
    network = IP() / UDP() if family != 10 else IPv6() / UDP()
    frame = bytes([family, 0, 0, 0]) + struct.pack("<HH", 4 + len(network), 9) + bytes(network)
    (packet,) = decode([(frame, len(frame))], layout.LINKTYPE_NFLOG)
    assert (packet["ip_version"], packet["malformed"], packet["vlan"]) == (version, 0, -1)
