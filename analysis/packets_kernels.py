"""Decode loops: FRAME records and their bytes in, PACKET records out. What they mean: packets.py.

Offsets: `at` is where the next header begins, `end` where the captured bytes end, `wire` how many bytes the wire had
from `at` on. A header that the snaplen cut off is not malformed, one that the wire itself had no room for is.
"""

from __future__ import annotations

import numpy as np

from analysis.kernel_compiler import hot, inner, kernel
from analysis.layout import (
    AH,
    COUNTED_ARP,
    COUNTED_CUT,
    COUNTED_FIRST_TS,
    COUNTED_LAST_TS,
    COUNTED_MALFORMED,
    COUNTED_NOT_IP,
    COUNTED_OPAQUE,
    COUNTED_PACKETS,
    COUNTED_SKIPPED,
    DIRECTION_IN,
    DIRECTION_OUT,
    ENCAPSULATION_4IN6,
    ENCAPSULATION_6IN4,
    ENCAPSULATION_6IN6,
    ENCAPSULATION_ESP,
    ENCAPSULATION_GENEVE,
    ENCAPSULATION_GRE,
    ENCAPSULATION_IPIP,
    ENCAPSULATION_MPLS,
    ENCAPSULATION_VXLAN,
    ENCAPSULATION_WIREGUARD,
    ESP,
    FRAGMENT_FIRST,
    FRAGMENT_LAST,
    FRAGMENT_LATER,
    FRAGMENT_NONE,
    GRE,
    ICMP,
    ICMPV6,
    IPIP,
    IPV6,
    LINKTYPE_CISCO_HDLC,
    LINKTYPE_ETHERNET,
    LINKTYPE_IPV4,
    LINKTYPE_IPV6,
    LINKTYPE_LOOP,
    LINKTYPE_NFLOG,
    LINKTYPE_NULL,
    LINKTYPE_PPP,
    LINKTYPE_PPP_ETHER,
    LINKTYPE_PPP_HDLC,
    LINKTYPE_RAW,
    LINKTYPE_RAW_BSD,
    LINKTYPE_RAW_OPENBSD,
    LINKTYPE_SLL,
    LINKTYPE_SLL2,
    MALFORMED_GENEVE,
    MALFORMED_GRE,
    MALFORMED_ICMP,
    MALFORMED_IP,
    MALFORMED_IPV6_EXTENSION,
    MALFORMED_LINK,
    MALFORMED_MPLS,
    MALFORMED_SCTP,
    MALFORMED_TCP,
    MALFORMED_TCP_OPTIONS,
    MALFORMED_TOO_DEEP,
    MALFORMED_UDP,
    MALFORMED_VXLAN,
    NETWORK_ARP,
    NETWORK_OTHER,
    NETWORK_SKIPPED,
    SCTP,
    TCP,
    TCP_CUT,
    TCP_WHOLE,
    UDP,
)
from analysis.loads import be16, be32, be64

ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_ARP = 0x0806
ETHERTYPE_TEB = 0x6558  # transparent Ethernet bridging: an Ethernet frame follows
ETHERTYPE_IPV6 = 0x86DD
ETHERTYPE_PPP = 0x880B
ETHERTYPE_MPLS = 0x8847
ETHERTYPE_MPLS_MULTICAST = 0x8848
ETHERTYPE_PPPOE = 0x8864
ETHERTYPE_ERSPAN = 0x88BE
ETHERTYPE_ERSPAN3 = 0x22EB

# What `decode_link` and `decode_network` hand to each other beside real Ethertypes.
NOTHING = -1  # the frame ends here, or its rest can't be read
ANY_IP = -2  # the version nibble decides

NOP_NOP_TIMESTAMPS = 0x0101080A  # the options of most TCP packets: two of padding, and these, which are 10 bytes

CISCO_UNICAST = 0x0F  # Cisco's HDLC (RFC 1547, 4.3.1): such an address, a zero, an Ethertype
CISCO_MULTICAST = 0x8F

MOST_LAYERS = 16
NFLOG_PAYLOAD = 9
V4_MAPPED = np.uint64(0xFFFF00000000)


