"""Where the copies of a TCP byte went that was sent more than once."""

from __future__ import annotations

import numpy as np

from analysis.kernel_compiler import inner, kernel

NEVER = np.int64(-(1 << 62))


@inner
def first_from(events, begin, end, relative):
    """The first of events[begin:end] whose `relative` is not below."""
    while begin < end:
        middle = (begin + end) // 2
        if events[middle]["relative"] < relative:
            begin = middle + 1
        else:
            end = middle
    return begin


@kernel
def find(carried, flow_ways, ways, events, sends):
    """Writes which packets carried the first byte of an event; returns how many, or -1 if there is no room.

    carried: CARRIED[n]; flow_ways[f, s]: index into `ways` of what orig (s = 1) or resp sends on flow f, -1: none with
    events; ways: EVENT_WAY; events: EVENT, sorted by way and relative number; sends: SEND.
    """
    count = 0
    for i in range(len(carried)):
        packet = carried[i]
        number = flow_ways[packet["flow"], packet["sender"]]
        if number < 0:
            continue
        way = ways[number]
        relative = (np.int64(packet["seq"]) - way["base"]) & 0xFFFFFFFF
        at = first_from(events, way["begin"], way["end"], relative)
        while at < way["end"] and events[at]["relative"] < relative + packet["length"]:
            if count == len(sends):
                return -1
            send = sends[count]
            send["event"], send["flow"], send["ts"] = at, packet["flow"], packet["ts"]
            count += 1
            at += 1
    return count


@inner
def match(sends, begin, end, flow, slack, times, may, came, arrivals):
    """Sets came[k]: whether the send at times[k] (sorted) came to a flow, by its sends[begin:end], sorted by time; if
    so, arrivals[k] is when. Of the sends only those that `may`. Returns how many packets belong to none.

    What came belongs to the last send before it that nothing that came later belongs to: packets hardly overtake each
    other, and a busy node may see one long after the next was sent. `slack`: how far the two clocks may be apart.
    """
    came[:] = False
    send = len(times) - 1
    left = 0
    for k in range(end - 1, begin - 1, -1):
        if sends[k]["flow"] != flow:
            continue
        while send >= 0 and (not may[send] or times[send] > sends[k]["ts"] + slack):
            send -= 1
        if send < 0:
            left += 1
        else:
            came[send] = True
            arrivals[send] = sends[k]["ts"]
            send -= 1
    return left


@inner
def apart(one, other):
    """How far the clocks of two flows may be apart."""
    return one["bound"] + other["bound"] if one["node"] != other["node"] else np.int64(0)


@kernel
def locate(events, ways, points, clocks, sends, starts, found, all_times, all_came):
    """Writes what became of the send before each event into found[e, :2], and of the event's own into found[e, 2:].

    That is the last point of the way that saw it, and the next one; -1: none there. An event's own send is told if no
    other followed it, else both are -1. points: STEP, those of a way in the order of its path; clocks: FLOW_CLOCK;
    sends[starts[e] : starts[e + 1]]: SENDs of event e, sorted by time. all_times: int64[3, m + 1] and all_came:
    bool[2, m + 1], room to work in, where m is the most SENDs that an event has.

    What came to a point is what came to the point before it, by the times there: what is still under way when its byte
    is sent again is no loss of what follows. Only where that does not explain all that came, because that point missed
    some in capturing, it may be any of the sends.
    """
    for e in range(len(events)):
        event = events[e]
        way = ways[event["way"]]
        sender = clocks[way["flow"]]
        begin, end = starts[e], starts[e + 1]
        is_again = event["previous_ts"] != NEVER
        own, count = -1, 0
        for k in range(begin, end):
            if sends[k]["flow"] == way["flow"]:
                if is_again and count == 0 and sends[k]["ts"] >= event["ts"]:
                    all_times[0, 0] = event["previous_ts"]
                    count = 1
                if sends[k]["ts"] <= event["ts"]:
                    own = count
                all_times[0, count] = sends[k]["ts"]
                count += 1
        times, times_before, arrivals = all_times[0, :count], all_times[1, :count], all_times[2, :count]
        came, came_before = all_came[0, :count], all_came[1, :count]
        for k in range(count):
            times_before[k], came_before[k] = times[k], True
        before = sender
        is_last = own == count - 1
        found[e, :] = -1
        if not is_again:
            found[e, 1] = way["flow"]
        is_behind = False
        for p in range(way["first_point"], way["last_point"]):
            flow = points[p]["flow"]
            clock = clocks[flow]
            if flow == way["flow"]:
                is_behind = True
                if is_again:
                    found[e, 0] = flow
                if is_last:
                    found[e, 2] = flow
                continue
            if not is_behind or own < 0:
                continue
            slack = apart(sender, clock)
            if match(sends, begin, end, flow, apart(before, clock), times_before, came_before, came, arrivals):
                came_before[:] = True
                match(sends, begin, end, flow, slack, times, came_before, came, arrivals)
            for k in range(count):
                came_before[k], times_before[k] = came[k], arrivals[k]
            before = clock
            if is_again:
                if came[own - 1]:
                    found[e, 0], found[e, 1] = flow, -1
                elif found[e, 1] < 0:
                    found[e, 1] = flow
            if is_last:
                if came[own] or clock["last_seen"] <= event["ts"] + slack:
                    found[e, 2], found[e, 3] = flow, -1
                elif found[e, 3] < 0:
                    found[e, 3] = flow
