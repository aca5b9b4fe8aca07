"""What stitching knows of each flow, read from the table flows: in numbers, for there may be millions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from analysis import columns, orders, rooms
from analysis.columns import PROTOCOL_NAMES

Records = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]

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
COMMUNITY_DIGITS: Final = 30
MULTIPLIER: Final = np.uint64(0x9E3779B97F4A7C15)

_SIDES: Final = ("orig", "resp")
_WORDS: Final = ("interface", "encapsulation", "protocol", "orig_ip", "resp_ip")
_PORTS: Final = ("orig_port", "resp_port")
_COUNTS: Final = tuple(f"{side}_{what}" for side in _SIDES for what in ("packets", "tcp_segments"))
_NAMES: Final = ("flow_uid", "community_id", "first_seen", "last_seen", "history", *_WORDS, *_PORTS, *_COUNTS)
_READ: Final = np.dtype(
    [
        ("uid", "u8"),
        ("community", "u8"),  # a hash
        *((name, "i8") for name in ("first_seen", "last_seen", *_COUNTS)),
        *((name, "i4") for name in ("node", *_WORDS, *_PORTS)),  # numbers of words; -1: no port
        *((f"{side}_acknowledges", "?") for side in _SIDES),
    ],
    align=True,
)


class Words:
    """Words, numbered as they turn up; none at all is one, too."""

    def __init__(self) -> None:
        self._numbers: defaultdict[str | None, int] = defaultdict()
        self._numbers.default_factory = self._numbers.__len__

    def of(self, column: Any) -> npt.NDArray[np.int32]:
        """The number of each word of a dictionary column."""
        column = columns.whole(column)
        return self.of_each([*column.dictionary.to_pylist(), None])[columns.plain(column.indices, -1)]

    def of_each(self, words: Sequence[str | None]) -> npt.NDArray[np.int32]:
        return np.array([self._numbers[word] for word in words], np.int32)

    @property
    def all(self) -> list[str | None]:
        return list(self._numbers)


class Places:
    """Where a flow is in FLOW_FACTS."""

    def __init__(self, facts: Records) -> None:
        self._order = orders.any_size(facts["uid"])
        self._uids = facts["uid"][self._order]

    def of(self, column: Any) -> npt.NDArray[np.int32]:
        """The index of each uid of a dictionary column; -1: there is none."""
        column = columns.whole(column)
        uids = uid_numbers(column.dictionary)
        order = np.argsort(uids)  # those that are near each other are looked up one after the other
        uids = uids[order]
        place = np.minimum(np.searchsorted(self._uids, uids), len(self._uids) - 1)
        found = np.full(len(uids) + 1, -1, np.int32)
        found[order] = np.where(self._uids[place] == uids, self._order[place], -1) if len(self._uids) else -1
        return found[columns.plain(column.indices, -1)]


def numbers(column: Any, null: int = 0) -> npt.NDArray[np.int64]:
    """An Arrow column of numbers or times (in nanoseconds), `null` where it has none."""
    return columns.plain(column.cast(pa.int64()), null)


def uid_numbers(texts: Any) -> npt.NDArray[np.uint64]:
    """uint64 of uids, which are sixteen hexadecimal digits each."""
    eight = _eights(texts, 16)
    value = (eight & EACH_LOW_HALF) + 9 * (eight >> 6 & EACH_LOWEST_BIT)  # a byte holds a digit, then two, four, eight
    value = (value | value >> 4) & 0x00FF00FF00FF00FF
    value = (value | value >> 8) & 0x0000FFFF0000FFFF
    value = (value | value >> 16) & 0xFFFFFFFF
    found: npt.NDArray[np.uint64] = value[:, 0] << 32 | value[:, 1]
    return found


def _eights(texts: Any, width: int) -> npt.NDArray[np.uint64]:
    """Texts of `width` bytes each, eight bytes as one number; what is left of each is left out."""
    texts = columns.whole(texts)
    if not len(texts):
        return np.empty((0, width // 8), np.uint64)
    _, offsets, content = texts.buffers()
    begin = np.frombuffer(offsets, np.int32)[texts.offset]
    each = np.frombuffer(content, np.uint8, width * len(texts), begin).reshape(-1, width)
    return np.ascontiguousarray(each[:, : width // 8 * 8]).view(">u8").astype(np.uint64)


def _community_hashes(texts: Any) -> npt.NDArray[np.uint64]:
    found = np.zeros(len(texts), np.uint64)
    with np.errstate(over="ignore"):
        for eight in _eights(texts, COMMUNITY_DIGITS).T:
            found = (found ^ eight) * MULTIPLIER
            found ^= found >> np.uint64(29)
    return found


def read_flows(files: Sequence[Path]) -> tuple[pa.Table, Records, list[str | None]]:
    """What else is needed of flows, FLOW_FACTS, and the address of each number in them; in order of first_seen.

    The table has node, interface, encapsulation and protocol as words, ports, first_seen, and of orig and resp
    packets, tcp_segments, and whether they acknowledge.
    """
    words = {name: Words() for name in ("node", "interface", "encapsulation", "protocol", "address")}
    rows = rooms.joined([*_read(files, words)], _READ)
    rows = rooms.taken(rows, orders.lexical(rows["first_seen"], rows["uid"]))
    found = {name: columns.some_names(rows[name], words[name].all) for name in words if name != "address"}
    found |= {name: columns.array(rows[name].astype(np.uint16), rows[name] >= 0) for name in _PORTS}
    found |= {name: columns.array(rows[name]) for name in (*_COUNTS, *(f"{side}_acknowledges" for side in _SIDES))}
    table = pa.table({**found, "first_seen": columns.times(rows["first_seen"])})
    return table, _facts(rows, words), words["address"].all


def _read(files: Sequence[Path], words: dict[str, Words]) -> Iterator[Records]:
    import pyarrow.compute as pc  # on first use: it takes a while

    for file in files:
        node = words["node"].of_each([unquote(file.parent.name.partition("=")[2])])
        with pq.ParquetFile(file) as source:
            for group in range(source.num_row_groups):
                table = source.read_row_group(group, list(_NAMES), use_threads=False)
                rows = np.empty(len(table), _READ)
                rows["uid"], rows["community"] = (
                    uid_numbers(table["flow_uid"]),
                    _community_hashes(table["community_id"]),
                )
                for name in ("first_seen", "last_seen", *_COUNTS):
                    rows[name] = columns.plain(table[name])
                for name in _PORTS:
                    rows[name] = numbers(table[name], -1)
                for name in _WORDS:
                    rows[name] = words["address" if name.endswith("_ip") else name].of(table[name])
                for side, letter in (("orig", "A"), ("resp", "a")):
                    rows[f"{side}_acknowledges"] = columns.plain(pc.match_substring(table["history"], letter))
                rows["node"] = node
                yield rows


def _facts(rows: Records, words: dict[str, Words]) -> Records:
    facts = np.zeros(len(rows), FLOW_FACTS)
    for name in ("uid", "first_seen", "last_seen"):
        facts[name] = rows[name]
    for name in ("orig_syn", "resp_syn", "orig_first", "resp_first", "orig_row", "resp_row"):
        facts[name] = -1
    nodes, interfaces, protocols = (words[name].all for name in ("node", "interface", "protocol"))
    facts["node"] = np.argsort(np.argsort(np.array(nodes, str)))[rows["node"]]
    facts["unnamed"] = np.array([name is None for name in interfaces] or [False])[rows["interface"]]
    place = rows["node"].astype(np.int64) << 40 | rows["interface"].astype(np.int64) << 20 | rows["encapsulation"]
    facts["point"], facts["community"] = orders.numbered(place), orders.numbered(rows["community"])
    for side in _SIDES:
        facts[side], facts[f"{side}_port"] = rows[f"{side}_ip"], np.maximum(rows[f"{side}_port"], 0)
    codes = {name: number for number, name in enumerate(PROTOCOL_NAMES[:256])}
    facts["protocol"] = np.array([codes.get(str(name), 0) for name in protocols] or [0])[rows["protocol"]]
    packets = rows["orig_packets"] + rows["resp_packets"]
    thinned = 2 ** np.ceil(np.log2(np.maximum(packets / FEW, 1))).astype(np.int64) - 1
    by_address = facts["orig_port"] == facts["resp_port"]
    facts["mask"] = np.where(by_address & (facts["orig"] == facts["resp"]), -1, np.minimum(thinned, MOST_THINNED))
    return facts
