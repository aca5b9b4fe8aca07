"""Where packets were lost: between the last point that saw what was sent again, and the first that did not.

An event is a retransmission as its sender's nearest point tells it. Of the sends of its first byte, as many were lost
before a point as did not come there; which, is told by when the others came, there and to the point before. Points that
only some packets of a way went past say nothing: a hop that is never seen is no loss. A point that missed what a later
one saw lost it in capturing.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from analysis import losses_kernels as kernels

Records = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]

EVENT: Final = np.dtype(
    [
        ("ts", "i8"),
        ("previous_ts", "i8"),  # kernels.NEVER: not seen before
        ("relative", "i8"),  # first byte's number from the way's base on
        ("seq", "u4"),
        ("way", "i4"),  # index into EVENT_WAY
        ("row", "i4"),  # of the retransmits
    ],
    align=True,
)
EVENT_WAY: Final = np.dtype(
    [
        ("way", "i8"),
        ("base", "i8"),  # a sequence number well below all events'
        ("begin", "i4"),  # its events
        ("end", "i4"),
        ("first_point", "i4"),  # its points
        ("last_point", "i4"),
        ("flow", "i4"),  # the sender's nearest
    ],
    align=True,
)
SEND: Final = np.dtype([("event", "i4"), ("flow", "i4"), ("ts", "i8")], align=True)
FLOW_CLOCK: Final = np.dtype(
    [
        ("last_seen", "i8"),  # corrected
        ("bound", "i8"),  # of the node's clock, corrected, in nanoseconds
        ("node", "i4"),
    ],
    align=True,
)

BELOW: Final = 1 << 21
"""No packet is longer than this."""
MOST_PASS: Final = 0.5
"""Share of the packets that a point must have seen of those that went past it, to say anything."""


def points_passed(seen: Records, steps: Records, mask: npt.NDArray[np.int32]) -> Records:
    """The STEPs without the points that most packets of their way do not go past. `mask`: that of each flow's keys."""
    place = np.zeros((len(mask), 2), np.int64)
    place[steps["flow"], steps["way"] & 1] = np.arange(len(steps))
    at = place[seen["flow"], seen["way"] & 1]
    count = int(seen["packet"].max(initial=-1)) + 1
    first, last = np.full(count, np.iinfo(np.int64).max), np.full(count, -1)
    np.minimum.at(first, seen["packet"], at)
    np.maximum.at(last, seen["packet"], at)
    key = np.zeros(count, np.uint64)
    key[seen["packet"]] = seen["key"]
    passed, saw = np.zeros(len(steps), np.int64), np.zeros(len(steps), np.int64)
    longest = int((last - first).max(initial=0))
    for step in range(1, longest):
        point = first + step
        within = point < last
        point, keys = point[within], key[within]
        chosen = keys & mask[steps["flow"][point]].astype(np.uint64) == 0
        np.add.at(passed, point[chosen], 1)
    inside = (at > first[seen["packet"]]) & (at < last[seen["packet"]])
    np.add.at(saw, at[inside], 1)
    begins = np.append(True, steps["way"][1:] != steps["way"][:-1])
    ends = np.append(begins[1:], True)
    kept = begins | ends | (saw >= MOST_PASS * np.maximum(passed, 1))
    points: Records = steps[kept]
    return points


def events_of(
    way: Integers, ts: Integers, delay_ns: Integers, seq: npt.NDArray[np.uint32], row: Integers, sender_flow: Integers
) -> tuple[Records, Records]:
    """(EVENT, EVENT_WAY) of retransmissions, sorted by way and sequence number; `delay_ns` < 0: not seen before."""
    _, first, place = np.unique(way, return_index=True, return_inverse=True)
    base = (seq[first].astype(np.int64)[place] - BELOW) & 0xFFFFFFFF
    relative = (seq.astype(np.int64) - base) & 0xFFFFFFFF
    order = np.lexsort((ts, relative, way))
    events = np.empty(len(way), EVENT)
    for name, values in (("ts", ts), ("relative", relative), ("seq", seq), ("row", row)):
        events[name] = values[order]
    events["previous_ts"] = np.where(delay_ns < 0, kernels.NEVER, ts - delay_ns)[order]
    numbers, begin, place = np.unique(way[order], return_index=True, return_inverse=True)
    events["way"] = place
    ways = np.zeros(len(numbers), EVENT_WAY)
    ways["way"], ways["base"], ways["flow"] = numbers, base[order][begin], sender_flow[numbers]
    ways["begin"], ways["end"] = begin, np.append(begin[1:], len(events))
    return events, ways


def losses(
    events: Records,
    ways: Records,
    points: Records,
    carried: Records,
    flow_ways: npt.NDArray[np.int32],
    clocks: Records,
) -> npt.NDArray[np.int32]:
    """For each event, what became of the send before it, and of its own if it was the last: four flows, -1 for none.

    Each two are the flows at the last point that saw it, and at the next one. `carried`: CARRIED with corrected
    times; `flow_ways[f, s]`: the index into `ways` of what orig (s = 1) or resp of flow f sends, -1: nothing to look
    for; `clocks`: FLOW_CLOCK of each flow.
    """
    ways["first_point"] = np.searchsorted(points["way"], ways["way"])
    ways["last_point"] = np.searchsorted(points["way"], ways["way"], side="right")
    found = _sends(carried, flow_ways, ways, events)
    found = found[np.lexsort((found["ts"], found["event"]))]
    starts = np.searchsorted(found["event"], np.arange(len(events) + 1))
    located = np.empty((len(events), 4), np.int32)
    room = int(np.diff(starts).max(initial=0)) + 1
    times, came = np.empty((3, room), np.int64), np.empty((2, room), np.bool_)
    kernels.locate(events, ways, points, clocks, found, starts, located, times, came)
    return located


def _sends(carried: Records, flow_ways: npt.NDArray[np.int32], ways: Records, events: Records) -> Records:
    room = max(len(carried), 1)
    while True:
        sends = np.empty(room, SEND)
        count = kernels.find(carried, flow_ways, ways, events, sends)
        if count >= 0:
            return sends[:count]
        room *= 8
