"""Datagrams: which flows may be the two sides of a NAT, and which are, told by all of a flow's packets together.

One datagram of so many bytes is like any other, and many have no IP id. So a flow is the image of another only if it
can be nothing else, on one node, where the node says what came in and what left:

- the packets of one came in and never left; those of the other left. Where the kernel turns packets of a bridge's port
  (br_netfilter), the bridge shows the other one coming in, once, or leaving, and the answers as the first one's: both
  or neither. Without answers, the other one did not come in where the first one did;
- both sides sent packets of the same lengths and ids in both, and asked the same DNS questions by the same ids;
- each point before the NAT saw the first packet of orig before each point behind it did, the first one of resp after,
  and both flows began and ended in the same moment;
- they have one end in common: orig's (DNAT), or resp's (SNAT), and then there are answers;
- or neither, as for node ports and for pods that reach themselves; then there are answers, orig's address behind the
  NAT is the node's own, and it is known that the node forwarded the packets, and no process on it that asked others
  what it was asked: they have the same IP ids both ways, or the TTL of packets under way, or came to a bridge's port
  and left by one without the bridge; or a bridge shows them turned at one end only, between both;
- no other flow fits either of them, and to what fits with an end in common no other is compared. Where many are alike
  at one moment, none does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from analysis.layout import NANOSECONDS, UDP

Records = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

MOMENT_NS: Final = NANOSECONDS // 50
"""How long a datagram takes through a node."""
FRESH_TTLS: Final = (32, 64, 128, 255)
"""What packets begin with."""
MOST_ALIKE: Final = 8
"""A flow is compared with so many that look like its image, and came while it waited for an answer; with more, none of
them is joined."""
_NEVER: Final = 1 << 62
_SHAPES: Final = ("orig_shape", "resp_shape", "questions")
_ENDS: Final = ("node", "orig", "resp", "orig_shape", "resp_shape")
_BOTH: Final = 3
_SWAPPED: Final = np.array([0, 2, 1, _BOTH], np.uint8)

GROUP: Final = np.dtype(
    [
        ("flow", "i8"),  # the first one
        ("node", "i8"),
        ("orig", "i8"),  # address and port as one number
        ("resp", "i8"),
        ("orig_shape", "u8"),  # of the first flow that has packets of orig
        ("resp_shape", "u8"),
        ("questions", "u8"),
        ("orig_first", "i8"),  # when the first point saw the first packet of orig
        ("orig_last", "i8"),  # when the last point saw it
        ("resp_first", "i8"),
        ("resp_last", "i8"),
        ("end", "i8"),  # when the last packet was seen
        ("entry", "i8"),  # a point at which packets of orig came in; -1: none
        ("half", "i8"),  # a point that saw packets of orig only, though there are answers; -1: none
        ("exit", "i8"),  # a point that saw answers only; -1: none
        ("entries", "i8"),  # how many flows saw packets of orig come in
        ("flows", "i8"),
        ("point", "i8"),  # of the first flow
        ("orig_ttl", "i8"),  # of the first packet
        ("resp_ttl", "i8"),
        ("numbered", "u1"),  # as in FLOW_FACTS
        ("left", "?"),  # packets of orig left
        ("own", "?"),  # nothing that came in to the node is from orig's address
        ("turned", "?"),  # some flow has other ends than the first: what turned it is known
    ]
)
"""The flows of one connection on one node, oriented as the first of them."""


class Flows(NamedTuple):
    """Of each flow its group, and the bits of FLOW_FACTS' `ways` of the group's orig."""

    group: Integers
    ways: Integers


def both_sides(
    facts: Records, connection: Integers, flipped: Flags
) -> tuple[Integers, Integers, npt.NDArray[np.uint8]]:
    """Pairs of flows before a NAT and behind it: (one, other, whether orig of the one is resp of the other).

    `facts`: FLOW_FACTS in order of first_seen; `connection` and `flipped`: of each flow, what is known without this.
    """
    known = np.flatnonzero(_is_known(facts))
    groups, flows = _groups(facts, known, connection, flipped)
    before, behind = _before(groups), _behind(groups)
    turned, many = _turned_both(groups, before, behind)
    between = _between(groups, *turned.T)
    threes = np.column_stack([turned, between])[between >= 0]
    free = np.ones(len(groups), np.bool_)
    free[threes] = False
    pairs, crowded = _of_common_end(groups, before & free, behind & free)
    free[pairs] = False
    turned = turned[(between < 0) & (free & ~crowded)[turned].all(axis=1)]
    forwarded = np.ones(len(turned), np.bool_)
    if len(turned):
        ports = _ports_of_bridges(facts["point"][known].astype(np.int64), flows)
        forwarded = _are_forwarded(groups[turned[:, 0]], groups[turned[:, 1]], ports)
    whole = threes[_fit_nothing_else(threes, many), :2]
    halves = np.unique(threes[:, ::2], axis=0)
    halves = halves[_fit_nothing_else(halves, many)]
    pairs = pairs[_fit_nothing_else(pairs, crowded)]
    turned = turned[_fit_nothing_else(turned, many) & forwarded]
    left, right = np.concatenate([halves, whole, pairs, turned]).T
    opposite = np.zeros(len(left), np.uint8)
    opposite[: len(halves)] = groups["orig"][halves[:, 0]] != groups["orig"][halves[:, 1]]
    return groups["flow"][left], groups["flow"][right], opposite


def _fit_nothing_else(sets: Integers, crowded: Flags) -> Flags:
    """Of sets of groups (a row each) whether each group is in no other one, and not among too many."""
    single = (np.bincount(sets.ravel(), minlength=len(crowded)) == 1) & ~crowded
    found: Flags = single[sets].all(axis=1)
    return found


def may_be_sides(facts: Records, connection: Integers, flipped: Flags, one: Integers, other: Integers) -> Flags:
    """Of each two flows whether one may be the image of the other, by what came in and left; yes where not known."""
    if not len(one):
        return np.zeros(0, np.bool_)
    at = np.flatnonzero(_is_known(facts))
    groups, flows = _groups(facts, at, connection, flipped)
    of_flow = np.full(len(facts), len(groups))
    of_flow[at] = flows.group
    before, behind = (np.append(each, True)[of_flow] for each in (_before(groups), _behind(groups)))
    found: Flags = (before[one] & behind[other]) | (before[other] & behind[one])
    return found


def _is_known(facts: Records) -> Flags:
    """Datagrams of which it is known whether they came in or left."""
    known: Flags = (facts["protocol"] == UDP) & (facts["ways"] > 0) & (facts["unnamed"] == 0)
    return known


def _before(groups: Records) -> Flags:
    found: Flags = ~groups["turned"] & (groups["entries"] > 0) & ~groups["left"]
    return found


def _behind(groups: Records) -> Flags:
    found: Flags = ~groups["turned"] & (groups["entries"] <= 1) & groups["left"]
    return found


def _of_common_end(groups: Records, before: Flags, behind: Flags) -> tuple[Integers, Flags]:
    """Pairs of groups that fit, before and behind, and have one end in common; and which groups are among too many."""
    pairs, crowded = [], np.zeros(len(groups), np.bool_)
    for common, other in (("orig", "resp"), ("resp", "orig")):
        one, image, many = _alike(groups, before, behind, ("node", common, *_SHAPES))
        fits = _in_order(groups[one], groups[image]) & (groups[other][one] != groups[other][image])
        fits &= _at_the_bridge(groups[one], groups[image])
        if common == "resp":
            fits &= groups["resp_shape"][one] != 0
        pairs.append(np.stack([one[fits], image[fits]], axis=1))
        crowded |= many
    return np.concatenate(pairs), crowded


def _turned_both(groups: Records, before: Flags, behind: Flags) -> tuple[Integers, Flags]:
    """As _of_common_end, of groups that have no end in common."""
    answered = groups["resp_shape"] != 0
    one, image, many = _alike(groups, before & answered, behind & answered & groups["own"], ("node", *_SHAPES))
    fits = (groups["orig"][one] != groups["orig"][image]) & (groups["resp"][one] != groups["resp"][image])
    fits &= _in_order(groups[one], groups[image])
    one, image = one[fits], image[fits]
    fits = _at_the_bridge(groups[one], groups[image]) | (_between(groups, one, image) >= 0)
    return np.stack([one[fits], image[fits]], axis=1), many


def _at_the_bridge(one: Records, image: Records) -> Flags:
    """Whether a bridge that turns packets shows both sides, or none; if there are no answers, only not the first one's
    point as the image's."""
    is_exit = (image["half"] == one["exit"]) & ((image["entry"] < 0) | (image["entry"] == one["exit"]))
    answered = np.where(one["exit"] < 0, image["entry"] < 0, is_exit)
    alone = (image["entry"] < 0) | (image["entry"] != one["entry"])
    found: Flags = np.where(one["resp_shape"] != 0, answered, alone)
    return found


