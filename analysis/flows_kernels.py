"""Which flow each packet belongs to: a hash table of 5-tuples per observation point. What the rules mean: flows.py.

A slot of the table stands for one 5-tuple at one interface, seen one way: packets of one direction that carry another
VLAN, VNI or in/out mark than the slot's were observed elsewhere (or are another tenant's) and go to another slot of
the same 5-tuple, linked by `next`.
"""

from __future__ import annotations

import numpy as np

from analysis.kernel_compiler import hot, inner, kernel
from analysis.layout import (
    ACK,
    DIRECTION_UNKNOWN,
    FIN,
    FRAGMENT_FIRST,
    FRAGMENT_NONE,
    ICMP,
    ICMPV6,
    NANOSECONDS,
    POINT_MIXED,
    POINT_NAMED,
    RST,
    STARTS_AFRESH,
    STARTS_AFTER_IDLE,
    STARTS_NOTHING,
    SYN,
    TCP,
    UDP,
    in_lines,
)
from analysis.loads import prefetch, prefetch_all

SLOT = in_lines(
    ("a_hi", "u8"),  # the smaller of the two ends
    ("a_lo", "u8"),
    ("b_hi", "u8"),
    ("b_lo", "u8"),
    ("last_seen", "i8"),
    ("interface", "i4"),
    ("next", "i4"),  # the next slot of the same 5-tuple, -1 = none
    ("head", "i4"),  # the first one
    ("a_port", "u2"),
    ("b_port", "u2"),
    ("protocol", "u1"),
    ("used", "u1"),
    ("orig_is_a", "u1"),
    ("established", "u1"),  # more than SYNs was seen
    ("closed", "u1"),  # a FIN or RST was seen
    ("flow_uid", "u8"),
    ("first_seen", "i8"),
)
"""One 5-tuple at one observation point."""

SLOT_SIDE = np.dtype(
    [
        ("observed", "i8"),  # what marks this side's packets there, -1 = none seen yet
        ("syn_seq", "u4"),
        ("first_seq", "u4"),
        ("first_ack", "u4"),
        ("has_syn", "u1"),
        ("has_first", "u1"),
        ("unused", "u8"),  # two of them are half a cache line
    ],
    align=True,
)
"""Two for each slot: orig, resp."""

FRAGMENT = np.dtype(
    [
        ("key", "u8"),
        ("ts", "i8"),
        ("first_ts", "i8"),
        ("ip_bytes", "u4"),
        ("payload", "u4"),
        ("early", "i4"),  # the last of the fragments that wait for the first one, 0 = none
        ("src_port", "u2"),
        ("dst_port", "u2"),
        ("packets", "u2"),
        ("has_first", "u1"),
        ("has_ports", "u1"),
        ("icmp_type", "u1"),
        ("icmp_code", "u1"),
    ],
    align=True,
)
"""A fragmented datagram: the ports of its first fragment, or how much came before that one."""
FRAGMENTED_DATAGRAMS = 4096
FRAGMENT_PLACES = 8
"""Any of so many may hold a datagram: one that others come between keeps its place."""
FRAGMENT_TIMEOUT_NS = 60 * NANOSECONDS
EARLY_FRAGMENTS = 4096
"""So many wait at most; rows of more are written without a flow."""

TCP_TIMEOUT_NS = 300 * NANOSECONDS
OTHER_TIMEOUT_NS = 60 * NANOSECONDS

AHEAD = 16
"""Packets whose flows are looked up together, so that the memory that they need is fetched at one time."""

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@hot
def mix(h, value):
    h = (h ^ value) * MULTIPLIER
    return h ^ (h >> np.uint64(29))


SERVER_PORTS = np.array(
    [
        *(
            1080,
            1434,
            1812,
            1883,
            2123,
            2152,
            2379,
            2380,
            3128,
            3268,
            3306,
            3389,
            3544,
            4011,
            4240,
            4244,
            4789,
            5060,
            5072,
        ),
        *(5222, 5223, 5269, 5353, 5355, 5432, 6081, 6379, 6443, 6666, 6667, 6668, 6669, 8000, 8080, 8443, 8888, 9090),
        *(9092, 9153, 9200, 10250, 11211, 20000, 27017),
    ],
    np.int64,
)


