"""The line, from captures to tables. Each stage is a file of its own; here they are joined.

    segments -> chunks of frames -> packets -> flows -> retransmits, dns -> names -> lake

Files that follow each other in time are one recording: what is known of flows is carried from one to the next. Files
that overlap were captured at different places, and are recordings of their own.
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from analysis import columns, lake, path_mtu, rooms
from analysis.derive import derive
from analysis.dns import Dns, DnsRows, joined_rows, to_arrow
from analysis.enrich import enrich as enrich_lake
from analysis.enrich import known_identities, known_interfaces, learn
from analysis.errors import PodtapError, Problem
from analysis.flows import FlowRows, Flows, clustered, flow_minutes_table, flows_table, is_loss_uncertain
from analysis.identities import Identities, add_identities, load_identities
from analysis.journals import journals_of_recordings
from analysis.layout import (
    COUNTED_COPIES,
    COUNTED_FIRST_TS,
    COUNTED_LAST_TS,
    COUNTED_NOT_IP,
    COUNTED_PACKETS,
    LINKTYPE_SLL2,
    NANOSECONDS,
    PACKET,
)
from analysis.observation_points import ObservationPoints
from analysis.packet_rows import PacketRows
from analysis.packets import decode_packets, new_counts
from analysis.queues import Queues, processors
from analysis.recordings import Told, gaps_table, told_by, unseen_pods
from analysis.retransmits import Retransmits, retransmits_table
from analysis.rooms import Ring
from analysis.sandboxes import sandboxes
from analysis.segment_rows import segments_table, undecoded
from analysis.segments import STDIN, Segment, find_segments

Records: TypeAlias = npt.NDArray[Any]
Progress: TypeAlias = Callable[[int, int | None, int], None]

OVERLAP_NS: Final = NANOSECONDS // 50
"""Rotated files of one capture, whose names differ by numbers, may overlap by this much, and by half of the earlier
one; other files that overlap were captured elsewhere."""
NO_BYTES: Final = np.zeros(1, np.uint8)
FLUSH_FLOWS: Final = 1 << 16
AHEAD: Final = 2
"""Chunks that are read before, and searched for lookups after, the one that is analysed, if there are several jobs."""


@dataclass
class Summary:
    """What analyze() did."""

    lake: Path
    captures: int = 0
    """Among what was given, also those that the lake has already."""
    packets: int = 0
    not_ip: int = 0
    """Among them: neither IP nor ARP."""
    bytes: int = 0
    segments: int = 0
    flows: int = 0
    retransmits: int = 0
    transactions: int = 0
    problems: list[Problem] = field(default_factory=list)
    unchanged: bool = False
    """No capture is new to the lake."""
    learned: bool = False
    """What else was given is: names, or what is missing of recordings."""
    seconds: float = 0.0


@dataclass
class Chunk:
    """Some frames of one segment, decoded."""

    data: npt.NDArray[np.uint8]
    packets: Records
    counts: npt.NDArray[np.int64]
    """Of the segment (layout.COUNTED_*)."""
    tells_of_paths: bool
    """A router says that a packet was too big: that is learned before what follows finds its flows."""


def analyze(
    inputs: Sequence[str],
    lake_root: str | Path,
    metadata: Sequence[str] = (),
    jobs: int | None = None,
    vxlan_ports: Sequence[int] = (),
    progress: Progress | None = None,
) -> Summary:
    """Turns captures into the tables of a lake, all at once or not at all.

    `inputs`: files, folders, globs or '-'; a folder may be a recording, of which the journal is metadata, too.
    `metadata`: kubectl dumps and journals that name addresses. `jobs`: threads (default: one for each processor that
    may be used). What can't be read becomes a Problem. Raises PodtapError where nothing can be done at all.
    """
    begun = time.monotonic()
    root = Path(lake_root)
    segments, problems = find_segments(inputs)
    told, told_problems = told_by(inputs, segments)
    cluster = _only_cluster(segments)
    found, metadata_problems = load_identities(metadata, journals_of_recordings(inputs), cluster)
    told.gaps += unseen_pods(found.blind, cluster)
    summary = Summary(root, len(segments), problems=[*problems, *told_problems, *metadata_problems])
    lake.settle(root)
    records = lake.read_records(root)
    if not segments and not problems and not records:
        raise PodtapError(f"no captures in {', '.join(inputs)}, and no lake at {root} that a journal could be added to")
    identities = known_identities(root)
    is_learning = not found.is_empty or bool(told.interfaces and not identities.is_empty)
    if is_learning:
        identities = identities.united_with(found, sandboxes([*known_interfaces(root), *told.interface_rows()]))
    segments, replaced = _not_yet_analysed(segments, records)
    summary.unchanged = not segments
    if segments:
        batch = lake.Batch(root, xxhash.xxh3_64_hexdigest(f"{time.time_ns()}{segments[0].path}".encode()))
        try:
            threads = jobs or processors()
            _Line(batch, identities, summary, threads, vxlan_ports, progress).run(segments, told)
            batch.record.inputs = {segment.key: segment.bytes_read for segment in segments}
            batch.record.unsealed = {segment.key: segment.origin for segment in segments if segment.unsealed}
            batch.record.replaces = replaced
            known = {content for record in records if record.batch not in replaced for content in record.inputs}
            summary.unchanged = batch.record.inputs.keys() <= known  # a pipe is known only once it was read
            if not summary.unchanged:
                if not records:
                    for name, table in identities.tables().items():
                        batch.add(name, table)
                batch.commit()
        finally:
            batch.discard()
    if records and (is_learning or told.gaps):
        summary.learned = learn(root, identities, gaps_table(told.gaps))
    rooms.give_back()
    derive(root, identities)
    summary.seconds = time.monotonic() - begun
    return summary


def enrich(lake_root: str | Path, metadata: Sequence[str]) -> list[Problem]:
    """Adds names from dumps and journals to a lake; what earlier ones told is kept. Returns what could not be read."""
    root = Path(lake_root)
    problems = enrich_lake(root, metadata)
    derive(root, known_identities(root))
    return problems


def _not_yet_analysed(segments: list[Segment], records: list[lake.Record]) -> tuple[list[Segment], list[str]]:
    """The segments to analyse, and the batches that their analysis replaces.

    What is in the lake already is not analysed again, unless a batch is part of what was given: then all is analysed
    together, so that flows go on from file to file, and the batch is replaced. So it is if a segment of it has grown
    that was being written.
    """
    known = {content for record in records for content in record.inputs}
    sizes = {size for record in records for size in record.inputs.values()}
    for segment in segments:
        if known and segment.path != STDIN and _may_be_known(segment, sizes):
            segment.hash_content()
    contents = {segment.key for segment in segments}
    if contents <= known:
        return [], []
    origins = {segment.origin for segment in segments if segment.origin}
    replaced = [record for record in records if record.inputs and _kept_inputs(record, origins) <= contents]
    again = {content for record in replaced for content in record.inputs}
    return [s for s in segments if s.key not in known - again], [record.batch for record in replaced]


def _kept_inputs(record: lake.Record, origins: set[str]) -> set[str]:
    """The inputs of a batch but those that were being written, and are given anew."""
    return {content for content in record.inputs if record.unsealed.get(content, "") not in origins}


def _only_cluster(segments: Sequence[Segment]) -> str | None:
    """The cluster of what was recorded, if it is one."""
    clusters = {segment.cluster for segment in segments if segment.cluster is not None}
    return clusters.pop() if len(clusters) == 1 else None


def _may_be_known(segment: Segment, sizes: set[int]) -> bool:
    return segment.compression is not None or os.path.getsize(segment.path) in sizes


class _Line:
    """The stages of one batch, joined."""

    def __init__(
        self,
        batch: lake.Batch,
        identities: Identities,
        summary: Summary,
        jobs: int,
        vxlan_ports: Sequence[int],
        progress: Progress | None,
    ) -> None:
        self._batch = batch
        self._identities = identities
        self._summary = summary
        self._jobs = jobs
        self._vxlan_ports = vxlan_ports
        self._progress = progress
        self._segment_names: list[str] = []
        self._cluster: str | None = None
        self._points = ObservationPoints()
        self._ahead = AHEAD if jobs > 1 else 0
        self._packet_rows = PacketRows()
        self._bytes = Ring(np.uint8, 2 * self._ahead + 1)
        self._packets = Ring(PACKET, 2 * self._ahead + 1)
        self._read: list[tuple[Segment, npt.NDArray[np.int64], str]] = []
        self._seen_bytes = 0
        self._total_bytes: int | None = None

    def run(self, segments: list[Segment], told: Told) -> None:
        """One recording after the other, until every segment belongs to one."""
        self._segment_names = [segment.name for segment in segments]
        numbers = {id(segment): number for number, segment in enumerate(segments)}
        self._total_bytes = _total_bytes(segments)
        remaining = list(segments)
        while remaining:
            first = remaining[0]
            several = len(remaining) < len(segments)
            self._cluster = first.cluster
            node = first.node or (_node_name(first) if several else lake.UNKNOWN_NODE)
            left_over: list[Segment] = []
            self._record(node, self._chunks(node, remaining, left_over, numbers))
            if left_over and node == lake.UNKNOWN_NODE:  # so there are several, and this one needs a name, too
                self._batch.rename_node(node, _node_name(first))
                self._read = [(segment, counts, _node_name(first)) for segment, counts, _ in self._read]
            remaining = left_over
        now = time.time_ns()
        for segment, counts, node in self._read:
            self._batch.add("segments", segments_table([(segment, counts)], now), node)
            self._summary.problems += [*segment.problems, *undecoded(segment, counts)]
            self._summary.not_ip += int(counts[COUNTED_NOT_IP])
        for name, tables in ("interfaces", told.interfaces), ("node_counters", told.counters):
            for node, table in tables.items():
                self._batch.add(name, table, node)
        self._batch.add("gaps", gaps_table(told.gaps))

    def _chunks(
        self, node: str, segments: list[Segment], left_over: list[Segment], numbers: dict[int, int]
    ) -> Iterator[Chunk]:
        """The decoded chunks of all segments that follow each other; those of other recordings go to `left_over`."""
        latest_ts: int | None = None
        slack_ns = 0
        first = previous = segments[0]
        for segment in segments:
            overlaps = False
            if latest_ts is not None and segment.first_ts is not None:
                is_rotated = _series(segment) == _series(previous)
                overlaps = segment.first_ts < latest_ts - (slack_ns if is_rotated else 0)
            is_elsewhere = (segment.cluster, segment.node) != (first.cluster, first.node)
            if is_elsewhere or (overlaps and segment.place is None):
                left_over.append(segment)
                continue
            counts = new_counts()
            self._read.append((segment, counts, node))
            for data, frames in segment.chunks(room=self._bytes.take):
                packets = self._decode(node, segment, numbers[id(segment)], data, frames, counts)
                self._bytes.keep()
                self._packets.keep()
                yield Chunk(data, packets, counts, bool(self._ahead and path_mtu.reports(packets)))
                self._seen_bytes += len(data)
            if counts[COUNTED_PACKETS]:
                first_ts, last_ts = int(counts[COUNTED_FIRST_TS]), int(counts[COUNTED_LAST_TS])
                slack_ns = min(OVERLAP_NS, (last_ts - first_ts) // 2)
                latest_ts, previous = max(latest_ts or 0, last_ts), segment
            self._summary.segments += 1
            self._summary.bytes += segment.bytes_read
            self._summary.packets += int(counts[COUNTED_PACKETS])

    def _decode(
        self,
        node: str,
        segment: Segment,
        number: int,
        data: npt.NDArray[np.uint8],
        frames: Records,
        counts: npt.NDArray[np.int64],
    ) -> Records:
        interfaces = segment.interfaces
        packets = decode_packets(
            data,
            frames,
            link_types=np.array([i.link_type for i in interfaces], np.int64),
            interfaces=np.array([self._points.of(node, i.name, i.link_type) for i in interfaces], np.int64),
            vxlan_ports=self._vxlan_ports,
            segment=number,
            first_frame_number=int(counts[COUNTED_PACKETS]) + 1,
            counts=counts,
            room=self._packets.take(len(frames)),
        )
        if any(i.link_type == LINKTYPE_SLL2 for i in interfaces):
            self._points.tell_apart(node, packets, segment.interface_names)
        return packets

    def _record(self, node: str, chunks: Iterator[Chunk]) -> None:
        """One recording. Reading and decoding run ahead of the search for flows, all else behind."""
        flows, retransmits, dns = Flows(), Retransmits(), Dns()
        with Queues(6, self._jobs) as queues:
            reading, judging, asking, packing, tabling, writing = queues
            read: deque[Chunk | None] = deque()

            def read_next() -> None:
                read.append(next(chunks, None))

            def write_later(function: Callable[..., None], *arguments: Any) -> None:
                writing.submit(function, node, *arguments)

            def write_flows_later(rows: FlowRows) -> None:
                _learn_uncertain(retransmits, rows)
                write_later(self._write_minutes, rows[-1])
                tabling.submit(self._make_flows, rows, write_later)

            for _ in range(self._ahead):
                reading.submit(read_next)
            while True:
                reading.submit(read_next)
                reading.wait(self._ahead)
                chunk = read.popleft()
                if chunk is None:
                    break
                if flows.must_rest(len(chunk.packets)):
                    judging.wait()
                copies = flows.assign(chunk.data, chunk.packets, self._points.kinds(), self._points.hashes())
                chunk.counts[COUNTED_COPIES] += copies
                judging.submit(self._judge, flows, retransmits, chunk, flows.slots, write_flows_later)
                asking.submit(self._feed_dns, dns, chunk, write_later)
                packing.submit(self._keep_packets, node, chunk.data, flows.settled(), len(flows.slots))
                if chunk.tells_of_paths:
                    judging.wait()
                for queue in queues:
                    queue.wait(self._ahead)
                self._show_progress()
            asking.submit(self._finish_dns, dns, write_later)
            judging.wait()
            flows.finish()
            retransmits.finish()
            packing.submit(self._keep_packets, node, NO_BYTES, flows.settled(), len(flows.slots))
            packing.submit(self._write_row_groups, node)
            for rows in flows.last_rows(lake.ROW_GROUP_ROWS):
                write_flows_later(rows)
                for queue in tabling, writing:
                    queue.wait(self._ahead)
            self._write_retransmits(node, retransmits.rows())
            for queue in queues:
                queue.wait()

    def _judge(
        self,
        flows: Flows,
        retransmits: Retransmits,
        chunk: Chunk,
        slots: Records,
        write_flows_later: Callable[[FlowRows], None],
    ) -> None:
        """What was sent again, and what that adds to the flows' accounts; `slots`: those of the chunk's flows."""
        flows.account(chunk.data, chunk.packets, retransmits.feed(chunk.data, chunk.packets, slots))
        if flows.finished >= FLUSH_FLOWS:
            write_flows_later(clustered(flows.rows()))

    def _keep_packets(self, node: str, data: npt.NDArray[np.uint8], packets: Records, slots: int) -> None:
        """`data`: of the packets' chunk; those of other chunks among them have nothing in it that a row shows."""
        while len(packets):
            packets = packets[self._packet_rows.take(data, packets, slots, self._points.names) :]
            if self._packet_rows.is_full:
                self._write_row_groups(node)

    def _write_row_groups(self, node: str) -> None:
        for day, row_group in self._packet_rows.row_groups(self._segment_names, self._points.names):
            self._batch.add_packets(day, row_group, node)
        self._packet_rows.clear()

    def _make_flows(self, rows: FlowRows, write_later: Callable[..., None]) -> None:
        table = flows_table(*rows[:-1], self._points.names)
        write_later(self._write_flows, add_identities(self._identities, "flows", table, self._cluster))

    def _write_flows(self, node: str, table: pa.Table) -> None:
        self._batch.add("flows", table, node)
        self._summary.flows += len(table)

    def _write_minutes(self, node: str, minutes: Records) -> None:
        self._batch.add("flow_minutes", flow_minutes_table(minutes), node)

    def _write_retransmits(self, node: str, events: Records) -> None:
        table = retransmits_table(events, self._segment_names, self._points.names)
        self._batch.add("retransmits", add_identities(self._identities, "retransmits", table, self._cluster), node)
        self._summary.retransmits += len(table)

    def _feed_dns(self, dns: Dns, chunk: Chunk, write_later: Callable[..., None]) -> None:
        dns.feed(chunk.data, chunk.packets)
        if dns.finished >= lake.ROW_GROUP_ROWS:
            write_later(self._write_dns, dns.rows())

    def _finish_dns(self, dns: Dns, write_later: Callable[..., None]) -> None:
        dns.finish()
        write_later(self._write_dns, dns.rows())

    def _write_dns(self, node: str, finished: list[DnsRows]) -> None:
        rows = joined_rows(finished)
        for part in rows.parts(lake.ROW_GROUP_ROWS):  # each with dictionaries of its own
            table = dns_table(part, self._segment_names, self._points.names)
            self._batch.add("dns", add_identities(self._identities, "dns", table, self._cluster), node)
        self._summary.transactions += len(rows)

    def _show_progress(self) -> None:
        if self._progress:
            packets = sum(int(counts[COUNTED_PACKETS]) for _, counts, _ in self._read)
            self._progress(self._seen_bytes, self._total_bytes, packets)


