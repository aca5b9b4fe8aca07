"""The loop that turns PACKET records into columns, all of them in one pass over the records."""

from __future__ import annotations

import numba
import numpy as np

from analysis.layout import ICMP, ICMPV6, NETWORK_ARP, TCP

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
NOTHING = -1
ARP_NAME = 256
"""Behind the 256 IP protocols."""

WIDE_COLUMNS = ("ts", "file_offset", "frame_number")
TS, FILE_OFFSET, FRAME_NUMBER = range(3)
WORD_COLUMNS = ("length", "payload_length", "tcp_seq", "tcp_ack", "tcp_tsval", "ip_id", "vni", "encapsulation")
LENGTH, PAYLOAD_LENGTH, TCP_SEQ, TCP_ACK, TCP_TSVAL, IP_ID, VNI, ENCAPSULATION = range(8)
HALF_COLUMNS = ("src_port", "dst_port", "tcp_flags", "tcp_window", "vlan")
SRC_PORT, DST_PORT, TCP_FLAGS, TCP_WINDOW, VLAN = range(5)
OCTET_COLUMNS = ("ttl", "icmp_type", "icmp_code")
TTL, ICMP_TYPE, ICMP_CODE = range(3)
PLACE_COLUMNS = (
    "interface", "direction", "segment", "flow_uid", "src_ip", "dst_ip", "protocol", "outer_src_ip", "outer_dst_ip",
    "malformed",
)  # fmt: skip
INTERFACE, DIRECTION, SEGMENT, FLOW, SRC, DST, PROTOCOL, OUTER_SRC, OUTER_DST, MALFORMED = range(10)
HAS_INTERFACE, HAS_DIRECTION, HAS_FLOW, IS_IP, HAS_PROTOCOL, HAS_PORTS, HAS_ID, IS_TCP = (1 << k for k in range(8))
HAS_TIMESTAMPS, HAS_VNI, IS_TUNNELLED, HAS_VLAN, IS_ICMP, IS_MALFORMED, IS_COPY = (1 << k for k in range(8, 15))
"""What is known of a packet: the columns that are not null."""

BLOCK = 64
"""Packets that are split together: few enough to stay in the nearest cache from the first column to the last."""

ENTRY = np.dtype([("uid", "u8"), ("slot", "i4"), ("src", "i4"), ("dst", "i4")])
"""A flow of this row group: the addresses of its first packet are places among the row group's addresses."""
INNER, OUTER, ENTRIES = range(3)
"""Places in counts: distinct inner and outer addresses, and flows."""

kernel = numba.njit(cache=True, boundscheck=True, nogil=True, no_cfunc_wrapper=True)
inner = numba.njit(boundscheck=True, nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)


@inner
def number(high, low, table, addresses, counts, which):
    """The place of an address among those met so far, behind them if it is new."""
    mask = np.uint64(len(table) - 1)
    h = (low ^ (high * MULTIPLIER)) * MULTIPLIER
    at = (h ^ (h >> np.uint64(32))) & mask
    k = np.int64(table[at])
    while k >= 0 and not (addresses[k, 1] == low and addresses[k, 0] == high):
        at = (at + np.uint64(1)) & mask
        k = np.int64(table[at])
    if k < 0:
        k = counts[which]
        table[at] = k
        addresses[k, 0] = high
        addresses[k, 1] = low
        counts[which] += 1
    return k


@inner
def look(packets, named, valid):
    """What is known of each packet (HAS_*, IS_*)."""
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


@inner
def copy(values, column):
    """A field of all packets to its column; in such a plain loop, LLVM sees that no index leaves the arrays."""
    for i in range(min(len(values), len(column))):
        column[i] = values[i]


@inner
def copy_where(valid, bit, values, column):
    """As copy(), 0 where `valid` lacks the bit."""
    for i in range(min(len(values), len(column), len(valid))):
        column[i] = values[i] if valid[i] & np.uint32(bit) else 0


