"""Connections: the flows that are one transport connection, whatever points and NATs its packets went past.

Flows are one connection if they saw the same packet, or have the same 5-tuple at the same time at different points. Two
packets are the same if their keys are (sightings.py); where a key says little, more has to fit:

- a SYN without a timestamp, and every datagram, must have an end (address and port) in common with its image: NAT
  turns one end of a packet, and a packet of which both were turned is known by others of its flow;
- a datagram's image has orig's end in common (DNAT) or another key besides (SNAT: another packet, or the DNS question),
  and is at another point of the same node at the same moment, or at one that may be several;
- datagrams without an IP id have no key: of them whole flows are compared (datagrams.py), and what fits two is neither.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from analysis import sightings_kernels as kernels
from analysis.datagrams import MOMENT_NS, both_sides
from analysis.layout import NANOSECONDS, UDP

Records = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

SLACK_NS: Final = 10 * NANOSECONDS
"""No packet is on its way for longer, and no two nodes' clocks are further apart."""


def connections_of(facts: Records, sightings: Records) -> tuple[Integers, Flags]:
    """The connection of each flow (the smallest index of its flows), and whether its orig is the connection's resp.

    Who opened a connection is told by a flow that saw the SYN, else by the first one. `facts`: FLOW_FACTS in order of
    first_seen; `sightings`: SIGHTING, sorted by (key, ts).
    """
    parents = np.arange(len(facts))
    flips = np.zeros(len(facts), np.uint8)
    for left, right, opposite in (*_same_tuple(facts), _same_packet(facts, sightings)):
        kernels.unite(parents, flips, left, right, opposite)
    one, image = both_sides(facts, parents, flips == 1)
    kernels.unite(parents, flips, one, image, np.zeros(len(one), np.uint8))
    opener = parents.copy()
    with_syn = np.flatnonzero(facts["orig_syn"] >= 0)[::-1]
    opener[parents[with_syn]] = with_syn
    return parents, (flips ^ flips[opener[parents]]) == 1


def _same_tuple(facts: Records) -> list[tuple[Integers, Integers, npt.NDArray[np.uint8]]]:
    """Flows at different points of one Community ID that overlap, unless SYNs differ: (one, other, opposite)."""
    order = np.lexsort((facts["first_seen"], facts["community"]))
    ordered = facts[order]
    pairs = []
    for step in range(1, len(np.unique(facts["point"]))):
        left, right = ordered[:-step], ordered[step:]
        same = (left["community"] == right["community"]) & (left["point"] != right["point"])
        if not same.any():
            break
        slack = np.where(left["node"] == right["node"], NANOSECONDS, SLACK_NS)
        same &= right["first_seen"] <= left["last_seen"] + slack
        for syn in ("orig_syn", "resp_syn"):
            same &= (left[syn] == right[syn]) | (left[syn] < 0) | (right[syn] < 0)
        at = np.flatnonzero(same)
        opposite = _end(left[at], "orig") != _end(right[at], "orig")
        pairs.append((order[at], order[at + step], opposite.astype(np.uint8)))
    return pairs


def _same_packet(facts: Records, sightings: Records) -> tuple[Integers, Integers, npt.NDArray[np.uint8]]:
    """Flows that saw the same packet: (one, other, opposite)."""
    key, flow, ts = (sightings[name] for name in ("key", "flow", "ts"))
    at = np.flatnonzero((key[1:] == key[:-1]) & (flow[1:] != flow[:-1]) & (ts[1:] - ts[:-1] <= SLACK_NS))
    one, other = flow[at].astype(np.int64), flow[at + 1].astype(np.int64)
    opposite = sightings["sender"][at] != sightings["sender"][at + 1]
    ends = np.stack([_end(facts, "orig"), _end(facts, "resp")])
    swapped = opposite.astype(np.int64)
    orig, resp = ends[0][one] == ends[swapped, other], ends[1][one] == ends[1 - swapped, other]
    decisive = (sightings["decisive"][at] & sightings["decisive"][at + 1]) == 1
    protocol, node, point = (facts[name] for name in ("protocol", "node", "point"))
    elsewhere = (point[one] != point[other]) | (facts["unnamed"][one] == 1)
    image = (ts[at + 1] - ts[at] <= MOMENT_NS) & (node[one] == node[other]) & elsewhere
    image &= orig | (resp & _is_repeated(one, other))
    taken = (protocol[one] == protocol[other]) & np.where(protocol[one] == UDP, image, decisive | orig | resp)
    return one[taken], other[taken], opposite[taken].astype(np.uint8)


def _end(facts: Records, side: str) -> Integers:
    """Address and port as one number."""
    end: Integers = facts[side].astype(np.int64) << 16 | facts[f"{side}_port"]
    return end


def _is_repeated(left: Integers, right: Integers) -> Flags:
    """Of each pair, whether it occurs more than once."""
    pair = np.minimum(left, right) << 32 | np.maximum(left, right)
    _, place, count = np.unique(pair, return_inverse=True, return_counts=True)
    repeated: Flags = count[place] > 1
    return repeated
