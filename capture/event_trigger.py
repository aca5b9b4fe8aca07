"""Freezes the minutes around an Event whose reason is one that was asked for: OOMKilling, BackOff, Unhealthy ..."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any, Final

from capture import log
from capture.cluster import Cluster
from capture.connection import Connection
from capture.contract import NANOSECONDS, Freeze, JournalRecord
from capture.errors import PodtapError
from capture.freeze import freeze_journals, freeze_nodes, new_freeze
from capture.sources import ClusterSource

BEFORE_NS: Final = 600 * NANOSECONDS
AFTER_NS: Final = 300 * NANOSECONDS
"""Of what is frozen around an Event."""
QUIET_NS: Final = 900 * NANOSECONDS
"""One incident has many Events, and is one freeze."""


class EventTrigger:
    """Decides, without I/O, which Events freeze."""

    def __init__(self, reasons: frozenset[str]) -> None:
        self._reasons = reasons
        self._quiet_until_ns = 0

    def observe(self, record: JournalRecord) -> Freeze | None:
        """What is to be frozen, if anything. Only what a watch tells is new: a listing shows an hour of old Events."""
        event = record.object or {}
        if (
            record.kind != "Event"
            or record.type not in ("added", "modified")
            or record.observed_ns < self._quiet_until_ns
        ):
            return None
        if event.get("reason") not in self._reasons:
            return None
        self._quiet_until_ns = record.observed_ns + QUIET_NS
        about = event.get("involvedObject") or {}
        name = "/".join(filter(None, (about.get("namespace"), about.get("name"))))
        time_ns = _happened_ns(event) or record.observed_ns
        reason = f"{event['reason']} of {about.get('kind', '')} {name}"
        return new_freeze(time_ns - BEFORE_NS, time_ns + AFTER_NS, reason, "podtap journal --freeze-on")


def _happened_ns(event: dict[str, Any]) -> int | None:
    """When it happened last, by itself."""
    times = [event.get(key) for key in ("eventTime", "firstTimestamp", "lastTimestamp")]
    times.append((event.get("series") or {}).get("lastObservedTime"))
    known = [parsed for each in times if (parsed := _parsed_ns(each)) is not None]
    return max(known, default=None)


def _parsed_ns(time: Any) -> int | None:
    try:
        moment = datetime.fromisoformat(time)
    except (TypeError, ValueError):
        return None
    return int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()) * NANOSECONDS


class EventFreezer:
    """Freezes on all nodes, as podtap freeze does; on threads of its own, for that takes a while."""

    def __init__(self, connection: Connection, namespace: str, reasons: frozenset[str]) -> None:
        self._source = ClusterSource(Cluster(connection, namespace))
        self._trigger = EventTrigger(reasons)

    def notice(self, record: JournalRecord) -> None:
        """Called with every record."""
        if freeze := self._trigger.observe(record):
            threading.Thread(target=self._freeze, args=(freeze,), name="freeze", daemon=True).start()

    def _freeze(self, freeze: Freeze) -> None:
        try:
            results = freeze_nodes(self._source.nodes(), freeze) + freeze_journals(self._source.journals(), freeze)
        except PodtapError as error:
            log.error("an Event could not freeze", reason=freeze.reason, problem=str(error))
            return
        for result in results:
            if result.problem:
                log.error("a node could not be frozen", node=result.node, reason=freeze.reason, problem=result.problem)
        frozen = sum(not result.problem for result in results)
        log.info("an Event froze", id=freeze.id, reason=freeze.reason, nodes=frozen)
