"""How far the nodes' clocks are apart, from packets that two nodes saw.

A packet that goes from node a to node b is seen there later by its latency and by b's offset; one that comes back, by
the offset less its latency. So the least difference one way and the greatest the other way bound the offset from above
and below: their middle is the estimate, half their distance the bound that no latency can break. A clock that runs too
fast is a line, of the slope that leaves most room between the bounds; one that is set anew breaks them, and the time is
cut in two until they hold.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from analysis import rooms
from analysis.layout import NANOSECONDS

Records = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]

WINDOW_NS: Final = 60 * NANOSECONDS
SHORTEST_NS: Final = 2 * NANOSECONDS
TOLERANCE_NS: Final = 20_000
"""The bounds may cross by this much: a slope is not exact."""
FEWEST_SECONDS: Final = 5
"""With packets each way, for a slope."""
STEEPEST, FLATTEST = 1e-3, 1e-9
"""No clock gains more, and no difference below matters: 1,000 and 0.001 parts in a million."""
CROSSING: Final = np.dtype([("left", "i8"), ("right", "i8"), ("difference", "i8"), ("forth", "?")])
"""A packet that two nodes saw: when, and how much later on the right, by the nodes' own clocks."""


@dataclass(frozen=True)
class Offset:
    """By how much a node's clock was ahead of the reference node's, from `start_ns` to `end_ns` by its own clock."""

    node: int
    start_ns: int
    end_ns: int
    offset_ns: int
    """In the middle of that time."""
    drift_ppb: int
    """Nanoseconds a second that it gains."""
    bound_ns: int
    """The offset in the middle is within this of the truth."""
    packets: int
    """Seen by both, both ways."""


Crossings = dict[tuple[int, int], Records]
"""For each two nodes (left, right) CROSSINGs of the packets that both saw."""


def clock_offsets(parts: Iterable[Crossings]) -> list[Offset]:
    """The offsets of all nodes that share packets with the first one, directly or by others; of that one, none."""
    crossings = _joined(parts)
    found: list[Offset] = []
    known = {0}
    while True:
        ahead = [pair for pair in crossings if (pair[0] in known) != (pair[1] in known)]
        if not ahead:
            return found
        pair = max(ahead, key=lambda each: len(crossings[each]))
        rows = crossings.pop(pair)
        parent, child = pair if pair[0] in known else pair[::-1]
        difference = rows["difference"] if parent == pair[0] else -rows["difference"]
        forth = rows["forth"] if parent == pair[0] else ~rows["forth"]
        times = rows["right"] if parent == pair[0] else rows["left"]
        base = rows["left"] if parent == pair[0] else rows["right"]
        difference = difference + base - corrected(base, np.full(len(base), parent), found)
        found += _fitted(child, times, difference, forth)
        known.add(child)


