"""DNS messages in IP fragments: whatever their order, and wherever the capture is cut, one message at its last part."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.dns_fragments import DATAGRAMS, Fragments
from analysis.dns_message_kernels import MESSAGE, find_candidates
from analysis.layout import FRAGMENT_FIRST, FRAGMENT_LAST, FRAGMENT_LATER
from tests import naive_dns
from tests.test_dns import MS, SECOND, Capture, message, record

ANSWERS = [record(1, bytes([192, 0, 2, number])) for number in range(8)]
RESPONSE = message(7, "example.com", 1, ANSWERS)
ALL_ANSWERS = ", ".join(f"A 192.0.2.{number}" for number in range(8))
CUTS = [0, 48, 104, len(RESPONSE)]
"""Three fragments: the UDP header and each cut are whole blocks of eight bytes."""


def fragments(payload: bytes, cuts: list[int], **fields: int) -> list[tuple[bytes, dict[str, int]]]:
    """Payload and PACKET fields of each fragment."""
    parts = []
    for begin, end in pairwise(cuts):
        kind = FRAGMENT_FIRST if begin == 0 else FRAGMENT_LAST if end == len(payload) else FRAGMENT_LATER
        offset = begin + 8 if begin else 0
        parts.append((payload[begin:end], {"fragment": kind, "fragment_offset": offset, "ip_id": 1, **fields}))
    return parts


def add(capture: Capture, ts: int, payload: bytes, fields: dict[str, int], *, after_first: bool, **more: Any) -> None:
    """A fragment of a response as the flow stage hands it on: without ports, and flow, if it came before the first."""
    values: dict[str, Any] = {"response": True} | more | fields
    if not after_first and fields["fragment"] != FRAGMENT_FIRST:
        values |= {"has_ports": 0, "flow_uid": 0, "port": 0, "server_port": 0}
    capture.add(ts, payload, **values)


def answered(order: list[int], **more: Any) -> Capture:
    """A query at 0, and the response's fragments in this order, from 1 ms on."""
    capture = Capture()
    capture.query(0)
    parts = fragments(RESPONSE, CUTS)
    for step, part in enumerate(order):
        add(capture, (step + 1) * MS, *parts[part], after_first=0 in order[:step], **more)
    return capture


@pytest.mark.parametrize("order", [[0, 1, 2], [0, 2, 1], [2, 1, 0], [1, 0, 2], [2, 0, 1, 2, 0], [0, 0, 2, 1]])
def test_a_message_ends_with_the_fragment_that_completes_it(order: list[int]) -> None:
    row = answered(order).row()
    last = next(n for n in range(len(order)) if {0, 1, 2} <= set(order[: n + 1])) + 1
    assert (row["status"], row["latency_ns"], row["response_frame"]) == ("answered", last * MS, last + 1)
    assert row["answers"] == ALL_ANSWERS


def test_an_incomplete_message_counts_with_what_came_from_its_begin_on() -> None:
    row = answered([0, 2]).row()
    assert (row["status"], row["latency_ns"], row["response_frame"]) == ("answered", MS, 2)
    assert row["answers"] == "A 192.0.2.0"
    row = answered([0, 1]).row()
    assert (row["latency_ns"], row["answers"]) == (MS, ", ".join(f"A 192.0.2.{number}" for number in range(4)))


def test_without_its_first_fragment_a_message_is_none() -> None:
    assert answered([1, 2]).row()["status"] == "unanswered"


def test_an_incomplete_message_is_given_up_after_a_minute() -> None:
    capture = answered([0, 1])
    capture.query(SECOND, trans_id=8)
    add(capture, MS + 60 * SECOND + 1, *fragments(RESPONSE, CUTS)[2], after_first=True)
    assert [(row["status"], row["latency_ns"]) for row in capture.rows()] == [("answered", MS), ("unanswered", None)]


def test_a_client_that_asks_again_did_not_take_an_incomplete_message() -> None:
    capture = answered([0, 1])
    capture.query(5 * SECOND)
    assert [(row["status"], row["attempts"]) for row in capture.rows()] == [
        ("unanswered", 2),
        ("unmatched_response", 0),
    ]


def test_a_query_in_fragments_begins_with_its_last_one() -> None:
    capture = Capture()
    name = ".".join(["x" * 60] * 3)
    query = message(7, name)
    for ts, (payload, fields) in enumerate(fragments(query, [0, 64, len(query)])):
        capture.add(ts, payload, **fields)
    row = capture.row()
    assert (row["query"], row["query_ts"], row["query_frame"]) == (name, 1, 2)


def test_answers_that_the_snaplen_cut_off_a_fragment_end_the_message() -> None:
    capture = Capture()
    capture.query(0)
    parts = fragments(RESPONSE, CUTS)
    add(capture, MS, *parts[0], after_first=True)
    add(capture, 2 * MS, *parts[1], after_first=True, cut=20)
    add(capture, 3 * MS, *parts[2], after_first=True)
    row = capture.row()
    assert (row["latency_ns"], row["answers"]) == (3 * MS, "A 192.0.2.0, A 192.0.2.1, A 192.0.2.2")


