"""Where the copies of a TCP byte went that was sent more than once."""

from __future__ import annotations

import numba
import numpy as np

kernel = numba.njit(cache=True, boundscheck=True, nogil=True, no_cfunc_wrapper=True)
inner = numba.njit(boundscheck=True, nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)

NEVER, FOREVER = np.int64(-(1 << 62)), np.int64(1 << 62)


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
def came_at(sends, begin, end, flow, since, until):
    """How many of sends[begin:end] a flow saw in that time."""
    count = 0
    for k in range(begin, end):
        count += sends[k]["flow"] == flow and since <= sends[k]["ts"] < until
    return count


@kernel
def locate(events, ways, points, last_seen, sends, starts, found):
    """Writes what became of the send before each event into found[e, :2], and of the event's own into found[e, 2:].

    That is the last point of the way that saw it, and the next one; -1: none there. An event's own send is told if no
    other followed it, else both are -1. points: STEP, those of a way in the order of its path; last_seen: time of each
    flow's last packet; sends[starts[e] : starts[e + 1]]: SENDs of event e. A point saw a send if the byte came there
    after it and before the next one, or as often as it was sent until then: late, and sent again for nothing.
    """
    for e in range(len(events)):
        event = events[e]
        way = ways[event["way"]]
        begin, end = starts[e], starts[e + 1]
        next_send = FOREVER
        for k in range(begin, end):
            if sends[k]["flow"] == way["flow"] and sends[k]["ts"] > event["ts"]:
                next_send = min(next_send, sends[k]["ts"])
        found[e, :] = -1
        if event["previous_ts"] == NEVER:
            found[e, 1] = way["flow"]
        sent = came_at(sends, begin, end, way["flow"], NEVER, next_send)
        is_behind = False
        for p in range(way["first_point"], way["last_point"]):
            flow = points[p]["flow"]
            if flow == way["flow"]:
                is_behind = True
                if event["previous_ts"] != NEVER:
                    found[e, 0] = flow
                found[e, 2] = flow
                continue
            if not is_behind:
                continue
            all_came = came_at(sends, begin, end, flow, NEVER, next_send) >= sent
            if event["previous_ts"] != NEVER:
                if all_came or came_at(sends, begin, end, flow, event["previous_ts"], event["ts"]):
                    found[e, 0], found[e, 1] = flow, -1
                elif found[e, 1] < 0:
                    found[e, 1] = flow
            if all_came or came_at(sends, begin, end, flow, event["ts"], next_send) or last_seen[flow] <= event["ts"]:
                found[e, 2], found[e, 3] = flow, -1
            elif found[e, 3] < 0:
                found[e, 3] = flow
        if next_send != FOREVER:
            found[e, 2:] = -1