def corrected(ts: Integers, node: Integers, offsets: list[Offset]) -> Integers:
    """Times by the reference node's clock; of nodes without an offset, as they are."""
    result = ts.copy()
    for number in {offset.node for offset in offsets}:
        windows = sorted((each for each in offsets if each.node == number), key=lambda each: each.start_ns)
        at = np.flatnonzero(node == number)
        starts = np.array([window.start_ns for window in windows[1:]], np.int64)
        which = np.searchsorted(starts, ts[at], side="right")
        middle = np.array([(window.start_ns + window.end_ns) // 2 for window in windows])[which]
        offset = np.array([window.offset_ns for window in windows])[which]
        drift = np.array([window.drift_ppb for window in windows])[which]
        result[at] -= offset + np.rint((ts[at] - middle) * (drift / NANOSECONDS)).astype(np.int64)
    return result


def told_by(ts: Integers, offsets: list[Offset]) -> Integers:
    """Times of the reference node's clock as a node's clock told them, of which these are the offsets."""
    result = ts.copy()
    nodes = np.full(len(ts), offsets[0].node)
    for _ in range(2):  # an offset is known by the time of the node's own clock
        result = ts + result - corrected(result, nodes, offsets)
    return result


def bounds(node: Integers, offsets: list[Offset]) -> Integers:
    """By how much corrected times of these nodes may be wrong, in nanoseconds: the widest bound of each node."""
    widest = np.zeros(int(node.max(initial=-1)) + 1, np.int64)
    for offset in offsets:
        widest[offset.node] = max(widest[offset.node], offset.bound_ns)
    return widest[node]


def _joined(parts: Iterable[Crossings]) -> Crossings:
    """Of each two nodes all crossings, if there are any both ways."""
    pairs: dict[tuple[int, int], list[Records]] = {}
    for part in parts:
        for pair, rows in part.items():
            pairs.setdefault(pair, []).append(rows)
    joined = {pair: rooms.joined(rows, CROSSING) for pair, rows in pairs.items()}
    return {pair: rows for pair, rows in joined.items() if rows["forth"].any() and not rows["forth"].all()}


def crossings_of(seen: Records, node: Integers) -> Crossings:
    """The packets of whole connections that two nodes saw, as long as each of both ways is there.

    `seen`: SEEN by the nodes' own clocks, sorted by (packet, ts); `node`: the node of each flow.
    """
    order = np.argsort(seen["packet"].astype(np.int64) * (node.max(initial=0) + 1) + node[seen["flow"]], kind="stable")
    rows, nodes = rooms.taken(seen, order), node[seen["flow"][order]]
    if not len(rows):
        return {}
    begin = np.flatnonzero(np.append(True, (rows["packet"][1:] != rows["packet"][:-1]) | (nodes[1:] != nodes[:-1])))
    first, last = rows["ts"][begin], rows["ts"][np.append(begin[1:], len(rows)) - 1]
    packet, way, nodes = rows["packet"][begin], rows["way"][begin], nodes[begin]
    pairs: dict[tuple[int, int], list[Records]] = {}
    step = 1
    while (same := packet[step:] == packet[:-step]).any():
        a = np.flatnonzero(same)
        b = a + step
        both = nodes[a] << 32 | nodes[b]
        for pair in np.unique(both).tolist():
            at = both == pair
            pairs.setdefault((pair >> 32, pair & 0xFFFFFFFF), []).append(
                _directed(way[a[at]], first, last, a[at], b[at])
            )
        step += 1
    return {pair: rooms.joined(parts, CROSSING) for pair, parts in pairs.items()}


def _directed(way: Integers, first: Integers, last: Integers, a: Integers, b: Integers) -> Records:
    """CROSSINGs of connections both of whose ways crossed: the way that takes longer by the clocks is the one forth.

    A connection that came back to a node it had left would tell the opposite: it is left out.
    """
    connection, place = np.unique(way >> 1, return_inverse=True)
    sent = way & 1 == 1
    start = (first[b] - first[a]).astype(np.float64)
    sums = [np.bincount(place, np.where(which, start, 0.0), len(connection)) for which in (sent, ~sent)]
    counts = [np.bincount(place, which, len(connection)) for which in (sent, ~sent)]
    both = (counts[0] > 0) & (counts[1] > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        forth = sent == (sums[0] / counts[0] > sums[1] / counts[1])[place]
    rows = np.empty(len(way), CROSSING)
    rows["forth"] = forth
    rows["left"], rows["right"] = np.where(forth, last[a], first[a]), np.where(forth, first[b], last[b])
    rows["difference"] = rows["right"] - rows["left"]
    least = np.full(len(connection), np.inf)
    greatest = np.full(len(connection), -np.inf)
    np.minimum.at(least, place[forth], rows["difference"][forth])
    np.maximum.at(greatest, place[~forth], rows["difference"][~forth])
    return rooms.taken(rows, (both & (least > greatest))[place])


def _fitted(node: int, times: Integers, difference: Integers, forth: npt.NDArray[np.bool_]) -> list[Offset]:
    """Offsets in windows in which the bounds hold."""
    order = np.argsort(times)
    times, difference, forth = times[order], difference[order], forth[order]
    found: list[Offset] = []
    begin = int(times[0])
    while begin <= times[-1]:
        end = begin + WINDOW_NS
        at = slice(*np.searchsorted(times, (begin, end)))
        found += _window(node, times[at], difference[at], forth[at])
        begin = end
    return found


def _window(
    node: int, times: Integers, difference: Integers, forth: npt.NDArray[np.bool_], slope: float = 0.0
) -> list[Offset]:
    """`slope`: of the clock in the time around, for one too short to tell."""
    if not forth.any() or forth.all():
        return []
    start, end = int(times[0]), int(times[-1]) + 1
    middle = (start + end) // 2
    if min(_seconds(times[forth]), _seconds(times[~forth])) >= FEWEST_SECONDS:
        slope = _slope(times - middle, difference, forth)
    level = difference - (times - middle) * slope
    upper, lower = level[forth].min(), level[~forth].max()
    if upper < lower - TOLERANCE_NS and end - start > SHORTEST_NS:
        cut = int(np.searchsorted(times, middle))
        return [
            *_window(node, times[:cut], difference[:cut], forth[:cut], slope),
            *_window(node, times[cut:], difference[cut:], forth[cut:], slope),
        ]
    bound = abs(upper - lower) / 2
    offset = round((upper + lower) / 2)
    return [Offset(node, start, end, offset, round(slope * NANOSECONDS), int(np.ceil(bound)), len(times))]


def _seconds(times: Integers) -> int:
    """In how many seconds there are any."""
    return len(np.unique(times // NANOSECONDS))


def _slope(times: Integers, difference: Integers, forth: npt.NDArray[np.bool_]) -> float:
    """The slope at which the bounds are furthest apart: a concave function, so that thirds find its top."""
    low, high = -STEEPEST, STEEPEST
    while high - low > FLATTEST:
        left, right = low + (high - low) / 3, high - (high - low) / 3
        if _room(times, difference, forth, left) < _room(times, difference, forth, right):
            low = left
        else:
            high = right
    return (low + high) / 2


def _room(times: Integers, difference: Integers, forth: npt.NDArray[np.bool_], slope: float) -> float:
    level = difference - times * slope
    return float(level[forth].min() - level[~forth].max())
