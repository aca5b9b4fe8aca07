"""Keeps the derived tables of a lake up to date with its facts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from analysis import columns, lake
from analysis.coverage import NEEDED, coverage_rows
from analysis.enrich import known_interfaces
from analysis.identities import Identities, add_identities
from analysis.recordings import plain_rows, rows_of
from analysis.schemas import COVERAGE, GAPS, SEGMENTS, Table


def derive(root: Path, identities: Identities) -> None:
    """Makes coverage, connections, paths, losses and clock offsets anew, unless they are of the lake's facts already.

    A lake of one observation point has no connections: there every flow is one.
    """
    if lake.is_derived(root):
        return
    tables = {COVERAGE.name: coverage_of(root)}
    if _has_several_points(root):
        from analysis.endpoint_checks import add_endpoints  # what one capture of one interface can do without
        from analysis.interfaces_seen import with_interfaces
        from analysis.stitch import stitch
        from analysis.stitched_tables import derived_tables

        stitched = stitch(root)
        stitched.flows = with_interfaces(stitched.flows, list(known_interfaces(root)), identities)
        tables |= derived_tables(stitched)
        named = add_identities(identities, "connections", tables["connections"])
        tables["connections"] = add_endpoints(identities.endpoints, named)
    lake.derive(root, tables)


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
    return pq.ParquetFile(file).read(list(names)).select(schema.names).cast(schema)


def _has_several_points(root: Path) -> bool:
    """Whether flows are of more than one node, interface or tunnel."""
    points: set[tuple[str, ...]] = set()
    for file in lake.committed_files(root, "flows"):
        with pq.ParquetFile(file) as source:
            for group in range(source.num_row_groups):
                names = source.read_row_group(group, ["interface", "encapsulation"])
                words = (names[name].unique().to_pylist() for name in names.column_names)
                points |= set(itertools.product([file.parent.name], *words))
                if len(points) > 1:
                    return True
    return False
