"""Packets on their way to the packets table: records become columns, and columns pages of Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from analysis import columns
from analysis import packet_rows_kernels as kernels
from analysis.layout import MALFORMED_NAMES, NANOSECONDS
from analysis.packets import decode_quotes
from analysis.parquet import ColumnChunk, Dictionary, words_content
from analysis.parquet_kernels import DELTA, INDEXES, LONG_DELTA, NUMBERS, PLAIN
from analysis.parquet_pages import ColumnPlan, Columns, PageEncoder

ROW_GROUP_ROWS: Final = 1 << 18
"""Fewer would pay too often for their dictionaries."""
PAGE_ROWS: Final = 1 << 14
"""Few enough for all columns of a page to stay in a core's cache until they are encoded."""
DAY_NS: Final = 86_400 * NANOSECONDS

VALIDITY: Final = {
    "payload_length": kernels.IS_IP,
    "tcp_seq": kernels.IS_TCP,
    "tcp_ack": kernels.IS_TCP,
    "tcp_tsval": kernels.HAS_TIMESTAMPS,
    "ip_id": kernels.HAS_ID,
    "vni": kernels.HAS_VNI,
    "src_port": kernels.HAS_PORTS,
    "dst_port": kernels.HAS_PORTS,
    "tcp_flags": kernels.IS_TCP,
    "tcp_window": kernels.IS_TCP,
    "vlan": kernels.HAS_VLAN,
    "quoted_src_port": kernels.HAS_QUOTED_PORTS,
    "quoted_dst_port": kernels.HAS_QUOTED_PORTS,
    "ttl": kernels.IS_IP,
    "icmp_type": kernels.IS_ICMP,
    "icmp_code": kernels.IS_ICMP,
    "interface": kernels.HAS_INTERFACE,
    "direction": kernels.HAS_DIRECTION,
    "flow_uid": kernels.HAS_FLOW,
    "src_ip": kernels.IS_IP,
    "dst_ip": kernels.IS_IP,
    "protocol": kernels.HAS_PROTOCOL,
    "encapsulation": kernels.IS_ENCAPSULATED,
    "outer_src_ip": kernels.IS_TUNNELLED,
    "outer_dst_ip": kernels.IS_TUNNELLED,
    "malformed": kernels.IS_MALFORMED,
    "quoted_protocol": kernels.HAS_QUOTE,
    "quoted_src_ip": kernels.HAS_QUOTE,
    "quoted_dst_ip": kernels.HAS_QUOTE,
}
"""Where the columns that may be null are not."""

RANDOM: Final = frozenset(["tcp_seq", "tcp_ack", "tcp_tsval"])
"""What no encoding makes shorter."""
PORTS: Final = frozenset(["src_port", "dst_port", "quoted_src_port", "quoted_dst_port"])


def _plan(name: str) -> ColumnPlan:
    numbering = ""
    if name in kernels.WIDE_COLUMNS:
        how = LONG_DELTA
    elif name in RANDOM:
        how = PLAIN
    elif name in kernels.WORD_COLUMNS:
        how = DELTA
    elif name in kernels.PLACE_COLUMNS:
        how = INDEXES
    else:  # few values occur
        how = NUMBERS
        numbering = "port" if name in PORTS else name
    return ColumnPlan(name, how, VALIDITY.get(name, 0), numbering)


_COLUMNS: Final = (
    kernels.WIDE_COLUMNS,
    kernels.WORD_COLUMNS,
    kernels.HALF_COLUMNS,
    kernels.OCTET_COLUMNS,
    kernels.PLACE_COLUMNS,
)
PLANS: Final = [_plan(name) for names in _COLUMNS for name in names]


