"""Stitches a lake: which flows are one connection, by what path, where its packets were lost; how clocks differ.

Derived from the facts of all batches, and made anew when another comes: a node's late recording finds its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis import columns, rooms
from analysis.clocks import Offset, bounds, clock_offsets, corrected
from analysis.connections import connections_of
from analysis.lake import committed_files
from analysis.layout import UDP
from analysis.losses import FLOW_CLOCK, events_of, losses, points_passed
from analysis.paths import NOWHERE, by_packet, hops, paths, positions, seen_packets, with_first_datagrams
from analysis.schemas import NAME, TABLES
from analysis.sightings import add_questions, flow_facts, numbers, read_packets, uid_numbers

Records = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_FLOWS: Final = (
    *("flow_uid", "interface", "encapsulation", "protocol", "first_seen", "last_seen", "community_id", "history"),
    *(f"{side}_{what}" for side in ("orig", "resp") for what in ("ip", "port", "packets", "tcp_segments")),
)
_QUESTIONS: Final = ("flow_uid", "trans_id", "query", "qtype")
_RETRANSMITS: Final = ("flow_uid", "ts", "sender", "seq", "delay_ns", "tcp_segments")


@dataclass
class Stitched:
    """What facts say together. A way is 2 * connection + 1 of what its orig sends, + 0 of what its resp sends."""

    flows: pa.Table
    """In order of first_seen; all arrays by flow are in this order."""
    facts: Records
    connection: Integers
    """Of each flow: the smallest index of its connection's flows."""
    flipped: Flags
    """Whether a flow calls orig whom the connection calls resp."""
    position: Integers
    """As paths.positions()."""
    hops: Records
    offsets: list[Offset]
    primary: Integers
    """For each flow its connection's primary flow."""
    sender_flow: Integers
    """For each way the flow whose TCP segments count."""
    retransmits: pa.Table
    """In order of time; `row` of `events` is a row of it."""
    events: Records
    event_ways: Records
    """EVENT_WAY of each event: by which way, and which flow tells it."""
    located: npt.NDArray[np.int32]
    """For each event what became of the send before it, and of its own if it was the last: as losses.losses()."""

    @property
    def by_reference(self) -> Integers:
        """When each flow was first seen, by the reference node's clock."""
        return corrected(self.facts["first_seen"], self.facts["node"].astype(np.int64), self.offsets)


def stitch(root: Path) -> Stitched:
    """What the facts of a lake say together."""
    flows = _read(root, "flows", _FLOWS, ("first_seen", "flow_uid"))
    for side, letter in (("orig", "A"), ("resp", "a")):
        flows = flows.append_column(f"{side}_acknowledges", pc.match_substring(flows["history"], letter))
    retransmits = _read(root, "retransmits", _RETRANSMITS, ("ts", "flow_uid", "seq"))
    retransmits = retransmits.filter(columns.array(columns.plain(retransmits["tcp_segments"]) > 0))
    facts, addresses = flow_facts(flows)
    node = facts["node"].astype(np.int64)
    resent = columns.plain(retransmits["seq"]).astype(np.uint32)
    sightings, carried = read_packets(committed_files(root, "packets"), facts, addresses, resent)
    sightings = rooms.taken(sightings, np.lexsort((sightings["ts"], sightings["key"])))
    add_questions(facts, _read(root, "dns", _QUESTIONS, _QUESTIONS[:1]))
    connection, flipped = connections_of(facts, sightings)
    seen = seen_packets(sightings, connection, flipped)
    offsets = clock_offsets(seen, node)
    seen = with_first_datagrams(seen, facts, connection, flipped)
    if offsets:
        seen["ts"] = corrected(seen["ts"], node[seen["flow"]], offsets)
        seen = by_packet(seen)
        carried["ts"] = corrected(carried["ts"], node[carried["flow"]], offsets)
    steps = paths(seen)
    position = positions(steps, len(facts))
    sender_flow = _sender_flows(flows, facts, connection, flipped, position)
    events, ways, flow_ways = _events(retransmits, facts, connection, flipped, sender_flow, offsets)
    points = points_passed(seen, steps, facts["mask"])
    clocks = np.empty(len(facts), FLOW_CLOCK)
    clocks["last_seen"] = corrected(facts["last_seen"], node, offsets)
    clocks["bound"], clocks["node"] = bounds(node, offsets), node
    located = losses(events, ways, points, carried, flow_ways, clocks)
    primary = _primary_flows(flows, facts, connection, flipped, position)
    return Stitched(
        flows,
        facts,
        connection,
        flipped,
        position,
        hops(seen, position),
        offsets,
        primary,
        sender_flow,
        retransmits,
        events,
        ways[events["way"]],
        located,
    )


