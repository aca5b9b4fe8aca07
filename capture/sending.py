"""A node's side of a collection: what a root holds of a window, and the stream that carries it away.

Runs beside the agent, within its limits: little memory, one file at a time, nothing written.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

from capture.contract import MANIFEST_SUFFIX, PART, TOMBSTONES, ContractError, Manifest, from_json, sha256, to_json
from capture.cut import Cut, Selection
from capture.errors import PodtapError
from capture.freezes import read_freezes
from capture.listing import Listed, NodeListing
from capture.recording import (
    PCAP,
    Entry,
    Window,
    chain_path,
    data_of,
    journal_files,
    manifest_paths,
    open_parts,
    pinned_sizes,
    read_entry,
    read_or_none,
    select,
    span_of,
)
from capture.transfer import PIECE_BYTES, End, Header, Trailer, send_end, send_file


def list_node(root: Path, folder: Path, window: Window) -> NodeListing:
    """Of one node's folder below the root."""
    entries, _ = select(folder, window)
    ends = _ends(folder)
    named = [*ends, *entries]
    opened, pinned = open_parts(folder), pinned_sizes(folder)
    return NodeListing(
        cluster=named[0].manifest.cluster if named else folder.parent.name,
        node=named[0].manifest.node if named else folder.name,
        path=folder.relative_to(root).as_posix(),
        now_ns=time.time_ns(),
        oldest_ns=span_of(ends[0].manifest)[0] if ends else None,
        newest_ns=span_of(ends[-1].manifest)[1] if ends else None,
        open_since_ns=opened[-1][0] if opened else None,
        pinned_segments=len(pinned),
        pinned_bytes=sum(pinned),
        segments=[asdict(_listed(root, each, window)) for each in entries],
        freezes=[asdict(each) for each in read_freezes(folder)[0]],
    )


def _ends(folder: Path) -> list[Entry]:
    """The first and the last segment that can be read."""
    paths = manifest_paths(folder)
    found: list[Entry] = []
    for ordered in (paths, paths[::-1]):
        for path in ordered:
            with contextlib.suppress(ContractError):
                if entry := read_entry(path):
                    found.append(entry)
                    break
    return found


def _listed(root: Path, entry: Entry, window: Window) -> Listed:
    manifest = entry.manifest
    start, end = span_of(manifest)
    if window.holds(manifest):
        size = _size(data_of(entry.path))
    else:
        overlap = min(end, window.until_ns) - max(start, window.since_ns)
        size = manifest.size_bytes * max(overlap, 0) // max(end - start, 1)
    return Listed(
        _name(root, entry.path), start, end, manifest.packets, manifest.size_bytes, size + entry.manifest_bytes
    )


def _name(root: Path, manifest: Path) -> str:
    """`<cluster>/<node>/<day>/<start>-<seq>`"""
    return manifest.relative_to(root).as_posix().removesuffix(MANIFEST_SUFFIX)


def send_recording(
    root: Path,
    folders: list[Path],
    window: Window,
    addresses: list[str] | None = None,
    resume: str = "",
    offset: int = 0,
) -> Iterator[bytes]:
    """The stream of a window's segments of some nodes, cut to it and to the packets of `addresses`; tombstones last.

    `resume`: the path of the segment to begin with, from the byte `offset` on; what is before it, by name, is there
    already.
    """
    end = End(versions=_versions())
    for folder in folders:
        entries, damaged = select(folder, window)
        end.damaged += [_name(root, path) for path in damaged]
        for entry in entries:
            name = _name(root, entry.path)
            if name < resume:
                continue
            yield from _send_segment(name, folder, entry, window, addresses, offset if name == resume else 0, end)
    for folder in folders:
        yield from _send_plain(root, folder / TOMBSTONES)
    end.now_ns = time.time_ns()
    yield send_end(end)


def send_journal(root: Path, window: Window) -> Iterator[bytes]:
    """The stream of the journal's files that tell of a window; of the open one what is there."""
    for path in journal_files(root, window):
        yield from _send_plain(root, path)
    yield send_end(End(now_ns=time.time_ns(), versions=_versions()))


def _send_segment(
    name: str, folder: Path, entry: Entry, window: Window, addresses: list[str] | None, offset: int, end: End
) -> Iterator[bytes]:
    """As it is where all of it is wanted; else the part, with the manifest of the whole beside its own."""
    selection = Selection(window.since_ns, window.until_ns, addresses)
    content, chain = read_or_none(entry.path), read_or_none(chain_path(entry.path))
    file = _opened(entry.path)
    if content is None or file is None:
        end.vanished.append(name)
        return
    part = None
    suffix, pieces = Path(file.name).name.partition(".")[2], _pieces(file)
    if not selection.takes_all_of(entry.manifest):
        file.close()
        try:
            part = Cut(folder, from_json(Manifest, content), sha256(content), selection)
        except ContractError:
            end.damaged.append(name)
            return
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
            trailer.manifest, trailer.chain = content.decode(), None if chain is None else chain.decode()
            return
        trailer.manifest, trailer.chain = to_json(part.manifest).decode(), (chain or content).decode()
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


def _opened(manifest: Path) -> BinaryIO | None:
    """The file of a segment's packets; None: it was evicted. Between a look and the opening it may be compressed."""
    for _ in range(2):
        with contextlib.suppress(FileNotFoundError):
            return open(data_of(manifest), "rb", buffering=0)
    return None


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    with file:
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
