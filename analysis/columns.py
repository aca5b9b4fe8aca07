"""Numpy columns to the Arrow columns that schemas.py declares.

Made of buffers: pa.array(), to_numpy() and empty_table() would load pandas first, if that is installed, which takes
longer than the analysis of a million packets; and cast() all of Arrow's functions, as long as that of 50,000.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from analysis.columns_kernels import number_values
from analysis.layout import ENCAPSULATION_NAMES
from analysis.schemas import NAME, TABLES, TIME, Table, identity_columns

if TYPE_CHECKING:
    Column: TypeAlias = pa.Array[Any]

Values = npt.NDArray[Any]

HEX_PAIRS: Final = np.frombuffer(bytes(range(256)).hex().encode(), np.uint16)
"""The two digits of each byte."""

PROTOCOL_NAMES: Final = [f"ip-{number}" for number in range(256)]
for _number, _name in {1: "ICMP", 2: "IGMP", 6: "TCP", 17: "UDP", 33: "DCCP", 47: "GRE", 50: "ESP", 51: "AH"}.items():
    PROTOCOL_NAMES[_number] = _name
for _number, _name in {58: "ICMPv6", 89: "OSPF", 103: "PIM", 112: "VRRP", 132: "SCTP"}.items():
    PROTOCOL_NAMES[_number] = _name
PROTOCOL_NAMES.append("ARP")
ARP_NAME: Final = 256


def bitmap(valid: npt.NDArray[np.bool_]) -> pa.Buffer:
    """Arrow's validity bitmap; shared by all columns that are null in the same rows."""
    return pa.py_buffer(np.packbits(valid, bitorder="little").data)


def numbers(values: Values, type_: pa.DataType, validity: pa.Buffer | None = None) -> Column:
    """A fixed-width column; `values` are cast to the type's width without a look at what null rows hold."""
    width = np.dtype(type_.to_pandas_dtype()) if not pa.types.is_timestamp(type_) else np.dtype(np.int64)
    values = np.ascontiguousarray(values, dtype=width)
    return pa.Array.from_buffers(type_, len(values), [validity, pa.py_buffer(values.data)])


def times(values: Values, validity: pa.Buffer | None = None) -> Column:
    """Nanoseconds since 1970 as schemas.TIME."""
    return numbers(values, TIME, validity)


def flags(values: Values, validity: pa.Buffer | None = None) -> Column:
    """Booleans."""
    return pa.Array.from_buffers(pa.bool_(), len(values), [validity, bitmap(values.astype(bool))])


def array(values: Values, valid: npt.NDArray[np.bool_] | None = None) -> Column:
    """Numbers, booleans, or strings (as objects, None is null), in the type that numpy has them in."""
    if values.dtype == object:
        return texts(values.tolist())
    validity = None if valid is None else bitmap(valid)
    return (
        flags(values, validity)
        if values.dtype == bool
        else numbers(values, pa.from_numpy_dtype(values.dtype), validity)
    )


