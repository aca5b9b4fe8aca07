"""Rows of the table coverage: when each node was recorded, what is missing of it, and why. Pure.

What manifests, tombstones, heads of bundles and the journal tell one by one becomes one line of time for each node,
without holes from its first row to its last.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Final

from capture.contract import NANOSECONDS, parse_stem

Row = dict[str, Any]

SLACK_NS: Final = NANOSECONDS
"""Between two segments of one run: what comes meanwhile waits in the kernel's ring, and is in the next one."""
DROPS: Final = ("kernel", "libpcap", "disk", "interface", "policy")
LOST: Final = DROPS[:3]
"""What was there to be captured and is missing: an interface drops for the host, too, and a policy was asked for."""
NEEDED: Final = (
    *("cluster", "segment", "first_ts", "last_ts", "opened", "sealed", "packets", "unsealed", "truncated", "sha256_ok"),
    *("problems", "salvaged", "only_addresses", "gap_before_ns", "run_id"),
    *(f"drops_{reason}" for reason in DROPS),
)
"""Of schemas.SEGMENTS."""
_APART: Final = ("dropped", "damaged")
"""Of these, two that follow each other stay two: what was counted was counted in either."""


def coverage_rows(segments: Iterable[Row], gaps: Iterable[Row]) -> list[Row]:
    """Rows of schemas.COVERAGE, of all of schemas.SEGMENTS (NEEDED, and `node`) and GAPS; times are nanoseconds.

    What a row does not have is null.
    """
    told = _distinct(gaps)
    by_node: defaultdict[tuple[str | None, str], list[Row]] = defaultdict(list)
    for segment in segments:
        if segment["packets"] or segment["cluster"] is not None:  # an empty file of no agent tells of no time
            by_node[segment["cluster"], segment["node"]].append(segment)
    for gap in told:
        if gap["node"] is not None:
            by_node[gap["cluster"], gap["node"]] += []
    rows = [{"complete": False, **gap} for gap in told if gap["kind"] == "journal"]
    for (cluster, node), of_node in by_node.items():
        lacking = [gap for gap in told if (gap["cluster"], gap["node"]) == (cluster, node)]
        rows += [{"cluster": cluster, "node": node, **row} for row in _of_node(of_node, lacking)]
    return sorted(rows, key=lambda row: (row["cluster"] or "", row["node"] or "", row["start"], row["end"]))


def _distinct(gaps: Iterable[Row]) -> list[Row]:
    """Each gap once: every analysis tells those of its inputs; of one without a cluster another may know it."""
    found: dict[tuple[Any, ...], Row] = {}
    for gap in sorted(gaps, key=lambda gap: gap["cluster"] is None):
        cluster = gap["cluster"] if gap["node"] is not None else None
        found.setdefault((cluster, *(gap[name] for name in ("node", "kind", "start", "end", "reason"))), gap)
    return list(found.values())


def _of_node(segments: Sequence[Row], gaps: Sequence[Row]) -> list[Row]:
    rows: list[Row] = []
    starts, ends = [gap["start"] for gap in gaps], [gap["end"] for gap in gaps]
    before: Row | None = None
    known_until: int | None = None
    for segment in sorted(segments, key=_span):
        since = _span(segment)[0]
        known_until = min([since, *starts]) if known_until is None else known_until
        if gap_ns := segment["gap_before_ns"]:
            known_until = min(known_until, since - gap_ns)
            _end_by(rows, since - gap_ns)
        if hole := _hole(known_until, since, before, segment, gaps):
            rows += hole
        elif rows and abs(rows[-1]["end"] - since) <= SLACK_NS and rows[-1]["start"] < since:
            rows[-1]["end"] = since
        rows += _recorded(segment)
        known_until = max(known_until, rows[-1]["end"])
        before = segment
    known_until = min(starts) if known_until is None else known_until
    rows += _lacking(known_until, max([known_until, *ends]), gaps)
    return _runs(rows)


def _span(segment: Row) -> tuple[int, int]:
    """[since, until) of what a segment tells."""
    first, last = (segment["first_ts"], segment["last_ts"] + 1) if segment["packets"] else (None, None)
    opened = segment["opened"]
    if opened is None and segment["cluster"] is not None:  # without a manifest its name tells
        opened = (parse_stem(segment["segment"]) or (None,))[0]
    since = [each for each in (first, opened) if each is not None] or [segment["first_ts"]]
    until = [each for each in (last, segment["sealed"]) if each is not None] or since
    return min(since), max(min(since) + 1, *until)


