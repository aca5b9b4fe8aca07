"""Who owned an address, and between which moments: facts from single dumps, settled against each other.

A dump proves an ownership at the moment it was taken, and back to the owner's start. Between and after the dumps
these rules hold; none of them guesses between two owners, and none gives up what is known:

1. Owners that two dumps show with one UID are one owner: since the earliest start, proven until the newest dump.
   Everything else about it is as the newest dump says.
2. An owner ends when its object says so: a completed pod when its last container finished, a pod that is being
   deleted at its deletion deadline or when a later dump still shows it.
3. An owner that a later dump should show and does not, ends at the latest when that dump was taken. (A dump should
   show every object of a kind and namespace of which it shows one, and of all namespaces if it shows two; but not
   if it is a part: a single object, or a page of a list.)
4. Where one owner was proven for the last time before another was proven for the first time, they followed each
   other: the address changed hands after the second started and before it held the address for certain, but not while
   the first was still proven. (A pod starts, by the second, before it gets its address.) In between both stay, and
   a lookup answers `ambiguous`.
5. What still overlaps is shown by the same dumps: the owners stay, and a lookup answers `ambiguous`.
6. An address that belongs to a node only because of its place in the node's pod range (bridge, tunnel) is a
   pod's or service's if one was ever seen to own it.
7. Where one owner had completed just before the next one started, its network may still have been there; where the
   journal saw nothing, anybody may have come and gone: until the next one held the address for certain, a lookup
   answers `ambiguous`.
8. After the newest dump an owner stays: captures often run on after it.

Settling what is settled changes nothing, so new dumps can join old ones at any time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from analysis.layout import NANOSECONDS

BEGINNING_NS: Final = -(2**63)
"""Start of an owner whose start nothing bounds."""
NO_END_NS: Final = 2**63 - 1
CLOCKS_NS: Final = NANOSECONDS
"""By how much the clocks of a journal and of a node may differ."""
TEARDOWN_NS: Final = 30 * NANOSECONDS
"""A pod's network may outlive its containers by this much."""


@dataclass(frozen=True, order=True, slots=True)
class Proof:
    """A dump that shows an owner."""

    taken_ns: int
    """The dump was taken at this time or later."""
    dump: str
    is_part: bool = False
    """The dump holds but a part of its kinds: what it lacks may be there."""


@dataclass(frozen=True, slots=True)
class Ownership:
    """One address (or one port of it) during one half-open interval; columns as in schemas.IDENTITIES."""

    ip: str
    """An address, or a range in CIDR notation that the object gives out; a range names nobody."""
    port: int | None
    protocol: str | None
    start_ns: int
    held_ns: int
    """Not before start_ns; by then the address was the owner's."""
    kept_ns: int
    """Not after end_ns: then it still was, for certain."""
    end_ns: int
    identity: str
    namespace: str | None
    name: str
    uid: str | None
    workload: str | None
    workload_kind: str | None
    node: str | None
    labels: tuple[str, ...]
    proofs: frozenset[Proof]
    cluster: str | None = None
    """None: nothing tells it."""
    unseen_before: bool = False
    """Before held_ns somebody else may have had it, of whom nothing is known."""

    @property
    def owner(self) -> tuple[str, str]:
        """What tells two owners apart."""
        return self.identity, self.uid or f"{self.namespace}/{self.name}"

    @property
    def address(self) -> tuple[str, int, str, str]:
        """What can have one owner only."""
        return self.ip, -1 if self.port is None else self.port, self.protocol or "", self.cluster or ""

    @property
    def newest_proof(self) -> Proof:
        """The dump that its columns come from."""
        return max(self.proofs)

    @property
    def first_proven_ns(self) -> int:
        """The first moment at which a dump proves it; a completed pod is proven until its end."""
        return min(min(self.proofs).taken_ns, self.end_ns)

    @property
    def is_completed(self) -> bool:
        """It ended by itself, and said so: that is a whole second, in which it may have had the address still."""
        return self.end_ns <= self.kept_ns + NANOSECONDS

    @property
    def is_range(self) -> bool:
        """A range has no owner and no end: it only says that its addresses are in the cluster."""
        return "/" in self.ip


Witness = Callable[[Sequence["Ownership"]], Sequence["Ownership"]]


