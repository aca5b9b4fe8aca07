"""Pure: which segments of a node are pinned, and which are evicted.

Rule 1. The oldest segment that is not pinned goes first: by age, then until all fits under the quota.
Rule 2. A segment is pinned if a freeze's window covers a packet of it (of an empty one: the time it was open), and it
        fits under the quota of frozen segments. Freezes are served in the order they were made, each from its oldest
        segment on; the first that does not fit, and all after it, are refused: they stay in the ring like any other,
        and whoever asks is told.
Rule 3. Once pinned, always pinned, until no freeze covers it: no other freeze displaces it, nor does a smaller quota
        that the agent is started with. (The file's mode remembers it: a pinned segment's is read-only.)
Rule 4. A pinned segment is never evicted. Where nothing else is left, nothing more is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from capture.contract import Freeze
from capture.errors import UsageError

GIB: Final = 2**30
MIB: Final = 2**20
BLOCK_BYTES: Final = 4096
NAMES_BYTES: Final = 256
"""What the names of a segment and its manifest take in their folder, at most."""


@dataclass(frozen=True)
class Limits:
    """What a node's folder may hold."""

    quota_bytes: int = 4 * GIB
    """Of all but pinned segments: with their manifests, the open file and the tombstones."""
    frozen_quota_bytes: int = 4 * GIB
    """Of pinned segments."""
    max_age_ns: int | None = None
    """Segments sealed longer ago are evicted, unless they are pinned."""
    segment_bytes: int = 64 * MIB
    """About what one becomes: sealing leaves room for the next, so that nothing is evicted while packets wait."""
    segments: int = 10_000
    """So many at most, of any size, pinned ones left out: each costs the agent a kilobyte of memory."""
    compress: bool = False
    """Compress what is sealed, in the background."""

    def check(self) -> None:
        """UsageError where no ring can be kept within these."""
        if self.quota_bytes < (least := max(4 * self.segment_bytes, MIB)):
            raise UsageError(
                f"a quota of {self.quota_bytes:,} bytes is too small for segments of {self.segment_bytes:,}: "
                f"give {least:,} at least, or make segments smaller"
            )
        if self.segment_bytes <= 0 or self.segments < 1:
            raise UsageError("segments can't be of no size or number")
        if self.frozen_quota_bytes < 0 or (self.max_age_ns is not None and self.max_age_ns <= 0):
            raise UsageError("quotas and ages can't be negative")


@dataclass(slots=True)
class StoredSegment:
    """What the ring remembers of a sealed segment."""

    stem: str
    manifest_sha256: str
    previous_sha256: str | None
    sha256: str
    since_ns: int
    until_ns: int
    """Times of its earliest and latest packet; of an empty one when it was opened and sealed."""
    packets: int
    size_bytes: int
    disk_bytes: int
    """Of all its files, in whole blocks."""
    sealed_boot_ns: int
    """By the clock that never jumps (CLOCK_BOOTTIME)."""
    pinned: bool = False
    refused: bool = False
    """A freeze covers it, but it is not pinned."""


def on_disk(size_bytes: int) -> int:
    """Bytes that a file takes, in whole blocks."""
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES


def covers(freeze: Freeze, segment: StoredSegment) -> bool:
    """Does the window [since, until) hold a packet's time, or for all that is known could it?"""
    return segment.since_ns < freeze.until_ns and segment.until_ns >= freeze.since_ns


def pin(segments: Iterable[StoredSegment], freezes: Iterable[Freeze], quota_bytes: int) -> None:
    """Set `pinned` and `refused` of all (rules 2 and 3). `segments`: oldest first."""
    ordered = sorted(freezes, key=lambda freeze: (freeze.created_ns, freeze.id))
    waiting: list[tuple[int, StoredSegment]] = []
    left = quota_bytes
    for segment in segments:
        segment.refused = False
        rank = next((rank for rank, freeze in enumerate(ordered) if covers(freeze, segment)), None)
        if rank is None:
            segment.pinned = False
        elif segment.pinned:
            left -= segment.disk_bytes
        else:
            waiting.append((rank, segment))
    waiting.sort(key=lambda each: each[0])  # stable: oldest first within a freeze
    full = False
    for _, segment in waiting:
        full = full or segment.disk_bytes > left
        segment.pinned, segment.refused = not full, full
        left -= segment.disk_bytes if segment.pinned else 0


def evictions(
    segments: Sequence[StoredSegment], other_bytes: int, limits: Limits, now_boot_ns: int
) -> list[tuple[StoredSegment, str]]:
    """What has to go, and why (rules 1 and 4). `segments`: oldest first; `other_bytes`: what else the quota counts.

    Nothing goes for something that would not fit even alone.
    """
    can_fit = other_bytes <= limits.quota_bytes
    candidates = [segment for segment in segments if not segment.pinned]
    total = other_bytes + sum(segment.disk_bytes for segment in candidates)
    count = len(candidates)
    going: list[tuple[StoredSegment, str]] = []
    for segment in candidates:
        too_old = limits.max_age_ns is not None and now_boot_ns - segment.sealed_boot_ns > limits.max_age_ns
        too_much = (can_fit and total > limits.quota_bytes) or count > limits.segments
        if not (too_old or too_much):
            break
        reason = "frozen_quota" if segment.refused else "age" if too_old else "quota"
        going.append((segment, reason))
        total -= segment.disk_bytes
        count -= 1
    return going


def overwritten_in_ns(
    segments: Sequence[StoredSegment], other_bytes: int, limits: Limits, now_boot_ns: int
) -> int | None:
    """How long until the oldest segment that is not pinned is evicted, at the rate of the latest ones.

    None where there is none, or no rate to tell it by. `other_bytes` as for evictions.
    """
    candidates = [segment for segment in segments if not segment.pinned]
    if not candidates:
        return None
    times = []
    if limits.max_age_ns is not None:
        times.append(candidates[0].sealed_boot_ns + limits.max_age_ns - now_boot_ns)
    latest = segments[-_RATE_SEGMENTS:]
    elapsed = latest[-1].sealed_boot_ns - latest[0].sealed_boot_ns
    if elapsed > 0:
        rate = sum(segment.disk_bytes for segment in latest[1:]) / elapsed
        free = limits.quota_bytes - other_bytes - sum(segment.disk_bytes for segment in candidates)
        times.append(int(free / rate))
    return max(0, min(times)) if times else None


_RATE_SEGMENTS: Final = 32
