"""Packets: what is in each frame, down to the innermost packet that can be read.

Tunnels are followed (VXLAN, Geneve, GRE, ERSPAN, IP in IP, MPLS); the addresses of the outermost IP header are kept.
Lengths are the wire's, whatever the snaplen left. Damage is a flag of the packet, never an exception.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from analysis import columns
from analysis.layout import (
    COUNTED_FIRST_TS,
    COUNTED_LAST_TS,
    FRAME,
    ICMP,
    ICMPV6,
    LINKTYPE_RAW,
    MALFORMED_NAMES,
    NETWORK_ARP,
    PACKET,
    TCP,
)
from analysis.packets_kernels import decode
from analysis.schemas import PACKETS

if TYPE_CHECKING:
    from analysis.columns import Column

VXLAN_PORTS: Final = (4789, 8472, 6784)
"""IANA's port (RFC 7348), Linux' own (Flannel, Cilium), and Weave's fast datapath."""
LONGEST_IP_PACKET: Final = 65535


def decode_packets(
    data: npt.NDArray[np.uint8],
    frames: npt.NDArray[np.void],
    *,
    link_types: npt.NDArray[np.int64],
    interfaces: npt.NDArray[np.int64],
    vxlan_ports: Sequence[int],
    segment: int,
    first_frame_number: int,
    counts: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.void]:
    """Decodes a chunk.

    `data`: the chunk's bytes. `frames`: FRAME[n]. `link_types`, `interfaces`: link type and observation point by the
    frames' interface. `counts`, from new_counts(), is added to. Returns PACKET[n]; flow columns are not set yet.
    """
    if counts is None:
        counts = new_counts()
    packets = np.zeros(len(frames), PACKET)
    ports = np.array(sorted({*VXLAN_PORTS, *vxlan_ports}), np.int64)
    decode(data, frames, packets, link_types, interfaces, ports, segment, first_frame_number, counts)
    return packets


def new_counts() -> npt.NDArray[np.int64]:
    """Zeros for layout.COUNTED_*, and an empty time range."""
    counts = np.zeros(COUNTED_LAST_TS + 1, np.int64)
    counts[COUNTED_FIRST_TS] = np.iinfo(np.int64).max
    counts[COUNTED_LAST_TS] = np.iinfo(np.int64).min
    return counts


