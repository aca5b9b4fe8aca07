"""Follows one kind of object at an API server: does what its reflector says, and tells what was seen."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

from capture import log
from capture.connection import ApiError, Connection
from capture.contract import JournalRecord
from capture.prune import prune
from capture.reflector import TIMING, ListPage, Moment, Reflector, Request, Timing, Watch

_PATHS: Final = {
    "Pod": "/api/v1/pods",
    "Service": "/api/v1/services",
    "EndpointSlice": "/apis/discovery.k8s.io/v1/endpointslices",
    "Node": "/api/v1/nodes",
    "Namespace": "/api/v1/namespaces",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/networkpolicies",
    "Ingress": "/apis/networking.k8s.io/v1/ingresses",
    "ReplicaSet": "/apis/apps/v1/replicasets",
    "Job": "/apis/batch/v1/jobs",
    "Event": "/api/v1/events",
    "ServiceCIDR": "/apis/networking.k8s.io/v1/servicecidrs",
}
_OF_NO_NAMESPACE: Final = ("Node", "Namespace", "ServiceCIDR")


@dataclass(frozen=True)
class Resource:
    """A kind of object, or a selection of it, and where it is served."""

    kind: str
    path: str
    selectors: dict[str, str] = field(default_factory=dict)
    """labelSelector, fieldSelector."""

    @classmethod
    def of(cls, kind: str, namespace: str = "", **selectors: str) -> Resource:
        """In one namespace, if one is given and the kind has them."""
        path = _PATHS[kind]
        if namespace and kind not in _OF_NO_NAMESPACE:
            group, _, plural = path.rpartition("/")
            path = f"{group}/namespaces/{namespace}/{plural}"
        return cls(kind, path, {key: value for key, value in selectors.items() if value})

    @property
    def api_version(self) -> str:
        """As objects carry it."""
        parts = self.path.split("/")
        return parts[2] if parts[1] == "api" else f"{parts[2]}/{parts[3]}"

    @property
    def is_optional(self) -> bool:
        """An API server need not serve all groups."""
        return self.path.startswith("/apis/")

    def reflector(self, timing: Timing = TIMING) -> Reflector:
        """One that knows nothing yet."""
        keep = partial(prune, self.kind)
        return Reflector(self.kind, keep, moment(), random.random, optional=self.is_optional, timing=timing)


class Sink(Protocol):
    """Whom a follower tells. `lock` is held whenever the reflector changes, and while write() is called."""

    lock: threading.RLock

    def write(self, records: list[JournalRecord]) -> None: ...

    def asked(self, kind: str, verb: str) -> None: ...

    def failed(self, kind: str, error: ApiError) -> None: ...


def moment() -> Moment:
    """Now."""
    return Moment(time.monotonic(), time.time_ns())


def follow(resource: Resource, reflector: Reflector, connection: Connection, sink: Sink, stop: threading.Event) -> None:
    """Runs until `stop` is set, and then until the request ends that is under way: on a thread of its own."""
    while not stop.wait(max(0.0, reflector.due - time.monotonic())):
        try:
            _ask(resource, reflector, connection, sink, stop)
        except Exception as error:  # whatever it was, the kind is asked for again
            if not isinstance(error, ApiError):
                log.error(
                    "following a kind failed in a way that nobody thought of", kind=resource.kind, error=repr(error)
                )
                error = ApiError(f"{type(error).__name__}: {error}")
            with sink.lock:
                reflector.failed(error, moment())
            sink.failed(resource.kind, error)


def _ask(resource: Resource, reflector: Reflector, connection: Connection, sink: Sink, stop: threading.Event) -> None:
    with sink.lock:
        request = reflector.start(moment())
    sink.asked(resource.kind, "watch" if isinstance(request, Watch) else "list")
    if isinstance(request, Watch):
        with connection.stream(
            resource.path, _watch_query(resource, request, reflector.timing), reflector.timing.silence
        ) as lines:
            with sink.lock:
                reflector.opened(moment())
            for line in lines:
                with sink.lock:
                    _tell(sink, reflector.line(line, moment()))
                if stop.is_set():
                    return
        with sink.lock:
            reflector.ended(moment())
    else:
        answer = connection.get(resource.path, list_query(resource, request), reflector.timing.read)
        with sink.lock:
            _tell(sink, reflector.page(answer, moment()))


def _watch_query(resource: Resource, request: Watch, timing: Timing) -> dict[str, str]:
    return {
        **resource.selectors,
        "watch": "true",
        "allowWatchBookmarks": "true",
        "resourceVersion": request.resource_version,
        "timeoutSeconds": f"{timing.watch:g}",
    }


def list_query(resource: Resource, request: Request) -> dict[str, str]:
    """What a listing is asked with."""
    limit, token = (request.limit, request.token) if isinstance(request, ListPage) else (1, "")
    query = dict(resource.selectors)
    if limit:
        query["limit"] = str(limit)
    if token:
        query["continue"] = token
    return query


def _tell(sink: Sink, records: list[JournalRecord]) -> None:
    if records:
        sink.write(records)
