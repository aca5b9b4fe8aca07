"""What a ring holds and how far back it reaches, for metrics and for people; ring.json is its latest on disk."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Final

from capture.segment_writer import write_atomically

RING_STATE: Final = "ring.json"


@dataclass
class RingState:
    """What a node's folder holds, at `time_ns`. JSON-able by dataclasses.asdict."""

    time_ns: int
    segments: int = 0
    """Sealed ones, the pinned among them."""
    oldest_ns: int | None = None
    """Time of the earliest packet."""
    newest_ns: int | None = None
    """Time of the latest packet that is sealed."""
    bytes: int = 0
    """On disk, with all that the quota counts: pinned segments left out."""
    quota_bytes: int = 0
    frozen_segments: int = 0
    frozen_bytes: int = 0
    frozen_quota_bytes: int = 0
    refused_segments: int = 0
    """Of a frozen window, but not pinned: the quota of frozen segments is full. They will be evicted in their turn."""
    overwritten_ns: int | None = None
    """When the oldest segment that is not pinned will go, at the present rate; None: not to be told."""
    evicted_segments: int = 0
    """Since the agent started."""
    lost_segments: int = 0
    """Since the agent started: gone, and not by the ring."""
    waiting_segments: int = 0
    """Whole, but not sealed yet since the disk was full or gone: tried again at each seal."""
    problems: list[str] = field(default_factory=list)
    """What an operator should look at, a sentence each."""
    last_stem: str = ""
    last_manifest_sha256: str = ""
    """The chain's end: whoever deletes the newest segments has to change this too."""
    oldest_frozen_ns: int | None = None
    """Time of the earliest packet of those that are pinned."""
    oldest_unfrozen_ns: int | None = None
    """And of all others: so far the ring itself reaches."""


def write_state(folder: Path, state: RingState) -> None:
    """OSError where that is not possible; nobody depends on it."""
    write_atomically(folder / RING_STATE, json.dumps(asdict(state), indent=1, sort_keys=True).encode() + b"\n")


def read_state(folder: Path) -> RingState | None:
    """What the ring of a node's folder last wrote; None: nothing that can be read."""
    try:
        values = json.loads((folder / RING_STATE).read_bytes())
        known = {each.name: values[each.name] for each in fields(RingState) if each.name in values}
        state = RingState(**known)
        return state if isinstance(state.last_stem + state.last_manifest_sha256, str) else None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None
