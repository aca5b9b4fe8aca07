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

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from analysis import orders, rooms
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
_SYNS: Final = ("orig_syn", "resp_syn")
SHARED: Final = np.dtype([("one", "i8"), ("other", "i8"), ("opposite", "u1"), ("key", "u8")], align=True)
"""A datagram that two flows saw, one after the other; `one` has the smaller index."""


def connections_of(facts: Records, sightings: Iterable[Records]) -> tuple[Integers, Flags]:
    """The connection of each flow (the smallest index of its flows), and whether its orig is the connection's resp.

    Who opened a connection is told by a flow that saw the SYN, else by the first one. `facts`: FLOW_FACTS in order of
    first_seen; `sightings`: SIGHTING, sorted by (key, ts), in parts that have no key in common; they are gone through
    more than once.
    """
    parents = np.arange(len(facts))
    flips = np.zeros(len(facts), np.uint8)
    kernels.unite(parents, flips, *_same_tuple(facts))
    packets, datagrams = _same_packets(facts, sightings, parents)
    kernels.unite(parents, flips, *packets)
    kernels.unite(parents, flips, *both_sides(facts, parents, flips == 1))
    kernels.unite(parents, flips, *_same_datagrams(facts, sightings, datagrams, parents, flips == 1))
    opener = parents.copy()
    with_syn = np.flatnonzero(facts["orig_syn"] >= 0)[::-1]
    opener[parents[with_syn]] = with_syn
    return parents, (flips ^ flips[opener[parents]]) == 1


def _same_tuple(facts: Records) -> Pairs:
    """Flows at different points of one Community ID that overlap, unless SYNs differ: (one, other, opposite)."""
    order = orders.small(facts["community"])
    of = {name: facts[name][order] for name in ("community", "node", "point", "first_seen", "last_seen", *_SYNS)}
    orig_end = _ends(facts)[0][order]
    pairs: list[Pairs] = []
    at = np.arange(len(facts))
    for step in range(1, len(np.unique(facts["point"]))):
        at = at[: np.searchsorted(at, len(facts) - step)]
        at = at[of["community"][at] == of["community"][at + step]]
        if not len(at):
            break
        to = at + step
        slack = np.where(of["node"][at] == of["node"][to], NANOSECONDS, SLACK_NS)
        same = (of["point"][at] != of["point"][to]) & (of["first_seen"][to] <= of["last_seen"][at] + slack)
        for syn in _SYNS:
            left, right = of[syn][at], of[syn][to]
            same &= (left == right) | (left < 0) | (right < 0)
        one, other = at[same], to[same]
        pairs.append((order[one], order[other], (orig_end[one] != orig_end[other]).astype(np.uint8)))
    return _joined(pairs)


def _same_packets(facts: Records, sightings: Iterable[Records], connection: Integers) -> tuple[Pairs, Records]:
    """Flows that saw the same packet of TCP, and SHAREDs of UDP; but those of which it is known already."""
    packets: list[Pairs] = []
    datagrams: list[Records] = []
    for part in sightings:
        key, flow, ts = (part[name] for name in ("key", "flow", "ts"))
        at = np.flatnonzero((key[1:] == key[:-1]) & (flow[1:] != flow[:-1]) & (ts[1:] - ts[:-1] <= SLACK_NS))
        at = at[connection[flow[at]] != connection[flow[at + 1]]]
        one, other = flow[at].astype(np.int64), flow[at + 1].astype(np.int64)
        opposite = (part["sender"][at] != part["sender"][at + 1]).astype(np.uint8)
        protocol = facts["protocol"][one], facts["protocol"][other]
        decisive = (part["decisive"][at] & part["decisive"][at + 1]) == 1
        orig, resp = _common_ends(facts, one, other, opposite)
        taken = (protocol[0] == TCP) & (protocol[1] == TCP) & (decisive | orig | resp)
        packets.append((one[taken], other[taken], opposite[taken]))
        taken = (protocol[0] == UDP) & (protocol[1] == UDP) & (ts[at + 1] - ts[at] <= MOMENT_NS)
        taken &= facts["node"][one] == facts["node"][other]
        shared = np.empty(int(taken.sum()), SHARED)
        shared["one"], shared["other"] = np.minimum(one, other)[taken], np.maximum(one, other)[taken]
        shared["opposite"], shared["key"] = opposite[taken], key[at[taken]]
        datagrams.append(shared)
    return _joined(packets), rooms.joined(datagrams, SHARED)