def settle(ownerships: Iterable[Ownership], witness: Witness = list) -> list[Ownership]:
    """Every address's owners, bounded by each other and by all dumps, in a stable order.

    `witness` knows more of the owners of one address: from when to when each had it. Where only one cluster is known
    by name, all is of that one.
    """
    ownerships = list(ownerships)
    clusters = {owner.cluster for owner in ownerships if owner.cluster is not None}
    if len(clusters) == 1:
        (cluster,) = clusters
        ownerships = [owner if owner.cluster else replace(owner, cluster=cluster) for owner in ownerships]
    shown = _when_shown(ownerships)
    by_address = defaultdict(list)
    for owner in _merge(ownerships):
        by_address[owner.address].append(owner if owner.is_range else _until_missing(owner, shown))
    settled = [owner for owners in by_address.values() for owner in _follow_each_other(witness(_claimed(owners)))]
    return sorted(settled, key=lambda owner: (owner.address, owner.start_ns, owner.owner))


def _merge(ownerships: Iterable[Ownership]) -> list[Ownership]:
    """Rule 1."""
    merged: dict[tuple[object, ...], Ownership] = {}
    for new in ownerships:
        key = (*new.address, *new.owner)
        known = merged.get(key)
        merged[key] = new if known is None else joined(known, new)
    return list(merged.values())


def joined(one: Ownership, other: Ownership) -> Ownership:
    """One owner, of whom two proofs tell (rule 1)."""
    older, newer = sorted((one, other), key=lambda owner: owner.newest_proof)
    return replace(
        newer,
        start_ns=min(older.start_ns, newer.start_ns),
        held_ns=min(older.held_ns, newer.held_ns),
        kept_ns=min(max(older.kept_ns, newer.kept_ns), newer.end_ns),
        unseen_before=older.unseen_before and newer.unseen_before,
        proofs=older.proofs | newer.proofs,
    )


def _when_shown(ownerships: Iterable[Ownership]) -> dict[tuple[str, str | None], list[int]]:
    """For each kind and namespace, the times of the dumps that show them; namespace "*": those of all namespaces."""
    namespaces = defaultdict(set)
    for owner in ownerships:
        if not owner.is_range:
            for proof in (proof for proof in owner.proofs if not proof.is_part):
                namespaces[owner.identity, proof].add(owner.namespace)
    times = defaultdict(set)
    for (identity, proof), shown in namespaces.items():
        for namespace in shown if len(shown) == 1 else {*shown, "*"}:
            times[identity, namespace].add(proof.taken_ns)
    return {key: sorted(values) for key, values in times.items()}


def _until_missing(owner: Ownership, shown: dict[tuple[str, str | None], list[int]]) -> Ownership:
    """Rule 3."""
    proven_ns, end_ns = owner.newest_proof.taken_ns, owner.end_ns
    for namespace in (owner.namespace, "*"):
        times = shown.get((owner.identity, namespace), [])
        later = bisect_right(times, proven_ns)
        if later < len(times):
            end_ns = min(end_ns, times[later])
    return owner if end_ns == owner.end_ns else replace(owner, end_ns=end_ns)


def _claimed(owners: list[Ownership]) -> list[Ownership]:
    """Rule 6, for the owners of one address."""
    claimed = [owner for owner in owners if owner.identity != "node"]
    return claimed or owners


def _follow_each_other(owners: Sequence[Ownership]) -> list[Ownership]:
    """Rule 4, for the owners of one address."""
    if len(owners) == 1:
        return list(owners)
    bounded = [_bounded(owner, owners) for owner in owners]
    return [owner for owner in bounded if owner.start_ns < owner.end_ns]


def _bounded(owner: Ownership, owners: Sequence[Ownership]) -> Ownership:
    """Between those before it and those after it."""
    before = [other for other in owners if other.kept_ns < owner.first_proven_ns and other is not owner]
    after = [other for other in owners if owner.kept_ns < other.first_proven_ns and other is not owner]
    start_ns = max([owner.start_ns, *(other.kept_ns for other in before)])
    held_ns = max(owner.held_ns, start_ns)
    end_ns = owner.end_ns
    if after:
        following = min(after, key=lambda other: max(other.held_ns, owner.kept_ns))
        handed_over_ns = max(following.held_ns, end_ns if owner.is_completed else owner.kept_ns)
        if following.start_ns < end_ns + CLOCKS_NS:
            end_ns = handed_over_ns
    return replace(owner, start_ns=start_ns, held_ns=held_ns, kept_ns=min(owner.kept_ns, end_ns), end_ns=end_ns)


def doubtful(owners: Iterable[Ownership]) -> Iterator[Ownership]:
    """Rule 7: those settled owners that are not to be named before they held the address for certain."""
    by_address = defaultdict(list)
    for owner in owners:
        by_address[owner.address].append(owner)
    for of_address in by_address.values():
        completed = sorted(owner.end_ns for owner in of_address if owner.is_completed)
        for owner in of_address:
            before = bisect_right(completed, owner.start_ns)
            is_close = before and owner.start_ns < completed[before - 1] + TEARDOWN_NS
            if owner.start_ns < owner.held_ns and (is_close or owner.unseen_before):
                yield owner