# --- link layers -----------------------------------------------------------------------------------------------------


@inner
def decode_vlan_tags(data, p, ethertype, at, end):
    """Skips 802.1Q, 802.1ad and older QinQ tags; keeps the innermost identifier."""
    while (ethertype == 0x8100 or ethertype == 0x88A8 or ethertype == 0x9100 or ethertype == 0x9200) and at + 4 <= end:
        p["vlan"] = be16(data, at) & 0x0FFF
        ethertype = be16(data, at + 2)
        at += 4
    return ethertype, at


@inner
def decode_ethernet(data, p, at, end):
    """Returns the Ethertype of what follows and where; 802.3 frames are followed only through SNAP."""
    if at + 14 > end:
        return NOTHING, at
    ethertype = be16(data, at + 12)
    at += 14
    ethertype, at = decode_vlan_tags(data, p, ethertype, at, end)
    if ethertype < 0x0600:
        if at + 8 <= end and be32(data, at) == 0xAAAA0300 and be16(data, at + 4) == 0:
            return be16(data, at + 6), at + 8
        return NOTHING, at
    return ethertype, at


@inner
def decode_ppp(data, at, end):
    """PPP's protocol number (RFC 1661), one or two bytes, with or without address and control."""
    begin = at
    if at + 2 <= end and data[at] == 0xFF and data[at + 1] == 0x03:
        at += 2
    if at + 2 > end:
        return NOTHING, begin
    if data[at] & 1:
        protocol = np.int64(data[at])
        at += 1
    else:
        protocol = be16(data, at)
        at += 2
    if protocol == 0x0021:
        return ETHERTYPE_IPV4, at
    if protocol == 0x0057:
        return ETHERTYPE_IPV6, at
    if protocol == 0x0281:
        return ETHERTYPE_MPLS, at
    return NOTHING, at


@inner
def decode_nflog(data, at, end):
    """Linux netfilter log: family, version, group, then attributes of length, type and value, padded to four bytes.

    Length and type are in the byte order of the host that captured: types are small, and not 0.
    """
    if at + 8 > end:
        return NOTHING, at
    begin = at
    family = data[at]
    is_little = data[at + 7] == 0
    at += 4
    while at + 4 <= end:
        size = np.int64(data[at]) | np.int64(data[at + 1]) << 8 if is_little else be16(data, at)
        kind = np.int64(data[at + 2]) | np.int64(data[at + 3]) << 8 if is_little else be16(data, at + 2)
        if kind == NFLOG_PAYLOAD:
            if family == 2:
                return ETHERTYPE_IPV4, at + 4
            if family == 10:
                return ETHERTYPE_IPV6, at + 4
            return NOTHING, at + 4
        if size < 4:
            return NOTHING, begin
        at += (size + 3) & ~3
    return NOTHING, at


@hot
def plain_ethernet(data, p, at, end):
    """The Ethertype of what most Ethernet frames are, IP without VLANs; NOTHING if decode_link has to look closer."""
    if at + 14 > end:
        return np.int64(NOTHING)
    ethertype = be16(data, at + 12)
    if ethertype != ETHERTYPE_IPV4 and ethertype != ETHERTYPE_IPV6:
        return np.int64(NOTHING)
    p["l2_source"] = (np.uint64(be32(data, at + 6)) << np.uint64(16)) | np.uint64(be16(data, at + 10))
    return ethertype


