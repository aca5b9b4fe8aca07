"""What can be kept of a segment that was not sealed: whole records only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from capture.contract import PART
from capture.pcap_records import HEADER_BYTES, RecordWalk, read_header
from capture.segment_writer import PCAP, SEGMENT_MODE, Part, SegmentFacts, open_part, write_all
from capture.stored_segments import ZSTD

_PIECE_BYTES: Final = 1 << 20


def facts_of(fd: int) -> SegmentFacts | None:
    """What an open file holds up to its last whole record; None: not one. Lengths in it are not trusted."""
    header = read_header(os.pread(fd, HEADER_BYTES, 0))
    if header is None:
        return None
    walk = RecordWalk(header)
    packets, first, last = 0, None, None
    for _, records in walk.blocks(_pieces(fd)):
        if not records:
            continue
        times = [time_ns for _, time_ns, _ in records]
        packets += len(records)
        first = min(times) if first is None else min(first, min(times))
        last = max(times) if last is None else max(last, max(times))
    if not packets:
        return None
    return SegmentFacts(
        link_type=header.link_type,
        snaplen=header.snaplen,
        packets=packets,
        size_bytes=walk.offset,
        first_packet_ns=first,
        last_packet_ns=last,
        salvaged=True,
    )


def _pieces(fd: int) -> Iterator[bytes]:
    """Read, not mapped: whoever truncated a mapped file would kill the agent."""
    offset = HEADER_BYTES
    while piece := os.pread(fd, _PIECE_BYTES, offset):
        yield piece
        offset += len(piece)


def adopt(path: Path, folder: Path, stem: str, seq: int, opened_ns: int) -> Part:
    """Make what is not sealed the part `stem`, opened again.

    `path` is a .pcap.part or .pcap, which is given the part's name, or a .pcap.zst, whose contents are put into a new
    file as far as they can be read: then the caller removes `path` once that is sealed.
    """
    if path.name.endswith(ZSTD):
        part = open_part(folder, stem, seq, opened_ns)
        try:
            _decompress(path, part.fd)
        except OSError:
            os.close(part.fd)
            part.path.unlink(missing_ok=True)
            raise
        return part
    target = folder / f"{stem}{PCAP}{PART}"
    target.parent.mkdir(exist_ok=True)
    os.chmod(path, SEGMENT_MODE)  # it may have been pinned
    os.rename(path, target)
    fd = os.open(target, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    return Part(target, fd, seq, stem, opened_ns)


def _decompress(path: Path, fd: int) -> None:
    import zstandard

    with open(path, "rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as reader:
        try:
            while piece := reader.read(_PIECE_BYTES):
                write_all(fd, piece)
        except zstandard.ZstdError:
            return