def decode_quotes(data: npt.NDArray[np.uint8], packets: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """The packets that ICMP errors quote (RFC 792, RFC 4443): PACKET[n] for `packets` that have a quote."""
    frames = np.zeros(len(packets), FRAME)
    frames["offset"] = packets["quote_offset"]
    frames["captured"] = packets["quote_end"] - packets["quote_offset"]
    frames["length"] = LONGEST_IP_PACKET
    link_types, interfaces = np.array([LINKTYPE_RAW], np.int64), np.zeros(1, np.int64)
    return decode_packets(
        data,
        frames,
        link_types=link_types,
        interfaces=interfaces,
        vxlan_ports=(),
        segment=0,
        first_frame_number=1,
    )


def packets_table(
    data: npt.NDArray[np.uint8],
    packets: npt.NDArray[np.void],
    segment_names: Sequence[str],
    interface_names: Sequence[str | None],
) -> pa.Table:
    """A chunk of the packets table (schemas.PACKETS) from PACKET records that know their flows."""
    is_ip = packets["ip_version"] != 0
    protocol = packets["protocol"].astype(np.int32)
    is_tcp = is_ip & (protocol == TCP) & (packets["tcp_analyzable"] != 0)
    is_icmp = is_ip & ((protocol == ICMP) | (protocol == ICMPV6)) & (packets["payload_offset"] > 0)
    is_arp = packets["network"] == NETWORK_ARP
    ip, tcp, icmp = columns.bitmap(is_ip), columns.bitmap(is_tcp), columns.bitmap(is_icmp)
    ports = columns.bitmap(is_ip & (packets["has_ports"] != 0))
    timestamps = columns.bitmap(is_tcp & (packets["has_timestamps"] != 0))
    tunnelled = (packets["outer_src_lo"] | packets["outer_src_hi"] | packets["outer_dst_lo"]) != 0
    src, dst = columns.addresses(
        (packets["src_hi"], packets["src_lo"]), (packets["dst_hi"], packets["dst_lo"]), validity=ip
    )
    values: dict[str, Column] = {
        "ts": columns.times(packets["ts"]),
        "interface": columns.some_names(packets["interface"], interface_names),
        "direction": columns.some_names(packets["direction"], [None, "in", "out"]),
        "segment": columns.names(packets["segment"], segment_names),
        "flow_uid": columns.uids(packets["flow_uid"], columns.bitmap(packets["flow_uid"] != 0)),
        "is_copy": columns.flags(packets["is_copy"]),
        "src_ip": src,
        "dst_ip": dst,
        "protocol": columns.names(
            np.where(is_arp, columns.ARP_NAME, protocol), columns.PROTOCOL_NAMES, columns.bitmap(is_ip | is_arp)
        ),
        "encapsulation": columns.encapsulations(packets["encapsulation"]),
        "malformed": columns.some_names(packets["malformed"].astype(np.int32), [None, *MALFORMED_NAMES[1:]]),
        **_outer_addresses(packets, tunnelled),
        **_quotes(data, packets),
    }
    validity = dict.fromkeys(["src_port", "dst_port"], ports) | dict.fromkeys(["icmp_type", "icmp_code"], icmp)
    validity |= dict.fromkeys(["tcp_flags", "tcp_seq", "tcp_ack", "tcp_window"], tcp)
    validity |= dict.fromkeys(["ttl", "payload_length"], ip)
    validity |= {name: columns.bitmap(packets[name] >= 0) for name in ("ip_id", "vni", "vlan")}
    for name in ("file_offset", "frame_number", "length", *validity):
        values[name] = columns.numbers(packets[name], PACKETS.schema.field(name).type, validity.get(name))
    values["tcp_tsval"] = columns.numbers(packets["tsval"], pa.uint32(), timestamps)
    return columns.to_table("packets", values)


def _nulls(name: str, length: int) -> Any:
    return pa.nulls(length, PACKETS.schema.field(name).type)


def _outer_addresses(packets: npt.NDArray[np.void], tunnelled: npt.NDArray[np.bool_]) -> dict[str, Column]:
    if not tunnelled.any():
        return {name: _nulls(name, len(packets)) for name in ("outer_src_ip", "outer_dst_ip")}
    src, dst = columns.addresses(
        (packets["outer_src_hi"], packets["outer_src_lo"]),
        (packets["outer_dst_hi"], packets["outer_dst_lo"]),
        validity=columns.bitmap(tunnelled),
    )
    return {"outer_src_ip": src, "outer_dst_ip": dst}


def _quotes(data: npt.NDArray[np.uint8], packets: npt.NDArray[np.void]) -> dict[str, Column]:
    """The quoted_ columns."""
    quoting = np.flatnonzero(packets["quote_offset"] >= 0)
    wanted = ("quoted_protocol", "quoted_src_ip", "quoted_src_port", "quoted_dst_ip", "quoted_dst_port")
    if not len(quoting):
        return {name: _nulls(name, len(packets)) for name in wanted}
    quotes = np.zeros(len(packets), PACKET)
    quotes[quoting] = decode_quotes(data, packets[quoting])
    ip = columns.bitmap(quotes["ip_version"] != 0)
    ports = columns.bitmap((quotes["ip_version"] != 0) & (quotes["has_ports"] != 0))
    src, dst = columns.addresses(
        (quotes["src_hi"], quotes["src_lo"]), (quotes["dst_hi"], quotes["dst_lo"]), validity=ip
    )
    return {
        "quoted_protocol": columns.names(quotes["protocol"].astype(np.int32), columns.PROTOCOL_NAMES, ip),
        "quoted_src_ip": src,
        "quoted_dst_ip": dst,
        "quoted_src_port": columns.numbers(quotes["src_port"], pa.uint16(), ports),
        "quoted_dst_port": columns.numbers(quotes["dst_port"], pa.uint16(), ports),
    }
