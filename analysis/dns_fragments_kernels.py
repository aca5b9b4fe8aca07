"""IP fragments of DNS messages put together, in a loop over message candidates. The rules: dns_fragments.py."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from analysis.kernel_compiler import inner, kernel
from analysis.layout import FRAGMENT_FIRST, FRAGMENT_LAST, FRAGMENT_NONE, NANOSECONDS

Bytes = npt.NDArray[np.uint8]
Int = Any  # of Python, or of numpy where numba is off
Record = Any
Records = npt.NDArray[np.void]
Integers = npt.NDArray[np.int64]

DATAGRAM: Final = np.dtype(
    [
        ("key", "u8"),  # 0 = nothing waits here
        ("ts", "i8"),  # of the fragment that came first
        ("length", "i8"),  # of the UDP payload; -1 until its last fragment came
        ("readable", "i8"),  # bytes before the first one that a snaplen cut off
        ("captured", "i8"),  # bytes of all its fragments, an upper bound
        ("blocks", "i4"),  # of eight bytes, that came
        ("has_first", "u1"),
    ],
    align=True,
)
PAYLOAD_BYTES: Final = 1 << 16
BLOCK: Final = 8
"""Where a fragment begins is counted in these (RFC 791); the UDP header has as many bytes."""
SHORTEST: Final = 4
"""Of a message: id and flags."""
TIMEOUT_NS: Final = 60 * NANOSECONDS

# What lasts between two calls, and what a call tells, as positions in one int64 array.
OLDEST, MESSAGE_COUNT, BYTE_COUNT, STATE_SIZE = range(4)
NEVER: Final = np.iinfo(np.int64).max


@inner
def begin(d: Record, m: Record, covered: Bytes) -> None:
    d["key"] = m["datagram"]
    d["ts"] = m["ts"]
    d["length"] = -1
    d["readable"] = PAYLOAD_BYTES
    d["captured"] = 0
    d["blocks"] = 0
    d["has_first"] = 0
    covered[:] = 0


@inner
def add(d: Record, m: Record, data: Bytes, payload: Bytes, covered: Bytes) -> Any:
    """Put a fragment where it belongs, over what may be there; False if no datagram is that long."""
    position = np.int64(0)
    if m["fragment"] != FRAGMENT_FIRST:
        position = np.int64(m["fragment_offset"]) - BLOCK
    end = position + np.int64(m["length"])
    if end > PAYLOAD_BYTES:
        return False
    for k in range(m["captured"]):
        payload[position + k] = data[m["offset"] + k]
    d["captured"] = min(d["captured"] + m["captured"], PAYLOAD_BYTES)
    if m["captured"] < m["length"]:
        d["readable"] = min(d["readable"], position + m["captured"])
    blocks_end = end // BLOCK
    if m["fragment"] == FRAGMENT_LAST:
        d["length"] = end
        blocks_end = (end + BLOCK - 1) // BLOCK
    for block in range(position // BLOCK, blocks_end):
        if covered[block] == 0:
            covered[block] = 1
            d["blocks"] += 1
    return True


@inner
def put_message(
    d: Record, first: Record, last: Record, payload: Bytes, covered: Bytes, messages: Records, out: Bytes,
    state: Integers,
) -> None:  # fmt: skip
    """Write what came of a datagram from its begin on, as a message with the time and place of `last`."""
    blocks = 0
    while blocks < covered.size and covered[blocks] != 0:
        blocks += 1
    captured = max(min(blocks * BLOCK, d["readable"]), first["captured"])
    if d["length"] >= 0:
        captured = min(captured, d["length"])
    d["key"] = 0
    d["has_first"] = 0
    d["captured"] = 0
    if captured < SHORTEST:
        return
    m = messages[state[MESSAGE_COUNT]]
    messages[state[MESSAGE_COUNT]] = first
    m["ts"] = last["ts"]
    m["frame_number"] = last["frame_number"]
    m["segment"] = last["segment"]
    m["offset"] = state[BYTE_COUNT]
    m["captured"] = captured
    m["length"] = max(d["length"], captured)
    if d["length"] >= 0 and d["blocks"] * BLOCK >= d["length"]:
        m["fragment"] = FRAGMENT_NONE  # whole
    m["is_reassembled"] = 1
    for k in range(captured):
        out[state[BYTE_COUNT] + k] = payload[k]
    state[MESSAGE_COUNT] += 1
    state[BYTE_COUNT] += captured


@kernel
def reassemble(
    data: Bytes, candidates: Records, datagrams: Records, firsts: Records, payloads: Bytes, covered: Bytes,
    messages: Records, out: Bytes, state: Integers,
) -> None:  # fmt: skip
    """Copy candidates to `messages`, but for fragments: of them come the datagrams, at the place of the last one.

    A datagram has one place in `datagrams`, `firsts` (its first fragment), `payloads` and `covered` (which blocks
    came). Bytes of what was put together go to `out`.
    """
    for i in range(candidates.size):
        m = candidates[i]
        if state[OLDEST] != NEVER and m["ts"] - state[OLDEST] > TIMEOUT_NS:
            state[OLDEST] = NEVER
            for k in range(datagrams.size):
                d = datagrams[k]
                if d["has_first"] and m["ts"] - d["ts"] > TIMEOUT_NS:
                    put_message(d, firsts[k], firsts[k], payloads[k], covered[k], messages, out, state)
                elif d["has_first"]:
                    state[OLDEST] = min(state[OLDEST], d["ts"])
        if m["fragment"] == FRAGMENT_NONE:
            messages[state[MESSAGE_COUNT]] = m
            state[MESSAGE_COUNT] += 1
            continue
        at = np.int64((m["datagram"] ^ (m["datagram"] >> np.uint64(32))) % np.uint64(datagrams.size))
        d = datagrams[at]
        if d["key"] != m["datagram"] or m["ts"] - d["ts"] > TIMEOUT_NS:
            if m["fragment"] != FRAGMENT_FIRST and (m["has_ports"] or d["has_first"]):
                continue  # no DNS, as its first fragment told; or not worth another one's place
            if d["has_first"]:
                put_message(d, firsts[at], firsts[at], payloads[at], covered[at], messages, out, state)
            begin(d, m, covered[at])
        if not add(d, m, data, payloads[at], covered[at]):
            continue
        if m["fragment"] == FRAGMENT_FIRST and not d["has_first"]:
            d["has_first"] = 1
            firsts[at] = m
            state[OLDEST] = min(state[OLDEST], d["ts"])
        if d["has_first"] and d["length"] >= 0 and d["blocks"] * BLOCK >= d["length"]:
            put_message(d, firsts[at], m, payloads[at], covered[at], messages, out, state)


@kernel
def give_up(
    datagrams: Records, firsts: Records, payloads: Bytes, covered: Bytes, messages: Records, out: Bytes,
    state: Integers,
) -> None:  # fmt: skip
    """Make messages of what came of all datagrams that still wait."""
    for k in range(datagrams.size):
        if datagrams[k]["has_first"]:
            put_message(datagrams[k], firsts[k], firsts[k], payloads[k], covered[k], messages, out, state)
    state[OLDEST] = NEVER
