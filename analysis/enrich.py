"""Names for a lake: what is known of the cluster, and every row named by it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from analysis import lake
from analysis.endpoints import Endpoints
from analysis.errors import PodtapError, Problem
from analysis.identities import Identities, add_identities, load_identities
from analysis.recordings import gaps_table, plain_rows, rows_of, unseen_pods
from analysis.sandboxes import sandboxes
from analysis.schemas import ENDPOINTS, ENDPOINTS_KNOWN, GAPS, IDENTITIES, INTERFACES, Table


def known_identities(root: Path) -> Identities:
    """What a lake knows already."""
    table, endpoints, known = (_stored(root, each) for each in (IDENTITIES, ENDPOINTS, ENDPOINTS_KNOWN))
    return Identities(table, endpoints=Endpoints.of_tables(endpoints, known))


def _stored(root: Path, table: Table) -> pa.Table:
    schema = table.schema
    files = lake.committed_files(root, table.name)
    tables = [pq.ParquetFile(file).read().select(schema.names).cast(schema) for file in files]
    return pa.concat_tables([pa.Table.from_batches([], schema), *tables]).unify_dictionaries()


def known_interfaces(root: Path) -> Iterator[dict[str, Any]]:
    """Rows of schemas.INTERFACES with their node, times as nanoseconds."""
    for file in lake.committed_files(root, INTERFACES.name):
        node = unquote(file.parent.name.partition("node=")[2])
        yield from rows_of(pq.ParquetFile(file).read().cast(INTERFACES.schema), node)


def enrich(root: Path, metadata: Sequence[str]) -> list[Problem]:
    """Names the rows of a lake anew by what it knows and what `metadata` (dumps, journals) adds, at once.

    Returns what could not be read. Raises PodtapError if there is no lake, or nothing in the metadata.
    """
    if not lake.read_records(root):
        raise PodtapError(f"no lake at {root}: run podtap analyze FILE --lake {root}")
    identities, problems = load_identities(metadata)
    gaps = gaps_table(unseen_pods(identities.blind, None))
    learn(root, known_identities(root).united_with(identities, sandboxes(known_interfaces(root))), gaps)
    return problems


def learn(root: Path, identities: Identities, gaps: pa.Table) -> bool:
    """Makes `identities` what the lake knows, and adds `gaps`; False, and nothing happens, if it knows them already."""
    lake.settle(root)
    known, tables = known_identities(root).tables(), identities.tables()
    told = plain_rows(_stored(root, GAPS))
    gaps = gaps_table([row for row in plain_rows(gaps) if row not in told])
    if not len(gaps) and all(table.equals(known[name]) for name, table in tables.items()):
        return False
    batches = "".join(record.batch for record in lake.read_records(root))
    content = "".join(str(table.to_pylist()) for table in (*tables.values(), gaps))
    name = xxhash.xxh3_64_hexdigest((batches + content).encode())
    lake.rewrite(
        root,
        name,
        lambda table, rows, _: add_identities(identities, table, rows),
        tables,
        {GAPS.name: gaps},
    )
    return True