@inner
def place(packets, valid, column, entry_of_slot, dictionaries, counts):
    """Where flows and addresses stand in the row group's dictionaries. `column`: the PLACE_COLUMNS of these packets."""
    for i in range(len(packets)):
        p = packets[i]
        src = np.int64(0)
        dst = np.int64(0)
        entry = np.int64(0)
        known = False
        if valid[i] & np.uint32(IS_TUNNELLED):
            table, addresses = dictionaries.outer_table, dictionaries.outer
            column[OUTER_SRC, i] = number(p["outer_src_hi"], p["outer_src_lo"], table, addresses, counts, OUTER)
            column[OUTER_DST, i] = number(p["outer_dst_hi"], p["outer_dst_lo"], table, addresses, counts, OUTER)
        else:
            column[OUTER_SRC, i] = 0
            column[OUTER_DST, i] = 0
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
        column[DIRECTION, i] = max(np.int64(p["direction"]) - 1, 0)
        column[MALFORMED, i] = max(np.int64(p["malformed"]) - 1, 0)


@kernel
def split(packets, start, rows, named, entry_of_slot, dictionaries, counts):
    """PACKET[n] to the columns (packet_rows.Columns), from row `start` on. `named`: whether an interface has a name.

    A null's value is 0. `entry_of_slot` is NOTHING where a flow slot has not been met in this row group.
    """
    for first in range(0, len(packets), BLOCK):
        block = packets[first : first + BLOCK]
        a = start + first
        b = a + len(block)
        valid = rows.valid[a:b]
        look(block, named, valid)
        copy(block["ts"], rows.wide[TS, a:b])
        copy(block["file_offset"], rows.wide[FILE_OFFSET, a:b])
        copy(block["frame_number"], rows.wide[FRAME_NUMBER, a:b])
        copy(block["length"], rows.words[LENGTH, a:b])
        copy(block["encapsulation"], rows.words[ENCAPSULATION, a:b])
        copy_where(valid, IS_IP, block["payload_length"], rows.words[PAYLOAD_LENGTH, a:b])
        copy_where(valid, IS_TCP, block["tcp_seq"], rows.words[TCP_SEQ, a:b])
        copy_where(valid, IS_TCP, block["tcp_ack"], rows.words[TCP_ACK, a:b])
        copy_where(valid, HAS_TIMESTAMPS, block["tsval"], rows.words[TCP_TSVAL, a:b])
        copy_where(valid, HAS_ID, block["ip_id"], rows.words[IP_ID, a:b])
        copy_where(valid, HAS_VNI, block["vni"], rows.words[VNI, a:b])
        copy_where(valid, HAS_PORTS, block["src_port"], rows.halves[SRC_PORT, a:b])
        copy_where(valid, HAS_PORTS, block["dst_port"], rows.halves[DST_PORT, a:b])
        copy_where(valid, IS_TCP, block["tcp_flags"], rows.halves[TCP_FLAGS, a:b])
        copy_where(valid, IS_TCP, block["tcp_window"], rows.halves[TCP_WINDOW, a:b])
        copy_where(valid, HAS_VLAN, block["vlan"], rows.halves[VLAN, a:b])
        copy_where(valid, IS_IP, block["ttl"], rows.octets[TTL, a:b])
        copy_where(valid, IS_ICMP, block["icmp_type"], rows.octets[ICMP_TYPE, a:b])
        copy_where(valid, IS_ICMP, block["icmp_code"], rows.octets[ICMP_CODE, a:b])
        copy(block["segment"], rows.places[SEGMENT, a:b])
        copy_where(valid, HAS_INTERFACE, block["interface"], rows.places[INTERFACE, a:b])
        place(block, valid, rows.places[:, a:b], entry_of_slot, dictionaries, counts)


@kernel
def forget(entry_of_slot, entries):
    """The row group is written: its flows are new to the next one."""
    for i in range(len(entries)):
        entry_of_slot[entries[i]["slot"]] = NOTHING
