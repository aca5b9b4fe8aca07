"""One frame decoded slowly and plainly with struct: the twin of packets_kernels.

Every header is read through a `Rest`, which raises `CutError` where the snaplen left nothing; that ends the decoding,
and what was found so far stands. A header that the wire itself had no room for is malformed.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Collection
from dataclasses import dataclass

from analysis import layout

MOST_LAYERS = 16
IPV4, ARP, IPV6, TEB = 0x0800, 0x0806, 0x86DD, 0x6558
VLAN_TAGS = {0x8100, 0x88A8, 0x9100, 0x9200}
MPLS = {0x8847, 0x8848}
PPPOE, PPP = 0x8864, 0x880B
ANY_IP = -2
IPV6_OPTIONS = {0, 43, 60, 135, 139, 140}

Fields = dict[str, int]


class CutError(Exception):
    """The captured bytes end here."""


class UndecodedLinkError(Exception):
    """A link type that podtap counts, and does not decode."""


class StopError(Exception):
    """Nothing that could be followed comes here."""


@dataclass
class Rest:
    """What is left of a frame: `wire` bytes on the wire, of which those before `end` were captured."""

    data: bytes
    at: int
    end: int
    wire: int

    def number(self, format_: str, offset: int = 0) -> int:
        size = struct.calcsize("!" + format_)
        if self.at + offset + size > self.end:
            raise CutError
        return int.from_bytes(self.data[self.at + offset : self.at + offset + size], "big")

    def need(self, size: int) -> None:
        if self.at + size > self.end:
            raise CutError

    def after(self, size: int) -> Rest:
        return Rest(self.data, self.at + size, self.end, self.wire - size)

    def captured(self) -> int:
        return max(0, min(self.end - self.at, self.wire))


def decode(frame: bytes, wire_length: int, link_type: int, vxlan_ports: Collection[int]) -> Fields:
    """Fields of the PACKET record by name; offsets count from the frame's first byte."""
    packet: Fields = {
        "length": wire_length, "ip_id": -1, "vni": -1, "vlan": -1, "ifindex": -1, "quote_offset": -1,
        "tcp_window_scale": 255,
    }  # fmt: skip
    rest = Rest(frame, 0, len(frame), wire_length)
    network = layout.NETWORK_OTHER
    try:
        ethertype, rest = _link(packet, rest, link_type)
    except CutError:
        if len(frame) >= wire_length:
            packet["malformed"] = layout.MALFORMED_LINK
    except UndecodedLinkError:
        network = layout.NETWORK_SKIPPED
    except StopError:
        pass
    else:
        if ethertype == ARP:
            network = layout.NETWORK_ARP
        with contextlib.suppress(CutError, StopError):
            _network(packet, ethertype, rest, vxlan_ports)
    packet["network"] = layout.NETWORK_IP if packet.get("ip_version") else network
    return packet


# --- link layers -----------------------------------------------------------------------------------------------------