@inner
def decode_link(data, p, link_type, at, end):
    """The link-layer header: returns the Ethertype (or ANY_IP, NOTHING) of what follows, and where it begins."""
    if link_type == LINKTYPE_ETHERNET:
        if at + 14 <= end:
            p["l2_source"] = (np.uint64(be32(data, at + 6)) << np.uint64(16)) | np.uint64(be16(data, at + 10))
        return decode_ethernet(data, p, at, end)
    if link_type == LINKTYPE_SLL2:
        if at + 20 > end:
            return NOTHING, at
        p["ifindex"] = be32(data, at + 4) & 0x7FFFFFFF
        p["direction"] = DIRECTION_OUT if data[at + 10] == 4 else DIRECTION_IN
        p["l2_source"] = be64(data, at + 12)
        return decode_vlan_tags(data, p, be16(data, at), at + 20, end)
    if link_type == LINKTYPE_SLL:
        if at + 16 > end:
            return NOTHING, at
        p["direction"] = DIRECTION_OUT if be16(data, at) == 4 else DIRECTION_IN
        p["l2_source"] = be64(data, at + 6)
        return decode_vlan_tags(data, p, be16(data, at + 14), at + 16, end)
    if (
        link_type == LINKTYPE_RAW
        or link_type == LINKTYPE_RAW_BSD
        or link_type == LINKTYPE_RAW_OPENBSD
        or link_type == LINKTYPE_IPV4
        or link_type == LINKTYPE_IPV6
    ):
        return ANY_IP, at
    if link_type == LINKTYPE_NULL or link_type == LINKTYPE_LOOP:
        if at + 4 > end:
            return NOTHING, at
        family = be32(data, at)
        if family > 0xFFFF:  # written in the other byte order
            family = np.int64(data[at]) | np.int64(data[at + 1]) << 8
        if family == 2:
            return ETHERTYPE_IPV4, at + 4
        if family == 10 or family == 24 or family == 28 or family == 30:
            return ETHERTYPE_IPV6, at + 4
        return NOTHING, at
    if link_type == LINKTYPE_PPP or link_type == LINKTYPE_PPP_HDLC or link_type == LINKTYPE_CISCO_HDLC:
        if at < end and (data[at] == CISCO_UNICAST or data[at] == CISCO_MULTICAST):
            return (be16(data, at + 2), at + 4) if at + 4 <= end else (NOTHING, at)
        return decode_ppp(data, at, end) if link_type != LINKTYPE_CISCO_HDLC else (NOTHING, at)
    if link_type == LINKTYPE_PPP_ETHER:
        return decode_ppp(data, at + 6, end) if at + 8 <= end else (NOTHING, at)
    if link_type == LINKTYPE_NFLOG:
        return decode_nflog(data, at, end)
    p["network"] = NETWORK_SKIPPED
    return NOTHING, at


# --- IP and what it carries ------------------------------------------------------------------------------------------


@inner
def add_encapsulation(p, encapsulation):
    value = np.int64(p["encapsulation"])
    shift = 0
    while shift < 28 and (value >> shift) & 15:
        shift += 4
    p["encapsulation"] = value | (encapsulation << shift)


@inner
def enter_ip_tunnel(p, encapsulation):
    """What was decoded so far is the outer packet; the outermost one stays."""
    if not p["outer_src_hi"] and not p["outer_src_lo"] and not p["outer_dst_hi"] and not p["outer_dst_lo"]:
        p["outer_src_hi"] = p["src_hi"]
        p["outer_src_lo"] = p["src_lo"]
        p["outer_dst_hi"] = p["dst_hi"]
        p["outer_dst_lo"] = p["dst_lo"]
    add_encapsulation(p, encapsulation)


@inner
def follow_source_route(data, p, at, end):
    """A packet on a source route that is not used up (RFC 791, 3.1) is for the last address there, as for Wireshark."""
    while at + 3 <= end and data[at]:
        size = np.int64(data[at + 1]) if data[at] != 1 else 1
        if (size < 2 and data[at] != 1) or at + size > end:
            return
        if (data[at] == 131 or data[at] == 137) and 4 <= data[at + 2] <= size - 3:
            p["dst_lo"] = V4_MAPPED | np.uint64(be32(data, at + size - 4))
            return
        at += size


