"""An API server stand-in: serves Kubernetes objects and their changes as a real server 1.36 was recorded to do.

    with ApiServer() as server:
        server.follow(lab)
        kubernetes.client.Configuration(host=server.url)

Left out are all writes (405), Tables, protobuf, compression, and Pods' subresources but exec. Time can be anybody's: a
test that gives its own clock need not wait for bookmarks and timeouts.
"""

from __future__ import annotations

import contextlib
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from tests.lab import api_exec
from tests.lab.api_connections import TICK, Connections, Handler
from tests.lab.api_faults import REFUSALS, Fault, Faults
from tests.lab.api_lists import get_object, list_objects, wants_metadata_only
from tests.lab.api_resources import RESOURCES, Object, Resource, discovery
from tests.lab.api_status import ApiError, forbidden, forbidden_path, not_allowed, unauthorized
from tests.lab.api_store import Store
from tests.lab.api_watches import Watch, is_true
from tests.lab.namespaces import Namespace

if TYPE_CHECKING:
    from tests.lab.lab import Lab

ANONYMOUS: Final = "system:anonymous"
_HEALTH: Final = ("/livez", "/readyz", "/healthz")


@dataclass
class Request:
    """One line of the log."""

    time: float
    """Seconds since 1970."""
    method: str
    path: str
    query: dict[str, str]
    status: int | None = None
    """None as long as no answer began."""

    @property
    def is_watch(self) -> bool:
        return is_true(self.query.get("watch"))


@dataclass(frozen=True)
class Target:
    """What a path names."""

    resource: Resource
    namespace: str
    name: str
    subresource: str = ""


