"""Segments: the capture files of a recording, found, put in order and read as chunks of frames.

A segment is read from front to back exactly as it streams in: no mmap (a file that is cut while it is read would
kill the process), no more memory than a chunk, whatever the compression. What is damaged is said in `problems`,
with its offset, and all the rest is read.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import xxhash

from analysis.compression import ContentStream
from analysis.errors import PodtapError, Problem, UsageError
from analysis.manifests import InterfaceNames, Place, names_without_manifest, place_of, read_manifest
from analysis.pcap import Interface, PcapFramer
from analysis.pcapng import PcapngFramer
from capture.contract import JOURNAL, PART, Manifest

Room: TypeAlias = Callable[[int], npt.NDArray[np.uint8]]
CHUNK_BYTES: Final = 4 << 20
STDIN: Final = "-"
_PEEK_BYTES: Final = 64 << 10
_MAGIC_BYTES: Final = 4
_FRAMERS: Final = (PcapFramer, PcapngFramer)
Framer = PcapFramer | PcapngFramer

# Nobody means these when naming a folder.
_OTHER_FILES: Final = frozenset(
    [".json", ".jsonl", ".md", ".py", ".txt", ".yaml", ".yml", ".tsv", ".csv", ".parquet", ".idx"]
) | {".tmp", ".lock", ".sig", ".asc", ".sha256"}
_PACKED_SUFFIXES: Final = frozenset([".gz", ".zst", ".lz4", ".xz", PART])


def _new_room(length: int) -> npt.NDArray[np.uint8]:
    return np.empty(length, np.uint8)


@dataclass
class Segment:
    """One capture file.

    What depends on the content (`interfaces`, `problems`, `bytes_read`, `truncated`, `sha256_ok`, the drops,
    `content_hash`) is complete once `chunks()` is exhausted; an interface is in `interfaces` before the first chunk
    with a frame of it.
    """

    path: str
    """As it can be opened; '-' is standard input."""
    name: str
    """The file name, with as many of its folders as make it unique in this run."""
    place: Place | None
    """From a path as the agent writes it; None for any other."""
    manifest: Manifest | None
    told_by: Manifest | None
    """Its manifest, or another one of its node: who knows the node's very name."""
    first_ts: int | None
    """Time of the first packet; None where there is none, or the input can be read only once."""
    format: str
    compression: str | None
    unsealed: bool
    """Its agent never finished it, or not yet: it has no manifest."""
    interface_names: InterfaceNames = field(default_factory=InterfaceNames)
    interfaces: list[Interface] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    bytes_read: int = 0
    """Uncompressed."""
    truncated: bool = False
    sha256_ok: bool | None = None
    drops_kernel: int | None = None
    drops_interface: int | None = None
    content_hash: str = ""
    """XXH3-128 of the uncompressed content, in hexadecimal."""
    _once: ContentStream | None = None
    """The opened input, where it can be read only once (standard input, a pipe)."""

    @property
    def key(self) -> str:
        """By which a lake knows its content. Segments without packets are all alike, but each tells of its time."""
        return f"{self.content_hash}:{self.origin}" if self.place and self.first_ts is None else self.content_hash

    @property
    def origin(self) -> str:
        """Which segment of which node it is, whatever its content; '' where no agent wrote it."""
        return f"{self.cluster}/{self.node}/{self.place.stem}" if self.place else ""

    @property
    def cluster(self) -> str | None:
        """None where no agent wrote it."""
        return self.told_by.cluster if self.told_by else self.place.cluster if self.place else None

    @property
    def node(self) -> str | None:
        """None where no agent wrote it."""
        return self.told_by.node if self.told_by else self.place.node if self.place else None

    def chunks(
        self, chunk_bytes: int = CHUNK_BYTES, room: Room = _new_room
    ) -> Iterator[tuple[npt.NDArray[np.uint8], np.ndarray]]:
        """The packets: (data uint8[:], FRAME[:] whose offsets point into it), again and again, frames never empty.

        Frames are there until the next chunk is asked for.
        `room` gives the bytes that a chunk is read into. Never raises for what the file holds or for a failing disk.
        """
        self.interfaces, self.problems = [], []
        content = _Content(self.manifest.sha256 if self.manifest else None)
        try:
            stream = self._open()
        except OSError as error:
            self.problems.append(Problem(self.path, None, _why(error)))
            return
        framer: Framer = PcapFramer() if self.format == PcapFramer.format else PcapngFramer()
        self.interfaces = framer.interfaces
        try:
            for data, frames in _framed(stream, framer, chunk_bytes, room, content):
                self._name_interface()
                yield data, frames
        except OSError as error:
            stream.damage = _why(error)
        finally:
            stream.close()
        self._conclude(framer, content, stream.damage)

    def hash_content(self) -> str:
        """Read it all only to fill in `content_hash` (and return it); leaves it empty where that can't be done.

        That is: for input that can be read only once, and if the disk fails, which `chunks()` will tell.
        """
        if self._once:
            return ""
        content = _Content(None)
        buffer = np.empty(1 << 20, np.uint8)
        try:
            stream = self._open()
            try:
                while filled := stream.readinto(buffer.data):
                    content.update(buffer[:filled])
            finally:
                stream.close()
        except OSError:
            return ""
        self.content_hash = content.hash.hexdigest()
        return self.content_hash

    def _open(self) -> ContentStream:
        return self._once or ContentStream(open(self.path, "rb"))

    def _name_interface(self) -> None:
        """A capture of one interface by name: the pcap does not tell it, the manifest does."""
        if self.manifest and len(self.interfaces) == 1 and not self.interfaces[0].name:
            captured = self.manifest.capture
            if len(captured) == 1 and captured[0] != "any":
                self.interfaces[0].name = captured[0]

    def _conclude(self, framer: Framer, content: _Content, damage: str | None) -> None:
        self.bytes_read = content.bytes
        self.content_hash = content.hash.hexdigest()
        self.truncated = content.left_over > 0 or damage is not None
        self.problems += [Problem(self.path, offset, message) for offset, message in framer.damages.first]
        if framer.damages.more:
            self.problems.append(Problem(self.path, None, f"{framer.damages.more:,} more places like these"))
        if damage:
            self.problems.append(Problem(self.path, content.bytes, f"{damage}; the packets before it were read"))
        elif content.left_over:
            message = (
                f"the file is cut short: its last {content.left_over:,} bytes are no whole record, and were left out"
            )
            self.problems.append(Problem(self.path, content.bytes - content.left_over, message))
        if content.expected_sha256:
            self.sha256_ok = content.sha256.hexdigest() == content.expected_sha256
            if not self.sha256_ok:
                self.problems.append(Problem(self.path, None, "the content is not that of its manifest (SHA-256)"))
        if self.manifest and not self.manifest.salvaged:
            ledger = self.manifest.ledger
            self.drops_kernel, self.drops_interface = ledger.kernel, ledger.interface
            return
        counted = [i.drops_kernel for i in framer.interfaces if i.drops_kernel is not None]
        self.drops_kernel = sum(counted) if counted else framer.dropped
        counted = [i.drops_interface for i in framer.interfaces if i.drops_interface is not None]
        self.drops_interface = sum(counted) if counted else None


