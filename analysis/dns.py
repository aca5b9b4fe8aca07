"""DNS transactions: each question with its answer, or without one.

**What is DNS.** UDP, and TCP with its two-byte lengths, at port 53, of which id and flags are enough. Resolvers in
clusters listen elsewhere, too: at any other UDP port, and at TCP ports 1053, 5353, 8053 and 9053, a message counts if
it is a standard query with one usual question, or the response to one. NetBIOS names (port 137) look the same and
are not.

Multicast DNS and LLMNR have no transactions between one client and one server (a query has no addressee, mDNS ids are
0, responses carry no question: RFC 6762, RFC 4795): packets to a multicast address, between two ports 5353, or at port
5355 are left out.

IP fragments of UDP are put together first (dns_fragments.py): a message counts at the time of the fragment that
completed it.

**What belongs together.** Messages of one flow (one 5-tuple at one observation point) with the same id, the same client
and the same question (name without case, and type). Who is client is told by the QR bit.

- The first query opens a transaction. The same again before the answer is one more attempt, however late: here
  podtap differs from Wireshark, which opens a new transaction 5 s after the first query.
- The first response closes it. Further responses within 10 s are duplicates, and no rows. The same query after
  the answer opens a new transaction.
- A response without a readable question belongs to the latest query with its id.
- A response whose question was not asked may be a damaged one, or a forged one. It stands by for the earliest open
  query with its id, of the last 10 s, and answers it if nothing better comes: neither a response to what was asked,
  nor the query again, by which the client says that it did not take the response. Else it is an
  unmatched_response, and what is open stays open. Wireshark does not compare questions.
- What has no answer after 5 minutes is unanswered, and so is what is open at the end.

**Search lists.** A transaction is a search expansion if it was answered by NXDOMAIN, or NOERROR without answers, and
the same client at the same observation point goes on within 10 s with a name that the same search would try next
(resolv.conf(5), `search` and `ndots`). With `P` for the name that the application used, the next name, asked for
the same type, is one of:

1. `P` itself, where the failed name was `P.anything`: the search list is used up;
2. `P.rest`, where the failed name was `P.label.rest`, and `rest` has two labels or more, or `label` is `svc`:
   Kubernetes' own list goes from `P.ns.svc.cluster.local` over `P.svc.cluster.local` to `P.cluster.local`;
3. `P.anything else`, once `P` is known from a step of this walk by rule 2 or 3: the host's domains come last.

Everything depends on the order of the messages and their times only: where the input is cut into chunks, and when
rows are taken, changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from analysis import columns, rooms
from analysis import dns_kernels as kernels
from analysis.dns_fragments import Fragments
from analysis.dns_message_kernels import MESSAGE, TYPE_NAMES, find_candidates, read_messages
from analysis.dns_streams import Streams
from analysis.layout import TCP, UDP
from analysis.schemas import DNS

OPEN_LIMIT: Final = 1 << 19
"""More open transactions than this (a flood of queries without answers) shorten the 5 minutes, to bound memory."""
FIRST_CAPACITY: Final = 1 << 15
TABLE_SLOTS: Final = 4  # per transaction, of which each uses 3 at most
TEXT_BYTES: Final = 128  # per transaction: more than most need
READ_TEXT_BYTES: Final = 1 << 20
OPAQUE: Final = np.dtype((np.void, kernels.TRANSACTION.itemsize))
"""A TRANSACTION that numpy copies whole: field by field, as it does otherwise, takes 20 times as long."""

Gathered = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]

RCODE_NAMES: Final = {
    0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED", 6: "YXDOMAIN", 7: "YXRRSET",
    8: "NXRRSET", 9: "NOTAUTH", 10: "NOTZONE", 11: "DSOTYPENI", 16: "BADVERS", 17: "BADKEY", 18: "BADTIME",
    19: "BADMODE", 20: "BADNAME", 21: "BADALG", 22: "BADTRUNC", 23: "BADCOOKIE",
}  # fmt: skip
"""https://www.iana.org/assignments/dns-parameters"""
STATUS_NAMES: Final = {
    kernels.ANSWERED: "answered",
    kernels.UNANSWERED: "unanswered",
    kernels.UNMATCHED_RESPONSE: "unmatched_response",
}
TRANSPORT_NAMES: Final = {UDP: "udp", TCP: "tcp"}


