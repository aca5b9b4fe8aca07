"""A node's folder as a ring: opens and seals segments, evicts the oldest, salvages what a crash left.

One agent writes to a folder; anybody on the node may read it, and write into its freezes/. Every method may raise
OSError (ENOSPC, EROFS, EDQUOT: no room under the quota, ENOENT: the folder or the file is gone ...): nothing torn is
sealed then, and the same call may be made again later.

What happens, and in which order, so that a crash or power cut between any two steps leaves nothing wrong:

    seal    data durable -> its name -> manifest durable under another name -> its name (the commit)
    evict   tombstone durable -> manifest gone -> data gone
    start   evictions that were begun are ended; what has no manifest is cut to whole records and sealed as salvaged;
            what is gone otherwise gets a tombstone `lost`

Two locks: `_sealing` for one seal at a time, in order; `_lock` for what the ring remembers. The thread that reads
packets waits for the second only where nothing is left of the room that was made ahead.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path
from typing import Final

from capture.chain import Link
from capture.compression import Compressor, compress
from capture.contract import PART, Manifest, node_folder, parse_stem, sha256, stem
from capture.node_lock import NodeLock
from capture.retention import NAMES_BYTES, Limits, on_disk, overwritten_in_ns
from capture.ring_state import RingState, read_state, write_state
from capture.salvage import adopt, facts_of
from capture.segment_store import SegmentStore
from capture.segment_writer import (
    PCAP,
    TEMPORARY,
    Part,
    SegmentFacts,
    commit_data,
    hash_data,
    is_removed,
    manifest_of,
    node_facts,
    open_part,
    sync_folder,
    write_manifest,
)
from capture.stored_segments import ZSTD, boot_time_ns, from_manifest

__all__ = ["Limits", "Part", "Ring", "RingState", "SegmentFacts"]


_LATEST_NS: Final = 9 * 10**18
"""In the year 2255."""
_WHOLE_DISK: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Ring:
    """The ring of one node. Methods may be called from several threads.

    `salvage` once at the start, before the first `open`. Then `open`, `make_room` while writing, and `seal` (in a
    thread of its own: it hashes and waits for the disk) or `discard`. PodtapError where another agent has the folder.
    """

    def __init__(self, root: Path, cluster: str, node: str, limits: Limits) -> None:
        limits.check()
        self.limits = limits
        self.folder = root / node_folder(cluster, node)
        self._node = node_facts(cluster, node)
        self._sealing = threading.Lock()
        self._lock = threading.RLock()
        self._held = NodeLock(self.folder)
        self._store = SegmentStore(self.folder, limits)
        self._unsealed: list[Path] = []
        """Left by an earlier run."""
        self._parts: list[Part] = []
        """Opened, and neither sealed nor discarded."""
        self._waiting: list[tuple[Part, SegmentFacts]] = []
        """Those among them that can be sealed, in order."""
        self._last_start_ns = 0
        self._seq = 0
        self._manifest_bytes = 8192
        """More than the largest so far."""
        self._compressing_bytes = 0
        self._salvage_trouble = ""
        self._trouble = ""
        """What the latest attempt to keep the folder in order ran into."""
        self._compressor = Compressor(self._compress) if limits.compress else None

    # --- The life of a segment ---------------------------------------------------------------------------------------

    def salvage(self) -> list[Manifest]:
        """Seal what an earlier run left unsealed, cut to whole records; what is empty goes. Returns what it sealed.

        No OSError: what the disk does not allow now is told by `state`, and tried again at each seal.
        """
        with self._sealing:
            try:
                self._attach()
            except OSError as error:
                self._trouble = f"{self.folder} can't be used: {error}"
                return []
            manifests = self._salvage()
            self._settle()
        return manifests

    def open(self, now_ns: int) -> Part:
        """A new segment; names are in order even where the clock is not. Leaves room for Limits.segment_bytes."""
        with self._lock:
            self._attach()
            size = self.limits.segment_bytes
            if not self._store.evict(self._other_bytes() + self._footprint(size)):
                raise self._no_room()
            name, seq = self._next_name(now_ns)
            part = open_part(self.folder, name, seq, now_ns)
            part.granted_bytes = size
            self._parts.append(part)
            return part

    def make_room(self, size_bytes: int) -> None:
        """Before so much is written to the part that was opened last: evict until it fits under the quota.

        Quick as long as the part stays below Limits.segment_bytes. OSError EDQUOT: nothing is left to evict.
        FileNotFoundError: somebody removed the part, or its folder.
        """
        part = self._parts[-1]
        here, written = os.stat(part.path), os.fstat(part.fd)
        if (here.st_dev, here.st_ino) != (written.st_dev, written.st_ino):
            raise FileNotFoundError(errno.ENOENT, "somebody put another file in its place", str(part.path))
        needed = written.st_size + size_bytes
        if needed <= part.granted_bytes:
            return
        with self._lock:
            before = part.granted_bytes
            part.granted_bytes = needed + self.limits.segment_bytes // 4  # so that the next calls are quick again
            if self._store.evict(self._other_bytes()):
                return
            part.granted_bytes = needed
            if self._store.evict(self._other_bytes()):
                return
            part.granted_bytes = before
            raise self._no_room()

    def seal(self, part: Part, facts: SegmentFacts) -> Manifest:
        """Make a part a segment; in the order in which they were opened. Then evict what is beyond the limits.

        OSError: it is not sealed yet. The ring tries again at the next seal, and salvages it after a restart; or call
        it again. FileNotFoundError: somebody removed its data, which can't be sealed any more.
        """
        with self._sealing:
            if part.manifest is None and not any(each is part for each, _ in self._waiting):
                self._waiting.append((part, facts))
            self._attach()
            self._salvage()
            self._seal_waiting(part)
            self._settle()
        if part.manifest is None:
            raise FileNotFoundError(errno.ENOENT, "somebody removed it before it was sealed", str(part.path))
        return part.manifest

    def discard(self, part: Part) -> None:
        """Nothing is left of a part: it is empty, or torn beyond use."""
        with self._lock:
            self._forget(part)
            if part.seq == self._seq:
                self._seq -= 1  # so that a missing number always means a missing segment
            part.path.unlink(missing_ok=True)

    def leave(self, part: Part) -> None:
        """Let go of a part that somebody moved: where it comes back, it is salvaged."""
        with self._lock:
            self._forget(part)

    def close(self) -> None:
        """Let go of the folder, once what runs in the background has ended. What waits is sealed by the next start."""
        if self._compressor:
            self._compressor.close()
        with self._sealing, self._lock:
            for part in list(self._parts):
                self._forget(part)
            self._held.release()

    def state(self, now_ns: int) -> RingState:
        """For metrics, and for people who ask how far back a node reaches."""
        with self._lock:
            store = self._store
            full = [segment for segment in store.segments if segment.packets]
            oldest = {each: min((s.since_ns for s in full if s.pinned == each), default=None) for each in (True, False)}
            pinned = [segment for segment in store.segments if segment.pinned]
            other_bytes = self._other_bytes() + store.overhead_bytes()
            left_ns = overwritten_in_ns(store.segments, other_bytes, self.limits, boot_time_ns())
            return RingState(
                time_ns=now_ns,
                segments=len(store.segments),
                oldest_ns=min((segment.since_ns for segment in full), default=None),
                oldest_frozen_ns=oldest[True],
                oldest_unfrozen_ns=oldest[False],
                newest_ns=max((segment.until_ns for segment in full), default=None),
                bytes=other_bytes + store.loose_bytes(),
                quota_bytes=self.limits.quota_bytes,
                frozen_segments=len(pinned),
                frozen_bytes=sum(segment.disk_bytes for segment in pinned),
                frozen_quota_bytes=self.limits.frozen_quota_bytes,
                refused_segments=sum(segment.refused for segment in store.segments),
                overwritten_ns=None if left_ns is None else now_ns + left_ns,
                evicted_segments=store.evicted,
                lost_segments=store.lost,
                waiting_segments=len(self._waiting) + len(self._unsealed),
                problems=[*store.problems(), *filter(None, (self._salvage_trouble, self._trouble))],
                last_stem=store.head.stem if store.head else "",
                last_manifest_sha256=store.head.sha256 if store.head else "",
            )

    # --- Behind it ---------------------------------------------------------------------------------------------------

    def _attach(self) -> None:
        """Hold the folder; where it is another one than before (at the start, too), learn what is in it."""
        with self._lock:
            if not self._held.hold():
                return
            try:
                state = read_state(self.folder)
                last = None
                if state and state.last_manifest_sha256:
                    last = Link(state.last_stem, state.last_manifest_sha256, None)
                ours = {part.path for part in self._parts}
                self._unsealed = [path for path in self._store.load(last) if path not in ours]
            except BaseException:
                self._held.release()  # so that the next call tries again
                raise
            stems = [segment.stem for segment in self._store.segments] + [path.name for path in self._unsealed]
            stems += [self._store.head.stem] if self._store.head else []
            for start_ns, seq in filter(None, map(parse_stem, stems)):
                if start_ns > _LATEST_NS:
                    continue  # a stranger's name: the next one would have too many digits
                self._last_start_ns = max(self._last_start_ns, start_ns)
                self._seq = max(self._seq, seq)
            if self._compressor:
                for segment in self._store.segments:
                    self._compressor.add(segment.stem)

    def _salvage(self) -> list[Manifest]:
        manifests = []
        unsealed, self._unsealed = self._unsealed, []
        self._salvage_trouble = ""
        for path in unsealed:
            try:
                if manifest := self._salvage_one(path):
                    manifests.append(manifest)
            except OSError as error:
                self._salvage_trouble = f"{path} could not be salvaged: {error}"
        return manifests

    def _salvage_one(self, path: Path) -> Manifest | None:
        """None: there is nothing to be kept. After an OSError it is among the unsealed again."""
        part = None
        try:
            part = self._adopt(path)
            facts = facts_of(part.fd) if part else None
            manifest = self._seal(part, facts) if part and facts else None
            if part and not manifest:
                self.discard(part)
            if path.name.endswith(ZSTD):
                path.unlink(missing_ok=True)  # what it held is in the part, or was nothing
        except OSError:
            if part and part.manifest:
                raise
            with self._lock:
                if part:
                    self._forget(part)
                    if path.name.endswith(ZSTD):
                        part.path.unlink(missing_ok=True)
                    else:
                        path = part.path
            self._unsealed.append(path)
            raise
        return manifest

    def _adopt(self, path: Path) -> Part | None:
        """A part of what is not sealed; None: it is gone."""
        with self._lock:
            start_ns, seq = parse_stem(path.name) or (0, 0)
            name = f"{path.parent.name}/{path.name.partition('.')[0]}"
            if path.suffix != PART and self._store.head and name <= self._store.head.stem:
                self._seq += 1  # somebody removed its manifest, whose tombstone has this name
                name, seq = stem(start_ns, self._seq), self._seq
            try:
                part = adopt(path, self.folder, name, seq, start_ns)
            except FileNotFoundError:
                return None
            self._parts.insert(0, part)
            return part

    def _seal_waiting(self, wanted: Part) -> None:
        """In order. One that can't be sealed keeps the others from it only where the disk is full or read-only."""
        failed: list[tuple[Part, SegmentFacts]] = []
        trouble: OSError | None = None
        while self._waiting and not (trouble and trouble.errno in _WHOLE_DISK):
            part, facts = self._waiting.pop(0)
            try:
                self._seal(part, facts)
            except FileNotFoundError:
                part.is_elsewhere = not is_removed(part)
                self.leave(part)
            except OSError as error:
                failed.append((part, facts))
                trouble = error if part is wanted or error.errno in _WHOLE_DISK else trouble
        self._waiting = failed + self._waiting
        if trouble and wanted.manifest is None:
            raise trouble

    def _seal(self, part: Part, facts: SegmentFacts) -> Manifest:
        part.granted_bytes = 0
        commit_data(part, facts.size_bytes)
        facts.sha256 = facts.sha256 or hash_data(part)
        previous = self._store.head
        manifest = manifest_of(part, facts, previous.sha256 if previous else None, self._node)
        data = write_manifest(self.folder, manifest)
        if not self._compressor:  # nobody reads it soon: its pages would push out those of others
            os.posix_fadvise(part.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        disk_bytes = NAMES_BYTES + on_disk(facts.size_bytes) + on_disk(len(data))
        with self._lock:
            self._manifest_bytes = max(self._manifest_bytes, 2 * len(data))
            segment = from_manifest(part.stem, vars(manifest), sha256(data), disk_bytes, boot_time_ns())
            self._store.add(segment)
            part.manifest = manifest
            self._forget(part)
        if self._compressor:
            self._compressor.add(part.stem)
        return manifest

    def _settle(self) -> None:
        """After a seal: pins, losses, evictions with room for one more segment. Trouble is told, and tried again."""
        try:
            with self._lock:
                self._trouble = ""
                self._store.note_lost()
                self._store.pin()
                self._store.evict(self._other_bytes() + self._footprint(self.limits.segment_bytes), aged=True)
            write_state(self.folder, self.state(time.time_ns()))
        except OSError as error:
            self._trouble = f"{self.folder} can't be kept in order: {error}"

    def _compress(self, name: str) -> None:
        """In the compressor's thread."""
        source, target = self.folder / f"{name}{PCAP}", self.folder / f"{name}{ZSTD}"
        temporary = target.with_name(target.name + TEMPORARY)
        with self._lock:
            segment = self._store.get(name)
            if segment is None or not source.exists():
                return
        try:
            with self._lock:
                self._compressing_bytes = on_disk(segment.size_bytes)
                has_room = self._store.evict(self._other_bytes())
            if not has_room or not compress(source, temporary, segment.sha256):
                return
            with self._lock:
                if self._store.get(name) is not segment:  # evicted meanwhile
                    temporary.unlink(missing_ok=True)
                    return
                size = temporary.stat().st_size
                os.rename(temporary, target)
                self._store.set_mode(segment)
                sync_folder(target.parent)
                source.unlink()
                segment.disk_bytes += on_disk(size) - on_disk(segment.size_bytes)
        except OSError as error:
            self._trouble = f"{source} could not be compressed: {error}"
        finally:
            self._compressing_bytes = 0

    def _next_name(self, now_ns: int) -> tuple[str, int]:
        self._last_start_ns = max(now_ns, self._last_start_ns + 1)
        self._seq += 1
        return stem(self._last_start_ns, self._seq), self._seq

    def _other_bytes(self) -> int:
        """What the quota counts beside sealed segments: what is being written."""
        sizes = [max(os.fstat(part.fd).st_size, part.granted_bytes) for part in self._parts]
        return self._compressing_bytes + sum(map(self._footprint, sizes))

    def _footprint(self, size_bytes: int) -> int:
        """Of a segment, once it is sealed."""
        return NAMES_BYTES + on_disk(size_bytes) + on_disk(self._manifest_bytes)

    def _forget(self, part: Part) -> None:
        """Close it, once: its number may be another file's the second time."""
        left = [each for each in self._parts if each is not part]
        if len(left) < len(self._parts):
            self._parts = left
            os.close(part.fd)

    def _no_room(self) -> OSError:
        return OSError(
            errno.EDQUOT, "all that the quota leaves is in use, and nothing can be evicted", str(self.folder)
        )
