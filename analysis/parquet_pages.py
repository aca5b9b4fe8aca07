"""Columns of numbers to pages of Parquet: what parquet_kernels.py needs to know and makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from analysis import parquet
from analysis.parquet import ColumnChunk, Dictionary
from analysis.parquet_kernels import (
    BLOCK_VALUES,
    DELTA,
    INDEXES,
    LEVEL_BITS,
    LONG_DELTA,
    NOT_MET,
    NUMBER_LIMIT,
    NUMBERS,
    PLAIN,
    encode_page,
)

_PAGE_ENCODINGS: Final = {
    PLAIN: parquet.PLAIN,
    DELTA: parquet.DELTA_BINARY_PACKED,
    LONG_DELTA: parquet.DELTA_BINARY_PACKED,
    NUMBERS: parquet.RLE_DICTIONARY,
    INDEXES: parquet.RLE_DICTIONARY,
}
_MOST_BYTES: Final = 9
"""That any encoding needs for a value, beside _MORE_BYTES for a page."""
_MORE_BYTES: Final = 512


@dataclass(frozen=True)
class ColumnPlan:
    """How a column is written."""

    name: str
    how: int
    """parquet_kernels.PLAIN and so on."""
    valid: int = 0
    """The bit of Columns.valid that says where it is not null; 0: nowhere null."""
    numbering: str = ""
    """Of a column that is encoded as NUMBERS: those of one numbering share a dictionary."""


class Columns(NamedTuple):
    """Room for a page: one row of each array is a column, except `valid`, whose bits say of each row what is null."""

    wide: npt.NDArray[np.int64]
    words: npt.NDArray[np.uint32]
    halves: npt.NDArray[np.uint16]
    octets: npt.NDArray[np.uint8]
    places: npt.NDArray[np.int32]
    valid: npt.NDArray[np.uint32]

    @staticmethod
    def of(rows: int, wide: int, words: int, halves: int, octets: int, places: int) -> Columns:
        """Room for so many rows of so many columns."""
        return Columns(
            np.zeros((wide, rows), np.int64),
            np.zeros((words, rows), np.uint32),
            np.zeros((halves, rows), np.uint16),
            np.zeros((octets, rows), np.uint8),
            np.zeros((places, rows), np.int32),
            np.zeros(rows, np.uint32),
        )

    def where(self, chosen: npt.NDArray[np.bool_]) -> Columns:
        """A copy of these rows; `chosen` may be shorter than the room."""
        rows = np.flatnonzero(chosen)
        return Columns._make(np.ascontiguousarray(array[..., rows]) for array in self)


class _Memory(NamedTuple):
    """For each numbering: the place of each number, the numbers met, and how many they are. And room for kernels."""

    place_of: npt.NDArray[np.int32]
    met: npt.NDArray[np.uint16]
    known: npt.NDArray[np.int64]
    values: npt.NDArray[np.int64]
    steps: npt.NDArray[np.int64]


class PageEncoder:
    """Encodes pages; remembers the numbers of a row group."""

    def __init__(self, plans: Sequence[ColumnPlan], flags: Mapping[str, int], page_rows: int) -> None:
        """`plans`: in the order of Columns. `flags`: boolean columns, which are a bit of Columns.valid."""
        self._plans = plans
        self._flags = flags
        self._numberings = (*dict.fromkeys(plan.numbering for plan in plans if plan.numbering),)
        self._plan = np.array(
            [(p.valid, p.how, self._numberings.index(p.numbering) if p.numbering else 0) for p in plans], np.int64
        )
        shape = len(self._numberings), NUMBER_LIMIT
        self._memory = _Memory(
            np.full(shape, NOT_MET, np.int32),
            np.zeros(shape, np.uint16),
            np.zeros(len(self._numberings), np.int64),
            np.zeros(page_rows, np.int64),
            np.zeros(BLOCK_VALUES, np.int64),
        )
        self._out = np.empty(len(plans) * (page_rows * _MOST_BYTES + _MORE_BYTES), np.uint8)
        self._spans = np.zeros((len(plans), 2), np.int64)
        self._levels = np.empty(LEVEL_BITS * (page_rows // 8 + 64), np.uint8)
        self._level_spans = np.zeros((LEVEL_BITS, 2), np.int64)

    def chunks(self) -> dict[str, ColumnChunk]:
        """Of a new row group."""
        chunks = {plan.name: ColumnChunk(_PAGE_ENCODINGS[plan.how]) for plan in self._plans}
        return chunks | {name: ColumnChunk(parquet.RLE) for name in self._flags}

    def add_page(self, chunks: Mapping[str, ColumnChunk], rows: Columns, count: int) -> None:
        """The first `count` rows (not 0, and no more than `page_rows`), a page of each column."""
        with np.errstate(over="ignore"):
            encode_page(rows, count, self._plan, self._memory, self._out, self._spans, self._levels, self._level_spans)
        levels = {1 << k: self._levels[a:b].tobytes() for k, (a, b) in enumerate(self._level_spans.tolist())}
        levels[0] = b""
        for plan, (start, end) in zip(self._plans, self._spans.tolist(), strict=True):
            if start == end:
                chunks[plan.name].add_nulls(count)
            else:
                chunks[plan.name].add_page(count, levels[plan.valid], self._out[start:end].tobytes())
        for name, bit in self._flags.items():
            chunks[name].add_page(count, b"", levels[bit])

    def number_dictionaries(self) -> dict[str, Dictionary]:
        """Of the columns that are encoded as NUMBERS."""
        met = [
            numbers[:known].astype("<i4") for numbers, known in zip(self._memory.met, self._memory.known, strict=True)
        ]
        dictionaries = [Dictionary(numbers.tobytes(), len(numbers)) for numbers in met]
        return {p.name: dictionaries[self._numberings.index(p.numbering)] for p in self._plans if p.numbering}

    def forget(self) -> None:
        """The row group is written: its numbers are new to the next one."""
        for place_of, met, known in zip(*self._memory[:3], strict=True):
            place_of[met[:known]] = NOT_MET
        self._memory.known[:] = 0
