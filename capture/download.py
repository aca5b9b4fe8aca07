"""Brings one origin's files into a bundle: what came is kept, what broke is taken up where it broke.

Half a file lies in the bundle's work folder under the name that it will have. A file gets its name when its SHA-256 is
the sender's; a segment's manifest is written last.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from capture.bundle import WORK, UnreadableError, uncompressed
from capture.contract import (
    JOURNAL,
    JOURNAL_SUFFIX,
    MANIFEST_SUFFIX,
    PART,
    SEGMENT_SUFFIXES,
    TOMBSTONES,
    ContractError,
    Manifest,
    from_json,
)
from capture.errors import PodtapError
from capture.listing import FOLDER
from capture.recording import CHAIN_SUFFIX, Window
from capture.segment_writer import write_atomically
from capture.sources import Origin
from capture.transfer import End, Header, Receiver, Trailer, TransferError

TRIES: Final = 5
"""In a row without a byte more."""
LONGEST_PAUSE: Final = 15.0
_READ_BYTES: Final = 1 << 20
_SEGMENT: Final = re.compile(rf"({FOLDER}/{FOLDER})/\d{{8}}/\d{{19}}-\d{{6,}}(\.pcap|\.pcap\.zst)", re.ASCII)
_TOMBSTONES: Final = re.compile(rf"({FOLDER}/{FOLDER})/{re.escape(TOMBSTONES)}", re.ASCII)
_JOURNAL_FILE: Final = re.compile(
    rf"({JOURNAL}/{FOLDER})/\d{{8}}/\d{{19}}-\d{{6,}}({re.escape(JOURNAL_SUFFIX)}|\.jsonl{re.escape(PART)})", re.ASCII
)


class Throttle:
    """So many bytes a second for all downloads together; None: no limit."""

    def __init__(self, bytes_per_second: int | None) -> None:
        self._rate = bytes_per_second
        self._lock = threading.Lock()
        self._free_at = time.monotonic()

    def take(self, size: int) -> None:
        if self._rate is None:
            return
        with self._lock:
            now = time.monotonic()
            wait = self._free_at - now
            self._free_at = max(self._free_at, now) + size / self._rate
        if wait > 0:
            time.sleep(wait)


class Claims:
    """Which origin writes into which folder: no node can write into another's."""

    def __init__(self) -> None:
        self._owners: dict[str, object] = {}
        self._lock = threading.Lock()

    def claim(self, folder: str, origin: Origin) -> None:
        with self._lock:
            if self._owners.setdefault(folder, origin) is not origin:
                raise PodtapError(f"two nodes say that they are {folder}: give each agent its own --node name")


