"""The sealed segments of a node's folder: what is there, what is pinned, and how one leaves it.

Nothing here is for several threads at once: the ring locks.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from capture.chain import Link, head, missing
from capture.contract import MANIFEST_SUFFIX, SEGMENT_SUFFIXES, Tombstone
from capture.freezes import FreezeReader
from capture.retention import BLOCK_BYTES, Limits, StoredSegment, evictions, on_disk, pin
from capture.segment_writer import SEGMENT_MODE, TEMPORARY
from capture.stored_segments import boot_time_ns, find, names
from capture.tombstones import KEPT, LINE_BYTES, Tombstones

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_PINNED_MODE: Final = 0o440


class SegmentStore:
    """`segments` are sorted by name: the oldest first."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.folder = folder
        self.limits = limits
        self.segments: list[StoredSegment] = []
        self.head: Link | None = None
        """The chain's end: what the next manifest names."""
        self.evicted = 0
        self.lost = 0
        self._tombstones = Tombstones(folder, max(8, min(KEPT, limits.quota_bytes // 64 // LINE_BYTES)))
        self._freezes = FreezeReader()
        self._frozen_windows = 0
        self._stuck: dict[str, StoredSegment] = {}
        """What has its tombstone, but could not be removed yet."""

    # --- What is there -----------------------------------------------------------------------------------------------

    def load(self, last: Link | None) -> list[Path]:
        """Read the folder; end what a crash interrupted; say what is gone. Returns the files that are not sealed.

        `last`: the chain's end as an earlier run knew it.
        """
        if self.head:  # another folder than before
            oldest = self.segments[0] if self.segments else None
            last = last or replace(self.head, previous_sha256=oldest.previous_sha256 if oldest else None)
        remembered = len(self.segments)
        found = find(self.folder)
        for path in [*found.temporary, *self.folder.glob(f"*{TEMPORARY}")]:
            path.unlink(missing_ok=True)
        tombstones = self._tombstones.load()
        buried = {tombstone.manifest_sha256 for tombstone in tombstones}
        evicted = {tombstone.stem for tombstone in tombstones if tombstone.reason != "lost"}
        for segment in [*found.segments, *found.without_data]:
            if segment.manifest_sha256 in buried:
                self._remove(segment)
        kept = [segment for segment in found.segments if segment.manifest_sha256 not in buried]
        gone = [segment for segment in found.without_data if segment.manifest_sha256 not in buried]
        unsealed = []
        for path in found.unsealed:
            if self._stem(path) in evicted:
                path.unlink(missing_ok=True)
            else:
                unsealed.append(path)
        self.segments = kept
        links = [_link(segment) for segment in [*kept, *gone]]
        links += [Link(each.stem, each.manifest_sha256, each.previous_sha256) for each in tombstones]
        lost = missing(links, last, time.time_ns(), remembered)
        self._bury([(segment, "lost") for segment in gone], lost)
        links += [Link(each.stem, each.manifest_sha256, each.previous_sha256) for each in lost]
        self.head = head(links, last)
        return unsealed

    def add(self, segment: StoredSegment) -> None:
        """One that was just sealed."""
        at = len(self.segments)
        while at and self.segments[at - 1].stem > segment.stem:
            at -= 1
        self.segments.insert(at, segment)
        self.head = _link(segment)

    def get(self, stem: str) -> StoredSegment | None:
        return next((segment for segment in reversed(self.segments) if segment.stem == stem), None)

    def note_lost(self) -> None:
        """Tombstones for what somebody else removed; and once more for what could not be removed."""
        for segment in list(self._stuck.values()):
            self._remove(segment)
        here = names(self.folder)
        gone = [
            segment
            for segment in self.segments
            if f"{segment.stem}{MANIFEST_SUFFIX}" not in here
            or not any(f"{segment.stem}{suffix}" in here for suffix in SEGMENT_SUFFIXES)
        ]
        self._bury([(segment, "lost") for segment in gone])

    # --- What stays, and what goes -----------------------------------------------------------------------------------

    def pin(self) -> None:
        """Read the freezes, pin what they cover. OSError: they can't be known, so nothing may be evicted."""
        freezes = self._freezes.read(self.folder)
        self._frozen_windows = len(freezes)
        before = [segment.pinned for segment in self.segments]
        pin(self.segments, freezes, self.limits.frozen_quota_bytes)
        for segment, was in zip(self.segments, before, strict=True):
            if segment.pinned != was:
                self.set_mode(segment)

    def set_mode(self, segment: StoredSegment) -> None:
        """Let the file's mode say that it is pinned, so that the next start knows."""
        for suffix in SEGMENT_SUFFIXES:
            try:
                os.chmod(self.folder / f"{segment.stem}{suffix}", _PINNED_MODE if segment.pinned else SEGMENT_MODE)
            except OSError:
                continue  # not this suffix; or gone, which note_lost will find

    def evict(self, other_bytes: int, *, aged: bool = False) -> bool:
        """Evict until all is within the quota, `other_bytes` too; with `aged` also what is too old.

        False: it does not fit, and nothing is left to evict.
        """
        limits = self.limits if aged else replace(self.limits, max_age_ns=None)
        while aged or not self._fits(other_bytes):
            self.pin()
            going = evictions(self.segments, other_bytes + self.overhead_bytes(), limits, boot_time_ns())
            if not going:
                break
            self._bury(going)
        return self._fits(other_bytes)

    def overhead_bytes(self) -> int:
        """What the quota counts beside segments: tombstones (twice: they are written anew), freezes, folders."""
        days = len({segment.stem[:8] for segment in self.segments}) + 3
        tombstones = 2 * on_disk(self._tombstones.size_bytes() + LINE_BYTES)
        return (
            tombstones
            + (days + self._frozen_windows + 2) * BLOCK_BYTES
            + sum(each.disk_bytes for each in self._stuck.values())
        )

    def loose_bytes(self) -> int:
        """Of segments that are not pinned."""
        return sum(segment.disk_bytes for segment in self.segments if not segment.pinned)

    def problems(self) -> list[str]:
        """What an operator should look at."""
        found = list(self._freezes.problems)
        if refused := sum(segment.refused for segment in self.segments):
            found.append(
                f"the quota of frozen segments ({self.limits.frozen_quota_bytes:,} bytes) is full: {refused} segments "
                "of frozen windows are not pinned and will be evicted; thaw what is no longer needed, or raise it"
            )
        if self._stuck:
            found.append(f"{len(self._stuck)} evicted segments can't be removed, {min(self._stuck)} first")
        return found

    def _fits(self, other_bytes: int) -> bool:
        loose = sum(not segment.pinned for segment in self.segments)
        total = other_bytes + self.overhead_bytes() + self.loose_bytes()
        return total <= self.limits.quota_bytes and loose <= self.limits.segments

    # --- How one leaves ----------------------------------------------------------------------------------------------

    def _bury(self, going: list[tuple[StoredSegment, str]], more: Sequence[Tombstone] = ()) -> None:
        """Tombstones first, then the files go. After an OSError all that has no tombstone is still there."""
        now_ns = time.time_ns()
        tombstones = [*(_tombstone(segment, reason, now_ns) for segment, reason in going), *more]
        if not tombstones:
            return
        try:
            self._tombstones.append(tombstones)
        except OSError as error:
            if error.errno not in _FULL or not going or more:
                raise
            self._remove_data(going[0][0])  # a full disk has no room for a tombstone either, until something is gone
            going = going[:1]
            tombstones = [_tombstone(segment, reason, now_ns) for segment, reason in going]
            self._tombstones.append(tombstones)
        leaving = {segment.stem for segment, _ in going}
        self.segments = [segment for segment in self.segments if segment.stem not in leaving]
        for segment, _ in going:
            self._remove(segment)
        lost = sum(tombstone.segments for tombstone in tombstones if tombstone.reason == "lost")
        self.lost += lost
        self.evicted += sum(tombstone.segments for tombstone in tombstones) - lost
        self._tombstones.merge_old()

    def _remove(self, segment: StoredSegment) -> None:
        """The manifest first: without it nothing is sealed any more."""
        try:
            (self.folder / f"{segment.stem}{MANIFEST_SUFFIX}").unlink(missing_ok=True)
            self._remove_data(segment)
            self._stuck.pop(segment.stem, None)
        except OSError:
            self._stuck[segment.stem] = segment
            return
        try:
            (self.folder / segment.stem).parent.rmdir()
        except OSError:
            return  # the day's folder is not empty yet

    def _remove_data(self, segment: StoredSegment) -> None:
        for suffix in SEGMENT_SUFFIXES:
            (self.folder / f"{segment.stem}{suffix}").unlink(missing_ok=True)

    def _stem(self, path: Path) -> str:
        return f"{path.parent.name}/{path.name.partition('.')[0]}"


def _link(segment: StoredSegment) -> Link:
    return Link(segment.stem, segment.manifest_sha256, segment.previous_sha256)


def _tombstone(segment: StoredSegment, reason: str, now_ns: int) -> Tombstone:
    return Tombstone(
        stem=segment.stem,
        manifest_sha256=segment.manifest_sha256,
        evicted_ns=now_ns,
        reason=reason,
        previous_sha256=segment.previous_sha256,
        first_packet_ns=segment.since_ns if segment.packets else None,
        last_packet_ns=segment.until_ns if segment.packets else None,
        packets=segment.packets,
        size_bytes=segment.size_bytes,
        sha256=segment.sha256,
    )