@inner
def decode_ipv4(data, p, at, end, wire):
    """Returns (protocol or NOTHING, at, wire) of the IP payload."""
    if wire < 20:
        p["malformed"] = MALFORMED_IP
        return NOTHING, at, wire
    if at + 20 > end:
        return NOTHING, at, wire
    header = (np.int64(data[at]) & 15) * 4
    total = be16(data, at + 2)
    if total == 0:  # GSO and BIG TCP: the length did not fit
        total = wire
    if header < 20 or total < header:
        p["malformed"] = MALFORMED_IP
        return NOTHING, at, wire
    if total > wire:
        p["malformed"] = MALFORMED_IP
        total = wire
    p["ip_version"] = 4
    p["ip_header_length"] = header
    p["ip_length"] = total
    p["ttl"] = data[at + 8]
    p["ip_id"] = be16(data, at + 4)
    p["src_hi"] = 0
    p["src_lo"] = V4_MAPPED | np.uint64(be32(data, at + 12))
    p["dst_hi"] = 0
    p["dst_lo"] = V4_MAPPED | np.uint64(be32(data, at + 16))
    if header > 20:
        follow_source_route(data, p, at + 20, min(at + header, end))
    fragment = be16(data, at + 6)
    set_fragment(p, (fragment & 0x1FFF) * 8, (fragment & 0x2000) != 0)
    protocol = np.int64(data[at + 9])
    p["protocol"] = protocol
    return protocol, at + header, total - header


@inner
def set_fragment(p, offset, more):
    p["fragment_offset"] = offset
    if offset == 0:
        p["fragment"] = FRAGMENT_FIRST if more else FRAGMENT_NONE
    else:
        p["fragment"] = FRAGMENT_LATER if more else FRAGMENT_LAST


@inner
def decode_ipv6(data, p, at, end, wire):
    """As decode_ipv4; extension headers (RFC 8200) are skipped, lengths of 0 (jumbograms, GSO) are the wire's."""
    if wire < 40:
        p["malformed"] = MALFORMED_IP
        return NOTHING, at, wire
    if at + 40 > end:
        return NOTHING, at, wire
    payload = be16(data, at + 4)
    if payload == 0 and data[at + 6] != 59:
        payload = wire - 40
    if payload > wire - 40:
        p["malformed"] = MALFORMED_IP
        payload = wire - 40
    p["ip_version"] = 6
    p["ip_length"] = payload + 40
    p["ttl"] = data[at + 7]
    p["ip_id"] = -1
    p["src_hi"] = be64(data, at + 8)
    p["src_lo"] = be64(data, at + 16)
    p["dst_hi"] = be64(data, at + 24)
    p["dst_lo"] = be64(data, at + 32)
    p["fragment"] = FRAGMENT_NONE
    p["fragment_offset"] = 0
    protocol = np.int64(data[at + 6])
    wire = payload
    at += 40
    header = 40
    for _ in range(MOST_LAYERS):
        if protocol == 0 or protocol == 43 or protocol == 60 or protocol == 135 or protocol == 139 or protocol == 140:
            if at + 8 > end:
                break
            size = (np.int64(data[at + 1]) + 1) * 8
        elif protocol == 44:
            if at + 8 > end:
                break
            size = 8
            fragment = be16(data, at + 2)
            set_fragment(p, fragment & 0xFFF8, (fragment & 1) != 0)
            p["ip_id"] = be32(data, at + 4)
        else:
            break
        if size > wire:
            p["malformed"] = MALFORMED_IPV6_EXTENSION
            break
        following = np.int64(data[at])
        at += size
        wire -= size
        header += size
        protocol = following
        if p["fragment_offset"] > 0:
            break
    p["ip_header_length"] = min(header, 255)
    p["protocol"] = protocol
    return protocol, at, wire


@inner
def decode_tcp(data, p, at, end, wire):
    if wire < 20:
        p["malformed"] = MALFORMED_TCP
    if wire < 4 or at + 4 > end:
        return
    p["src_port"] = be16(data, at)
    p["dst_port"] = be16(data, at + 2)
    p["has_ports"] = 1
    if wire < 20 or at + 20 > end:
        return
    p["tcp_seq"] = be32(data, at + 4)
    p["tcp_ack"] = be32(data, at + 8)
    p["tcp_flags"] = be16(data, at + 12) & 0x0FFF
    p["tcp_window"] = be16(data, at + 14)
    header = (np.int64(data[at + 12]) >> 4) * 4
    if header < 20 or header > wire:
        p["malformed"] = MALFORMED_TCP
        return
    p["tcp_analyzable"] = TCP_WHOLE if at + header <= end else TCP_CUT
    p["payload_length"] = wire - header
    p["payload_offset"] = at + header
    p["payload_captured"] = max(0, min(end - at, wire) - header)
    decode_tcp_options(data, p, at + 20, min(at + header, end))


