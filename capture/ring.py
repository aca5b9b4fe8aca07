"""A node's folder as a ring: opens and seals segments, evicts the oldest, salvages what a crash left.

One agent writes to a folder; anybody on the node may read it, or write into its freezes/. Every method may raise
OSError (ENOSPC, EROFS, EDQUOT: no room under the quota, ENOENT: the folder is gone ...): nothing torn is sealed then,
and the same call may be made again later.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path

from capture.contract import Manifest, node_folder, parse_stem, sha256, stem
from capture.retention import Limits
from capture.segment_writer import Part, SegmentFacts, commit_data, manifest_of, open_part, write_manifest


@dataclass
class RingState:
    """What a node's folder holds, at `time_ns`. JSON-able by dataclasses.asdict."""

    time_ns: int
    segments: int = 0
    oldest_ns: int | None = None
    """Time of the earliest packet."""
    newest_ns: int | None = None
    """Time of the latest packet that is sealed."""
    bytes: int = 0
    """On disk, frozen segments left out."""
    quota_bytes: int = 0
    frozen_segments: int = 0
    frozen_bytes: int = 0
    frozen_quota_bytes: int = 0
    refused_segments: int = 0
    """Of a frozen window, but not pinned: the quota of frozen segments is full."""
    overwritten_ns: int | None = None
    """When the oldest segment that is not frozen will go, at the present rate; None: not to be told."""
    evicted_segments: int = 0
    """Since the agent started."""
    lost_segments: int = 0
    """Since the agent started: gone, and not by the ring."""
    waiting_segments: int = 0
    """Whole, but not sealed yet since the disk was full or gone: tried again at each seal."""
    problems: list[str] = field(default_factory=list)
    """What an operator should look at, a sentence each."""


class Ring:
    """The ring of one node. Methods may be called from several threads.

    `salvage` once at the start, before the first `open`. Then `open`, `make_room` while writing, and `seal` (in a
    thread of its own: it hashes and waits for the disk) or `discard`. PodtapError where another agent has the folder.
    """

    def __init__(self, root: Path, cluster: str, node: str, limits: Limits) -> None:
        limits.check()
        self.cluster = cluster
        self.node = node
        self.limits = limits
        self.folder = root / node_folder(cluster, node)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._last_start_ns = 0
        self._seq = 0
        self._head: str | None = None
        for path in self.folder.glob("*/*"):
            if parsed := parse_stem(path.name):
                self._last_start_ns, self._seq = max((self._last_start_ns, self._seq), parsed)

    def salvage(self) -> list[Manifest]:
        """Seal what an earlier run left unsealed, cut to whole records; what is empty goes. Returns what it sealed."""
        return []

    def open(self, now_ns: int) -> Part:
        """A new segment; names are in order even where the clock is not. Leaves room for Limits.segment_bytes."""
        with self._lock:
            self._last_start_ns = max(now_ns, self._last_start_ns + 1)
            self._seq += 1
            return open_part(self.folder, stem(self._last_start_ns, self._seq), self._seq, now_ns)

    def seal(self, part: Part, facts: SegmentFacts) -> Manifest:
        """Make a part a segment; in the order in which they were opened. Evicts what is beyond the limits.

        OSError: it is not sealed yet. The ring tries again at the next seal, and salvages it after a restart.
        """
        digest = commit_data(part, facts.size_bytes)
        with self._lock:
            manifest = manifest_of(part, facts, self.cluster, self.node, digest, self._head)
            self._head = sha256(write_manifest(self.folder, manifest))
        os.close(part.fd)
        return manifest

    def discard(self, part: Part) -> None:
        """Nothing is left of a part: it is empty, or torn beyond use."""
        os.close(part.fd)
        part.path.unlink(missing_ok=True)

    def make_room(self, size_bytes: int) -> None:
        """Before so much is written to open parts: evict until it fits under the quota. Quick where there is room.

        OSError EDQUOT: nothing can be evicted any more. FileNotFoundError: an open part is gone from its folder.
        """

    def state(self, now_ns: int) -> RingState:
        """For metrics, and for people who ask how far back a node reaches."""
        return RingState(now_ns, quota_bytes=self.limits.quota_bytes)

    def close(self) -> None:
        """Let go of the folder; wait for what runs in the background."""
