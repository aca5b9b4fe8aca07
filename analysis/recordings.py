"""What a recording says of itself next to its packets: interfaces, counters, and what is missing of it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from analysis import columns
from analysis.errors import Problem
from analysis.node_rows import counters_table, interfaces_table
from analysis.schemas import GAPS, TIME
from analysis.segments import Segment
from capture.contract import BUNDLE, TOMBSTONES, Bundle, ContractError, Manifest, Tombstone, from_json

Row = dict[str, Any]


@dataclass
class Told:
    """By node, rows of schemas.INTERFACES and NODE_COUNTERS; and rows of schemas.GAPS."""

    interfaces: dict[str, pa.Table] = field(default_factory=dict)
    counters: dict[str, pa.Table] = field(default_factory=dict)
    gaps: list[Row] = field(default_factory=list)

    def interface_rows(self) -> Iterator[Row]:
        """All rows of interfaces with their node, times as nanoseconds."""
        for node, table in self.interfaces.items():
            yield from rows_of(table, node)


def rows_of(table: pa.Table, node: str) -> Iterator[Row]:
    """Rows of a table with their node, times as nanoseconds: datetime could not hold them."""
    yield from (row | {"node": node} for row in plain_rows(table))


def plain_rows(table: pa.Table) -> list[Row]:
    """Rows of a table, times as nanoseconds."""
    for place, column in enumerate(table.schema):
        if column.type == TIME:
            table = table.set_column(place, column.name, columns.whole(table[column.name]).view(pa.int64()))
    return table.to_pylist()


def told_by(inputs: Sequence[str], segments: Sequence[Segment]) -> tuple[Told, list[Problem]]:
    """What the manifests of `segments` tell, and the tombstones and heads of bundles in the folders among `inputs`."""
    told = Told()
    problems: list[Problem] = []
    manifests: defaultdict[tuple[str, str], list[Manifest]] = defaultdict(list)
    names: dict[str, Manifest] = {}
    for segment in segments:
        if segment.manifest and segment.place:
            manifests[segment.manifest.cluster, segment.manifest.node].append(segment.manifest)
            names[segment.place.folder] = segment.manifest
    for (_, node), of_node in manifests.items():
        ordered = sorted(of_node, key=lambda each: each.stem)
        for tables, table in (told.interfaces, interfaces_table(ordered)), (told.counters, counters_table(ordered)):
            tables[node] = pa.concat_tables([tables[node], table]) if node in tables else table
    for folder in (Path(each) for each in inputs if Path(each).is_dir()):
        for path in sorted(folder.rglob(TOMBSTONES)):
            told.gaps += _evicted(path, names.get(str(path.parent.absolute())), problems)
        for path in sorted(folder.rglob(BUNDLE)):
            told.gaps += _not_collected(path, problems)
    return told, problems


def _evicted(path: Path, of_node: Manifest | None, problems: list[Problem]) -> Iterator[Row]:
    """What the ring had and has no more; segments that followed each other are one row."""
    row: Row | None = None
    for tombstone in _tombstones(path, problems):
        if tombstone.first_packet_ns is None or tombstone.last_packet_ns is None:
            continue
        if row and row["reason"] == tombstone.reason and row["sha256"] == tombstone.previous_sha256:
            row["end"] = max(row["end"], tombstone.last_packet_ns)
            row["packets"] += tombstone.packets
        else:
            if row:
                yield row
            row = {
                "cluster": of_node.cluster if of_node else path.parent.parent.name,
                "node": of_node.node if of_node else path.parent.name,
                "kind": "evicted",
                "start": tombstone.first_packet_ns,
                "end": tombstone.last_packet_ns,
                "reason": tombstone.reason,
                "packets": tombstone.packets,
            }
        row["sha256"] = tombstone.manifest_sha256
    if row:
        yield row


def _tombstones(path: Path, problems: list[Problem]) -> Iterator[Tombstone]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        problems.append(Problem(str(path), None, f"can't be read: {error.strerror or error}"))
        return
    for line in lines:
        try:
            yield from_json(Tombstone, line)
        except ContractError as error:
            problems.append(Problem(str(path), None, f"{error}; the tombstone is left out"))


def _not_collected(path: Path, problems: list[Problem]) -> Iterator[Row]:
    """Of each node that a bundle has not all of, the bundle's time."""
    try:
        bundle = from_json(Bundle, path.read_bytes())
    except (OSError, ContractError) as error:
        problems.append(Problem(str(path), None, f"{error}; the bundle's files were read without it"))
        return
    times = {"start": bundle.since_ns, "end": bundle.until_ns, "packets": None}
    for node in bundle.nodes:
        if not node.complete:
            reason = "; ".join(node.missing) or None
            yield {"cluster": node.cluster, "node": node.node, "kind": "not_collected", "reason": reason, **times}
    if not bundle.journal_complete:
        yield {"cluster": None, "node": None, "kind": "journal", "reason": "not collected", **times}


def unseen_pods(blind: Iterable[tuple[int, int]], cluster: str | None) -> list[Row]:
    """Gaps of a journal as rows of schemas.GAPS."""
    return [
        {
            "cluster": cluster,
            "node": None,
            "kind": "journal",
            "start": start,
            "end": end,
            "reason": None,
            "packets": None,
        }
        for start, end in blind
    ]


def gaps_table(rows: Sequence[Row]) -> pa.Table:
    """Rows of schemas.GAPS, each once."""
    names = GAPS.schema.names
    distinct = {json.dumps([row[name] for name in names]): row for row in rows if row["start"] < row["end"]}
    return columns.table_of(GAPS, list(distinct.values()))