def whole(column: Any) -> Any:
    """A column in one piece."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.combine_chunks() if column.num_chunks else values([], column.type)


def plain(column: Any, null: int = 0) -> Values:
    """An Arrow column of numbers, booleans or times (in nanoseconds) in its own width, `null` where it has none.

    It can't be written to, as Arrow's own can't: kernels would be compiled for both.
    """
    column = whole(column)
    if pa.types.is_boolean(column.type):
        return plain(column.cast(pa.uint8()), null).view(np.bool_)
    dtype = np.dtype(np.int64 if pa.types.is_timestamp(column.type) else column.type.to_pandas_dtype())
    found = np.empty(0, dtype)
    if len(column):
        validity, content = column.buffers()
        found = np.frombuffer(content, dtype, len(column), dtype.itemsize * column.offset)
    if column.null_count:
        bits = np.unpackbits(np.frombuffer(validity, np.uint8), bitorder="little")[column.offset :][: len(column)]
        # A product takes half as long as a choice, for it has no branches.
        found = found * bits.astype(dtype) if null == 0 else np.where(bits, found, dtype.type(null))
    found.flags.writeable = False
    return found


def words_of(column: Any) -> list[str | None]:
    """The words that a dictionary column has, and None if it is null anywhere."""
    column = whole(column)
    words = [*column.dictionary.to_pylist(), None]
    return [words[place] for place in np.unique(plain(column.indices, -1)).tolist()]


def names(index: Values, words: Column | Sequence[str | None], validity: pa.Buffer | None = None) -> Column:
    """A dictionary column: words[index[i]]."""
    if not isinstance(words, pa.Array):
        words = texts(words)
    return pa.DictionaryArray.from_arrays(numbers(index, pa.int32(), validity), words, safe=False)


def some_names(index: Values, words: Sequence[str | None]) -> Column:
    """As names(), null where the index is negative or the word is None."""
    known = np.array([word is not None for word in words] + [False], bool)
    index = np.where(index < 0, len(words), index)
    valid = known[index]
    filled = [word or "" for word in words] or [""]
    return names(np.where(valid, index, 0), filled, bitmap(valid))


def texts(words: Sequence[str | None]) -> Column:
    """Strings, or null."""
    encoded = [b"" if word is None else word.encode() for word in words]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    validity = bitmap(np.array([word is not None for word in words], np.bool_)) if None in words else None
    return text(b"".join(encoded), ends, validity)


def text(content: Any, ends: npt.NDArray[np.int32], validity: pa.Buffer | None = None) -> Column:
    """Strings: the i-th is content[ends[i]:ends[i + 1]]."""
    buffers = [validity, pa.py_buffer(ends.data), pa.py_buffer(content)]
    return pa.Array.from_buffers(pa.string(), len(ends) - 1, buffers)


def values(found: Sequence[Any], type_: pa.DataType) -> Column:
    """A column of any of the schemas' types from Python's values or None."""
    if pa.types.is_list(type_):
        ends = np.cumsum([0, *(len(value or ()) for value in found)], dtype=np.int32)
        parts = values([part for value in found for part in value or ()], type_.value_type)
        return lists(ends, parts, bitmap(np.array([value is not None for value in found], np.bool_)))
    if type_ == NAME:
        words = list(dict.fromkeys(word for word in found if word is not None))
        place = {word: number for number, word in enumerate(words)} | {None: -1}
        return some_names(np.array([place[word] for word in found], np.int32), words)
    if type_ == pa.string():
        return texts(found)
    validity = bitmap(np.array([value is not None for value in found], np.bool_))
    plain = np.array([value or 0 for value in found], np.int64)
    return flags(plain, validity) if type_ == pa.bool_() else numbers(plain, type_, validity)


def lists(ends: npt.NDArray[np.int32], parts: Column, validity: pa.Buffer | None = None) -> Column:
    """Lists: the i-th is parts[ends[i]:ends[i + 1]]."""
    buffers = [validity, pa.py_buffer(ends.data)]
    return pa.Array.from_buffers(pa.list_(parts.type), len(ends) - 1, buffers, children=[parts])


def table_of(table: Table, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows of a table from Python's; a column that a row does not have is null."""
    found: dict[str, Column] = {}
    for column in table.columns:
        found[column.name] = values([row.get(column.name) for row in rows], column.type)
    return to_table(table.name, found)


def fixed_text(content: npt.NDArray[np.uint8], width: int) -> Column:
    """Strings that all have `width` bytes."""
    return text(content.data, np.arange(0, len(content) + 1, width, dtype=np.int32))


def repeated(word: str, count: int) -> Column:
    """The same string in every row."""
    content = word.encode()
    return text(content * count, np.arange(count + 1, dtype=np.int32) * np.int32(len(content)))


