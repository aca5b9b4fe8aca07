"""Packets: what is in each frame, down to the innermost packet that can be read.

Tunnels are followed (VXLAN, Geneve, GRE, ERSPAN, IP in IP, MPLS); the addresses of the outermost IP header are kept.
Lengths are the wire's, whatever the snaplen left. Damage is a flag of the packet, never an exception.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from analysis import rooms
from analysis.layout import (
    COUNTED_COPIES,
    COUNTED_FIRST_TS,
    COUNTED_LAST_TS,
    FRAME,
    LINKTYPE_RAW,
    PACKET,
)
from analysis.packets_kernels import decode

if TYPE_CHECKING:
    pass

BLANK: Final = np.zeros(1, PACKET)
"""A packet of which nothing is known."""
for _name in ("ip_id", "vni", "vlan", "flow", "ifindex", "quote_offset"):
    BLANK[_name] = -1
BLANK["tcp_window_scale"] = 255

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
    room: npt.NDArray[np.void] | None = None,
) -> npt.NDArray[np.void]:
    """Decodes a chunk.

    `data`: the chunk's bytes. `frames`: FRAME[n]. `link_types`, `interfaces`: link type and observation point by the
    frames' interface. `counts`, from new_counts(), is added to. Returns PACKET[n], in `room` if that is given; flow
    columns are not set yet.
    """
    if counts is None:
        counts = new_counts()
    packets = rooms.zeros(len(frames), PACKET) if room is None else room
    ports = np.array(sorted({*VXLAN_PORTS, *vxlan_ports}), np.int64)
    decode(data, frames, packets, BLANK, link_types, interfaces, ports, segment, first_frame_number, counts)
    return packets


def new_counts() -> npt.NDArray[np.int64]:
    """Zeros for layout.COUNTED_*, and an empty time range."""
    counts = np.zeros(COUNTED_COPIES + 1, np.int64)
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
