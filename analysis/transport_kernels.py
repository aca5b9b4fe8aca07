"""Decode loops, what IP carries: transport headers, and tunnels down to what is in them. What they mean: packets.py.

Offsets are those of packets_kernels.py.
"""

from __future__ import annotations

import numpy as np

from analysis.kernel_compiler import inner
from analysis.layout import (
    AH,
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
    FRAGMENT_NONE,
    GRE,
    ICMP,
    ICMPV6,
    IPIP,
    IPV6,
    MALFORMED_GENEVE,
    MALFORMED_GRE,
    MALFORMED_ICMP,
    MALFORMED_IP,
    MALFORMED_MPLS,
    MALFORMED_SCTP,
    MALFORMED_TCP,
    MALFORMED_TCP_OPTIONS,
    MALFORMED_UDP,
    MALFORMED_VXLAN,
    SCTP,
    TCP,
    TCP_CUT,
    TCP_WHOLE,
    UDP,
)
from analysis.link_kernels import (
    ANY_IP,
    ETHERTYPE_ERSPAN,
    ETHERTYPE_ERSPAN3,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    ETHERTYPE_TEB,
    NOTHING,
)
from analysis.loads import be16, be32

MOST_LAYERS = 16


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
