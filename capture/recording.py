"""What lies below a recording's root, as whoever reads it finds it: the folders of nodes, their segments, the journal.

Reading only, while an agent writes, compresses and evicts: what is gone when it is looked for is not an error.
"""

from __future__ import annotations

import contextlib
import json
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from capture.chain import Link, pieces
from capture.contract import (
    JOURNAL,
    JOURNAL_SUFFIX,
    MANIFEST_SUFFIX,
    NANOSECONDS,
    PART,
    ContractError,
    Manifest,
    from_json,
    parse_stem,
    sha256,
)

CHAIN_SUFFIX: Final = ".chain.json"
"""In a bundle, beside what was cut out of a segment: the segment's own manifest, byte for byte."""
PCAP: Final = ".pcap"
COMPRESSED: Final = ".pcap.zst"
_JOURNAL_PART: Final = ".jsonl" + PART
_MARGIN_NS: Final = 600 * NANOSECONDS
"""So far may the clock have been off between a segment's name and its packets."""


@dataclass(frozen=True)
class Segment:
    """A sealed segment: its manifest as bytes and as what they say, and the file of its packets."""

    folder: Path
    """The node's."""
    manifest: Manifest
    manifest_bytes: bytes
    data: Path
    """.pcap or .pcap.zst."""
    chain_bytes: bytes | None = None
    """Of a part that was cut out: the manifest of the segment it comes from."""


@dataclass(frozen=True)
class Window:
    """From `since_ns` up to, but not at, `until_ns`."""

    since_ns: int
    until_ns: int

    def meets(self, start_ns: int, end_ns: int) -> bool:
        return start_ns < self.until_ns and end_ns >= self.since_ns

    def holds(self, manifest: Manifest) -> bool:
        """Whether all packets of a segment are in it."""
        first, last = manifest.first_packet_ns, manifest.last_packet_ns
        return first is None or last is None or (first >= self.since_ns and last < self.until_ns)


def span_of(manifest: Manifest) -> tuple[int, int]:
    """From when to when a segment tells what there was. A salvaged one was sealed long after it was written."""
    first = manifest.opened_ns if manifest.first_packet_ns is None else manifest.first_packet_ns
    last = manifest.opened_ns if manifest.last_packet_ns is None else manifest.last_packet_ns
    if not manifest.salvaged:
        last = max(last, manifest.sealed_ns)
    return min(first, manifest.opened_ns), last


def node_folders(root: Path) -> list[Path]:
    """`<cluster>/<node>` of all nodes, by name."""
    return sorted(
        node
        for cluster in _folders(root)
        if cluster.name[:1] not in "._"
        for node in _folders(cluster)
        if node.name[:1] not in "._"
    )


def segments(folder: Path) -> Iterator[Segment]:
    """The sealed segments of a node, by name. ContractError tells of a manifest that is none."""
    for path in manifest_paths(folder):
        content = read_or_none(path)
        if content is None:
            continue
        try:
            manifest = from_json(Manifest, content)
        except ContractError as error:
            raise ContractError(f"{path}: {error}") from None
        yield Segment(folder, manifest, content, data_of(path), read_or_none(chain_path(path)))


@dataclass(frozen=True)
class Entry:
    """A segment as a listing needs it: its manifest without the long tables, and its place in the chain."""

    path: Path
    """Of the manifest."""
    manifest: Manifest
    manifest_bytes: int
    link: Link


def read_entry(path: Path) -> Entry | None:
    """None: it was evicted meanwhile. ContractError tells of a manifest that is none."""
    content, chain = read_or_none(path), read_or_none(chain_path(path))
    if content is None:
        return None
    manifest = _without_tables(content)
    return Entry(path, manifest, len(content), _link(manifest, content if chain is None else chain))


def select(folder: Path, window: Window) -> tuple[list[Entry], list[Path]]:
    """The segments of a window, in the order of their chain; and manifests that can't be read.

    From the first that meets the window to the last, and all between them: what the clock did must not tear the chain.
    """
    entries: dict[Link, Entry] = {}
    damaged: list[Path] = []
    for path in _candidates(manifest_paths(folder), window):
        try:
            if entry := read_entry(path):
                entries[entry.link] = entry
        except ContractError:
            damaged.append(path)
    ordered = [entries[link] for piece in pieces(entries) for link in piece]
    places = [place for place, each in enumerate(ordered) if window.meets(*span_of(each.manifest))]
    return (ordered[places[0] : places[-1] + 1] if places else []), damaged