def _recorded(segment: Row) -> list[Row]:
    """What a segment holds, and of a damaged one what it lost."""
    since, until = _span(segment)
    drops = {f"drops_{reason}": segment[f"drops_{reason}"] for reason in DROPS}
    is_known = any(drops[f"drops_{reason}"] is not None for reason in LOST)
    row: Row = {"start": since, "end": until, "packets": segment["packets"], **drops, "reason": None}
    if segment["unsealed"]:
        return [row | {"kind": "unreported", "complete": None, "reason": "its segment is not finished"}]
    if segment["truncated"] or segment["sha256_ok"] is False:
        damaged = row | {"kind": "damaged", "complete": None, "reason": segment["problems"]}
        read_until = segment["last_ts"] + 1 if segment["packets"] else since
        if not segment["truncated"] or segment["opened"] is None or not since < read_until < until:
            return [damaged]
        lost = {"start": read_until, "end": until, "kind": "damaged", "complete": False}
        return [damaged | {"end": read_until}, lost | {"reason": segment["problems"]}]
    if segment["salvaged"]:
        return [row | {"kind": "unreported", "complete": None, "reason": "its agent crashed"}]
    if segment["only_addresses"]:
        return [row | {"kind": "cut_out", "complete": False, "reason": segment["only_addresses"]}]
    if not is_known:
        return [row | {"kind": "unreported", "complete": None}]
    is_whole = not any(drops[f"drops_{reason}"] for reason in LOST)
    return [row | {"kind": "recorded" if is_whole else "dropped", "complete": is_whole}]


def _hole(since: int, until: int, before: Row | None, after: Row, gaps: Sequence[Row]) -> list[Row]:
    """What is between a node's segments, or before its first one: nothing, if they follow each other."""
    stopped_since = max(since, until - (after["gap_before_ns"] or 0))
    is_restart = before is None or before["run_id"] != after["run_id"]
    rows = _lacking(since, stopped_since, gaps)
    if not rows and stopped_since - since > (SLACK_NS if after["gap_before_ns"] or not is_restart else 0):
        is_agent = after["cluster"] is not None
        kind, complete = ("missing", False) if is_agent else ("unknown", None)
        rows = [{"start": since, "end": stopped_since, "kind": kind, "complete": complete}]
    if since < until and stopped_since < until:
        kind = "crashed" if before and before["salvaged"] else "stopped" if is_restart else "not_written"
        start = rows[-1]["end"] if rows else since
        rows.append({"start": start, "end": until, "kind": kind, "complete": False})
    return rows


def _lacking(since: int, until: int, gaps: Sequence[Row]) -> list[Row]:
    """A hole of which tombstones or the head of a bundle tell; they know the times of packets only."""
    told = [
        gap
        for gap in gaps
        if gap["start"] < until and gap["end"] > since and (gap["kind"] == "evicted" or until - since > SLACK_NS)
    ]
    if since >= until or not told:
        return []
    kind = min(gap["kind"] for gap in told)
    of_kind = [gap for gap in told if gap["kind"] == kind]
    reasons = dict.fromkeys(gap["reason"] for gap in of_kind if gap["reason"])
    packets = [gap["packets"] for gap in of_kind if gap["packets"] is not None]
    row = {"start": since, "end": until, "kind": kind, "complete": False}
    return [row | {"reason": "; ".join(reasons) or None, "packets": sum(packets) if packets else None}]


def _end_by(rows: list[Row], until: int) -> None:
    """Nothing was recorded from then on, whenever the segment before was sealed."""
    for row in rows[-1:]:
        row["end"] = max(row["start"] + 1, min(row["end"], until))


def _runs(rows: Sequence[Row]) -> list[Row]:
    """Rows that follow each other and say the same are one."""
    runs: list[Row] = []
    for row in rows:
        last = runs[-1] if runs else None
        is_same = last and all(last.get(name) == row.get(name) for name in ("kind", "reason", "complete"))
        if last and is_same and last["end"] == row["start"] and row["kind"] not in _APART:
            last["end"] = row["end"]
            for name in ("packets", *(f"drops_{reason}" for reason in DROPS)):
                counts = [each[name] for each in (last, row) if each.get(name) is not None]
                last[name] = sum(counts) if counts else None
        else:
            runs.append(dict(row))
    return runs
