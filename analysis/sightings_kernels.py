"""Which packets are worth comparing between observation points, and which flows are one connection."""

from __future__ import annotations

import numpy as np

from analysis.kernel_compiler import inner, kernel
from analysis.layout import ACK, FIN, RST, SYN, TCP, UDP

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@inner
def mixed(a, b):
    """A hash of two numbers."""
    h = (np.uint64(a) ^ (np.uint64(b) * MULTIPLIER)) * MULTIPLIER
    h ^= h >> np.uint64(29)
    h *= MULTIPLIER
    return h ^ (h >> np.uint64(32))


@inner
def is_by_orig(facts, src_port, source):
    """Whether orig of a flow sent a packet: where both ports are the same, its address tells."""
    return src_port == facts["orig_port"] and (src_port != facts["resp_port"] or source == facts["orig"])


@inner
def note(facts, src_port, by_orig, key, ts, row, ttl, has_id, direction):
    """Adds a datagram to what its flow says of them all; one without ports to neither side."""
    if by_orig:
        facts["orig_shape"] += key
        facts["ways"] |= direction
        facts["numbered"] |= has_id
        if facts["orig_first"] < 0 or ts < facts["orig_first"]:
            facts["orig_first"], facts["orig_row"], facts["orig_ttl"] = ts, row, ttl
    elif src_port == facts["resp_port"]:
        facts["resp_shape"] += key
        facts["ways"] |= direction << 2
        facts["numbered"] |= has_id << 1
        if facts["resp_first"] < 0 or ts < facts["resp_first"]:
            facts["resp_first"], facts["resp_row"], facts["resp_ttl"] = ts, row, ttl


@kernel
def ask(flow, trans_id, name, type_, flows):
    """Adds questions to the flows (FLOW_FACTS) in which they were asked; `name` and `type_` are numbers of words."""
    for i in range(len(flow)):
        flows[flow[i]]["questions"] += mixed(mixed(trans_id[i], name[i]), type_[i])


@kernel
def sample(
    flow,
    source,
    ts,
    src_port,
    flags,
    seq,
    ack,
    tsval,
    payload,
    ip_id,
    ttl,
    word,
    directions,
    row,
    flows,
    buckets,
    sightings,
    carried,
):
    """Writes what identifies a packet at any point, of those that are compared, and which may have carried bytes that
    were sent again; returns how many of either.

    flow: index into `flows` (FLOW_FACTS), -1 for none; source: number of the address that sent it, needed of flows
    whose ports are equal; flow to word: columns of packets from number `row` on; directions: DIRECTION_* of each word,
    and at last of none (-1); buckets: bool[2 ** k], whether a sequence number with these highest bits was sent again;
    sightings: SIGHTING[n]; carried: CARRIED[n]. A flow's mask thins out its packets by their own hash, so that two
    points choose the same ones. SYNs are always chosen, and leave their numbers in `flows`; so do all datagrams with
    what they say together.
    """
    seen = sent = 0
    shift = np.uint32(32)
    while (1 << (np.uint32(32) - shift)) < len(buckets):
        shift -= np.uint32(1)
    for i in range(len(flow)):
        if flow[i] < 0:
            continue
        facts = flows[flow[i]]
        mask = facts["mask"]
        if mask < 0:
            continue
        sender = np.uint8(is_by_orig(facts, src_port[i], source[i]))
        decisive = np.uint8(1)
        if facts["protocol"] == TCP:
            if flags[i] == 0:  # of its header there are the ports at most
                continue
            length = payload[i] + np.uint32((flags[i] & (SYN | FIN)) != 0)
            if length:
                first, last = np.int64(seq[i] >> shift), np.int64((np.int64(seq[i]) + length - 1) >> shift)
                for bucket in range(first, last + 1):
                    if buckets[bucket & (len(buckets) - 1)]:
                        packet = carried[sent]
                        packet["ts"], packet["flow"], packet["seq"] = ts[i], flow[i], seq[i]
                        packet["length"], packet["sender"] = length, sender
                        sent += 1
                        break
            mark = np.int64(flags[i] & (SYN | FIN | RST)) | ((payload[i] > 0) << 16)
            key = mixed(mixed(seq[i], ack[i]), mixed(tsval[i], mark))
            if flags[i] & SYN:
                if flags[i] & ACK:
                    facts["resp_syn"] = seq[i]
                else:
                    facts["orig_syn"] = seq[i]
                    decisive = np.uint8(tsval[i] != 0)
            elif key & np.uint64(mask):
                continue
        elif facts["protocol"] == UDP:
            key = mixed(mixed(ip_id[i], payload[i]), 1)
            has_id = np.uint8(ip_id[i] != 0)
            note(facts, src_port[i], sender, key, ts[i], row + i, ttl[i], has_id, directions[word[i]])
            decisive = np.uint8(0)
            if ip_id[i] == 0 or key & np.uint64(mask):
                continue
        else:
            continue
        sighting = sightings[seen]
        sighting["key"], sighting["ts"], sighting["row"] = key, ts[i], row + i
        sighting["flow"], sighting["sender"], sighting["decisive"] = flow[i], sender, decisive
        seen += 1
    return seen, sent


@inner
def root(parents, flips, i):
    """The set that i is in; halves the way there."""
    while parents[i] != i:
        up = parents[i]
        flips[i] ^= flips[up]
        parents[i] = parents[up]
        i = parents[i]
    return i


@inner
def flip_to_root(parents, flips, i):
    flip = np.uint8(0)
    while parents[i] != i:
        flip ^= flips[i]
        i = parents[i]
    return flip


@kernel
def unite(parents, flips, left, right, opposite):
    """Puts flows left[k] and right[k] into one set; `opposite`: what one calls orig, the other calls resp.

    parents[i]: at last the smallest member of i's set; flips[i]: 1 if i is opposite to it.
    """
    for k in range(len(left)):
        flip = flip_to_root(parents, flips, left[k]) ^ flip_to_root(parents, flips, right[k]) ^ opposite[k]
        a, b = root(parents, flips, left[k]), root(parents, flips, right[k])
        if a < b:
            parents[b], flips[b] = a, flip
        elif b < a:
            parents[a], flips[a] = b, flip
    for i in range(len(parents)):
        flip = flip_to_root(parents, flips, i)
        parents[i], flips[i] = root(parents, flips, i), flip
