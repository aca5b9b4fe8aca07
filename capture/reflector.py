"""What to ask an API server next to know one kind of object at all times, and what its answers mean. No I/O.

Rule 1. A listing comes first, page by page, and counts once it is whole; a watch goes on from its resourceVersion.
Rule 2. Whatever ends a watch, the next goes on from the last resourceVersion that an event or a bookmark told: nothing
        is lost, it only comes late. Where the server does not know that version any more (410), went back behind it,
        or can't tell again and again what comes after it, all is listed anew: that is a gap, and what is missing then
        was deleted unseen.
Rule 3. A watch is short (25 s). A server says which version it is at 2 s before the end, so silence is noticed in time.
Rule 4. Each request since the server was last well doubles the time until the one after the next failure: from 1 to
        30 s, less up to a quarter, from start to start, so that waiting in vain is waiting too. Being well is a watch
        that lasted 10 s; an end in good order is a failure too, where the watch did not last. The first 410 since
        then is none: it is answered at once.
Rule 5. While nothing can be seen it is blind, since the last moment of which something is known.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from capture.connection import READ_S, ApiError
from capture.contract import NANOSECONDS, JournalRecord

Object = dict[str, Any]

PAGE: Final = 250
"""Objects a page: of pods some 2.5 MB, which take four times as much memory while they are read."""
GONE: Final = 410
NOT_FOUND: Final = 404
BOOKMARK_EVERY_NS: Final = 60 * NANOSECONDS
"""Between those that the journal keeps."""
STUCK: Final = 3
"""Answers without sense in place of what follows a resourceVersion, until all is listed anew."""


class Moment(NamedTuple):
    """Both clocks."""

    monotonic_s: float
    time_ns: int


@dataclass(frozen=True)
class Timing:
    """All in seconds."""

    watch: float = 25.0
    """After which the server shall end a watch."""
    silence: float = 28.0
    """After which a watch without any sign of life, or without an end, is given up."""
    read: float = READ_S
    """After which any other answer without a sign of life is given up."""
    first_delay: float = 1.0
    longest_delay: float = 30.0
    well: float = 10.0


TIMING: Final = Timing()


@dataclass(frozen=True)
class ListPage:
    """Ask for a page of the listing; `token` '': the first one. `limit` 0: all at once."""

    token: str = ""
    limit: int = PAGE


@dataclass(frozen=True)
class Watch:
    """Ask for what comes after this version."""

    resource_version: str


@dataclass(frozen=True)
class Probe:
    """Ask for one object, to learn which version the server is at."""


Request = ListPage | Watch | Probe


@dataclass(frozen=True, slots=True)
class Known:
    """An object's last state, as JSON: a tenth of what its dictionaries would take."""

    resource_version: str
    content: bytes