class _Content:
    """What is to be known of all the content: its size, its hashes, and how much of its end is no whole record."""

    def __init__(self, expected_sha256: str | None) -> None:
        self.expected_sha256 = expected_sha256
        self.hash = xxhash.xxh3_128()
        self.sha256 = hashlib.sha256()
        self.bytes = 0
        self.left_over = 0

    def update(self, part: npt.NDArray[np.uint8]) -> None:
        self.bytes += len(part)
        self.hash.update(part.data)
        if self.expected_sha256:
            self.sha256.update(part.data)


def _framed(
    stream: ContentStream, framer: Framer, chunk_bytes: int, room: Room, content: _Content
) -> Iterator[tuple[npt.NDArray[np.uint8], np.ndarray]]:
    """Read `stream` to its end in chunks; what is no whole record at the end of one begins the next."""
    left_over: npt.NDArray[np.uint8] = np.empty(0, np.uint8)
    offset = 0
    final = False
    while not final:
        data = room(max(chunk_bytes, 2 * len(left_over)))
        start = len(left_over)
        data[:start] = left_over
        end = start + stream.readinto(data[start:].data)
        final = end < len(data)
        data = data[:end]
        content.update(data[start:])
        frames, consumed = framer.frames(data, offset, final)
        left_over = data[consumed:]
        content.left_over = len(left_over)
        offset += consumed
        if len(frames):
            yield data, frames


