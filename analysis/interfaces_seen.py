"""At what kind of interface each flow was seen, and which pod is behind it, as of the flow's first packet.

Only manifests tell of interfaces: of other captures there is the name or the index, and that is all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from analysis import columns
from analysis.flow_facts import Words, numbers
from analysis.identities import Identities
from analysis.ownerships import BEGINNING_NS, NO_END_NS
from analysis.sandboxes import LATE_NS
from analysis.timelines import NOBODY, Interval, Timelines

Row = Mapping[str, Any]
Integers = npt.NDArray[np.int64]

UPLINK: Final = "uplink"
"""A role that says more than its kind: hardware, a bond, or the veth of a node that is a container."""


def with_interfaces(flows: pa.Table, rows: Sequence[Row], identities: Identities, by_reference: Integers) -> pa.Table:
    """`flows` with `kind` and `pod` (namespace/name) of the interface, null if not known.

    `flows` have node and interface, as dictionaries, and first_seen; `rows` are of schemas.INTERFACES with their node,
    times as nanoseconds; `by_reference`: first_seen by another clock than the node's, which must not tell another pod.
    """
    addresses = _addresses(rows)
    facts: dict[tuple[str | None, str | None], int] = {}
    owners = [facts.setdefault((_kind(row), addresses.get(_life(row))), len(facts)) for row in rows]
    fact = _facts_at(flows, rows, owners)
    kinds, behind = [kind for kind, _ in facts], [address for _, address in facts]
    pods = _pods(fact, behind, flows["first_seen"], identities, by_reference)
    return flows.append_column("kind", columns.some_names(fact, kinds)).append_column("pod", pods)


def _kind(row: Row) -> str | None:
    kind: str | None = UPLINK if row["role"] == UPLINK else row["kind"] or row["role"]
    return kind


def _life(row: Row) -> tuple[Any, ...]:
    """The same of all rows of one interface, as long as it is there."""
    return tuple(row[name] for name in ("cluster", "node", "index", "name", "mac"))


def _addresses(rows: Sequence[Row]) -> dict[tuple[Any, ...], str]:
    """By life, an address of the pod behind it: where a bridge has to learn it, it is known after the first packet."""
    found: dict[tuple[Any, ...], str] = {}
    for row in rows:
        if row["role"] == "pod" and row["reaches"]:
            found.setdefault(_life(row), row["reaches"][0])
    return found


def _facts_at(flows: pa.Table, rows: Sequence[Row], owners: Sequence[int]) -> Integers:
    """For each flow what its interface was: one of `owners`, which say it of each row, or below 0."""
    nodes, names = Words(), Words()
    node, interface = nodes.of(flows["node"]).astype(np.int64), names.of(flows["interface"]).astype(np.int64)
    of_node, of_name = ({word: number for number, word in enumerate(words.all)} for words in (nodes, names))
    seen: list[Interval] = []
    told: list[Interval] = []
    for row, owner in zip(rows, owners, strict=True):
        if row["node"] in of_node and row["name"] in of_name:
            key = of_node[row["node"]] << 32 | of_name[row["name"]]
            start = BEGINNING_NS if row["start"] is None else row["start"]
            end = NO_END_NS if row["end"] is None else row["end"]
            seen.append((key, row["seen_from"], row["seen_until"], owner))
            told.append((key, start, end, owner))
    keys, first_seen = node << 32 | interface, numbers(flows["first_seen"])
    found = Timelines(seen).at(keys, first_seen)
    for timelines, times in ((Timelines(seen), first_seen + LATE_NS), (Timelines(told), first_seen)):
        found = np.where(found == NOBODY, timelines.at(keys, times), found)
    return found


def _pods(
    fact: Integers, addresses: Sequence[str | None], ts: Any, identities: Identities, by_reference: Integers
) -> Any:
    """For each flow the pod that has the address behind its interface then."""
    known = np.array([address is not None for address in addresses] + [False])
    at = np.flatnonzero(known[np.where(fact < 0, -1, fact)])
    index = np.full(len(fact), -1)
    words: dict[str, int] = {}
    if len(at):
        ip = columns.some_names(fact[at], addresses)
        nothing = pa.nulls(len(at), pa.uint16()), columns.some_names(np.full(len(at), -1), [])
        clocks = [(None, lambda _: by_reference[at])]
        answers: dict[str, Any] = identities.identify(ip, *nothing, ts.take(columns.array(at)), other_clocks=clocks)
        names = zip(answers["namespace"].to_pylist(), answers["pod"].to_pylist(), strict=True)
        index[at] = [words.setdefault(f"{namespace}/{pod}", len(words)) if pod else -1 for namespace, pod in names]
    return columns.some_names(index, list(words))
