"""A node's side of a collection: what a root holds of a window, and the stream that carries it away.

Runs beside the agent, within its limits: little memory, one file at a time, nothing written.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

from capture.contract import MANIFEST_SUFFIX, PART, TOMBSTONES, sha256, to_json
from capture.cut import Cut, Selection
from capture.errors import PodtapError
from capture.freezes import read_freezes
from capture.recording import (
    PCAP,
    Segment,
    Window,
    journal_files,
    node_folders,
    open_parts,
    original,
    read_segment,
    segments,
    select,
    span_of,
)
from capture.transfer import PIECE_BYTES, End, Header, Trailer, send_end, send_file


@dataclass
class Listed:
    """One segment of a window."""

    path: str
    """`<cluster>/<node>/<day>/<start>-<seq>`"""
    start_ns: int
    end_ns: int
    packets: int
    size_bytes: int
    """Of the packets, uncompressed."""
    send_bytes: int
    """About what it takes to send it."""


@dataclass
class NodeListing:
    """What a node's folder holds, and what of it is in the window. One line of `podtap agent list -o json`."""

    cluster: str
    node: str
    path: str
    oldest_ns: int | None = None
    newest_ns: int | None = None
    open_since_ns: int | None = None
    """The segment that is being written began then."""
    segments: list[dict[str, Any]] = field(default_factory=list)
    """As Listed."""
    tombstone_bytes: int = 0
    freezes: list[dict[str, Any]] = field(default_factory=list)

    def listed(self) -> list[Listed]:
        return [Listed(**each) for each in self.segments]


def list_nodes(root: Path, window: Window) -> Iterator[NodeListing]:
    """Of each node's folder below the root."""
    for folder in node_folders(root):
        cluster, node = folder.parent.name, folder.name
        found: list[dict[str, Any]] = []
        oldest, newest = None, None
        for segment in segments(folder):
            manifest = segment.manifest
            cluster, node = manifest.cluster, manifest.node
            start, end = span_of(manifest)
            oldest = start if oldest is None else min(oldest, start)
            newest = end if newest is None else max(newest, end)
            if window.meets(start, end):
                found.append(asdict(_listed(root, segment, window)))
        opened = open_parts(folder)
        freezes, _ = read_freezes(folder)
        yield NodeListing(
            cluster,
            node,
            folder.relative_to(root).as_posix(),
            oldest,
            newest,
            opened[-1][0] if opened else None,
            found,
            _size(folder / TOMBSTONES),
            [asdict(each) for each in freezes],
        )


def _listed(root: Path, segment: Segment, window: Window) -> Listed:
    manifest = segment.manifest
    start, end = span_of(manifest)
    whole = segment.stored_bytes
    if window.holds(manifest):
        size = whole
    else:
        overlap = min(end, window.until_ns) - max(start, window.since_ns)
        size = manifest.size_bytes * max(overlap, 0) // max(end - start, 1)
    path = (segment.folder / manifest.stem).relative_to(root).as_posix()
    return Listed(path, start, end, manifest.packets, manifest.size_bytes, size + len(segment.manifest_bytes))


def send_recording(
    root: Path, window: Window, addresses: list[str] | None = None, resume: str = "", offset: int = 0
) -> Iterator[bytes]:
    """The stream of a window's segments, cut to it and to the packets of `addresses`; tombstones last.

    `resume`: the path of the segment to begin with, from the byte `offset` on; what is before it, by name, is there
    already.
    """
    end = End(versions=_versions())
    for folder in node_folders(root):
        for path in select(folder, window):
            name = path.relative_to(root).as_posix().removesuffix(MANIFEST_SUFFIX)
            if name < resume:
                continue
            segment = read_segment(folder, path)
            if segment is None or not segment.data.exists():
                end.vanished.append(name)
            else:
                yield from _send_segment(name, segment, window, addresses, offset if name == resume else 0, end)
    for folder in node_folders(root):
        yield from _send_plain(root, folder / TOMBSTONES)
    end.now_ns = time.time_ns()
    yield send_end(end)


def send_journal(root: Path, window: Window) -> Iterator[bytes]:
    """The stream of the journal's files that tell of a window; of the open one what is there."""
    for path in journal_files(root, window):
        yield from _send_plain(root, path)
    yield send_end(End(now_ns=time.time_ns(), versions=_versions()))


def _send_segment(
    name: str, segment: Segment, window: Window, addresses: list[str] | None, offset: int, end: End
) -> Iterator[bytes]:
    """As it is where all of it is wanted; else the part, with the manifest of the whole beside its own."""
    selection = Selection(window.since_ns, window.until_ns, addresses)
    if selection.takes_all_of(segment.manifest):
        part, suffix, pieces = None, segment.data.name.partition(".")[2], _pieces(segment.data)
    else:
        part = Cut(segment.folder, segment.manifest, sha256(segment.manifest_bytes), selection)
        suffix, pieces = PCAP.removeprefix("."), part.pieces()
    is_whole = True

    def readable() -> Iterator[bytes]:
        nonlocal is_whole
        try:
            yield from pieces
        except FileNotFoundError:  # evicted meanwhile
            is_whole = False
            end.vanished.append(name)
        except (PodtapError, OSError):
            is_whole = False
            end.damaged.append(name)

    def finish(trailer: Trailer) -> None:
        if not is_whole:
            return
        if part is None:
            trailer.manifest = segment.manifest_bytes.decode()
            trailer.chain = None if segment.chain_bytes is None else segment.chain_bytes.decode()
            return
        trailer.manifest, trailer.chain = to_json(part.manifest).decode(), original(segment).decode()
        if part.damage:
            end.damaged.append(name)

    yield from send_file(Header(f"{name}.{suffix}", offset), readable(), finish)


def _send_plain(root: Path, path: Path) -> Iterator[bytes]:
    """A file that is no segment, if it is there; of one that is being written the whole lines."""
    try:
        with open(path, "rb") as file:
            pieces = _whole_lines(file) if path.name.endswith((PART, TOMBSTONES)) else iter(_reads(file))
            yield from send_file(Header(path.relative_to(root).as_posix()), pieces, lambda trailer: None)
    except FileNotFoundError:
        return


def _pieces(path: Path) -> Iterator[bytes]:
    with open(path, "rb", buffering=0) as file:
        yield from _reads(file)


def _reads(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(PIECE_BYTES):
        yield piece


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    rest = b""
    for piece in _reads(file):
        whole, newline, rest = (rest + piece).rpartition(b"\n")
        if newline:
            yield whole + newline


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _versions() -> dict[str, str]:
    return {"podtap": version("podtap")}
