"""Where the copies of a TCP byte went that was sent more than once."""

from __future__ import annotations

import numba
import numpy as np

from analysis.layout import FIN, SYN

kernel = numba.njit(cache=True, boundscheck=True, nogil=True, no_cfunc_wrapper=True)
inner = numba.njit(boundscheck=True, nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)

NEVER = np.int64(-(1 << 62))


@inner
def first_from(events, begin, end, relative):
    """The first of events[begin:end] whose `relative` is not below."""
    while begin < end:
        middle = (begin + end) // 2
        if events[middle].relative < relative:
            begin = middle + 1
        else:
            end = middle
    return begin


@kernel
def find(rows, flows, flow_ways, ways, events, sends):
    """Writes which packets carried the first byte of an event; returns how many, or -1 if there is no room.

    rows: PACKET_ROW[n]; flows: FLOW_FACTS; flow_ways[f, s]: index into `ways` of what orig (s = 1) or resp sends on
    flow f, -1: none with events; ways: EVENT_WAY; events: EVENT, sorted by way and relative number; sends: SEND.
    """
    count = 0
    for i in range(len(rows)):
        row = rows[i]
        if row.flow < 0:
            continue
        flow = flows[row.flow]
        sender = np.int64(row.src == flow.orig and row.src_port == flow.orig_port)
        number = flow_ways[row.flow, sender]
        if number < 0:
            continue
        length = np.int64(row.payload_length)
        if row.tcp_flags & (SYN | FIN):
            length += 1
        way = ways[number]
        relative = (np.int64(row.tcp_seq) - way.base) & 0xFFFFFFFF
        at = first_from(events, way.begin, way.end, relative)
        while at < way.end and events[at].relative < relative + length:
            if count == len(sends):
                return -1
            send = sends[count]
            send.event = at
            send.flow = row.flow
            send.ts = row.ts
            count += 1
            at += 1
    return count


@kernel
def locate(events, ways, points, sends, starts, found):
    """Writes for each event the last point of its way that saw the send before it, and the next one, into found[e].

    points: STEP, those of a way in the order of its path; sends[starts[e] : starts[e + 1]]: SENDs of event e. A
    flow of -1: none there. A point saw the send before the event if the byte came there after that send and before the
    event, or if it came there as often as it was sent (late, so that it was sent again for nothing).
    """
    for e in range(len(events)):
        event = events[e]
        way = ways[event.way]
        next_send = np.int64(1) << 62
        sent = 0
        for k in range(starts[e], starts[e + 1]):
            if sends[k].flow == way.flow:
                if sends[k].ts > event.ts:
                    next_send = min(next_send, sends[k].ts)
                else:
                    sent += 1
        last, after, is_behind = -1, -1, False
        for p in range(way.first_point, way.last_point):
            point = points[p]
            is_behind = is_behind or point.flow == way.flow
            if not is_behind:
                continue
            came, between = 0, False
            for k in range(starts[e], starts[e + 1]):
                if sends[k].flow == point.flow:
                    came += sends[k].ts < next_send
                    between = between or event.previous_ts <= sends[k].ts < event.ts
            if point.flow == way.flow or between or came >= sent:
                last, after = point.flow, -1
            elif after < 0:
                after = point.flow
        if event.previous_ts == NEVER:
            last, after = -1, way.flow
        found[e, 0], found[e, 1] = last, after
