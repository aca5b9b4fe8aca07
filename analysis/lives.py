"""Lives: what the journal saw of each object, from its first record to its end, and what it owned meanwhile.

The journal learns of a change some time after it happened, by a clock of its own. So it is never asked *when*: that an
object itself tells (a pod's start, when its containers ran), in whole seconds of its node's clock. What the journal
adds is *by when* (a pod with an address has had it by then, one that is deleted is gone by then), and that nothing
else happened: as long as it watches, no pod comes and goes unseen.

Where it did not watch, that does not hold: who was there before and after with one UID was there in between; who was
not there any more has ended when the journal went blind, for anybody may have had the address until it saw again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

from analysis.kubernetes_objects import Cluster, Object, is_completed, kept_ns, of_object, workload_of
from analysis.layout import NANOSECONDS
from analysis.ownerships import CLOCKS_NS, NO_END_NS, Ownership, Proof, joined
from analysis.watching import LATE_NS, STATES, Span, Watching, blind_between
from capture.contract import JournalRecord

SOURCE: Final = "journal"
OWNERS: Final = ("Pod", "Service", "Node", "ServiceCIDR")

Address = tuple[object, ...]


@dataclass(slots=True)
class _Life:
    """One object."""

    kind: str
    version: int = -1
    """Of its newest state."""
    deleted_ns: int | None = None
    """By then it was gone."""
    missed_ns: int | None = None
    """By then it was gone, but nobody saw it go."""
    alive_ns: int = 0
    """Then it was still there."""
    is_completed: bool = False
    owner: Object | None = None
    """Of a pod, what its workload follows from."""
    facts: dict[Address, Ownership] = field(default_factory=dict)
    """Of a pod."""
    dropped: dict[Address, int] = field(default_factory=dict)
    """Addresses that it has no more, and by when."""
    states: list[tuple[int, Object]] = field(default_factory=list)
    """Of others: what it became, and when that was seen."""


class Lives:
    """Learns the records of all writers, in the order in which they were observed."""

    def __init__(self) -> None:
        self._cluster = Cluster()
        self._lives: dict[str, _Life] = {}
        self._labels: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._watching: dict[tuple[int, str], Watching] = {}

    def begin_file(self, writer: int, follows: bool) -> None:
        """`follows`: it is the next file after the writer's last one."""
        for kind in OWNERS:
            self._watching.setdefault((writer, kind), Watching()).begin_file(follows)

    def learn(self, writer: int, record: JournalRecord) -> None:
        """Raises as dictionaries do where an object is not as Kubernetes writes it."""
        watching = self._watching.get((writer, record.kind))
        if watching:
            for uid, alive_ns in watching.learn(record).items():
                if uid in self._lives:
                    self._miss(self._lives[uid], alive_ns, record.observed_ns)
        if record.type in STATES and record.object is not None:
            item = record.object | {"kind": record.kind}
            if watching:
                self._see(record, item)
            else:
                self._cluster.learn(item)

    def _see(self, record: JournalRecord, item: Object) -> None:
        now, version = record.observed_ns, record.resource_version
        life = self._lives.setdefault(record.uid, _Life(record.kind))
        if record.type != "deleted":
            life.alive_ns = max(life.alive_ns, now if life.missed_ns is None else min(now, life.missed_ns))
        elif record.unseen_since_ns is None:
            life.deleted_ns = min(now, life.deleted_ns or now)
        else:
            self._miss(life, record.unseen_since_ns, now)
        number = int(version) if version.isdecimal() else life.version + 1
        if number <= life.version:  # another writer told it already
            return
        self._cluster.learn(item)
        if record.kind == "Pod":
            self._see_pod(life, item, now)
        elif not life.states or _says_of_addresses(life.states[-1][1]) != _says_of_addresses(item):
            life.states.append((now, item))
        life.version = number

    @staticmethod
    def _miss(life: _Life, alive_ns: int, now: int) -> None:
        life.missed_ns = min(now, life.missed_ns or now)
        life.alive_ns = max(life.alive_ns, alive_ns)

    def _see_pod(self, life: _Life, item: Object, now: int) -> None:
        told = of_object(item, Proof(now + CLOCKS_NS, SOURCE, True), Cluster())
        life.is_completed = is_completed(item)
        life.owner = _what_tells_the_workload(item)
        proof, kept = Proof(_written(now), SOURCE, True), kept_ns(item)
        shown = {fact.address for fact in told}
        for address in life.facts.keys() - shown:
            life.dropped.setdefault(address, now)
        for fact in told:
            life.dropped.pop(fact.address, None)
            held_ns = fact.held_ns if fact.held_ns > fact.start_ns else max(fact.start_ns, now + CLOCKS_NS)
            fact = replace(
                fact,
                held_ns=held_ns,
                kept_ns=max(fact.start_ns, kept),
                labels=self._labels.setdefault(fact.labels, fact.labels),
                proofs=frozenset([proof]),
            )
            known = life.facts.get(fact.address)
            life.facts[fact.address] = fact if known is None else _shortened(joined(known, fact))

    def ownerships(self) -> list[Ownership]:
        """What every object owned, unsettled."""
        blind = [(since - LATE_NS, until) for since, until in self.blind()]
        found: list[Ownership] = []
        for uid, life in self._lives.items():
            alive_ns = max(life.alive_ns, *(each.last_saw(uid) for each in self._watching.values()))
            if life.kind == "Pod":
                found += _of_pod(life, alive_ns, self._cluster, blind)
            else:
                found += _of_other(life, alive_ns, self._cluster)
        return found

    def blind(self) -> list[Span]:
        """When pods may have come and gone unseen: between the first and the last time that all were known."""
        return blind_between(span for (_, kind), each in self._watching.items() if kind == "Pod" for span in each.all())

    def bounded(self, told: Ownership) -> Ownership:
        """What a dump told: if the journal never saw who that is, it was gone by the journal's first whole listing."""
        since_ns = self._known_since.get(told.identity)
        if told.uid in self._lives or since_ns is None or told.newest_proof.taken_ns >= since_ns:
            return told
        return replace(told, end_ns=min(told.end_ns, since_ns), kept_ns=min(told.kept_ns, since_ns))

    @cached_property
    def _known_since(self) -> dict[str, int]:
        """For each kind as identities call it, the first time at which all of it was known."""
        since: dict[str, int] = {}
        for (_, kind), each in self._watching.items():
            for first_ns, _ in each.all():
                since[kind.lower()] = min(first_ns, since.get(kind.lower(), first_ns))
        return since