class Reflector:
    """One kind's knowledge. Call start() at `due`, do what it says, and tell how it went. All moments are given."""

    def __init__(
        self,
        kind: str,
        keep: Callable[[Object], Object],
        now: Moment,
        random: Callable[[], float],
        *,
        optional: bool = False,
        timing: Timing = TIMING,
    ) -> None:
        """`keep` prunes an object; `random` gives numbers in [0, 1). An `optional` kind need not be served."""
        self.kind = kind
        self.timing = timing
        self.objects: dict[str, Known] = {}
        """By UID."""
        self.due = now.monotonic_s
        """When start() is to be called next, by the monotonic clock."""
        self.resource_version = ""
        """Up to which everything is known."""
        self.was_listed = False
        self.is_absent = False
        """The API server does not serve the kind; it is asked again and again."""
        self.blind_since_ns: int | None = now.time_ns
        self.blind_reason = ""
        """'': nothing went wrong yet."""
        self._keep, self._random, self._optional = keep, random, optional
        self._next: Request = ListPage()
        self._page: dict[str, Known] = {}
        """Of the listing under way."""
        self._page_ns = now.time_ns
        """When it began."""
        self._expired = 0
        """Listings since the last whole one that took longer than the server could wait."""
        self._was_gone = False
        """Since the server was last well, it said that what we asked for is gone."""
        self._requests = 0
        """Since the server was last well, pages not counted that followed a good one."""
        self._started_s = now.monotonic_s
        self._opened_s: float | None = None
        """Since when the present watch is open."""
        self._lines = 0
        """Of the present watch."""
        self._stuck = 0
        """Watches in a row that broke before they told anything."""
        self._known_ns = self._bookmark_ns = now.time_ns
        """The last moment of which something is known; and the one at which that was last written down."""
        self._unseen_since_ns: int | None = None
        """What a watch tells now may have happened since then: it is what was missed."""

    @property
    def is_blind(self) -> bool:
        return self.blind_since_ns is not None and not self.is_absent

    def listing(self, now: Moment) -> list[JournalRecord]:
        """All that is known, as of the last moment of which it is; nothing before the first listing was whole."""
        if not self.was_listed:
            return []
        time_ns = now.time_ns if self.blind_since_ns is None else self.blind_since_ns
        records = [self._record("listed", uid, known, time_ns) for uid, known in self.objects.items()]
        return [*records, JournalRecord("list_complete", time_ns, self.kind, resource_version=self.resource_version)]

    def gap(self, now: Moment) -> list[JournalRecord]:
        """That nothing was seen, if it was so."""
        if self.blind_since_ns is None or not self.blind_reason:
            return []
        since_ns, reason = self.blind_since_ns, self.blind_reason
        return [JournalRecord("gap", now.time_ns, self.kind, since_ns=since_ns, reason=reason)]

    def start(self, now: Moment) -> Request:
        """What is to be asked now."""
        if not (isinstance(self._next, ListPage) and self._next.token):
            self._requests += 1
        self._started_s, self._opened_s = now.monotonic_s, None
        return self._next

    def page(self, answer: Any, now: Moment) -> list[JournalRecord]:
        """A page of a listing came. Raises ApiError where it is none."""
        version, token, items = _list_parts(answer)
        self.due = now.monotonic_s
        if isinstance(self._next, Probe):
            self._compare(version, now)
            return self._bookmark(now)
        if isinstance(self._next, ListPage) and not self._next.token:
            self._page, self._page_ns = {}, now.time_ns
        self._page.update((uid, known) for uid, known, _ in map(self._read, items))
        if token:
            self._next = ListPage(token)
            return []
        return self._complete(version, now)

    def opened(self, now: Moment) -> None:
        """The server began to answer a watch."""
        self._opened_s, self._lines = now.monotonic_s, 0
        if self.blind_since_ns is not None:
            self._unseen_since_ns = self.blind_since_ns
        self._see()

    def line(self, line: bytes, now: Moment) -> list[JournalRecord]:
        """A line of a watch. Raises ApiError where it is none, or tells of an error: then the watch is over."""
        kind, item = _event_parts(line)
        records = [] if kind == "BOOKMARK" else self._change(kind, item, now)
        self.resource_version = item["metadata"]["resourceVersion"]
        self._lines += 1
        self._stuck = 0
        self._known_ns = now.time_ns
        if kind == "BOOKMARK":
            self._unseen_since_ns = None
            records = self._bookmark(now)
        return records

    def ended(self, now: Moment) -> None:
        """A watch came to an end in good order."""
        lasted = now.monotonic_s - (self._opened_s or now.monotonic_s)
        if not self._lines and lasted > 0.8 * self.timing.watch:
            self._next = Probe()  # a server that went back behind our version is silent too
        else:
            self._known_ns = now.time_ns
            self._next = Watch(self.resource_version)
        self._schedule(now)

    def failed(self, error: ApiError, now: Moment) -> None:
        """A request got no good answer, or not to its end."""
        if error.status is not None:
            self.is_absent = self._optional and error.status == NOT_FOUND and not self.was_listed
        if not (error.silent or error.status == GONE or self.blind_since_ns is not None):
            self._known_ns = now.time_ns  # somebody was there until now; of a silent one nobody knows since when not
        self._lose_sight(str(error))
        if isinstance(self._next, Watch):
            self._next = Watch(self.resource_version)
            self._stuck += self._opened_s is not None and not error.silent
            if error.status == GONE or self._stuck >= STUCK:
                self._next = ListPage()
        elif isinstance(self._next, ListPage) and self._next.token:
            self._requests += 1
            if error.status == GONE:
                self._expired += 1
                self._next = ListPage(limit=0 if self._expired > 1 else PAGE)
        if error.status == GONE and not self._was_gone:
            self._was_gone = True  # it is well, only we are late
            self.due = now.monotonic_s
        else:
            self._schedule(now, error.retry_after_s)

    def was_blind(self, since_ns: int, reason: str) -> None:
        """Before anything was asked: nothing was seen since then."""
        self.blind_since_ns, self.blind_reason = since_ns, reason

    def _compare(self, version: str, now: Moment) -> None:
        """Rule 2: whether the server went back, restored from a backup: then it would be silent for ever."""
        self._next = Watch(self.resource_version)
        if version.isdecimal() and self.resource_version.isdecimal() and int(version) < int(self.resource_version):
            self._lose_sight(f"the API server went back from version {self.resource_version} to {version}")
            self._next = ListPage()
        else:
            self._known_ns = now.time_ns

    def _complete(self, version: str, now: Moment) -> list[JournalRecord]:
        unseen_ns = self._known_ns if self.blind_since_ns is None else self.blind_since_ns
        records = self.gap(now)
        self._see()
        for uid in self.objects.keys() - self._page.keys():
            record = self._record("deleted", uid, self.objects[uid], now.time_ns)
            record.unseen_since_ns = unseen_ns
            records.append(record)
        self.objects, self._page = self._page, {}
        self.resource_version = version
        self.was_listed = True
        self._next = Watch(version)
        self._expired = self._stuck = 0
        self._unseen_since_ns = self._page_ns
        self._known_ns = self._bookmark_ns = now.time_ns
        return records + self.listing(now)

    def _change(self, kind: str, item: Object, now: Moment) -> list[JournalRecord]:
        uid, known, kept = self._read(item)
        before = self.objects.get(uid)
        record = JournalRecord("added", now.time_ns, self.kind, uid, known.resource_version, kept)
        record.unseen_since_ns = self._unseen_since_ns
        if kind == "DELETED":
            self.objects.pop(uid, None)
            record.type = "deleted"
            return [record]
        self.objects[uid] = known
        if before is not None:
            if before.content == known.content:
                return []  # nothing changed of what is kept
            record.type = "modified"
        return [record]

    def _bookmark(self, now: Moment) -> list[JournalRecord]:
        """That all is known until now, if it was long since that was written down."""
        if self.blind_since_ns is not None or now.time_ns - self._bookmark_ns < BOOKMARK_EVERY_NS:
            return []
        self._bookmark_ns = now.time_ns
        return [JournalRecord("bookmark", now.time_ns, self.kind, resource_version=self.resource_version)]

    def _see(self) -> None:
        self.blind_since_ns, self.blind_reason, self.is_absent = None, "", False

    def _lose_sight(self, reason: str) -> None:
        if self.blind_since_ns is None:
            self.blind_since_ns = self._known_ns
        self.blind_reason = reason

    def _schedule(self, now: Moment, at_least_s: float = 0) -> None:
        """Rule 4."""
        timing = self.timing
        if self._opened_s is not None and now.monotonic_s - self._opened_s >= timing.well:
            self._requests, self._was_gone = 0, False
        delay = 0.0
        if self._requests:
            delay = min(timing.longest_delay, timing.first_delay * 2.0 ** min(self._requests - 1, 30))
        self.due = max(
            now.monotonic_s + timing.first_delay / 2 * self._random(),
            self._started_s + delay * (1 - self._random() / 4),
            now.monotonic_s + min(at_least_s, timing.longest_delay),
        )

    def _read(self, item: Any) -> tuple[str, Known, Object]:
        try:
            uid, version = item["metadata"]["uid"], item["metadata"]["resourceVersion"]
        except (KeyError, TypeError):
            raise ApiError("an object without uid and resourceVersion came") from None
        kept = self._keep(item)
        return uid, Known(version, json.dumps(kept, separators=(",", ":")).encode()), kept

    def _record(self, type_: str, uid: str, known: Known, time_ns: int) -> JournalRecord:
        return JournalRecord(type_, time_ns, self.kind, uid, known.resource_version, json.loads(known.content))


def _list_parts(answer: Any) -> tuple[str, str, list[Any]]:
    """resourceVersion, continue token ('' on the last page) and items."""
    try:
        version, token = answer["metadata"]["resourceVersion"], answer["metadata"].get("continue") or ""
        items = [] if answer["items"] is None else answer["items"]
    except (AttributeError, KeyError, TypeError):
        raise ApiError("the answer is no list of objects") from None
    if not (isinstance(version, str) and isinstance(token, str) and isinstance(items, list)):
        raise ApiError("the answer is no list of objects")
    return version, token, items


def _event_parts(line: bytes) -> tuple[str, Object]:
    """Type and object of a watch event."""
    try:
        event = json.loads(line)
        kind, item = event["type"], event["object"]
        if kind == "ERROR":
            code = item.get("code")
            code = code if isinstance(code, int) else None
            raise ApiError(f"the watch ended: {item.get('message') or 'an error'} ({code})", code)
        is_sound = kind in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK")
        is_sound = is_sound and isinstance(item["metadata"]["resourceVersion"], str)
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        is_sound = False
    if not is_sound:
        raise ApiError("a line came that is no event of a watch")
    return kind, item
