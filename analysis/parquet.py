"""Parquet files written page by page: for packets, which are too many for a writer that looks at every value anew.

The pages are encoded by parquet_kernels.py; here they become column chunks, row groups and a file.
https://parquet.apache.org/docs/file-format/ and parquet.thrift in https://github.com/apache/parquet-format
"""

from __future__ import annotations

import base64
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from analysis.thrift import I8, I64, Value, encode, zigzag

MAGIC: Final = b"PAR1"
MOST_PARTS: Final = 1024
"""That Linux writes at a time (IOV_MAX)."""
PLAIN, RLE, DELTA_BINARY_PACKED, RLE_DICTIONARY = 0, 3, 5, 8
BOOLEAN, INT32, INT64, BYTE_ARRAY = 0, 1, 2, 6
REQUIRED, OPTIONAL = 0, 1
UNCOMPRESSED, ZSTD = 0, 6
DICTIONARY_PAGE: Final = 2
_STRING: Final[dict[int, Value]] = {6: 0, 10: {1: {}}}
_UNSIGNED: Final = {8: 11, 16: 12, 32: 13}
"""Converted types, which older readers look at, by bits."""


_NO_VALUES: Final = {PLAIN: b"", DELTA_BINARY_PACKED: b"\x80\x01\x04\0\0", RLE_DICTIONARY: b"\1"}


@dataclass
class Dictionary:
    """The distinct values of a column chunk, PLAIN."""

    content: bytes
    values: int


@dataclass
class ColumnChunk:
    """The pages of one column of a row group."""

    encoding: int
    """Of the data pages."""
    parts: list[bytes] = field(default_factory=list)
    rows: int = 0
    nulls: int = 0
    """Rows at the end that are null and in no page yet."""
    dictionary: Dictionary | None = None
    least: int | None = None
    most: int | None = None
    """For statistics; None: unknown."""

    def add_nulls(self, rows: int) -> None:
        """More rows, all null: they wait for others of that kind."""
        self.nulls += rows

    def add_page(self, rows: int, levels: bytes, values: bytes) -> None:
        """A data page; `levels` say where it is null, and are empty where the column never is."""
        self._flush_nulls()
        self._add_page(rows, levels, values)

    def note_range(self, least: int, most: int) -> None:
        """Between which more of its values (of 64 bits, none null) are, for statistics."""
        self.least = least if self.least is None else min(least, self.least)
        self.most = most if self.most is None else max(most, self.most)

    def finish(self) -> None:
        """No more rows follow. What is null all over needs no dictionary."""
        if not self.parts:
            self.encoding, self.dictionary = PLAIN, None
        self._flush_nulls()

    def _flush_nulls(self) -> None:
        if self.nulls:
            levels = zigzag(self.nulls) + b"\0"  # a run's head is its length, doubled
            rows, self.nulls = self.nulls, 0
            self._add_page(rows, struct.pack("<I", len(levels)) + levels, _NO_VALUES[self.encoding])

    def _add_page(self, rows: int, levels: bytes, values: bytes) -> None:
        self.parts += (_data_page_header(len(levels) + len(values), rows, self.encoding), levels, values)
        self.rows += rows


def _data_page_header(size: int, rows: int, encoding: int) -> bytes:
    """encode({1: 0, 2: size, 3: size, 5: {...}}), of which only the size changes from page to page."""
    written = zigzag(size)
    return b"\x15\x00\x15" + written + b"\x15" + written + _data_page(rows, encoding)


@lru_cache(maxsize=1 << 10)
def _data_page(rows: int, encoding: int) -> bytes:
    return b"\x2c" + encode({1: rows, 2: encoding, 3: RLE, 4: RLE}) + b"\0"


@lru_cache(maxsize=1 << 17)
def plain_word(word: str) -> bytes:
    """PLAIN of a string: its length before it. Row groups have most words in common."""
    text = word.encode()
    return len(text).to_bytes(4, "little") + text


def words_content(words: Sequence[str]) -> bytes:
    """PLAIN of strings."""
    return b"".join(map(plain_word, words))


