"""Packets on their way to the packets table: records become columns, and columns row groups of Parquet."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from analysis import columns
from analysis import packet_rows_kernels as kernels
from analysis.layout import MALFORMED_NAMES, PACKET
from analysis.packets import decode_quotes
from analysis.schemas import PACKETS

QUOTED: Final = ("quoted_protocol", "quoted_src_ip", "quoted_src_port", "quoted_dst_ip", "quoted_dst_port")
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
    "ttl": kernels.IS_IP,
    "icmp_type": kernels.IS_ICMP,
    "icmp_code": kernels.IS_ICMP,
    "interface": kernels.HAS_INTERFACE,
    "direction": kernels.HAS_DIRECTION,
    "flow_uid": kernels.HAS_FLOW,
    "src_ip": kernels.IS_IP,
    "dst_ip": kernels.IS_IP,
    "protocol": kernels.HAS_PROTOCOL,
    "outer_src_ip": kernels.IS_TUNNELLED,
    "outer_dst_ip": kernels.IS_TUNNELLED,
    "malformed": kernels.IS_MALFORMED,
}
"""Where the columns that may be null are not."""


class Columns(NamedTuple):
    """One row of each array a column (kernels.*_COLUMNS), room for a row group."""

    wide: npt.NDArray[np.int64]
    words: npt.NDArray[np.uint32]
    halves: npt.NDArray[np.uint16]
    octets: npt.NDArray[np.uint8]
    places: npt.NDArray[np.int32]
    valid: npt.NDArray[np.uint32]


class Dictionaries(NamedTuple):
    """What the places of a row group point into: pairs (high, low) of addresses, and flows."""

    inner: npt.NDArray[np.uint64]
    inner_table: npt.NDArray[np.int32]
    outer: npt.NDArray[np.uint64]
    outer_table: npt.NDArray[np.int32]
    entries: npt.NDArray[Any]


class PacketRows:
    """Room for one row group, used again for the next."""

    def __init__(self, rows: int) -> None:
        self._room = rows
        self._count = 0
        self._columns = Columns(
            np.empty((len(kernels.WIDE_COLUMNS), rows), np.int64),
            np.empty((len(kernels.WORD_COLUMNS), rows), np.uint32),
            np.empty((len(kernels.HALF_COLUMNS), rows), np.uint16),
            np.empty((len(kernels.OCTET_COLUMNS), rows), np.uint8),
            np.empty((len(kernels.PLACE_COLUMNS), rows), np.int32),
            np.empty(rows, np.uint32),
        )
        table = 1 << (2 * rows).bit_length()
        self._dictionaries = Dictionaries(
            np.empty((2 * rows, 2), np.uint64),
            np.full(table, kernels.NOTHING, np.int32),
            np.empty((2 * rows, 2), np.uint64),
            np.full(table, kernels.NOTHING, np.int32),
            np.zeros(rows, kernels.ENTRY),
        )
        self._counts = np.zeros(3, np.int64)
        self._entry_of_slot = np.zeros(0, np.int32)
        self._quotes: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.void]]] = []

    @property
    def is_full(self) -> bool:
        return self._count == self._room

    @property
    def is_empty(self) -> bool:
        return not self._count

    def take(
        self, data: npt.NDArray[np.uint8], packets: npt.NDArray[np.void], interface_names: Sequence[str | None]
    ) -> int:
        """Takes in the first of a chunk's PACKET[n] that know their flows, as many as there is room for: returns it."""
        part = packets[: self._room - self._count]
        named = np.array([name is not None for name in interface_names], np.bool_)
        self._make_slots(part)
        with np.errstate(over="ignore"):
            kernels.split(
                part, self._count, self._columns, named, self._entry_of_slot, self._dictionaries, self._counts
            )
        quoting = np.flatnonzero(part["quote_offset"] >= 0)
        if len(quoting):
            self._quotes.append((quoting + self._count, decode_quotes(data, part[quoting])))
        self._count += len(part)
        return len(part)

    def clear(self) -> None:
        """Makes room for the next row group; tables of this one are not valid any more."""
        kernels.forget(self._entry_of_slot, self._dictionaries.entries[: self._counts[kernels.ENTRIES]])
        self._dictionaries.inner_table[:] = kernels.NOTHING
        if self._counts[kernels.OUTER]:
            self._dictionaries.outer_table[:] = kernels.NOTHING
        self._counts[:] = 0
        self._count = 0
        self._quotes.clear()

    def _make_slots(self, packets: npt.NDArray[np.void]) -> None:
        slots = int(packets["flow"].max(initial=0)) + 1
        if slots > len(self._entry_of_slot):
            larger = np.full(2 * slots, kernels.NOTHING, np.int32)
            larger[: len(self._entry_of_slot)] = self._entry_of_slot
            self._entry_of_slot = larger

    def table(self, segment_names: Sequence[str], interface_names: Sequence[str | None]) -> pa.Table:
        """The rows as schemas.PACKETS, without a copy of what is in this room."""
        rows, count = self._columns, self._count
        inner = self._dictionaries.inner[: self._counts[kernels.INNER]]
        outer = self._dictionaries.outer[: self._counts[kernels.OUTER]]
        inner_words, outer_words = columns.address_words(*inner.T), columns.address_words(*outer.T)
        words: dict[str, columns.Column | Sequence[str | None]] = {
            "interface": [name or "" for name in interface_names],
            "direction": ["in", "out"],
            "segment": segment_names,
            "flow_uid": columns.uid_text(self._dictionaries.entries["uid"][: self._counts[kernels.ENTRIES]]),
            "src_ip": inner_words,
            "dst_ip": inner_words,
            "protocol": columns.PROTOCOL_NAMES,
            "outer_src_ip": outer_words,
            "outer_dst_ip": outer_words,
            "malformed": MALFORMED_NAMES[1:],
        }
        valid = rows.valid[:count]
        bitmaps = {bit: np.packbits(valid & bit != 0, bitorder="little") for bit in {*VALIDITY.values()}}
        values = {"is_copy": columns.flags(valid & kernels.IS_COPY), **self._quoted()}
        for names, arrays in (
            (kernels.WIDE_COLUMNS, rows.wide),
            (kernels.WORD_COLUMNS, rows.words),
            (kernels.HALF_COLUMNS, rows.halves),
            (kernels.OCTET_COLUMNS, rows.octets),
            (kernels.PLACE_COLUMNS, rows.places),
        ):
            for name, array in zip(names, arrays, strict=True):
                bitmap = bitmaps[VALIDITY[name]] if name in VALIDITY else None
                validity = None if bitmap is None else pa.py_buffer(bitmap.data)
                if name == "encapsulation":
                    values[name] = columns.encapsulations(array[:count])
                elif bitmap is not None and not bitmap.any():
                    values[name] = _nulls(name, count)
                elif name in words:
                    values[name] = columns.names(array[:count], words[name], validity)
                else:
                    values[name] = columns.numbers(array[:count], PACKETS.schema.field(name).type, validity)
        return columns.to_table("packets", values)

    def _quoted(self) -> dict[str, columns.Column]:
        """The quoted_ columns."""
        if not self._quotes:
            return {name: _nulls(name, self._count) for name in QUOTED}
        quotes = np.zeros(self._count, PACKET)
        for places, quoted in self._quotes:
            quotes[places] = quoted
        ip = columns.bitmap(quotes["ip_version"] != 0)
        ports = columns.bitmap((quotes["ip_version"] != 0) & (quotes["has_ports"] != 0))
        src, dst = columns.addresses(
            (quotes["src_hi"], quotes["src_lo"]), (quotes["dst_hi"], quotes["dst_lo"]), validity=ip
        )
        return {
            "quoted_protocol": columns.names(quotes["protocol"], columns.PROTOCOL_NAMES, ip),
            "quoted_src_ip": src,
            "quoted_dst_ip": dst,
            "quoted_src_port": columns.numbers(quotes["src_port"], pa.uint16(), ports),
            "quoted_dst_port": columns.numbers(quotes["dst_port"], pa.uint16(), ports),
        }


@functools.lru_cache(maxsize=len(PACKETS.columns))
def _nulls(name: str, length: int) -> Any:
    return pa.nulls(length, PACKETS.schema.field(name).type)
