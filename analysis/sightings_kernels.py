"""Which packets are worth comparing between observation points, and which flows are one connection."""

from __future__ import annotations

import numba
import numpy as np

from analysis.layout import ACK, FIN, RST, SYN, TCP, UDP

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

kernel = numba.njit(cache=True, boundscheck=True, nogil=True, no_cfunc_wrapper=True)
inner = numba.njit(boundscheck=True, nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)


@inner
def mixed(a, b):
    """A hash of two numbers."""
    h = (np.uint64(a) ^ (np.uint64(b) * MULTIPLIER)) * MULTIPLIER
    h ^= h >> np.uint64(29)
    h *= MULTIPLIER
    return h ^ (h >> np.uint64(32))


@kernel
def sample(rows, first_row, flows, sightings):
    """Writes what identifies a packet at any point, of those that are compared; returns how many.

    rows: PACKET_ROW[n] from number `first_row` on; flows: FLOW_FACTS; sightings: SIGHTING[n]. A flow's mask thins out
    its packets by their own hash, so that two points choose the same ones. SYNs are always chosen, and leave their
    numbers in `flows`.
    """
    count = 0
    for i in range(len(rows)):
        row = rows[i]
        if row["flow"] < 0:
            continue
        flow = flows[row["flow"]]
        sender = np.uint8(row["src"] == flow["orig"] and row["src_port"] == flow["orig_port"])
        decisive = np.uint8(1)
        if flow["protocol"] == TCP:
            mark = np.int64(row["tcp_flags"] & (SYN | FIN | RST)) | ((row["payload_length"] > 0) << 16)
            key = mixed(mixed(row["tcp_seq"], row["tcp_ack"]), mixed(row["tcp_tsval"], mark))
            if row["tcp_flags"] & SYN:
                if row["tcp_flags"] & ACK:
                    flow["resp_syn"] = row["tcp_seq"]
                else:
                    flow["orig_syn"] = row["tcp_seq"]
                    decisive = np.uint8(row["tcp_tsval"] != 0)
            elif key & np.uint64(flow["mask"]):
                continue
        elif flow["protocol"] == UDP and row["ip_id"] != 0:
            key = mixed(mixed(row["ip_id"], row["payload_length"]), 1)
            decisive = np.uint8(0)
            if key & np.uint64(flow["mask"]):
                continue
        else:
            continue
        sighting = sightings[count]
        sighting["key"] = key
        sighting["ts"] = row["ts"]
        sighting["row"] = first_row + i
        sighting["flow"] = row["flow"]
        sighting["sender"] = sender
        sighting["decisive"] = decisive
        count += 1
    return count


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