@inner
def is_server_port(port):
    """IANA's well-known ports, and those above that Zeek's likely_server_ports, Kubernetes or its usual tenants use."""
    if port < 1024:
        return True
    for known in SERVER_PORTS:
        if port == known:
            return True
    return False


@inner
def icmp_counterpart(protocol, kind):
    """The type that answers an ICMP type, -1 where none does (Zeek's ICMP.cc)."""
    if protocol == ICMP:
        if kind == 8 or kind == 0:
            return 8 - kind
        if kind == 9 or kind == 10:
            return 19 - kind
        if 13 <= kind <= 18:
            return kind + 1 if kind % 2 else kind - 1
        return -1
    if kind == 128 or kind == 129:
        return 257 - kind
    if 133 <= kind <= 136:
        return kind + 1 if kind % 2 else kind - 1
    if kind == 130 or kind == 131:
        return 261 - kind
    if kind == 139 or kind == 140:
        return 279 - kind
    if kind == 144 or kind == 145:
        return 289 - kind
    return -1


@kernel
def one_way_icmp(protocols, kinds, one_way):
    """Sets one_way[i] where an ICMP type has no counterpart."""
    for i in range(len(kinds)):
        one_way[i] = icmp_counterpart(np.int64(protocols[i]), np.int64(kinds[i])) < 0


@hot
def key_hash(interface, a_hi, a_lo, b_hi, b_lo, a_port, b_port, protocol):
    h = mix(np.uint64(protocol), a_lo)
    h = mix(h, b_lo)
    h = mix(h, (np.uint64(a_port) << np.uint64(16)) | np.uint64(b_port))
    h = mix(h, a_hi)
    h = mix(h, b_hi)
    return mix(h, np.uint64(interface))


@inner
def slot_hash(slot, interface):
    return key_hash(
        interface,
        slot["a_hi"],
        slot["a_lo"],
        slot["b_hi"],
        slot["b_lo"],
        np.int64(slot["a_port"]),
        np.int64(slot["b_port"]),
        slot["protocol"],
    )


# --- fragments -------------------------------------------------------------------------------------------------------


@inner
def follow_first_fragment(p, first):
    """What a later fragment knows from the first one: a FRAGMENT or that PACKET itself."""
    p["has_ports"] = first["has_ports"]
    p["src_port"] = first["src_port"]
    p["dst_port"] = first["dst_port"]
    if p["protocol"] == ICMP or p["protocol"] == ICMPV6:
        p["icmp_type"] = first["icmp_type"]
        p["icmp_code"] = first["icmp_code"]


@inner
def release_early(entry, early, links, settled, count):
    """The rows of fragments that came before their first one wait no longer; returns how many are settled now."""
    k = np.int64(entry["early"])
    entry["early"] = 0
    while k > 0:
        settled[count] = early[k]
        count += 1
        following = np.int64(links[k])
        links[k] = links[0]
        links[0] = k
        k = following
    return count


