"""What kernels share: the record types that travel between stages, and names for wire numbers.

A `Chunk` of a capture is a byte array and an array of FRAME records that point into it; decoding makes one PACKET
record of each. IP addresses are pairs of uint64 (high, low), IPv4 as ::ffff:a.b.c.d.
"""

from __future__ import annotations

from typing import Final

import numpy as np

# --- framing: what pcap.py and pcapng.py make -------------------------------------------------------------------

FRAME: Final = np.dtype(
    [
        ("ts", "i8"),  # nanoseconds since 1970, UTC
        ("file_offset", "i8"),  # of the record's or block's first byte in the uncompressed file
        ("offset", "i4"),  # of the packet's first byte in the chunk's data
        ("captured", "i4"),  # bytes there
        ("length", "i4"),  # bytes on the wire
        ("interface", "i4"),  # index into the segment's interfaces
        ("direction", "u1"),  # DIRECTION_*
    ]
)

DIRECTION_UNKNOWN: Final = 0
DIRECTION_IN: Final = 1
DIRECTION_OUT: Final = 2

# --- decode: what packets.py makes ---------------------------------------------------------------------------------

CACHE_LINE: Final = 64


def in_lines(*fields: tuple[str, str]) -> np.dtype[np.void]:
    """A record that fills whole cache lines: in an array that begins with one, a field's place tells its line.

    What is needed together stands together; what few packets or flows have comes last, where it is not in the way.
    """
    packed = np.dtype(list(fields), align=True)
    names = [name for name, _ in fields]
    places = [packed.fields[name][1] for name in names] if packed.fields else []
    size = -(-packed.itemsize // CACHE_LINE) * CACHE_LINE
    formats = [kind for _, kind in fields]
    return np.dtype({"names": names, "formats": formats, "offsets": places, "itemsize": size}, align=True)


PACKET: Final = in_lines(
    # what each stage looks at
    ("ts", "i8"),
    ("flow", "i4"),  # slot in the flow table, -1 = none; set by flows.py
    ("tcp_seq", "u4"),
    ("tcp_ack", "u4"),
    ("tsval", "u4"),
    ("payload_length", "u4"),  # transport payload on the wire
    ("ip_length", "u4"),  # of the innermost IP packet, header included
    ("vni", "i4"),  # -1 = none
    ("tcp_flags", "u2"),
    ("tcp_window", "u2"),
    ("earlier_fragments", "u2"),  # that came before this first one; set by flows.py
    ("ip_version", "u1"),  # 4, 6; 0 = not IP
    ("ip_header_length", "u1"),  # IPv4 header, or IPv6 with its extension headers (capped at 255)
    ("protocol", "u1"),  # IP protocol number, valid where ip_version is set
    ("fragment", "u1"),  # FRAGMENT_*
    ("has_ports", "u1"),
    ("has_timestamps", "u1"),
    ("sack_blocks", "u1"),
    ("tcp_analyzable", "u1"),  # TCP_*
    ("from_a", "u1"),  # 1 = sent by the smaller end of the 5-tuple; set by flows.py
    ("from_orig", "u1"),  # 1 = sent by the flow's orig; set by flows.py
    ("is_copy", "u1"),  # set by copies.py
    ("starts_flow", "u1"),  # STARTS_*; set by flows.py
    ("waits", "u1"),  # 1 = a fragment whose row waits for the first one to come; set by flows.py
    ("direction", "u1"),
    ("network", "u1"),  # NETWORK_*: what a frame without an IP packet is
    ("malformed", "u1"),  # MALFORMED_*
    ("ttl", "u1"),
    ("tcp_window_scale", "u1"),  # shift of a window scale option, 255 = no option
    ("icmp_type", "u1"),
    ("icmp_code", "u1"),
    # whose it is
    ("src_hi", "u8"),
    ("src_lo", "u8"),
    ("dst_hi", "u8"),
    ("dst_lo", "u8"),
    ("flow_uid", "u8"),  # 0 = belongs to no flow; set by flows.py
    ("flow_first_seen", "i8"),  # set by flows.py
    ("ip_id", "i8"),  # -1 = none
    ("interface", "i4"),  # index into the recording's observation points
    ("src_port", "u2"),
    ("dst_port", "u2"),
    # where it is
    ("file_offset", "i8"),
    ("frame_number", "i8"),  # 1-based in its segment
    ("l2_source", "u8"),  # link-layer source, to tell a copy from a duplicate; 0 where there is none
    ("segment", "i4"),  # index into the recording's segments
    ("length", "u4"),  # of the frame on the wire
    ("payload_offset", "i4"),  # of the transport payload in the chunk's data
    ("payload_captured", "i4"),  # bytes of it there
    ("encapsulation", "u4"),  # ENCAPSULATION_* four bits each, outermost in the lowest bits
    ("vlan", "i4"),  # -1 = none
    ("tsecr", "u4"),
    ("ifindex", "i4"),  # of an SLL2 header, else -1
    ("quote_offset", "i4"),  # of the IP header that an ICMP error quotes, in the chunk's data; -1 = none
    ("tcp_mss", "u2"),  # 0 = no option
    ("fragment_offset", "u2"),  # in bytes
    # what few have
    ("outer_src_hi", "u8"),
    ("outer_src_lo", "u8"),
    ("outer_dst_hi", "u8"),
    ("outer_dst_lo", "u8"),
    ("earlier_ts", "i8"),  # of the first of the earlier_fragments
    ("earlier_ip_bytes", "u4"),
    ("earlier_payload", "u4"),
    ("quote_end", "i4"),
    ("sack_offset", "i4"),  # of the first SACK block in the chunk's data
)

TCP_WHOLE: Final = 1  # header there and lengths make sense: Wireshark's condition for sequence analysis
TCP_CUT: Final = 2  # so, but for the end of the options

STARTS_NOTHING: Final = 0
STARTS_AFRESH: Final = 1  # a new flow
STARTS_AFTER_IDLE: Final = 2  # a new flow by idle time only: the TCP connection may be the old one

POINT_NAMED: Final = 0
POINT_UNNAMED: Final = 1  # one interface, without a name: a merged or mirrored capture shows packets more than once
POINT_MIXED: Final = 2  # all interfaces of a host at once, without saying which (SLL, NFLOG)

NETWORK_IP: Final = 0
NETWORK_ARP: Final = 1
NETWORK_OTHER: Final = 2
NETWORK_SKIPPED: Final = 3  # a link type that can't be decoded

FRAGMENT_NONE: Final = 0
FRAGMENT_FIRST: Final = 1
FRAGMENT_LATER: Final = 2  # neither first nor last
FRAGMENT_LAST: Final = 3

ICMP: Final = 1
IPIP: Final = 4
TCP: Final = 6
UDP: Final = 17
IPV6: Final = 41
GRE: Final = 47
ESP: Final = 50
AH: Final = 51
ICMPV6: Final = 58
SCTP: Final = 132

FIN: Final = 0x01
SYN: Final = 0x02
RST: Final = 0x04
PSH: Final = 0x08
ACK: Final = 0x10

ENCAPSULATION_NAMES: Final = (
    "",
    "vxlan",
    "geneve",
    "gre",
    "ipip",
    "4in6",
    "6in4",
    "6in6",
    "mpls",
    "wireguard",
    "esp",
)
(
    ENCAPSULATION_NONE,
    ENCAPSULATION_VXLAN,
    ENCAPSULATION_GENEVE,
    ENCAPSULATION_GRE,
    ENCAPSULATION_IPIP,
    ENCAPSULATION_4IN6,
    ENCAPSULATION_6IN4,
    ENCAPSULATION_6IN6,
    ENCAPSULATION_MPLS,
    ENCAPSULATION_WIREGUARD,
    ENCAPSULATION_ESP,
) = range(11)

MALFORMED_NAMES: Final = (
    "",
    "link",
    "ip",
    "ipv6_extension",
    "tcp",
    "tcp_options",
    "udp",
    "sctp",
    "icmp",
    "gre",
    "vxlan",
    "geneve",
    "mpls",
    "too_deep",
)
(
    MALFORMED_NO,
    MALFORMED_LINK,
    MALFORMED_IP,
    MALFORMED_IPV6_EXTENSION,
    MALFORMED_TCP,
    MALFORMED_TCP_OPTIONS,
    MALFORMED_UDP,
    MALFORMED_SCTP,
    MALFORMED_ICMP,
    MALFORMED_GRE,
    MALFORMED_VXLAN,
    MALFORMED_GENEVE,
    MALFORMED_MPLS,
    MALFORMED_TOO_DEEP,
) = range(14)

(
    COUNTED_PACKETS,
    COUNTED_ARP,
    COUNTED_NOT_IP,
    COUNTED_SKIPPED,
    COUNTED_MALFORMED,
    COUNTED_CUT,
    COUNTED_OPAQUE,
    COUNTED_FIRST_TS,
    COUNTED_LAST_TS,
    COUNTED_COPIES,
) = range(10)
"""Places in what is counted of a segment."""

VERDICT: Final = np.dtype(
    [
        ("new_bytes", "i8"),  # payload beyond all that this side had sent
        ("gap_bytes", "i8"),  # what the peer sent, by this packet's ack, beyond all that was captured of it
        ("missed_bytes", "i8"),  # gap_bytes, and holes that this ack covers
        ("tcp_segments", "i4"),  # with data, SYN or FIN
        ("retransmitted", "i4"),  # of these
        ("out_of_order", "u1"),
    ],
    align=True,
)
"""What retransmits.py says of each PACKET, for the flow's accounts."""

WIRESHARK_KIND_NAMES: Final = (
    "",
    "retransmission",
    "fast_retransmission",
    "spurious_retransmission",
    "out_of_order",
    "keep_alive",
)
(
    WIRESHARK_NOTHING,
    WIRESHARK_RETRANSMISSION,
    WIRESHARK_FAST,
    WIRESHARK_SPURIOUS,
    WIRESHARK_OUT_OF_ORDER,
    WIRESHARK_KEEP_ALIVE,
) = range(6)

KIND_NAMES: Final = (
    "",
    "network_duplicate",
    "keep_alive",
    "zero_window_probe",
    "syn",
    "synack",
    "fin",
    "spurious",
    "out_of_order",
    "unseen_original",
    "rto",
    "rto_recovery",
    "tlp",
    "fast",
    "unknown",
    "capture_gap",
)
(
    KIND_NOTHING,
    KIND_NETWORK_DUPLICATE,
    KIND_KEEP_ALIVE,
    KIND_ZERO_WINDOW_PROBE,
    KIND_SYN,
    KIND_SYNACK,
    KIND_FIN,
    KIND_SPURIOUS,
    KIND_OUT_OF_ORDER,
    KIND_UNSEEN_ORIGINAL,
    KIND_RTO,
    KIND_RTO_RECOVERY,
    KIND_TLP,
    KIND_FAST,
    KIND_UNKNOWN,
    KIND_CAPTURE_GAP,
) = range(16)

EVIDENCE_NAMES: Final = (
    "ip_id",
    "tsval",
    "sack",
    "dsack",
    "dup_ack",
    "rack",
    "acked",
    "hole",
    "timer",
    "backoff",
    "peer_window",
)
(
    EVIDENCE_IP_ID,
    EVIDENCE_TSVAL,
    EVIDENCE_SACK,
    EVIDENCE_DSACK,
    EVIDENCE_DUP_ACK,
    EVIDENCE_RACK,
    EVIDENCE_ACKED,
    EVIDENCE_HOLE,
    EVIDENCE_TIMER,
    EVIDENCE_BACKOFF,
    EVIDENCE_PEER_WINDOW,
) = (1 << bit for bit in range(11))

CONFIDENCE_NAMES: Final = ("", "low", "medium", "high")
CONFIDENCE_LOW: Final = 1
CONFIDENCE_MEDIUM: Final = 2
CONFIDENCE_HIGH: Final = 3

# --- link types (https://www.tcpdump.org/linktypes.html) ----------------------------------------------------------

LINKTYPE_NULL: Final = 0
LINKTYPE_ETHERNET: Final = 1
LINKTYPE_PPP: Final = 9
LINKTYPE_PPP_HDLC: Final = 50
LINKTYPE_PPP_ETHER: Final = 51
LINKTYPE_RAW_BSD: Final = 12
LINKTYPE_RAW_OPENBSD: Final = 14
LINKTYPE_RAW: Final = 101
LINKTYPE_CISCO_HDLC: Final = 104
LINKTYPE_LOOP: Final = 108
LINKTYPE_SLL: Final = 113
LINKTYPE_IPV4: Final = 228
LINKTYPE_IPV6: Final = 229
LINKTYPE_NFLOG: Final = 239
LINKTYPE_SLL2: Final = 276
DECODED_LINK_TYPES: Final = frozenset(
    [
        LINKTYPE_NULL,
        LINKTYPE_ETHERNET,
        LINKTYPE_PPP,
        LINKTYPE_PPP_HDLC,
        LINKTYPE_PPP_ETHER,
        LINKTYPE_RAW_BSD,
        LINKTYPE_RAW_OPENBSD,
        LINKTYPE_RAW,
        LINKTYPE_CISCO_HDLC,
        LINKTYPE_LOOP,
        LINKTYPE_SLL,
        LINKTYPE_IPV4,
        LINKTYPE_IPV6,
        LINKTYPE_NFLOG,
        LINKTYPE_SLL2,
    ]
)

NANOSECONDS: Final = 1_000_000_000
