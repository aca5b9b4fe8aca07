"""What one writer of the journal watched of one kind: when it knew all objects of it, and which of them went unseen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from analysis.layout import NANOSECONDS
from capture.contract import JournalRecord

STATES: Final = frozenset(["listed", "added", "modified", "deleted"])
LATE_NS: Final = 5 * NANOSECONDS
"""How late the journal hears of what happened: when it goes blind, that is on its way still."""

Span = tuple[int, int]
"""Half-open, in nanoseconds."""


class Watching:
    """Fed with the records of one writer and kind, in order."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._since: int | None = None
        self._heard_ns = 0
        self._present: set[str] = set()
        self._listing: set[str] | None = None
        self._last_saw: dict[str, int] = {}

    def begin_file(self, follows: bool) -> None:
        """Every file begins with full listings. Unless it follows the one before, a file between them is not there."""
        if not follows:
            self._go_blind(self._heard_ns)
        self._listing = set()

    def learn(self, record: JournalRecord) -> dict[str, int]:
        """Returns objects that are gone although nobody saw them go, each with when it was there for the last time."""
        missing = self._learn(record)
        self._heard_ns = max(self._heard_ns, record.observed_ns)
        return missing

    def _learn(self, record: JournalRecord) -> dict[str, int]:
        if record.type == "gap":
            self._go_blind(record.observed_ns if record.since_ns is None else record.since_ns)
            self._listing = set()
        elif record.type == "list_complete":
            return self._listed(record.observed_ns)
        elif record.type == "deleted":
            self._present.discard(record.uid)
            if self._listing is not None:
                self._listing.discard(record.uid)
        elif record.uid:
            known = self._present if self._listing is None or record.type != "listed" else self._listing
            known.add(record.uid)
            if self._listing is not None:
                self._listing.add(record.uid)
        return {}

    def _listed(self, now: int) -> dict[str, int]:
        missing: dict[str, int] = {}
        if self._listing is not None:
            missing = {uid: self._last_saw.pop(uid, self._heard_ns) for uid in self._present - self._listing}
            self._present = self._listing
            self._listing = None
        if self._since is None:
            self._since = now
        return missing

    def _go_blind(self, when: int) -> None:
        if self._since is not None:
            self._spans.append((self._since, max(self._since, when)))
            self._last_saw = dict.fromkeys(self._present, when)
        self._since = None

    def last_saw(self, uid: str) -> int:
        """Until when an object was there for certain; 0 if this writer does not know it (any more)."""
        if uid in self._present:
            return self._last_saw.get(uid, 0) if self._since is None else self._heard_ns
        return 0

    def all(self) -> list[Span]:
        """When all objects of the kind were known."""
        return self._spans if self._since is None else [*self._spans, (self._since, self._heard_ns)]

    def sure(self) -> list[Span]:
        """As all(), without what may have been on its way when the writer went blind."""
        spans = [(since, until - LATE_NS) for since, until in self._spans if since < until - LATE_NS]
        return spans if self._since is None else [*spans, (self._since, self._heard_ns)]


def blind_between(spans: Iterable[Span]) -> list[Span]:
    """What several spans leave open between the first and the last."""
    found: list[Span] = []
    known_until: int | None = None
    for since, until in sorted(spans):
        if known_until is not None and since > known_until:
            found.append((known_until, since))
        known_until = until if known_until is None else max(until, known_until)
    return found