def find_segments(inputs: Sequence[str]) -> tuple[list[Segment], list[Problem]]:
    """All captures among `inputs` (files, folders, glob patterns, '-') in the order of their first packets.

    Files whose first packet isn't known (none in it, or a pipe) come last; equal times are ordered by path, numbers
    in it as numbers. A file given twice counts once. What can't be read or is no capture becomes a Problem. Raises
    UsageError for an input that does not exist, PodtapError for a folder that holds neither a file that may be a
    capture nor a journal.
    """
    found: list[Segment] = []
    paths, problems = _expand(inputs)
    for path in paths:
        segment = _identify(path, problems)
        if isinstance(segment, Problem):
            problems.append(segment)
        else:
            found.append(segment)
    found = _of_recordings(found)
    found.sort(key=lambda s: (s.first_ts is None, s.first_ts or 0, _natural(s.path)))
    for segment, name in zip(found, _unique_names([s.path for s in found]), strict=True):
        segment.name = name
    return found, problems


def _expand(inputs: Sequence[str]) -> tuple[list[str], list[Problem]]:
    paths: dict[str, str] = {}
    problems: list[Problem] = []
    for given in inputs:
        literal = given == STDIN or os.path.lexists(given)
        matches = [given] if literal else sorted(glob.glob(given, recursive=True))
        if not matches:
            raise UsageError(f"{given}: no such file or folder")
        for match in matches:
            for path in _walk(match, problems) if match != STDIN and os.path.isdir(match) else [match]:
                paths.setdefault(path if path == STDIN else os.path.realpath(path), path)
    return list(paths.values()), problems


def _walk(folder: str, problems: list[Problem]) -> list[str]:
    """Files below `folder` that may be captures; what can't be listed is added to `problems`."""
    paths: list[str] = []
    closed: list[Problem] = []
    has_journal = False
    for parent, folders, files in os.walk(
        folder, onerror=lambda error: closed.append(Problem(error.filename, None, _why(error)))
    ):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        has_journal = has_journal or os.path.basename(os.path.normpath(parent)) == JOURNAL
        paths += [os.path.join(parent, f) for f in sorted(files) if _may_be_capture(f)]
    paths = [path for path in paths if os.path.isfile(path) or not os.path.exists(path)]  # no pipes, no sockets
    if not paths and not closed and not has_journal:
        raise PodtapError(f"{folder}: no captures in this folder")
    problems += closed
    return paths


def _may_be_capture(file_name: str) -> bool:
    stem, suffix = os.path.splitext(file_name.lower())
    while suffix in _PACKED_SUFFIXES:
        stem, suffix = os.path.splitext(stem)
    return not file_name.startswith(".") and suffix not in _OTHER_FILES