class Download:
    """One origin's part of a bundle. `told` hears of each byte; of a negative number where some have to come again."""

    def __init__(
        self,
        origin: Origin,
        folder: Path,
        window: Window,
        addresses: list[str] | None,
        claims: Claims,
        throttle: Throttle,
        told: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.origin, self.folder, self.window, self.addresses = origin, folder, window, addresses
        self._claims, self._throttle, self._told = claims, throttle, told
        self._work = folder / WORK
        self.node_folders: set[str] = set()
        """Whose files came, or are known to be there from an earlier time."""
        self.versions: dict[str, str] = {}
        """Of the podtap that sent it."""
        self.vanished: set[str] = set()
        """Segments that were evicted before their turn."""
        self.damaged: set[str] = set()
        """Segments that are not what their manifests say."""
        self._progress = 0
        self._is_stale = False
        """What is here of the next file is not the beginning of what the node has now (it was compressed since)."""

    def run(self) -> None:
        """All of it. PodtapError if it can't be had."""
        failures, last = 0, -1
        while True:
            try:
                self._once()
                return
            except PodtapError as error:
                failures = failures + 1 if self._progress == last else 1
                last = self._progress
                if failures >= TRIES or not getattr(error, "again", isinstance(error, TransferError)):
                    raise
                time.sleep(min(2 ** (failures - 1), LONGEST_PAUSE) * random.uniform(0.5, 1))

    def _once(self) -> None:
        resume, offset = self._cursor()
        if self._is_stale:
            self._is_stale, offset = False, 0
        receiver = Receiver(self.origin.send(self.window, self.addresses, resume, offset))
        while True:
            header = receiver.header()
            if isinstance(header, End):
                self.versions = header.versions
                self.vanished.update(header.vanished)
                self.damaged.update(header.damaged)
                return
            self._receive(header, receiver)

    def _cursor(self) -> tuple[str, int]:
        """The segment to go on with, and its bytes that are here."""
        half = _newest(self._work, self.node_folders)
        if half:
            return half
        return _newest(self.folder, self.node_folders) or ("", 0)

    def _receive(self, header: Header, receiver: Receiver) -> None:
        self._check_path(header.path)
        final, half = self.folder / header.path, self._work / header.path
        try:
            half.parent.mkdir(parents=True, exist_ok=True)
            final.parent.mkdir(parents=True, exist_ok=True)
            if header.offset and final.exists() and not half.exists():
                os.rename(final, half)
            if header.offset and (not half.exists() or half.stat().st_size < header.offset):
                self._is_stale = True
                raise TransferError("the node sent the end of a file whose beginning is not here")
            digest, size = _known(half, header.offset)
            with open(half, "ab", buffering=0) as file:
                for piece in receiver.pieces():
                    self._throttle.take(len(piece))
                    _write(file.fileno(), piece)
                    digest.update(piece)
                    size += len(piece)
                    self._progress += len(piece)
                    self._told(len(piece))
            self._finish(header, receiver.trailer(), half, final, size, digest.hexdigest())
        except OSError as error:
            raise _disk(error, half) from error

    def _finish(self, header: Header, trailer: Trailer, half: Path, final: Path, size: int, digest: str) -> None:
        if (size, digest) != (trailer.size_bytes, trailer.sha256):
            half.unlink()
            self._told(-size)
            raise TransferError(f"{header.path} did not come as it was sent: its SHA-256 is another")
        match = _SEGMENT.fullmatch(header.path)
        if match is None:
            os.replace(half, final)
            if header.path.endswith(JOURNAL_SUFFIX):  # it was still being written at an earlier time
                final.with_name(final.name.removesuffix(".zst") + PART).unlink(missing_ok=True)
        elif trailer.manifest is None:
            half.unlink()
        else:
            self._commit(header.path.removesuffix(match[2]), match[2], trailer.manifest, trailer.chain, digest)

    def _commit(self, stem: str, suffix: str, manifest: str, chain: str | None, digest: str) -> None:
        """A segment that came whole: its packets, then the manifests."""
        half, data = self._work / (stem + suffix), self.folder / (stem + suffix)
        try:
            known = from_json(Manifest, manifest.encode())
            if chain is not None:
                from_json(Manifest, chain.encode())
        except ContractError:
            half.unlink()
            self.damaged.add(stem)
            return
        for other in SEGMENT_SUFFIXES:  # it was compressed since an earlier time
            if other != suffix:
                (self.folder / (stem + other)).unlink(missing_ok=True)
                (self._work / (stem + other)).unlink(missing_ok=True)
        os.replace(half, data)
        if chain is not None:
            write_atomically(self.folder / (stem + CHAIN_SUFFIX), chain.encode())
        write_atomically(self.folder / (stem + MANIFEST_SUFFIX), manifest.encode())
        try:
            is_sound = uncompressed(data, digest) == (known.size_bytes, known.sha256)
        except UnreadableError:
            is_sound = False
        if not is_sound:
            self.damaged.add(stem)

    def _check_path(self, path: str) -> None:
        """What a node sends has its place in the bundle, and never leaves it."""
        for pattern in (_SEGMENT, _TOMBSTONES, _JOURNAL_FILE):
            if match := pattern.fullmatch(path):
                self._claims.claim(match[1], self.origin)
                if pattern is not _JOURNAL_FILE:
                    self.node_folders.add(match[1])
                return
        raise PodtapError(f"it sent a file that has no place in a recording: {path[:200]!r}")


def _newest(root: Path, folders: set[str]) -> tuple[str, int] | None:
    """The last segment below the folders of nodes: its path without suffix, its size."""
    found: list[tuple[str, int]] = []
    for folder in folders:
        for path in (root / folder).glob("*/*.pcap*"):
            relative = path.relative_to(root).as_posix()
            if match := _SEGMENT.fullmatch(relative):
                found.append((relative.removesuffix(match[2]), path.stat().st_size))
    return max(found, default=None)


def _known(path: Path, offset: int) -> tuple[hashlib._Hash, int]:
    """The hash of what is here already, cut to the offset."""
    digest, size = hashlib.sha256(), 0
    if offset == 0:
        path.unlink(missing_ok=True)
        return digest, 0
    os.truncate(path, offset)
    with open(path, "rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
            size += len(piece)
    return digest, size


def _write(file: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(file, view) :]


def _disk(error: OSError, path: Path) -> Exception:
    """An OSError of our own disk ends everything; others are the connection's."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"no space is left for {path.parent}: free some and run the same command again, it goes on")
    return DiskFull(
        f"{path} can't be written: {error.strerror or error}; run the same command again when that is mended"
    )


class DiskFull(Exception):  # noqa: N818
    """Nothing more can be written: ends all downloads."""


def half_files(folder: Path) -> Iterator[Path]:
    """What is not whole."""
    return (path for path in (folder / WORK).rglob("*.pcap*") if path.is_file())
