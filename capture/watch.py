"""Follows one kind of object at an API server: does what its reflector says, and tells what was seen."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol

from capture.connection import ApiError, Connection
from capture.contract import JournalRecord
from capture.prune import prune
from capture.reflector import TIMING, ListPage, Moment, Reflector, Timing, Watch

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

_log = logging.getLogger(__name__)


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
                _log.exception("following %s failed in a way that nobody thought of", resource.kind)
                error = ApiError(f"{type(error).__name__}: {error}")
            with sink.lock:
                reflector.failed(error, moment())
            sink.failed(resource.kind, error)


def _ask(resource: Resource, reflector: Reflector, connection: Connection, sink: Sink, stop: threading.Event) -> None:
    tell = partial(_tell, sink)
    with sink.lock:
        request = reflector.start(moment())
    sink.asked(resource.kind, "watch" if isinstance(request, Watch) else "list")
    if not isinstance(request, Watch):
        query = dict(resource.selectors)
        if not isinstance(request, ListPage):
            query["limit"] = "1"
        elif request.limit:
            query["limit"] = str(request.limit)
        if isinstance(request, ListPage) and request.token:
            query["continue"] = request.token
        answer = connection.get(resource.path, query)
        tell(lambda: reflector.page(answer, moment()))
        return
    query = {
        **resource.selectors,
        "watch": "true",
        "allowWatchBookmarks": "true",
        "resourceVersion": request.resource_version,
        "timeoutSeconds": f"{reflector.timing.watch:g}",
    }
    with connection.stream(resource.path, query, reflector.timing.silence) as lines:
        tell(lambda: reflector.opened(moment()))
        for line in lines:
            if stop.is_set():
                return
            tell(partial(lambda line: reflector.line(line, moment()), line))
    with sink.lock:
        reflector.ended(moment())


def _tell(sink: Sink, what: Callable[[], list[JournalRecord]]) -> None:
    with sink.lock:
        records = what()
        if records:
            sink.write(records)
