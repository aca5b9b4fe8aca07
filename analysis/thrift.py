"""Thrift's compact protocol, in which Parquet writes what is not data.

https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias


class I8(int):
    """An integer of one byte; int is one of 32 bits."""


class I64(int):
    """An integer of 64 bits."""


Value: TypeAlias = "bool | int | str | bytes | Sequence[Value] | Mapping[int, Value]"
"""A Mapping is a struct: values by the number of their field, in ascending order."""

_TRUE, _FALSE, _I8, _I32, _I64, _BINARY, _LIST, _STRUCT = 1, 2, 3, 5, 6, 8, 9, 12


def varint(value: int) -> bytes:
    """ULEB128 of a number that is not negative."""
    encoded = bytearray()
    while value >= 128:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def zigzag(value: int) -> bytes:
    """A number of up to 64 bits, as varint."""
    return varint((value << 1) ^ (value >> 63))


def encode(fields: Mapping[int, Value]) -> bytes:
    """A struct."""
    parts = []
    before = 0
    for number, value in fields.items():
        step = number - before
        assert 0 < step < 16
        parts.append(bytes([step << 4 | _type(value)]))
        if not isinstance(value, bool):
            parts.append(_encode(value))
        before = number
    return b"".join(parts) + b"\0"


def _type(value: Value) -> int:
    for kind, number in ((I8, _I8), (I64, _I64), (int, _I32), (Mapping, _STRUCT), ((str, bytes), _BINARY)):
        if isinstance(value, bool):
            return _TRUE if value else _FALSE
        if isinstance(value, kind):
            return number
    return _LIST


def _encode(value: Value) -> bytes:
    if isinstance(value, I8):
        return value.to_bytes(1, signed=True)
    if isinstance(value, int):
        return zigzag(value)
    if isinstance(value, Mapping):
        return encode(value)
    if isinstance(value, str | bytes):
        text = value.encode() if isinstance(value, str) else value
        return varint(len(text)) + text
    kind = _type(value[0]) if value else _STRUCT
    head = bytes([len(value) << 4 | kind]) if len(value) < 15 else bytes([0xF0 | kind]) + varint(len(value))
    return head + b"".join(map(_encode, value))
