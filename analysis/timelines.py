"""Who held a key at a time: intervals laid out so that a million lookups are a few binary searches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Interval = tuple[int, int, int, int]
"""Key, start, end (half-open), owner (0 or more)."""

NOBODY = -1
SEVERAL = -2


class Timelines:
    """For each key, its owner over time."""

    def __init__(self, intervals: Iterable[Interval]) -> None:
        """Intervals may overlap, in any order."""
        changes = np.array(list(_changes(intervals)), np.int64).reshape(-1, 3)
        self._keys, number = np.unique(changes[:, 0], return_inverse=True)
        self._times, rank = np.unique(changes[:, 1], return_inverse=True)
        # One sorted array for all timelines: the key's number, then how many of all times have come by then.
        self._width = len(self._times) + 1
        self._moments = number * self._width + rank + 1
        self._owners = changes[:, 2]

    def at(self, keys: Integers, times: Integers) -> Integers:
        """The owner of each key at its time: NOBODY, SEVERAL, or a number."""
        owners = np.full(len(keys), NOBODY, np.int64)
        if not len(self._keys):
            return owners
        number = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        rows = np.flatnonzero(self._keys[number] == keys)
        number = number[rows]
        rank = np.searchsorted(self._times, times[rows], side="right")
        change = np.searchsorted(self._moments, number * self._width + rank, side="right") - 1
        # Before a key's first change stands another key's last (before all, the very last): all end with NOBODY.
        owners[rows] = self._owners[change]
        return owners


def _changes(intervals: Iterable[Interval]) -> Iterator[tuple[int, int, int]]:
    """Key, time and owner from then on, ordered by key and time."""
    by_key = defaultdict(list)
    for key, start, end, owner in intervals:
        by_key[key].append((start, end, owner))
    for key in sorted(by_key):
        held = by_key[key]
        for time in sorted({moment for start, end, _ in held for moment in (start, end)}):
            owners = {owner for start, end, owner in held if start <= time < end}
            yield key, time, NOBODY if not owners else SEVERAL if len(owners) > 1 else owners.pop()
