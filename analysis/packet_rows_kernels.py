"""The loop that turns PACKET records into columns, all of them in one pass over the records."""

from __future__ import annotations

import numpy as np

from analysis.kernel_compiler import inner, kernel
from analysis.layout import ICMP, ICMPV6, NETWORK_ARP, TCP

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
NOTHING = -1
ARP_NAME = 256
"""Behind the 256 IP protocols."""

WIDE_COLUMNS = ("ts", "file_offset", "frame_number")
TS, FILE_OFFSET, FRAME_NUMBER = range(3)
WORD_COLUMNS = ("length", "payload_length", "tcp_seq", "tcp_ack", "tcp_tsval", "ip_id", "vni")
LENGTH, PAYLOAD_LENGTH, TCP_SEQ, TCP_ACK, TCP_TSVAL, IP_ID, VNI = range(7)
HALF_COLUMNS = ("src_port", "dst_port", "tcp_flags", "tcp_window", "vlan", "quoted_src_port", "quoted_dst_port")
SRC_PORT, DST_PORT, TCP_FLAGS, TCP_WINDOW, VLAN, QUOTED_SRC_PORT, QUOTED_DST_PORT = range(7)
OCTET_COLUMNS = ("ttl", "icmp_type", "icmp_code")
TTL, ICMP_TYPE, ICMP_CODE = range(3)
PLACE_COLUMNS = (
    "interface", "direction", "segment", "flow_uid", "src_ip", "dst_ip", "protocol", "encapsulation", "outer_src_ip",
    "outer_dst_ip", "malformed", "quoted_protocol", "quoted_src_ip", "quoted_dst_ip",
)  # fmt: skip
(
    INTERFACE, DIRECTION, SEGMENT, FLOW, SRC, DST, PROTOCOL, ENCAPSULATION, OUTER_SRC,
    OUTER_DST, MALFORMED, QUOTED_PROTOCOL, QUOTED_SRC, QUOTED_DST,
) = range(14)  # fmt: skip
HAS_INTERFACE, HAS_DIRECTION, HAS_FLOW, IS_IP, HAS_PROTOCOL, HAS_PORTS, HAS_ID, IS_TCP = (1 << k for k in range(8))
HAS_TIMESTAMPS, HAS_VNI, IS_TUNNELLED, HAS_VLAN, IS_ICMP, IS_MALFORMED, IS_COPY = (1 << k for k in range(8, 15))
IS_ENCAPSULATED, QUOTES, HAS_QUOTE, HAS_QUOTED_PORTS = (1 << k for k in range(15, 19))
"""What is known of a packet: the columns that are not null. QUOTES: an ICMP error that may quote a packet."""

BLOCK = 64
"""Packets that are split together: few enough to stay in the nearest cache from the first column to the last."""

ENTRY = np.dtype([("uid", "u8"), ("slot", "i4"), ("src", "i4"), ("dst", "i4")])
"""A flow of this row group: the addresses of its first packet are places among the row group's addresses."""
INNER, OUTER, KINDS, ENTRIES = range(4)
"""Places in counts: distinct inner and outer addresses, kinds of encapsulation, and flows."""


@inner
def number(high, low, table, met, counts, which):
    """The place of (high, low) among those met so far, behind them if it is new. `table`: places + 1, 0 is free."""
    mask = np.uint64(len(table) - 1)
    h = (low ^ (high * MULTIPLIER)) * MULTIPLIER
    at = (h ^ (h >> np.uint64(32))) & mask
    k = np.int64(table[at]) - 1
    while k >= 0 and not (met[k, 1] == low and met[k, 0] == high):
        at = (at + np.uint64(1)) & mask
        k = np.int64(table[at]) - 1
    if k < 0:
        k = counts[which]
        table[at] = k + 1
        met[k, 0] = high
        met[k, 1] = low
        counts[which] += 1
    return k


