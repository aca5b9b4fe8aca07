"""Sightings: packets that may be recognised at other observation points, chosen from the table packets.

What survives the way through bridges, tunnels and NAT is the TCP sequence number, acknowledgment and timestamp, or a
UDP datagram's IP id and length. GSO and GRO cut the same bytes differently, but the first packet of each cut has the
same three numbers. A hash of them is a packet's key. Of a flow some four to eight keys are kept, of a long one every
64th, chosen by the hash itself: so every point chooses the same, and memory grows with the flows, hardly with packets.

Many datagrams have no IP id. Of a UDP flow is kept, too, what all its packets together say: a sum of hashes of their
ids and lengths for each side, whether they came in or left, when the first one passed, and what DNS was asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from analysis import columns, orders, rooms
from analysis import sightings_kernels as kernels
from analysis.flow_facts import Places, Words, numbers
from analysis.layout import DIRECTION_IN, DIRECTION_OUT, DIRECTION_UNKNOWN
from analysis.shelves import Shelves

SIGHTING: Final = np.dtype(
    [
        ("key", "u8"),
        ("ts", "i8"),
        ("row", "i8"),  # of the table packets
        ("flow", "i4"),
        ("sender", "u1"),  # 1: the flow's orig sent it
        ("decisive", "u1"),  # 1: no two packets have this key by chance
    ],
    align=True,
)
CARRIED: Final = np.dtype(
    [
        ("ts", "i8"),
        ("flow", "i4"),
        ("seq", "u4"),
        ("length", "u4"),  # with SYN and FIN
        ("sender", "u1"),  # 1: the flow's orig sent it
    ],
    align=True,
)
"""A TCP packet that may have carried a byte that was sent more than once."""
SIGHTINGS_TOGETHER: Final = 1 << 16
"""About so many are compared at a time: they fit in the nearer caches."""

BUCKET_BITS: Final = 12
"""Sequence numbers are looked up by this many less."""

_NUMBERS: Final = ("ts", "src_port", "tcp_flags", "tcp_seq", "tcp_ack", "tcp_tsval", "payload_length", "ip_id", "ttl")
_QUESTIONS: Final = ("flow_uid", "trans_id", "query", "qtype")
Records = npt.NDArray[Any]


class Sightings:
    """All SIGHTINGs of a lake, in parts: by their keys' highest bits."""

    def __init__(self, shelves: Shelves, expected: int) -> None:
        self._shelves = shelves
        self._bits = max(expected // SIGHTINGS_TOGETHER, 1).bit_length() - 1

    def put(self, sightings: Records) -> None:
        self._shelves.put(sightings, (sightings["key"] >> np.uint64(63 - self._bits) >> np.uint64(1)).astype(np.int64))

    def __iter__(self) -> Iterator[Records]:
        """Part after part, sorted by (key, ts)."""
        for part in range(1 << self._bits):
            rows = self._shelves.take(part)
            yield rooms.taken(rows, orders.lexical(rows["key"], rows["ts"]))


def read_packets(
    files: Sequence[Path],
    facts: Records,
    addresses: Sequence[str | None],
    resent: npt.NDArray[np.uint32],
    sightings: Sightings,
    carried: Shelves,
) -> None:
    """Puts away SIGHTINGs of the packets in files of the table packets, and CARRIEDs, a shelf for each row group; fills
    in the SYNs and datagrams of `facts`.

    `addresses`: that of each number in `facts`; `resent`: sequence numbers of which some packet must be found that
    carried them. Flows whose ends are equal are left out, for who sent a packet can't be told. So are copies, which
    only unnamed points have.
    """
    names = ["direction", *_NUMBERS]
    names += ["is_copy"] if facts["unnamed"].any() else []
    by_address = (facts["orig_port"] == facts["resp_port"]) & (facts["mask"] >= 0)
    names += ["src_ip"] if by_address.any() else []
    number_of = {address: number for number, address in enumerate(addresses)} if by_address.any() else {}
    buckets = np.zeros(1 << (32 - BUCKET_BITS), np.bool_)
    buckets[resent >> BUCKET_BITS] = True
    places = Places(facts)
    room = rooms.zeros(0, SIGHTING), rooms.zeros(0, CARRIED)
    nobody = np.empty(0, np.int32)
    row = groups = 0
    for file in files:
        with pq.ParquetFile(file, read_dictionary=["flow_uid", "direction", "src_ip"]) as source:
            for group in range(source.num_row_groups):
                table = source.read_row_group(group, columns=["flow_uid", *names], use_threads=False)
                flow = places.of(table["flow_uid"])
                if "is_copy" in names:
                    flow[columns.plain(table["is_copy"]) == 1] = -1
                values = [columns.plain(table[name]) for name in _NUMBERS]
                if len(table) > len(nobody):
                    nobody = np.full(len(table), -1, np.int32)
                    room = rooms.zeros(len(table), SIGHTING), rooms.zeros(len(table), CARRIED)
                sender = _numbered(table["src_ip"].combine_chunks(), number_of) if "src_ip" in names else nobody
                words: Any = table["direction"].combine_chunks()
                values.append(columns.plain(words.indices, -1))
                seen, sent = kernels.sample(flow, sender, *values, _directions(words), row, facts, buckets, *room)
                sightings.put(room[0][:seen])
                carried.put_on(groups, room[1][:sent])
                groups += 1
                row += len(table)


def add_questions(files: Sequence[Path], facts: Records) -> None:
    """Fills in the questions of `facts`, of files of the table dns."""
    if not files or not len(facts):
        return
    asked: Any = pa.concat_tables([pq.ParquetFile(file).read(list(_QUESTIONS), use_threads=False) for file in files])
    flow = Places(facts).of(asked["flow_uid"].unify_dictionaries())
    name = columns.whole(asked["query"]).dictionary_encode(null_encoding="encode")
    type_ = Words().of(asked["qtype"].unify_dictionaries())
    known = flow >= 0
    asked_by = (flow, numbers(asked["trans_id"]), columns.plain(name.indices), type_)
    kernels.ask(*(column[known].astype(np.int64) for column in asked_by), facts)


def _directions(words: Any) -> npt.NDArray[np.uint8]:
    """DIRECTION_* of each word of a dictionary; the last one is of none."""
    codes = {"in": DIRECTION_IN, "out": DIRECTION_OUT}
    return np.array([codes.get(word, DIRECTION_UNKNOWN) for word in (*words.dictionary.to_pylist(), None)], np.uint8)


def _numbered(words: Any, numbers: Mapping[str | None, int]) -> npt.NDArray[np.int32]:
    """The number of each word of a dictionary; -1: it has none."""
    of_word = [numbers.get(word, -1) for word in words.dictionary.to_pylist()]
    found: npt.NDArray[np.int32] = np.array([*of_word, -1], np.int32)[columns.plain(words.indices, -1)]
    return found