def _between(groups: Records, one: Integers, image: Integers) -> Integers:
    """Of each pair of groups the one that a bridge shows between them, of packets turned at one end only; or -1.

    It has orig's end of the first one and resp's of the image, and was seen once, after the one and before the other:
    both sides of it at a point where neither of them was, or all packets of one side where they have none of that side.
    """
    found = np.full(len(one), -1)
    before, behind = groups[one], groups[image]
    near = np.isin(groups["orig"], before["orig"]) | np.isin(groups["resp"], before["orig"])
    seen, rows = _either_way(groups, np.flatnonzero(near & (groups["flows"] == 1)))
    some = np.isin(seen["orig"], before["orig"]) & np.isin(seen["resp"], behind["resp"])
    seen, rows = seen[some], rows[some]
    whole, questions, answers = (before.copy() for _ in range(3))
    questions["resp_shape"], questions["point"] = 0, before["exit"]
    answers["orig_shape"], answers["point"] = 0, behind["half"]
    alone = (before["flows"] == 1) & (behind["flows"] == 1)
    for sought, taken, look in (
        (whole, alone, _ENDS),
        (questions, (before["exit"] >= 0) & (behind["half"] < 0), (*_ENDS, "point")),
        (answers, (before["exit"] < 0) & (behind["half"] >= 0), (*_ENDS, "point")),
    ):
        sought["resp"] = behind["resp"]
        at = np.flatnonzero(taken)
        which, other = _equal_rows(sought[at], seen, look)
        at, middle = at[which], seen[other]
        asked = (before["orig_last"][at] <= middle["orig_first"]) & (middle["orig_first"] <= behind["orig_first"][at])
        told = (behind["resp_last"][at] <= middle["resp_first"]) & (middle["resp_first"] <= before["resp_first"][at])
        fits = (asked | (middle["orig_shape"] == 0)) & (told | (middle["resp_shape"] == 0))
        if sought is whole:
            fits &= (middle["point"] != before["point"][at]) & (middle["point"] != behind["point"][at])
        found[at[fits]] = rows[other[fits]]
    return found