@inner
def look(packets, named, valid):
    """What is known of each packet (HAS_*, IS_*), and of any."""
    some = 0
    for i in range(len(packets)):
        p = packets[i]
        known = 0
        if p["interface"] >= 0 and named[p["interface"]]:
            known |= HAS_INTERFACE
        if p["direction"]:
            known |= HAS_DIRECTION
        if p["flow_uid"]:
            known |= HAS_FLOW
        if p["ip_id"] >= 0:
            known |= HAS_ID
        if p["vni"] >= 0:
            known |= HAS_VNI
        if p["vlan"] >= 0:
            known |= HAS_VLAN
        if p["malformed"]:
            known |= IS_MALFORMED
        if p["is_copy"]:
            known |= IS_COPY
        if p["quote_offset"] >= 0:
            known |= QUOTES
        if p["encapsulation"]:
            known |= IS_ENCAPSULATED
        if p["outer_src_lo"] | p["outer_src_hi"] | p["outer_dst_lo"]:
            known |= IS_TUNNELLED
        if p["network"] == NETWORK_ARP:
            known |= HAS_PROTOCOL
        if p["ip_version"]:
            known |= IS_IP | HAS_PROTOCOL
            if p["has_ports"]:
                known |= HAS_PORTS
            if p["protocol"] == TCP and p["tcp_analyzable"]:
                known |= IS_TCP
                if p["has_timestamps"]:
                    known |= HAS_TIMESTAMPS
            elif (p["protocol"] == ICMP or p["protocol"] == ICMPV6) and p["payload_offset"] > 0:
                known |= IS_ICMP
        valid[i] = known
        some |= known
    return some


@inner
def copy(values, column):
    """A field of all packets to its column; in such a plain loop, LLVM sees that no index leaves the arrays."""
    for i in range(min(len(values), len(column))):
        column[i] = values[i]


@inner
def place_addresses(packets, valid, column, entry_of_slot, dictionaries, counts):
    """Where flows and addresses stand in the row group's dictionaries. `column`: the PLACE_COLUMNS of these packets."""
    for i in range(len(packets)):
        p = packets[i]
        src = np.int64(0)
        dst = np.int64(0)
        entry = np.int64(0)
        known = False
        if p["flow_uid"]:
            entry = np.int64(entry_of_slot[p["flow"]])
            known = entry >= 0 and dictionaries.entries[entry]["uid"] == p["flow_uid"]
        if known:
            e = dictionaries.entries[entry]
            src, dst = np.int64(e["src"]), np.int64(e["dst"])
            if dictionaries.inner[src, 1] != p["src_lo"] or dictionaries.inner[src, 0] != p["src_hi"]:
                src, dst = dst, src
        elif p["ip_version"]:
            table, addresses = dictionaries.inner_table, dictionaries.inner
            src = number(p["src_hi"], p["src_lo"], table, addresses, counts, INNER)
            dst = number(p["dst_hi"], p["dst_lo"], table, addresses, counts, INNER)
            if p["flow_uid"]:
                entry = counts[ENTRIES]
                counts[ENTRIES] += 1
                entry_of_slot[p["flow"]] = entry
                e = dictionaries.entries[entry]
                e["uid"], e["slot"], e["src"], e["dst"] = p["flow_uid"], p["flow"], src, dst
        column[FLOW, i] = entry
        column[SRC, i] = src
        column[DST, i] = dst
        column[PROTOCOL, i] = p["protocol"] if p["ip_version"] else ARP_NAME


@inner
def place_rarer(packets, valid, column, dictionaries, counts):
    """As place_addresses(), for columns that are null in most captures."""
    for i in range(len(packets)):
        p = packets[i]
        if valid[i] & np.uint32(IS_TUNNELLED):
            table, addresses = dictionaries.outer_table, dictionaries.outer
            column[OUTER_SRC, i] = number(p["outer_src_hi"], p["outer_src_lo"], table, addresses, counts, OUTER)
            column[OUTER_DST, i] = number(p["outer_dst_hi"], p["outer_dst_lo"], table, addresses, counts, OUTER)
        if valid[i] & np.uint32(IS_ENCAPSULATED):
            kind, table, kinds = np.uint64(p["encapsulation"]), dictionaries.kinds_table, dictionaries.kinds
            column[ENCAPSULATION, i] = number(np.uint64(0), kind, table, kinds, counts, KINDS)
        column[DIRECTION, i] = np.int64(p["direction"]) - 1
        column[MALFORMED, i] = np.int64(p["malformed"]) - 1


