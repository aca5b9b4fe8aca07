"""Which packets show again what a capture without interface names has shown already. What the rules mean: copies.py."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from analysis.kernel_compiler import hot, inner, kernel
from analysis.layout import (
    ACK,
    FIN,
    FRAGMENT_NONE,
    NANOSECONDS,
    POINT_MIXED,
    POINT_NAMED,
    POINT_UNNAMED,
    RST,
    SCTP,
    STARTS_AFRESH,
    SYN,
    TCP,
    TCP_CUT,
    in_lines,
)
from analysis.loads import be64, prefetch

LOGGED = in_lines(
    ("content", "u8"),  # a hash of what each piece of a packet has in common with it
    ("bare", "u8"),  # of it without TCP options
    ("ts", "i8"),
    ("before", "i8"),  # number of the entry before it of this side, 0 = none
    ("look", "u4"),
    ("seq", "u4"),
    ("end", "u4"),
    ("top", "u4"),  # the highest end of this side until here
    ("top_ack", "u4"),
    ("ip_id", "u4"),  # 0 = none
    ("nth", "u2"),  # of the packets that are alike: which of them
    ("nth_bare", "u2"),  # of those that are but for their options; of what is no stream, how many were before
    ("is_first", "u1"),  # as in its lane
    ("is_copy", "u1"),
    ("is_stream", "u1"),  # TCP, of which bytes are compared
    ("is_cut", "u1"),  # options are missing
)
"""A packet that may come again."""
MOST_LOGGED = 1 << 16

LANE = in_lines(
    ("look", "u4"),
    ("new_bytes", "u4"),  # and one for each packet
    ("known_bytes", "u4"),  # of packets that had been here and looked the same
    ("new_packets", "u2"),
    ("first_repeats", "u2"),  # of the first one that is no mere ACK
    ("has_first", "u1"),
    # of the first lane of a side alone, about all of them
    ("lanes", "u1"),
    ("newest", "i8"),  # number of the side's last entry, 0 = none; of that,
    ("newest_ts", "i8"),
    ("top", "u4"),
    ("top_ack", "u4"),
)
"""What looks the same of one side of a flow: one point's packets, or those of several that can't be told apart."""
MORE_LANES = 7

WINDOW_NS = NANOSECONDS // 10
"""How much later a copy may come."""
MOMENT_NS = NANOSECONDS // 50
"""How much later a copy of a lane's first packet comes: what is sent again comes later."""
MOST_STEPS = 2048
"""So many packets are looked at for the one that this is a copy of."""
MANY = 64
SOME = 16
HASHED_BYTES = 64
SMALLEST_SEGMENT = 500
USUAL_SEGMENT = 1200
"""IPv6 asks for as much (RFC 8200, section 5), less the headers."""

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

AHEAD = 8
"""How many packets before it is needed memory is asked for."""
LOGGED_SO_FAR, NEW, AGAIN = range(3)


class Memory(NamedTuple):
    """`logged`: LOGGED[MOST_LOGGED], a ring. By slot and side: `sides`, its first LANE, and `lanes`, LANE[MORE_LANES].
    `counts`: how many entries there were; packets of all flows that were new, and those that had been here and looked
    the same."""

    logged: npt.NDArray[np.void]
    sides: npt.NDArray[np.void]
    lanes: npt.NDArray[np.void]
    counts: npt.NDArray[np.int64]


@hot
def mix(h, value):
    h = (h ^ value) * MULTIPLIER
    return h ^ (h >> np.uint64(29))


@hot
def ahead(x, y):
    """x - y modulo 2^32 as a signed number."""
    distance = (np.int64(x) - np.int64(y)) & 0xFFFFFFFF
    return distance - 0x100000000 if distance >= 0x80000000 else distance


@hot
def look_of(p):
    """What differs where a packet passes: link-layer source, TTL, tunnel, VLAN and direction, as a hash."""
    look = mix(p["l2_source"], (np.uint64(p["ttl"]) << np.uint64(32)) | np.uint64(p["encapsulation"]))
    look = mix(look, (np.uint64(p["direction"]) << np.uint64(16)) | np.uint64(p["vlan"] + 1))
    return max(look >> np.uint64(32), np.uint64(1))