@inner
def decode_tcp_options(data, p, at, end):
    while at < end:
        kind = data[at]
        if kind == 0:
            return
        if kind == 1:
            at += 1
            continue
        if at + 2 > end:
            return
        size = np.int64(data[at + 1])
        if size < 2:
            p["malformed"] = MALFORMED_TCP_OPTIONS
            return
        if at + size > end:
            return
        if kind == 8 and size == 10:
            p["has_timestamps"] = 1
            p["tsval"] = be32(data, at + 2)
            p["tsecr"] = be32(data, at + 6)
        elif kind == 5 and size >= 10:
            p["sack_offset"] = at + 2
            p["sack_blocks"] = (size - 2) // 8
        elif kind == 2 and size == 4:
            p["tcp_mss"] = be16(data, at + 2)
        elif kind == 3 and size == 3:
            p["tcp_window_scale"] = min(np.int64(data[at + 2]), 14)
        at += size


@inner
def decode_icmp(data, p, at, end, wire):
    if wire < 4:
        p["malformed"] = MALFORMED_ICMP
        return
    if at + 2 > end:
        return
    kind = np.int64(data[at])
    p["icmp_type"] = kind
    p["icmp_code"] = data[at + 1]
    p["payload_length"] = max(0, wire - 8)
    p["payload_offset"] = at + 8
    p["payload_captured"] = max(0, min(end - at, wire) - 8)
    if p["protocol"] == ICMPV6:
        is_error = 1 <= kind <= 4
    else:
        is_error = 3 <= kind <= 5 or kind == 11 or kind == 12
    if is_error and at + 28 <= end:
        p["quote_offset"] = at + 8
        p["quote_end"] = min(end, at + wire)


@inner
def is_wireguard(data, p, at, wire, end):
    """Message types and lengths of WireGuard on the ports that Calico and Cilium use (wireguard.com/protocol)."""
    if not (is_wireguard_port(p["src_port"]) or is_wireguard_port(p["dst_port"])) or at + 4 > end:
        return False
    kind = data[at]
    if data[at + 1] or data[at + 2] or data[at + 3]:
        return False
    return (
        (kind == 1 and wire == 148)
        or (kind == 2 and wire == 92)
        or (kind == 3 and wire == 64)
        or (kind == 4 and wire >= 32 and wire % 16 == 0)
    )


@inner
def is_wireguard_port(port):
    return port == 51820 or port == 51821 or port == 51871


@inner
def decode_udp(data, p, at, end, wire, vxlan_ports):
    """Returns (Ethertype, ETHERTYPE_TEB or NOTHING, at, wire) of what is tunnelled in it."""
    if wire < 8:
        p["malformed"] = MALFORMED_UDP
    if wire < 4 or at + 4 > end:
        return NOTHING, at, wire
    p["src_port"] = be16(data, at)
    p["dst_port"] = be16(data, at + 2)
    p["has_ports"] = 1
    if wire < 8 or at + 8 > end:
        return NOTHING, at, wire
    length = be16(data, at + 4)
    if length == 0:  # jumbogram or GSO
        length = wire
    if length < 8 or (length > wire and p["fragment"] == FRAGMENT_NONE):
        p["malformed"] = MALFORMED_UDP
        length = wire
    length = min(length, wire)
    at += 8
    wire = length - 8
    p["payload_length"] = wire
    p["payload_offset"] = at
    p["payload_captured"] = max(0, min(end - at, wire))
    port = np.int64(p["dst_port"])
    for candidate in vxlan_ports:
        if port == candidate:
            if wire < 8:
                p["malformed"] = MALFORMED_VXLAN
            elif at + 8 <= end and data[at] & 0x08:
                enter_ip_tunnel(p, np.int64(ENCAPSULATION_VXLAN))
                p["vni"] = be32(data, at + 4) >> 8
                return ETHERTYPE_TEB, at + 8, wire - 8
            return NOTHING, at, wire
    if port == 6081:
        if wire < 8:
            p["malformed"] = MALFORMED_GENEVE
            return NOTHING, at, wire
        if at + 8 > end or data[at] >> 6:
            return NOTHING, at, wire
        size = 8 + (np.int64(data[at]) & 63) * 4
        if size > wire:
            p["malformed"] = MALFORMED_GENEVE
            return NOTHING, at, wire
        enter_ip_tunnel(p, np.int64(ENCAPSULATION_GENEVE))
        p["vni"] = be32(data, at + 4) >> 8
        return be16(data, at + 2), at + size, wire - size
    if is_wireguard(data, p, at, wire, end):
        add_encapsulation(p, np.int64(ENCAPSULATION_WIREGUARD))
    elif (port == 4500 or p["src_port"] == 4500) and wire > 4 and at + 4 <= end and be32(data, at):
        add_encapsulation(p, np.int64(ENCAPSULATION_ESP))  # RFC 3948: a zero SPI would be IKE
    return NOTHING, at, wire