def test_fragments_of_other_datagrams_do_not_mix() -> None:
    capture = Capture()
    capture.query(0)
    capture.query(0, trans_id=9)
    other = message(9, "example.com", 1, ANSWERS[::-1])
    for step, (one, two) in enumerate(zip(fragments(RESPONSE, CUTS), fragments(other, CUTS, ip_id=2), strict=True)):
        add(capture, (2 * step + 1) * MS, *one, after_first=True)
        add(capture, (2 * step + 2) * MS, *two, after_first=True)
    rows = {row["trans_id"]: row for row in capture.rows()}
    assert (rows[7]["latency_ns"], rows[9]["latency_ns"]) == (5 * MS, 6 * MS)
    assert rows[7]["answers"] == ALL_ANSWERS


def test_many_fragments_without_a_first_one_do_not_drive_out_a_message() -> None:
    capture = Capture()
    capture.query(0)
    parts = fragments(RESPONSE, CUTS)
    for part in parts[:2]:
        add(capture, MS, *part, after_first=True)
    for ip_id in range(2, 4 * DATAGRAMS):
        add(capture, MS, *fragments(RESPONSE, CUTS, ip_id=ip_id)[2], after_first=False)
    add(capture, 2 * MS, *parts[2], after_first=True)
    assert capture.row()["answers"] == ALL_ANSWERS


def test_more_messages_than_there_are_places_count_with_their_first_fragments() -> None:
    capture = Capture()
    count = 3 * DATAGRAMS
    for trans_id in range(count):
        payload = message(trans_id, "example.com", 1, ANSWERS)
        add(capture, trans_id, *fragments(payload, CUTS, ip_id=trans_id)[0], after_first=True)
    assert sorted(row["trans_id"] for row in capture.rows()) == list(range(count))


# --- the twin, borders, hostile bytes ------------------------------------------------------------------------------

MESSAGES = [message(i, "example.com", 1, [record(999, bytes(range(size)))]) for i, size in enumerate((0, 50, 90))]
STEPS = st.sampled_from([0, MS, MS, SECOND, 59 * SECOND, 61 * SECOND])


@st.composite
def scripts(draw: st.DrawFn) -> list[tuple[int, int, int, int]]:
    """(time, message, fragment of it, bytes that the snaplen cut): in any order, some missing, some repeated."""
    every = [(i, part) for i in range(len(MESSAGES)) for part in range(3)]
    chosen = draw(st.one_of(st.permutations(every), st.lists(st.sampled_from(every), max_size=12)))
    cut = draw(st.sets(st.sampled_from(every), max_size=1))
    ts, script = 1000 * SECOND, []
    for i, part in chosen:
        ts += draw(STEPS)
        script.append((ts, i, part, 5 if (i, part) in cut else 0))
    return script


def parts_of(i: int) -> list[tuple[bytes, dict[str, int]]]:
    middle = 16 + 8 * (i + 1)
    return fragments(MESSAGES[i], [0, 16, middle, len(MESSAGES[i])], ip_id=i)


def capture_of(script: list[tuple[int, int, int, int]]) -> tuple[Capture, list[naive_dns.Fragment]]:
    capture, plain, firsts = Capture(), [], set()
    for number, (ts, i, part, cut) in enumerate(script, 1):
        payload, fields = parts_of(i)[part]
        firsts |= {i} if part == 0 else set()
        add(capture, ts, payload, fields, after_first=i in firsts, cut=cut)
        position = max(fields["fragment_offset"] - 8, 0)
        kept = payload[: len(payload) - cut]
        plain.append(naive_dns.Fragment(ts, number, i, position, len(payload), kept, part == 2, i in firsts))
    return capture, plain


def reassembled(capture: Capture, chunk: int) -> list[tuple[int, int, bytes]]:
    waiting, found = Fragments(MESSAGE), []
    data, packets = np.frombuffer(capture.data, np.uint8), capture.records()
    for begin in range(0, len(packets), chunk):
        candidates = np.zeros(chunk, MESSAGE)
        count = find_candidates(data, packets[begin : begin + chunk], candidates)
        found.append(waiting.feed(data, candidates[:count]))
    found.append(waiting.finish())
    return [
        (int(m["ts"]), int(m["frame_number"]), out[m["offset"] : m["offset"] + m["captured"]].tobytes())
        for messages, out in found
        for m in messages
    ]


@pytest.mark.kernel
@settings(max_examples=200, deadline=None)
@given(scripts(), st.sampled_from([1, 2, 100]))
def test_fragments_make_the_messages_of_the_naive_twin(script: list[tuple[int, int, int, int]], chunk: int) -> None:
    capture, plain = capture_of(script)
    assert sorted(reassembled(capture, chunk)) == sorted(naive_dns.reassembled(plain))


@settings(max_examples=60, deadline=None)
@given(scripts(), st.sets(st.integers(0, 12)))
def test_rows_do_not_depend_on_where_chunks_end(script: list[tuple[int, int, int, int]], cuts: set[int]) -> None:
    capture, _ = capture_of(script)
    assert capture.rows(cuts, take_early=True) == capture.rows()


@pytest.mark.kernel
@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 3), st.integers(0, 0xFFFF), st.binary(max_size=40), st.integers(0, 70_000), st.booleans()
        ),
        max_size=8,
    )
)
def test_fragments_that_make_no_sense_never_raise(parts: list[tuple[int, int, bytes, int, bool]]) -> None:
    capture = Capture()
    for kind, offset, payload, length, has_ports in parts:
        fields = {"fragment": kind, "fragment_offset": offset if kind > FRAGMENT_FIRST else 0}
        length = max(length, len(payload))
        capture.add(0, payload, has_ports=has_ports or kind == FRAGMENT_FIRST, payload_length=length, **fields)
    capture.rows()
