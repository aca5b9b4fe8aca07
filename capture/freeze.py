"""Freezes of a whole cluster: one id on all nodes that can be reached."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from capture.contract import Freeze
from capture.errors import PodtapError
from capture.listing import NodeListing
from capture.parallel import in_parallel
from capture.recording import Window
from capture.sources import AgentOrigin, JournalOrigin

WORKERS = 16
"""Nodes asked at once: an exec costs the API server a connection to the kubelet."""

MOST_CARRIED = 200
"""Freezes of nodes that the journal is told of: the newest. A node may say anything."""


@dataclass
class NodeResult:
    """What became of one node."""

    node: str
    problem: str = ""
    listing: list[NodeListing] | None = None
    words: str = ""


def new_freeze(since_ns: int, until_ns: int, reason: str, by: str) -> Freeze:
    """One for all nodes."""
    now_ns = time.time_ns()
    return Freeze(f"{now_ns:019d}-{secrets.token_hex(3)}", since_ns, until_ns, reason, now_ns, by)


def freeze_nodes(origins: Sequence[AgentOrigin], freeze: Freeze) -> list[NodeResult]:
    """Pins a window on each node; what it then holds of the window."""

    def one(origin: AgentOrigin) -> list[NodeListing]:
        origin.freeze(freeze)
        return origin.listing(Window(freeze.since_ns, freeze.until_ns))

    return [_result(origin.name, answer) for origin, answer in in_parallel(one, origins, WORKERS)]


def freeze_journals(origins: Sequence[JournalOrigin], freeze: Freeze) -> list[NodeResult]:
    """Keeps what tells of a window with each of the journal's writers."""

    def one(origin: JournalOrigin) -> list[NodeListing]:
        origin.freeze(freeze)
        return []

    return [_result(origin.name, answer) for origin, answer in in_parallel(one, origins, WORKERS)]


def carry_freezes(origins: Sequence[JournalOrigin], listings: Iterable[NodeListing]) -> list[NodeResult]:
    """Has each of the journal's writers keep what tells of the nodes' freezes: some were made without an API server."""
    freezes = {one["id"]: Freeze(**one) for listing in listings for one in listing.freezes}
    newest = sorted(freezes.values(), key=lambda one: one.created_ns)[-MOST_CARRIED:]
    results = in_parallel(lambda origin: origin.adopt(newest), origins if newest else [], WORKERS)
    return [_worded(origin.name, answer) for origin, answer in results]


def frozen_nodes(origins: Sequence[AgentOrigin]) -> list[NodeResult]:
    """What is frozen on each node."""
    results = in_parallel(lambda origin: origin.listing(Window(0, 1)), origins, WORKERS)
    return [_result(origin.name, answer) for origin, answer in results]


def thaw_nodes(origins: Sequence[AgentOrigin | JournalOrigin], ids: list[str]) -> list[NodeResult]:
    """Lets go on each node, or of the journal; all freezes if there are no ids."""
    results = in_parallel(lambda origin: origin.thaw(ids), origins, WORKERS)
    return [_worded(origin.name, answer) for origin, answer in results]


def _worded(node: str, answer: str | PodtapError) -> NodeResult:
    return NodeResult(node, str(answer)) if isinstance(answer, PodtapError) else NodeResult(node, words=answer)


def _result(node: str, answer: list[NodeListing] | PodtapError) -> NodeResult:
    return NodeResult(node, str(answer)) if isinstance(answer, PodtapError) else NodeResult(node, "", answer)
