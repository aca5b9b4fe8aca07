"""The order of the points that the packets of one way of a connection pass."""

from __future__ import annotations

import numpy as np

from analysis.kernel_compiler import inner, kernel

MOST_POINTS = 64


@inner
def number(flows, count, flow):
    """Where `flow` is among the first `count`; -1: it is not."""
    for k in range(count):
        if flows[k] == flow:
            return k
    return -1


@inner
def count_before(seen, begin, end, flows, before, first):
    """before[a, b]: how many packets came to a before b. Fills in `flows`, and when each saw its first packet, and
    returns how many there are."""
    points = np.int64(0)
    packet_begin = begin
    for i in range(begin, end):
        if seen[i]["packet"] != seen[packet_begin]["packet"]:
            packet_begin = i
        b = number(flows, points, seen[i]["flow"])
        if b < 0:
            if points == MOST_POINTS:
                continue
            b = points
            flows[b] = seen[i]["flow"]
            first[b] = seen[i]["ts"]
            before[b, : points + 1] = 0
            before[: points + 1, b] = 0
            points += 1
        first[b] = min(first[b], seen[i]["ts"])
        for k in range(packet_begin, i):
            a = number(flows, points, seen[k]["flow"])
            if a >= 0:
                before[a, b] += 1
    return points


@kernel
def order(seen, steps, flows, before, left, first):
    """Writes the points of each way in the order in which most packets pass them; returns how many.

    seen: SEEN[n], sorted by packet and time, whose packets are sorted by way; steps: STEP[n]. Of the points that are
    left comes next which fewest of the others are before; of those that saw none of the same packets, as where a snap
    length cut off TCP's options in a tunnel, the one that saw its first packet first. To work in: flows: int32[p],
    before: int64[p, p], left: bool[p], first: int64[p], where p is MOST_POINTS.
    """
    written = 0
    begin = 0
    while begin < len(seen):
        end = begin
        while end < len(seen) and seen[end]["way"] == seen[begin]["way"]:
            end += 1
        points = count_before(seen, begin, end, flows, before, first)
        left[:points] = True
        for position in range(points):
            best, fewest = -1, 0
            for b in range(points):
                if left[b]:
                    earlier = 0
                    for a in range(points):
                        if left[a] and before[a, b] > before[b, a]:
                            earlier += 1
                    if best < 0 or earlier < fewest or (earlier == fewest and first[b] < first[best]):
                        best, fewest = b, earlier
            left[best] = False
            steps[written]["way"] = seen[begin]["way"]
            steps[written]["flow"] = flows[best]
            steps[written]["position"] = position
            written += 1
        begin = end
    return written