def _of_pod(life: _Life, alive_ns: int, cluster: Cluster, blind: list[Span]) -> Iterator[Ownership]:
    workload, workload_kind = workload_of(life.owner, cluster) if life.owner else (None, None)
    for address, fact in life.facts.items():
        end_ns = fact.end_ns
        unseen_before = any(fact.start_ns < until and since < fact.held_ns for since, until in blind)
        if not life.is_completed and life.deleted_ns is not None:
            end_ns = life.deleted_ns
        elif not life.is_completed and life.missed_ns is not None:
            end_ns = max(alive_ns - LATE_NS, fact.held_ns, fact.kept_ns)
            unseen_before |= alive_ns - LATE_NS < fact.held_ns
        end_ns = min(end_ns, life.dropped.get(address, end_ns))
        start_ns = fact.start_ns
        if life.is_completed and any(since < end_ns and fact.kept_ns < until for since, until in blind):
            end_ns = fact.kept_ns  # after that, somebody unseen may have had it
        if start_ns < end_ns:
            first = Proof(_written(min(fact.held_ns, min(fact.proofs).taken_ns)), SOURCE, True)
            yield replace(
                fact,
                start_ns=start_ns,
                end_ns=end_ns,
                kept_ns=max(start_ns, min(fact.kept_ns, end_ns)),
                unseen_before=unseen_before,
                workload=workload,
                workload_kind=workload_kind,
                proofs=frozenset([first, max(fact.proofs)]),
            )


def _of_other(life: _Life, alive_ns: int, cluster: Cluster) -> Iterator[Ownership]:
    """A service or node: what it had from each of its states to the next."""
    found: dict[Address, Ownership] = {}
    last_end_ns = alive_ns if life.missed_ns is not None else NO_END_NS
    if life.deleted_ns is not None:
        last_end_ns = life.deleted_ns
    ends = [*(seen for seen, _ in life.states[1:]), last_end_ns]
    for number, ((seen_ns, item), end_ns) in enumerate(zip(life.states, ends, strict=True)):
        for fact in of_object(item, Proof(_written(seen_ns), SOURCE, True), cluster):
            start_ns = max(fact.start_ns, seen_ns) if number else fact.start_ns
            held_ns = max(start_ns, min(fact.start_ns + NANOSECONDS, seen_ns))  # it is told in whole seconds
            if start_ns < end_ns:
                fact = replace(fact, start_ns=start_ns, held_ns=held_ns, kept_ns=start_ns, end_ns=end_ns)
                known = found.get(fact.address)
                found[fact.address] = fact if known is None else _shortened(joined(known, fact))
    yield from found.values()


def _shortened(fact: Ownership) -> Ownership:
    """With the first and the last proof only."""
    return replace(fact, proofs=frozenset([min(fact.proofs), max(fact.proofs)]))


def _written(time_ns: int) -> int:
    """A time as a table holds it: in microseconds."""
    return time_ns // 1000 * 1000


def _what_tells_the_workload(pod: Object) -> Object:
    metadata = pod["metadata"]
    labels = metadata.get("labels") or {}
    kept = {key: labels[key] for key in ("pod-template-hash",) if key in labels}
    return {"metadata": {"name": metadata["name"], "labels": kept, "ownerReferences": metadata.get("ownerReferences")}}


def _says_of_addresses(item: Object) -> Any:
    """What of a service or node decides on its addresses, and what it is called."""
    metadata = item["metadata"]
    status = item.get("status") or {}
    told = metadata.get("labels"), metadata.get("annotations"), status.get("loadBalancer"), status.get("addresses")
    return *told, item.get("spec")