def _link(packet: Fields, rest: Rest, link_type: int) -> tuple[int, Rest]:
    if link_type == layout.LINKTYPE_ETHERNET:
        rest.need(14)
        packet["l2_source"] = int.from_bytes(rest.data[6:12], "big")
        return _ethernet(packet, rest)
    if link_type == layout.LINKTYPE_SLL:
        rest.need(16)
        packet["direction"] = layout.DIRECTION_OUT if rest.number("H") == 4 else layout.DIRECTION_IN
        packet["l2_source"] = rest.number("Q", 6)
        return _tags(packet, rest.number("H", 14), rest.after(16))
    if link_type == layout.LINKTYPE_SLL2:
        rest.need(20)
        packet["ifindex"] = rest.number("I", 4) & 0x7FFFFFFF  # -1 means that there is none
        packet["direction"] = layout.DIRECTION_OUT if rest.number("B", 10) == 4 else layout.DIRECTION_IN
        packet["l2_source"] = rest.number("Q", 12)
        return _tags(packet, rest.number("H"), rest.after(20))
    if link_type in (layout.LINKTYPE_NULL, layout.LINKTYPE_LOOP):
        family = rest.number("I")
        if family > 0xFFFF:
            family = int.from_bytes(rest.data[:2], "little")
        if family == 2:
            return IPV4, rest.after(4)
        if family in (10, 24, 28, 30):
            return IPV6, rest.after(4)
        if len(rest.data) >= rest.wire:
            packet["malformed"] = layout.MALFORMED_LINK
        raise StopError
    if link_type in (layout.LINKTYPE_PPP, layout.LINKTYPE_PPP_HDLC, layout.LINKTYPE_CISCO_HDLC):
        if rest.number("B") in (0x0F, 0x8F):
            rest.need(4)
            return rest.number("H", 2), rest.after(4)
        if link_type == layout.LINKTYPE_CISCO_HDLC:
            raise CutError
        return _ppp(rest)
    if link_type == layout.LINKTYPE_PPP_ETHER:
        return _ppp(rest.after(6))
    if link_type in (
        layout.LINKTYPE_RAW, layout.LINKTYPE_RAW_BSD, layout.LINKTYPE_RAW_OPENBSD, layout.LINKTYPE_IPV4,
        layout.LINKTYPE_IPV6,
    ):  # fmt: skip
        return ANY_IP, rest
    if link_type == layout.LINKTYPE_NFLOG:
        return _nflog(rest)
    raise UndecodedLinkError(link_type)


def _nflog(rest: Rest) -> tuple[int, Rest]:
    rest.need(8)
    family, order = rest.number("B"), "little" if rest.number("B", 7) == 0 else "big"
    attribute = rest.after(4)
    while attribute.at + 4 <= attribute.end:
        size, kind = (int.from_bytes(attribute.number("H", at).to_bytes(2, "big"), order) for at in (0, 2))
        if kind == 9:
            if family not in (2, 10):
                raise StopError
            return {2: IPV4, 10: IPV6}[family], attribute.after(4)
        if size < 4:
            raise CutError
        attribute = attribute.after(size + -size % 4)
    raise StopError


def _tags(packet: Fields, ethertype: int, rest: Rest) -> tuple[int, Rest]:
    try:
        if ethertype in VLAN_TAGS:
            following = rest.number("H", 2), rest.after(4)
            packet["vlan"] = rest.number("H") & 0x0FFF
        elif ethertype == 0x8909:
            following = rest.number("H", 6), rest.after(8)
        elif ethertype == 0xD28B and rest.number("H") == 1:
            size = {0x0010: 8, 0x0110: 8, 0x0020: 6, 0x0120: 6}[rest.number("H", 2)]
            following = rest.number("H", 4 + size), rest.after(6 + size)
        else:
            return ethertype, rest
    except (CutError, KeyError):
        return ethertype, rest
    return _tags(packet, *following)


def _ethernet(packet: Fields, rest: Rest) -> tuple[int, Rest]:
    rest.need(14)
    ethertype, rest = _tags(packet, rest.number("H", 12), rest.after(14))
    if ethertype >= 0x0600:
        return ethertype, rest
    try:
        if rest.number("I") == 0xAAAA0300 and rest.number("H", 4) == 0:  # LLC and SNAP
            return rest.number("H", 6), rest.after(8)
    except CutError:
        pass
    raise StopError


def _ppp(rest: Rest) -> tuple[int, Rest]:
    if rest.at + 2 <= rest.end and rest.number("H") == 0xFF03:
        rest = rest.after(2)
    rest.need(2)
    size = 1 if rest.number("B") & 1 else 2
    protocol = rest.number("B" if size == 1 else "H")
    if protocol not in (0x21, 0x57, 0x281):
        raise StopError
    return {0x21: IPV4, 0x57: IPV6, 0x281: 0x8847}[protocol], rest.after(size)


# --- network layers --------------------------------------------------------------------------------------------------


