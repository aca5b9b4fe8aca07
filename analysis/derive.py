"""Keeps the derived tables of a lake up to date with its facts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from analysis import columns, lake
from analysis.clocks import Offset, corrected, told_by
from analysis.coverage import NEEDED, coverage_rows
from analysis.enrich import known_interfaces
from analysis.identities import Clocks, Identities, add_identities
from analysis.layout import LINKTYPE_NFLOG, LINKTYPE_SLL, NANOSECONDS
from analysis.recordings import plain_rows, rows_of
from analysis.schemas import CLOCKS, CONNECTIONS, COVERAGE, GAPS, SEGMENTS, Table

Integers = npt.NDArray[np.int64]

APART_NS: Final = NANOSECONDS // 100
"""By less than this no names are at stake: interfaces' times are told to 50 ms, all others in seconds."""

MOMENT_NS: Final = NANOSECONDS // 50
"""How long a packet takes through a node."""
ROWS_TOGETHER: Final = 1 << 17
"""So many rows of a derived table are written at a time."""
_MIXED: Final = {str(LINKTYPE_SLL), str(LINKTYPE_NFLOG)}


def derive(root: Path, identities: Identities) -> None:
    """Makes coverage, connections, paths, losses and clock offsets anew, unless they are of the lake's facts already.

    A lake of one observation point has no connections: there every flow is one.
    """
    if lake.is_derived(root):
        return
    coverage = [(COVERAGE.name, coverage_of(root))]
    with ExitStack() as open_:
        connections = _connections(root, identities, open_) if _has_several_points(root) else iter(())
        lake.derive(root, itertools.chain(coverage, connections))


def _connections(root: Path, identities: Identities, open_: ExitStack) -> Iterator[tuple[str, pa.Table]]:
    """The tables of connections, some rows at a time; facts are named by all clocks before the first one comes."""
    from analysis.connected import connect  # what one capture of one interface can do without
    from analysis.endpoint_checks import add_endpoints
    from analysis.interfaces_seen import with_interfaces
    from analysis.stitch import stitched
    from analysis.stitched_tables import clocks_table, stitched_tables

    connected = connect(root, open_)
    clocks = clocks_table(connected.offsets, connected.nodes)
    apart = _apart(clocks)
    _name_by_all_clocks(root, identities, apart)
    connected.flows = with_interfaces(connected.flows, [*known_interfaces(root)], identities, connected.by_reference)

    def named(table: str, rows: pa.Table) -> tuple[str, pa.Table]:
        if table != CONNECTIONS.name:
            return table, rows
        rows = add_identities(identities, table, rows, other_clocks=_clocks_of(apart))
        return table, add_endpoints(identities.endpoints, rows)

    tables = (each for part in connected.parts() for each in stitched_tables(stitched(part)).items())
    return itertools.chain([(CLOCKS.name, clocks)], itertools.starmap(named, _together(tables)))


def _together(tables: Iterable[tuple[str, pa.Table]]) -> Iterator[tuple[str, pa.Table]]:
    """The tables in fewer pieces: each has an overhead of its own."""
    waiting: dict[str, list[pa.Table]] = {}
    for table, rows in tables:
        pieces = waiting.setdefault(table, [])
        pieces.append(rows)
        if sum(map(len, pieces)) >= ROWS_TOGETHER:
            yield table, _joined(waiting.pop(table))
    for table, pieces in waiting.items():
        yield table, _joined(pieces)


def _joined(pieces: Sequence[pa.Table]) -> pa.Table:
    return pieces[0] if len(pieces) == 1 else pa.concat_tables(pieces).unify_dictionaries().combine_chunks()


def _apart(clocks: pa.Table) -> dict[str, list[Offset]]:
    """The offsets of each node whose clock names may depend on."""
    offsets: dict[str, list[Offset]] = {}
    for row in plain_rows(clocks):
        told = (row[name] for name in ("start", "end", "offset_ns", "drift_ppb", "bound_ns", "packets"))
        offsets.setdefault(row["node"], []).append(Offset(0, *told))
    return {node: each for node, each in offsets.items() if max(abs(one.offset_ns) for one in each) > APART_NS}


