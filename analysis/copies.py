"""Copies: packets that a capture without interface names shows again.

Where interfaces have names, each is an observation point, and nothing is a copy. A capture of all interfaces in the
format SLL, one that was merged of several, and one of a mirror port show a packet as often as it passed, at one
point. The first time counts; what comes within 100 ms and shows the same is a copy:

- TCP is compared by bytes, for GSO and GRO cut differently: a packet shows again what one before it did if its first
  byte is in that one, nothing in it is new, and acknowledgment, window, timestamps and SYN and RST are the same.
- IPv4 ids must agree, those of cuts by their distance. Where there is one, that is enough: a retransmission has its
  own. One look only (link-layer source, TTL, tunnel, VLAN, direction) is no copy, but a duplicate that the network
  made, where the capture has one interface: there, packets of that look must come twice as a rule.
- Without ids (IPv6, SYN-ACK), order tells. The k-th packet of one look is a copy if k alike of another look were
  seen; a look each of whose packets comes n times (a bridge and its port) has its k-th after n times as many. How
  often that is, the first packet tells (nothing is sent twice within 20 ms of it), later the greater number. Without
  timestamps either, some of what is sent again at once may pass for a copy: counts are then a lower bound.
- Where a snap length left no TCP options, as it may in a tunnel alone, they count for nothing between what has
  them and what has not; where they are, timestamps tell how often a packet was sent.
- Other packets without ids are compared by length and the first 64 bytes of payload. Where not all these were captured,
  one look shows each once; so it does in a capture of one interface, unless other packets come twice as a rule.

What is kept is bounded: the last 65,536 packets of all flows, and eight looks of each side of a flow.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from analysis import copies_kernels as kernels
from analysis import rooms
from analysis.layout import POINT_NAMED

Records = npt.NDArray[Any]


class Copies:
    """What a recording showed last, at points without a name; carried over chunks and file borders."""

    def __init__(self) -> None:
        self._memory: kernels.Memory | None = None

    def mark(self, data: npt.NDArray[np.uint8], packets: Records, points: npt.NDArray[np.int64], slots: int) -> int:
        """Set is_copy of assigned PACKET[n]; returns of how many.

        `data`: of their chunk; `points` (layout.POINT_*) by observation point; `slots`: flows have smaller numbers.
        """
        if (points == POINT_NAMED).all():
            return 0
        memory = self._memory or kernels.Memory(
            rooms.zeros(kernels.MOST_LOGGED, kernels.LOGGED),
            rooms.zeros(0, kernels.LANE),
            rooms.zeros(0, kernels.LANE),
            np.zeros(3, np.int64),
        )
        self._memory = memory = memory._replace(
            sides=rooms.grown(memory.sides, 2 * slots),
            lanes=rooms.grown(memory.lanes, 2 * slots * kernels.MORE_LANES),
        )
        with np.errstate(over="ignore"):
            return int(kernels.mark(packets, data, points, memory))