def _learn_uncertain(retransmits: Retransmits, rows: FlowRows) -> None:
    """Where the capture missed too much of a flow, its retransmits are in doubt."""
    flows, sides = rows[:2]
    retransmits.learn_uncertain(flows["flow_uid"][is_loss_uncertain(flows, sides)])


def _node_name(segment: Segment) -> str:
    """What to call the node of a recording that does not say it: the file without its endings."""
    folder, slash, name = segment.name.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _series(segment: Segment) -> str:
    """What the names of rotated files have in common."""
    return re.sub(r"\d+", "", segment.name)


def _total_bytes(segments: Sequence[Segment]) -> int | None:
    """Of all segments, where it is known before they are read."""
    if any(segment.path == STDIN or segment.compression for segment in segments):
        return None
    return sum(os.path.getsize(segment.path) for segment in segments)


def dns_table(rows: DnsRows, segment_names: list[str], interface_names: list[str | None]) -> pa.Table:
    """Rows of the dns table (schemas.DNS) without the identity columns."""
    r = rows.records
    client, server = columns.addresses((r["client_hi"], r["client_lo"]), (r["server_hi"], r["server_lo"]))
    values = to_arrow(rows) | {
        "query_segment": columns.some_names(r["query_segment"], segment_names),
        "response_segment": columns.some_names(r["response_segment"], segment_names),
        "flow_uid": columns.uids(r["flow_uid"]),
        "flow_first_seen": columns.times(r["flow_first_seen"]),
        "interface": columns.some_names(r["interface"], interface_names),
        "client_ip": client,
        "server_ip": server,
    }
    return columns.to_table("dns", values, without=columns.identity_names("dns"))