def distinct(high: Values, low: Values) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """(ordinal of each value among the distinct ones, where each distinct one is first seen)."""
    count = len(low)
    table = np.full(1 << max(4, (2 * count).bit_length()), -1, np.int32)
    index = np.empty(count, np.int32)
    firsts = np.empty(count, np.int64)
    with np.errstate(over="ignore"):  # a hash wraps; only without the JIT compiler would NumPy say so
        found = number_values(np.ascontiguousarray(high), np.ascontiguousarray(low), table, index, firsts)
    return index, firsts[:found]


def uid_text(values: Values) -> Column:
    """Ids (uint64) as sixteen hexadecimal digits each."""
    return fixed_text(uid_digits(values), 16)


def uid_digits(values: Values) -> npt.NDArray[np.uint8]:
    """Ids (uint64) as sixteen hexadecimal digits each, one after the other."""
    return HEX_PAIRS[np.ascontiguousarray(values).astype(">u8").view(np.uint8)].view(np.uint8)


def uids(values: Values, validity: pa.Buffer | None = None) -> Column:
    """Ids of flows that repeat, as a dictionary."""
    index, firsts = distinct(np.zeros(len(values), np.uint64), values)
    return names(index, uid_text(values[firsts]), validity)


_ADDRESS_TEXT: dict[tuple[int, int], str] = {}
_MOST_ADDRESS_TEXTS: Final = 1 << 18


def address_text(high: int, low: int) -> str:
    """`high` and `low` as in layout.py; IPv6 as RFC 5952 writes it."""
    text = _ADDRESS_TEXT.get((high, low))
    if text is None:
        if high == 0 and low >> 32 == 0xFFFF:
            text = f"{low >> 24 & 255}.{low >> 16 & 255}.{low >> 8 & 255}.{low & 255}"
        else:
            text = str(ipaddress.IPv6Address(high << 64 | low))
        if len(_ADDRESS_TEXT) >= _MOST_ADDRESS_TEXTS:
            _ADDRESS_TEXT.clear()
        _ADDRESS_TEXT[high, low] = text
    return text


def address_words(high: Values, low: Values) -> Column:
    """Addresses as text."""
    return texts([*map(address_text, high.tolist(), low.tolist())])


def addresses(*pairs: tuple[Values, Values], validity: pa.Buffer | None = None) -> list[Column]:
    """One dictionary column for each (high, low) pair of columns; they share the dictionary."""
    high = np.concatenate([pair[0] for pair in pairs])
    low = np.concatenate([pair[1] for pair in pairs])
    index, firsts = distinct(high, low)
    words = address_words(high[firsts], low[firsts])
    length = len(pairs[0][0])
    return [names(index[i * length : (i + 1) * length], words, validity) for i in range(len(pairs))]


def encapsulations(values: Values) -> Column:
    """Names of layout.PACKET's encapsulation, outermost first, null where there is none."""
    if not values.any():
        return pa.nulls(len(values), NAME)
    kinds, index = np.unique(values, return_inverse=True)
    return some_names(index, [encapsulation_name(kind) or None for kind in kinds.tolist()])


def encapsulation_name(kind: int) -> str:
    """Of layout.PACKET's encapsulation, outermost first; empty where there is none."""
    return "+".join(ENCAPSULATION_NAMES[kind >> shift & 15] for shift in range(0, 32, 4) if kind >> shift & 15)


def to_table(name: str, columns: dict[str, Column], without: Sequence[str] = ()) -> pa.Table:
    """The columns in the order of the schema; those in `without` come later."""
    schema = pa.schema([field for field in TABLES[name].schema if field.name not in without])
    return pa.Table.from_arrays([columns[field.name] for field in schema], schema=schema)


def identity_names(table: str) -> list[str]:
    """The columns that identities.py fills in."""
    sides = {"flows": ("orig", "resp"), "retransmits": ("orig", "resp"), "dns": ("client", "server")}
    return ["cluster", *(column.name for side in sides[table] for column in identity_columns(side, side))]
