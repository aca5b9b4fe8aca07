"""Which addresses were endpoints of which services, and between which moments: slices' words, settled.

endpoint_slices.py says what each slice said, and in which times all of them were known. Here that is cut and joined:

1. Several slices may name one endpoint (it moves from one to the other): then the best that they say counts.
2. Nothing is said of times in which not all slices were known, and what was known there by a dump is known of its
   moment only. In between anything may have been: there an interval starts, or ends, at an uncertain time.
3. What the journal saw goes before what a dump shows of the same time; what is known already, before what is learnt
   again.

Settling what is settled changes nothing.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Final

import pyarrow as pa

from analysis import columns
from analysis.endpoint_slices import Endpoint, Interval, Known, State, best
from analysis.ownerships import BEGINNING_NS, NO_END_NS
from analysis.schemas import ENDPOINTS, ENDPOINTS_KNOWN, Table
from analysis.watching import Span

_TIMES: Final = ("start", "held", "kept", "end")


class Endpoints:
    """The endpoints of all services over time."""

    def __init__(self, intervals: Sequence[Interval] = (), known: Sequence[Known] = ()) -> None:
        """Both settled."""
        self.intervals = intervals
        self.known = known
        self._spans: dict[tuple[str | None, str], list[Span]] = {}

    @staticmethod
    def settled(intervals: Iterable[Interval], known: Iterable[Known]) -> Endpoints:
        """From what slices say."""
        found, known = _of_one_cluster(list(intervals), list(known))
        times = Endpoints((), _joined(known))
        return Endpoints(list(times._settled(found)), times.known)

    @property
    def is_empty(self) -> bool:
        """Nothing is known."""
        return not self.known and not self.intervals

    @staticmethod
    def of_tables(table: pa.Table, known: pa.Table) -> Endpoints:
        """From rows of schemas.ENDPOINTS and ENDPOINTS_KNOWN."""
        endpoint, state, times = (
            zip(*(_plain(table[name]) for name in names), strict=True)
            for names in (Endpoint._fields, State._fields, _TIMES)
        )
        return Endpoints(
            [
                Interval(
                    Endpoint(*one),
                    State(*other),
                    BEGINNING_NS if start_ns is None else start_ns,
                    held_ns,
                    kept_ns,
                    NO_END_NS if end_ns is None else end_ns,
                )
                for one, other, (start_ns, held_ns, kept_ns, end_ns) in zip(endpoint, state, times, strict=True)
            ],
            [Known(*each) for each in zip(*(_plain(known[name]) for name in known.column_names), strict=True)],
        )

    @cached_property
    def table(self) -> pa.Table:
        """Rows of schemas.ENDPOINTS."""
        rows = [
            each.endpoint._asdict()
            | each.state._asdict()
            | {
                "start": None if each.start_ns == BEGINNING_NS else each.start_ns,
                "held": each.held_ns,
                "kept": each.kept_ns,
                "end": None if each.end_ns == NO_END_NS else each.end_ns,
            }
            for each in self.intervals
        ]
        return _table(ENDPOINTS, rows)

    @cached_property
    def known_table(self) -> pa.Table:
        """Rows of schemas.ENDPOINTS_KNOWN."""
        names = ENDPOINTS_KNOWN.schema.names
        return _table(ENDPOINTS_KNOWN, [dict(zip(names, each, strict=True)) for each in self.known])

    def united_with(self, other: Endpoints) -> Endpoints:
        """What both know."""
        if self.is_empty or other.is_empty:
            return other if self.is_empty else self
        learnt = [
            part
            for each in other._unsettled()
            for part in _outside(each, [span for span in self._known_of(each.endpoint) if span[0] < span[1]])
        ]
        return Endpoints.settled([*self._unsettled(), *learnt], [*self.known, *other.known])

    def _known_of(self, endpoint: Endpoint) -> list[Span]:
        """When all endpoints were known that are in its cluster and namespace, in order."""
        key = endpoint.cluster, endpoint.namespace
        if key not in self._spans:
            self._spans[key] = _merged(
                (each.start_ns, each.end_ns)
                for each in self.known
                if each.cluster in (None, endpoint.cluster) and each.namespace in (None, endpoint.namespace)
            )
        return self._spans[key]

    def _settled(self, intervals: Sequence[Interval]) -> Iterator[Interval]:
        by_endpoint = defaultdict(list)
        for each in intervals:
            by_endpoint[each.endpoint].append(each)
        for endpoint in sorted(by_endpoint, key=lambda each: tuple(map(str, each))):
            spans, of_endpoint = self._known_of(endpoint), by_endpoint[endpoint]
            moments = {each for each in of_endpoint if _is_moment(each)}
            found = [part for each in moments for part in _at_moment(each, spans)]
            found += [
                part
                for each in _united([each for each in of_endpoint if each not in moments])
                for part in _within(each, spans)
            ]
            yield from sorted(found, key=lambda each: (each.held_ns, each.kept_ns, tuple(map(str, each.state))))

    def _unsettled(self) -> Iterator[Interval]:
        """As they were before times in which not all was known made their ends uncertain."""
        for each in self.intervals:
            spans = self._known_of(each.endpoint)
            at = bisect_left(spans, each.held_ns, key=_until)
            is_inside = at < len(spans) and spans[at][0] <= each.held_ns and spans[at][0] < spans[at][1]
            if not is_inside:
                yield replace(each, start_ns=each.held_ns, end_ns=each.kept_ns)
                continue
            since, until = spans[at]
            yield replace(
                each,
                start_ns=since if each.held_ns == since else each.start_ns,
                end_ns=until if each.kept_ns == until else each.end_ns,
            )


def _of_one_cluster(intervals: list[Interval], known: list[Known]) -> tuple[list[Interval], list[Known]]:
    """Where only one cluster is known by name, all is of that one."""
    clusters = {each.endpoint.cluster for each in intervals} | {each.cluster for each in known}
    named = clusters - {None}
    if len(named) == 1 and None in clusters:
        (cluster,) = named
        intervals = [replace(each, endpoint=each.endpoint._replace(cluster=cluster)) for each in intervals]
        known = [each._replace(cluster=cluster) for each in known]
    return intervals, known


def _joined(known: Iterable[Known]) -> list[Known]:
    spans = defaultdict(list)
    for each in known:
        spans[each.cluster, each.namespace].append((each.start_ns, each.end_ns))
    scopes = sorted(spans, key=lambda scope: tuple(map(str, scope)))
    return [Known(*scope, *span) for scope in scopes for span in _merged(spans[scope])]


def _merged(spans: Iterable[Span]) -> list[Span]:
    """In order; those that touch are one."""
    merged: list[Span] = []
    for since, until in sorted(spans):
        if merged and since <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(until, merged[-1][1])
        else:
            merged.append((since, until))
    return merged


def _until(span: Span) -> int:
    return span[1]


# --- Rule 1 ----------------------------------------------------------------------------------------------------------


def _united(intervals: Iterable[Interval]) -> list[Interval]:
    """Those of one endpoint, as if one slice had told them all."""
    ordered = sorted(intervals, key=lambda each: (each.start_ns, each.held_ns))
    if any(one.end_ns > other.start_ns for one, other in itertools.pairwise(ordered)):
        ordered = list(_swept(ordered))
    found: list[Interval] = []
    for each in ordered:
        last = found[-1] if found else None
        if last and last.state == each.state and last.kept_ns == last.end_ns == each.start_ns == each.held_ns:
            found[-1] = replace(last, kept_ns=each.kept_ns, end_ns=each.end_ns)
        else:
            found.append(each)
    return found


def _swept(intervals: Sequence[Interval]) -> Iterator[Interval]:
    """From each time at which something changes to the next: what is certain is told, if nothing better may be so."""
    times = {time for each in intervals for time in (each.start_ns, each.held_ns, each.kept_ns, each.end_ns)}
    runs: list[tuple[int, int, State | None]] = []
    for since, until in itertools.pairwise(sorted(times)):
        sure = [each.state for each in intervals if each.held_ns <= since < each.kept_ns]
        count = sum(each.start_ns <= since < each.end_ns for each in intervals)
        if not count:
            continue
        state = best(*sure) if sure and (len(sure) == count or best(*sure).ready) else None
        if runs and runs[-1][1:] == (since, state):
            runs[-1] = runs[-1][0], until, state
        else:
            runs.append((since, until, state))
    for at, (since, until, state) in enumerate(runs):
        before = runs[at - 1] if at and runs[at - 1][1] == since else None
        after = runs[at + 1] if at + 1 < len(runs) and runs[at + 1][0] == until else None
        endpoint = intervals[0].endpoint
        if state is not None:
            start_ns = before[0] if before and before[2] is None else since
            end_ns = after[1] if after and after[2] is None else until
            yield Interval(endpoint, state, start_ns, since, until, end_ns)
        elif not before and not after:  # never certain, but something was there, or may have been
            possible = [each.state for each in intervals if each.start_ns < until and since < each.end_ns]
            is_exact = any(each.held_ns < each.kept_ns == until for each in intervals)
            moment = until if is_exact else until - 1
            yield Interval(endpoint, best(*possible), since, moment, moment, until)


# --- Rule 2 ----------------------------------------------------------------------------------------------------------


def _is_moment(interval: Interval) -> bool:
    """Of a dump."""
    return interval.start_ns == interval.end_ns


def _at_moment(interval: Interval, spans: Sequence[Span]) -> Iterator[Interval]:
    """What a dump shows, unless the journal saw that time."""
    moment = interval.held_ns
    at = bisect_left(spans, moment, key=_until)
    after = at
    if at < len(spans) and spans[at][0] <= moment:
        if spans[at] != (moment, moment):
            return
        after += 1
    yield replace(
        interval,
        start_ns=spans[at - 1][1] if at else BEGINNING_NS,
        end_ns=spans[after][0] if after < len(spans) else NO_END_NS,
    )


def _within(interval: Interval, spans: Sequence[Span]) -> Iterator[Interval]:
    """Its parts in times in which all was known."""
    for at in range(bisect_left(spans, interval.held_ns, key=_until), len(spans)):
        since, until = spans[at]
        if since > interval.kept_ns:
            return
        held_ns, kept_ns = max(interval.held_ns, since), min(interval.kept_ns, until)
        is_brief = interval.held_ns == interval.kept_ns > since  # it came and went while a watch had broken off
        if since < until and (held_ns < kept_ns or is_brief):
            before = spans[at - 1][1] if at else BEGINNING_NS
            after = spans[at + 1][0] if at + 1 < len(spans) else NO_END_NS
            yield Interval(
                interval.endpoint,
                interval.state,
                max(interval.start_ns, since) if interval.held_ns > since else before,
                held_ns,
                kept_ns,
                min(interval.end_ns, until) if interval.kept_ns < until else after,
            )


# --- Rule 3 ----------------------------------------------------------------------------------------------------------


def _outside(interval: Interval, spans: Sequence[Span]) -> Iterator[Interval]:
    """Its parts in other times than these."""
    if interval.held_ns == interval.kept_ns:
        if not any(since <= interval.held_ns <= until for since, until in spans):
            yield interval
        return
    held_ns = interval.held_ns
    for since, until in (*spans, (interval.kept_ns, interval.kept_ns)):
        kept_ns = min(since, interval.kept_ns)
        if held_ns < kept_ns:
            yield replace(
                interval,
                start_ns=interval.start_ns if held_ns == interval.held_ns else held_ns,
                held_ns=held_ns,
                kept_ns=kept_ns,
                end_ns=interval.end_ns if kept_ns == interval.kept_ns else kept_ns,
            )
        held_ns = max(held_ns, until)


# --- Tables ----------------------------------------------------------------------------------------------------------


def _table(table: Table, rows: Sequence[dict[str, Any]]) -> pa.Table:
    found = {each.name: columns.values([row[each.name] for row in rows], each.type) for each in table.columns}
    return columns.to_table(table.name, found)


def _plain(column: Any) -> list[Any]:
    """Words, and times as nanoseconds."""
    if not len(column):
        return []
    if pa.types.is_dictionary(column.type):
        column = column.cast(pa.string())
    elif pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    values: list[Any] = column.to_pylist()
    return values
