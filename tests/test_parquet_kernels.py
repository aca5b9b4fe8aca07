"""Pages of Parquet as podtap encodes them, read by Arrow and by DuckDB, which know nothing of podtap."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.parquet import Dictionary, ParquetWriter, words_content
from analysis.parquet_kernels import DELTA, INDEXES, LONG_DELTA, NUMBERS, PLAIN
from analysis.parquet_pages import ColumnPlan, Columns, PageEncoder

pytestmark = pytest.mark.kernel

NULLABLE, FLAG = 1, 1 << 31
"""Bits of `valid`."""
PLANS = [
    ColumnPlan("steps", LONG_DELTA),
    ColumnPlan("time", LONG_DELTA, NULLABLE),
    ColumnPlan("plain", PLAIN, NULLABLE),
    ColumnPlan("delta", DELTA, NULLABLE),
    ColumnPlan("number", NUMBERS, NULLABLE, "number"),
    ColumnPlan("octet", NUMBERS, NULLABLE, "octet"),
    ColumnPlan("name", INDEXES, NULLABLE),
]
SCHEMA = pa.schema(
    [
        pa.field("steps", pa.int64(), nullable=False),
        pa.field("time", pa.timestamp("ns", tz="UTC")),
        pa.field("plain", pa.uint32()),
        pa.field("delta", pa.uint32()),
        pa.field("number", pa.uint16()),
        pa.field("octet", pa.uint8()),
        pa.field("name", pa.dictionary(pa.int32(), pa.string())),
        pa.field("flag", pa.bool_(), nullable=False),
    ]
)
Pages = list[dict[str, list[Any]]]


def write(path: Path, row_groups: list[Pages], words: list[str], statistics: str | None = None) -> None:
    """`name` is given as places in `words`. `statistics`: a column that has some."""
    encoder = PageEncoder(PLANS, {"flag": FLAG}, max(len(page["steps"]) for pages in row_groups for page in pages))
    file = ParquetWriter(path, SCHEMA)
    for pages in row_groups:
        chunks = encoder.chunks()
        for page in pages:
            rows = Columns.of(len(page["steps"]) + 3, wide=2, words=2, halves=1, octets=1, places=1)
            arrays = [*rows.wide, *rows.words, *rows.halves, *rows.octets, *rows.places]
            for plan, array in zip(PLANS, arrays, strict=True):
                array[: len(page[plan.name])] = [value or 0 for value in page[plan.name]]
            for i, (value, flag) in enumerate(zip(page["plain"], page["flag"], strict=True)):
                rows.valid[i] = (value is not None) * NULLABLE | flag * FLAG
            encoder.add_page(chunks, rows, len(page["steps"]))
            if statistics:
                chunks[statistics].note_range(min(page[statistics]), max(page[statistics]))
        for name, dictionary in encoder.number_dictionaries().items():
            chunks[name].dictionary = dictionary
        chunks["name"].dictionary = Dictionary(words_content(words), len(words))
        file.write_row_group(chunks, sum(len(page["steps"]) for page in pages))
        encoder.forget()
    file.close()


def page(rows: int, choose: random.Random) -> dict[str, list[Any]]:
    """Numbers as large as they come, in a range that may be anything; null everywhere, somewhere or nowhere."""
    nulls = choose.choice([0, 0, 0.3, 1])
    known = [choose.random() >= nulls for _ in range(rows)]

    def numbers(least: int, most: int) -> list[int]:
        start = choose.choice([least, most, choose.randint(least, most)])
        reach = choose.choice([0, 1, 6, 1000, most - least])
        return [min(max(start + choose.randint(-reach, reach), least), most) for _ in range(rows)]

    values: dict[str, list[Any]] = {
        "steps": numbers(-(1 << 63), (1 << 63) - 1),
        "time": numbers(-(1 << 62), 1 << 62),  # beyond, DuckDB sees infinity
        "plain": numbers(0, (1 << 32) - 1),
        "delta": numbers(0, (1 << 32) - 1),
        "number": numbers(0, (1 << 16) - 1),
        "octet": numbers(0, 255),
        "name": numbers(0, choose.choice([0, 1, 2, 255, 5000])),
        "flag": numbers(0, choose.randrange(2)),
    }
    nullable = {plan.name for plan in PLANS if plan.valid}
    return {
        name: [value if is_known or name not in nullable else None for value, is_known in zip(row, known, strict=True)]
        for name, row in values.items()
    }


@pytest.mark.parametrize("seed", range(12))
def test_pages_are_read_as_they_were_written(seed: int, tmp_path: Path) -> None:
    choose = random.Random(seed)
    words = [f"wörd {number}" for number in range(5001)]
    lengths = [1, 2, 7, 8, 9, 31, 32, 33, 34, 127, 128, 129, 130, 161, 300]
    row_groups = [[page(choose.choice(lengths), choose) for _ in range(choose.randint(1, 6))] for _ in range(3)]
    path = tmp_path / "pages.parquet"
    write(path, row_groups, words)
    written: dict[str, list[Any]] = {f.name: [] for f in SCHEMA}
    for pages in row_groups:
        for part in pages:
            for name, values in part.items():
                written[name] += values
    written["name"] = [None if place is None else words[place] for place in written["name"]]
    written["flag"] = [bool(value) for value in written["flag"]]
    table = pq.read_table(path)
    assert table.schema.equals(SCHEMA)
    table = table.set_column(1, "time", table["time"].cast(pa.int64()))
    assert table.to_pydict() == written
    with duckdb.connect() as connection:
        columns = ", ".join(f.name if f.name != "time" else "epoch_ns(time)" for f in SCHEMA)
        rows = connection.execute(f"select {columns} from read_parquet('{path}')").fetchall()
    assert [list(row) for row in rows] == [list(row) for row in zip(*written.values(), strict=True)]


def test_a_filter_by_time_skips_row_groups(tmp_path: Path) -> None:
    choose = random.Random(1)
    row_groups = [[page(40, choose)], [page(40, choose), page(8, choose)]]
    for number, pages in enumerate(row_groups):
        for part in pages:
            part["steps"] = [1000 * number + choose.randrange(1000) for _ in part["steps"]]
    path = tmp_path / "pages.parquet"
    write(path, row_groups, [f"{number}" for number in range(5001)], statistics="steps")
    metadata = pq.read_metadata(path)
    for number, pages in enumerate(row_groups):
        statistics = metadata.row_group(number).column(0).statistics
        steps = [step for part in pages for step in part["steps"]]
        assert (statistics.min, statistics.max, statistics.null_count) == (min(steps), max(steps), 0)
