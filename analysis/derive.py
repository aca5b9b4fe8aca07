"""Keeps the derived tables of a lake up to date with its facts."""

from __future__ import annotations

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
    from analysis.endpoint_checks import add_endpoints  # what one capture of one interface can do without
    from analysis.stitch import stitch
    from analysis.stitched_tables import derived_tables

    tables = derived_tables(stitch(root))
    named = add_identities(identities, "connections", tables["connections"])
    tables["connections"] = add_endpoints(identities.endpoints, named)
    lake.derive(root, tables)


def _has_several_points(root: Path) -> bool:
    """Whether flows are of more than one node, interface or tunnel."""
    points = set()
    for file in lake.committed_files(root, "flows"):
        names = pq.ParquetFile(file).read(["interface", "encapsulation"])
        pairs = zip(*(names[name].unify_dictionaries().to_pylist() for name in names.column_names), strict=True)
        points |= {(file.parent.name, *pair) for pair in set(pairs)}
        if len(points) > 1:
            return True
    return False
