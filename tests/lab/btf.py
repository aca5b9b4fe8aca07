"""Where the running kernel keeps the members of its structures, from the type information that it ships (BTF)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

VMLINUX: Final = Path("/sys/kernel/btf/vmlinux")
_INT, _ARRAY, _STRUCT, _UNION, _ENUM = 1, 3, 4, 5, 6
_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG = 8, 9, 10, 11, 18
_POINTER, _ENUM64 = 2, 19
_ALIASES: Final = (_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG)
_TRAILER: Final = {_INT: 4, _ARRAY: 12, 14: 4, 17: 4}
_TRAILER_EACH: Final = {_STRUCT: 12, _UNION: 12, _ENUM: 8, 13: 8, 15: 12, _ENUM64: 12}
"""Bytes behind a type, and for each of its members. Numbers without a name: FUNC_PROTO, VAR, DATASEC, DECL_TAG."""


@dataclass(frozen=True)
class Member:
    """Where a member begins in its structure, and how large it is; 0 where it is no plain number."""

    bit: int
    size: int

    @property
    def offset(self) -> int:
        return self.bit // 8


class Types:
    """The kernel's types. Documentation/bpf/btf.rst describes the format."""

    def __init__(self, data: bytes) -> None:
        magic, _, _, header, types, types_length, strings, strings_length = struct.unpack_from("<HBBIIIII", data)
        if magic != 0xEB9F:
            raise ValueError("not BTF of a little-endian kernel")
        self._data = data
        self._strings = data[header + strings : header + strings + strings_length]
        self._positions = [0]  # type 0 is void
        self._structures: dict[int, int] = {}
        at = header + types
        end = at + types_length
        unpack = struct.Struct("<II").unpack_from
        while at < end:
            name, info = unpack(data, at)
            kind = info >> 24 & 0x1F
            if kind == _STRUCT and name:
                self._structures.setdefault(name, len(self._positions))
            self._positions.append(at)
            at += 12 + _TRAILER.get(kind, 0) + _TRAILER_EACH.get(kind, 0) * (info & 0xFFFF)

    def member(self, structure: str, path: str) -> Member:
        """`path` may go on into structures inside, with dots; those without a name are looked through."""
        number = self._structures[self._strings.index(b"\0" + structure.encode() + b"\0") + 1]
        bit = 0
        for name in path.split("."):
            step, number = next((found for found in self._members(self._plain(number), name.encode())), (None, number))
            if step is None:
                raise KeyError(f"struct {structure} has no {path}")
            bit += step
        return Member(bit, self._size(self._plain(number)))

    def _members(self, number: int, wanted: bytes) -> Iterator[tuple[int, int]]:
        at = self._positions[number]
        _, info, _ = struct.unpack_from("<III", self._data, at)
        if info >> 24 & 0x1F not in (_STRUCT, _UNION):
            return
        for name, kind, where in struct.iter_unpack("<III", self._data[at + 12 : at + 12 + 12 * (info & 0xFFFF)]):
            bit = where & 0xFFFFFF if info >> 31 else where
            if name == 0:
                for inner, found in self._members(self._plain(kind), wanted):
                    yield bit + inner, found
            elif self._strings[name : self._strings.index(b"\0", name)] == wanted:
                yield bit, kind

    def _plain(self, number: int) -> int:
        while number:
            _, info, target = struct.unpack_from("<III", self._data, self._positions[number])
            if info >> 24 & 0x1F not in _ALIASES:
                return number
            number = target
        return number

    def _size(self, number: int) -> int:
        _, info, size = struct.unpack_from("<III", self._data, self._positions[number])
        kind = info >> 24 & 0x1F
        return 8 if kind == _POINTER else int(size) if kind in (_INT, _ENUM, _ENUM64) else 0


@cache
def kernel_types() -> Types:
    """Of the kernel that runs; it takes a moment to read."""
    return Types(VMLINUX.read_bytes())