@inner
def decode_gre(data, p, at, end, wire):
    """GRE (RFC 2784, 2890), PPTP's version 1 (RFC 2637) and ERSPAN; returns as decode_udp."""
    if wire < 4:
        p["malformed"] = MALFORMED_GRE
        return NOTHING, at, wire
    if at + 4 > end:
        return NOTHING, at, wire
    flags = be16(data, at)
    protocol = be16(data, at + 2)
    size = 4
    if flags & 0x8000:
        size += 4
    if flags & 0x2000:
        size += 4
    if flags & 0x1000:
        size += 4
    if flags & 0x0007 == 1 and flags & 0x0080:
        size += 4
    if flags & 0x4000 or flags & 0x0007 > 1:  # source routing and versions that nobody uses
        return NOTHING, at, wire
    if protocol == ETHERTYPE_ERSPAN:
        if flags & 0x1000:
            size += 8
        protocol = ETHERTYPE_TEB
    elif protocol == ETHERTYPE_ERSPAN3:
        size += 12
        protocol = ETHERTYPE_TEB
    if size > wire:
        p["malformed"] = MALFORMED_GRE
        return NOTHING, at, wire
    enter_ip_tunnel(p, np.int64(ENCAPSULATION_GRE))
    return protocol, at + size, wire - size


@inner
def decode_mpls(data, p, at, end, wire):
    """Pops the label stack; what follows is told by its first nibble (RFC 4928), 0 is a pseudowire's control word."""
    add_encapsulation(p, np.int64(ENCAPSULATION_MPLS))
    for _ in range(MOST_LAYERS):
        if wire < 4:
            p["malformed"] = MALFORMED_MPLS
            return NOTHING, at, wire
        if at + 4 > end:
            return NOTHING, at, wire
        bottom = data[at + 2] & 1
        at += 4
        wire -= 4
        if bottom:
            break
    if at >= end:
        return NOTHING, at, wire
    nibble = data[at] >> 4
    if nibble == 4 or nibble == 6:
        return ANY_IP, at, wire
    if nibble == 0:
        return ETHERTYPE_TEB, at + 4, wire - 4
    return NOTHING, at, wire