@kernel
def split(packets, start, rows, named, entry_of_slot, dictionaries, counts):
    """PACKET[n] to the columns (packet_rows.Columns), from row `start` on. `named`: whether an interface has a name.

    What a null's value is says nothing. `entry_of_slot` is NOTHING where a flow slot has not been met in this row
    group. Returns what is known of any packet. The QUOTED_ columns are left to place_quotes().
    """
    any_known = 0
    for first in range(0, len(packets), BLOCK):
        block = packets[first : first + BLOCK]
        a = start + first
        b = a + len(block)
        valid = rows.valid[a:b]
        some = look(block, named, valid)
        any_known |= some
        copy(block["ts"], rows.wide[TS, a:b])
        copy(block["file_offset"], rows.wide[FILE_OFFSET, a:b])
        copy(block["frame_number"], rows.wide[FRAME_NUMBER, a:b])
        copy(block["length"], rows.words[LENGTH, a:b])
        copy(block["segment"], rows.places[SEGMENT, a:b])
        if some & IS_IP:
            copy(block["payload_length"], rows.words[PAYLOAD_LENGTH, a:b])
            copy(block["src_port"], rows.halves[SRC_PORT, a:b])
            copy(block["dst_port"], rows.halves[DST_PORT, a:b])
            copy(block["ttl"], rows.octets[TTL, a:b])
        if some & IS_TCP:
            copy(block["tcp_seq"], rows.words[TCP_SEQ, a:b])
            copy(block["tcp_ack"], rows.words[TCP_ACK, a:b])
            copy(block["tcp_flags"], rows.halves[TCP_FLAGS, a:b])
            copy(block["tcp_window"], rows.halves[TCP_WINDOW, a:b])
            copy(block["tsval"], rows.words[TCP_TSVAL, a:b])
        if some & HAS_ID:
            copy(block["ip_id"], rows.words[IP_ID, a:b])
        if some & IS_ICMP:
            copy(block["icmp_type"], rows.octets[ICMP_TYPE, a:b])
            copy(block["icmp_code"], rows.octets[ICMP_CODE, a:b])
        if some & HAS_VNI:
            copy(block["vni"], rows.words[VNI, a:b])
        if some & HAS_VLAN:
            copy(block["vlan"], rows.halves[VLAN, a:b])
        if some & HAS_INTERFACE:
            copy(block["interface"], rows.places[INTERFACE, a:b])
        place_addresses(block, valid, rows.places[:, a:b], entry_of_slot, dictionaries, counts)
        if some & (IS_TUNNELLED | IS_ENCAPSULATED | HAS_DIRECTION | IS_MALFORMED):
            place_rarer(block, valid, rows.places[:, a:b], dictionaries, counts)
    return any_known


@kernel
def place_quotes(quoted, at, rows, dictionaries, counts):
    """The packets that ICMP errors quote, PACKET[n], to the QUOTED_ columns of the rows `at`."""
    table, addresses = dictionaries.inner_table, dictionaries.inner
    for i in range(len(quoted)):
        p = quoted[i]
        row = at[i]
        if not p["ip_version"]:
            continue
        rows.valid[row] |= np.uint32(HAS_QUOTE)
        rows.places[QUOTED_PROTOCOL, row] = p["protocol"]
        rows.places[QUOTED_SRC, row] = number(p["src_hi"], p["src_lo"], table, addresses, counts, INNER)
        rows.places[QUOTED_DST, row] = number(p["dst_hi"], p["dst_lo"], table, addresses, counts, INNER)
        if p["has_ports"]:
            rows.valid[row] |= np.uint32(HAS_QUOTED_PORTS)
            rows.halves[QUOTED_SRC_PORT, row] = p["src_port"]
            rows.halves[QUOTED_DST_PORT, row] = p["dst_port"]
