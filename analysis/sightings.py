"""Sightings: packets that may be recognised at other observation points, chosen from the table packets.

What survives the way through bridges, tunnels and NAT is the TCP sequence number, acknowledgment and timestamp, or a
UDP datagram's IP id and length. GSO and GRO cut the same bytes differently, but the first packet of each cut has the
same three numbers. A hash of them is a packet's key. Of a flow some four to eight keys are kept, of a long one every
64th, chosen by the hash itself: so every point chooses the same, and memory grows with the flows, hardly with packets.

Many datagrams have no IP id. Of a UDP flow is kept, too, what all its packets together say: a sum of hashes of their
ids and lengths for each side, whether they came in or left, when the first one passed, and what DNS was asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from analysis import columns, rooms
from analysis import sightings_kernels as kernels
from analysis.columns import PROTOCOL_NAMES
from analysis.layout import DIRECTION_IN, DIRECTION_OUT, DIRECTION_UNKNOWN

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
FLOW_FACTS: Final = np.dtype(
    [
        ("uid", "u8"),
        ("first_seen", "i8"),
        ("last_seen", "i8"),
        ("orig_syn", "i8"),  # sequence number of orig's SYN; -1: not seen
        ("resp_syn", "i8"),
        ("point", "i4"),
        ("node", "i4"),  # in the order of their names
        ("orig", "i4"),  # numbers of addresses
        ("resp", "i4"),
        ("community", "i4"),
        ("orig_first", "i8"),  # UDP: when the first packet of orig passed; -1: none did
        ("resp_first", "i8"),
        ("orig_row", "i8"),  # its row of the table packets
        ("resp_row", "i8"),
        ("orig_shape", "u8"),  # UDP: a hash of what orig sent, in whatever order; 0: nothing
        ("resp_shape", "u8"),
        ("questions", "u8"),  # a hash of the DNS questions; 0: none
        ("mask", "i4"),  # bits of a key that must be 0; -1: none is kept
        ("orig_port", "u2"),
        ("resp_port", "u2"),
        ("protocol", "u1"),
        ("ways", "u1"),  # UDP: 1 if a packet of orig came in, 2 if one left; 4 and 8 of resp
        ("numbered", "u1"),  # UDP: 1 if a packet of orig had an IP id; 2 of resp
        ("orig_ttl", "u1"),  # UDP: of the first packet of orig
        ("resp_ttl", "u1"),
        ("unnamed", "u1"),  # 1: of a capture that does not name interfaces, so its point may be several
    ],
    align=True,
)
FEW: Final = 4
"""Of a flow of so many packets, all are kept."""
MOST_THINNED: Final = 63

EACH_LOW_HALF: Final = 0x0F0F0F0F0F0F0F0F
EACH_LOWEST_BIT: Final = 0x0101010101010101

BUCKET_BITS: Final = 12
"""Sequence numbers are looked up by this many less."""

_NUMBERS: Final = ("ts", "src_port", "tcp_flags", "tcp_seq", "tcp_ack", "tcp_tsval", "payload_length", "ip_id", "ttl")
Records = npt.NDArray[Any]


def numbers(column: Any, null: int = 0) -> npt.NDArray[np.int64]:
    """An Arrow column of numbers or times (in nanoseconds), `null` where it has none."""
    return columns.plain(column.cast(pa.int64()), null)


def uid_numbers(texts: Any) -> npt.NDArray[np.uint64]:
    """uint64 of uids, which are sixteen hexadecimal digits each."""
    texts = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    if not len(texts):
        return np.empty(0, np.uint64)
    _, offsets, digits = texts.buffers()
    begin = np.frombuffer(offsets, np.int32)[texts.offset]
    eight = np.frombuffer(digits, ">u8", 2 * len(texts), begin).astype(np.uint64)
    value = (eight & EACH_LOW_HALF) + 9 * (eight >> 6 & EACH_LOWEST_BIT)  # a byte holds a digit, then two, four, eight
    value = (value | value >> 4) & 0x00FF00FF00FF00FF
    value = (value | value >> 8) & 0x0000FFFF0000FFFF
    value = (value | value >> 16) & 0xFFFFFFFF
    found: npt.NDArray[np.uint64] = value[0::2] << 32 | value[1::2]
    return found


def word_numbers(*columns: Any) -> tuple[list[npt.NDArray[np.int64]], list[str | None]]:
    """The words of Arrow columns as numbers, and the word of each number; null is a word, too."""
    words = pa.chunked_array([part for column in columns for part in column.chunks], pa.string())
    coded: Any = words.combine_chunks().dictionary_encode(null_encoding="encode")
    ends = np.cumsum([len(column) for column in columns])[:-1]
    return np.split(numbers(coded.indices), ends), coded.dictionary.to_pylist()


def flow_facts(flows: pa.Table) -> tuple[Records, list[str | None]]:
    """FLOW_FACTS of rows of schemas.FLOWS with `node`, in their order, and their addresses; words are plain text."""
    facts = np.zeros(len(flows), FLOW_FACTS)
    facts["uid"] = uid_numbers(flows["flow_uid"])
    for time in ("first_seen", "last_seen"):
        facts[time] = numbers(flows[time])
    for name in ("orig_syn", "resp_syn", "orig_first", "resp_first", "orig_row", "resp_row"):
        facts[name] = -1
    (node,), names = word_numbers(flows["node"])
    facts["node"] = np.argsort(np.argsort(np.array(names, str)))[node]
    (interface,), interfaces = word_numbers(flows["interface"])
    (tunnel,), _ = word_numbers(flows["encapsulation"])
    facts["unnamed"] = np.array([name is None for name in interfaces] or [False])[interface]
    facts["point"] = np.unique((node << 40) + (interface << 20) + tunnel, return_inverse=True)[1]
    (facts["orig"], facts["resp"]), addresses = word_numbers(flows["orig_ip"], flows["resp_ip"])
    for side in ("orig", "resp"):
        facts[f"{side}_port"] = numbers(flows[f"{side}_port"])
    (facts["community"],), _ = word_numbers(flows["community_id"])
    (protocol,), names = word_numbers(flows["protocol"])
    codes = {name: number for number, name in enumerate(PROTOCOL_NAMES[:256])}
    facts["protocol"] = np.array([codes.get(str(name), 0) for name in names] or [0])[protocol]
    packets = numbers(flows["orig_packets"]) + numbers(flows["resp_packets"])
    thinned = 2 ** np.ceil(np.log2(np.maximum(packets / FEW, 1))).astype(np.int64) - 1
    by_address = facts["orig_port"] == facts["resp_port"]
    facts["mask"] = np.where(by_address & (facts["orig"] == facts["resp"]), -1, np.minimum(thinned, MOST_THINNED))
    return facts, addresses


def read_packets(
    files: Sequence[Path], facts: Records, addresses: Sequence[str | None], resent: npt.NDArray[np.uint32]
) -> tuple[Records, Records]:
    """SIGHTINGs of the packets in files of the table packets, and CARRIEDs: fills in the SYNs and datagrams of `facts`.

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
    order = np.argsort(facts["uid"])
    uids = facts["uid"][order]
    sightings, carried = rooms.zeros(0, SIGHTING), rooms.zeros(0, CARRIED)
    seen = sent = row = 0
    nobody = np.empty(0, np.int32)
    for file in files:
        with pq.ParquetFile(file, read_dictionary=["flow_uid", "direction", "src_ip"]) as source:
            for group in range(source.num_row_groups):
                table = source.read_row_group(group, columns=["flow_uid", *names])
                flow = _flows(table["flow_uid"].combine_chunks(), uids, order)
                if "is_copy" in names:
                    flow[columns.plain(table["is_copy"]) == 1] = -1
                values = [columns.plain(table[name]) for name in _NUMBERS]
                if len(table) > len(nobody):
                    nobody = np.full(len(table), -1, np.int32)
                if max(seen, sent) + len(table) > len(sightings):
                    size = rooms.GROWTH * (max(seen, sent) + len(table))
                    sightings, carried = rooms.grown(sightings, size), rooms.grown(carried, size)
                sender = _numbered(table["src_ip"].combine_chunks(), number_of) if "src_ip" in names else nobody
                words: Any = table["direction"].combine_chunks()
                values.append(columns.plain(words.indices, -1))
                counts = kernels.sample(
                    flow, sender, *values, _directions(words), row, facts, buckets, sightings[seen:], carried[sent:]
                )
                seen, sent, row = seen + counts[0], sent + counts[1], row + len(table)
    return sightings[:seen], carried[:sent]