def _either_way(groups: Records, at: Integers) -> tuple[Records, Integers]:
    """Groups as they are, and those with orig and resp exchanged; and where they are in `groups`."""
    swapped = groups[at]
    for name in ("", "_shape", "_first", "_last"):
        swapped[f"orig{name}"], swapped[f"resp{name}"] = groups[f"resp{name}"][at], groups[f"orig{name}"][at]
    return np.concatenate([groups[at], swapped]), np.append(at, at)


def _look(groups: Records, names: Sequence[str]) -> Integers:
    """A number for each, the same where these fields are."""
    found = np.zeros(len(groups), np.int64)
    for name in names:
        value = np.unique(groups[name], return_inverse=True)[1]
        found = np.unique(found << 32 | value, return_inverse=True)[1]
    return found


def _equal_rows(one: Records, other: Records, names: Sequence[str]) -> tuple[Integers, Integers]:
    """Places of records that are equal in these fields, in both."""
    count = len(one)
    row = _look(np.concatenate([one, other]), names)
    left, right = row[:count], row[count:]
    order = np.argsort(right, kind="stable")
    begin, end = (np.searchsorted(right[order], left, side=side) for side in ("left", "right"))
    which = np.repeat(np.arange(count), end - begin)
    nth = np.arange(len(which)) - np.repeat(np.cumsum(end - begin) - (end - begin), end - begin)
    return which, order[begin[which] + nth]


