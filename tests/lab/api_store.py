"""The objects behind the API server stand-in: etcd with its revisions, and the watch caches in front of it.

A real server answers a watch out of a cache of each resource's last changes, and an old list out of etcd or of such a
cache. Both forget, and differently: etcd when it is compacted, a cache when it is full or when the server restarts.
"""

from __future__ import annotations

import bisect
import copy
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.lab.api_resources import Object, Resource
from tests.lab.api_status import LIST_TOO_OLD, WATCH_TOO_OLD, expired


@dataclass(frozen=True)
class Change:
    """One object before and after one revision; None where it was not there."""

    revision: int
    key: str
    previous: Object | None
    current: Object | None


@dataclass
class Shelf:
    """One resource's objects by `namespace/name`, the order of lists, and how they came to be."""

    items: dict[str, Object] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    cached_since: int = 0
    """The watch cache has all changes that came after this revision."""


class Store:
    """Every change has a revision of its own, one count for all resources. Objects in here are never altered."""

    def __init__(self, resources: Iterable[Resource], window: int, watch_cache: bool) -> None:
        self.resources = {(resource.api_version, resource.kind): resource for resource in resources}
        self.window = window
        self.watch_cache = watch_cache
        self.revision = 0
        self.compacted = 0
        self.changed = threading.Condition(threading.RLock())
        """Held by whoever reads or writes; notified of everything that whoever serves a request may wait for."""
        self._shelves = {resource: Shelf() for resource in self.resources.values()}

    def put(self, given: Object) -> Object:
        """Adds or replaces an object. It keeps its resourceVersion if that is newer than anything in here."""
        with self.changed:
            resource = self._resource(given)
            revision = self._next_revision(given)
            metadata = given["metadata"] | {"resourceVersion": str(revision)}
            kept = copy.deepcopy({"kind": resource.kind, "apiVersion": resource.api_version} | given)
            kept["metadata"] = copy.deepcopy(metadata)
            self._record(resource, revision, _key(given), kept)
            return kept

    def delete(self, given: Object) -> Object:
        """Only names, and a newer resourceVersion, are looked at: what is deleted is what was here last."""
        with self.changed:
            resource = self._resource(given)
            key = _key(given)
            if key not in self._shelves[resource].items:
                raise KeyError(f"no {resource.qualified} {key}")
            revision = self._next_revision(given)
            last = self._shelves[resource].items[key]
            self._record(resource, revision, key, None)
            return last

    def advance(self, revision: int) -> None:
        """What the store does not hold has changed: only the count grows."""
        with self.changed:
            self.revision = max(self.revision, revision)
            self.changed.notify_all()

    def compact(self) -> None:
        """etcd forgets what was before now. Watch caches remember it: clients notice after a restart only."""
        with self.changed:
            self.compacted = self.revision
            for shelf in self._shelves.values():
                oldest = min(self.compacted - 1, shelf.cached_since)
                del shelf.changes[: _after(shelf, oldest)]

    def restart(self) -> None:
        """Watch caches begin anew."""
        with self.changed:
            for shelf in self._shelves.values():
                shelf.cached_since = self.revision

    def items(self, resource: Resource, revision: int | None = None) -> list[tuple[str, Object]]:
        """Sorted by key. Raises ApiError where an older revision is not known any more."""
        shelf = self._shelves[resource]
        items = dict(shelf.items)
        if revision is not None:
            known = revision >= self.compacted or (self.watch_cache and revision >= shelf.cached_since)
            if not known:
                raise expired(LIST_TOO_OLD)
            for change in reversed(shelf.changes[_after(shelf, revision) :]):
                if change.previous is None:
                    del items[change.key]
                else:
                    items[change.key] = change.previous
        return sorted(items.items())

    def changes(self, resource: Resource, after: int) -> list[Change]:
        shelf = self._shelves[resource]
        return shelf.changes[_after(shelf, after) :]

    def check_watchable(self, resource: Resource, after: int) -> None:
        """Raises ApiError unless all changes after a revision are known."""
        shelf = self._shelves[resource]
        if self.watch_cache and after < shelf.cached_since:
            raise expired(f"too old resource version: {after} ({shelf.cached_since})")
        if not self.watch_cache and after + 1 < self.compacted:
            raise expired(WATCH_TOO_OLD)

    def _resource(self, given: Object) -> Resource:
        wanted = (given["apiVersion"], given["kind"])
        if wanted not in self.resources:
            raise KeyError(f"this API server does not serve {wanted}")
        return self.resources[wanted]

    def _next_revision(self, given: Object) -> int:
        brought = given["metadata"].get("resourceVersion") or "0"
        return int(brought) if int(brought) > self.revision else self.revision + 1

    def _record(self, resource: Resource, revision: int, key: str, current: Object | None) -> None:
        shelf = self._shelves[resource]
        previous = shelf.items.pop(key, None)
        if current is not None:
            shelf.items[key] = current
        shelf.changes.append(Change(revision, key, previous, current))
        self.revision = revision
        cached = len(shelf.changes) - _after(shelf, shelf.cached_since)
        if cached > self.window:
            shelf.cached_since = shelf.changes[-self.window].revision - 1
        self.changed.notify_all()


def _key(item: Object) -> str:
    metadata = item["metadata"]
    return "/".join(filter(None, (metadata.get("namespace"), metadata["name"])))


def _after(shelf: Shelf, revision: int) -> int:
    """Where the changes after a revision begin."""
    return bisect.bisect_right(shelf.changes, revision, key=lambda change: change.revision)
