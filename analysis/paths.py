"""Paths: in which order the packets of a connection pass its observation points, each way, and how long each hop takes.

Only packets that several points saw say anything, and of these only those whose key no other packet of the flow has.
One point is before another if most packets that both saw came there first. A hop that is never seen is no hop: Cilium's
redirects, XDP and offload make packets skip interfaces.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from analysis import paths_kernels as kernels
from analysis import rooms

Records = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

NOWHERE: Final = 1 << 20
"""The position of a flow none of whose packets was seen elsewhere."""
SEEN: Final = np.dtype(
    [
        ("way", "i8"),  # 2 * connection + 1 if its orig sent the packet
        ("key", "u8"),
        ("ts", "i8"),  # corrected by the node's clock offset
        ("row", "i8"),  # of the table packets: the order of equal times
        ("flow", "i4"),
        ("packet", "i4"),  # ordinal of (way, key)
    ],
    align=True,
)
"""One packet at one point."""
STEP: Final = np.dtype([("way", "i8"), ("flow", "i4"), ("position", "i4")], align=True)
"""One point of a path."""
HOP: Final = np.dtype([("way", "i8"), ("flow", "i4"), ("next_flow", "i4"), ("latency_ns", "i8")], align=True)
"""One packet that went from one point of its path to the next."""


def seen_packets(sightings: Records, connection: Integers, flipped: Flags) -> Records:
    """SEEN, sorted by (way, key, ts): the sightings of connections with several flows, but for keys that repeat.

    `sightings` are sorted by (key, ts).
    """
    several = np.bincount(connection, minlength=len(connection)) > 1
    at = np.flatnonzero(several[connection[sightings["flow"]]])
    flow = sightings["flow"][at]
    way = 2 * connection[flow] + ((sightings["sender"][at] == 1) ^ flipped[flow])
    order = np.argsort(way, kind="stable")
    at, way, flow = at[order], way[order], flow[order]
    packet = np.cumsum(_changes(way, sightings["key"][at]))
    place = packet * len(connection) + flow
    order = np.argsort(place, kind="stable")
    again = ~_changes(place[order])
    once = np.ones(len(at), np.bool_)
    once[order[again | np.append(again[1:], False)[: len(again)]]] = False
    shared = np.bincount(packet[once], minlength=len(at) + 1)[packet] > 1
    kept = np.flatnonzero(once & shared)
    seen = np.empty(len(kept), SEEN)
    seen["way"], seen["flow"] = way[kept], flow[kept]
    for name in ("key", "ts", "row"):
        seen[name] = sightings[name][at[kept]]
    seen["packet"] = np.cumsum(_changes(packet[kept])) - 1
    return seen


def with_first_datagrams(seen: Records, facts: Records, connection: Integers, flipped: Flags) -> Records:
    """SEEN, sorted by (way, key, ts), and with it the first datagram of ways of which none was compared, as none has an
    IP id: at each point that saw datagrams of the same lengths.

    Clocks are not to be compared by it: at two nodes it may be another one.
    """
    several = np.bincount(connection, minlength=len(connection)) > 1
    compared = np.zeros(2 * len(facts), np.bool_)
    compared[seen["way"]] = True
    parts = []
    for side, by_orig in (("orig", True), ("resp", False)):
        way = 2 * connection + (flipped ^ by_orig)
        flow = np.flatnonzero(several[connection] & (facts[f"{side}_shape"] != 0) & ~compared[way])
        part = np.empty(len(flow), SEEN)
        part["way"], part["flow"], part["key"] = way[flow], flow, facts[f"{side}_shape"][flow]
        part["ts"], part["row"] = facts[f"{side}_first"][flow], facts[f"{side}_row"][flow]
        parts.append(part)
    added = rooms.joined(parts, SEEN)
    if not len(added):
        return seen
    added = rooms.taken(added, np.lexsort((added["row"], added["ts"], added["key"], added["way"])))
    packet = np.cumsum(_changes(added["way"], added["key"])) - 1
    added["packet"] = packet + seen["packet"].max(initial=-1) + 1
    every = rooms.joined([seen, rooms.taken(added, np.bincount(packet)[packet] > 1)], SEEN)
    every = rooms.taken(every, np.argsort(every["way"], kind="stable"))
    every["packet"] = np.cumsum(_changes(every["packet"])) - 1
    return every


def by_packet(seen: Records) -> Records:
    """SEEN, sorted by packet and time."""
    return rooms.taken(seen, np.lexsort((seen["row"], seen["ts"], seen["packet"])))


def paths(seen: Records) -> Records:
    """STEPs, sorted by (way, position). `seen`: SEEN with corrected times."""
    steps = np.empty(len(seen), STEP)
    points = kernels.MOST_POINTS
    flows, before = np.empty(points, np.int32), np.empty((points, points), np.int64)
    left, first = np.empty(points, np.bool_), np.empty(points, np.int64)
    return steps[: kernels.order(seen, steps, flows, before, left, first)]


def positions(steps: Records, flows: int) -> Integers:
    """position[flow, 1] on the path of what orig sends, [flow, 0] of what resp sends; NOWHERE."""
    position = np.full((flows, 2), NOWHERE)
    position[steps["flow"], steps["way"] & 1] = steps["position"]
    return position


def hops(seen: Records, position: Integers) -> Records:
    """HOPs of all packets that two points saw which follow each other on the path. `position`: as positions()."""
    position = position[seen["flow"], seen["way"] & 1]
    found = position != NOWHERE
    rows, position = rooms.taken(seen, found), position[found]
    order = np.argsort(rows["packet"].astype(np.int64) * NOWHERE + position, kind="stable")
    rows, position = rooms.taken(rows, order), position[order]
    next_ = (rows["packet"][1:] == rows["packet"][:-1]) & (position[1:] == position[:-1] + 1)
    one, other = rooms.taken(rows[:-1], next_), rooms.taken(rows[1:], next_)
    made = np.empty(len(one), HOP)
    made["way"], made["flow"], made["next_flow"] = one["way"], one["flow"], other["flow"]
    made["latency_ns"] = other["ts"] - one["ts"]
    return made


def _changes(*values: npt.NDArray[Any]) -> Flags:
    """Whether a row begins other values than those of the row before it."""
    changes: Flags = np.ones(len(values[0]), np.bool_)
    changes[1:] = False
    for each in values:
        changes[1:] |= each[1:] != each[:-1]
    return changes