def _network(packet: Fields, ethertype: int, rest: Rest, vxlan_ports: Collection[int]) -> None:
    for _ in range(MOST_LAYERS):
        if ethertype == TEB:
            ethertype, rest = _ethernet(packet, rest)
        if ethertype == PPPOE:
            if rest.at + 6 <= rest.end:
                rest.wire = min(rest.wire, 6 + rest.number("H", 4))
            ethertype, rest = _ppp(rest.after(6))
        elif ethertype == PPP:
            ethertype, rest = _ppp(rest)
        if ethertype in MPLS:
            ethertype, rest = _mpls(packet, rest)
            if ethertype == TEB:
                continue
        if ethertype not in (IPV4, IPV6, ANY_IP):
            raise StopError
        expected = {IPV4: 4, IPV6: 6, ANY_IP: None}[ethertype]
        version = expected if expected and rest.at >= rest.end else rest.number("B") >> 4
        if version not in (4, 6) or (expected and version != expected):
            packet["malformed"] = layout.MALFORMED_IP
            raise StopError
        protocol, rest = (_ipv4 if version == 4 else _ipv6)(packet, rest)
        packet["has_ports"] = 0
        ethertype, rest = _transport(packet, protocol, rest, vxlan_ports)
    packet["malformed"] = layout.MALFORMED_TOO_DEEP


def _malformed(packet: Fields, kind: int) -> StopError:
    packet["malformed"] = kind
    return StopError()


def _mpls(packet: Fields, rest: Rest) -> tuple[int, Rest]:
    _encapsulate(packet, layout.ENCAPSULATION_MPLS)
    for _ in range(MOST_LAYERS):
        if rest.wire < 4:
            raise _malformed(packet, layout.MALFORMED_MPLS)
        label, rest = rest.number("I"), rest.after(4)
        if label >> 8 & 1:
            break
    nibble = rest.number("B") >> 4
    if nibble in (4, 6):
        return ANY_IP, rest
    if nibble == 0:  # a pseudowire's control word
        return TEB, rest.after(4)
    raise StopError


def _fragment(packet: Fields, offset: int, more: bool) -> None:
    packet["fragment_offset"] = offset
    if offset:
        packet["fragment"] = layout.FRAGMENT_LATER if more else layout.FRAGMENT_LAST
    else:
        packet["fragment"] = layout.FRAGMENT_FIRST if more else layout.FRAGMENT_NONE


def _ipv4(packet: Fields, rest: Rest) -> tuple[int, Rest]:
    if rest.wire < 20:
        raise _malformed(packet, layout.MALFORMED_IP)
    rest.need(20)
    header = (rest.number("B") & 15) * 4
    total = rest.number("H", 2) or rest.wire
    if header < 20 or total < header:
        raise _malformed(packet, layout.MALFORMED_IP)
    if total > rest.wire:
        packet["malformed"] = layout.MALFORMED_IP
        total = rest.wire
    fragment = rest.number("H", 6)
    _fragment(packet, (fragment & 0x1FFF) * 8, bool(fragment & 0x2000))
    packet |= {
        "ip_version": 4, "ip_header_length": header, "ip_length": total, "ttl": rest.number("B", 8),
        "ip_id": rest.number("H", 4), "protocol": rest.number("B", 9),
        "src_hi": 0, "src_lo": 0xFFFF << 32 | rest.number("I", 12),
        "dst_hi": 0, "dst_lo": 0xFFFF << 32 | rest.number("I", 16),
    }  # fmt: skip
    options = rest.data[rest.at + 20 : min(rest.at + header, rest.end)]
    while len(options) >= 3 and options[0]:
        size = options[1] if options[0] != 1 else 1
        if size < (2 if options[0] != 1 else 1) or size > len(options):
            break
        if options[0] in (131, 137) and 4 <= options[2] <= size - 3:
            packet["dst_lo"] = 0xFFFF << 32 | int.from_bytes(options[size - 4 : size], "big")
            break
        options = options[size:]
    rest.wire = total
    return packet["protocol"], rest.after(header)