def _are_forwarded(one: Records, image: Records, ports: Flags) -> Flags:
    """Whether no process can have sent the packets of the image; `ports`: of each point whether it is a bridge's."""
    numbered = (one["numbered"] & image["numbered"]) == _BOTH
    steps = one["orig_ttl"] - image["orig_ttl"], image["resp_ttl"] - one["resp_ttl"]
    under_way = ~np.isin(image["orig_ttl"], FRESH_TTLS) & ~np.isin(one["resp_ttl"], FRESH_TTLS)
    routed = np.isin(steps[0], (0, 1)) & np.isin(steps[1], (0, 1)) & under_way
    bridged = (steps[0] == 0) & (steps[1] == 0) & (one["flows"] == 1) & (image["flows"] == 1)
    found: Flags = numbered | routed | (bridged & ports[one["point"]] & ports[image["point"]])
    return found


def _ports_of_bridges(point: Integers, flows: Flows) -> Flags:
    """Of each point whether packets of some flow that left (or came in) there also left (or came in) at another one."""
    found = np.zeros(point.max(initial=-1) + 1, np.bool_)
    for way in (1, 2):
        at = np.flatnonzero(flows.ways == way)
        place = np.unique(flows.group[at] << 32 | point[at])
        several = np.bincount(place >> 32)[place >> 32] > 1
        found[(place & 0xFFFFFFFF)[several]] = True
    return found


def _came_first(group: Integers, ways: Integers, ts: Integers) -> Flags:
    """Of each flow whether packets of one side came in there, and not after they left elsewhere."""
    came, left = (np.full(len(group) and group.max() + 1, _NEVER) for _ in range(2))
    for found, way in ((came, 1), (left, 2)):
        np.minimum.at(found, group[ways == way], ts[ways == way])
    first: Flags = (ways == 1) & (came <= left)[group]
    return first


