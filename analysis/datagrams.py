"""Datagrams without an IP id: which flows are the two sides of a NAT, told by all of a flow's packets together.

One datagram of so many bytes is like any other. So a flow is the image of another only if it can be nothing else, on
one node, where the node says what came in and what left:

- the packets of one came in and never left; those of the other left. Where the kernel turns packets of a bridge's port
  (br_netfilter), the bridge shows the other one coming in, once, and the answers as the first one's: both or neither;
- they have one end in common: orig's (DNAT), or resp's (SNAT), and then there are answers;
- both sides sent packets of the same lengths and ids in both, and asked the same DNS questions by the same ids;
- each point before the NAT saw the first packet of orig before each point behind it did, the first one of resp after,
  and both flows began and ended in the same moment;
- no other flow fits either of them. Where many are alike at one moment, none does.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from analysis.layout import NANOSECONDS, UDP

Records = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

MOMENT_NS: Final = NANOSECONDS // 50
"""How long a datagram takes through a node."""
MOST_ALIKE: Final = 8
"""So many flows of one look are compared with each; where there are more in one moment, none is joined."""
_NEVER: Final = 1 << 62

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
        ("exit", "i8"),  # a point that saw answers only; -1: none
        ("entries", "i8"),  # how many flows saw them come in
        ("left", "?"),  # packets of orig left
        ("turned", "?"),  # some flow has other ends than the first: what turned it is known
    ]
)
"""The flows of one connection on one node, oriented as the first of them."""


def both_sides(facts: Records, connection: Integers, flipped: Flags) -> tuple[Integers, Integers]:
    """Pairs of flows, before a NAT and behind it, that have the same orig and resp.

    `facts`: FLOW_FACTS in order of first_seen; `connection` and `flipped`: of each flow, what is known without this.
    """
    known = (facts["protocol"] == UDP) & (facts["ways"] > 0) & (facts["unnamed"] == 0)
    groups = _groups(facts, np.flatnonzero(known), connection, flipped)
    before = ~groups["turned"] & (groups["entries"] > 0) & ~groups["left"]
    behind = ~groups["turned"] & (groups["entries"] <= 1) & groups["left"]
    pairs, crowded = [np.empty((0, 2), np.int64)], np.zeros(len(groups), np.bool_)
    for common, other in (("orig", "resp"), ("resp", "orig")):
        one, image, many = _alike(groups, before, behind, common)
        fits = _in_order(groups[one], groups[image]) & (groups[other][one] != groups[other][image])
        fits &= groups["entry"][image] == groups["exit"][one]
        if common == "resp":
            fits &= groups["resp_shape"][one] != 0
        pairs.append(np.stack([one[fits], image[fits]], axis=1))
        crowded |= many
    one, image = np.concatenate(pairs).T
    alone = np.bincount(np.append(one, image), minlength=len(groups)) == 1
    joined = (alone & ~crowded)[one] & (alone & ~crowded)[image]
    return groups["flow"][one[joined]], groups["flow"][image[joined]]


def _groups(facts: Records, at: Integers, connection: Integers, flipped: Flags) -> Records:
    """GROUPs of these flows."""
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
    ways, _ = oriented(flows["ways"] & 3, flows["ways"] >> 2)
    groups = np.zeros(len(first), GROUP)
    groups["flow"], groups["node"] = first, node[first]
    for side, end, shape, ts in zip(("orig", "resp"), ends, shapes, firsts, strict=True):
        groups[side] = end[index]
        groups["turned"][group[end != end[index][group]]] = True
        sent = np.flatnonzero(shape != 0)[::-1]
        groups[f"{side}_shape"][group[sent]] = shape[sent]
        groups[f"{side}_first"], groups[f"{side}_last"] = _NEVER, -1
        np.minimum.at(groups[f"{side}_first"], group[sent], ts[sent])
        np.maximum.at(groups[f"{side}_last"], group[sent], ts[sent])
    asked = np.flatnonzero(flows["questions"] != 0)[::-1]
    groups["questions"][group[asked]] = flows["questions"][asked]
    np.maximum.at(groups["end"], group, flows["last_seen"])
    entered = (ways & 1) == 1
    groups["entry"] = groups["exit"] = -1
    groups["entry"][group[entered]] = flows["point"][entered]
    groups["entries"] = np.bincount(group[entered], minlength=len(groups))
    groups["left"][group[(ways & 2) == 2]] = True
    only_answers = (shapes[0] == 0) & (shapes[1] != 0)
    groups["exit"][group[only_answers]] = flows["point"][only_answers]
    return groups


def _alike(groups: Records, before: Flags, behind: Flags, common: str) -> tuple[Integers, Integers, Flags]:
    """Pairs of groups that look the same, before and behind; and which groups are among too many."""
    look = ("node", common, "orig_shape", "resp_shape", "questions")
    some = np.flatnonzero(before | behind)
    order = some[np.lexsort([groups[name][some] for name in ("orig_first", *look)])]

    def same(left: Integers, right: Integers) -> Flags:
        found = np.ones(len(left), np.bool_)
        for name in look:
            found &= groups[name][left] == groups[name][right]
        return found

    run = np.cumsum(np.append(True, ~same(order[:-1], order[1:])))[: len(order)]
    both = (np.bincount(run, before[order]) > 0) & (np.bincount(run, behind[order]) > 0)
    order, run = order[both[run]], run[both[run]]
    start = groups["orig_first"][order]
    pairs, crowded = [np.empty((0, 2), np.int64)], np.zeros(len(groups), np.bool_)
    for step in range(1, MOST_ALIKE + 1):
        near = np.flatnonzero((run[step:] == run[:-step]) & (start[step:] - start[:-step] <= MOMENT_NS))
        if not len(near):
            break
        left, right = order[near], order[near + step]
        pairs += [np.stack([left, right], axis=1), np.stack([right, left], axis=1)]
        if step == MOST_ALIKE:
            for place in range(MOST_ALIKE + 1):
                crowded[order[near + place]] = True
    one, image = np.concatenate(pairs).T
    kept = before[one] & behind[image]
    return one[kept], image[kept], crowded


def _in_order(one: Records, image: Records) -> Flags:
    """Whether all points of `one` saw the first packet of orig before those of `image`, and that of resp after."""
    close = (image["orig_first"] - one["orig_first"] <= MOMENT_NS) & (np.abs(one["end"] - image["end"]) <= MOMENT_NS)
    there = one["orig_last"] <= image["orig_first"]
    back = (one["resp_shape"] == 0) | (
        (image["resp_last"] <= one["resp_first"]) & (one["resp_first"] - image["resp_first"] <= MOMENT_NS)
    )
    in_order: Flags = close & there & back
    return in_order
