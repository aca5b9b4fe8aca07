"""A node's tombstones.jsonl: what the ring evicted, a line each, the old ones merged so that the file stays small.

Tombstones keep the chain of manifests walkable: each holds the hash of the manifest that is gone, and of the one
before it. Those that follow each other in the chain become one of several `segments`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from capture.contract import TOMBSTONES, ContractError, Tombstone, from_json, parse_stem, to_json
from capture.segment_writer import sync_folder, write_all, write_atomically

KEPT: Final = 1000
"""So many of the latest stay as they are."""
LINE_BYTES: Final = 600
"""About what one takes."""


class Tombstones:
    """The file, written by the ring only."""

    def __init__(self, folder: Path, kept: int = KEPT) -> None:
        self.path = folder / TOMBSTONES
        self._kept = kept
        self._lines = 0
        self._merge_at = 2 * kept

    def load(self) -> list[Tombstone]:
        """All of them, in the file's order. A last line that a crash tore is cut off."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            self._lines = 0
            return []
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(self.path, whole)
        tombstones, _ = parse(data[:whole])
        self._lines = len(tombstones)
        return tombstones

    def append(self, tombstones: Iterable[Tombstone]) -> None:
        """Durable when it returns; after an OSError the file is as it was."""
        lines = [to_json(tombstone) for tombstone in tombstones]
        if not lines:
            return
        new = not self.path.exists()
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        try:
            before = os.fstat(fd).st_size
            try:
                write_all(fd, b"".join(lines))
                os.fsync(fd)
            except OSError:
                os.ftruncate(fd, before)
                raise
        finally:
            os.close(fd)
        if new:
            sync_folder(self.path.parent)
        self._lines += len(lines)

    def merge_old(self) -> None:
        """Keep the file small: quick unless there is much to do."""
        if self._lines < self._merge_at:
            return
        tombstones = self.load()
        merged = merge(tombstones, self._kept)
        write_atomically(self.path, b"".join(map(to_json, merged)))
        self._lines = len(merged)
        self._merge_at = max(2 * self._kept, 2 * self._lines)

    def size_bytes(self) -> int:
        """0 where there is none, or the disk does not tell."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0


def parse(data: bytes) -> tuple[list[Tombstone], list[str]]:
    """Tombstones of a file's bytes, and what is wrong with the lines that hold none."""
    tombstones: list[Tombstone] = []
    problems: list[str] = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line:
            continue
        try:
            tombstones.append(from_json(Tombstone, line))
        except ContractError as error:
            problems.append(f"{TOMBSTONES}: line {number}: {error}")
    return tombstones, problems


def read_tombstones(folder: Path) -> tuple[list[Tombstone], list[str]]:
    """For readers: of a node's folder, while its ring may be writing."""
    try:
        data = (folder / TOMBSTONES).read_bytes()
    except FileNotFoundError:
        return [], []
    return parse(data[: data.rfind(b"\n") + 1])


def merge(tombstones: list[Tombstone], kept: int) -> list[Tombstone]:
    """The latest `kept` as they are; of those before, what followed each other for the same reason becomes one.

    Where that is not enough (reasons took turns), reasons are joined: "age,quota".
    """
    old, latest = tombstones[: len(tombstones) - kept], tombstones[len(tombstones) - kept :]
    old.sort(key=lambda tombstone: parse_stem(tombstone.stem) or (0, 0))
    merged = _join(old, any_reason=False)
    return (merged if len(merged) <= kept else _join(merged, any_reason=True)) + latest


def _join(ordered: list[Tombstone], any_reason: bool) -> list[Tombstone]:
    """`ordered` by name: each finds the run that ended just before it in the chain."""
    runs: list[Tombstone] = []
    by_end: dict[str, int] = {}
    for tombstone in ordered:
        at = by_end.pop(tombstone.previous_sha256, None) if tombstone.previous_sha256 else None
        if at is not None and (any_reason or runs[at].reason == tombstone.reason):
            runs[at] = _one_of(runs[at], tombstone)
        else:
            at = len(runs)
            runs.append(tombstone)
        by_end[tombstone.manifest_sha256] = at
    return runs


def _one_of(first: Tombstone, second: Tombstone) -> Tombstone:
    since = [each.first_packet_ns for each in (first, second) if each.first_packet_ns is not None]
    until = [each.last_packet_ns for each in (first, second) if each.last_packet_ns is not None]
    return replace(
        second,
        previous_sha256=first.previous_sha256,
        evicted_ns=max(first.evicted_ns, second.evicted_ns),
        reason=",".join(sorted(set(first.reason.split(",")) | set(second.reason.split(",")))),
        first_packet_ns=min(since, default=None),
        last_packet_ns=max(until, default=None),
        packets=first.packets + second.packets,
        size_bytes=first.size_bytes + second.size_bytes,
        sha256="",
        segments=first.segments + second.segments,
    )