def _groups(facts: Records, at: Integers, connection: Integers, flipped: Flags) -> tuple[Records, Flows]:
    """GROUPs of these flows, and of which each one is."""
    node = facts["node"].astype(np.int64)
    _, index, group = np.unique(node[at] << 32 | connection[at], return_index=True, return_inverse=True)
    first = at[index]
    swapped = flipped[at] ^ flipped[first[group]]
    flows = facts[at]

    def oriented(orig: Integers, resp: Integers) -> tuple[Integers, Integers]:
        return np.where(swapped, resp, orig), np.where(swapped, orig, resp)

    ends = oriented(*(flows[side].astype(np.int64) << 16 | flows[f"{side}_port"] for side in ("orig", "resp")))
    shapes = oriented(flows["orig_shape"], flows["resp_shape"])
    firsts = oriented(flows["orig_first"], flows["resp_first"])
    ttls = oriented(flows["orig_ttl"], flows["resp_ttl"])
    ways, back = oriented(flows["ways"] & 3, flows["ways"] >> 2)
    groups = np.zeros(len(first), GROUP)
    groups["flow"], groups["node"] = first, node[first]
    groups["flows"], groups["point"] = np.bincount(group), flows["point"][index]
    numbered = np.where(swapped, _SWAPPED[flows["numbered"]], flows["numbered"])
    np.bitwise_or.at(groups["numbered"], group, numbered)
    for side, end, shape, ts, ttl in zip(("orig", "resp"), ends, shapes, firsts, ttls, strict=True):
        groups[side] = end[index]
        groups["turned"][group[end != end[index][group]]] = True
        sent = np.flatnonzero(shape != 0)[::-1]
        groups[f"{side}_shape"][group[sent]], groups[f"{side}_ttl"][group[sent]] = shape[sent], ttl[sent]
        groups[f"{side}_first"], groups[f"{side}_last"] = _NEVER, -1
        np.minimum.at(groups[f"{side}_first"], group[sent], ts[sent])
        np.maximum.at(groups[f"{side}_last"], group[sent], ts[sent])
    asked = np.flatnonzero(flows["questions"] != 0)[::-1]
    groups["questions"][group[asked]] = flows["questions"][asked]
    np.maximum.at(groups["end"], group, flows["last_seen"])
    addresses = [node[at] << 32 | end >> 16 for end in ends]
    strangers = [
        address[_came_first(group, *side)]
        for address, side in zip(addresses, ((ways, firsts[0]), (back, firsts[1])), strict=True)
    ]
    groups["own"] = ~np.isin(addresses[0][index], np.concatenate(strangers))
    entered = (ways & 1) == 1
    groups["entry"] = groups["exit"] = groups["half"] = -1
    groups["entry"][group[entered]] = flows["point"][entered]
    groups["entries"] = np.bincount(group[entered], minlength=len(groups))
    groups["left"][group[(ways & 2) == 2]] = True
    for name, only, other in (("exit", shapes[1], shapes[0]), ("half", shapes[0], shapes[1])):
        alone = (only != 0) & (other == 0) & (groups["resp_shape"][group] != 0)
        groups[name][group[alone]] = flows["point"][alone]
    return groups, Flows(group, ways)


def _alike(groups: Records, before: Flags, behind: Flags, look: Sequence[str]) -> tuple[Integers, Integers, Flags]:
    """Pairs of groups that look the same, before and behind; and which groups are among too many."""
    some = np.flatnonzero(before | behind)
    run = _look(groups[some], look)
    answered = np.where(groups["resp_shape"][some] != 0, groups["resp_first"][some], _NEVER)
    begin, end = groups["orig_first"][some], np.minimum(groups["orig_first"][some] + MOMENT_NS, answered)
    time = np.unique(np.append(begin, end), return_inverse=True)[1]
    begin, end = run << 32 | time[: len(some)], run << 32 | time[len(some) :]
    ones, images = np.flatnonzero(before[some]), np.flatnonzero(behind[some])
    images = images[np.argsort(begin[images])]
    since, until = np.searchsorted(begin[images], begin[ones]), np.searchsorted(begin[images], end[ones], side="right")
    count = np.maximum(until - since, 0)
    many = count > MOST_ALIKE
    covered = np.zeros(len(images) + 1, np.int64)
    np.add.at(covered, since[many], 1)
    np.add.at(covered, until[many], -1)
    crowded = np.zeros(len(groups), np.bool_)
    crowded[some[ones[many]]] = True
    crowded[some[images[np.cumsum(covered)[:-1] > 0]]] = True
    ones, since, count = ones[~many], since[~many], count[~many]
    nth = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return some[np.repeat(ones, count)], some[images[np.repeat(since, count) + nth]], crowded


def _in_order(one: Records, image: Records) -> Flags:
    """Whether all points of `one` saw the first packet of orig before those of `image`, and that of resp after."""
    close = (image["orig_first"] - one["orig_first"] <= MOMENT_NS) & (np.abs(one["end"] - image["end"]) <= MOMENT_NS)
    there = one["orig_last"] <= image["orig_first"]
    back = (one["resp_shape"] == 0) | (
        (image["resp_last"] <= one["resp_first"]) & (one["resp_first"] - image["resp_first"] <= MOMENT_NS)
    )
    in_order: Flags = close & there & back
    return in_order
