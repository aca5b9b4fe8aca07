"""Faults of the API server stand-in: switched on and off while it runs, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from tests.lab.api_resources import Resource
from tests.lab.api_status import (
    ApiError,
    expired,
    forbidden,
    internal_error,
    too_many_requests,
    unauthorized,
)

REFUSALS: Final = ("500", "429", "401", "403", "410")
"""Answers instead of what was asked for. On a watch, 410 is an event: at once, also on one that is open already."""
DISTURBANCES: Final = ("eof", "reset", "silence", "slow", "bad-json", "cut")
"""eof: a watch ends cleanly, before its time; lists know no such thing.
reset: TCP is reset in the middle of a line. silence: the connection stays open and nothing comes any more; it is
dropped when the fault goes. slow: a delay before each chunk. bad-json: a list or an event is cut in its middle.
cut: an exec is reset once it has sent `after` bytes of output."""


@dataclass
class Fault:
    """Strikes `times` times (always, if None); `count` says how often it did."""

    kind: str
    resource: str | None = None
    verb: str | None = None
    times: int | None = None
    delay: float = 0.1
    retry_after: int = 1
    after: int = 0
    count: int = 0
    is_on: bool = True
    """False as soon as somebody took it away; a fault that struck often enough stays on, and strikes no more."""

    def __post_init__(self) -> None:
        if self.kind not in REFUSALS + DISTURBANCES:
            raise ValueError(f"no such fault: {self.kind}")

    def concerns(self, verb: str, plural: str | None) -> bool:
        return (
            self.is_on
            and (self.times is None or self.count < self.times)
            and self.resource in (None, plural)
            and self.verb in (None, verb)
        )

    def refusal(self, verb: str, resource: Resource, namespace: str, name: str, current: int) -> ApiError:
        """The answer of a fault that is one."""
        if self.kind == "500":
            return internal_error("the lab's fault")
        if self.kind == "429":
            return too_many_requests(self.retry_after)
        if self.kind == "401":
            return unauthorized()
        if self.kind == "403":
            return forbidden("nobody", verb, resource, namespace, name)
        return expired(f"too old resource version: {current} ({current + 1})")


@dataclass
class Faults:
    """Those that are on; the caller holds the store's lock."""

    active: list[Fault] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """By kind, also of faults that are gone."""

    def strike(self, kinds: Iterable[str], verb: str, plural: str | None) -> Fault | None:
        """The first fault that fits, counted; None if there is none."""
        wanted = set(kinds)
        for fault in self.active:
            if fault.kind in wanted and fault.concerns(verb, plural):
                fault.count += 1
                self.counts[fault.kind] += 1
                return fault
        return None

    def remove(self, fault: Fault) -> None:
        fault.is_on = False
        self.active = [other for other in self.active if other is not fault]

    def clear(self) -> None:
        for fault in list(self.active):
            self.remove(fault)