def _joined(pairs: list[Pairs]) -> Pairs:
    nothing = np.empty(0, np.int64)
    one, other, opposite = (
        np.concatenate(each) for each in zip((nothing, nothing, nothing.astype(np.uint8)), *pairs, strict=True)
    )
    return one, other, opposite


def _same_datagrams(
    facts: Records, sightings: Iterable[Records], shared: Records, connection: Integers, flipped: Flags
) -> Pairs:
    """Flows on both sides of a NAT that saw the same datagrams: (one, other, opposite)."""
    shared = rooms.taken(shared, connection[shared["one"]] != connection[shared["other"]])
    shared = rooms.taken(shared, np.lexsort([shared[name] for name in ("key", "opposite", "other", "one")]))
    one, other, opposite, key = (shared[name] for name in ("one", "other", "opposite", "key"))
    next_pair = (np.diff(one) != 0) | (np.diff(other) != 0) | (np.diff(opposite) != 0)
    begin = np.flatnonzero(np.append(True, next_pair)[: len(one)])
    pair = np.repeat(np.arange(len(begin)), np.diff(np.append(begin, len(one))))
    is_new = np.append(True, next_pair | (np.diff(key) != 0))[: len(one)]
    times = np.bincount(pair, is_new, len(begin)).astype(np.int64)
    one, other, opposite = one[begin], other[begin], opposite[begin]
    orig, resp = _common_ends(facts, one, other, opposite)
    elsewhere = (facts["point"][one] != facts["point"][other]) | (facts["unnamed"][one] == 1)
    image = elsewhere & (orig | (resp & (times > 1))) & may_be_sides(facts, connection, flipped, one, other)
    may_be = image | (times >= CERTAIN)
    one, other, opposite, times = one[may_be], other[may_be], opposite[may_be], times[may_be]
    taken = 2 * times >= _comparable(facts, sightings, one, other)
    return one[taken], other[taken], opposite[taken]


def _common_ends(
    facts: Records, one: Integers, other: Integers, opposite: npt.NDArray[np.uint8]
) -> tuple[Flags, Flags]:
    """Whether orig of `one` is an end of the other one, too, and whether resp is."""
    ends = _ends(rooms.taken(facts, one))
    orig, resp = _ends(rooms.taken(facts, other))
    swapped = opposite == 1
    return ends[0] == np.where(swapped, resp, orig), ends[1] == np.where(swapped, orig, resp)


def _comparable(facts: Records, sightings: Iterable[Records], one: Integers, other: Integers) -> Integers:
    """For each two flows how many datagrams both could have seen: those of the one that saw fewer."""
    found = np.zeros(len(one), np.int64)
    if not len(one):
        return found
    flows, place = np.unique(np.append(one, other), return_inverse=True)
    mask = np.maximum(facts["mask"][one], facts["mask"][other])
    masks = np.unique(mask)
    counts = np.zeros((len(masks), len(flows)), np.int64)
    for part in sightings:
        at = np.flatnonzero(np.isin(part["flow"], flows))
        of_flow, key = np.searchsorted(flows, part["flow"][at]), part["key"][at]
        order = np.lexsort((key, of_flow))
        of_flow, key = of_flow[order], key[order]
        distinct = np.append(True, (np.diff(of_flow) != 0) | (key[1:] != key[:-1]))[: len(key)]
        of_flow, key = of_flow[distinct], key[distinct]
        for number, each in enumerate(masks):
            counts[number] += np.bincount(of_flow[(key & np.uint64(each)) == 0], minlength=len(flows))
    for number, each in enumerate(masks):
        fewer = np.minimum(counts[number][place[: len(one)]], counts[number][place[len(one) :]])
        found = np.where(mask == each, fewer, found)
    return found


def _ends(facts: Records) -> tuple[Integers, Integers]:
    """Address and port of orig as one number, and of resp."""
    orig, resp = (facts[side].astype(np.int64) << 16 | facts[f"{side}_port"] for side in ("orig", "resp"))
    return orig, resp
