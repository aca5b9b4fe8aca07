"""Memory that stages use again and again, and that begins with a cache line (layout.in_lines)."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from analysis.layout import CACHE_LINE

Array = npt.NDArray[Any]

GROWTH: Final = 4
"""Times the room there was. Much, to copy seldom: what was not written to takes no memory."""


def zeros(count: int, dtype: np.dtype[Any] | type[Any]) -> Array:
    """An array of zeros."""
    size = count * np.dtype(dtype).itemsize
    room = np.zeros(size + CACHE_LINE, np.uint8)
    start = -room.__array_interface__["data"][0] % CACHE_LINE
    return room[start : start + size].view(dtype)


def grown(array: Array, count: int) -> Array:
    """The array with zeros behind it, `count` elements in all, or with those that it has if they are as many."""
    if len(array) >= count:
        return array
    larger = zeros(count, array.dtype)
    larger.view(np.uint8)[: array.nbytes] = array.view(np.uint8)
    return larger


def joined(parts: Sequence[Array], dtype: np.dtype[Any]) -> Array:
    """One array after the other, records copied whole: numpy alone takes each apart, and leaves out its gaps."""
    whole = np.dtype((np.void, dtype.itemsize))
    return np.concatenate([np.empty(0, whole), *(part.view(whole) for part in parts)]).view(dtype)


def taken(records: Array, at: Array) -> Array:
    """records[at], copied whole: numpy alone takes each apart, which is many times slower."""
    found: Array = records.view(np.dtype((np.void, records.itemsize)))[at].view(records.dtype)
    return found


def give_back() -> None:
    """Gives memory that nobody needs any more back to the system; allocators keep it, in pieces and for each thread."""
    pa.default_memory_pool().release_unused()
    with suppress(AttributeError):  # only the GNU C library has it
        ctypes.CDLL(None).malloc_trim(0)


class Ring:
    """Arrays for chunks, used again in turn: a chunk has its array until `size` - 1 others were kept."""

    def __init__(self, dtype: np.dtype[Any] | type[Any], size: int) -> None:
        self._arrays = deque([zeros(0, dtype)] * size)

    def take(self, length: int) -> Array:
        """The next array, of this length; it holds anything. The same is taken again and again until it is kept."""
        if len(self._arrays[0]) < length:
            self._arrays[0] = zeros(length, self._arrays[0].dtype)
        return self._arrays[0][:length]

    def keep(self) -> None:
        """A chunk was made of what was taken."""
        self._arrays.rotate(-1)
