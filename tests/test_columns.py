"""Columns of the tables as numbers and words, before anything is compared."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa

from analysis import columns
from analysis.flow_facts import uid_numbers


def test_uids_are_hexadecimal_numbers() -> None:
    chance = random.Random(1)
    uids = [0, 1, 0xF, 0x0123456789ABCDEF, (1 << 64) - 1, *(chance.getrandbits(64) for _ in range(100))]
    texts = columns.texts([f"{uid:016x}" for uid in uids])
    assert uid_numbers(texts).tolist() == uids
    assert uid_numbers(pa.chunked_array([texts.slice(0, 3), texts.slice(3)])).tolist() == uids
    assert uid_numbers(texts.slice(5)).tolist() == uids[5:]


def test_words_of_a_column_are_those_that_occur_and_null() -> None:
    words = ["a", "b", "c"]
    assert columns.words_of(columns.some_names(np.array([2, 0, 2]), words)) == ["a", "c"]
    assert columns.words_of(columns.some_names(np.array([1, -1]), words)) == [None, "b"]
