"""One writer's folder of the journal: its files on disk, from `.part` to sealed to deleted.

A `.part` can be read up to its last flush, also after a crash. Its time of modification says until when the journal
knew everything: it is set at each flush, also where nothing was to be written.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Final

import zstandard

from capture.contract import JOURNAL, JOURNAL_SUFFIX, PART, JournalRecord, parse_stem, safe_name, stem, to_json
from capture.errors import PodtapError

PART_SUFFIX: Final = JOURNAL_SUFFIX.removesuffix(".zst") + PART
_LEVEL: Final = 6
_PIECE: Final = 1 << 20


@dataclass(frozen=True)
class JournalFile:
    """A sealed file, and what it takes."""

    path: Path
    start_ns: int
    size_bytes: int


def surplus(files: Iterable[JournalFile], now_ns: int, quota_bytes: int, max_age_ns: int | None) -> list[JournalFile]:
    """Those of one writer that are to go: the oldest beyond the quota, and those that ended longer ago than allowed.

    The newest stays. A file ended when the next one began.
    """
    ordered = sorted(files, key=lambda file: (file.start_ns, file.path))
    left = sum(file.size_bytes for file in ordered)
    gone = []
    for file, after in pairwise(ordered):
        is_old = max_age_ns is not None and after.start_ns < now_ns - max_age_ns
        if left <= quota_bytes and not is_old:
            break
        left -= file.size_bytes
        gone.append(file)
    return gone


class Part:
    """A file that is being written. All methods raise OSError; after one, only abandon() may be called."""

    def __init__(self, path: Path) -> None:
        """`path` without suffix. Creates it; FileExistsError if it is there."""
        self.path = path.with_name(path.name + PART_SUFFIX)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = self.path.open("xb", buffering=0)
        self._stream = zstandard.ZstdCompressor(level=_LEVEL).compressobj()
        self.size_bytes = 0
        """On disk."""
        self._is_flushed = True

    def write(self, records: Iterable[JournalRecord]) -> None:
        """Keeps them, at the latest at the next flush."""
        for record in records:
            self._put(self._stream.compress(to_json(record)))
            self._is_flushed = False

    def flush(self, known_ns: int, sync: bool = False) -> None:
        """Whatever was written can be read now; with `sync`, also after a power failure. `known_ns`: all is known."""
        if not self._is_flushed:
            self._put(self._stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
            self._is_flushed = True
        if sync:
            os.fdatasync(self._file.fileno())
        os.utime(self._file.fileno(), ns=(known_ns, known_ns))

    def seal(self, known_ns: int) -> Path:
        """Ends it; returns the name that it has now."""
        self._put(self._stream.flush())
        os.utime(self._file.fileno(), ns=(known_ns, known_ns))
        os.fsync(self._file.fileno())
        self._file.close()
        return _commit(self.path)

    def abandon(self) -> None:
        """Leaves it as it is: salvage() makes a whole file of it."""
        self._file.close()

    def _put(self, data: bytes) -> None:
        while data:
            written = self._file.write(data) or 0
            self.size_bytes += written
            data = data[written:]


class JournalFiles:
    """The folder `<root>/_journal/<writer>`; locked, so that no second process writes there."""

    def __init__(self, root: Path, writer: str) -> None:
        """Creates it. Raises PodtapError where it can't be had, or another process has it."""
        self.folder = root / JOURNAL / safe_name(writer)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise PodtapError(f"{self.folder} can't be written: {error.strerror}; give another --root") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise PodtapError(f"another podtap journal writes {self.folder}; give another --name") from error
        self._seq = max((number for _, number in map(_stem_of, self._all())), default=0)

    def close(self) -> None:
        """Another process may have it."""
        os.close(self._lock)

    def open(self, now_ns: int) -> Part:
        """A new file; raises OSError."""
        self._seq += 1
        return Part(self.folder / stem(now_ns, self._seq))

    def known_until_ns(self) -> int | None:
        """Until when an earlier run knew everything; None where none was."""
        return max((path.stat().st_mtime_ns for path in self._all()), default=None)

    def salvage(self) -> list[Path]:
        """Makes sealed files of all that were left behind, up to the last whole line; OSError if it can't.

        One in which nothing can be read is removed, it is as good as none.
        """
        parts = [path for path in self._all() if path.name.endswith(PART_SUFFIX)]
        return [made for path in parts if (made := _salvaged(path))]

    def sealed(self) -> list[JournalFile]:
        """All that are whole, by time."""
        paths = [path for path in self._all() if path.name.endswith(JOURNAL_SUFFIX)]
        files = [JournalFile(path, _stem_of(path)[0], path.stat().st_size) for path in paths]
        return sorted(files, key=lambda file: (file.start_ns, file.path))

    def retain(self, now_ns: int, quota_bytes: int, max_age_ns: int | None) -> list[Path]:
        """Deletes what is beyond the limits, and days without files; returns what went."""
        gone = [file.path for file in surplus(self.sealed(), now_ns, quota_bytes, max_age_ns)]
        for path in gone:
            path.unlink(missing_ok=True)
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
        return gone

    def _all(self) -> list[Path]:
        return [path for path in sorted(self.folder.glob("*/*")) if parse_stem(path.name) and _is_ours(path)]


def _is_ours(path: Path) -> bool:
    return path.name.endswith((PART_SUFFIX, JOURNAL_SUFFIX))


def _stem_of(path: Path) -> tuple[int, int]:
    return parse_stem(path.name) or (0, 0)


def _salvaged(part: Path) -> Path | None:
    """A sealed file in place of a `.part`: as long as one of the two is not whole, the other is."""
    known_ns = part.stat().st_mtime_ns
    made = part.with_name(f".{part.name}.salvaged")
    size = 0
    with made.open("wb") as file:
        stream = zstandard.ZstdCompressor(level=_LEVEL).compressobj()
        for lines in _whole_lines(part):
            size += len(lines)
            file.write(stream.compress(lines))
        file.write(stream.flush())
        file.flush()
        os.utime(file.fileno(), ns=(known_ns, known_ns))
        os.fsync(file.fileno())
    sealed = _sealed_name(part)
    if size:
        made.rename(sealed)
    else:
        made.unlink()
    part.unlink()
    _sync_folder(part.parent)
    return sealed if size else None


def _whole_lines(path: Path) -> Iterator[bytes]:
    """What can be read of a file that was cut anywhere."""
    with path.open("rb") as file:
        reader = zstandard.ZstdDecompressor().stream_reader(file)
        rest = b""
        while piece := _next_piece(reader):
            end = piece.rfind(b"\n") + 1
            if end:
                yield rest + piece[:end]
                rest = b""
            rest += piece[end:]


def _next_piece(reader: zstandard.ZstdDecompressionReader) -> bytes:
    try:
        return reader.read1(_PIECE)
    except zstandard.ZstdError:
        return b""  # what came before is sound


def _commit(part: Path) -> Path:
    sealed = _sealed_name(part)
    part.rename(sealed)
    _sync_folder(part.parent)
    return sealed


def _sealed_name(part: Path) -> Path:
    return part.with_name(part.name.removesuffix(PART_SUFFIX) + JOURNAL_SUFFIX)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
