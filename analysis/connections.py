"""Connections: the flows that are one transport connection, whatever points and NATs its packets went past.

Flows are one connection if they saw the same packet, or have the same 5-tuple at the same time at different points. Two
packets are the same if their keys are (sightings.py); where a key says little, more has to fit:

- a SYN without a timestamp must have an end (address and port) in common with its image: of what NAT turned both, other
  packets of its flow tell;
- datagrams were at the same moment at one node, and so were half of those that both flows could have seen. They are
  one connection if four were, or if the flows can be the sides of a NAT (datagrams.py), at two points or one that may
  be several, and have orig's end in common (DNAT), or resp's and two datagrams (SNAT);
- otherwise whole flows of datagrams are compared (datagrams.py), and what fits two is neither.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from analysis import rooms
from analysis import sightings_kernels as kernels
from analysis.datagrams import MOMENT_NS, both_sides, may_be_sides
from analysis.layout import NANOSECONDS, TCP, UDP

Records = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Pairs = tuple[Integers, Integers, npt.NDArray[np.uint8]]
"""Flows that are one connection, and whether what the one calls orig the other calls resp."""

CERTAIN: Final = 4
"""So many datagrams, told by IP ids and lengths, are not the same by chance, whatever the ends of the flows."""
SLACK_NS: Final = 10 * NANOSECONDS
"""No packet is on its way for longer, and no two nodes' clocks are further apart."""


def connections_of(facts: Records, sightings: Records) -> tuple[Integers, Flags]:
    """The connection of each flow (the smallest index of its flows), and whether its orig is the connection's resp.

    Who opened a connection is told by a flow that saw the SYN, else by the first one. `facts`: FLOW_FACTS in order of
    first_seen; `sightings`: SIGHTING, sorted by (key, ts).
    """
    parents = np.arange(len(facts))
    flips = np.zeros(len(facts), np.uint8)
    for pairs in (*_same_tuple(facts), _same_packet(facts, sightings)):
        kernels.unite(parents, flips, *pairs)
    kernels.unite(parents, flips, *both_sides(facts, parents, flips == 1))
    kernels.unite(parents, flips, *_same_datagrams(facts, sightings, parents, flips == 1))
    opener = parents.copy()
    with_syn = np.flatnonzero(facts["orig_syn"] >= 0)[::-1]
    opener[parents[with_syn]] = with_syn
    return parents, (flips ^ flips[opener[parents]]) == 1


def _same_tuple(facts: Records) -> list[Pairs]:
    """Flows at different points of one Community ID that overlap, unless SYNs differ: (one, other, opposite)."""
    order = np.lexsort((facts["first_seen"], facts["community"]))
    community = facts["community"][order]
    pairs = []
    at = np.arange(len(facts))
    for step in range(1, len(np.unique(facts["point"]))):
        at = at[: np.searchsorted(at, len(facts) - step)]
        at = at[community[at] == community[at + step]]
        if not len(at):
            break
        one, other = order[at], order[at + step]
        left, right = rooms.taken(facts, one), rooms.taken(facts, other)
        slack = np.where(left["node"] == right["node"], NANOSECONDS, SLACK_NS)
        same = (left["point"] != right["point"]) & (right["first_seen"] <= left["last_seen"] + slack)
        for syn in ("orig_syn", "resp_syn"):
            same &= (left[syn] == right[syn]) | (left[syn] < 0) | (right[syn] < 0)
        opposite = _end(left, "orig") != _end(right, "orig")
        pairs.append((one[same], other[same], opposite[same].astype(np.uint8)))
    return pairs


def _same_packet(facts: Records, sightings: Records) -> Pairs:
    """Flows that saw the same packet of TCP: (one, other, opposite)."""
    one, other, opposite, at = _shared(facts, sightings, TCP, SLACK_NS)
    decisive = (sightings["decisive"][at] & sightings["decisive"][at + 1]) == 1
    orig, resp = _common_ends(facts, one, other, opposite)
    taken = decisive | orig | resp
    return one[taken], other[taken], opposite[taken]


