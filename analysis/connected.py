"""Connects a lake's flows: which are one connection, and what is known of each, some connections at a time.

Derived from the facts of all batches, and made anew when another comes: a node's late recording finds its place. Of
every flow some hundred bytes are held. What is kept of packets may be far more: it is put away on disk, by keys, to
find which flows are one connection, then by connections.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from analysis import columns, orders, rooms
from analysis.clocks import Crossings, Offset, clock_offsets, corrected, crossings_of
from analysis.connections import connections_of
from analysis.flow_facts import FEW, Places, Words, numbers, read_flows
from analysis.lake import committed_files
from analysis.paths import SEEN, seen_packets
from analysis.shelves import Shelves
from analysis.sightings import CARRIED, SIGHTING, Sightings, add_questions, read_packets
from analysis.stitch import Part

Records = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

TOGETHER: Final = 1 << 16
"""A part has about so many flows and sightings, which fit in the nearer caches; or one connection."""
RETRANSMIT: Final = np.dtype(
    [
        ("ts", "i8"),
        ("delay_ns", "i8"),  # -1: not seen before
        ("tcp_segments", "i8"),
        ("seq", "u4"),
        ("flow", "i4"),
        ("sender", "u1"),  # 1: the flow's orig sent it
    ],
    align=True,
)
_RETRANSMITS: Final = ("flow_uid", "ts", "sender", "seq", "delay_ns", "tcp_segments")


@dataclass
class Parts:
    """Which connections are worked on together, by the order of their first flows."""

    connection: Integers
    of_flow: Integers
    place: npt.NDArray[np.int32]
    """Of each flow within its part: in order of first_seen, too."""
    members: Integers
    """The flows of one part after the other."""
    begin: Integers
    """Where each part's members begin, and the last one's end."""

    @classmethod
    def of(cls, connection: Integers, weight: Integers) -> Parts:
        """`weight`: of each flow."""
        before = np.cumsum(np.bincount(connection, weight, len(connection))).astype(np.int64) // TOGETHER
        part = orders.numbered(before[connection])
        members = orders.small(part)
        begin = np.append(0, np.cumsum(np.bincount(part)))
        place = np.empty(len(connection), np.int32)
        place[members] = np.arange(len(connection)) - begin[part[members]]
        return cls(connection, part, place, members, begin)

    def __len__(self) -> int:
        return len(self.begin) - 1

    def flows(self, part: int) -> Integers:
        return self.members[self.begin[part] : self.begin[part + 1]]

    def sort(self, parts: Iterable[Records], wanted: Flags, shelves: Shelves) -> Shelves:
        """Puts records of connections that are wanted on a shelf for each part, their flows as numbered in it."""
        for records in parts:
            records = rooms.taken(records, wanted[self.connection[records["flow"]]])
            flow = records["flow"]
            shelf, records["flow"] = self.of_flow[flow], self.place[flow]
            shelves.put(records, shelf)
        return shelves


@dataclass
class Connected:
    """All flows of a lake, in order of first_seen, and which are one connection."""

    flows: pa.Table
    facts: Records
    addresses: list[str | None]
    connection: Integers
    flipped: Flags
    offsets: list[Offset]
    _parts: Parts
    _seen: Shelves
    _carried: Shelves
    _retransmits: Shelves

    @property
    def by_reference(self) -> Integers:
        """When each flow was first seen, by the reference node's clock."""
        return corrected(self.facts["first_seen"], self.facts["node"].astype(np.int64), self.offsets)

    @property
    def nodes(self) -> list[str]:
        """In the order of their numbers."""
        return sorted(columns.whole(self.flows["node"]).dictionary.to_pylist())

    def parts(self) -> Iterator[Part]:
        for number in range(len(self._parts)):
            at = self._parts.flows(number)
            retransmits = self._retransmits.take(number)
            by_time = np.lexsort([retransmits["seq"], self.facts["uid"][at][retransmits["flow"]], retransmits["ts"]])
            yield Part(
                self.flows.take(columns.array(at)),
                rooms.taken(self.facts, at),
                self.addresses,
                self._parts.place[self.connection[at]].astype(np.int64),
                self.flipped[at],
                self._seen.take(number),
                self._carried.take(number),
                rooms.taken(retransmits, by_time),
                self.offsets,
            )


def connect(root: Path, open_: ExitStack) -> Connected:
    """What the facts of a lake say together; what was put away is there until `open_` is closed."""

    def shelves(dtype: np.dtype[Any]) -> Shelves:
        return Shelves(root, dtype, open_)

    flows, facts, addresses = read_flows(committed_files(root, "flows"))
    retransmits = _read_retransmits(committed_files(root, "retransmits"), facts)
    sightings, carried = Sightings(shelves(SIGHTING), FEW * len(facts)), shelves(CARRIED)
    read_packets(committed_files(root, "packets"), facts, addresses, retransmits["seq"], sightings, carried)
    add_questions(committed_files(root, "dns"), facts)
    connection, flipped = connections_of(facts, sightings)
    packets = columns.plain(flows["orig_packets"]) + columns.plain(flows["resp_packets"])
    parts = Parts.of(connection, 1 + packets // (np.maximum(facts["mask"], 0) + 1))
    several = np.bincount(connection, minlength=len(connection)) > 1
    resent = np.zeros(len(facts), np.bool_)
    resent[connection[retransmits["flow"]]] = True
    seen = shelves(SEEN)
    offsets = _see(parts.sort(sightings, several, shelves(SIGHTING)), parts, facts, flipped, seen)
    return Connected(
        flows,
        facts,
        addresses,
        connection,
        flipped,
        offsets,
        parts,
        seen,
        parts.sort(carried, resent, shelves(CARRIED)),
        parts.sort([retransmits], resent, shelves(RETRANSMIT)),
    )


def _see(sightings: Shelves, parts: Parts, facts: Records, flipped: Flags, shelves: Shelves) -> list[Offset]:
    """Puts the SEEN of each part on a shelf; returns what they tell of the clocks."""
    crossings: list[Crossings] = []
    for number in range(len(parts)):
        at = parts.flows(number)
        connection = parts.place[parts.connection[at]].astype(np.int64)
        seen = seen_packets(sightings.take(number), connection, flipped[at])
        crossings.append(crossings_of(seen, facts["node"][at].astype(np.int64)))
        shelves.put_on(number, seen)
    return clock_offsets(crossings)


def _read_retransmits(files: Sequence[Path], facts: Records) -> Records:
    """RETRANSMITs of TCP segments, of files of the table retransmits."""
    found = []
    places = Places(facts)
    for file in files:
        with pq.ParquetFile(file) as source:
            for group in range(source.num_row_groups):
                table = source.read_row_group(group, list(_RETRANSMITS), use_threads=False)
                rows = np.empty(len(table), RETRANSMIT)
                for name in ("ts", "seq", "tcp_segments"):
                    rows[name] = columns.plain(table[name])
                rows["delay_ns"], rows["flow"] = numbers(table["delay_ns"], -1), places.of(table["flow_uid"])
                words = Words()
                orig = words.of_each(["orig"])
                rows["sender"] = words.of(table["sender"]) == orig
                found.append(rooms.taken(rows, rows["tcp_segments"] > 0))
    return rooms.joined(found, RETRANSMIT)