def _identify(path: str, problems: list[Problem]) -> Segment | Problem:
    """Look at how a file starts, and at its manifest; what is wrong with that is added to `problems`."""
    try:
        once = path == STDIN or not stat.S_ISREG(os.stat(path).st_mode)
        stream = ContentStream(sys.stdin.buffer if path == STDIN else open(path, "rb"))  # noqa: SIM115 (may stay open)
        head = stream.peek(_MAGIC_BYTES)
        framer = next((f for f in _FRAMERS if f.recognises(head)), None)
        if framer is None:
            stream.close()
            return Problem(path, None, _no_capture(head, stream.damage))
        first_ts = None if once else _first_ts(stream, framer())
    except OSError as error:
        return Problem(path, None, _why(error))
    place = None if once else place_of(os.path.abspath(path))
    manifest = read_manifest(path) if place else None
    if isinstance(manifest, Problem):
        problems.append(manifest)
        manifest = None
    return Segment(
        path=path,
        name=path,
        place=place,
        manifest=manifest,
        told_by=manifest,
        first_ts=first_ts,
        format=framer.format,
        compression=stream.compression,
        unsealed=path.endswith(PART) or (place is not None and manifest is None),
        _once=stream if once else None,
    )


def _of_recordings(found: list[Segment]) -> list[Segment]:
    """Segments of one node in the order in which it wrote them, each once; others stay as they are.

    A copy of a segment (in a bundle, or compressed just now) does not count again: the most complete one is taken.
    """
    kept = [segment for segment in found if segment.place is None]
    nodes: dict[tuple[str, str], dict[str, Segment]] = {}
    for segment in found:
        if segment.place:
            of_node = nodes.setdefault((segment.place.cluster, segment.place.node), {})
            known = of_node.get(segment.place.stem)
            if known is None or _completeness(known) < _completeness(segment):
                of_node[segment.place.stem] = segment
    for of_node in nodes.values():
        manifests = [segment.manifest for segment in of_node.values() if segment.manifest]
        latest = None
        for stem, segment in sorted(of_node.items()):
            if segment.manifest:
                segment.interface_names = InterfaceNames(segment.manifest.interfaces)
            else:
                segment.interface_names = names_without_manifest(stem, manifests)
                segment.told_by = next(iter(manifests), None)
            if segment.first_ts is not None:  # in order also where the clock jumped back
                latest = segment.first_ts = max(segment.first_ts, latest or segment.first_ts)
            kept.append(segment)
    return kept


def _completeness(segment: Segment) -> tuple[bool, bool, int, bool]:
    manifest = segment.manifest
    whole = manifest is not None and manifest.derived_from is None
    return manifest is not None, whole, manifest.packets if manifest else 0, segment.compression is None


def _first_ts(stream: ContentStream, framer: Framer) -> int | None:
    """Time of the first packet; reads no further."""
    try:
        first = next(_framed(stream, framer, _PEEK_BYTES, _new_room, _Content(None)), None)
        return int(first[1][0]["ts"]) if first else None
    finally:
        stream.close()


def _no_capture(head: bytes, damage: str | None) -> str:
    if damage:
        return damage
    if not head:
        return "empty file"
    return f"not a capture (starts with {head.hex(' ')}, {head!r}); pcap and pcapng are read, also compressed"


def _natural(path: str) -> list[tuple[bool, int, str]]:
    """A key that orders numbers within a path as numbers: part_2 before part_10."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"([0-9]+)", path)]


def _unique_names(paths: Sequence[str]) -> list[str]:
    """The shortest ends of `paths` (all different), in whole parts, that tell each from all others."""
    parts = [[STDIN] if path == STDIN else printable(os.path.abspath(path)).split("/") for path in paths]
    depths = [1] * len(paths)
    while True:
        names = ["/".join(part[-depth:]) for part, depth in zip(parts, depths, strict=True)]
        uses = Counter(names)
        if len(uses) == len(names):
            return names
        depths = [depth + (uses[name] > 1) for name, depth in zip(names, depths, strict=True)]


def printable(text: str) -> str:
    """Without the surrogates of a file name that is no UTF-8, which can't be stored."""
    return text.encode(errors="backslashreplace").decode()


def _why(error: OSError) -> str:
    return f"can't be read: {error.strerror or error}"