def _clocks_of(apart: Mapping[str, list[Offset]], node: str | None = None) -> Clocks:
    """All clocks but a node's own, of times that this one told; None: that the reference node told."""
    own = apart.get(node or "", [])

    def by_reference(ts: Integers) -> Integers:
        return corrected(ts, np.zeros(len(ts), np.int64), own)

    others = [(each, partial(_told_by, by_reference, offsets)) for each, offsets in apart.items() if each != node]
    return [(None, by_reference), *others] if own else others


def _told_by(by_reference: Callable[[Integers], Integers], offsets: list[Offset], ts: Integers) -> Integers:
    return told_by(by_reference(ts), offsets)


def _name_by_all_clocks(root: Path, identities: Identities, apart: Mapping[str, list[Offset]]) -> None:
    """Names rows, where clocks are apart, by the clock of who saw them, the reference node's, and that of each node
    that had the address: where these differ, ambiguously.

    When its pods came and went a node's own clock tells, whoever sees their packets.
    """
    if not apart or identities.is_empty:
        return

    def named(table: str, rows: pa.Table, node: str) -> pa.Table:
        return add_identities(identities, table, rows, other_clocks=_clocks_of(apart, node))

    batches = "".join(record.batch for record in lake.read_records(root))
    lake.rewrite(root, xxhash.xxh3_64_hexdigest(f"{batches}{apart}".encode()), named, {}, {})


def coverage_of(root: Path) -> pa.Table:
    """schemas.COVERAGE of a lake's segments and gaps."""
    names = GAPS.schema.names
    gaps = (row for file in lake.committed_files(root, GAPS.name) for row in plain_rows(_read(file, GAPS, names)))
    return columns.table_of(COVERAGE, coverage_rows(_segments(root), gaps))


def _segments(root: Path) -> Iterator[dict[str, Any]]:
    for file in lake.committed_files(root, SEGMENTS.name):
        yield from rows_of(_read(file, SEGMENTS, NEEDED), unquote(file.parent.name.partition("=")[2]))


def _read(file: Path, table: Table, names: Sequence[str]) -> pa.Table:
    schema = pa.schema([table.schema.field(name) for name in names])
    rows = pq.ParquetFile(file).read(list(names)).select(schema.names)
    return rows if rows.schema.equals(schema) else rows.cast(schema)  # which takes a while the first time


def _has_several_points(root: Path) -> bool:
    """Whether flows are of more than one node, interface or tunnel, or of a capture that is and does not say so."""
    points: set[tuple[str | None, ...]] = set()
    for file in lake.committed_files(root, "flows"):
        with pq.ParquetFile(file) as source:
            for group in range(source.num_row_groups):
                names = source.read_row_group(group, ["interface", "encapsulation"])
                words = (columns.words_of(names[name]) for name in names.column_names)
                points |= set(itertools.product([file.parent.name], *words))
                if len(points) > 1:
                    return True
    is_unnamed = any(interface is None for _, interface, _ in points)
    return is_unnamed and (_shows_copies(root) or _shows_both_sides_of_nat(root))


def _shows_copies(root: Path) -> bool:
    """Whether any input shows packets more than once, or is of all interfaces of a host."""
    for file in lake.committed_files(root, "segments"):
        rows = pq.ParquetFile(file).read(["copies", "link_types"]).to_pylist()
        if any(row["copies"] or _MIXED & {*row["link_types"].split(",")} for row in rows):
            return True
    return False


def _shows_both_sides_of_nat(root: Path) -> bool:
    """Whether a TCP port seems to have opened two connections within a moment: what one and the same looks like."""
    wanted = ["protocol", "orig_ip", "orig_port", "first_seen"]
    parts = [pq.ParquetFile(file).read(wanted) for file in lake.committed_files(root, "flows")]
    flows: Any = pa.concat_tables(parts).unify_dictionaries()
    protocol, address = (columns.whole(flows[name]) for name in wanted[:2])
    names = protocol.dictionary.to_pylist()
    if "TCP" not in names:
        return False
    tcp = np.flatnonzero(columns.plain(protocol.indices) == names.index("TCP"))
    ends = (columns.plain(address.indices)[tcp].astype(np.int64) << 16) | columns.plain(flows["orig_port"])[tcp]
    times = columns.plain(flows["first_seen"])[tcp]
    order = np.lexsort((times, ends))
    return bool(((np.diff(ends[order]) == 0) & (np.diff(times[order]) < MOMENT_NS)).any())