def _ipv6(packet: Fields, rest: Rest) -> tuple[int, Rest]:
    if rest.wire < 40:
        raise _malformed(packet, layout.MALFORMED_IP)
    rest.need(40)
    payload, protocol = rest.number("H", 4), rest.number("B", 6)
    if payload == 0 and protocol != 59:
        payload = rest.wire - 40
    if payload > rest.wire - 40:
        packet["malformed"] = layout.MALFORMED_IP
        payload = rest.wire - 40
    packet |= {
        "ip_version": 6, "ip_length": payload + 40, "ttl": rest.number("B", 7), "ip_id": -1,
        "fragment": layout.FRAGMENT_NONE, "fragment_offset": 0,
        "src_hi": rest.number("Q", 8), "src_lo": rest.number("Q", 16),
        "dst_hi": rest.number("Q", 24), "dst_lo": rest.number("Q", 32),
    }  # fmt: skip
    begin = rest.at
    rest = rest.after(40)
    rest.wire = payload
    protocol, rest = _ipv6_extensions(packet, protocol, rest)
    packet |= {"ip_header_length": min(rest.at - begin, 255), "protocol": protocol}
    return protocol, rest


def _ipv6_extensions(packet: Fields, protocol: int, rest: Rest) -> tuple[int, Rest]:
    for _ in range(MOST_LAYERS):
        if protocol not in IPV6_OPTIONS | {44} or packet["fragment_offset"] or rest.at + 8 > rest.end:
            break
        size = 8
        if protocol == 44:
            field = rest.number("H", 2)
            _fragment(packet, field & 0xFFF8, bool(field & 1))
            packet["ip_id"] = rest.number("I", 4)
        else:
            size = (rest.number("B", 1) + 1) * 8
        if size > rest.wire:
            packet["malformed"] = layout.MALFORMED_IPV6_EXTENSION
            break
        if protocol == 43 and rest.number("B", 3):
            at = {0: 8 + 16 * ((size - 8) // 16 - 1), 2: 8, 4: 8}.get(rest.number("B", 2))
            if at is not None and size >= 24 and rest.at + at + 16 <= rest.end:
                packet |= {"dst_hi": rest.number("Q", at), "dst_lo": rest.number("Q", at + 8)}
        protocol, rest = rest.number("B"), rest.after(size)
    return protocol, rest


# --- transport and tunnels -------------------------------------------------------------------------------------------


def _encapsulate(packet: Fields, encapsulation: int) -> None:
    shift = 0
    while shift < 28 and packet.get("encapsulation", 0) >> shift & 15:
        shift += 4
    packet["encapsulation"] = packet.get("encapsulation", 0) | encapsulation << shift


def _tunnel(packet: Fields, encapsulation: int) -> None:
    ends = ("src_hi", "src_lo", "dst_hi", "dst_lo")
    if not any(packet.get("outer_" + end) for end in ends):
        packet |= {"outer_" + end: packet[end] for end in ends}
    _encapsulate(packet, encapsulation)


def _payload(packet: Fields, rest: Rest) -> None:
    packet |= {"payload_length": rest.wire, "payload_offset": rest.at, "payload_captured": rest.captured()}


def _ports(packet: Fields, rest: Rest) -> None:
    rest.need(4)
    packet |= {"src_port": rest.number("H"), "dst_port": rest.number("H", 2), "has_ports": 1}


def _transport(packet: Fields, protocol: int, rest: Rest, vxlan_ports: Collection[int]) -> tuple[int, Rest]:
    _payload(packet, rest)
    if packet["fragment_offset"]:
        raise StopError
    if protocol == layout.AH and rest.wire >= 12 and rest.at + 12 <= rest.end:
        size = (rest.number("B", 1) + 2) * 4
        if size > rest.wire:
            raise _malformed(packet, layout.MALFORMED_IP)
        protocol = packet["protocol"] = rest.number("B")
        rest = rest.after(size)
    if protocol == layout.TCP:
        _tcp(packet, rest)
    elif protocol == layout.UDP:
        return _udp(packet, rest, vxlan_ports)
    elif protocol in (layout.ICMP, layout.ICMPV6):
        _icmp(packet, rest, protocol)
    elif protocol == layout.SCTP:
        if rest.wire < 12:
            raise _malformed(packet, layout.MALFORMED_SCTP)
        _ports(packet, rest)
        packet |= {"payload_length": rest.wire - 12, "payload_offset": rest.at + 12}
        packet["payload_captured"] = max(0, rest.captured() - 12)
    elif protocol == layout.GRE:
        return _gre(packet, rest)
    elif protocol in (layout.IPIP, layout.IPV6):
        outer_is_4 = packet["ip_version"] == 4
        if protocol == layout.IPIP:
            _tunnel(packet, layout.ENCAPSULATION_IPIP if outer_is_4 else layout.ENCAPSULATION_4IN6)
            return IPV4, rest
        _tunnel(packet, layout.ENCAPSULATION_6IN4 if outer_is_4 else layout.ENCAPSULATION_6IN6)
        return IPV6, rest
    elif protocol == layout.ESP:
        _encapsulate(packet, layout.ENCAPSULATION_ESP)
    raise StopError


def _tcp(packet: Fields, rest: Rest) -> None:
    if rest.wire < 20:
        packet["malformed"] = layout.MALFORMED_TCP
        if rest.wire >= 4:
            _ports(packet, rest)
        raise StopError
    _ports(packet, rest)
    rest.need(20)
    word = rest.number("H", 12)
    packet |= {
        "tcp_seq": rest.number("I", 4), "tcp_ack": rest.number("I", 8), "tcp_flags": word & 0x0FFF,
        "tcp_window": rest.number("H", 14),
    }  # fmt: skip
    header = (word >> 12) * 4
    if header < 20 or header > rest.wire:
        raise _malformed(packet, layout.MALFORMED_TCP)
    is_cut = rest.captured() < header
    packet |= {"tcp_analyzable": layout.TCP_CUT if is_cut else layout.TCP_WHOLE}
    packet |= {"payload_length": rest.wire - header, "payload_offset": rest.at + header}
    packet["payload_captured"] = max(0, rest.captured() - header)
    options = Rest(rest.data, rest.at + 20, min(rest.at + header, rest.end), header - 20)
    _tcp_options(packet, options)


def _tcp_options(packet: Fields, rest: Rest) -> None:
    while True:
        kind = rest.number("B")
        if kind == 0:
            return
        if kind == 1:
            rest = rest.after(1)
            continue
        size = rest.number("B", 1)
        if size < 2:
            raise _malformed(packet, layout.MALFORMED_TCP_OPTIONS)
        rest.need(size)
        if (kind, size) == (8, 10):
            packet |= {"has_timestamps": 1, "tsval": rest.number("I", 2), "tsecr": rest.number("I", 6)}
        elif kind == 5 and size >= 10:
            packet |= {"sack_offset": rest.at + 2, "sack_blocks": (size - 2) // 8}
        elif (kind, size) == (2, 4):
            packet["tcp_mss"] = rest.number("H", 2)
        elif (kind, size) == (3, 3):
            packet["tcp_window_scale"] = min(rest.number("B", 2), 14)
        rest = rest.after(size)


def _icmp(packet: Fields, rest: Rest, protocol: int) -> None:
    if rest.wire < 4:
        raise _malformed(packet, layout.MALFORMED_ICMP)
    rest.need(2)
    kind = rest.number("B")
    packet |= {"icmp_type": kind, "icmp_code": rest.number("B", 1), "payload_offset": rest.at + 8}
    packet |= {"payload_length": max(0, rest.wire - 8), "payload_captured": max(0, rest.captured() - 8)}
    errors = {1, 2, 3, 4} if protocol == layout.ICMPV6 else {3, 4, 5, 11, 12}
    if kind in errors and rest.at + 28 <= rest.end:
        packet |= {"quote_offset": rest.at + 8, "quote_end": min(rest.end, rest.at + rest.wire)}


def _udp(packet: Fields, rest: Rest, vxlan_ports: Collection[int]) -> tuple[int, Rest]:
    if rest.wire < 8:
        packet["malformed"] = layout.MALFORMED_UDP
        if rest.wire >= 4:
            _ports(packet, rest)
        raise StopError
    _ports(packet, rest)
    rest.need(8)
    length = rest.number("H", 4) or rest.wire
    if length < 8 or (length > rest.wire and packet["fragment"] == layout.FRAGMENT_NONE):
        packet["malformed"] = layout.MALFORMED_UDP
        length = rest.wire
    rest.wire = min(length, rest.wire)
    rest = rest.after(8)
    _payload(packet, rest)
    if packet["dst_port"] in vxlan_ports:
        return _vxlan(packet, rest)
    if packet["dst_port"] == 6081:
        return _geneve(packet, rest)
    ports = {packet["src_port"], packet["dst_port"]}
    if ports & {51820, 51821, 51871} and _is_wireguard(rest):
        _encapsulate(packet, layout.ENCAPSULATION_WIREGUARD)
    elif 4500 in ports and rest.wire > 4 and rest.number("I"):
        _encapsulate(packet, layout.ENCAPSULATION_ESP)
    raise StopError


def _is_wireguard(rest: Rest) -> bool:
    kind = int.from_bytes(rest.number("I").to_bytes(4, "big"), "little")
    return rest.wire == {1: 148, 2: 92, 3: 64}.get(kind) or (kind == 4 and rest.wire >= 32 and rest.wire % 16 == 0)


def _vxlan(packet: Fields, rest: Rest) -> tuple[int, Rest]:
    if rest.wire < 8:
        raise _malformed(packet, layout.MALFORMED_VXLAN)
    rest.need(8)
    if not rest.number("B") & 0x08:
        raise StopError
    _tunnel(packet, layout.ENCAPSULATION_VXLAN)
    packet["vni"] = rest.number("I", 4) >> 8
    return TEB, rest.after(8)


def _geneve(packet: Fields, rest: Rest) -> tuple[int, Rest]:
    if rest.wire < 8:
        raise _malformed(packet, layout.MALFORMED_GENEVE)
    rest.need(8)
    if rest.number("B") >> 6:
        raise StopError
    size = 8 + (rest.number("B") & 63) * 4
    if size > rest.wire:
        raise _malformed(packet, layout.MALFORMED_GENEVE)
    _tunnel(packet, layout.ENCAPSULATION_GENEVE)
    packet["vni"] = rest.number("I", 4) >> 8
    return rest.number("H", 2), rest.after(size)


def _gre(packet: Fields, rest: Rest) -> tuple[int, Rest]:
    if rest.wire < 4:
        raise _malformed(packet, layout.MALFORMED_GRE)
    flags, protocol = rest.number("H"), rest.number("H", 2)
    if flags & 0x4000 or flags & 7 > 1:
        raise StopError
    size = 4 + sum(4 for flag in (0x8000, 0x2000, 0x1000) if flags & flag)
    if flags & 7 == 1 and flags & 0x0080:  # PPTP's acknowledgment number
        size += 4
    if protocol == 0x88BE:  # ERSPAN: type I has neither sequence number nor header
        size += 8 if flags & 0x1000 else 0
        protocol = TEB
    elif protocol == 0x22EB:
        size += 12
        protocol = TEB
    if size > rest.wire:
        raise _malformed(packet, layout.MALFORMED_GRE)
    _tunnel(packet, layout.ENCAPSULATION_GRE)
    return protocol, rest.after(size)