def add_questions(facts: Records, dns: pa.Table) -> None:
    """Fills in the questions of `facts`, of rows of schemas.DNS; words are plain text."""
    if not len(facts):
        return
    order = np.argsort(facts["uid"])
    uids = uid_numbers(dns["flow_uid"])
    place = np.minimum(np.searchsorted(facts["uid"], uids, sorter=order), len(facts) - 1)
    flow = order[place]
    known = facts["uid"][flow] == uids
    (name,), _ = word_numbers(dns["query"])
    (type_,), _ = word_numbers(dns["qtype"])
    kernels.ask(flow[known], numbers(dns["trans_id"])[known], name[known], type_[known], facts)


def _directions(words: Any) -> npt.NDArray[np.uint8]:
    """DIRECTION_* of each word of a dictionary; the last one is of none."""
    codes = {"in": DIRECTION_IN, "out": DIRECTION_OUT}
    return np.array([codes.get(word, DIRECTION_UNKNOWN) for word in (*words.dictionary.to_pylist(), None)], np.uint8)


def _numbered(words: Any, numbers: Mapping[str | None, int]) -> npt.NDArray[np.int32]:
    """The number of each word of a dictionary; -1: it has none."""
    of_word = [numbers.get(word, -1) for word in words.dictionary.to_pylist()]
    found: npt.NDArray[np.int32] = np.array([*of_word, -1], np.int32)[columns.plain(words.indices, -1)]
    return found


def _flows(texts: Any, uids: npt.NDArray[np.uint64], order: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """The index of each packet's flow, -1 for none; `uids` are sorted, and `order` says whose they are."""
    place = np.searchsorted(uids, uid_numbers(texts.dictionary))
    flow = np.append(order[np.minimum(place, len(order) - 1)], -1).astype(np.int32)
    found: npt.NDArray[np.int32] = flow[columns.plain(texts.indices, -1)]
    return found