def _read(root: Path, table: str, names: Sequence[str], order: Sequence[str]) -> pa.Table:
    """Columns of a table, words as plain text, and `node`; in this order."""
    schema = pa.schema([pa.field(name, _plain(TABLES[table].schema.field(name).type)) for name in names])
    nothing = [columns.values([], field.type) for field in schema]
    parts = [pa.table([*nothing, columns.texts([])], schema=schema.append(pa.field("node", pa.string())))]
    for file in committed_files(root, table):
        rows = pq.ParquetFile(file).read(list(names)).cast(schema)
        node = unquote(file.parent.name.partition("=")[2])
        parts.append(rows.append_column("node", columns.repeated(node, len(rows))))
    found = pa.concat_tables(parts)
    found = found.combine_chunks()
    return found.take(pc.sort_indices(found, sort_keys=[(name, "ascending") for name in order]))


def _plain(type_: pa.DataType) -> pa.DataType:
    return pa.string() if type_ == NAME else type_


def of_side(flows: pa.Table, what: str, sent_by_orig: bool, flipped: Flags) -> Integers:
    """A figure of flows, such as packets, of the connection's orig or resp."""
    by_orig = ~flipped if sent_by_orig else flipped
    orig, resp = (columns.plain(flows[f"{side}_{what}"]) for side in ("orig", "resp"))
    return np.where(by_orig, orig, resp)


def _sender_flows(
    flows: pa.Table, facts: Records, connection: Integers, flipped: Flags, position: Integers
) -> Integers:
    """For each way the flow that saw most TCP segments, for loss takes away; of several, the nearest to the sender."""
    sender_flow = np.full(2 * len(flows), -1)
    for sent in (0, 1):
        segments = of_side(flows, "tcp_segments", sent == 1, flipped)
        order = np.lexsort((-facts["first_seen"], -position[:, sent], segments, connection))
        sender_flow[2 * connection[order] + sent] = order
    return sender_flow


def _primary_flows(
    flows: pa.Table, facts: Records, connection: Integers, flipped: Flags, position: Integers
) -> Integers:
    """The flow nearest to orig; but not where packets went past that point.

    They did where orig never speaks, or acknowledges what was not seen; where another point saw twice as many TCP
    segments of orig; and, as UDP does not acknowledge, where a point nearer to orig has the answers, or this very point
    has them as another flow's, by the address before NAT. An answer that was lost is at none of these.
    """
    sent, answered = (of_side(flows, "packets", by_orig, flipped) for by_orig in (True, False))
    acknowledges = of_side(flows, "acknowledges", True, flipped)
    segments = of_side(flows, "tcp_segments", True, flipped)
    most = np.zeros(len(flows), np.int64)
    np.maximum.at(most, connection, segments)
    nearest_answer = np.full(len(flows), NOWHERE)
    np.minimum.at(nearest_answer, connection, np.where(answered > 0, position[:, 1], NOWHERE))
    here = connection << 32 | facts["point"]
    only_answers = np.isin(here, here[(sent == 0) & (answered > 0)])
    turned = (answered == 0) & ((nearest_answer[connection] < position[:, 1]) | only_answers)
    bypassed = (sent == 0) | ((answered == 0) & (acknowledges == 1)) | (2 * segments < most[connection])
    bypassed |= (facts["protocol"] == UDP) & turned
    order = np.lexsort((facts["first_seen"], position[:, 1], bypassed, connection))[::-1]
    primary = np.empty(len(flows), np.int64)
    primary[connection[order]] = order
    return primary[connection]


def _events(
    retransmits: pa.Table,
    facts: Records,
    connection: Integers,
    flipped: Flags,
    sender_flow: Integers,
    offsets: list[Offset],
) -> tuple[Records, Records, npt.NDArray[np.int32]]:
    """EVENTs of the flows that count, EVENT_WAYs, and for each flow and side of it the index of its way."""
    order = np.argsort(facts["uid"])
    uids = uid_numbers(retransmits["flow_uid"])
    flow = order[np.searchsorted(facts["uid"], uids, sorter=order)]
    by_orig = np.array([sender == "orig" for sender in retransmits["sender"].to_pylist()], np.bool_)
    way = 2 * connection[flow] + (by_orig ^ flipped[flow])
    at = np.flatnonzero(sender_flow[way] == flow)
    ts = numbers(retransmits["ts"])
    ts = corrected(ts, facts["node"].astype(np.int64)[flow], offsets)
    delay = numbers(retransmits["delay_ns"], -1)
    seq = columns.plain(retransmits["seq"]).astype(np.uint32)
    events, ways = events_of(way[at], ts[at], delay[at], seq[at], at, sender_flow)
    place = np.full(2 * len(facts), -1, np.int32)
    place[ways["way"]] = np.arange(len(ways))
    flow_ways = np.stack([place[2 * connection + (by_orig ^ flipped)] for by_orig in (False, True)], axis=1)
    return events, ways, flow_ways
