"""What the backend of each connection was to its service when the connection began.

A connection to a service's address is checked against that service; one to a pod's own (sockets may be balanced before
there is a packet) against any service that the backend is an endpoint of, as long as it is the same pod. Kubelets probe
pods, not services: what a node opened to a pod is not checked.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from analysis import columns
from analysis.endpoint_slices import PROTOCOLS, Endpoint, Interval, State
from analysis.endpoints import Endpoints
from analysis.ownerships import BEGINNING_NS, NO_END_NS
from analysis.schemas import CONNECTIONS
from analysis.timelines import Timelines

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

VERDICTS: Final = ("ready", "unknown", "terminating", "not_ready", "removed", "not_yet", "never")
"""Of what is true of an address for several services, or ports of one name each, the first counts."""
_READY, _UNKNOWN, _TERMINATING, _NOT_READY, _REMOVED, _NOT_YET, _NEVER = range(len(VERDICTS))
_NONE: Final = -1
_SIDES: Final = ("resp_namespace", "resp_service", "backend_ip", "backend_port", "protocol")
_NEEDED: Final = (*_SIDES, "first_seen", "backend_identity", "backend_pod_uid")


def add_endpoints(endpoints: Endpoints, connections: pa.Table) -> pa.Table:
    """`connections` with all columns of schemas.CONNECTIONS; those of identities are there already."""
    to_service = _numbers(connections["resp_service"]) >= 0
    turned = _are_different(connections["resp_ip"], connections["backend_ip"])
    turned = turned | (_numbers(connections["resp_port"]) != _numbers(connections["backend_port"]))
    has_ports = _is(connections["protocol"], *PROTOCOLS)
    rows = np.flatnonzero(has_ports & np.where(to_service, turned, ~_is(connections["orig_identity"], "node")))
    checked = _Checks(endpoints).of(connections.select(_NEEDED).take(columns.array(rows)), to_service[rows])
    filled = {name: connections[name] for name in connections.column_names}
    place = np.full(len(connections), _NONE)
    place[rows] = np.arange(len(rows))
    filled |= {name: values.take(columns.array(place, place >= 0)) for name, values in checked.items()}
    schema = CONNECTIONS.schema
    return pa.table([filled[field.name] for field in schema], schema=schema)


class _Checks:
    """The endpoints, laid out to be searched."""

    def __init__(self, endpoints: Endpoints) -> None:
        spans = defaultdict(list)
        for each in endpoints.known:
            if each.namespace is None and each.start_ns < each.end_ns:
                spans[each.cluster].append((each.start_ns, each.end_ns))
        self._spans = [np.array(of_cluster, np.int64).T for of_cluster in spans.values()]
        self._intervals = endpoints.intervals
        self._endpoints: list[Endpoint] = []
        self._by_address: defaultdict[tuple[str, int, str], list[int]] = defaultdict(list)
        self._answers: list[tuple[int, int, int]] = [(_UNKNOWN, _NONE, _NONE), (_NEVER, _NONE, _NONE)]
        """A verdict, the row of the interval that it stands on, and when the endpoint was removed."""
        timelines: list[tuple[int, int, int, int]] = []
        numbered = enumerate(endpoints.intervals)
        for endpoint, of_endpoint in itertools.groupby(numbered, key=lambda each: each[1].endpoint):
            self._by_address[endpoint.ip, endpoint.port, endpoint.protocol].append(len(self._endpoints))
            timelines += self._timeline(len(self._endpoints), list(of_endpoint))
            self._endpoints.append(endpoint)
        self._timelines = Timelines(timelines)

    def _timeline(self, key: int, intervals: Sequence[tuple[int, Interval]]) -> list[tuple[int, int, int, int]]:
        """From the beginning to the end of time, what the endpoint was."""
        found = []
        absent, until_ns = self._answer(_NOT_YET, intervals[0][0]), BEGINNING_NS
        for row, each in intervals:
            if until_ns < each.start_ns:
                found.append((key, until_ns, each.start_ns, absent))
            found.append((key, each.start_ns, each.held_ns, _ANSWER_UNKNOWN))
            found.append((key, each.held_ns, each.kept_ns, self._answer(_verdict(each.state), row)))
            found.append((key, each.kept_ns, each.end_ns, _ANSWER_UNKNOWN))
            absent = self._answer(_REMOVED, row, each.kept_ns if each.kept_ns == each.end_ns else _NONE)
            until_ns = max(until_ns, each.end_ns)
        found.append((key, until_ns, NO_END_NS, absent))
        return [each for each in found if each[1] < each[2]]

    def _answer(self, verdict: int, row: int, removed_ns: int = _NONE) -> int:
        self._answers.append((verdict, row, removed_ns))
        return len(self._answers) - 1

    def of(self, connections: pa.Table, to_service: Flags) -> dict[str, Any]:
        """The columns that begin with endpoint; those of a service's address are `to_service`."""
        ts = columns.plain(connections["first_seen"])
        row, key, name, names = self._candidates(connections, to_service)
        answer = self._timelines.at(key, ts[row])
        answer[answer < 0] = _ANSWER_UNKNOWN
        answer[key == _NONE] = _ANSWER_NEVER
        time = self._known_time(ts)
        in_gap: Flags = np.any(time < 0, axis=0) | (not self._spans)
        answer[in_gap[row]] = _ANSWER_UNKNOWN
        answers = np.array(self._answers, np.int64)
        answer[(_is(connections["backend_identity"], "ambiguous") & ~to_service)[row]] = _ANSWER_UNKNOWN
        is_another = self._is_another_pod(answers[answer, 1], connections["backend_pod_uid"], row) & ~to_service[row]
        row, answer, name = (each[~is_another] for each in (row, answer, name))
        verdict, interval, removed_ns = answers[answer].T
        is_exact = (removed_ns != _NONE) & (self._known_time(removed_ns) == time[:, row]).all(axis=0)
        ago = np.where(is_exact, ts[row] - removed_ns, NO_END_NS)
        order = np.lexsort((name, ago, verdict, row))
        told, first = np.unique(row[order], return_index=True)
        best = order[first]
        place = np.full(len(connections), _NONE)
        place[told] = best
        pods = [each.state.pod for each in self._intervals]

        def of_best(values: Integers) -> Integers:
            return np.where(place < 0, _NONE, np.append(values, _NONE)[place])

        ago = of_best(np.where(is_exact, ago, _NONE))
        return {
            "endpoint": columns.some_names(of_best(verdict), VERDICTS),
            "endpoint_of": columns.some_names(of_best(name), names),
            "endpoint_pod": columns.some_names(of_best(interval), pods),
            "endpoint_removed_ns": columns.array(ago, ago >= 0),
        }

    def _candidates(self, connections: pa.Table, to_service: Flags) -> tuple[Integers, Integers, Integers, list[str]]:
        """(row, its endpoint or -1, the service's name) for each endpoint that a connection may be to; all names."""
        group, first = _groups([_numbers(connections[name]) for name in _SIDES])
        keys: list[int] = []
        labels: list[str] = []
        counts = []
        asked = connections.take(columns.array(first)).select(_SIDES).to_pylist()
        for each, is_service in zip(asked, to_service[first].tolist(), strict=True):
            namespace, service, *address = each.values()
            found = self._by_address.get(tuple(address), [])
            if is_service:
                found = [key for key in found if self._endpoints[key][1:3] == (namespace, service)] or [_NONE]
                labels += [f"{namespace}/{service}"] * len(found)
            else:
                labels += ["/".join(self._endpoints[key][1:3]) for key in found]
            keys += found
            counts.append(len(found))
        names, name = np.unique(np.array(labels, object), return_inverse=True)
        count = np.array(counts, np.int64)
        begin = np.cumsum(count) - count
        row = np.repeat(np.arange(len(connections)), count[group])
        nth = np.arange(len(row)) - np.repeat(np.cumsum(count[group]) - count[group], count[group])
        at = begin[group[row]] + nth
        return row, np.array(keys, np.int64)[at], name[at], names.tolist()

    def _known_time(self, ts: Integers) -> Integers:
        """In which of the times that lie between two gaps each moment is, for each cluster; -1: in a gap."""
        found = np.full((len(self._spans), len(ts)), _NONE)
        for of_cluster, (since, until) in zip(found, self._spans, strict=True):
            at = np.searchsorted(since, ts, side="right") - 1
            of_cluster[:] = np.where((at >= 0) & (ts < until[at]), at, _NONE)
        return found

    def _is_another_pod(self, interval: Integers, owners: pa.ChunkedArray[Any], row: Integers) -> Flags:
        """Whether the backend of a row is known to be another pod than the endpoint of an interval (-1: none)."""
        uids = {uid: number for number, uid in enumerate(_dictionary(owners).dictionary.to_pylist())}
        pods = [each.state.pod_uid for each in self._intervals]
        numbers = [_NONE if pod is None else uids.get(pod, len(uids)) for pod in pods]
        one, other = np.array([*numbers, _NONE], np.int64)[interval], _numbers(owners)[row]
        is_another: Flags = (one >= 0) & (other >= 0) & (one != other)
        return is_another