@inner
def decode_transport(data, p, protocol, at, end, wire, vxlan_ports):
    """The IP payload; returns as decode_udp, with ANY_IP for IP in IP."""
    p["payload_length"] = wire
    p["payload_offset"] = at
    p["payload_captured"] = max(0, min(end - at, wire))
    if p["fragment_offset"] > 0:
        return NOTHING, at, wire
    if protocol == AH and wire >= 12 and at + 12 <= end:
        size = (np.int64(data[at + 1]) + 2) * 4
        protocol = np.int64(data[at])
        if size > wire:
            p["malformed"] = MALFORMED_IP
            return NOTHING, at, wire
        p["protocol"] = protocol
        at += size
        wire -= size
    if protocol == TCP:
        decode_tcp(data, p, at, end, wire)
    elif protocol == UDP:
        return decode_udp(data, p, at, end, wire, vxlan_ports)
    elif protocol == ICMP or protocol == ICMPV6:
        decode_icmp(data, p, at, end, wire)
    elif protocol == SCTP:
        if wire < 12:
            p["malformed"] = MALFORMED_SCTP
        elif at + 4 <= end:
            p["src_port"] = be16(data, at)
            p["dst_port"] = be16(data, at + 2)
            p["has_ports"] = 1
            p["payload_length"] = wire - 12
            p["payload_offset"] = at + 12
            p["payload_captured"] = max(0, min(end - at, wire) - 12)
    elif protocol == GRE:
        return decode_gre(data, p, at, end, wire)
    elif protocol == IPIP:
        enter_ip_tunnel(p, np.int64(ENCAPSULATION_IPIP if p["ip_version"] == 4 else ENCAPSULATION_4IN6))
        return ETHERTYPE_IPV4, at, wire
    elif protocol == IPV6:
        enter_ip_tunnel(p, np.int64(ENCAPSULATION_6IN4 if p["ip_version"] == 4 else ENCAPSULATION_6IN6))
        return ETHERTYPE_IPV6, at, wire
    elif protocol == ESP:
        add_encapsulation(p, np.int64(ENCAPSULATION_ESP))
    return NOTHING, at, wire


@hot
def decode_plain_tcp(data, p, at, end, wire):
    """What most packets are: TCP in IPv4 without options or fragments, whole headers. Returns whether it was one.

    It says what decode_ipv4 and decode_tcp would say, in fewer steps.
    """
    if at + 40 > end or data[at] != 0x45 or data[at + 9] != TCP or be16(data, at + 6) & 0x3FFF:
        return False
    total = be16(data, at + 2)
    header = (np.int64(data[at + 32]) >> 4) * 4
    payload = total - 20 - header
    tcp = at + 20
    if total > wire or header < 20 or payload < 0 or tcp + header > end:
        return False
    p["ip_version"] = 4
    p["ip_header_length"] = 20
    p["ip_length"] = total
    p["ttl"] = data[at + 8]
    p["ip_id"] = be16(data, at + 4)
    p["src_hi"] = 0
    p["src_lo"] = V4_MAPPED | np.uint64(be32(data, at + 12))
    p["dst_hi"] = 0
    p["dst_lo"] = V4_MAPPED | np.uint64(be32(data, at + 16))
    p["fragment_offset"] = 0
    p["fragment"] = FRAGMENT_NONE
    p["protocol"] = TCP
    p["src_port"] = be16(data, tcp)
    p["dst_port"] = be16(data, tcp + 2)
    p["has_ports"] = 1
    p["tcp_seq"] = be32(data, tcp + 4)
    p["tcp_ack"] = be32(data, tcp + 8)
    p["tcp_flags"] = be16(data, tcp + 12) & 0x0FFF
    p["tcp_window"] = be16(data, tcp + 14)
    p["tcp_analyzable"] = TCP_WHOLE
    p["payload_length"] = payload
    p["payload_offset"] = tcp + header
    p["payload_captured"] = min(end - tcp - header, payload)
    if header == 32 and be32(data, tcp + 20) == NOP_NOP_TIMESTAMPS:
        p["has_timestamps"] = 1
        p["tsval"] = be32(data, tcp + 24)
        p["tsecr"] = be32(data, tcp + 28)
    elif header > 20:
        decode_tcp_options(data, p, tcp + 20, tcp + header)
    return True


