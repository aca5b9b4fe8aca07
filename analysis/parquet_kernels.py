"""Loops that encode a page of Parquet: https://parquet.apache.org/docs/file-format/data-pages/encodings/

Values are int64, without the nulls; each encoder writes to out[at:] and returns where it ends.
"""

from __future__ import annotations

import numpy as np

from analysis.kernel_compiler import inner, kernel
from analysis.loads import put32, put64

PLAIN, DELTA, INDEXES, NUMBERS, LONG_DELTA = range(5)
"""How a column is encoded: as uint32; as steps (DELTA_BINARY_PACKED) of 32 or, LONG_DELTA, of 64 bits; as indexes into
a dictionary (RLE_DICTIONARY) that INDEXES are already, and that NUMBERS below NUMBER_LIMIT become here."""
NUMBER_LIMIT = 1 << 16
NOT_MET = -1

BLOCK_VALUES = 128
MINIBLOCK_VALUES = 32
MINIBLOCKS = BLOCK_VALUES // MINIBLOCK_VALUES
LEVEL_BITS = 32
BYTES_PER_VALUE = 12
"""More than any encoding needs of a long column."""


@inner
def width_of(value):
    """Bits of an unsigned number."""
    value = np.uint64(value)
    width = 0
    while value:
        value >>= np.uint64(1)
        width += 1
    return width


@inner
def put_varint(value, out, at):
    """ULEB128."""
    value = np.uint64(value)
    while value >= np.uint64(128):
        out[at] = (value & np.uint64(127)) | np.uint64(128)
        value >>= np.uint64(7)
        at += 1
    out[at] = value
    return at + 1


@inner
def put_zigzag(value, out, at):
    return put_varint((np.int64(value) << 1) ^ (np.int64(value) >> 63), out, at)


@inner
def pack(values, base, mask, width, out, at):
    """values - base (modulo mask + 1), `width` bits each, from the lowest bit on; to a whole number of bytes.

    Up to 7 bytes behind them are overwritten."""
    word = np.uint64(0)
    filled = np.uint64(0)
    bits = np.uint64(width)
    for i in range(len(values)):
        value = np.uint64(values[i] - base) & mask
        word |= value << filled
        filled += bits
        if filled >= np.uint64(64):
            put64(out, at, word)
            at += 8
            filled -= np.uint64(64)
            word = value >> (bits - filled) if filled else np.uint64(0)
    put64(out, at, word)
    return at + ((np.int64(filled) + 7) >> 3)


