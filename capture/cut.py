"""A part of a segment: the packets of a window, of some addresses, or both, as a segment with its own manifest.

Bounded memory: a megabyte is read, looked through record by record, and handed on.
"""

from __future__ import annotations

import errno
import hashlib
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Final

from capture.address_match import AddressMatch
from capture.contract import SEGMENT_SUFFIXES, DerivedFrom, Manifest
from capture.errors import PodtapError
from capture.pcap_records import HEADER_BYTES, RECORD_HEADER_BYTES, Record, RecordWalk, read_header
from capture.stored_segments import ZSTD

_PIECE_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Selection:
    """Which packets: those of [since_ns, until_ns), and to or from one of the addresses. None: all."""

    since_ns: int | None = None
    until_ns: int | None = None
    addresses: list[str] | None = None

    def takes_all_of(self, manifest: Manifest) -> bool:
        """Whether a segment is to be passed on as it is."""
        first, last = manifest.first_packet_ns, manifest.last_packet_ns
        if self.addresses is not None:
            return False
        return first is None or last is None or (self._has(first) and self._has(last))

    def _has(self, time_ns: int) -> bool:
        return (self.since_ns is None or time_ns >= self.since_ns) and (
            self.until_ns is None or time_ns < self.until_ns
        )


class Cut:
    """Read `pieces` to their end; then `manifest` is the part's, and `damage` what was wrong with the segment, or "".

    The part keeps the segment's name, its place in the chain (`previous_sha256`), its ledger and all that was noted
    of its time; `derived_from` tells the rest. The same segment and selection give the same bytes.
    """

    def __init__(self, folder: Path, manifest: Manifest, manifest_sha256: str, selection: Selection) -> None:
        """`folder`: the node's. `manifest_sha256`: of the manifest's file, byte for byte."""
        self.manifest = replace(manifest, derived_from=_derived_from(manifest, manifest_sha256, selection))
        self.damage = ""
        self._whole = manifest
        self._folder = folder
        self._selection = selection

    def pieces(self) -> Iterator[bytes]:
        """The part's bytes, the file's header first. FileNotFoundError: the segment is gone. PodtapError: no pcap."""
        digest, size = hashlib.sha256(), 0
        with open_data(self._folder, self._whole.stem) as reader:
            for piece in self._selected(reader):
                digest.update(piece)
                size += len(piece)
                yield piece
        self.manifest = replace(self.manifest, size_bytes=size, sha256=digest.hexdigest())

    def _selected(self, reader: BinaryIO) -> Iterator[bytes]:
        source = hashlib.sha256(start := reader.read(HEADER_BYTES))
        header = read_header(start)
        if header is None:
            raise PodtapError(f"{self._folder / self._whole.stem}: this is no pcap")
        yield start
        walk = RecordWalk(header)
        chosen = _Chooser(self._selection, header.link_type)
        for block, records in walk.blocks(_read(reader, source)):
            if piece := chosen.of(block, records):
                yield piece
        if walk.damage:
            self.damage = f"offset {walk.offset}: {walk.damage}"
        elif source.hexdigest() != self._whole.sha256:
            self.damage = "its data is not what its manifest says"
        self.manifest = replace(
            self.manifest, packets=chosen.packets, first_packet_ns=chosen.first_ns, last_packet_ns=chosen.last_ns
        )


class _Chooser:
    """Picks records, and counts what it picked."""

    def __init__(self, selection: Selection, link_type: int) -> None:
        self._since_ns = 0 if selection.since_ns is None else selection.since_ns
        self._until_ns = sys.maxsize if selection.until_ns is None else selection.until_ns
        addresses = selection.addresses
        self._matches = None if addresses is None else AddressMatch(addresses, link_type).matches
        self.packets = 0
        self.first_ns: int | None = None
        self.last_ns: int | None = None

    def of(self, block: bytes, records: list[Record]) -> bytes:
        """The bytes of the records that are picked. Neighbours are copied as one."""
        since_ns, until_ns, matches = self._since_ns, self._until_ns, self._matches
        times: list[int] = []
        pieces: list[bytes] = []
        begin = end = 0
        for offset, time_ns, captured in records:
            data = offset + RECORD_HEADER_BYTES
            if since_ns <= time_ns < until_ns and (matches is None or matches(block, data, data + captured)):
                if offset != end:
                    pieces.append(block[begin:end])
                    begin = offset
                end = data + captured
                times.append(time_ns)
        if times:
            pieces.append(block[begin:end])
            self.packets += len(times)
            self.first_ns = min(times) if self.first_ns is None else min(self.first_ns, min(times))
            self.last_ns = max(times) if self.last_ns is None else max(self.last_ns, max(times))
        return b"".join(pieces)


@contextmanager
def open_data(folder: Path, stem: str) -> Iterator[BinaryIO]:
    """A segment's uncompressed bytes, from their beginning on, also while it is being compressed.

    FileNotFoundError: it is gone. PodtapError, while it is read: it can't be decompressed.
    """
    for suffix in (*SEGMENT_SUFFIXES, SEGMENT_SUFFIXES[0]):
        try:
            file = open(folder / f"{stem}{suffix}", "rb")  # noqa: SIM115
        except FileNotFoundError:
            continue
        with file:
            if suffix == ZSTD:
                yield from _decompressed(file)
            else:
                yield file
            return
    raise FileNotFoundError(errno.ENOENT, "the segment is gone", f"{folder / stem}")


def _decompressed(file: BinaryIO) -> Iterator[BinaryIO]:
    import zstandard

    try:
        yield io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(file), _PIECE_BYTES)
    except zstandard.ZstdError as error:
        raise PodtapError(f"{file.name}: can't be decompressed: {error}") from error


def _read(reader: BinaryIO, digest: hashlib._Hash) -> Iterator[bytes]:
    while piece := reader.read(_PIECE_BYTES):
        digest.update(piece)
        yield piece


def _derived_from(manifest: Manifest, manifest_sha256: str, selection: Selection) -> DerivedFrom:
    """Of a part of a part: what it comes from in the end, and all that was selected on the way."""
    before = manifest.derived_from
    if before is None:
        return DerivedFrom(manifest_sha256, manifest.sha256, manifest.packets, **vars(selection))
    addresses = [each for each in (before.addresses, selection.addresses) if each is not None]
    return replace(
        before,
        since_ns=max((each for each in (before.since_ns, selection.since_ns) if each is not None), default=None),
        until_ns=min((each for each in (before.until_ns, selection.until_ns) if each is not None), default=None),
        addresses=[each for each in addresses[0] if each in addresses[-1]] if addresses else None,
    )
