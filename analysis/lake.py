"""The lake on disk: Parquet files that appear all at once, or not at all.

    lake/_commits/<batch>.json        what a batch is made of: its existence is the commit
    lake/_wip/<batch>/<table>/...     files on their way
    lake/<table>/date=.../node=.../   files in place

A batch is written below _wip, then its record is renamed into _commits, then its files move into place. Whoever finds a
record whose files have not moved yet (the machine stopped in between) moves them. A record may say that it replaces
others: they count no more from that moment on, and their files are deleted next. Names that begin with _ are no data
to pandas, pyarrow and DuckDB.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from analysis import columns
from analysis.errors import PodtapError
from analysis.packet_rows import RowGroup
from analysis.parquet import ParquetWriter
from analysis.schemas import NAME, PACKETS, TABLES

COMMITS: Final = "_commits"
WIP: Final = "_wip"
DAY_NS: Final = 86_400 * 1_000_000_000
ROW_GROUP_ROWS: Final = 1 << 15
"""At least, if there are so many; small enough that a time or pod filter skips most of a file. Packets come in row
groups already."""
NAMED_TABLES: Final = ("flows", "retransmits", "dns")
"""Those that say whose addresses they hold."""
UNKNOWN_NODE: Final = "unknown"
"""Also an empty file beside nodes such as 007, which pandas would make numbers if there were no other names."""


Change = Callable[[str, pa.Table, str], pa.Table]
"""Makes other rows of a table's rows, which are of one node."""


@dataclass
class Record:
    """What a batch is made of; `files` are relative to the lake."""

    batch: str
    inputs: dict[str, int] = field(default_factory=dict)
    """Content hash of each input, and its size: what was analysed."""
    files: dict[str, list[str]] = field(default_factory=dict)
    replaces: list[str] = field(default_factory=list)
    unsealed: dict[str, str] = field(default_factory=dict)
    """By the key of an input that was being written, which segment of which node it is."""
    derived_from: list[str] = field(default_factory=list)
    """The batches that its tables are made of, if it is none of facts; it counts as long as these are all there are."""


def read_records(root: Path) -> list[Record]:
    """The committed batches that no other one replaces, by name."""
    records = []
    for path in sorted((root / COMMITS).glob("*.json")):
        try:
            records.append(Record(**json.loads(path.read_text())))
        except (OSError, ValueError, TypeError) as error:
            raise PodtapError(f"{path}: not a commit record of podtap ({error}); was it edited?") from error
    replaced = {batch for record in records for batch in record.replaces}
    return [record for record in records if record.batch not in replaced]


def committed_files(root: Path, table: str) -> list[Path]:
    """The files of a table that count, in place or still on their way; without records, all there are."""
    if not (root / COMMITS).exists():
        found = sorted((root / table).rglob("*.parquet"))
        return [path for path in found if not any(part[0] in "_." for part in path.relative_to(root).parts)]
    paths = []
    records = read_records(root)
    for record in records:
        for name in record.files.get(table, []) if _counts(record, records) else ():
            path = root / name
            paths.append(path if path.exists() else root / WIP / record.batch / name)
    return sorted(paths)


def _counts(record: Record, records: Sequence[Record]) -> bool:
    """Whether it is a batch of facts, or is derived from all that there are."""
    return not record.derived_from or record.derived_from == _facts(records)


def _facts(records: Sequence[Record]) -> list[str]:
    return [record.batch for record in records if not record.derived_from]


def is_derived(root: Path) -> bool:
    """Whether the derived tables are those of the facts that the lake has now."""
    records = read_records(root)
    return any(record.derived_from == _facts(records) for record in records if record.derived_from)


def derive(root: Path, tables: Iterable[tuple[str, pa.Table]]) -> None:
    """Replaces the derived tables by these, which were made of the facts that the lake has now.

    A table may come in several pieces.
    """
    records = read_records(root)
    facts = _facts(records)
    if not facts:
        return
    batch = Batch(root, f"derived-{xxhash.xxh3_64_hexdigest(''.join(facts).encode())}")
    batch.record.derived_from = facts
    batch.record.replaces = [record.batch for record in records if record.derived_from]
    try:
        for table, rows in tables:
            batch.add(table, rows)
        batch.commit()
    finally:
        batch.discard()


