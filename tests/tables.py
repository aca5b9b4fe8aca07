"""Captures through the whole line into Arrow tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.errors import Problem
from analysis.lake import committed_files
from analysis.pipeline import analyze
from analysis.schemas import TABLES

WHERE_IT_LAY = ("segment", "file_offset", "frame_number", "frame")
"""Columns, or last words of columns, that change when the same packets lie in other files."""
OF_FILES = ("segments", "coverage")


@dataclass(frozen=True)
class Analysed:
    """The tables that captures became, in no particular order of rows."""

    tables: dict[str, pa.Table]
    problems: list[Problem]

    def rows(self, name: str) -> list[dict[str, Any]]:
        return self.tables[name].to_pylist()


def analysed(*captures: str | Path, **options: Any) -> Analysed:
    """All tables of the given files or folders."""
    with TemporaryDirectory() as folder:
        lake = Path(folder) / "lake"
        summary = analyze([str(capture) for capture in captures], lake, **{"jobs": 1, **options})
        return Analysed(stored(lake), summary.problems)


def stored(lake: Path) -> dict[str, pa.Table]:
    """All tables of a lake."""
    return {name: _read(lake, name) for name in TABLES}


@cache
def analysed_once(capture: Path) -> Analysed:
    """The same, kept for other tests."""
    return analysed(capture)


def _read(lake: Path, name: str) -> pa.Table:
    files = committed_files(lake, name)
    tables = [pq.ParquetFile(file).read().cast(TABLES[name].schema) for file in files]
    return pa.concat_tables(tables) if tables else TABLES[name].schema.empty_table()


def comparable(table: pa.Table) -> list[tuple[Any, ...]]:
    """Sorted rows without what says in which file something lay."""
    names = [n for n in table.schema.names if not any(n == word or n.endswith(f"_{word}") for word in WHERE_IT_LAY)]
    columns = [table[name].cast(_comparable_type(table.schema.field(name).type)).to_pylist() for name in names]
    rows = zip(*columns, strict=True)
    return sorted((tuple(tuple(v) if isinstance(v, list) else v for v in row) for row in rows), key=repr)


def _comparable_type(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(type_):
        return pa.int64()
    return type_.value_type if pa.types.is_dictionary(type_) else type_


def assert_same_tables(one: Sequence[Any] | Analysed, other: Sequence[Any] | Analysed) -> None:
    """Equal as podtap defines it: all tables but those of files, leaving out where the packets lay."""
    assert isinstance(one, Analysed) and isinstance(other, Analysed)
    for name in TABLES:
        if name not in OF_FILES:
            left, right = comparable(one.tables[name]), comparable(other.tables[name])
            only_left, only_right = set(left) - set(right), set(right) - set(left)
            assert left == right, (
                f"{name}: only in one {sorted(only_left, key=repr)[:3]}, other {sorted(only_right, key=repr)[:3]}"
            )
