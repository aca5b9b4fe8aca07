"""Stitches a lake: which flows are one connection, by what path, where its packets were lost; how clocks differ.

Derived from the facts of all batches, and made anew when another comes: late recordings of other nodes find their place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from analysis.clocks import Offset, clock_offsets, corrected
from analysis.connections import connections_of
from analysis.lake import committed_files
from analysis.losses import events_of, losses, points_passed
from analysis.paths import hops, paths, seen_packets
from analysis.sightings import Numbers, flow_facts, packet_rows, read_sightings

if TYPE_CHECKING:
    from analysis.lake_reader import Lake

Records = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]

_FLOWS: Final = """
SELECT flow_uid, node, interface, encapsulation, protocol, first_seen, last_seen, community_id,
    orig_ip, orig_port, resp_ip, resp_port, orig_packets, resp_packets, orig_tcp_segments, resp_tcp_segments
FROM flows ORDER BY first_seen, flow_uid"""
_EVENTS: Final = """
SELECT flow_uid, ts, sender, seq, delay_ns FROM retransmits WHERE tcp_segments > 0 ORDER BY ts, flow_uid, seq"""


@dataclass
class Stitched:
    """All arrays by flow are in the order of `flows`."""

    flows: pa.Table
    facts: Records
    connection: Integers
    """The connection of each flow: the smallest index of its flows."""
    flipped: npt.NDArray[np.bool_]
    """Whether a flow calls orig whom the connection's first flow calls resp."""
    steps: Records
    hops: Records
    offsets: list[Offset]
    sender_flow: Integers
    """For each way the flow that stands for it: of those that saw most TCP segments the nearest to the sender."""
    events: Records
    located: npt.NDArray[np.int32]


def stitch(lake: Lake) -> Stitched:
    """What the facts of a lake say together."""
    flows = lake.arrow(_FLOWS)
    addresses = Numbers()
    facts = flow_facts(flows, addresses)
    files = committed_files(lake.path, "packets")
    sightings = read_sightings(files, facts, addresses)
    sightings = sightings[np.lexsort((sightings["row"], sightings["ts"], sightings["key"]))]
    connection, flipped = connections_of(facts, sightings)
    seen = seen_packets(sightings, connection, flipped)
    node = facts["node"].astype(np.int64)
    offsets = clock_offsets(seen, node)
    if offsets:
        seen["ts"] = corrected(seen["ts"], node[seen["flow"]], offsets)
        seen = seen[np.lexsort((seen["row"], seen["ts"], seen["packet"]))]
    steps = paths(seen)
    sender_flow = _sender_flows(flows, facts, connection, flipped, steps)
    events, ways, flow_ways = _events(lake, flows, facts, connection, flipped, sender_flow, offsets)
    points = points_passed(seen, steps, facts["mask"])

    def packets() -> Any:
        for rows in packet_rows(files, facts, addresses):
            if offsets:
                rows["ts"] = corrected(rows["ts"], np.append(node, -1)[rows["flow"]], offsets)
            yield rows

    located = losses(events, ways, points, packets() if len(events) else (), facts, flow_ways)
    return Stitched(
        flows, facts, connection, flipped, steps, hops(seen, steps), offsets, sender_flow, events, located
    )


def _sender_flows(
    flows: pa.Table, facts: Records, connection: Integers, flipped: npt.NDArray[np.bool_], steps: Records
) -> Integers:
    count = len(flows)
    position = np.full((count, 2), 1 << 20)
    sent = steps["way"] & 1
    position[steps["flow"], sent] = steps["position"]
    sender_flow = np.full(2 * count, -1)
    for way in (0, 1):
        # What a flow calls orig sends the connection's way 1, unless it is flipped.
        by_orig = (way == 1) ^ flipped
        segments = np.where(by_orig, flows["orig_tcp_segments"].to_numpy(), flows["resp_tcp_segments"].to_numpy())
        order = np.lexsort((-facts["first_seen"], -position[:, way], segments, connection))
        sender_flow[2 * connection[order] + way] = order
    return sender_flow


def _events(
    lake: Lake,
    flows: pa.Table,
    facts: Records,
    connection: Integers,
    flipped: npt.NDArray[np.bool_],
    sender_flow: Integers,
    offsets: list[Offset],
) -> tuple[Records, Records, npt.NDArray[np.int32]]:
    """EVENTs of the senders' flows, EVENT_WAYs, and for each flow and side the index of its way."""
    rows = lake.arrow(_EVENTS)
    uids = {uid: number for number, uid in enumerate(flows["flow_uid"].to_pylist())}
    flow = np.array([uids[uid] for uid in rows["flow_uid"].to_pylist()], np.int64)
    by_orig = np.array([sender == "orig" for sender in rows["sender"].to_pylist()], np.bool_)
    way = 2 * connection[flow] + (by_orig ^ flipped[flow])
    at = np.flatnonzero(sender_flow[way] == flow)
    ts = rows["ts"].combine_chunks().cast(pa.int64()).to_numpy(zero_copy_only=False)
    if offsets:
        ts = corrected(ts, facts["node"].astype(np.int64)[flow], offsets)
    delay = rows["delay_ns"].fill_null(-1).to_numpy()
    seq = rows["seq"].to_numpy().astype(np.uint32)
    events, ways = events_of(way[at], ts[at], delay[at], seq[at], at, sender_flow)
    place = np.full(2 * len(flows), -1, np.int32)
    place[ways["way"]] = np.arange(len(ways))
    flow_ways = np.empty((len(flows), 2), np.int32)
    for side in (0, 1):
        flow_ways[:, side] = place[2 * connection + ((side == 1) ^ flipped)]
    return events, ways, flow_ways