def settle(root: Path) -> None:
    """Finish what an interrupted commit left, and remove what was never committed."""
    records = read_records(root)
    for record in records:
        _move_into_place(root, record)
    kept = {name for record in records for names in record.files.values() for name in names}
    batches = {record.batch for record in records}
    for path in sorted((root / COMMITS).glob("*.json")):
        old = Record(**json.loads(path.read_text()))
        if old.batch not in batches:
            for name in {name for names in old.files.values() for name in names} - kept:
                _remove(root / name)
            path.unlink()
    shutil.rmtree(root / WIP, ignore_errors=True)


def _move_into_place(root: Path, record: Record) -> None:
    for names in record.files.values():
        for name in names:
            source = root / WIP / record.batch / name
            if source.exists():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(source, root / name)


def _remove(path: Path) -> None:
    """The file, and the partition folders that it leaves empty."""
    path.unlink(missing_ok=True)
    for folder in list(path.parents)[:3]:
        try:
            folder.rmdir()
        except OSError:
            return


class Batch:
    """Tables on their way into the lake: add() rows, then commit() them, or leave and nothing has happened."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root
        self.record = Record(name)
        self._folder = root / WIP / name
        self._writers: dict[tuple[str, str, str], pq.ParquetWriter | ParquetWriter] = {}
        try:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
        except OSError as error:
            raise PodtapError(f"{root}: the lake can't be written: {error.strerror}") from error

    def add(self, table: str, rows: pa.Table, node: str = UNKNOWN_NODE) -> None:
        """Rows as schemas.TABLES[table] declares them; they are split by the UTC day of the table's time."""
        if not len(rows):
            return
        time = TABLES[table].time
        if time is None:
            self._writer(table, "", "").write_table(rows)
            return
        days = _days(rows, time)
        for day in np.unique(days).tolist():
            part = rows if (days == day).all() else rows.filter(columns.flags(days == day))
            date = str(np.datetime64(day, "D"))
            groups = max(len(part) // ROW_GROUP_ROWS, 1)
            for group in range(groups):
                begin, end = len(part) * group // groups, len(part) * (group + 1) // groups
                row_group = part.slice(begin, end - begin)
                is_all = len(row_group) == len(rows)
                self._writer(table, date, node).write_table(row_group if is_all else _with_own_words(row_group))

    def add_packets(self, day: int, row_group: RowGroup, node: str = UNKNOWN_NODE) -> None:
        """A row group of packets, all of one UTC day (since 1970)."""
        date = str(np.datetime64(day, "D"))
        self._writer(PACKETS.name, date, node).write_row_group(row_group.chunks, row_group.rows)

    def rename_node(self, before: str, after: str) -> None:
        """What was added of one node so far is another's."""
        old, new = f"/node={quote(before, safe='')}/", f"/node={quote(after, safe='')}/"
        for table, names in self.record.files.items():
            for name in names:
                target = self._folder / name.replace(old, new)
                target.parent.mkdir(parents=True, exist_ok=True)
                (self._folder / name).rename(target)
            self.record.files[table] = [name.replace(old, new) for name in names]
        self._writers = {
            (table, date, after if node == before else node): writer
            for (table, date, node), writer in self._writers.items()
        }
        if after.isdecimal():
            for table, date, _ in list(self._writers):
                self._writer(table, date, UNKNOWN_NODE)

    def rewrite_file(self, table: str, name: str, change: Change) -> None:
        """Takes over a file of the lake, row group by row group as `change` makes it; as it is if nothing changes."""
        files = self.record.files.setdefault(table, [])
        folder = name.rpartition("/")[0]
        target = f"{folder}/part-{self.record.batch}-{len(files)}.parquet"
        (self._folder / folder).mkdir(parents=True, exist_ok=True)
        changed = False
        schema = TABLES[table].schema
        with (
            pq.ParquetFile(self.root / name) as source,
            pq.ParquetWriter(self._folder / target, schema, **_writer_options(table)) as writer,
        ):
            for group in range(source.num_row_groups if table in NAMED_TABLES else 0):
                before = source.read_row_group(group).select(schema.names).cast(schema)
                after = change(table, before, unquote(folder.rpartition("/node=")[2]))
                changed = changed or not _plain(after).equals(_plain(before))
                writer.write_table(after, row_group_size=ROW_GROUP_ROWS)
        if not changed:
            (self._folder / target).unlink()
        files.append(target if changed else name)

    def commit(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
        commits = self.root / COMMITS
        commits.mkdir(exist_ok=True)
        path = commits / f"{self.record.batch}.json"
        part = path.with_suffix(".part")
        with part.open("w") as file:
            json.dump(vars(self.record), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        settle(self.root)

    def discard(self) -> None:
        for writer in self._writers.values():
            with suppress(OSError):  # as where the disk is full
                writer.close()
        self._writers.clear()
        shutil.rmtree(self._folder, ignore_errors=True)
        if (self.root / WIP).exists() and not any((self.root / WIP).iterdir()):
            (self.root / WIP).rmdir()

    def _writer(self, table: str, date: str, node: str) -> Any:
        writer = self._writers.get((table, date, node))
        if writer is None:
            folder = f"{table}/date={date}/node={quote(node, safe='')}" if date else table
            name = f"{folder}/part-{self.record.batch}.parquet"
            (self._folder / folder).mkdir(parents=True, exist_ok=True)
            path, schema = self._folder / name, TABLES[table].schema
            if table == PACKETS.name:
                writer = ParquetWriter(path, schema)
            else:
                writer = pq.ParquetWriter(path, schema, **_writer_options(table))
            self._writers[table, date, node] = writer
            self.record.files.setdefault(table, []).append(name)
            if node.isdecimal():
                self._writer(table, date, UNKNOWN_NODE)
        return writer


def _days(rows: pa.Table, time: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    column = rows[time].combine_chunks()
    content: Any = column.buffers()[1]  # to_numpy() would load pandas first
    ns = np.frombuffer(content, np.int64, len(column), 8 * column.offset)
    return ns // DAY_NS


def _with_own_words(rows: pa.Table) -> pa.Table:
    """The rows of a row group, without the words of others: it would have to hold them all."""
    for place, declared in enumerate(rows.schema):
        if declared.type == NAME:
            column: Any = columns.whole(rows.column(place))
            if len(column.dictionary) > len(rows):
                rows = rows.set_column(place, declared, column.cast(pa.string()).dictionary_encode())
    return rows


def _writer_options(table: str) -> dict[str, Any]:
    """Dictionaries for what repeats, and statistics of what is filtered by: times and words, but not ids, which are
    hashes: each row group has them from 0 to f."""
    words = [field.name for field in TABLES[table].schema if field.type == NAME]
    times = [field.name for field in TABLES[table].schema if pa.types.is_timestamp(field.type)]
    return {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": words,
        "column_encoding": dict.fromkeys(times, "DELTA_BINARY_PACKED"),
        "write_statistics": [word for word in words if not word.endswith("uid")] + times,
    }


def rewrite(
    root: Path,
    name: str,
    change: Change,
    anew: Mapping[str, pa.Table],
    more: Mapping[str, pa.Table],
) -> None:
    """Replaces all rows of the lake by what `change` makes of them, and the tables `anew`; adds `more`.

    Files that nothing changes in stay. Derived tables go: they have to be made anew. `name` tells the batch that takes
    over all others from those before it.
    """
    batch = Batch(root, name)
    for record in read_records(root):
        batch.record.inputs |= record.inputs
        batch.record.unsealed |= record.unsealed
        batch.record.replaces.append(record.batch)
        for table, names in record.files.items():
            for file in names if not record.derived_from and table not in anew else ():
                batch.rewrite_file(table, file, change)
    for table, rows in (*anew.items(), *more.items()):
        batch.add(table, rows)
    batch.commit()


def _plain(rows: pa.Table) -> pa.Table:
    """The rows with their words instead of indexes into dictionaries, to compare them."""
    types = [(f.name, pa.string() if f.type == NAME else f.type) for f in rows.schema]
    return rows.cast(pa.schema(types))
