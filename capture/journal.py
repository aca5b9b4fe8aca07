"""The journal: what a cluster looked like, and when. Each of its files stands alone, and its gaps are admitted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from capture import log, metrics
from capture.connection import ApiError, Connection
from capture.contract import NANOSECONDS, JournalRecord
from capture.journal_files import JournalFiles, Part
from capture.metrics import Metrics
from capture.reflector import Moment, Reflector
from capture.watch import Resource, follow, moment

TICK_S: Final = 1.0
"""Between flushes: what a crash may lose."""
SYNC_S: Final = 10.0
"""Between syncs: what a power failure may lose."""
RETRY_S: Final = 10.0
"""Until a folder that refused a file is asked again."""
_HOUR_NS: Final = 3600 * NANOSECONDS
_NOT_RUNNING: Final = "podtap journal was not running"
_EVENTS: Final = ("added", "modified", "deleted")


@dataclass(frozen=True)
class JournalLimits:
    """What the files may become, and take."""

    file_bytes: int = 64 << 20
    """Uncompressed: a larger one is ended, if not most of it is the listing it began with; so is each at the full hour.
    """
    quota_bytes: int = 2 << 30
    max_age_ns: int | None = None


class Journal:
    """Takes what followers saw, and writes it down. A disk that refuses is told as a gap, and asked again."""

    def __init__(
        self,
        files: JournalFiles,
        reflectors: Sequence[Reflector],
        limits: JournalLimits,
        counts: Metrics,
        notice: Callable[[JournalRecord], None] | None = None,
    ) -> None:
        """Opens the first file. What earlier runs left is made whole, and the time since then is a gap.

        `notice` hears of every record that a follower told.
        """
        self.lock = threading.RLock()
        self._files, self._reflectors, self._limits, self._counts = files, reflectors, limits, counts
        self._notice = notice
        self._part: Part | None = None
        self._hour = self._full_bytes = 0
        """When the present file ends."""
        self._synced_s = self._retry_s = -RETRY_S
        self._ticked_s: float | None = None
        self._flushed_ns = time.time_ns()
        self._lost_since_ns: int | None = None
        """Since when nothing is written."""
        self._lost_reason = ""
        self._told: set[str] = set()
        """Kinds that the log says can't be seen."""
        known_ns = files.known_until_ns()
        for reflector in reflectors:
            if known_ns is not None:
                reflector.was_blind(known_ns, _NOT_RUNNING)
            self._count_zeros(reflector.kind)
        counts.on_read(self._refresh)
        self.tick(moment())

    # What followers tell

    def write(self, records: list[JournalRecord]) -> None:
        """Keeps them: on disk after the next tick."""
        with self.lock:
            self._put(records)
            for record in records:
                self._count(record)
                if self._notice:
                    self._notice(record)

    def asked(self, kind: str, verb: str) -> None:
        """A request goes out."""
        self._counts.add(metrics.JOURNAL_REQUESTS, 1, kind, verb)

    def failed(self, kind: str, error: ApiError) -> None:
        """It came to nothing."""
        self._counts.add(metrics.JOURNAL_FAILURES, 1, kind, error.label)

    # As time goes on

    def tick(self, now: Moment) -> None:
        """What is to be done each second: flush, begin the next file, try a disk again, say what is wrong."""
        old = None
        with self.lock:
            if now.monotonic_s >= self._retry_s:
                if self._part is None:
                    self._begin(now)
                elif self._part.size_bytes >= self._full_bytes or now.time_ns // _HOUR_NS != self._hour:
                    old = self._rotate(self._part, now)
            self._flush(now)
            self._tell_blindness(now)
        if old is not None:
            self._seal(old, now)

    def ready(self) -> list[str]:
        """Why it does not know everything now."""
        with self.lock:
            reasons = [f"{each.kind}: {_why(each)}" for each in self._reflectors if each.is_blind]
            return [*reasons, *([f"nothing can be written: {self._lost_reason}"] if self._part is None else [])]

    def close(self, now: Moment) -> None:
        """The end in good order."""
        with self.lock:
            self._put([gap for each in self._reflectors for gap in each.gap(now)])
            self._put([JournalRecord("stopped", now.time_ns)])
            part, self._part = self._part, None
        if part is not None:
            self._seal(part, now)

    # Files

    def _put(self, records: list[JournalRecord]) -> None:
        if self._part is not None and records:
            try:
                self._part.write(records)
            except OSError as error:
                self._lose(error, moment())

    def _begin(self, now: Moment) -> None:
        """The first file, or the first after a disk that refused."""
        try:
            self._files.salvage()
            part = self._open(now, self._gaps(now))
        except OSError as error:
            self._lose(error, now)
            return
        if self._lost_since_ns is not None:
            log.info("the journal is written again", file=str(part.path))
        self._part, self._lost_since_ns = part, None
        self._retain(now)

    def _rotate(self, old: Part, now: Moment) -> Part | None:
        """The next file stands before the old one is ended, which it returns: no moment is in neither."""
        try:
            self._part = self._open(now, [])
        except OSError as error:  # then the old one goes on
            self._count_error(error, now)
            return None
        return old

    def _seal(self, old: Part, now: Moment) -> None:
        """Compresses, which takes a moment: nobody needs to wait for it."""
        try:
            old.seal(self._known_ns(now))
        except OSError as error:
            old.abandon()
            self._count_error(error, now)
        self._retain(now)

    def _open(self, now: Moment, first: list[JournalRecord]) -> Part:
        part = self._files.open(now.time_ns)
        try:
            part.write(first)
            for reflector in self._reflectors:
                part.write(reflector.listing(now))
            part.flush(self._known_ns(now))
        except OSError:
            part.abandon()
            part.path.unlink(missing_ok=True)
            raise
        self._hour = now.time_ns // _HOUR_NS
        self._full_bytes = max(self._limits.file_bytes, 4 * part.size_bytes)
        return part

    def _gaps(self, now: Moment) -> list[JournalRecord]:
        """Of a disk that refused; each is followed by its listing."""
        if self._lost_since_ns is None:
            return []
        since, reason = self._lost_since_ns, self._lost_reason
        return [
            JournalRecord("gap", now.time_ns, each.kind, since_ns=since, reason=reason) for each in self._reflectors
        ]

    def _flush(self, now: Moment) -> None:
        if self._part is None:
            return
        sync = now.monotonic_s - self._synced_s >= SYNC_S
        try:
            self._part.flush(self._known_ns(now), sync)
        except OSError as error:
            self._lose(error, now)
            return
        self._flushed_ns = now.time_ns
        if sync:
            self._synced_s = now.monotonic_s

    def _lose(self, error: OSError, now: Moment) -> None:
        """Nothing is kept any more; what came since the last flush may be lost, too."""
        if self._part is not None:
            self._part.abandon()
            self._part = None
        if self._lost_since_ns is None:
            self._lost_since_ns = self._flushed_ns
        self._lost_reason = error.strerror or str(error)
        self._count_error(error, now)

    def _count_error(self, error: OSError, now: Moment) -> None:
        log.error("the journal can't be written", folder=str(self._files.folder), error=str(error))
        self._counts.add(metrics.WRITE_ERRORS, 1, error.strerror or str(error))
        self._retry_s = now.monotonic_s + RETRY_S

    def _retain(self, now: Moment) -> None:
        try:
            for path in self._files.retain(now.time_ns, self._limits.quota_bytes, self._limits.max_age_ns):
                log.info("an old file of the journal went", file=str(path))
        except OSError as error:
            log.error("old files of the journal can't be removed", error=str(error))

    def _known_ns(self, now: Moment) -> int:
        """Until when everything is known that is served."""
        blind = [each.blind_since_ns for each in self._reflectors if each.is_blind and each.blind_since_ns is not None]
        return min([now.time_ns, *blind])

    # What it tells of itself

    def _tell_blindness(self, now: Moment) -> None:
        passed = 0.0 if self._ticked_s is None else now.monotonic_s - self._ticked_s
        self._ticked_s = now.monotonic_s
        for each in self._reflectors:
            if each.is_blind:
                self._counts.add(metrics.JOURNAL_BLIND_SECONDS, passed, each.kind)
                if each.blind_reason not in ("", _NOT_RUNNING) and each.kind not in self._told:
                    log.warning("a kind can't be seen", kind=each.kind, reason=each.blind_reason)
                    self._told.add(each.kind)
            elif each.kind in self._told:
                log.info("a kind can be seen again", kind=each.kind)
                self._told.remove(each.kind)

    def _count(self, record: JournalRecord) -> None:
        if record.type in _EVENTS:
            self._counts.set(metrics.JOURNAL_LAST_EVENT, record.observed_ns / NANOSECONDS, record.kind)
        elif record.type == "gap":
            self._counts.add(metrics.JOURNAL_GAPS, 1, record.kind)
        if self._part is not None:
            self._counts.add(metrics.JOURNAL_RECORDS, 1, record.kind, record.type)

    def _count_zeros(self, kind: str) -> None:
        for name in ("added", "modified", "deleted", "gap"):
            self._counts.add(metrics.JOURNAL_RECORDS, 0, kind, name)
        for metric in (metrics.JOURNAL_GAPS, metrics.JOURNAL_BLIND_SECONDS):
            self._counts.add(metric, 0, kind)

    def _refresh(self) -> None:
        with self.lock:
            for each in self._reflectors:
                self._counts.set(metrics.JOURNAL_OBJECTS, len(each.objects), each.kind)
                self._counts.set(metrics.JOURNAL_BLIND, int(each.is_blind), each.kind)
            open_bytes = self._part.size_bytes if self._part else 0
        self._counts.set(metrics.JOURNAL_BYTES, open_bytes + sum(file.size_bytes for file in self._files.sealed()))


def _why(blind: Reflector) -> str:
    return "not listed yet" if blind.blind_reason in ("", _NOT_RUNNING) else blind.blind_reason


def keep_journal(
    journal: Journal,
    resources: Sequence[Resource],
    reflectors: Sequence[Reflector],
    connection: Connection,
    stop: threading.Event,
) -> None:
    """Follows everything until `stop` is set; then ends the journal in good order; open requests are left."""
    for resource, reflector in zip(resources, reflectors, strict=True):
        arguments = (resource, reflector, connection, journal, stop)
        threading.Thread(target=follow, args=arguments, name=f"follow-{resource.kind}", daemon=True).start()
    begun = time.monotonic()
    while not stop.wait(TICK_S - (time.monotonic() - begun) % TICK_S):
        journal.tick(moment())
    journal.close(moment())