@hot
def bare_of(p):
    """What all cuts of one packet have in common, but for TCP options."""
    kind = np.uint64(p["tcp_flags"] & (SYN | RST | ACK))
    return mix(np.uint64(p["tcp_ack"]), (np.uint64(p["tcp_window"]) << np.uint64(16)) | kind)


@hot
def content_of(p, data, bare, is_stream):
    """What all cuts of one packet have in common; of what is not cut, all that is known of it but its id."""
    content = mix(mix(bare, np.uint64(p["tsval"])), np.uint64(p["tsecr"]))
    if is_stream:
        return mix(content, np.uint64(p["sack_blocks"]))
    content = mix(content, (np.uint64(p["tcp_seq"]) << np.uint64(32)) | np.uint64(p["payload_length"]))
    content = mix(content, (np.uint64(p["tcp_flags"]) << np.uint64(16)) | np.uint64(p["fragment_offset"]))
    at = np.int64(p["payload_offset"])
    end = at + min(np.int64(p["payload_captured"]), HASHED_BYTES)
    while at + 8 <= end:
        content = mix(content, be64(data, at))
        at += 8
    for k in range(at, end):
        content = mix(content, np.uint64(data[k]))
    return content


@inner
def other_lane(sides, lanes, place, look):
    """The lane of this look, which the side's first one does not have: a new one if there is none, in place of the
    last if need be."""
    side = sides[place]
    lane = side
    at = np.int64(1)
    while at <= MORE_LANES and at < side["lanes"]:
        lane = lanes[place * MORE_LANES + at - 1]
        if lane["look"] == look:
            return lane
        at += 1
    if side["lanes"] == 0:
        at = np.int64(0)
    elif at <= MORE_LANES:
        lane = lanes[place * MORE_LANES + at - 1]
    side["lanes"] = min(at, MORE_LANES) + 1
    lane["look"] = look
    lane["new_bytes"] = 0
    lane["known_bytes"] = 0
    lane["new_packets"] = 0
    lane["first_repeats"] = 0
    lane["has_first"] = 0
    return lane


@hot
def count_up(lane, again, length):
    """Counts a packet of the lane; of very many bytes, all by halves."""
    if again:
        lane["known_bytes"] += length + 1
    else:
        lane["new_bytes"] += length + 1
        lane["new_packets"] = min(np.int64(lane["new_packets"]) + 1, MANY)
    if max(np.int64(lane["known_bytes"]), np.int64(lane["new_bytes"])) > 1 << 30:
        lane["known_bytes"] >>= 1
        lane["new_bytes"] >>= 1


