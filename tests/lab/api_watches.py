"""One watch of the API server stand-in: what it is told, event by event."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from tests.lab.api_lists import rendered
from tests.lab.api_resources import Object, Resource
from tests.lab.api_selectors import select
from tests.lab.api_status import ApiError, invalid_options, version_not_a_number
from tests.lab.api_store import Store

BOOKMARK_EVERY: Final = 60.0
BOOKMARK_BEFORE_END: Final = 2.0
BOOKMARK_AFTER_START: Final = 0.3
"""Where initial events were sent. All seconds."""
LONGEST: Final = 3600.0
"""A watch that did not ask for a timeout ends all the same."""


def is_true(text: str | None) -> bool:
    return text is not None and text.lower() not in ("false", "0")


class Watch:
    """Call take() whenever the store changed or time passed; the store's lock is the caller's business."""

    def __init__(
        self,
        store: Store,
        resource: Resource,
        namespace: str,
        query: Mapping[str, str],
        metadata_only: bool,
        now: float,
    ) -> None:
        """Raises ApiError for what is refused before the stream begins."""
        _check_options(query)
        self.selection = select(resource, namespace, query.get("labelSelector", ""), query.get("fieldSelector", ""))
        version = query.get("resourceVersion", "") or "0"
        if not re.fullmatch(r"\d+", version):
            raise ApiError(500, version_not_a_number(version))
        self.store = store
        self.ended = False
        self._metadata_only = metadata_only
        initial = query.get("sendInitialEvents")
        self._owes_initial = is_true(initial) if initial is not None else version == "0"
        self._bookmarks = is_true(query.get("allowWatchBookmarks"))
        self.seen = int(version)
        """The revision up to which everything was told; ahead of the store's if it was asked so."""
        if version == "0" and not self._owes_initial:
            self.seen = store.revision
        self._end = now + (float(query.get("timeoutSeconds") or 0) or LONGEST)
        self._next_bookmark = now + BOOKMARK_AFTER_START if self._owes_initial else self._bookmark_after(now)
        self._begun_at = 0
        """No bookmark says less than what the watch started with."""
        self.looked_at = now
        """When take() was last called."""
        self._has_begun = False

    def take(self, now: float) -> list[Object]:
        """All that is due, as lines of the stream. Sets `ended` when nothing will follow."""
        self.looked_at = now
        if self.ended:
            return []
        try:
            lines = [] if self._has_begun else self._begin()
        except ApiError as error:
            self.ended = True
            return [self.error(error)]
        lines += self._news()
        if self._bookmarks and now >= self._next_bookmark:
            self._next_bookmark = self._bookmark_after(now)
            if self._has_begun and self.store.revision > self._begun_at:
                lines.append(self.bookmark())
        self.ended = now >= self._end
        return lines

    def bookmark(self, **annotations: str) -> Object:
        """Without content: no status of such an object may be believed."""
        resource = self.selection.resource
        metadata: Object = {"resourceVersion": str(self.store.revision)}
        if annotations:
            metadata["annotations"] = {f"k8s.io/{name.replace('_', '-')}": value for name, value in annotations.items()}
        item = {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata, **resource.empty}
        return self._line("BOOKMARK", item)

    @staticmethod
    def error(error: ApiError) -> Object:
        return {"type": "ERROR", "object": error.status}

    def _begin(self) -> list[Object]:
        """Initial events; or a check that everything since the version asked for is known."""
        lines: list[Object] = []
        if self._owes_initial:
            if self.store.revision < self.seen:
                return []
            items = self.store.items(self.selection.resource)
            lines = [self._line("ADDED", item) for _, item in items if self.selection.matches(item)]
            self.seen = self.store.revision
            if self._bookmarks:
                lines.append(self.bookmark(initial_events_end="true"))
        else:
            self.store.check_watchable(self.selection.resource, self.seen)
        self._has_begun = True
        missed = self.store.changes(self.selection.resource, self.seen)
        self._begun_at = missed[-1].revision if missed else self.seen
        return lines

    def _news(self) -> list[Object]:
        if not self._has_begun or self.store.revision <= self.seen:
            return []
        changes = self.store.changes(self.selection.resource, self.seen)
        self.seen = self.store.revision
        return [self._line(*event) for event in map(self.selection.event, changes) if event]

    def _bookmark_after(self, now: float) -> float:
        before_end = self._end - BOOKMARK_BEFORE_END
        return min(before_end, now + BOOKMARK_EVERY) if before_end > now else now + BOOKMARK_EVERY

    def _line(self, kind: str, item: Object) -> Object:
        shown: Any = rendered(self.selection.resource, item, self._metadata_only)
        return {"type": kind, "object": shown}


def _check_options(query: Mapping[str, str]) -> None:
    match = query.get("resourceVersionMatch", "")
    problem = ""
    if "sendInitialEvents" in query and match != "NotOlderThan":
        problem = "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
    elif match and "sendInitialEvents" not in query:
        problem = "Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
    if problem:
        raise invalid_options(f"resourceVersionMatch: {problem}")
