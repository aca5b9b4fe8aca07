"""On which nodes a window was recorded whole, and what is missing on the others: a zero over a gap is no zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from analysis.coverage import LOST
from analysis.reports.coverage import spans
from analysis.reports.window import Window, time_text

if TYPE_CHECKING:
    from analysis.lake_reader import Lake

SHOWN: Final = 4
RECORDED: Final = ("recorded", "dropped", "unreported", "cut_out", "damaged")
_WHY: Final = {
    "stopped": "its agent was not running",
    "crashed": "its agent crashed",
    "not_written": "its agent could not write",
    "evicted": "evicted by its ring",
    "not_collected": "not collected",
}
_PARTLY: Final = {
    "cut_out": "only packets of some addresses were collected",
    "damaged": "a file is cut short, or was altered",
}

Span = tuple[int, int]


@dataclass(frozen=True)
class NodeCoverage:
    """What of the window one node's agent recorded."""

    name: str
    missing: tuple[str, ...]
    """What is not there, a sentence each; none: all is."""


@dataclass(frozen=True)
class Missing:
    """Of all nodes of which agents recorded, and of the journal."""

    nodes: tuple[NodeCoverage, ...]
    journal: tuple[Span, ...]
    """When pods may have come and gone unseen."""

    def summary(self) -> str:
        """'complete on 5 of 6 nodes'; nothing where no agent recorded."""
        complete = sum(not node.missing for node in self.nodes)
        return f"complete on {complete} of {len(self.nodes)} nodes" if self.nodes else ""

    def notes(self, counted: str = "counts") -> list[str]:
        """Which nodes are not complete, and why; so `counted` are a lower bound."""
        incomplete = [node for node in self.nodes if node.missing]
        notes = [f"{node.name}: {', '.join(node.missing)}" for node in incomplete[:SHOWN]]
        if (more := len(incomplete) - SHOWN) > 0:
            notes.append(f"and {more} more {'node' if more == 1 else 'nodes'}: see podtap report coverage")
        if incomplete:
            names = ", ".join(node.name for node in incomplete[:SHOWN]) + " and others" * (more > 0)
            notes.append(f"{counted} are a lower bound: not all of {names} was captured")
        if self.journal:
            first, *others = self.journal
            more_text = f" and {len(others)} times more" if others else ""
            notes.append(f"the journal saw nothing from {_span(first)}{more_text}: pods of that time may have no name")
        return notes


def missing(lake: Lake, window: Window) -> Missing:
    """Of all nodes whose agents' recordings, or whose gaps, are in the lake."""
    rows = lake.arrow(
        f"""SELECT cluster, node, kind, epoch_ns("start") AS since_ns, epoch_ns("end") AS until_ns, reason,
            {", ".join(f"coalesce(drops_{reason}, 0) AS {reason}" for reason in LOST)}
        FROM ({spans(window)}) WHERE kind = 'journal' OR cluster IS NOT NULL
        ORDER BY ALL"""
    ).to_pylist()
    by_node: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["node"] is not None:
            by_node.setdefault((row["cluster"] or "", row["node"]), []).append(row)
    several = len({cluster for cluster, _ in by_node}) > 1
    nodes = []
    for (cluster, node), of_node in sorted(by_node.items()):
        told = _told(sorted(of_node, key=lambda row: int(row["since_ns"])), window)
        nodes.append(NodeCoverage(f"{cluster}/{node}" if several else node, tuple(told)))
    journal = tuple((row["since_ns"], row["until_ns"]) for row in rows if row["kind"] == "journal")
    return Missing(tuple(nodes), journal)


def _told(rows: Sequence[dict[str, Any]], window: Window) -> list[str]:
    """What is missing of a node. What its ring had before the first segment counts only if it was asked for."""
    recorded = [place for place, row in enumerate(rows) if row["kind"] in RECORDED]
    first = recorded[0] if recorded and window.since_ns is None else 0
    last = recorded[-1] if recorded and window.until_ns is None else len(rows) - 1
    rows = rows[first : last + 1]
    told = [_hole(row, window) for row in rows if row["kind"] not in RECORDED]
    if len(told) > SHOWN:
        told[SHOWN - 1 :] = [f"{len(told) - SHOWN + 1} more gaps"]
    dropped = {reason: sum(row[reason] for row in rows) for reason in LOST}
    if any(dropped.values()):
        words = " and ".join(f"{count:,} by {reason}" for reason, count in dropped.items() if count)
        told.append(f"{sum(dropped.values()):,} packets dropped ({words})")
    unreported = dict.fromkeys(row["reason"] for row in rows if row["kind"] == "unreported")
    told += [f"{reason}, so what it dropped is not known" if reason else "drops not reported" for reason in unreported]
    told += [text for kind, text in _PARTLY.items() if any(row["kind"] == kind for row in rows)]
    return told


def _hole(row: dict[str, Any], window: Window) -> str:
    since = max(row["since_ns"], window.since_ns or row["since_ns"])
    until = min(row["until_ns"], window.until_ns or row["until_ns"])
    why = ": ".join(each for each in (_WHY.get(row["kind"]), row["reason"]) if each)
    return f"nothing from {_span((since, until))}" + f" ({why})" * bool(why)


def _span(span: Span) -> str:
    return f"{time_text(span[0], 0)} to {time_text(span[1], 0)}"
