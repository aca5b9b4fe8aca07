"""Decode loops: FRAME records and their bytes in, PACKET records out. What they mean: packets.py.

Offsets: `at` is where the next header begins, `end` where the captured bytes end, `wire` how many bytes the wire had
from `at` on. A header that the snaplen cut off is not malformed, one that the wire itself had no room for is.
"""

from __future__ import annotations

import numpy as np

from analysis.kernel_compiler import hot, inner, kernel
from analysis.layout import (
    COUNTED_ARP,
    COUNTED_CUT,
    COUNTED_FIRST_TS,
    COUNTED_LAST_TS,
    COUNTED_MALFORMED,
    COUNTED_NOT_IP,
    COUNTED_OPAQUE,
    COUNTED_PACKETS,
    COUNTED_SKIPPED,
    ENCAPSULATION_ESP,
    ENCAPSULATION_WIREGUARD,
    FRAGMENT_FIRST,
    FRAGMENT_LAST,
    FRAGMENT_LATER,
    FRAGMENT_NONE,
    LINKTYPE_ETHERNET,
    MALFORMED_IP,
    MALFORMED_IPV6_EXTENSION,
    MALFORMED_LINK,
    MALFORMED_TOO_DEEP,
    NETWORK_ARP,
    NETWORK_OTHER,
    NETWORK_SKIPPED,
    TCP,
    TCP_WHOLE,
)
from analysis.link_kernels import (
    ANY_IP,
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    ETHERTYPE_MPLS,
    ETHERTYPE_MPLS_MULTICAST,
    ETHERTYPE_PPP,
    ETHERTYPE_PPPOE,
    ETHERTYPE_TEB,
    NOTHING,
    decode_ethernet,
    decode_link,
    decode_ppp,
    plain_ethernet,
)
from analysis.loads import be16, be32, be64
from analysis.transport_kernels import MOST_LAYERS, decode_mpls, decode_tcp_options, decode_transport

NOP_NOP_TIMESTAMPS = 0x0101080A  # the options of most TCP packets: two of padding, and these, which are 10 bytes
V4_MAPPED = np.uint64(0xFFFF00000000)


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
def follow_routing_header(data, p, at, size, end):
    """As follow_source_route, of the types that name whole addresses: 0 (RFC 2460, 4.4) ends with the last one, segment
    routing's 4 (RFC 8754) begins with it, mobile hosts' 2 (RFC 6275) has no other."""
    kind = data[at + 2]
    addresses = (size - 8) // 16
    if data[at + 3] == 0 or addresses == 0 or (kind != 0 and kind != 2 and kind != 4):
        return
    last = at + 8 + (16 * (addresses - 1) if kind == 0 else 0)
    if last + 16 <= end:
        p["dst_hi"] = be64(data, last)
        p["dst_lo"] = be64(data, last + 8)


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
            if protocol == 43 and size <= wire:
                follow_routing_header(data, p, at, size, end)
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


# --- from the outside to the inside -----------------------------------------------------------------------------------


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
