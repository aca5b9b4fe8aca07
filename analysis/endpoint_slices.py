"""What EndpointSlices say: which address and port was an endpoint of which service, in what state, and when.

A slice does not tell since when it is as it is. The journal does: it hears of every change, in the order in which they
were made, some milliseconds late. Where its watch had broken off, a change came later: it was made between then and
when it was told. A dump tells of its own moment only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from analysis.dumps import Dump
from analysis.errors import Problem
from analysis.kubernetes_objects import canonical_ip, problems_of
from analysis.ownerships import NO_END_NS
from analysis.watching import LATE_NS, STATES, Watching
from capture.contract import JournalRecord

KIND: Final = "EndpointSlice"
_SERVICE: Final = "kubernetes.io/service-name"
PROTOCOLS: Final = ("TCP", "UDP", "SCTP")

Object = dict[str, Any]


class Endpoint(NamedTuple):
    """An address and port of a service."""

    cluster: str | None
    """None: nothing tells it."""
    namespace: str
    service: str
    ip: str
    port: int
    port_name: str | None
    protocol: str


class State(NamedTuple):
    """What a slice says of an endpoint."""

    pod: str | None
    pod_uid: str | None
    node: str | None
    ready: bool
    serving: bool
    terminating: bool


@dataclass(frozen=True, slots=True)
class Interval:
    """An endpoint in one state: from start_ns to end_ns at most, from held_ns to kept_ns for certain; half-open."""

    endpoint: Endpoint
    state: State
    start_ns: int
    held_ns: int
    kept_ns: int
    end_ns: int


class Known(NamedTuple):
    """A time in which all endpoints were known, of a namespace or (None) of all; of a dump, its own moment."""

    cluster: str | None
    namespace: str | None
    start_ns: int
    end_ns: int


def endpoints_in(item: Object) -> dict[Endpoint, State]:
    """What one slice says. Raises as dictionaries do where it is not as Kubernetes writes it."""
    metadata = item["metadata"]
    service = (metadata.get("labels") or {}).get(_SERVICE)
    found: dict[Endpoint, State] = {}
    if not service or item.get("addressType") == "FQDN":
        return found
    for entry in item.get("endpoints") or []:
        state = _state(entry)
        for port in item.get("ports") or []:
            number, protocol = port.get("port"), port.get("protocol") or "TCP"
            if number is None:  # every port: it is no backend of a port of a service
                continue
            if type(number) is not int or not 0 < number < 1 << 16 or protocol not in PROTOCOLS:
                raise ValueError(f"{number!r} {protocol!r} is no port")
            for address in entry["addresses"]:
                name = port.get("name") or None
                ip = canonical_ip(address)
                endpoint = Endpoint(None, metadata["namespace"], service, ip, number, name, protocol)
                found[endpoint] = best(state, found.get(endpoint, state))
    return found


def _state(entry: Object) -> State:
    """As API documents: without conditions it is ready; who is ready serves."""
    conditions = entry.get("conditions") or {}
    target = entry.get("targetRef") or {}
    is_pod = target.get("kind") == "Pod"
    is_ready = conditions.get("ready") is not False
    serves = conditions.get("serving")
    return State(
        target.get("name") if is_pod else None,
        target.get("uid") if is_pod else None,
        entry.get("nodeName"),
        is_ready,
        is_ready if serves is None else bool(serves),
        bool(conditions.get("terminating")),
    )


def best(*states: State) -> State:
    """Of what several slices say of one endpoint, what counts."""
    return max(states, key=lambda state: (state.ready, state.serving, not state.terminating))


# --- Dumps -----------------------------------------------------------------------------------------------------------


def endpoints_of_dumps(dumps: Sequence[Dump]) -> tuple[list[Interval], list[Known], list[Problem]]:
    """Everything that the dumps' slices say, each dump of its own moment; a slice that makes no sense is a problem.

    A dump shows every endpoint of a namespace of which it shows a slice, and of all namespaces if it shows two; but not
    if it is a part.
    """
    found: list[Interval] = []
    known: list[Known] = []
    problems: list[Problem] = []
    for dump in dumps:
        states: dict[Endpoint, State] = {}
        namespaces: dict[str, None] = {}
        for item in dump.objects:
            if item["kind"] != KIND:
                continue
            with problems_of(item, dump, problems):
                for endpoint, state in endpoints_in(item).items():
                    states[endpoint] = best(state, states.get(endpoint, state))
                namespaces[item["metadata"]["namespace"]] = None
        moment = dump.taken_ns
        found += [Interval(each, state, moment, moment, moment, moment) for each, state in states.items()]
        if namespaces and not dump.is_part:
            known.append(Known(None, None if len(namespaces) > 1 else min(namespaces), moment, moment))
    return found, known, problems


# --- The journal -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Slice:
    """One object, as it is now."""

    version: int = -1
    is_gone: bool = False
    now: dict[Endpoint, tuple[State, int, int]] = field(default_factory=dict)
    """Each state with since when it is so, at the earliest and for certain."""


class EndpointSlices:
    """Learns the journal's records of all writers, in the order in which they were observed."""

    def __init__(self) -> None:
        self._slices: dict[str, _Slice] = {}
        self._watching: dict[int, Watching] = {}
        self._past: list[Interval] = []

    def begin_file(self, writer: int, follows: bool) -> None:
        """`follows`: it is the next file after the writer's last one."""
        self._watching.setdefault(writer, Watching()).begin_file(follows)

    def learn(self, writer: int, record: JournalRecord) -> None:
        """Raises as dictionaries do where an object is not as Kubernetes writes it."""
        if record.kind != KIND:
            return
        for uid, alive_ns in self._watching[writer].learn(record).items():
            self._leave(uid, alive_ns - LATE_NS, record.observed_ns)
        now = record.observed_ns
        since_ns = now if record.unseen_since_ns is None else record.unseen_since_ns - LATE_NS
        if record.type == "deleted":
            self._leave(record.uid, since_ns, now)
        elif record.type in STATES and record.object is not None:
            known = self._slices.setdefault(record.uid, _Slice())
            version = int(record.resource_version) if record.resource_version.isdecimal() else known.version + 1
            if version > known.version and not known.is_gone:  # else another writer told it already
                self._become(known, endpoints_in(record.object), since_ns, now)
                known.version = version

    def _leave(self, uid: str, since_ns: int, now: int) -> None:
        if uid in self._slices:
            self._become(self._slices[uid], {}, since_ns, now)
            self._slices[uid].is_gone = True

    def _become(self, known: _Slice, states: dict[Endpoint, State], since_ns: int, now: int) -> None:
        """The slice changed, between the two times."""
        for endpoint in [each for each, (state, _, _) in known.now.items() if states.get(each) != state]:
            state, start_ns, held_ns = known.now.pop(endpoint)
            self._past.append(Interval(endpoint, state, start_ns, held_ns, max(held_ns, since_ns), now))
        for endpoint, state in states.items():
            known.now.setdefault(endpoint, (state, since_ns, now))

    def known(self) -> list[Known]:
        """When all slices were known."""
        spans = (span for watching in self._watching.values() for span in watching.sure())
        return [Known(None, None, since, until) for since, until in spans]

    def intervals(self) -> list[Interval]:
        """What every slice said, also in times in which not all were known."""
        present = [
            Interval(endpoint, state, start_ns, held_ns, NO_END_NS, NO_END_NS)
            for each in self._slices.values()
            for endpoint, (state, start_ns, held_ns) in each.now.items()
        ]
        return self._past + present


def in_cluster(cluster: str | None, intervals: Iterable[Interval]) -> Iterator[Interval]:
    """The same of this cluster."""
    return (replace(each, endpoint=each.endpoint._replace(cluster=cluster)) for each in intervals)