@dataclass(frozen=True)
class DnsRows:
    """Finished transactions, in no particular order.

    `records` are TRANSACTION records (dns_kernels.py). Of them the caller names what needs other tables:
    query_segment and response_segment (-1 = null), flow_uid, interface, client_hi/lo, server_hi/lo.
    `query` and `answers` are the texts, null where there is none.
    """

    records: npt.NDArray[np.void]
    query: pa.Array[Any]
    answers: pa.Array[Any]

    def __len__(self) -> int:
        return len(self.records)

    def parts(self, rows: int) -> Iterator[DnsRows]:
        """So many rows at a time, or some more, if there are."""
        count = max(len(self) // rows, 1)
        for number in range(count):
            part = slice(len(self) * number // count, len(self) * (number + 1) // count)
            yield DnsRows(self.records[part], self.query[part], self.answers[part])


class Dns:
    """The transactions of one recording; carries its state over chunks and file borders."""

    def __init__(self) -> None:
        self._fragments = Fragments(MESSAGE)
        self._streams = Streams()
        self._candidates = np.zeros(0, MESSAGE)
        self._read_text = np.zeros(READ_TEXT_BYTES, np.uint8)
        self._state = np.zeros(kernels.STATE_SIZE, np.int64)
        self._state[kernels.CLOCK] = np.iinfo(np.int64).min
        self._finished: list[DnsRows] = []
        self._transactions = np.zeros(0, kernels.TRANSACTION)
        self._text = np.zeros(0, np.uint8)
        self._keep(np.zeros(0, kernels.TRANSACTION), np.zeros(0, np.uint8))

    def feed(self, data: npt.NDArray[np.uint8], packets: npt.NDArray[np.void]) -> None:
        """Take the packets of a chunk: PACKET records that know their flows, and the bytes they point into."""
        if len(self._candidates) < len(packets):
            self._candidates = np.zeros(len(packets), MESSAGE)
        found = find_candidates(data, packets, self._candidates)
        if found:
            messages, datagrams = self._fragments.feed(data, self._candidates[:found])
            messages, streams = self._streams.feed(data, messages)
            self._transact(data, *_joined(messages, datagrams, streams))

    @property
    def finished(self) -> int:
        """Transactions that rows() would give."""
        return sum(map(len, self._finished))

    def rows(self) -> list[DnsRows]:
        """The transactions finished since the last call. Those that are open, or just failed, wait."""
        self._collect()
        finished, self._finished = self._finished, []
        return finished

    def finish(self) -> None:
        """The recording ends: what is open is unanswered."""
        nothing = np.zeros(1, np.uint8)
        self._transact(nothing, *self._fragments.finish())
        self._transact(nothing, *self._streams.finish(MESSAGE))
        self._sweep(patience=np.iinfo(np.int64).min, walk_patience=np.iinfo(np.int64).min)
        self._collect()

    def _transact(
        self, data: npt.NDArray[np.uint8], messages: npt.NDArray[np.void], reassembled: npt.NDArray[np.uint8]
    ) -> None:
        first = 0
        while first < len(messages):
            read = read_messages(data, reassembled, messages, first, self._read_text)
            while first < read:
                first = kernels.transact(
                    messages[:read], first, self._read_text, self._transactions, self._keys, self._values,
                    self._text, self._done, self._state,
                )  # fmt: skip
                if first < read:
                    self._make_room()

    def _make_room(self) -> None:
        """Let go what is no longer needed. Happens after certain messages, wherever chunks end."""
        if self._state[kernels.SINCE_SWEEP] >= kernels.SWEEP_EVERY:
            patience = kernels.UNANSWERED_AFTER_NS
            while self._sweep(patience, kernels.WALK_WITHIN_NS) > OPEN_LIMIT:
                patience = patience // 4 - 1  # below 0 in the end: everything, should all have one time
            self._state[kernels.SINCE_SWEEP] = 0
        self._collect()
        records = self._transactions[: self._state[kernels.COUNT]]
        recent = self._state[kernels.CLOCK] - records["response_ts"] <= kernels.DUPLICATE_WITHIN_NS
        is_taken = records["phase"] == kernels.TAKEN
        is_needed = ~is_taken | (recent & (records["status"] == kernels.ANSWERED))
        kept = records.view(OPAQUE)[is_needed].view(kernels.TRANSACTION)
        kept["spare"] = np.where(kept["spare"] >= 0, (np.cumsum(is_needed) - 1)[kept["spare"]], -1)
        for length in ("query_length", "answers_length"):
            kept[length][kept["phase"] == kernels.TAKEN] = 0
        query, query_ends = self._gather(kept["query_offset"], kept["query_length"])
        answers, answers_ends = self._gather(kept["answers_offset"], kept["answers_length"])
        kept["query_offset"] = query_ends[:-1]
        kept["answers_offset"] = query.size + answers_ends[:-1]
        self._keep(kept, np.concatenate([query, answers]))

    def _keep(self, records: npt.NDArray[np.void], text: npt.NDArray[np.uint8]) -> None:
        """Go on with these transactions and their text, and as much room again."""
        capacity = max(len(self._transactions), FIRST_CAPACITY)
        while capacity < 2 * len(records):
            capacity *= 2
        if capacity > len(self._transactions):
            self._transactions = np.zeros(capacity, kernels.TRANSACTION)
            self._keys = np.zeros(TABLE_SLOTS * capacity, np.uint64)
            self._values = np.zeros(TABLE_SLOTS * capacity, np.int32)
            self._done = np.zeros(capacity, np.int32)
        if max(TEXT_BYTES * capacity, 2 * text.size) > len(self._text):
            self._text = np.zeros(max(TEXT_BYTES * capacity, 2 * text.size), np.uint8)
        self._transactions.view(OPAQUE)[: len(records)] = records.view(OPAQUE)
        self._text[: text.size] = text
        self._values.fill(-1)
        self._state[kernels.COUNT] = len(records)
        self._state[kernels.TEXT_USED] = text.size
        kernels.index(self._transactions, len(records), self._keys, self._values, self._text)

    def _sweep(self, patience: int, walk_patience: int) -> int:
        return int(kernels.sweep(self._transactions, self._done, self._state, patience, walk_patience))

    def _collect(self) -> None:
        """Make rows of what is done."""
        done = self._done[: self._state[kernels.DONE_COUNT]]
        if not done.size:
            return
        records = self._transactions.view(OPAQUE)[done].view(kernels.TRANSACTION)
        self._finished.append(
            DnsRows(
                records,
                self._strings(records["query_offset"], records["query_length"]),
                self._strings(records["answers_offset"], records["answers_length"]),
            )
        )
        self._transactions["phase"][done] = kernels.TAKEN
        self._state[kernels.DONE_COUNT] = 0

    def _gather(self, offsets: npt.NDArray[np.int64], lengths: npt.NDArray[np.int32]) -> Gathered:
        """These pieces of the text one after another, and where each begins and the last ends, as Arrow keeps them."""
        ends = np.zeros(len(lengths) + 1, np.int32)
        np.cumsum(lengths, out=ends[1:])
        pieces = np.empty(ends[-1], np.uint8)
        # Numpy calls a field of one record contiguous, and of more not: the kernel shall not be compiled for both.
        kernels.gather(self._text, np.ascontiguousarray(offsets), ends, pieces)
        return pieces, ends

    def _strings(self, offsets: npt.NDArray[np.int64], lengths: npt.NDArray[np.int32]) -> pa.StringArray:
        text, ends = self._gather(offsets, lengths)
        valid = np.packbits(lengths > 0, bitorder="little")
        buffers = [pa.py_buffer(part.tobytes()) for part in (ends, text, valid)]
        return pa.StringArray.from_buffers(len(lengths), buffers[0], buffers[1], buffers[2])


def joined_rows(finished: Sequence[DnsRows]) -> DnsRows:
    """All of them as one."""
    return DnsRows(
        rooms.joined([rows.records for rows in finished], kernels.TRANSACTION),
        pa.concat_arrays([columns.texts([]), *(rows.query for rows in finished)]),
        pa.concat_arrays([columns.texts([]), *(rows.answers for rows in finished)]),
    )


def _joined(
    messages: npt.NDArray[np.void], datagrams: npt.NDArray[np.uint8], streams: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.void], npt.NDArray[np.uint8]]:
    """One array of bytes for all messages that were put together."""
    if datagrams.size:
        messages["offset"][(messages["transport"] == UDP) & (messages["is_reassembled"] != 0)] += streams.size
        streams = np.concatenate([streams, datagrams])
    return messages, streams


def to_arrow(rows: DnsRows) -> dict[str, pa.Array[Any]]:
    """The columns of the dns table that need no other table, in the types of the schema.

    Left to the caller: segments, flow_uid, flow_first_seen, interface, addresses, identities.
    """
    r = rows.records
    has_query = r["query_frame"] >= 0
    has_response = r["response_frame"] >= 0
    answered = r["status"] == kernels.ANSWERED
    values = {
        "query_frame": (r["query_frame"], has_query),
        "response_frame": (r["response_frame"], has_response),
        "query_ts": (r["query_ts"], has_query),
        "response_ts": (r["response_ts"], has_response),
        "ts": (np.where(has_query, r["query_ts"], r["response_ts"]), None),
        "latency_ns": (r["response_ts"] - r["query_ts"], answered),
        "last_attempt_latency_ns": (r["response_ts"] - r["last_query_ts"], answered),
        "attempts": (r["attempts"], None),
        "trans_id": (r["trans_id"], None),
        "truncated": (r["truncated"].astype(bool), has_response),
        "search_expansion": (r["search_expansion"].astype(bool), None),
        "client_port": (r["client_port"], None),
        "server_port": (r["server_port"], None),
    }
    made = {name: _column(name, value, valid) for name, (value, valid) in values.items()}
    made["status"] = _names(r["status"], STATUS_NAMES)
    made["transport"] = _names(r["transport"], TRANSPORT_NAMES)
    made["qtype"] = _names(r["qtype"], TYPE_NAMES, "TYPE", r["query_length"] > 0)
    made["rcode"] = _names(r["rcode"], RCODE_NAMES, "RCODE", has_response)
    return made | {"query": rows.query, "answers": rows.answers}


def _column(name: str, values: npt.NDArray[np.generic], valid: npt.NDArray[np.bool_] | None) -> pa.Array[Any]:
    validity = None if valid is None else columns.bitmap(valid)
    type_ = DNS.schema.field(name).type
    return columns.flags(values, validity) if type_ == pa.bool_() else columns.numbers(values, type_, validity)


def _names(
    codes: npt.NDArray[np.integer], names: dict[int, str], unknown: str = "", valid: npt.NDArray[np.bool_] | None = None
) -> pa.Array[Any]:
    """Codes as dictionary-encoded names, those without a name as `unknown` and the number."""
    found, indexes = np.unique(codes, return_inverse=True)
    words = [names.get(int(code), f"{unknown}{code}") for code in found]
    return columns.names(indexes, words, None if valid is None else columns.bitmap(valid))
