"""One writer's folder of the journal: its files on disk, from `.part` to sealed to deleted.

A `.part` is plain lines, so that it can be read at any time, also after a crash; a sealed file is compressed. A file's
time of modification says until when the journal knew everything: it is set at each flush, also where nothing was to be
written.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Final

import zstandard

from capture.contract import JOURNAL, JOURNAL_SUFFIX, PART, Freeze, JournalRecord, parse_stem, safe_name, stem, to_json
from capture.errors import PodtapError
from capture.freezes import FreezeReader

PART_SUFFIX: Final = JOURNAL_SUFFIX.removesuffix(".zst") + PART
_PIECE: Final = 1 << 20


@dataclass(frozen=True)
class JournalFile:
    """A sealed file, and what it takes."""

    path: Path
    start_ns: int
    size_bytes: int


def surplus(
    files: Iterable[JournalFile],
    now_ns: int,
    quota_bytes: int,
    max_age_ns: int | None,
    freezes: Sequence[Freeze] = (),
) -> list[JournalFile]:
    """Those of one writer that are to go: the oldest beyond the quota, and those that ended longer ago than allowed.

    The newest stays, and whatever tells of a frozen window, from the oldest on, up to a second quota of the same size.
    A file ended when the next one began.
    """
    ordered = sorted(files, key=lambda file: (file.start_ns, file.path))
    frozen = _frozen(ordered, freezes, quota_bytes)
    left = sum(file.size_bytes for file in ordered if file not in frozen)
    gone = []
    for file, after in pairwise(ordered):
        if file in frozen:
            continue
        is_old = max_age_ns is not None and after.start_ns < now_ns - max_age_ns
        if left <= quota_bytes and not is_old:
            break
        left -= file.size_bytes
        gone.append(file)
    return gone


def _frozen(ordered: Sequence[JournalFile], freezes: Sequence[Freeze], quota_bytes: int) -> set[JournalFile]:
    found: set[JournalFile] = set()
    for file, after in pairwise(ordered):
        quota_bytes -= file.size_bytes if (is_wanted := _tells_of(freezes, file.start_ns, after.start_ns)) else 0
        if is_wanted and quota_bytes >= 0:
            found.add(file)
    return found


def _tells_of(freezes: Sequence[Freeze], start_ns: int, end_ns: int) -> bool:
    return any(start_ns < freeze.until_ns and end_ns > freeze.since_ns for freeze in freezes)


class Part:
    """A file that is being written. All methods raise OSError; after one, only abandon() may be called."""

    def __init__(self, path: Path) -> None:
        """`path` without suffix. Creates it; FileExistsError if it is there."""
        self.path = path.with_name(path.name + PART_SUFFIX)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = self.path.open("xb", buffering=0)
        self._waiting = bytearray()
        self.size_bytes = 0
        """On disk."""

    def write(self, records: Iterable[JournalRecord]) -> None:
        """Keeps them: on disk at the next flush."""
        for record in records:
            self._waiting += to_json(record)
            if len(self._waiting) >= _PIECE:
                self._put()

    def flush(self, known_ns: int, sync: bool = False) -> None:
        """Whatever was written can be read now; with `sync`, also after a power failure. `known_ns`: all is known."""
        self._put()
        if os.fstat(self._file.fileno()).st_nlink == 0:
            raise FileNotFoundError(errno.ENOENT, "the file is gone", str(self.path))
        if sync:
            os.fdatasync(self._file.fileno())
        os.utime(self._file.fileno(), ns=(known_ns, known_ns))

    def seal(self, known_ns: int) -> Path | None:
        """Ends it; returns the file that is there now, None if there was nothing to keep."""
        self.flush(known_ns)
        self._file.close()
        return _seal(self.path)

    def abandon(self) -> None:
        """Leaves it as it is: salvage() makes a whole file of it."""
        self._file.close()

    def _put(self) -> None:
        while self._waiting:
            written = self._file.write(self._waiting) or 0
            self.size_bytes += written
            del self._waiting[:written]


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
        self._freezes = FreezeReader()
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
        """Makes sealed files of all that were left behind, up to the last whole line; raises OSError.

        One without a whole line is removed.
        """
        parts = [path for path in self._all() if path.name.endswith(PART_SUFFIX)]
        return [made for path in parts if (made := _seal(path))]

    def sealed(self) -> list[JournalFile]:
        """All that are whole, by time."""
        paths = [path for path in self._all() if path.name.endswith(JOURNAL_SUFFIX)]
        files = [JournalFile(path, _stem_of(path)[0], path.stat().st_size) for path in paths]
        return sorted(files, key=lambda file: (file.start_ns, file.path))

    def retain(self, now_ns: int, quota_bytes: int, max_age_ns: int | None) -> list[Path]:
        """Deletes what is beyond the limits, and days without files; returns what went. Raises OSError."""
        freezes = self._freezes.read(self.folder)
        gone = [file.path for file in surplus(self.sealed(), now_ns, quota_bytes, max_age_ns, freezes)]
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


def _seal(part: Path) -> Path | None:
    """A compressed file in place of a `.part`, up to the last whole line: until one is whole, the other is."""
    known_ns = part.stat().st_mtime_ns
    sealed = part.with_name(part.name.removesuffix(PART_SUFFIX) + JOURNAL_SUFFIX)
    made = part.with_name(f".{part.name}.sealing")
    size = 0
    with made.open("wb") as file:
        with zstandard.ZstdCompressor().stream_writer(file, closefd=False) as compressed:
            for lines in _whole_lines(part):
                size += len(lines)
                compressed.write(lines)
        file.flush()
        os.utime(file.fileno(), ns=(known_ns, known_ns))
        os.fsync(file.fileno())
    if size:
        made.rename(sealed)
    else:
        made.unlink()
    part.unlink()
    _sync_folder(part.parent)
    return sealed if size else None


def _whole_lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        rest = b""
        while piece := file.read(_PIECE):
            end = piece.rfind(b"\n") + 1
            if end:
                yield rest + piece[:end]
                rest = b""
            rest += piece[end:]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