@inner
def put_delta(values, is_long, steps, out, at):
    """DELTA_BINARY_PACKED: the first value, then steps in blocks of 128, each above the block's least.

    `steps`: room for a block."""
    mask = np.uint64(0xFFFFFFFFFFFFFFFF) if is_long else np.uint64(0xFFFFFFFF)
    cut = np.int64(0) if is_long else np.int64(32)
    count = len(values)
    at = put_varint(BLOCK_VALUES, out, at)
    at = put_varint(MINIBLOCKS, out, at)
    at = put_varint(count, out, at)
    at = put_zigzag((values[0] << cut) >> cut, out, at)
    for first in range(1, count, BLOCK_VALUES):
        length = min(BLOCK_VALUES, count - first)
        before = values[first - 1 : first - 1 + length]
        after = values[first : first + length]
        for i in range(min(length, len(before), len(after), len(steps))):
            steps[i] = ((after[i] - before[i]) << cut) >> cut
        least = steps[0]
        for i in range(min(length, len(steps))):
            least = min(least, steps[i])
        at = put_zigzag(least, out, at)
        widths_at = at
        for k in range(MINIBLOCKS):
            out[at + k] = 0
        at += MINIBLOCKS
        steps[length:] = least  # a miniblock is padded to its full length
        for k in range(0, length, MINIBLOCK_VALUES):
            part = steps[k : k + MINIBLOCK_VALUES]
            used = np.uint64(0)
            for i in range(len(part)):
                used |= np.uint64(part[i] - least) & mask
            width = width_of(used)
            out[widths_at + k // MINIBLOCK_VALUES] = width
            if width:
                at = pack(part, least, mask, width, out, at)
    return at


@inner
def put_indexes(values, out, at):
    """RLE_DICTIONARY: the width, then one run if all are the same, else all bit-packed in groups of eight."""
    least = values[0]
    most = values[0]
    for i in range(len(values)):
        least = min(least, values[i])
        most = max(most, values[i])
    width = max(width_of(most), 1)
    out[at] = width
    at += 1
    if least == most:
        at = put_varint(len(values) << 1, out, at)
        put32(out, at, most)
        return at + ((width + 7) >> 3)
    groups = (len(values) + 7) >> 3
    at = put_varint(groups << 1 | 1, out, at)
    end = at + groups * width
    reached = pack(values, np.int64(0), np.uint64(0xFFFFFFFFFFFFFFFF), width, out, at)
    while reached < end:
        out[reached] = 0
        reached += 1
    return end


@inner
def number_all(values, place_of, met, known):
    """Each value becomes its place among those met so far (`met`, of which `known` are), which is returned."""
    for i in range(len(values)):
        value = values[i]
        place = np.int64(place_of[value])
        if place == NOT_MET:
            place = known
            place_of[value] = known
            met[known] = value
            known += 1
        values[i] = place
    return known


@inner
def put_plain(values, out, at):
    """PLAIN, of 32 bits."""
    for i in range(len(values)):
        put32(out, at + 4 * i, values[i])
    return at + 4 * len(values)


@inner
def put_bits(valid, bit, every, some, out, at):
    """The hybrid of runs and bit-packing with its length before it: one bit for each row, whether it has `bit`."""
    start = at
    at += 4
    if not some & bit or every & bit:
        at = put_varint(len(valid) << 1, out, at)
        out[at] = 1 if some & bit else 0
        at += 1
    else:
        groups = (len(valid) + 7) >> 3
        at = put_varint(groups << 1 | 1, out, at)
        for group in range(groups):
            byte = 0
            part = valid[8 * group : 8 * group + 8]
            for i in range(len(part)):
                byte |= np.int64(part[i] & bit != 0) << i
            out[at] = byte
            at += 1
    put32(out, start, at - start - 4)
    return at


@inner
def load(column, valid, bit, is_all, values):
    """The column's values that are not null, or all: to `values`. Returns their number."""
    if is_all:
        for i in range(min(len(column), len(values))):
            values[i] = column[i]
        return len(column)
    count = np.int64(0)
    for i in range(min(len(column), len(valid))):
        values[count] = column[i]
        count += np.int64(valid[i] & bit != 0)
    return count


@inner
def load_any(rows, number, count, valid, bit, is_all, values):
    """load() of the column with that number among all of `rows`."""
    if number < len(rows.wide):
        return load(rows.wide[number, :count], valid, bit, is_all, values)
    number -= len(rows.wide)
    if number < len(rows.words):
        return load(rows.words[number, :count], valid, bit, is_all, values)
    number -= len(rows.words)
    if number < len(rows.halves):
        return load(rows.halves[number, :count], valid, bit, is_all, values)
    number -= len(rows.halves)
    if number < len(rows.octets):
        return load(rows.octets[number, :count], valid, bit, is_all, values)
    return load(rows.places[number - len(rows.octets), :count], valid, bit, is_all, values)


@kernel
def encode_page(rows, count, plan, memory, out, spans, levels, level_spans):
    """The first `count` rows of the columns (parquet_pages.Columns), each to out[spans[column]], nothing if all null.

    plan[column]: the bit of `valid` that says where it is not null (0: nowhere null), how it is encoded, and which
    numbering it has. levels[level_spans[k]]: for bit k of `valid`, in which rows it is set (definition levels).
    """
    valid = rows.valid[:count]
    every = np.uint32(0xFFFFFFFF)
    some = np.uint32(0)
    for i in range(len(valid)):
        every &= valid[i]
        some |= valid[i]
    at = np.int64(0)
    for k in range(LEVEL_BITS):
        level_spans[k, 0] = at
        at = put_bits(valid, np.uint32(1) << np.uint32(k), every, some, levels, at)
        level_spans[k, 1] = at
    at = np.int64(0)
    for number in range(len(plan)):
        bit = np.uint32(plan[number, 0])
        how = plan[number, 1]
        which = plan[number, 2]
        spans[number, 0] = at
        if not bit or some & bit:
            known = load_any(rows, number, count, valid, bit, not bit or every & bit != 0, memory.values)
            values = memory.values[:known]
            if how == NUMBERS:
                place_of, met = memory.place_of[which], memory.met[which]
                memory.known[which] = number_all(values, place_of, met, memory.known[which])
            if how == PLAIN:
                at = put_plain(values, out, at)
            elif how == DELTA or how == LONG_DELTA:
                at = put_delta(values, how == LONG_DELTA, memory.steps, out, at)
            else:
                at = put_indexes(values, out, at)
        spans[number, 1] = at
