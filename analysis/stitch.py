"""Stitches some connections: by what path their packets went, which flows count, where packets were lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from analysis import columns, rooms
from analysis.clocks import Offset, bounds, corrected
from analysis.layout import UDP
from analysis.losses import FLOW_CLOCK, events_of, losses, points_passed
from analysis.paths import NOWHERE, by_packet, hops, paths, positions, with_first_datagrams

Records = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass
class Part:
    """What is known of the flows of some connections: all flows of each. Flows are numbered within the part."""

    flows: pa.Table
    """As flow_facts.read_flows() tells them, and `kind` and `pod` of their interfaces; in order of first_seen, as are
    all arrays by flow."""
    facts: Records
    addresses: list[str | None]
    """Of each number in `facts`."""
    connection: Integers
    """Of each flow: the smallest index of its connection's flows."""
    flipped: Flags
    """Whether a flow calls orig whom the connection calls resp."""
    seen: Records
    """SEEN, by the nodes' own clocks."""
    carried: Records
    """CARRIED, by the nodes' own clocks."""
    retransmits: Records
    """RETRANSMIT, in order of time."""
    offsets: list[Offset]


@dataclass
class Stitched(Part):
    """What is found out about them. A way is 2 * connection + 1 of what its orig sends, + 0 of what its resp sends."""

    position: Integers
    """As paths.positions()."""
    hops: Records
    primary: Integers
    """For each flow its connection's primary flow."""
    sender_flow: Integers
    """For each way the flow whose TCP segments count."""
    events: Records
    """EVENT; its `row` is one of `retransmits`."""
    event_ways: Records
    """EVENT_WAY of each event: by which way, and which flow tells it."""
    located: npt.NDArray[np.int32]
    """For each event what became of the send before it, and of its own if it was the last: as losses.losses()."""


def stitched(part: Part) -> Stitched:
    """What the facts of some connections say together."""
    facts, connection, flipped, offsets = part.facts, part.connection, part.flipped, part.offsets
    node = facts["node"].astype(np.int64)
    seen, carried = with_first_datagrams(part.seen, facts, connection, flipped), part.carried
    if offsets:
        seen["ts"] = corrected(seen["ts"], node[seen["flow"]], offsets)
        seen = by_packet(seen)
        carried["ts"] = corrected(carried["ts"], node[carried["flow"]], offsets)
    steps = paths(seen)
    position = positions(steps, len(facts))
    sender_flow = _sender_flows(part, position)
    events, ways, flow_ways = _events(part, sender_flow)
    clocks = np.empty(len(facts), FLOW_CLOCK)
    clocks["last_seen"] = corrected(facts["last_seen"], node, offsets)
    clocks["bound"], clocks["node"] = bounds(node, offsets), node
    return Stitched(
        **vars(part),
        position=position,
        hops=hops(seen, position),
        primary=_primary_flows(part, position),
        sender_flow=sender_flow,
        events=events,
        event_ways=ways[events["way"]],
        located=losses(events, ways, points_passed(seen, steps, facts["mask"]), carried, flow_ways, clocks),
    )


def of_side(part: Part, what: str, sent_by_orig: bool) -> Integers:
    """A figure of flows, such as packets, of the connection's orig or resp."""
    by_orig = ~part.flipped if sent_by_orig else part.flipped
    orig, resp = (columns.plain(part.flows[f"{side}_{what}"]) for side in ("orig", "resp"))
    return np.where(by_orig, orig, resp)


def _sender_flows(part: Part, position: Integers) -> Integers:
    """For each way the flow that saw most TCP segments, for loss takes away; of several, the nearest to the sender."""
    facts, connection = part.facts, part.connection
    sender_flow = np.full(2 * len(facts), -1)
    for sent in (0, 1):
        segments = of_side(part, "tcp_segments", sent == 1)
        order = np.lexsort((-facts["first_seen"], -position[:, sent], segments, connection))
        sender_flow[2 * connection[order] + sent] = order
    return sender_flow


def _primary_flows(part: Part, position: Integers) -> Integers:
    """The flow nearest to orig; but not where packets went past that point.

    They did where orig never speaks, or acknowledges what was not seen; where another point saw twice as many TCP
    segments of orig; and, as UDP does not acknowledge, where a point nearer to orig has the answers, or this very point
    has them as another flow's, by the address before NAT. An answer that was lost is at none of these.
    """
    facts, connection = part.facts, part.connection
    sent, answered = (of_side(part, "packets", by_orig) for by_orig in (True, False))
    acknowledges, segments = (of_side(part, what, True) for what in ("acknowledges", "tcp_segments"))
    most = np.zeros(len(facts), np.int64)
    np.maximum.at(most, connection, segments)
    nearest_answer = np.full(len(facts), NOWHERE)
    np.minimum.at(nearest_answer, connection, np.where(answered > 0, position[:, 1], NOWHERE))
    here = connection << 32 | facts["point"]
    only_answers = np.isin(here, here[(sent == 0) & (answered > 0)])
    turned = (answered == 0) & ((nearest_answer[connection] < position[:, 1]) | only_answers)
    bypassed = (sent == 0) | ((answered == 0) & (acknowledges == 1)) | (2 * segments < most[connection])
    bypassed |= (facts["protocol"] == UDP) & turned
    order = np.lexsort((facts["first_seen"], position[:, 1], bypassed, connection))[::-1]
    primary = np.empty(len(facts), np.int64)
    primary[connection[order]] = order
    return primary[connection]


def _events(part: Part, sender_flow: Integers) -> tuple[Records, Records, npt.NDArray[np.int32]]:
    """EVENTs of the flows that count, EVENT_WAYs, and for each flow and side of it the index of its way."""
    connection, flipped, told = part.connection, part.flipped, part.retransmits
    way = 2 * connection[told["flow"]] + ((told["sender"] == 1) ^ flipped[told["flow"]])
    at = np.flatnonzero(sender_flow[way] == told["flow"])
    way, told = way[at], rooms.taken(told, at)
    ts = corrected(told["ts"], part.facts["node"].astype(np.int64)[told["flow"]], part.offsets)
    events, ways = events_of(way, ts, told["delay_ns"], told["seq"], at, sender_flow)
    place = np.full(2 * len(connection), -1, np.int32)
    place[ways["way"]] = np.arange(len(ways))
    flow_ways = np.stack([place[2 * connection + (by_orig ^ flipped)] for by_orig in (False, True)], axis=1)
    return events, ways, flow_ways