@hot
def times_shown(lane):
    """How often each packet of a lane comes: as often as its first one did, until many say otherwise."""
    new, known = np.int64(lane["new_bytes"]), np.int64(lane["known_bytes"])
    if lane["new_packets"] >= SOME and 4 * known >= 3 * new:
        return max(1 + np.int64(lane["first_repeats"]), 1 + (2 * known + new) // (2 * new))
    if lane["new_packets"] >= MANY and 8 * known < new:
        return np.int64(1)
    return 1 + np.int64(lane["first_repeats"])


@hot
def is_cut(offset, length, distance, reaches_end):
    """Whether IP ids that are `distance` apart are those of a packet and of its cut that begins at this offset."""
    if distance == 0:
        return True
    if offset % distance or offset // distance < SMALLEST_SEGMENT:
        return False
    segment = offset // distance
    if length == segment:
        return True
    # What is sent again may have an id of which some other length would follow.
    return segment >= USUAL_SEGMENT and (length % segment == 0 or (reaches_end and length < segment))


@hot
def is_again(e, p, seq, length, is_stream):
    """Whether a packet of the same content shows what the entry does, or a cut of it that begins within it."""
    ip_id = max(np.int64(p["ip_id"]), 0)
    if (ip_id == 0) != (e["ip_id"] == 0):
        return False
    if not is_stream:
        return e["ip_id"] == ip_id
    offset = np.int64(ahead(seq, e["seq"]))
    size = np.int64(ahead(e["end"], e["seq"]))
    if length == 0 or size == 0:
        return length == size and offset == 0 and e["ip_id"] == ip_id
    if offset < 0 or offset >= size:
        return False
    if offset == 0:
        return e["ip_id"] == ip_id
    payload = np.int64(p["payload_length"])
    return ip_id == 0 or is_cut(offset, payload, (ip_id - np.int64(e["ip_id"])) & 0xFFFF, offset + length >= size)


@hot
def log(p, memory, side, content, bare, look, seq, end, nth, nth_bare, is_first, copied, is_stream, is_cut):
    number = memory.counts[LOGGED_SO_FAR] + 1
    memory.counts[LOGGED_SO_FAR] = number
    before = side["newest"]
    top, top_ack = end, np.int64(p["tcp_ack"])
    if before > 0 and number - before < MOST_LOGGED and p["ts"] - side["newest_ts"] < WINDOW_NS:
        top = np.int64(side["top"]) if ahead(side["top"], end) > 0 else top
        top_ack = np.int64(side["top_ack"]) if ahead(side["top_ack"], top_ack) > 0 else top_ack
    else:
        before = np.int64(0)
    e = memory.logged[number % MOST_LOGGED]
    e["content"] = content
    e["bare"] = bare
    e["ts"] = p["ts"]
    e["before"] = before
    e["look"] = look
    e["seq"] = seq
    e["end"] = end
    e["top"] = top
    e["top_ack"] = top_ack
    e["ip_id"] = max(np.int64(p["ip_id"]), 0)
    e["nth"] = nth & 0xFFFF
    e["nth_bare"] = nth_bare & 0xFFFF
    e["is_first"] = is_first
    e["is_copy"] = copied
    e["is_stream"] = is_stream
    e["is_cut"] = is_cut
    side["newest"] = number
    side["newest_ts"] = p["ts"]
    side["top"] = top
    side["top_ack"] = top_ack


@hot
def is_later(one, other):
    """Whether the one of two numbers is greater, which are counted modulo 2^16."""
    return 0 < (np.int64(one) - np.int64(other)) & 0xFFFF < 0x8000


@hot
def is_beyond(p, top, top_ack, seq, length):
    """Whether TCP's packet goes on where all that were seen of its side end: then it is none of them."""
    if length:
        return ahead(top, seq) <= 0
    return ahead(top_ack, p["tcp_ack"]) < 0


@hot
def is_comparable(p):
    """Whether what is hashed of it was captured: the first bytes of a tunnel's datagrams are all the same."""
    wanted = min(np.int64(p["payload_length"]), HASHED_BYTES)
    return 0 < wanted <= np.int64(p["payload_captured"])


@hot
def is_copy(p, data, memory, place, point):
    """Whether the packet was seen before; remembers it if it may be needed."""
    is_stream = np.uint8(p["protocol"] == TCP and p["tcp_analyzable"] != 0 and p["fragment"] == FRAGMENT_NONE)
    is_cut = np.uint8(is_stream and p["tcp_analyzable"] == TCP_CUT)
    flags = np.int64(p["tcp_flags"])
    length = np.int64(0)
    if is_stream:
        length = np.int64(p["payload_length"]) + (1 if flags & SYN else 0) + (1 if flags & FIN else 0)
    seq = np.int64(p["tcp_seq"])
    end = (seq + length) & 0xFFFFFFFF
    bare = bare_of(p)
    content = content_of(p, data, bare, is_stream)
    look = look_of(p)
    has_id = p["ip_id"] > 0
    side = memory.sides[place]
    lane = side
    if side["lanes"] == 0 or side["look"] != look:
        lane = other_lane(memory.sides, memory.lanes, place, look)
    # Of what looks the same, where each interface may be mixed in, the id alone tells a copy. A capture of one
    # interface may have a packet twice because the network made two of it, if that is rare.
    id_tells = point == POINT_MIXED and p["protocol"] != SCTP
    alike = np.int64(0)  # packets like this one that look the same
    earlier = np.int64(0)  # of those that look the same, are like it but for their options and came before: the last's
    nth = np.int64(-1)
    before = np.int64(0)  # packets like this one that look the same and followed each other within the window
    nth_bare = np.int64(0)  # of one whose options are there where these are missing, or missing where these are there
    of_first = False
    known = False  # as a copy: it, or one like it, looks different
    at = side["newest"]
    # Of what is new, the end was never seen; so it is with most.
    if is_stream and is_beyond(p, side["top"], side["top_ack"], end - 1, length):
        at = np.int64(0)
    steps = 0
    while at > 0 and memory.counts[LOGGED_SO_FAR] - at < MOST_LOGGED and steps < MOST_STEPS:
        e = memory.logged[at % MOST_LOGGED]
        if abs(p["ts"] - e["ts"]) >= WINDOW_NS:
            break
        if is_stream and steps and is_beyond(p, e["top"], e["top_ack"], seq, length):
            break
        crosses = e["is_cut"] != is_cut
        if e["bare"] != bare or e["is_stream"] != is_stream or not is_again(e, p, seq, length, is_stream):
            at = e["before"]
            steps += 1
            continue
        if e["look"] == look and (crosses or e["content"] != content):
            earlier = max(earlier, np.int64(e["nth_bare"]))
        if crosses and not has_id:
            nth_bare = max(nth_bare, np.int64(e["nth_bare"]))
        elif crosses or e["content"] == content:
            nth = np.int64(e["nth"]) if nth < 0 or not is_later(nth, e["nth"]) else nth
            known = known or e["look"] != look or e["is_copy"] == 1
            if e["look"] == look:
                if not is_stream and not has_id and alike == 0:
                    before = np.int64(e["nth_bare"]) + 1
                alike += 1
                earlier = np.int64(0)
                of_first = of_first or (e["is_first"] == 1 and p["ts"] - e["ts"] < MOMENT_NS)
            if has_id and alike:
                break
        at = e["before"]
        steps += 1
    new, again = memory.counts[NEW], memory.counts[AGAIN]
    can_tell = True
    if not is_stream:
        can_tell = point == POINT_MIXED or 8 * again > new
        can_tell = can_tell and (has_id or is_comparable(p))
    if alike and of_first and can_tell:
        lane["first_repeats"] = lane["first_repeats"] + 1 if has_id else max(np.int64(lane["first_repeats"]), alike)
    times = np.int64(1)
    if can_tell:
        times = times_shown(lane)
        if not is_stream and point == POINT_UNNAMED:
            times = max(times, 1 + (2 * again + new) // (2 * new))
    mine = np.int64(1) if has_id else 1 + (alike if is_stream else before) // times
    mine_bare = 1 + earlier + alike // times if is_stream else before
    copied = nth >= 0 and (known or id_tells or times > 1 if has_id else not is_later(mine, nth))
    copied = copied or (nth_bare > 0 and mine_bare <= nth_bare)
    repeats = alike > 0 and (copied or has_id)
    count_up(lane, repeats, length)
    if is_stream or has_id:
        memory.counts[AGAIN if repeats else NEW] += 1
    is_first = not lane["has_first"] and not repeats and (length > 0 or not is_stream)
    if is_first:
        lane["has_first"] = 1
    log(p, memory, side, content, bare, look, seq, end, mine, mine_bare, is_first, copied, is_stream, is_cut)
    return copied


@hot
def look_ahead(packets, i, memory):
    """Asks for what is known of the side of packets[i]."""
    if i < len(packets) and packets[i]["flow"] >= 0:
        prefetch(memory.sides, 2 * np.int64(packets[i]["flow"]) + (0 if packets[i]["from_orig"] else 1))


@kernel
def mark(packets, data, points, memory):
    """Sets is_copy of assigned packets at points that have no name; returns of how many."""
    count = 0
    for i in range(len(packets)):
        look_ahead(packets, i + AHEAD, memory)
        p = packets[i]
        if p["flow"] < 0 or points[p["interface"]] == POINT_NAMED:
            continue
        place = 2 * np.int64(p["flow"]) + (0 if p["from_orig"] else 1)
        if p["starts_flow"] == STARTS_AFRESH:
            for each in range(2 * np.int64(p["flow"]), 2 * np.int64(p["flow"]) + 2):
                memory.sides[each]["newest"] = 0
                memory.sides[each]["lanes"] = 0
        if is_copy(p, data, memory, place, points[p["interface"]]):
            p["is_copy"] = 1
            count += 1
    return count
