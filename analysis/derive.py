"""Keeps the derived tables of a lake up to date with its facts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from analysis import lake
from analysis.identities import Identities, add_identities
from analysis.layout import LINKTYPE_NFLOG, LINKTYPE_SLL, NANOSECONDS

MOMENT_NS: Final = NANOSECONDS // 50
"""How long a packet takes through a node."""
_MIXED: Final = {str(LINKTYPE_SLL), str(LINKTYPE_NFLOG)}


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
    """Whether flows are of more than one node, interface or tunnel, or of a capture that is and does not say so."""
    points = set()
    for file in lake.committed_files(root, "flows"):
        names = pq.ParquetFile(file).read(["interface", "encapsulation"])
        pairs = zip(*(names[name].unify_dictionaries().to_pylist() for name in names.column_names), strict=True)
        points |= {(file.parent.name, *pair) for pair in set(pairs)}
        if len(points) > 1:
            return True
    is_named = any(interface is not None for _, interface, _ in points)
    return not is_named and (_shows_copies(root) or _shows_both_sides_of_nat(root))


def _shows_copies(root: Path) -> bool:
    """Whether any input shows packets more than once, or is of all interfaces of a host."""
    for file in lake.committed_files(root, "segments"):
        rows = pq.ParquetFile(file).read(["copies", "link_types"]).to_pylist()
        if any(row["copies"] or _MIXED & {*row["link_types"].split(",")} for row in rows):
            return True
    return False


def _shows_both_sides_of_nat(root: Path) -> bool:
    """Whether a TCP port seems to have opened two connections within a moment: what one and the same looks like."""
    columns = ["protocol", "orig_ip", "orig_port", "first_seen"]
    parts = [pq.ParquetFile(file).read(columns) for file in lake.committed_files(root, "flows")]
    flows: Any = pa.concat_tables(parts).unify_dictionaries().combine_chunks()
    protocol, address, port, time = (flows[name].chunk(0) for name in columns)
    names = protocol.dictionary.to_pylist()
    if "TCP" not in names:
        return False
    tcp = np.flatnonzero(_numbers(protocol.indices, np.int32) == names.index("TCP"))
    ends = (_numbers(address.indices, np.int32)[tcp].astype(np.int64) << 16) | _numbers(port, np.uint16)[tcp]
    times = _numbers(time, np.int64)[tcp]
    order = np.lexsort((times, ends))
    return bool(((np.diff(ends[order]) == 0) & (np.diff(times[order]) < MOMENT_NS)).any())


def _numbers(array: Any, type_: Any) -> npt.NDArray[Any]:
    """An Arrow array as it lies in memory, anything where it is null: to_numpy() loads pandas."""
    return np.frombuffer(array.buffers()[1], type_)[array.offset : array.offset + len(array)]
