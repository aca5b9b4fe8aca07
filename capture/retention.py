"""Pure: what a node's ring evicts, and what is frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from capture.errors import UsageError

GIB: Final = 2**30
MIB: Final = 2**20


@dataclass(frozen=True)
class Limits:
    """What a node's folder may hold."""

    quota_bytes: int = 4 * GIB
    """Of all but frozen segments: with their manifests, the open file and the tombstones."""
    frozen_quota_bytes: int = 4 * GIB
    """Of frozen segments. Where it is full no more are pinned: they stay in the ring as if nobody had frozen them."""
    max_age_ns: int | None = None
    """Segments sealed longer ago are evicted, unless they are frozen."""
    segment_bytes: int = 64 * MIB
    """About what one becomes: sealing leaves room for the next, so that nothing is evicted while packets wait."""
    segments: int = 20_000
    """So many at most, of any size: each costs the agent memory."""
    compress: bool = False
    """Compress what is sealed, in the background."""

    def check(self) -> None:
        """UsageError where no ring can be kept within these."""
        if self.quota_bytes < 3 * self.segment_bytes:
            raise UsageError(
                f"a quota of {self.quota_bytes:,} bytes is too small for segments of {self.segment_bytes:,}: "
                f"give at least three times their size"
            )
        if self.frozen_quota_bytes < 0 or (self.max_age_ns is not None and self.max_age_ns <= 0):
            raise UsageError("quotas and ages can't be negative")