def _candidates(paths: list[Path], window: Window) -> Iterator[Path]:
    """Manifests that may be of a window, by their names: to read all of a large ring takes long.

    A segment lasts about until the next begins. Where the clock jumped back, the next name follows at once, and both do
    not tell the time: then it has to be looked up. Of the last one nobody knows yet.
    """
    starts = [(parse_stem(path.name) or (0, 0))[0] for path in paths]
    for number, (path, start) in enumerate(zip(paths, starts, strict=True)):
        before = starts[number - 1] if number else start - _MARGIN_NS
        after = starts[number + 1] if number + 1 < len(starts) else start
        is_odd = min(start - before, after - start) < NANOSECONDS
        if is_odd or window.meets(start - _MARGIN_NS, after + _MARGIN_NS):
            yield path


def _without_tables(content: bytes) -> Manifest:
    """A manifest may be long, and parsing its interfaces takes ten times as long as all the rest."""
    try:
        values = json.loads(content)
        for table in ("interfaces", "counters"):
            values.pop(table, None)
    except (ValueError, AttributeError, RecursionError):
        return from_json(Manifest, content)  # which says what is wrong
    return from_json(Manifest, json.dumps(values).encode())


def link_of(segment: Segment) -> Link:
    """A segment's place in the node's chain; a part's is the one of the whole that it was cut out of."""
    return _link(segment.manifest, original(segment))


def _link(manifest: Manifest, content: bytes) -> Link:
    return Link(manifest.stem, sha256(content), manifest.previous_sha256)


def original(segment: Segment) -> bytes:
    """The manifest as it was in the node's chain."""
    return segment.manifest_bytes if segment.chain_bytes is None else segment.chain_bytes


def manifest_paths(folder: Path) -> list[Path]:
    """Of all sealed segments of a node, oldest first."""
    paths = (path for day in _folders(folder) if day.name.isdigit() for path in day.iterdir())
    return sorted(
        path
        for path in paths
        if path.name.endswith(MANIFEST_SUFFIX) and path.name.count(".") == 1 and parse_stem(path.name)
    )


def data_of(manifest: Path) -> Path:
    """The file of the packets; the plain one's name where there is none."""
    compressed = manifest.with_name(manifest.name.removesuffix(MANIFEST_SUFFIX) + COMPRESSED)
    return compressed if compressed.exists() else manifest.with_suffix(PCAP)


def chain_path(manifest: Path) -> Path:
    """Where the manifest of the whole is, if this one's segment is a part of it."""
    return manifest.with_name(manifest.name.removesuffix(MANIFEST_SUFFIX) + CHAIN_SUFFIX)


def open_parts(folder: Path) -> list[tuple[int, Path]]:
    """Segments that are being written: when they began, and where; newest last."""
    paths = [path for day in _folders(folder) if day.name.isdigit() for path in day.glob(f"*{PCAP}{PART}")]
    return sorted((parsed[0], path) for path in paths if (parsed := parse_stem(path.name)))


def pinned_sizes(folder: Path) -> list[int]:
    """Of the segments that a freeze keeps: the ring makes them read-only."""
    found = []
    for day in _folders(folder):
        for path in day.glob(f"*{PCAP}*") if day.name.isdigit() else ():
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                if not status.st_mode & stat.S_IWUSR:
                    found.append(status.st_size)
    return found


def writer_folders(root: Path) -> list[Path]:
    """Of the journal: one for each writer, by name."""
    return _folders(root / JOURNAL)


def journal_files(root: Path, window: Window) -> list[Path]:
    """Files of the journal that tell of the window, of all its writers: each stands for the time up to the next."""
    return [path for writer in writer_folders(root) for path in _covering(list(_journal_of(writer)), window)]


def _journal_of(writer: Path) -> Iterator[tuple[int, Path]]:
    for day in _folders(writer):
        for path in day.iterdir():
            parsed = parse_stem(path.name)
            if parsed and path.name.endswith((JOURNAL_SUFFIX, _JOURNAL_PART)):
                yield parsed[0], path


def _covering(files: list[tuple[int, Path]], window: Window) -> Iterable[Path]:
    files.sort()
    starts = [start for start, _ in files]
    for number, (start, path) in enumerate(files):
        end = starts[number + 1] if number + 1 < len(starts) else window.until_ns
        if start < window.until_ns and (end > window.since_ns or number + 1 == len(files)):
            yield path


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(each for each in path.iterdir() if each.is_dir() and not each.is_symlink())
    except (FileNotFoundError, NotADirectoryError):
        return []


def read_or_none(path: Path) -> bytes | None:
    """A small file, if it is there."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def clock_text(time_ns: int) -> str:
    """A time as messages tell it: UTC, to the second."""
    return f"{datetime.fromtimestamp(time_ns // NANOSECONDS, UTC):%Y-%m-%dT%H:%M:%SZ}"
