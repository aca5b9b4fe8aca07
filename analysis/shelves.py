"""Records put away on disk by where they belong, until those of one shelf are wanted: memory holds one shelf."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis import orders, rooms

Records = npt.NDArray[Any]


class Shelves:
    """In a file in `folder` that has no name, so that it is gone when it is closed, or the process ends."""

    def __init__(self, folder: Path, dtype: np.dtype[Any], open_: ExitStack) -> None:
        """`open_`: what closes the file."""
        self._dtype = dtype
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        open_.callback(self._file.close)
        self._end = 0
        self._pieces: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)

    def put(self, records: Records, shelf: npt.NDArray[Any]) -> None:
        """records[i] on shelf[i], behind what is there."""
        self._write(rooms.taken(records, orders.small(shelf)), np.bincount(shelf).tolist())

    def put_on(self, shelf: int, records: Records) -> None:
        """All of them on one shelf."""
        self._write(records, [0] * shelf + [len(records)])

    def _write(self, records: Records, counts: list[int]) -> None:
        """Records of one shelf after the other; `counts`: of each."""
        self._file.write(records.view(np.uint8).data)
        for shelf, count in enumerate(counts):
            if count:
                self._pieces[shelf].append((self._end, count * self._dtype.itemsize))
                self._end += count * self._dtype.itemsize

    def take(self, shelf: int) -> Records:
        """What is on a shelf, in the order in which it was put there."""
        pieces = self._pieces.get(shelf, [])
        found = np.empty(sum(size for _, size in pieces), np.uint8)
        filled = 0
        for place, size in pieces:
            self._file.seek(place)
            self._file.readinto(found[filled : filled + size].data)
            filled += size
        return found.view(self._dtype)

    def __iter__(self) -> Iterator[Records]:
        """What is on each shelf, but for those with nothing on it."""
        for shelf in sorted(self._pieces):
            yield self.take(shelf)
