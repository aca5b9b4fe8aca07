"""Keeps the derived tables of a lake up to date with its facts."""

from __future__ import annotations

import itertools
from pathlib import Path

import pyarrow.parquet as pq

from analysis import lake
from analysis.identities import Identities, add_identities


def derive(root: Path, identities: Identities) -> None:
    """Makes connections, paths, losses and clock offsets anew, unless they are those of the lake's facts already.

    A lake of one observation point has none: there every flow is a connection.
    """
    if lake.is_derived(root):
        return
    if not _has_several_points(root):
        lake.derive(root, {})
        return
    from analysis.stitch import stitch  # what one capture of one interface can do without
    from analysis.stitched_tables import derived_tables

    tables = derived_tables(stitch(root))
    tables["connections"] = add_identities(identities, "connections", tables["connections"])
    lake.derive(root, tables)


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