class ApiServer:
    """Runs on threads of this process while it is entered. All methods may be called from any thread."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        namespace: Namespace | None = None,
        tls: ssl.SSLContext | None = None,
        tokens: Mapping[str, str] | None = None,
        resources: Iterable[Resource] = RESOURCES,
        window: int = 1000,
        watch_cache: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`tokens`: users by bearer token; None lets everybody in. `window`: changes that each resource's watch
        cache holds. Without a `watch_cache`, watches depend on etcd's memory alone."""
        self.host, self.port, self.namespace, self.tls = host, port, namespace, tls
        self.tokens = None if tokens is None else dict(tokens)
        """May be replaced while the server runs, as tokens are rotated."""
        self.forbidden: set[str] = set()
        """Users who are known and may do nothing."""
        self.denied: set[tuple[str, str, str]] = set()
        """(user, "pods/exec", verb) of what else somebody may not do."""
        self.unreachable: set[str] = set()
        """Nodes whose kubelets do not answer."""
        self.containers: dict[tuple[str, str], api_exec.Container] = {}
        """By namespace and pod: where an exec's commands run, instead of in the lab's pod of that name."""
        self.lab: Lab | None = None
        self.processes: list[subprocess.Popen[bytes]] = []
        """Of all execs."""
        self.resources = tuple(resources)
        self.store = Store(self.resources, window, watch_cache)
        self.clock = clock
        self.requests: list[Request] = []
        self.errors: list[Exception] = []
        self._faults = Faults()
        self._watches: list[Watch] = []
        self._connections: Connections | None = None

    # Running

    def __enter__(self) -> ApiServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self.errors and error is None:
            raise self.errors[0]

    def start(self) -> None:
        with self.namespace.entered() if self.namespace else contextlib.nullcontext():
            self._connections = Connections(self, (self.host, self.port))
        self.port = self._connections.server_port
        threading.Thread(target=self._connections.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Connections end without the end of their answers, as when a server is killed; the port stays its own."""
        if self._connections:
            self._connections.end()
            self._connections = None
        for process in self.processes:
            process.kill()
            process.wait()
        self.processes.clear()

    def restart(self) -> None:
        """The real way to a 410 on a watch: its cache starts empty."""
        self.stop()
        self.store.restart()
        self.start()

    def compact(self) -> None:
        """etcd forgets. A real server's clients notice nothing before its restart(), or without a watch cache."""
        self.store.compact()

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"

    # Objects

    def apply(self, item: Object) -> Object:
        """Adds or replaces an object, and returns it with its new resourceVersion."""
        return self.store.put(item)

    def delete(self, item: Object) -> Object:
        """Names suffice."""
        return self.store.delete(item)

    def record(self, kind: str, item: Object) -> None:
        """One event of a watch, or of a lab."""
        if kind == "DELETED":
            self.delete(item)
        else:
            self.apply(item)

    def load(self, lists: Iterable[Object]) -> None:
        """Lists as kubectl or an API server writes them, taken as the changes that led to them."""
        items = []
        revision = 0
        for each in lists:
            revision = max(revision, int(each["metadata"].get("resourceVersion") or 0))
            kind = {"kind": each["kind"].removesuffix("List"), "apiVersion": each["apiVersion"]}
            items += [kind | item for item in each["items"]]
        for item in sorted(items, key=lambda item: int(item["metadata"].get("resourceVersion") or 0)):
            self.apply(item)
        self.store.advance(revision)

    def follow(self, lab: Lab) -> None:
        """Shows a lab's objects from now on."""
        self.lab = lab
        self.load(lab.objects().values())
        lab.on_change(self.record)

    # Faults

    def inject(self, kind: str, resource: str | None = None, **options: Any) -> Fault:
        """Switches a fault on, for one resource by its plural or for all; see Fault for the options."""
        fault = Fault(kind, resource, **options)
        with self.store.changed:
            self._faults.active.append(fault)
            self.store.changed.notify_all()
        return fault

    def heal(self, fault: Fault | None = None) -> None:
        """Takes a fault away, or all."""
        with self.store.changed:
            if fault:
                self._faults.remove(fault)
            else:
                self._faults.clear()
            self.store.changed.notify_all()

    @contextlib.contextmanager
    def faulty(self, kind: str, resource: str | None = None, **options: Any) -> Iterator[Fault]:
        fault = self.inject(kind, resource, **options)
        try:
            yield fault
        finally:
            self.heal(fault)

    @property
    def fault_counts(self) -> dict[str, int]:
        """How often each kind struck."""
        with self.store.changed:
            return dict(self._faults.counts)

    def strike(self, kinds: Iterable[str], verb: str, plural: str | None) -> Fault | None:
        with self.store.changed:
            return self._faults.strike(kinds, verb, plural)

    def refuse_watch(self, resource: Resource) -> ApiError | None:
        """What an open watch is told by a fault."""
        with self.store.changed:
            fault = self._faults.strike(("410",), "watch", resource.plural)
            return fault.refusal("watch", resource, "", "", self.store.revision) if fault else None

    # What tests ask

    @property
    def open_watches(self) -> int:
        with self.store.changed:
            return len(self._watches)

    def is_settled(self, since: float = 0) -> bool:
        """Whether all open watches know everything, and looked at the clock since then."""
        with self.store.changed:
            return all(each.seen >= self.store.revision and each.looked_at >= since for each in self._watches)

    def wait_until(self, condition: Callable[[], bool], timeout: float = 10) -> None:
        end = time.monotonic() + timeout
        with self.store.changed:
            while not condition():
                if time.monotonic() > end:
                    raise TimeoutError("the API server waited in vain")
                self.store.changed.wait(TICK / 10)

    # Requests

    def log(self, method: str, path: str, query: dict[str, str]) -> Request:
        entry = Request(time.time(), method, path, query)
        self.requests.append(entry)
        return entry

    def answer(self, connection: Handler, request: Request) -> None:
        """Decides about one request, and has the connection send it."""
        try:
            target = self._target(request.path)
            verb = _verb(request, target)
            user = self._user(connection.headers.get("Authorization", ""))
            self._authorize(user, verb, target, request.path)
            if target and target.subresource:
                api_exec.serve(self, connection, target, user)
            elif target:
                self._answer_resource(connection, request, verb, target)
            else:
                self._answer_path(connection, request)
        except ApiError as error:
            connection.send_error_status(error)

    def _answer_path(self, connection: Handler, request: Request) -> None:
        document = discovery(request.path.rstrip("/"), self.resources, f"{self.host}:{self.port}")
        if request.path in _HEALTH:
            connection.send_text(200, "ok")
        elif document is None:
            connection.send_text(404, "404 page not found\n")
        elif request.method != "GET":
            raise not_allowed()
        else:
            connection.send_json(200, document, {}, None, "get")

    def _answer_resource(self, connection: Handler, request: Request, verb: str, target: Target) -> None:
        resource = target.resource
        kinds = [kind for kind in REFUSALS if (kind, verb) != ("410", "watch")]
        with self.store.changed:
            if fault := self._faults.strike(kinds, verb, resource.plural):
                raise fault.refusal(verb, resource, target.namespace, target.name, self.store.revision)
        if request.method != "GET":
            raise not_allowed()
        headers = {"Warning": f'299 - "{resource.warning}"'} if resource.warning else {}
        metadata_only = wants_metadata_only(connection.headers.get("Accept", ""))
        if verb == "watch":
            self._watch(connection, request, target, metadata_only, headers)
            return
        with self.store.changed:
            if verb == "get":
                content = get_object(self.store, resource, target.namespace, target.name, metadata_only)
            else:
                content = list_objects(self.store, resource, target.namespace, request.query, metadata_only, self._wait)
        connection.send_json(200, content, headers, resource.plural, verb)

    def _watch(
        self, connection: Handler, request: Request, target: Target, metadata_only: bool, headers: dict[str, str]
    ) -> None:
        query = request.query
        if target.name:
            query = query | {"fieldSelector": f"metadata.name={target.name}"}
        with self.store.changed:
            now = self.clock()
            watch = Watch(self.store, target.resource, target.namespace, query, metadata_only, now)
            self._watches.append(watch)
        try:
            connection.stream(watch, headers, target.resource.plural)
        finally:
            with self.store.changed:
                self._watches.remove(watch)
                self.store.changed.notify_all()

    def _wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        end = self.clock() + seconds
        while not condition() and self.clock() < end:
            self.store.changed.wait(TICK)
        return condition()

    def _user(self, authorization: str) -> str | None:
        """None: nobody asks."""
        tokens = self.tokens
        if tokens is None:
            return None
        if not authorization:
            return ANONYMOUS
        scheme, _, token = authorization.partition(" ")
        user = tokens.get(token.strip())
        if user is None or scheme.lower() != "bearer":
            raise unauthorized()
        return user

    def _authorize(self, user: str | None, verb: str, target: Target | None, path: str) -> None:
        if target and target.subresource and user != ANONYMOUS:
            return  # decides itself
        if user is None or (user != ANONYMOUS and user not in self.forbidden) or path in (*_HEALTH, "/version"):
            return
        if target:
            raise forbidden(user, verb, target.resource, target.namespace, target.name)
        raise forbidden_path(user, verb, path)

    def _target(self, path: str) -> Target | None:
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "v1"]:
            group, version, rest = "", "v1", parts[2:]
        elif parts[0] == "apis" and len(parts) > 3:
            group, version, rest = parts[1], parts[2], parts[3:]
        else:
            return None
        namespace = ""
        if len(rest) > 2 and rest[0] == "namespaces":
            namespace, rest = rest[1], rest[2:]
        subresource = ""
        if len(rest) == 3 and (rest[0], rest[2]) == ("pods", "exec"):
            subresource, rest = rest[2], rest[:2]
        name = rest[1] if len(rest) == 2 else ""
        for resource in self.resources:
            if rest and (group, version, rest[0]) == (resource.group, resource.version, resource.plural):
                fits = len(rest) <= 2 and (resource.namespaced or not namespace)
                is_homeless = resource.namespaced and name and not namespace
                return Target(resource, namespace, name, subresource) if fits and not is_homeless else None
        return None


def _verb(request: Request, target: Target | None) -> str:
    verbs = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
    if request.method != "GET" or target is None:
        return verbs.get(request.method, "get")
    if request.is_watch:
        return "watch"
    return "get" if target.name else "list"
