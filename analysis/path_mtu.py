"""What routers say of a path: ICMP's "fragmentation needed" (RFC 1191) and ICMPv6's "packet too big" (RFC 8201).

From then on the sender's TCP segments are smaller than the MSS of the SYNs, and so are those in its GSO packets.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from analysis.layout import ICMP, ICMPV6, TCP

Records = npt.NDArray[Any]

IPV4_HEADER: Final = 20
IPV6_HEADER: Final = 40
TCP_HEADER: Final = 20
V4_MAPPED: Final = 0xFFFF << 32
SMALLEST_MTU: Final = 68
"""RFC 791: less is a mistake or an attack."""


def reports(packets: Records) -> list[int]:
    """Which of PACKET[n] say that a packet was too big."""
    quoting = np.flatnonzero(packets["quote_offset"] >= 0)
    found = packets[quoting]
    of_v4 = (found["protocol"] == ICMP) & (found["icmp_type"] == 3) & (found["icmp_code"] == 4)
    of_v6 = (found["protocol"] == ICMPV6) & (found["icmp_type"] == 2)
    places: list[int] = quoting[of_v4 | of_v6].tolist()
    return places


def learn(data: npt.NDArray[np.uint8], report: Any, slots: Records, sides: Records) -> None:
    """Lower the MSS of the side whose packet was too big. `slots`: flows_kernels.SLOT, `sides`: retransmits' SIDE."""
    at, end = int(report["quote_offset"]), int(report["quote_end"])
    quote = data[at:end].tobytes()
    if report["protocol"] == ICMP:
        header, mtu = (quote[0] & 15) * 4, int.from_bytes(data[at - 2 : at].tobytes(), "big")
        protocol = quote[9]
        ends = [(0, V4_MAPPED | int.from_bytes(quote[place : place + 4], "big")) for place in (12, 16)]
        mss = mtu - IPV4_HEADER - TCP_HEADER
    else:
        header, mtu = IPV6_HEADER, int.from_bytes(data[at - 4 : at].tobytes(), "big")
        if len(quote) < IPV6_HEADER:
            return
        protocol = quote[6]
        ends = [
            (int.from_bytes(quote[place : place + 8], "big"), int.from_bytes(quote[place + 8 : place + 16], "big"))
            for place in (8, 24)
        ]
        mss = mtu - IPV6_HEADER - TCP_HEADER
    ports = quote[header : header + 4]
    if protocol != TCP or len(ports) < 4 or mtu < SMALLEST_MTU:
        return
    source, destination = ((*ends[k], int.from_bytes(ports[2 * k : 2 * k + 2], "big")) for k in (0, 1))
    for a_sent, a, b in ((1, source, destination), (0, destination, source)):
        places = np.flatnonzero(slots["a_lo"] == a[1])  # few, so that all else is compared of few
        found = slots[places]
        is_it = (found["used"] == 1) & (found["protocol"] == TCP)
        for end_name, values in (("a", a), ("b", b)):
            for field, value in zip(("hi", "lo", "port"), values, strict=True):
                is_it &= found[f"{end_name}_{field}"] == value
        for slot in places[is_it].tolist():
            side = sides[2 * slot + (0 if slots[slot]["orig_is_a"] == a_sent else 1)]
            if side["mss"] == 0 or side["mss"] > mss:
                side["mss"] = mss