@inner
def decode_network(data, p, ethertype, at, end, wire, vxlan_ports):
    """From the first network header down to the innermost packet that can be read."""
    for _ in range(MOST_LAYERS):
        if ethertype == ETHERTYPE_IPV4 and decode_plain_tcp(data, p, at, end, wire):
            return
        if ethertype == ETHERTYPE_TEB:
            begin = at
            ethertype, at = decode_ethernet(data, p, at, end)
            wire -= at - begin
        if ethertype == ETHERTYPE_PPPOE or ethertype == ETHERTYPE_PPP:
            begin = at
            if ethertype == ETHERTYPE_PPPOE and at + 6 <= end:  # behind its length is padding, whatever IP's length is
                wire = min(wire, 6 + be16(data, at + 4))
            ethertype, at = decode_ppp(data, at + 6 if ethertype == ETHERTYPE_PPPOE else at, end)
            wire -= at - begin
        if ethertype == ETHERTYPE_MPLS or ethertype == ETHERTYPE_MPLS_MULTICAST:
            ethertype, at, wire = decode_mpls(data, p, at, end, wire)
            if ethertype == ETHERTYPE_TEB:
                continue
        if ethertype == ANY_IP and at < end:
            nibble = data[at] >> 4
            if nibble == 4:
                ethertype = ETHERTYPE_IPV4
            elif nibble == 6:
                ethertype = ETHERTYPE_IPV6
            else:
                p["malformed"] = MALFORMED_IP
        if ethertype == ETHERTYPE_IPV4:
            if at < end and data[at] >> 4 != 4:
                p["malformed"] = MALFORMED_IP
                return
            protocol, at, wire = decode_ipv4(data, p, at, end, wire)
        elif ethertype == ETHERTYPE_IPV6:
            if at < end and data[at] >> 4 != 6:
                p["malformed"] = MALFORMED_IP
                return
            protocol, at, wire = decode_ipv6(data, p, at, end, wire)
        else:
            return
        if protocol == NOTHING:
            return
        p["has_ports"] = 0
        ethertype, at, wire = decode_transport(data, p, protocol, at, end, wire, vxlan_ports)
        if ethertype == NOTHING:
            return
    p["malformed"] = MALFORMED_TOO_DEEP


@kernel
def decode(data, frames, packets, blank, link_types, interfaces, vxlan_ports, segment, first_frame_number, counts):
    """Fills packets[i] from frames[i].

    `blank`: one PACKET of which nothing is known. `link_types` and `interfaces` (observation points) are by frame
    interface. `counts` (layout.COUNTED_*) is added to.
    """
    for i in range(len(frames)):
        frame = frames[i]
        packets[i] = blank[0]
        p = packets[i]
        p["ts"] = frame["ts"]
        p["file_offset"] = frame["file_offset"]
        p["frame_number"] = first_frame_number + i
        p["segment"] = segment
        p["interface"] = interfaces[frame["interface"]]
        p["length"] = frame["length"]
        p["direction"] = frame["direction"]
        begin = np.int64(frame["offset"])
        end = begin + np.int64(frame["captured"])
        link_type = link_types[frame["interface"]]
        ethertype = plain_ethernet(data, p, begin, end) if link_type == LINKTYPE_ETHERNET else np.int64(NOTHING)
        at = begin + 14
        if ethertype == NOTHING:
            ethertype, at = decode_link(data, p, link_type, begin, end)
        wire = np.int64(frame["length"]) - (at - begin)
        if ethertype != NOTHING:
            decode_network(data, p, ethertype, at, end, wire, vxlan_ports)
        elif p["network"] != NETWORK_SKIPPED and frame["captured"] >= frame["length"] and at == begin:
            p["malformed"] = MALFORMED_LINK
        if not p["ip_version"] and p["network"] != NETWORK_SKIPPED:
            p["network"] = NETWORK_ARP if ethertype == ETHERTYPE_ARP else NETWORK_OTHER
        count(p, end - begin, counts)


@hot
def count(p, captured, counts):
    counts[COUNTED_PACKETS] += 1
    if p["network"] == NETWORK_ARP:
        counts[COUNTED_ARP] += 1
    elif p["network"] == NETWORK_OTHER:
        counts[COUNTED_NOT_IP] += 1
    elif p["network"] == NETWORK_SKIPPED:
        counts[COUNTED_SKIPPED] += 1
    if p["malformed"]:
        counts[COUNTED_MALFORMED] += 1
    if captured < p["length"]:
        counts[COUNTED_CUT] += 1
    last = np.int64(p["encapsulation"])
    while last > 15:
        last >>= 4
    if last == ENCAPSULATION_WIREGUARD or last == ENCAPSULATION_ESP:
        counts[COUNTED_OPAQUE] += 1
    counts[COUNTED_FIRST_TS] = min(counts[COUNTED_FIRST_TS], p["ts"])
    counts[COUNTED_LAST_TS] = max(counts[COUNTED_LAST_TS], p["ts"])