class Dictionaries(NamedTuple):
    """What the places of a row group point into: pairs (high, low) of addresses, encapsulations (0, kind), flows."""

    inner: npt.NDArray[np.uint64]
    inner_table: npt.NDArray[np.int32]
    outer: npt.NDArray[np.uint64]
    outer_table: npt.NDArray[np.int32]
    kinds: npt.NDArray[np.uint64]
    kinds_table: npt.NDArray[np.int32]
    entries: npt.NDArray[Any]

    @staticmethod
    def of(rows: int) -> Dictionaries:
        """Room for all that so many packets may have."""
        table = 1 << (2 * rows).bit_length()
        pairs = (np.empty((2 * rows, 2), np.uint64) for _ in range(3))
        tables = (np.zeros(table, np.int32) for _ in range(3))
        inner, outer, kinds = zip(pairs, tables, strict=True)
        return Dictionaries(*inner, *outer, *kinds, np.zeros(rows, kernels.ENTRY))


class RowGroup:
    """Pages of the rows of one UTC day."""

    def __init__(self, chunks: dict[str, ColumnChunk]) -> None:
        self.rows = 0
        self.chunks = chunks


class PacketRows:
    """Room for a page, and the pages of the row group that is being filled."""

    def __init__(self, rows: int = ROW_GROUP_ROWS, page_rows: int = PAGE_ROWS) -> None:
        self._row_group_rows = rows
        self._page_rows = min(rows, page_rows)
        self._taken = 0
        self._count = 0
        self._columns = Columns.of(self._page_rows, *map(len, _COLUMNS))
        self._dictionaries = Dictionaries.of(rows)
        self._encoder = PageEncoder(PLANS, {"is_copy": kernels.IS_COPY}, self._page_rows)
        self._counts = np.zeros(4, np.int64)
        self._entry_of_slot = np.zeros(0, np.int32)
        self._row_groups: dict[int, RowGroup] = {}

    @property
    def is_full(self) -> bool:
        return self._taken == self._row_group_rows

    @property
    def is_empty(self) -> bool:
        return not self._taken

    def take(
        self,
        data: npt.NDArray[np.uint8],
        packets: npt.NDArray[np.void],
        slots: int,
        interface_names: Sequence[str | None],
    ) -> int:
        """Takes in the first of a chunk's PACKET[n] that know their flows, as many as there is room for: returns it.

        `slots`: more than any number of a flow's slot.
        """
        self._make_slots(slots)
        named = np.array([name is not None for name in interface_names], np.bool_)
        distinct = _distinct(interface_names)
        places = np.array([distinct.index(name or "") for name in interface_names], np.int32)
        packets = packets[: self._row_group_rows - self._taken]
        taken = 0
        while taken < len(packets):
            part = packets[taken : taken + self._page_rows - self._count]
            self._split(data, part, named, places)
            taken += len(part)
            if self._count == self._page_rows:
                self._encode()
        self._taken += taken
        return taken

    def row_groups(
        self, segment_names: Sequence[str], interface_names: Sequence[str | None]
    ) -> Iterator[tuple[int, RowGroup]]:
        """What was taken in, by UTC day (since 1970), each with its dictionaries."""
        self._encode()
        dictionaries = self._make_dictionaries(segment_names, interface_names)
        for day, row_group in self._row_groups.items():
            for name, dictionary in dictionaries.items():
                row_group.chunks[name].dictionary = dictionary
            yield day, row_group

    def clear(self) -> None:
        """Makes room for the next row group."""
        entries = self._dictionaries.entries[: self._counts[kernels.ENTRIES]]
        self._entry_of_slot[entries["slot"]] = kernels.NOTHING
        for which, table in (
            (kernels.INNER, self._dictionaries.inner_table),
            (kernels.OUTER, self._dictionaries.outer_table),
            (kernels.KINDS, self._dictionaries.kinds_table),
        ):
            if self._counts[which]:
                table[:] = 0
        self._counts[:] = 0
        self._encoder.forget()
        self._row_groups = {}
        self._taken = 0

    def _make_slots(self, slots: int) -> None:
        if slots > len(self._entry_of_slot):
            larger = np.full(2 * slots, kernels.NOTHING, np.int32)
            larger[: len(self._entry_of_slot)] = self._entry_of_slot
            self._entry_of_slot = larger

    def _split(
        self,
        data: npt.NDArray[np.uint8],
        packets: npt.NDArray[np.void],
        named: npt.NDArray[np.bool_],
        places: npt.NDArray[np.int32],
    ) -> None:
        start = self._count
        with np.errstate(over="ignore"):
            known = kernels.split(
                packets, start, self._columns, named, self._entry_of_slot, self._dictionaries, self._counts
            )
            if known & kernels.QUOTES:
                valid = self._columns.valid[start : start + len(packets)]
                quoting = np.flatnonzero(valid & kernels.QUOTES)
                self.place_quotes(decode_quotes(data, packets[quoting]), quoting + start)
        self._count += len(packets)
        if len(set(places.tolist())) < len(places):
            column = self._columns.places[kernels.INTERFACE, start : self._count]
            column[:] = places[column]

    def place_quotes(self, quoted: npt.NDArray[np.void], at: npt.NDArray[np.int64]) -> None:
        """PACKET[n] that ICMP errors quote, to the rows `at` of the room."""
        kernels.place_quotes(quoted, at, self._columns, self._dictionaries, self._counts)

    def _encode(self) -> None:
        """The rows in the room, a page of each column for each day."""
        if not self._count:
            return
        times = self._columns.wide[kernels.TS, : self._count]
        if times.min() // DAY_NS == times.max() // DAY_NS:
            self._encode_day(int(times[0]) // DAY_NS, self._columns, self._count)
        else:
            days = times // DAY_NS
            for day in np.unique(days).tolist():
                self._encode_day(day, self._columns.where(days == day), int(np.count_nonzero(days == day)))
        self._count = 0

    def _encode_day(self, day: int, rows: Columns, count: int) -> None:
        row_group = self._row_groups.get(day)
        if row_group is None:
            row_group = self._row_groups[day] = RowGroup(self._encoder.chunks())
        row_group.rows += count
        times = rows.wide[kernels.TS, :count]
        row_group.chunks["ts"].note_range(int(times.min()), int(times.max()))
        self._encoder.add_page(row_group.chunks, rows, count)

    def _make_dictionaries(
        self, segment_names: Sequence[str], interface_names: Sequence[str | None]
    ) -> dict[str, Dictionary]:
        met = self._dictionaries
        inner = _addresses(met.inner[: self._counts[kernels.INNER]])
        outer = _addresses(met.outer[: self._counts[kernels.OUTER]])
        kinds = met.kinds[: self._counts[kernels.KINDS]]
        protocols = _words(columns.PROTOCOL_NAMES)
        made = {
            "interface": _words(_distinct(interface_names)),
            "direction": _words(["in", "out"]),
            "segment": _words(segment_names),
            "flow_uid": _uids(met.entries["uid"][: self._counts[kernels.ENTRIES]]),
            "src_ip": inner,
            "dst_ip": inner,
            "protocol": protocols,
            "encapsulation": _words([columns.encapsulation_name(kind) for _, kind in kinds.tolist()]),
            "outer_src_ip": outer,
            "outer_dst_ip": outer,
            "malformed": _words(MALFORMED_NAMES[1:]),
            "quoted_protocol": protocols,
            "quoted_src_ip": inner,
            "quoted_dst_ip": inner,
        }
        return made | self._encoder.number_dictionaries()


def _distinct(names: Sequence[str | None]) -> list[str]:
    """In a dictionary each word stands once (readers count on it), but two nodes may have an interface of one name."""
    return list(dict.fromkeys(name or "" for name in names))


def _words(words: Sequence[str]) -> Dictionary:
    return Dictionary(words_content(words), len(words))


def _addresses(pairs: npt.NDArray[np.uint64]) -> Dictionary:
    return _words([columns.address_text(high, low) for high, low in pairs.tolist()])


def _uids(uids: npt.NDArray[np.uint64]) -> Dictionary:
    """Sixteen hexadecimal digits each."""
    text = np.zeros((len(uids), 20), np.uint8)
    text[:, 0] = 16
    text[:, 4:] = columns.uid_digits(uids).reshape(-1, 16)
    return Dictionary(text.tobytes(), len(uids))
