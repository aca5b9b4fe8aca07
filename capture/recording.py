"""What lies below a recording's root, as whoever reads it finds it: the folders of nodes, their segments, the journal.

Reading only, while an agent writes, compresses and evicts: what is gone when it is looked for is not an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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

    @property
    def stored_bytes(self) -> int:
        try:
            return self.data.stat().st_size
        except FileNotFoundError:
            return 0


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
        if segment := read_segment(folder, path):
            yield segment


def read_segment(folder: Path, path: Path) -> Segment | None:
    """The segment of a manifest; None: it was evicted meanwhile. ContractError tells of a manifest that is none."""
    try:
        content = path.read_bytes()
        return Segment(folder, from_json(Manifest, content), content, data_of(path), _read(chain_path(path)))
    except FileNotFoundError:
        return None
    except ContractError as error:
        raise ContractError(f"{path}: {error}") from None


def select(folder: Path, window: Window) -> list[Path]:
    """The manifests of a window, in the order of their chain.

    From the first segment to the last that meets the window, and all between them: what the clock did must not tear
    the chain.
    """
    paths: dict[Link, Path] = {}
    meeting: set[Link] = set()
    for segment in segments(folder):
        manifest = segment.manifest
        link = link_of(segment)
        paths[link] = folder / f"{manifest.stem}{MANIFEST_SUFFIX}"
        if window.meets(*span_of(manifest)):
            meeting.add(link)
    ordered = [link for piece in pieces(paths) for link in piece]
    places = [place for place, link in enumerate(ordered) if link in meeting]
    return [paths[link] for link in ordered[places[0] : places[-1] + 1]] if places else []


def link_of(segment: Segment) -> Link:
    """A segment's place in the node's chain; a part's is the one of the whole that it was cut out of."""
    content = original(segment)
    return Link(segment.manifest.stem, sha256(content), segment.manifest.previous_sha256)


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


def journal_files(root: Path, window: Window) -> list[Path]:
    """Files of the journal that tell of the window, of all its writers: each stands for the time up to the next."""
    return [path for writer in _folders(root / JOURNAL) for path in _covering(list(_journal_of(writer)), window)]


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


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def clock_text(time_ns: int) -> str:
    """A time as messages tell it: UTC, to the second."""
    from datetime import UTC, datetime

    return f"{datetime.fromtimestamp(time_ns // NANOSECONDS, UTC):%Y-%m-%dT%H:%M:%SZ}"
