"""Orders are those of numpy's stable sorts."""

from __future__ import annotations

import numpy as np
import pytest

from analysis import orders


@pytest.mark.parametrize("count", [0, 1, 2, 7, 1000])
@pytest.mark.parametrize("most", [1, 2, 50, (1 << 32) - 1])
def test_orders_are_stable(count: int, most: int) -> None:
    choice = np.random.default_rng([count, most])
    values, minor = choice.integers(0, most, (2, count), endpoint=True)
    assert orders.small(values).tolist() == np.argsort(values, kind="stable").tolist()
    assert orders.lexical(values, minor).tolist() == np.lexsort((minor, values)).tolist()
    assert orders.numbered(values).tolist() == [sorted({*values.tolist()}).index(each) for each in values.tolist()]
    large = values.astype(np.uint64) << np.uint64(32)
    assert orders.any_size(large).tolist() == np.argsort(large, kind="stable").tolist()
    assert orders.any_size(-values).tolist() == np.argsort(-values, kind="stable").tolist()