_ANSWER_UNKNOWN: Final = 0
_ANSWER_NEVER: Final = 1


def _verdict(state: State) -> int:
    return _READY if state.ready else _TERMINATING if state.terminating else _NOT_READY


def _groups(numbers: Sequence[Integers]) -> tuple[Integers, Integers]:
    """(group of each row, a row of each group): rows are of one group if all numbers are the same."""
    group = np.zeros(len(numbers[0]), np.int64)
    for each in numbers:
        _, group = np.unique(group * (each.max(initial=0) + 2) + each + 1, return_inverse=True)
    _, first = np.unique(group, return_index=True)
    return group, first


def _are_different(one: pa.ChunkedArray[Any], other: pa.ChunkedArray[Any]) -> Flags:
    plain: list[Any] = [each.cast(pa.string()) for each in (one, other)]
    return columns.plain(pc.not_equal(*plain))


def _is(names: pa.ChunkedArray[Any], *words: str) -> Flags:
    return np.array([each in words for each in _dictionary(names).dictionary.to_pylist()] + [False])[_numbers(names)]


def _numbers(column: pa.ChunkedArray[Any]) -> Integers:
    """Numbers as they are, words as their places in a dictionary; -1 for null."""
    values = _dictionary(column).indices if pa.types.is_dictionary(column.type) else column.combine_chunks()
    return columns.plain(values.cast(pa.int64()), _NONE)


def _dictionary(names: pa.ChunkedArray[Any]) -> Any:
    return names.unify_dictionaries().combine_chunks()
