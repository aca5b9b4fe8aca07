"""On which nodes a window was recorded whole, and what is missing on the others: a zero over a gap is no zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from analysis.reports.window import NANOSECONDS, Window, time_text

if TYPE_CHECKING:
    from analysis.lake_reader import Lake

SLACK_NS: Final = NANOSECONDS
"""Between two segments, and at the ends of a window."""
SHOWN: Final = 4
_DROPS: Final = ("kernel", "libpcap", "disk")
_WORDS: Final = {"evicted": "evicted by its ring", "not_collected": "not collected"}

Span = tuple[int, int]


@dataclass(frozen=True)
class NodeCoverage:
    """What of the window one node's agent recorded."""

    name: str
    missing: tuple[str, ...]
    """What is not there, a sentence each; none: all is."""


@dataclass(frozen=True)
class Coverage:
    """All nodes of which agents recorded, and the journal."""

    nodes: tuple[NodeCoverage, ...]
    journal: tuple[Span, ...]
    """When pods may have come and gone unseen."""

    @property
    def is_complete(self) -> bool:
        return not any(node.missing for node in self.nodes)

    def summary(self) -> str:
        """'complete on 5 of 6 nodes'; nothing where no agent recorded."""
        complete = sum(not node.missing for node in self.nodes)
        return f"complete on {complete} of {len(self.nodes)} nodes" if self.nodes else ""

    def notes(self) -> list[str]:
        """Which nodes are not complete, and why."""
        told = [f"{node.name}: {', '.join(node.missing)}" for node in self.nodes if node.missing]
        notes = told[:SHOWN]
        if (more := len(told) - SHOWN) > 0:
            notes.append(f"and {more} more {'node' if more == 1 else 'nodes'}: see the tables segments and gaps")
        if told:
            notes.append("a count of zero says nothing about what is missing")
        if self.journal:
            first, *others = self.journal
            more_text = f" and {len(others)} times more" if others else ""
            notes.append(f"the journal saw nothing from {_span(first)}{more_text}: pods of that time may have no name")
        return notes


def coverage(lake: Lake, window: Window) -> Coverage:
    """Of all nodes whose agents' recordings, or whose gaps, are in the lake."""
    segments = lake.arrow(
        f"""SELECT cluster, node, epoch_ns(coalesce(opened, first_ts)) AS since_ns, unsealed, truncated, salvaged,
            epoch_ns(coalesce(sealed, last_ts)) AS until_ns, coalesce(gap_before_ns, 0) AS gap_before_ns,
            coalesce(only_addresses, '') <> '' AS is_part, {", ".join(f"drops_{reason}" for reason in _DROPS)}
        FROM segments WHERE cluster IS NOT NULL ORDER BY ALL"""
    ).to_pylist()
    gaps = lake.arrow(
        f"""SELECT DISTINCT cluster, node, kind, epoch_ns("start") AS since_ns, epoch_ns("end") AS until_ns, reason
        FROM gaps WHERE {window.overlaps('"start"', '"end"')} ORDER BY ALL"""
    ).to_pylist()
    by_node: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in (*segments, *(gap for gap in gaps if gap["node"] is not None)):
        by_node.setdefault((row["cluster"] or "", row["node"]), [])
    for row in segments:
        by_node[row["cluster"], row["node"]].append(row)
    several = len({cluster for cluster, _ in by_node}) > 1
    nodes = []
    for (cluster, node), rows in sorted(by_node.items()):
        of_node = [gap for gap in gaps if (gap["cluster"] or "", gap["node"]) == (cluster, node)]
        name = f"{cluster}/{node}" if several else node
        nodes.append(NodeCoverage(name, tuple(_missing(rows, of_node, window))))
    journal = tuple((gap["since_ns"], gap["until_ns"]) for gap in gaps if gap["kind"] == "journal")
    return Coverage(tuple(nodes), journal)


def _missing(rows: list[dict[str, Any]], gaps: list[dict[str, Any]], window: Window) -> list[str]:
    holes = _holes([(row["since_ns"], row["until_ns"], row["gap_before_ns"]) for row in rows], window)
    missing = [f"nothing from {_span(hole)}{_why(hole, gaps)}" for hole in holes]
    if not rows and not holes:
        missing += [f"nothing{_why((gap['since_ns'], gap['until_ns']), gaps)}" for gap in gaps[:1]]
    if len(missing) > SHOWN:
        missing[SHOWN - 1 :] = [f"{len(missing) - SHOWN + 1} more gaps"]
    within = [row for row in rows if _touches((row["since_ns"], row["until_ns"]), window)]
    dropped = {reason: sum(row[f"drops_{reason}"] or 0 for row in within) for reason in _DROPS}
    if any(dropped.values()):
        words = " and ".join(f"{count:,} by {reason}" for reason, count in dropped.items() if count)
        missing.append(f"{sum(dropped.values()):,} packets dropped ({words})")
    if any(row["salvaged"] for row in within):
        missing.append("its agent crashed, and what it dropped before is not known")
    if any(row["is_part"] for row in within):
        missing.append("only packets of some addresses were collected")
    return missing


def _holes(recorded: list[tuple[int, int, int]], window: Window) -> list[Span]:
    """What `recorded` (since, until, gap before it; in order) leaves open; at the window's ends, too, if it has any."""
    holes: list[Span] = []
    known_until = window.since_ns
    for since_ns, until_ns, gap_before_ns in recorded:
        if known_until is not None:
            holes.append((min(known_until, since_ns - gap_before_ns), since_ns))
        known_until = until_ns if known_until is None else max(known_until, until_ns)
    if window.until_ns is not None and known_until is not None:
        holes.append((known_until, window.until_ns))
    since, until = window.since_ns, window.until_ns
    inside = [
        (start if since is None else max(start, since), end if until is None else min(end, until))
        for start, end in holes
    ]
    return [(start, end) for start, end in inside if end > start + SLACK_NS]


def _touches(span: Span, window: Window) -> bool:
    since_ns, until_ns = span
    return (window.until_ns is None or since_ns < window.until_ns) and (
        window.since_ns is None or until_ns >= window.since_ns
    )


def _why(hole: Span, gaps: list[dict[str, Any]]) -> str:
    """What the recording itself says of that time."""
    told = [gap for gap in gaps if gap["since_ns"] < hole[1] and gap["until_ns"] > hole[0]]
    reasons = dict.fromkeys(
        f"{_WORDS.get(gap['kind'], gap['kind'])}: {gap['reason'] or 'not told why'}" for gap in told
    )
    return f" ({'; '.join(reasons)})" if reasons else ""


def _span(span: Span) -> str:
    return f"{time_text(span[0], 0)} to {time_text(span[1], 0)}"