@inner
def place_of_datagram(fragments, key, ts):
    """Where the datagram is in `fragments`, and whether: else it may have the place that was used last longest ago."""
    first = np.int64(key % np.uint64(len(fragments) // FRAGMENT_PLACES)) * FRAGMENT_PLACES
    oldest = first
    for place in range(first, first + FRAGMENT_PLACES):
        if fragments[place]["key"] == key and ts - fragments[place]["ts"] < FRAGMENT_TIMEOUT_NS:
            return place, True
        if fragments[place]["ts"] < fragments[oldest]["ts"]:
            oldest = place
    return oldest, False


@inner
def resolve_fragment(p, fragments, early, links, settled, count):
    """Gives later fragments the ports of their first one, by (addresses, protocol, id).

    Returns the datagram's place in `fragments`, -1 if the packet's ports are not known, and how many are settled.
    Fragments that came before the first one are added up and handed over to it; copies of them wait in `early`.
    """
    key = mix(mix(mix(p["src_hi"] ^ p["src_lo"], p["dst_hi"]), p["dst_lo"]), np.uint64(p["ip_id"]))
    key = mix(key, (np.uint64(p["protocol"]) << np.uint64(32)) | np.uint64(p["interface"]))
    place, known = place_of_datagram(fragments, key, p["ts"])
    entry = fragments[place]
    if not known:
        count = release_early(entry, early, links, settled, count)
        entry["key"] = key
        entry["has_first"] = 0
        entry["packets"] = 0
        entry["ip_bytes"] = 0
        entry["payload"] = 0
        entry["first_ts"] = p["ts"]
    entry["ts"] = p["ts"]
    if p["fragment"] == FRAGMENT_FIRST:
        entry["has_first"] = 1
        entry["has_ports"] = p["has_ports"]
        entry["src_port"] = p["src_port"]
        entry["dst_port"] = p["dst_port"]
        entry["icmp_type"] = p["icmp_type"]
        entry["icmp_code"] = p["icmp_code"]
        p["earlier_fragments"] = entry["packets"]
        p["earlier_ts"] = entry["first_ts"]
        p["earlier_ip_bytes"] = entry["ip_bytes"]
        p["earlier_payload"] = entry["payload"]
        entry["packets"] = 0
        return place, count
    if entry["has_first"]:
        follow_first_fragment(p, entry)
        return place, count
    entry["packets"] += 1
    entry["ip_bytes"] += p["ip_length"]
    entry["payload"] += p["payload_length"]
    k = np.int64(links[0])
    if k > 0:
        links[0] = links[k]
        links[k] = entry["early"]
        entry["early"] = k
        p["waits"] = 1
        early[k] = p
    return np.int64(-1), count


@inner
def name_early(p, entry, early, links, settled, count):
    """Gives the flow of a first fragment to those that came before it."""
    k = np.int64(entry["early"])
    while k > 0:
        e = early[k]
        follow_first_fragment(e, p)
        e["flow"] = p["flow"]
        e["flow_uid"] = p["flow_uid"]
        e["flow_first_seen"] = p["flow_first_seen"]
        e["from_orig"] = p["from_orig"]
        k = np.int64(links[k])
    return release_early(entry, early, links, settled, count)


# --- flows: found, begun, opened by whom -----------------------------------------------------------------------------


@hot
def observed_mark(p, point):
    """What tells one observation of a 5-tuple from another at the same interface."""
    if point == POINT_MIXED:
        return np.int64(0)
    direction = np.int64(p["direction"]) if point == POINT_NAMED else np.int64(DIRECTION_UNKNOWN)
    return direction | (np.int64(p["vlan"] + 1) << 2) | (np.int64(p["vni"] + 1) << 16)


@hot
def best_slot(slots, sides, head, from_a, mark):
    """The slot of this 5-tuple whose packets of this direction carry `mark`; else one that saw none of them yet."""
    best = -1
    best_score = 0
    at = head
    while at >= 0:
        side = 0 if (slots[at]["orig_is_a"] == 1) == from_a else 1
        mine = sides[2 * at + side]["observed"]
        if mine == mark:
            return at
        if mine < 0:
            other = sides[2 * at + 1 - side]["observed"]
            opposite = (other & 3) + (mark & 3) == 3 or (other & 3) == 0
            score = 1 + (2 if opposite else 0) + (1 if other >> 2 == mark >> 2 else 0)
            if score > best_score:
                best = at
                best_score = score
        at = slots[at]["next"]
    return best


@hot
def starts_flow(p, slot, me, you):
    """Whether the packet begins a new flow in a slot that had one: STARTS_*."""
    if p["protocol"] == TCP:
        flags = p["tcp_flags"]
        if flags & (SYN | ACK | RST | FIN) == SYN and p["tcp_analyzable"]:
            if me["has_syn"]:
                return STARTS_NOTHING if me["syn_seq"] == p["tcp_seq"] else STARTS_AFRESH
            if you["has_syn"]:
                simultaneous = not slot["established"] and not slot["closed"]
                return STARTS_NOTHING if simultaneous else STARTS_AFRESH
            following = (np.int64(p["tcp_seq"]) + 1) & 0xFFFFFFFF
            late = (me["has_first"] and following == me["first_seq"]) or (
                you["has_first"] and following == you["first_ack"]
            )
            return STARTS_NOTHING if late and not slot["closed"] else STARTS_AFRESH
        if flags & (SYN | ACK | RST | FIN) == SYN | ACK and slot["closed"] and p["tcp_analyzable"]:
            # Behind NAT, answers may pass a point that their questions do not.
            repeats = me["has_first"] and me["first_seq"] == p["tcp_seq"]
            answers = you["has_syn"] and (np.int64(you["syn_seq"]) + 1) & 0xFFFFFFFF == p["tcp_ack"]
            if not repeats and not answers:
                return STARTS_AFRESH
        if p["ts"] - slot["last_seen"] > TCP_TIMEOUT_NS:
            return STARTS_AFTER_IDLE
        return STARTS_NOTHING
    return STARTS_AFRESH if p["ts"] - slot["last_seen"] > OTHER_TIMEOUT_NS else STARTS_NOTHING


@inner
def sender_opened(p, src_port, dst_port):
    """Whether the sender of a flow's first packet opened it: by the SYN, else by well-known port, else it did."""
    protocol = p["protocol"]
    if protocol == TCP:
        if p["tcp_flags"] & SYN:
            return not p["tcp_flags"] & ACK
        if not is_server_port(src_port):
            return True
        return is_server_port(dst_port) and src_port >= dst_port
    if protocol == UDP:
        return not is_server_port(src_port) or is_server_port(dst_port)
    return True


@inner
def begin_flow(p, slot, sides, at, from_a, mark, point_hash, reset):
    """A new flow in slot `at`; `reset` forgets what the slot knew of the TCP connection."""
    if reset:
        src_port, dst_port, _ = ports_of(p)
        slot["orig_is_a"] = sender_opened(p, src_port, dst_port) == from_a
        slot["established"] = 0
        slot["closed"] = 0
        for side in range(2):
            fresh = sides[2 * at + side]
            fresh["observed"] = -1
            fresh["has_syn"] = 0
            fresh["has_first"] = 0
    uid = slot_hash(slot, np.int64(0))
    uid = mix(mix(uid, point_hash), np.uint64(p["ts"]))
    uid = mix(uid, (np.uint64(mark) << np.uint64(32)) ^ np.uint64(p["tcp_seq"]))
    slot["flow_uid"] = max(uid, np.uint64(1))
    slot["first_seen"] = p["earlier_ts"] if p["earlier_fragments"] else p["ts"]


@hot
def learn_handshake(p, slot, me):
    """Remembers what tells a new connection on the same ports from a late packet of this one."""
    flags = p["tcp_flags"]
    if flags & (SYN | ACK) == SYN:
        me["has_syn"] = 1
        me["syn_seq"] = p["tcp_seq"]
        return
    slot["established"] = 1
    if flags & (FIN | RST):
        slot["closed"] = 1
    if not me["has_first"]:
        me["has_first"] = 1
        me["first_seq"] = p["tcp_seq"]
        me["first_ack"] = p["tcp_ack"]


@hot
def ports_of(p):
    """What stands for ports in the packet's 5-tuple, and whether it has one direction only (an ICMP error)."""
    protocol = p["protocol"]
    if protocol == ICMP or protocol == ICMPV6:
        kind = np.int64(p["icmp_type"])
        answer = np.int64(icmp_counterpart(np.int64(protocol), kind))
        return kind, (np.int64(p["icmp_code"]) if answer < 0 else answer), answer < 0
    if p["has_ports"]:
        return np.int64(p["src_port"]), np.int64(p["dst_port"]), False
    return np.int64(0), np.int64(0), False


@hot
def look_up(p):
    """Sets from_a; returns the hash of the packet's 5-tuple."""
    src_port, dst_port, one_way = ports_of(p)
    src_hi, src_lo, dst_hi, dst_lo = p["src_hi"], p["src_lo"], p["dst_hi"], p["dst_lo"]
    from_a = True
    if not one_way:
        if src_hi != dst_hi:
            from_a = src_hi < dst_hi
        elif src_lo != dst_lo:
            from_a = src_lo < dst_lo
        else:
            from_a = src_port <= dst_port
    p["from_a"] = from_a
    interface = np.int64(p["interface"])
    if from_a:
        return key_hash(interface, src_hi, src_lo, dst_hi, dst_lo, src_port, dst_port, p["protocol"])
    return key_hash(interface, dst_hi, dst_lo, src_hi, src_lo, dst_port, src_port, p["protocol"])


# --- all packets -----------------------------------------------------------------------------------------------------


@hot
def look_ahead(packets, begin, end, hashes, table, slots, sides):
    """Looks up the flows of packets[begin:end], and asks for all the memory that assigning will need."""
    mask = np.uint64(len(table) - 1)
    for i in range(begin, end):
        p = packets[i]
        if p["ip_version"]:
            h = look_up(p)
            hashes[i - begin] = h
            prefetch(table, np.int64(h & mask))
    for i in range(begin, end):
        p = packets[i]
        if p["ip_version"]:
            head = np.int64(table[hashes[i - begin] & mask])
            if head >= 0:
                prefetch_all(slots, head)
                prefetch(sides, 2 * head)


@hot
def find_head(p, h, table, slots):
    """Where the packet's 5-tuple is in the table, or belongs: the first of its slots is there, or -1."""
    mask = np.uint64(len(table) - 1)
    src_port, dst_port, _ = ports_of(p)
    protocol = p["protocol"]
    interface = p["interface"]
    from_a = p["from_a"]
    a_hi, a_lo, a_port = (p["src_hi"], p["src_lo"], src_port) if from_a else (p["dst_hi"], p["dst_lo"], dst_port)
    b_hi, b_lo, b_port = (p["dst_hi"], p["dst_lo"], dst_port) if from_a else (p["src_hi"], p["src_lo"], src_port)
    at = h & mask
    head = table[at]
    while head >= 0:
        s = slots[head]
        if (
            s["a_lo"] == a_lo
            and s["b_lo"] == b_lo
            and s["a_port"] == a_port
            and s["b_port"] == b_port
            and s["a_hi"] == a_hi
            and s["b_hi"] == b_hi
            and s["protocol"] == protocol
            and s["interface"] == interface
        ):
            break
        at = (at + np.uint64(1)) & mask
        head = table[at]
    return at


@inner
def take_slot(p, at, table, slots, free, used):
    """A slot for a 5-tuple, or another observation of one, that has its place in the table at `at`."""
    if free[-1] > 0:
        free[-1] -= 1
        index = np.int64(free[free[-1]])
    else:
        index = np.int64(used)
    src_port, dst_port, _ = ports_of(p)
    s = slots[index]
    if p["from_a"]:
        s["a_hi"], s["a_lo"], s["a_port"] = p["src_hi"], p["src_lo"], src_port
        s["b_hi"], s["b_lo"], s["b_port"] = p["dst_hi"], p["dst_lo"], dst_port
    else:
        s["a_hi"], s["a_lo"], s["a_port"] = p["dst_hi"], p["dst_lo"], dst_port
        s["b_hi"], s["b_lo"], s["b_port"] = p["src_hi"], p["src_lo"], src_port
    s["interface"] = p["interface"]
    s["protocol"] = p["protocol"]
    s["used"] = 1
    s["next"] = -1
    head = table[at]
    if head < 0:
        s["head"] = index
        table[at] = index
    else:
        s["head"] = head
        s["next"] = slots[head]["next"]
        slots[head]["next"] = index
    return index


@kernel
def assign(
    packets, table, slots, sides, fragments, early, links, settled, points, point_hashes, free, used, hashes
):  # fmt: skip
    """Sets flow, flow_uid, from_orig and starts_flow of each packet, in order.

    `table` (open addressing, power of two, -1 = empty) holds heads of `slots`. `free` is a stack of free slots with
    its height in free[-1]; then come those from `used` on. Room for one new slot per packet is the caller's to give.
    `early` are fragments that wait for their first one, from place 1 on; `links` says which is the next of its
    datagram, or the next free place, the first of which is links[0]. Those that wait no longer go to `settled`.
    `hashes` is room for AHEAD of them. Returns the new `used`, how many are settled, and how many of the packets wait.
    """
    count = np.int64(0)
    waiting = 0
    for i in range(len(packets)):
        if i % AHEAD == 0:
            look_ahead(packets, i, min(i + AHEAD, len(packets)), hashes, table, slots, sides)
        p = packets[i]
        if not p["ip_version"]:
            continue
        h = hashes[i % AHEAD]
        datagram = np.int64(0)
        if p["fragment"] != FRAGMENT_NONE:
            datagram, count = resolve_fragment(p, fragments, early, links, settled, count)
            waiting += np.int64(p["waits"])
            if datagram < 0:
                continue
            h = look_up(p)
        at = find_head(p, h, table, slots)
        head = table[at]
        from_a = p["from_a"] == 1
        point = points[p["interface"]]
        mark = observed_mark(p, point)
        index = np.int64(best_slot(slots, sides, head, from_a, mark)) if head >= 0 else np.int64(-1)
        starts = STARTS_AFRESH
        if index < 0:
            index = take_slot(p, at, table, slots, free, used)
            used = max(used, index + 1)
        else:
            s = slots[index]
            side = 0 if (s["orig_is_a"] == 1) == from_a else 1
            starts = starts_flow(p, s, sides[2 * index + side], sides[2 * index + 1 - side])
        s = slots[index]
        if starts != STARTS_NOTHING:
            begin_flow(p, s, sides, index, from_a, mark, point_hashes[p["interface"]], starts == STARTS_AFRESH)
        side = 0 if (s["orig_is_a"] == 1) == from_a else 1
        me = sides[2 * index + side]
        me["observed"] = mark
        if p["protocol"] == TCP and p["tcp_analyzable"]:
            learn_handshake(p, s, me)
        s["last_seen"] = max(s["last_seen"], p["ts"]) if starts == STARTS_NOTHING else p["ts"]
        p["flow"] = index
        p["flow_uid"] = s["flow_uid"]
        p["flow_first_seen"] = s["first_seen"]
        p["from_orig"] = side == 0
        p["starts_flow"] = starts
        if p["earlier_fragments"]:
            count = name_early(p, fragments[datagram], early, links, settled, count)
    return used, count, waiting


# --- between chunks --------------------------------------------------------------------------------------------------


@kernel
def give_up_early(fragments, early, links, settled):
    """Settles all fragments that still wait; returns how many."""
    count = np.int64(0)
    for place in range(len(fragments)):
        count = release_early(fragments[place], early, links, settled, count)
    return count


@kernel
def rebuild(table, slots, used):
    """Enters every head into an empty `table`."""
    mask = np.uint64(len(table) - 1)
    for index in range(used):
        s = slots[index]
        if s["used"] and s["head"] == index:
            at = slot_hash(s, np.int64(s["interface"])) & mask
            while table[at] >= 0:
                at = (at + np.uint64(1)) & mask
            table[at] = index


@kernel
def expire(slots, used, now, keep_tcp_since, free, expired):
    """Lists slots whose flow ended by idle time, and frees those whose memory of the past is not needed any more.

    `expired` (bool per slot) is set for flows that are over at `now`. Slots of TCP stay, with what they know of the
    sequence numbers, while their last packet is not before `keep_tcp_since`. A chain of slots is freed as a whole.
    """
    for index in range(used):
        s = slots[index]
        if s["used"]:
            timeout = TCP_TIMEOUT_NS if s["protocol"] == TCP else OTHER_TIMEOUT_NS
            expired[index] = now - s["last_seen"] > timeout
    for index in range(used):
        if not slots[index]["used"] or slots[index]["head"] != index:
            continue
        over = True
        at = np.int64(index)
        while at >= 0:
            s = slots[at]
            over = over and expired[at] and (s["protocol"] != TCP or s["last_seen"] < keep_tcp_since)
            at = s["next"]
        at = np.int64(index) if over else np.int64(-1)
        while at >= 0:
            following = slots[at]["next"]
            slots[at]["used"] = 0
            free[free[-1]] = at
            free[-1] += 1
            at = following
