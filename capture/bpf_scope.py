"""Pure: the test whether an address is one of hundreds, in classic BPF.

A search tree, with a bitmap where neighbours are many: a node's pods share few prefixes, so that a few instructions are
enough for 32 of them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from capture.bpf import AND, JEQ, JGE, JSET, LD_IMM, LD_MEM, LSH_X, ST, TAX, Assembly
from capture.bpf_layers import FREE_WORDS, ScopeTest

_ADDRESS, _MASK = FREE_WORDS
_BITS: Final = 32
_FEW: Final = 2
"""Addresses of one group that are cheaper to compare one by one."""


@dataclass(frozen=True)
class _Leaf:
    """One value of a word, or several with the same upper 27 bits."""

    low: int
    values: tuple[int, ...]


def scope_test(addresses: Iterable[str]) -> ScopeTest:
    """For Layers. ValueError where one is no address."""
    by_version: dict[int, set[tuple[int, ...]]] = {4: set(), 6: set()}
    for each in addresses:
        address = ipaddress.ip_address(each)
        words = [int.from_bytes(address.packed[at : at + 4], "big") for at in range(0, len(address.packed), 4)]
        by_version[address.version].add(tuple(words))
    counter = iter(range(1 << 30))

    def test(assembly: Assembly, version: int, load: Callable[[int], None], found: str) -> None:
        if by_version[version]:
            missed = f"no address {next(counter)}"
            _Search(assembly, load, found, missed, lambda: f"address {next(counter)}").add(sorted(by_version[version]))
            assembly.label(missed)

    return test


@dataclass
class _Search:
    """Adds one search; it ends at `found` or at `missed`, which follows it."""

    assembly: Assembly
    load: Callable[[int], None]
    found: str
    missed: str
    new_label: Callable[[], str]

    def add(self, addresses: Sequence[tuple[int, ...]], word: int = 0) -> None:
        """Of these addresses, of whose words the first are known to be right, and left out."""
        is_last = len(addresses[0]) == 1
        self.load(word)
        leaves = _leaves([words[0] for words in addresses]) if is_last else _values(words[0] for words in addresses)
        if any(len(leaf.values) > 1 for leaf in leaves):
            self._prepare_bitmaps()
        below = {
            value: [words[1:] for words in group] for value, group in groupby(addresses, key=lambda words: words[0])
        }
        self._tree(leaves, None if is_last else lambda leaf: self.add(below[leaf.low], word + 1))

    def _prepare_bitmaps(self) -> None:
        """A is the address' last word, and is so afterwards. X is not needed any more."""
        add = self.assembly.add
        add(ST, _ADDRESS)
        add(AND, _BITS - 1)
        add(TAX)
        add(LD_IMM, 1)
        add(LSH_X)
        add(ST, _MASK)
        add(LD_MEM, _ADDRESS)

    def _tree(self, leaves: Sequence[_Leaf], inside: Callable[[_Leaf], None] | None) -> None:
        if len(leaves) > 1:
            middle = len(leaves) // 2
            upper = self.new_label()
            self.assembly.jump(JGE, leaves[middle].low, yes=upper)
            self._tree(leaves[:middle], inside)
            self.assembly.label(upper)
            self._tree(leaves[middle:], inside)
        elif inside:
            self.assembly.jump(JEQ, leaves[0].low, no=self.missed)
            inside(leaves[0])
        elif len(leaves[0].values) == 1:
            self.assembly.jump(JEQ, leaves[0].low, yes=self.found, no=self.missed)
        else:
            self.assembly.add(AND, (1 << 32) - _BITS)
            self.assembly.jump(JEQ, leaves[0].low & -_BITS, no=self.missed)
            self.assembly.add(LD_MEM, _MASK)
            bitmap = sum(1 << value % _BITS for value in leaves[0].values)
            self.assembly.jump(JSET, bitmap, yes=self.found, no=self.missed)


def _leaves(values: Sequence[int]) -> list[_Leaf]:
    leaves = []
    for _, group in groupby(values, key=lambda value: value // _BITS):
        members = tuple(group)
        parts = [members] if len(members) > _FEW else [(member,) for member in members]
        leaves += [_Leaf(part[0], part) for part in parts]
    return leaves


def _values(values: Iterable[int]) -> list[_Leaf]:
    return [_Leaf(value, (value,)) for value, _ in groupby(values)]