def _same_datagrams(facts: Records, sightings: Records, connection: Integers, flipped: Flags) -> Pairs:
    """Flows on both sides of a NAT that saw the same datagrams: (one, other, opposite)."""
    one, other, opposite, at = _shared(facts, sightings, UDP, MOMENT_NS)
    apart = (connection[one] != connection[other]) & (facts["node"][one] == facts["node"][other])
    one, other, opposite, key = one[apart], other[apart], opposite[apart], sightings["key"][at[apart]]
    one, other = np.minimum(one, other), np.maximum(one, other)
    order = np.lexsort((key, opposite, other, one))
    one, other, opposite, key = one[order], other[order], opposite[order], key[order]
    next_pair = (np.diff(one) != 0) | (np.diff(other) != 0) | (np.diff(opposite) != 0)
    begin = np.flatnonzero(np.append(True, next_pair)[: len(one)])
    pair = np.repeat(np.arange(len(begin)), np.diff(np.append(begin, len(one))))
    is_new = np.append(True, next_pair | (np.diff(key) != 0))[: len(one)]
    shared = np.bincount(pair, is_new, len(begin)).astype(np.int64)
    one, other, opposite = one[begin], other[begin], opposite[begin]
    orig, resp = _common_ends(facts, one, other, opposite)
    elsewhere = (facts["point"][one] != facts["point"][other]) | (facts["unnamed"][one] == 1)
    image = elsewhere & (orig | (resp & (shared > 1))) & may_be_sides(facts, connection, flipped, one, other)
    taken = (image | (shared >= CERTAIN)) & (2 * shared >= _comparable(facts, sightings, one, other))
    return one[taken], other[taken], opposite[taken]


def _shared(
    facts: Records, sightings: Records, protocol: int, within_ns: int
) -> tuple[Integers, Integers, npt.NDArray[np.uint8], Integers]:
    """(one, other, opposite, place in `sightings`) of each two flows that saw the same packet, one after the other."""
    key, flow, ts = (sightings[name] for name in ("key", "flow", "ts"))
    at = np.flatnonzero((key[1:] == key[:-1]) & (flow[1:] != flow[:-1]) & (ts[1:] - ts[:-1] <= within_ns))
    of = facts["protocol"]
    at = at[(of[flow[at]] == protocol) & (of[flow[at + 1]] == protocol)]
    opposite = sightings["sender"][at] != sightings["sender"][at + 1]
    return flow[at].astype(np.int64), flow[at + 1].astype(np.int64), opposite.astype(np.uint8), at


def _common_ends(
    facts: Records, one: Integers, other: Integers, opposite: npt.NDArray[np.uint8]
) -> tuple[Flags, Flags]:
    """Whether orig of `one` is an end of the other one, too, and whether resp is."""
    ends = np.stack([_end(facts, "orig"), _end(facts, "resp")])
    swapped = opposite.astype(np.int64)
    return ends[0][one] == ends[swapped, other], ends[1][one] == ends[1 - swapped, other]


def _comparable(facts: Records, sightings: Records, one: Integers, other: Integers) -> Integers:
    """For each two flows how many datagrams both could have seen: those of the one that saw fewer."""
    flows, place = np.unique(np.append(one, other), return_inverse=True)
    at = np.flatnonzero(np.isin(sightings["flow"], flows))
    of_flow = np.searchsorted(flows, sightings["flow"][at])
    key = sightings["key"][at]
    order = np.lexsort((key, of_flow))
    of_flow, key = of_flow[order], key[order]
    distinct = np.append(True, (np.diff(of_flow) != 0) | (key[1:] != key[:-1]))[: len(key)]
    of_flow, key = of_flow[distinct], key[distinct]
    mask = np.maximum(facts["mask"][one], facts["mask"][other])
    found = np.zeros(len(one), np.int64)
    for each in np.unique(mask):
        counts = np.bincount(of_flow[(key & np.uint64(each)) == 0], minlength=len(flows))
        fewer = np.minimum(counts[place[: len(one)]], counts[place[len(one) :]])
        found = np.where(mask == each, fewer, found)
    return found


def _end(facts: Records, side: str) -> Integers:
    """Address and port as one number."""
    end: Integers = facts[side].astype(np.int64) << 16 | facts[f"{side}_port"]
    return end
