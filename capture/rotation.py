"""Pure: when a segment ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MEGABYTE: Final = 1_000_000
"""tcpdump's -C counts in these."""


@dataclass(frozen=True)
class Rotation:
    """A segment ends at whichever of both it reaches first. Seconds are of the monotonic clock: it never jumps."""

    segment_bytes: int = 64 * MEGABYTE
    segment_s: float = 60.0

    def is_due(self, size_bytes: int, opened_s: float, now_s: float) -> bool:
        """Of a segment with so many bytes, that was opened then."""
        return size_bytes >= self.segment_bytes or now_s >= opened_s + self.segment_s
