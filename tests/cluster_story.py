"""Pods that follow each other on few addresses, as it truly was, and what a journal and a node's kernel told of it.

A pod's life, in the order in which a kubelet does it: it starts, its network is there, its containers run, they have
finished, the network is torn down, and it is deleted. Kubernetes writes these times in whole seconds, rounded down; the
journal hears of them later, sometimes by seconds.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from capture.contract import Interface, JournalRecord
from tests.node_recordings import at, clock

NODE = "node-1"
LINK_LATE_S = 0.05
"""How late interface changes are told, at most."""


@dataclass(frozen=True)
class Life:
    """Seconds after the beginning."""

    name: str
    ip: str
    start: float
    network: float
    run: float
    finish: float
    torn: float
    deleted: float | None
    """None: it completed, and the API goes on to show it."""
    index: int = 0
    """Of its interface."""

    @property
    def uid(self) -> str:
        return f"uid-{self.name}"


def lives_on(ip: str, chance: random.Random, until: float, length: tuple[float, float], first: int) -> list[Life]:
    """One after the other. The next may have been waiting for the address for long."""
    lives: list[Life] = []
    free = chance.uniform(0, 2)
    while free < until:
        network = free + chance.uniform(0.01, 1)
        start = network - chance.choice([chance.uniform(0.01, 0.5), chance.uniform(0.5, 20)])
        run = network + chance.uniform(0.05, 1)
        finish = run + chance.uniform(*length)
        torn = finish + chance.uniform(0.01, 1)
        deleted = None if chance.random() < 0.2 else torn + chance.uniform(0.01, 1)
        name = f"pod-{ip.rpartition('.')[2]}-{len(lives)}"
        lives.append(Life(name, ip, start, network, run, finish, torn, deleted, first + len(lives)))
        free = torn
    return lives


def states(life: Life, has_sandbox: bool, tells_finish: bool) -> Iterator[tuple[float, str, dict[str, Any]]]:
    """When the API server was told, how, and the object."""
    metadata = {"name": life.name, "namespace": "shop", "uid": life.uid, "creationTimestamp": clock(at(life.start - 1))}
    pod = {"metadata": metadata, "spec": {"nodeName": NODE, "containers": []}, "status": {"phase": "Pending"}}
    yield life.start - 1, "added", pod
    status = {"phase": "Pending", "startTime": clock(at(life.start))}
    yield life.start + 0.01, "modified", pod | {"status": status}
    running = {"running": {"startedAt": clock(at(life.run))}}
    sandbox = {"type": "PodReadyToStartContainers", "status": "True", "lastTransitionTime": clock(at(life.network))}
    status = status | {
        "phase": "Running",
        "podIP": life.ip,
        "podIPs": [{"ip": life.ip}],
        "conditions": [sandbox] if has_sandbox else [],
        "containerStatuses": [{"state": running}],
    }
    yield min(life.run + 0.3, life.finish), "modified", pod | {"status": status}
    if tells_finish or life.deleted is None:
        finished = {"terminated": {"startedAt": clock(at(life.run)), "finishedAt": clock(at(life.finish))}}
        phase = "Succeeded" if life.deleted is None else "Running"
        status = status | {"phase": phase, "containerStatuses": [{"state": finished}]}
        yield life.torn, "modified", pod | {"status": status}
    if life.deleted is not None:
        yield life.deleted, "deleted", pod | {"status": status}


def journal_of(lives: list[Life], chance: random.Random, most_late: float, clock_s: float = 0) -> list[JournalRecord]:
    """A journal from before them all: what was told, in its order, as late as it came, by a clock that is off."""
    told = sorted(
        (
            (when, record_type, life.uid, item)
            for life in lives
            for has_sandbox, tells_finish in [(chance.random() < 0.5, chance.random() < 0.8)]
            for when, record_type, item in states(life, has_sandbox, tells_finish)
        ),
        key=lambda each: each[0],
    )
    records = [JournalRecord("list_complete", at(-60), "Pod", resource_version="1")]
    observed = -60.0
    for number, (when, record_type, uid, item) in enumerate(told, start=2):
        observed = max(observed, when + chance.choice([0.01, chance.uniform(0, most_late)]))
        records.append(JournalRecord(record_type, at(observed + clock_s), "Pod", uid, str(number), item))
    return [*records, JournalRecord("stopped", at(observed + 60))]


def seen_with_gap(records: list[JournalRecord], since: float, until: float) -> list[JournalRecord]:
    """The same journal, of a writer that was cut off in between, and listed all again."""
    before = [each for each in records if each.observed_ns < at(since)]
    known: dict[str, JournalRecord] = {}
    listed: dict[str, JournalRecord] = {}
    for each in records:
        if each.uid and each.observed_ns < at(until):
            for state in (known, listed) if each.observed_ns < at(since) else (listed,):
                if each.type == "deleted":
                    state.pop(each.uid, None)
                else:
                    state[each.uid] = each
    gap = JournalRecord("gap", at(until), "Pod", since_ns=at(since), reason="refused")
    gone = [
        replace(each, type="deleted", observed_ns=at(until), unseen_since_ns=at(since))
        for uid, each in known.items()
        if uid not in listed
    ]
    again = [replace(each, type="listed", observed_ns=at(until)) for each in listed.values()]
    after = [each for each in records if each.observed_ns >= at(until)]
    return [*before, gap, *gone, *again, JournalRecord("list_complete", at(until), "Pod"), *after]


def interfaces_of(lives: list[Life], chance: random.Random) -> list[Interface]:
    """What the kernel had for them, told a little late."""
    return [
        Interface(
            life.index,
            f"cali{life.index:011x}",
            kind="veth",
            role="pod",
            reaches=[life.ip],
            since_ns=at(life.network + chance.uniform(0, LINK_LATE_S)),
            until_ns=at(life.torn + chance.uniform(0, LINK_LATE_S)),
        )
        for life in lives
    ]


def owners_at(lives: list[Life], seconds: float) -> set[str]:
    """Who may be named then: whose network it was; while it was nobody's, who had it last and who has it next."""
    owning = {life.name for life in lives if life.network <= seconds < life.torn}
    before = [life for life in lives if life.torn <= seconds]
    after = [life for life in lives if life.network > seconds]
    return owning or {life.name for life in (*before[-1:], *after[:1])}
