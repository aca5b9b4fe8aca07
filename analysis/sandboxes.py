"""Who had an address, by a witness of its own: the interface that a node's kernel had for each pod.

A pod has an interface at its node (cali*, lxc*, a veth at a bridge) as long as its network is there, and another pod
gets another one. Manifests tell to 50 ms when each came and went, and which address was behind it; Kubernetes tells
in seconds when a pod had its address. Together they tell the handover: an interface with an address is a pod's if it
was there when the pod had the address for certain, or if it is the only one that may be.

Nothing is taken from a witness that contradicts itself (two interfaces with one address at a time), or that fits
several pods, or none.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from analysis.layout import NANOSECONDS
from analysis.ownerships import BEGINNING_NS, NO_END_NS, Ownership

LATE_NS: Final = NANOSECONDS // 4
"""By how much an interface's times may be late: they are taken when the kernel's news are read."""
_PAIRS: Final = ("veth", "netkit")


@dataclass(slots=True)
class Sandbox:
    """A pod's network at its node, whoever's: the time in which one address was behind one interface."""

    node: str
    start_ns: int
    """BEGINNING_NS: before it was recorded."""
    end_ns: int
    """NO_END_NS: after it was recorded."""
    seen_from_ns: int
    seen_until_ns: int


def sandboxes(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Sandbox]]:
    """By address, those that the rows of schemas.INTERFACES (with their `node`) show, times as nanoseconds."""
    interfaces = defaultdict(list)
    for row in rows:
        if row["role"] == "pod" and row["kind"] in _PAIRS:
            interfaces[row["cluster"], row["node"], row["index"], row["name"], row["mac"]].append(row)
    found: defaultdict[str, list[Sandbox]] = defaultdict(list)
    for (_, node, *_), changes in interfaces.items():
        for ips, sandbox in _lives(node, sorted(changes, key=lambda row: int(row["seen_from"]))):
            for ip in ips:
                found[ip].append(sandbox)
    return {ip: each for ip, each in found.items() if not _contradict(each)}


def _lives(node: str, changes: Sequence[Mapping[str, Any]]) -> list[tuple[set[str], Sandbox]]:
    """The addresses behind an interface, from its first to its last change: it goes on where one follows the other."""
    lives: list[tuple[set[str], Sandbox]] = []
    for row in changes:
        start_ns = BEGINNING_NS if row["start"] is None else int(row["start"])
        end_ns = NO_END_NS if row["end"] is None else int(row["end"])
        last = lives[-1][1] if lives else None
        if last and (last.end_ns == start_ns or (last.end_ns, start_ns) == (NO_END_NS, BEGINNING_NS)):
            lives[-1][0].update(row["reaches"])
            last.end_ns, last.seen_until_ns = end_ns, int(row["seen_until"])
        else:
            sandbox = Sandbox(node, start_ns, end_ns, int(row["seen_from"]), int(row["seen_until"]))
            lives.append((set(row["reaches"]), sandbox))
    return lives


def _contradict(of_address: list[Sandbox]) -> bool:
    """Whether an address was at two places at a time."""
    ordered = sorted(of_address, key=lambda each: each.seen_from_ns)
    pairs = itertools.pairwise(ordered)
    return any(one.seen_until_ns > other.seen_from_ns + LATE_NS for one, other in pairs)


def witnessed(owners: Sequence[Ownership], of_address: Sequence[Sandbox]) -> list[Ownership]:
    """The owners of one address, from when to when their interfaces show that they had it, where that can be told."""
    fits = [[_fits(owner, sandbox) for sandbox in of_address] for owner in owners]
    for place, sandbox in enumerate(of_address):
        sure = [number for number, owner in enumerate(owners) if fits[number][place] and _is_sure(owner, sandbox)]
        for number in range(len(owners)) if len(sure) == 1 else ():
            fits[number][place] = number in sure
    found = []
    for owner, of_owner in zip(owners, fits, strict=True):
        places = [place for place, fit in enumerate(of_owner) if fit]
        is_only = len(places) == 1 and sum(each[places[0]] for each in fits) == 1
        found.append(_within(owner, of_address[places[0]]) if is_only else owner)
    return found


def _is_sure(owner: Ownership, sandbox: Sandbox) -> bool:
    """Whether it was there at a moment at which the owner had the address for certain."""
    return max(owner.held_ns, sandbox.seen_from_ns) <= min(owner.kept_ns, sandbox.end_ns - LATE_NS)


def _fits(owner: Ownership, sandbox: Sandbox) -> bool:
    """Whether an owner's network may be this one: there whenever it had the address for certain, and never before."""
    return (
        owner.identity == "pod"
        and owner.port is None
        and owner.node == sandbox.node
        and owner.start_ns <= sandbox.seen_from_ns
        and sandbox.start_ns - LATE_NS <= owner.held_ns
        and owner.kept_ns <= sandbox.end_ns
        and max(owner.start_ns, sandbox.start_ns) < min(owner.end_ns, sandbox.end_ns)
    )


def _within(owner: Ownership, sandbox: Sandbox) -> Ownership:
    start_ns, held_ns, kept_ns, end_ns = owner.start_ns, owner.held_ns, owner.kept_ns, owner.end_ns
    if sandbox.start_ns != BEGINNING_NS:
        start_ns = max(start_ns, sandbox.start_ns - LATE_NS)
        held_ns = max(start_ns, min(held_ns, sandbox.start_ns))
    if sandbox.end_ns != NO_END_NS:
        end_ns = min(end_ns, sandbox.end_ns)
        kept_ns = max(kept_ns, sandbox.end_ns - LATE_NS)
    return replace(
        owner, start_ns=start_ns, held_ns=held_ns, kept_ns=min(max(kept_ns, start_ns), end_ns), end_ns=end_ns
    )
