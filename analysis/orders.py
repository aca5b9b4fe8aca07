"""Orders of numbers, as numpy's stable sorts have them, made of its quick ones.

To sort numbers takes a tenth of what a stable argsort() takes, so a number and its place are sorted as one number.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Values = npt.NDArray[Any]

PLACE_BITS: Final = 31
PLACE: Final = (1 << PLACE_BITS) - 1


def small(values: Values) -> Integers:
    """np.argsort(values, kind="stable") of integers from 0 to 2^32 - 1, fewer than 2^31 of them."""
    order = values.astype(np.int64)
    order <<= PLACE_BITS
    order |= np.arange(len(order))
    order.sort()
    order &= PLACE
    return order


def any_size(values: Values) -> Integers:
    """np.argsort(values, kind="stable") of integers, of which few are equal."""
    order = np.argsort(values)
    run = _runs(values[order])
    tied = run[1:] == run[:-1]
    at = np.flatnonzero(np.append(tied, False) | np.append(False, tied)) if tied.any() else np.empty(0, np.int64)
    order[at] = np.sort(run[at] << PLACE_BITS | order[at]) & PLACE
    return order


def numbered(values: Values) -> Integers:
    """For each integer how many smaller ones there are, each counted once."""
    order = np.argsort(values)
    found = np.empty(len(values), np.int64)
    found[order] = _runs(values[order])
    return found


def lexical(major: Values, minor: Values) -> Integers:
    """np.lexsort((minor, major)) of integers, fewer than 2^31 of them."""
    order = any_size(minor)
    return order[small(numbered(major)[order])]


def _runs(values: Values) -> Integers:
    """For each of sorted values the number of its run of equal ones."""
    run = np.zeros(len(values), np.int64)
    np.cumsum(values[1:] != values[:-1], out=run[1:])
    return run