class ParquetWriter:
    """One file. A dictionary of strings is read as one by Arrow and pandas, whose schema is kept as Arrow does."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._elements = [_element(f) for f in schema]
        self._row_groups: list[Value] = []
        self._rows = 0
        self._file = path.open("wb", buffering=0)
        self._size = 0
        self._write([MAGIC])

    def write_row_group(self, chunks: Mapping[str, ColumnChunk], rows: int) -> None:
        """All columns of the schema, of `rows` rows each."""
        start = self._size
        columns: list[Value] = []
        for element, f in zip(self._elements, self._schema, strict=True):
            columns.append(self._write_chunk(chunks[f.name], element))
        size = self._size - start
        self._row_groups.append({1: columns, 2: I64(size), 3: I64(rows), 5: I64(start), 6: I64(size)})
        self._rows += rows

    def close(self) -> None:
        """The footer, without which it is no Parquet file."""
        root: Value = {3: REQUIRED, 4: "schema", 5: len(self._elements)}
        arrow_schema = base64.b64encode(self._schema.serialize().to_pybytes())
        footer = encode(
            {
                1: 2,
                2: [root, *self._elements],
                3: I64(self._rows),
                4: self._row_groups,
                5: [{1: "ARROW:schema", 2: arrow_schema}],
                6: "podtap",
                7: [{1: {}}] * len(self._elements),
            }
        )
        with self._file:
            self._write([footer, struct.pack("<I", len(footer)), MAGIC])

    def _write_chunk(self, chunk: ColumnChunk, element: Mapping[int, Value]) -> Value:
        chunk.finish()
        start = data_at = self._size
        encodings = [RLE, chunk.encoding]
        parts = chunk.parts
        if chunk.dictionary:
            encodings.append(PLAIN)
            content = chunk.dictionary.content
            page: dict[int, Value] = {1: DICTIONARY_PAGE, 2: len(content), 3: len(content)}
            head = encode(page | {7: {1: chunk.dictionary.values, 2: PLAIN}})
            data_at += len(head) + len(content)
            parts = [head, content, *parts]
        self._write(parts)
        size = self._size - start
        meta: dict[int, Value] = {1: element[1], 2: encodings, 3: [element[4]], 4: UNCOMPRESSED, 5: I64(chunk.rows)}
        meta |= {6: I64(size), 7: I64(size), 9: I64(data_at)}
        if chunk.dictionary:
            meta[11] = I64(start)
        if chunk.least is not None and chunk.most is not None:
            meta[12] = {3: I64(0), 5: struct.pack("<q", chunk.most), 6: struct.pack("<q", chunk.least)}
        return {2: I64(start), 3: meta}

    def _write(self, parts: Sequence[bytes]) -> None:
        """All of them; a raw write may stop early."""
        rest = [memoryview(part) for part in parts if part]
        self._size += sum(map(len, rest))
        while rest:
            written = os.writev(self._file.fileno(), rest[:MOST_PARTS])
            while rest and written >= len(rest[0]):
                written -= len(rest.pop(0))
            if written:
                rest[0] = rest[0][written:]


def _element(column: pa.Field[Any]) -> dict[int, Value]:
    """The SchemaElement of a column."""
    physical, more = _types(column.type)
    return {1: physical, 3: OPTIONAL if column.nullable else REQUIRED, 4: column.name, **more}


def _types(type_: pa.DataType) -> tuple[int, dict[int, Value]]:
    """The physical type, and what else SchemaElement says of it."""
    if pa.types.is_dictionary(type_) or pa.types.is_string(type_):
        return BYTE_ARRAY, _STRING
    if pa.types.is_boolean(type_):
        return BOOLEAN, {}
    if pa.types.is_timestamp(type_):
        return INT64, {10: {8: {1: True, 2: {3: {}}}}}
    if type_ == pa.int64():
        return INT64, {}
    bits = type_.bit_width
    return INT32, {6: _UNSIGNED[bits], 10: {10: {1: I8(bits), 2: False}}}
