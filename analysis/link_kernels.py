"""Decode loops, link layers: from a frame's first byte to its first network header. What they mean: packets.py.

Offsets are those of packets_kernels.py.
"""

from __future__ import annotations

import numpy as np

from analysis.kernel_compiler import hot, inner
from analysis.layout import (
    DIRECTION_IN,
    DIRECTION_OUT,
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
    NETWORK_SKIPPED,
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
ETHERTYPE_CISCO_METADATA = 0x8909
ETHERTYPE_ARISTA = 0xD28B

# What the loops hand to each other beside real Ethertypes.
NOTHING = -1  # the frame ends here, or its rest can't be read
ANY_IP = -2  # the version nibble decides

CISCO_UNICAST = 0x0F  # Cisco's HDLC (RFC 1547, 4.3.1): such an address, a zero, an Ethertype
CISCO_MULTICAST = 0x8F
NFLOG_PAYLOAD = 9


@inner
def arista_tag_size(data, at, end):
    """Of a timestamp that a switch adds, TAI or UTC: subtype 1, version, 8 or 6 bytes. 0: nothing that is known."""
    if at + 4 > end or be16(data, at) != 1:
        return 0
    version = be16(data, at + 2) & 0xFEFF
    return 12 if version == 0x0010 else 10 if version == 0x0020 else 0


@inner
def decode_tags(data, p, ethertype, at, end):
    """Skips what stands before a packet's own Ethertype: 802.1Q, 802.1ad and older QinQ tags, of which it keeps the
    innermost identifier, Cisco's security group tags (CMD, six bytes), and Arista's timestamps."""
    while True:
        if ethertype == 0x8100 or ethertype == 0x88A8 or ethertype == 0x9100 or ethertype == 0x9200:
            size = 2
        elif ethertype == ETHERTYPE_CISCO_METADATA:
            size = 6
        elif ethertype == ETHERTYPE_ARISTA:
            size = arista_tag_size(data, at, end)
        else:
            size = 0
        if size == 0 or at + size + 2 > end:
            return ethertype, at
        if size == 2:
            p["vlan"] = be16(data, at) & 0x0FFF
        ethertype = be16(data, at + size)
        at += size + 2


@inner
def decode_ethernet(data, p, at, end):
    """Returns the Ethertype of what follows and where; 802.3 frames are followed only through SNAP."""
    if at + 14 > end:
        return NOTHING, at
    ethertype = be16(data, at + 12)
    at += 14
    ethertype, at = decode_tags(data, p, ethertype, at, end)
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
        return decode_tags(data, p, be16(data, at), at + 20, end)
    if link_type == LINKTYPE_SLL:
        if at + 16 > end:
            return NOTHING, at
        p["direction"] = DIRECTION_OUT if be16(data, at) == 4 else DIRECTION_IN
        p["l2_source"] = be64(data, at + 6)
        return decode_tags(data, p, be16(data, at + 14), at + 16, end)
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
