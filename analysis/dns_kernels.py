"""DNS messages to transactions, in loops. dns.py says what the rules are."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from analysis.kernel_compiler import inner, kernel
from analysis.layout import FRAGMENT_NONE

Bytes = npt.NDArray[np.uint8]
Int = Any  # of Python, or of numpy where numba is off
Record = Any
Records = npt.NDArray[np.void]
Integers = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]
Indexes = npt.NDArray[np.int32]

TRANSACTION: Final = np.dtype(
    [
        ("flow_uid", "u8"),
        ("flow_first_seen", "i8"),
        ("client_hi", "u8"),
        ("client_lo", "u8"),
        ("server_hi", "u8"),
        ("server_lo", "u8"),
        ("dialogue", "u8"),  # dialogue_key of its messages
        ("question", "u8"),  # hash of name and type, NO_QUESTION if unreadable
        ("query_ts", "i8"),
        ("last_query_ts", "i8"),
        ("response_ts", "i8"),
        ("query_frame", "i8"),  # -1 = no query seen
        ("response_frame", "i8"),  # -1 = no response seen
        ("query_offset", "i8"),  # of the name in the text
        ("answers_offset", "i8"),
        ("query_length", "i4"),  # 0 = no readable question
        ("answers_length", "i4"),  # 0 = no answers
        ("query_segment", "i4"),  # -1 = no query seen
        ("response_segment", "i4"),  # -1 = no response seen
        ("interface", "i4"),
        ("attempts", "i4"),
        ("dialogue_previous", "i4"),  # the query before this one in its dialogue; -1 = none
        ("spare", "i4"),  # the response that answers it if nothing better comes; -1 = none
        ("walk_previous", "i4"),  # the failure before this one under the same walk key; -1 = none
        ("walk_prefix", "i4"),  # bytes of the name before the search suffix, where a walk has shown it; else 0
        ("client_port", "u2"),
        ("server_port", "u2"),
        ("trans_id", "u2"),
        ("qtype", "u2"),
        ("rcode", "u2"),
        ("transport", "u1"),
        ("status", "u1"),  # ANSWERED, UNANSWERED, UNMATCHED_RESPONSE
        ("phase", "u1"),  # OPEN, HELD, DONE, TAKEN, SPARE
        ("truncated", "u1"),
        ("search_expansion", "u1"),
    ],
    align=True,
)

ANSWERED: Final = 0
UNANSWERED: Final = 1
UNMATCHED_RESPONSE: Final = 2

OPEN: Final = 0  # waits for its response
HELD: Final = 1  # failed; waits whether the client goes on with another search suffix
DONE: Final = 2  # a row that nobody has taken yet
TAKEN: Final = 3  # its row is gone; remembered so that a second response is known as one
SPARE: Final = 4  # a response to another question than was asked; waits whether its query gets a better one

# What lasts between two calls, as positions in one int64 array.
COUNT, TEXT_USED, DONE_COUNT, SINCE_SWEEP, CLOCK, STATE_SIZE = range(6)

SECOND: Final = 1_000_000_000
UNANSWERED_AFTER_NS: Final = 300 * SECOND
DUPLICATE_WITHIN_NS: Final = 10 * SECOND
WALK_WITHIN_NS: Final = 10 * SECOND
WALK_CANDIDATES: Final = 8
SPARE_WITHIN_NS: Final = 10 * SECOND
SPARE_CANDIDATES: Final = 8
SWEEP_EVERY: Final = 1 << 17
NXDOMAIN: Final = 3
NO_QUESTION: Final = np.uint64(0)


# --- keys --------------------------------------------------------------------------------------------------------
# Keys are 64-bit hashes, trusted without a second look: a flow_uid is one already. xorshift, since products of
# numpy scalars warn where numba is off.


@inner
def mix(h: Int, value: Int) -> Int:
    h = np.uint64(h) ^ np.uint64(value)
    h ^= h << np.uint64(13)
    h ^= h >> np.uint64(7)
    return h ^ (h << np.uint64(17))


@inner
def hash_text(h: Int, text: Bytes, start: Int, end: Int) -> Int:
    word = 0
    for i in range(start, end):
        word = ((word & 0xFFFFFFFFFFFF) << 8) | np.int64(text[i])
        if (i - start) % 7 == 6:
            h = mix(h, word)
            word = 0
    return mix(mix(h, word), end - start + 1)


@inner
def dialogue_key(m: Record) -> Int:
    """Of the messages with one id that one client of a flow sends and gets."""
    client_lo, client_port = (m["dst_lo"], m["dst_port"]) if m["is_response"] else (m["src_lo"], m["src_port"])
    return mix(mix(m["flow_uid"], client_lo), (np.int64(client_port) << 16) | np.int64(m["trans_id"]))


@inner
def walk_key(t: Record, text: Bytes) -> Int:
    """Of what one client at one observation point asks for one type and names with one first label."""
    end = t["query_offset"]
    while end < t["query_offset"] + t["query_length"] and text[end] != 46:
        end += 1
    h = mix(mix(t["client_hi"], t["client_lo"]), (np.int64(t["interface"]) + 1) << 16 | np.int64(t["qtype"]))
    return hash_text(h, text, t["query_offset"], end)


@inner
def find(keys: Keys, values: Indexes, key: Int) -> Int:
    """The slot of a key, or the free one where it belongs. The size is a power of two and never full."""
    mask = np.uint64(keys.size - 1)
    slot = (key ^ (key >> np.uint64(32))) & mask
    while values[slot] >= 0 and keys[slot] != key:
        slot = (slot + np.uint64(1)) & mask
    return np.int64(slot)


@inner
def remember(keys: Keys, values: Indexes, key: Int, index: Int) -> Int:
    """Let `key` mean transaction `index`; returns which one it meant before, -1 for none."""
    slot = find(keys, values, key)
    before = np.int64(values[slot])
    keys[slot] = key
    values[slot] = index
    return before


# --- messages to transactions ------------------------------------------------------------------------------------


@inner
def find_transaction(dialogue: Int, question: Int, transactions: Records, keys: Keys, values: Indexes) -> Int:
    """The latest transaction of a dialogue with this question; -1 for none.

    A message without a readable question takes the dialogue's latest, and so does any other if the question of that
    one was unreadable.
    """
    index = np.int64(values[find(keys, values, mix(dialogue, question))])
    if index < 0:
        index = np.int64(values[find(keys, values, mix(dialogue, NO_QUESTION))])
        if index >= 0 and transactions[index]["question"] != NO_QUESTION:
            index = np.int64(-1)
    return index


@inner
def enter(t: Record, index: Int, keys: Keys, values: Indexes) -> None:
    """Let a transaction be found by its question, and as the latest of its dialogue."""
    latest = mix(t["dialogue"], NO_QUESTION)
    t["dialogue_previous"] = values[find(keys, values, latest)]
    remember(keys, values, mix(t["dialogue"], t["question"]), index)
    remember(keys, values, latest, index)


@inner
def find_waiting(dialogue: Int, ts: Int, transactions: Records, keys: Keys, values: Indexes) -> Int:
    """The earliest open query of a dialogue that has no spare response, and is not too old for one; -1 for none."""
    found = np.int64(-1)
    index = np.int64(values[find(keys, values, mix(dialogue, NO_QUESTION))])
    for _ in range(SPARE_CANDIDATES):
        if index < 0:
            break
        t = transactions[index]
        if t["phase"] == OPEN and t["spare"] < 0 and 0 <= ts - t["last_query_ts"] <= SPARE_WITHIN_NS:
            found = index
        index = np.int64(t["dialogue_previous"])
    return found


@inner
def shared_by_walk(text: Bytes, f: Int, f_size: Int, n: Int, n_size: Int, known: Int) -> Int:
    """Bytes of the name typed by the application if text[n:] follows the failed text[f:] on a search list, else 0."""
    same = 0
    while same < f_size and same < n_size and text[f + same] == text[n + same]:
        same += 1
    if same < f_size and same == n_size and text[f + same] == 46:
        return n_size
    if 0 < known < min(f_size, same) and text[n + known] == 46 and max(f_size, n_size) > same:
        return known
    label = same
    while label > 0 and text[f + label - 1] != 46:
        label -= 1
    rest = label
    while rest < f_size and text[f + rest] != 46:
        rest += 1
    rest += 1
    if label == 0 or f_size - rest != n_size - label:
        return 0
    dots = 0
    for i in range(n_size - label):
        if text[f + rest + i] != text[n + label + i]:
            return 0
        dots += np.int64(text[n + label + i] == 46)
    is_svc = rest - label == 4 and text[f + label] == 115 and text[f + label + 1] == 118 and text[f + label + 2] == 99
    return label - 1 if dots > 0 or is_svc else 0


@inner
def finish(t: Record, index: Int, done: Indexes, state: Integers) -> None:
    t["phase"] = DONE
    done[state[DONE_COUNT]] = index
    state[DONE_COUNT] += 1


@inner
def dismiss_spare(t: Record, transactions: Records, done: Indexes, state: Integers) -> None:
    """The query got a better response, or its client asks again: the spare one answers nothing."""
    if t["spare"] >= 0:
        finish(transactions[t["spare"]], t["spare"], done, state)
        t["spare"] = -1


@inner
def take_spare(t: Record, transactions: Records) -> None:
    """Nothing better came: let the spare response answer."""
    if t["spare"] < 0:
        return
    spare = transactions[t["spare"]]
    spare["phase"] = TAKEN
    t["spare"] = -1
    t["status"] = ANSWERED
    t["rcode"] = spare["rcode"]
    t["truncated"] = spare["truncated"]
    t["response_ts"] = spare["response_ts"]
    t["response_frame"] = spare["response_frame"]
    t["response_segment"] = spare["response_segment"]
    t["answers_offset"] = spare["answers_offset"]
    t["answers_length"] = spare["answers_length"]


@inner
def continue_walk(
    t: Record, transactions: Records, keys: Keys, values: Indexes, text: Bytes,
    done: Indexes, state: Integers,
) -> None:  # fmt: skip
    """Mark the failed transaction of which the new one, `t`, is the next try."""
    index = np.int64(values[find(keys, values, walk_key(t, text))])
    for _ in range(WALK_CANDIDATES):
        if index < 0:
            return
        f = transactions[index]
        if f["phase"] == HELD and t["query_ts"] - f["response_ts"] <= WALK_WITHIN_NS:
            shared = shared_by_walk(
                text, f["query_offset"], f["query_length"], t["query_offset"], t["query_length"], f["walk_prefix"]
            )
            if shared > 0:
                f["search_expansion"] = 1
                t["walk_prefix"] = shared
                finish(f, index, done, state)
                return
        index = np.int64(f["walk_previous"])


@inner
def append_text(text: Bytes, state: Integers, source: Bytes, start: Int, length: Int) -> Int:
    offset = state[TEXT_USED]
    for i in range(length):
        text[offset + i] = source[start + i]
    state[TEXT_USED] += length
    return offset


@inner
def begin(t: Record, m: Record, dialogue: Int, question: Int) -> None:
    """Make `t` what a first query, or a response without one, tells."""
    response = m["is_response"] != 0
    t["flow_uid"] = m["flow_uid"]
    t["flow_first_seen"] = m["flow_first_seen"]
    t["client_hi"] = m["dst_hi"] if response else m["src_hi"]
    t["client_lo"] = m["dst_lo"] if response else m["src_lo"]
    t["server_hi"] = m["src_hi"] if response else m["dst_hi"]
    t["server_lo"] = m["src_lo"] if response else m["dst_lo"]
    t["client_port"] = m["dst_port"] if response else m["src_port"]
    t["server_port"] = m["src_port"] if response else m["dst_port"]
    t["dialogue"] = dialogue
    t["question"] = question
    t["query_ts"] = m["ts"]
    t["last_query_ts"] = m["ts"]
    t["response_ts"] = m["ts"]
    t["query_frame"] = -1 if response else m["frame_number"]
    t["query_segment"] = -1 if response else m["segment"]
    t["response_frame"] = -1
    t["response_segment"] = -1
    t["query_offset"] = 0
    t["query_length"] = 0
    t["answers_offset"] = 0
    t["answers_length"] = 0
    t["interface"] = m["interface"]
    t["attempts"] = 0 if response else 1
    t["dialogue_previous"] = -1
    t["spare"] = -1
    t["walk_previous"] = -1
    t["walk_prefix"] = 0
    t["trans_id"] = m["trans_id"]
    t["qtype"] = m["qtype"]
    t["rcode"] = 0
    t["transport"] = m["transport"]
    t["status"] = UNMATCHED_RESPONSE if response else UNANSWERED
    t["phase"] = OPEN
    t["truncated"] = 0
    t["search_expansion"] = 0


@inner
def keep_question(t: Record, m: Record, source: Bytes, text: Bytes, state: Integers) -> None:
    """Count `t` as a transaction, with its name."""
    t["query_offset"] = append_text(text, state, source, m["query_offset"], m["query_length"])
    t["query_length"] = m["query_length"]
    state[COUNT] += 1


@inner
def keep_response(t: Record, m: Record, source: Bytes, text: Bytes, state: Integers) -> None:
    t["rcode"] = m["rcode"]
    t["truncated"] = m["truncated"]
    t["response_ts"] = m["ts"]
    t["response_frame"] = m["frame_number"]
    t["response_segment"] = m["segment"]
    t["answers_offset"] = append_text(text, state, source, m["answers_offset"], m["answers_length"])
    t["answers_length"] = m["answers_length"]


@kernel
def transact(
    messages: Records, first: Int, source: Bytes, transactions: Records, keys: Keys, values: Indexes, text: Bytes,
    done: Indexes, state: Integers,
) -> Int:  # fmt: skip
    """Take messages from number `first` on, with their text in `source`, into the transactions.

    Returns the number of the message before which there must be more room or a sweep.
    """
    for i in range(first, messages.size):
        m = messages[i]
        index = state[COUNT]
        if index == transactions.size or state[SINCE_SWEEP] >= SWEEP_EVERY:
            return i
        if text.size - state[TEXT_USED] < m["query_length"] + m["answers_length"]:
            return i
        if m["is_dns"] == 0:
            continue
        state[SINCE_SWEEP] += 1
        state[CLOCK] = max(state[CLOCK], m["ts"])
        question = NO_QUESTION
        if m["query_length"] > 0:
            name_end = m["query_offset"] + m["query_length"]
            question = hash_text(np.uint64(m["qtype"]), source, m["query_offset"], name_end) | np.uint64(1)
        dialogue = dialogue_key(m)
        found = find_transaction(dialogue, question, transactions, keys, values)
        f = transactions[max(found, 0)]
        t = transactions[index]  # the new one, if there is to be one
        is_open = found >= 0 and f["phase"] == OPEN and m["ts"] - f["last_query_ts"] <= UNANSWERED_AFTER_NS
        # A minute later a fragment is known to be all that came: if the client asked again, it did not take it.
        is_late = m["fragment"] != FRAGMENT_NONE and f["attempts"] > 1 and m["ts"] < f["last_query_ts"]
        if m["is_response"] == 0:
            if is_open and f["question"] == question:
                dismiss_spare(f, transactions, done, state)
                f["attempts"] += 1
                f["last_query_ts"] = m["ts"]
                continue
            begin(t, m, dialogue, question)
            keep_question(t, m, source, text, state)
            enter(t, index, keys, values)
            continue_walk(t, transactions, keys, values, text, done, state)
        elif is_open and not is_late:
            dismiss_spare(f, transactions, done, state)
            keep_response(f, m, source, text, state)
            f["status"] = ANSWERED
            empty = m["rcode"] == 0 and m["no_answers"] != 0 and m["truncated"] == 0
            if f["query_length"] > 0 and (m["rcode"] == NXDOMAIN or empty):
                f["phase"] = HELD
                f["walk_previous"] = remember(keys, values, walk_key(f, text), found)
            else:
                finish(f, found, done, state)
        elif found < 0 or f["status"] != ANSWERED or m["ts"] - f["response_ts"] > DUPLICATE_WITHIN_NS:
            begin(t, m, dialogue, question)
            keep_question(t, m, source, text, state)
            keep_response(t, m, source, text, state)
            waiting = find_waiting(dialogue, m["ts"], transactions, keys, values)
            if waiting >= 0:
                t["phase"] = SPARE
                transactions[waiting]["spare"] = index
            else:
                finish(t, index, done, state)
    return messages.size


# --- keeping and forgetting --------------------------------------------------------------------------------------


@kernel
def sweep(transactions: Records, done: Indexes, state: Integers, patience: Int, walk_patience: Int) -> Int:
    """Finish what has waited too long; returns how many transactions are still open."""
    still_open = 0
    for i in range(state[COUNT]):
        t = transactions[i]
        if (t["phase"] == OPEN and state[CLOCK] - t["last_query_ts"] > patience) or (
            t["phase"] == HELD and state[CLOCK] - t["response_ts"] > walk_patience
        ):
            take_spare(t, transactions)
            finish(t, i, done, state)
        still_open += t["phase"] == OPEN
    return still_open


@kernel
def index(transactions: Records, count: Int, keys: Keys, values: Indexes, text: Bytes) -> None:
    """Enter the keys of the first `count` transactions into an empty table."""
    for i in range(count):
        t = transactions[i]
        if t["phase"] == SPARE:
            continue
        enter(t, i, keys, values)
        t["walk_previous"] = remember(keys, values, walk_key(t, text), i) if t["phase"] == HELD else -1


@kernel
def gather(text: Bytes, offsets: Integers, ends: Indexes, pieces: Bytes) -> None:
    """Copies what begins at each offset in the text to pieces[ends[i] : ends[i + 1]]."""
    for i in range(offsets.size):
        for j in range(ends[i + 1] - ends[i]):
            pieces[ends[i] + j] = text[offsets[i] + j]
