"""`podtap report coverage`: which times of which nodes were recorded whole, and what is missing of the others."""

from __future__ import annotations

from typing import Final

from analysis.coverage import DROPS, LOST, SLACK_NS
from analysis.errors import UsageError
from analysis.reports.columns import WIDE, ReportColumn
from analysis.reports.connections import Points
from analysis.reports.filters import Filters, quoted
from analysis.reports.window import NANOSECONDS, Window, timestamp_sql
from analysis.schemas import COVERAGE

_DROPPED: Final = " + ".join(f"coalesce(drops_{reason}, 0)" for reason in LOST)

COLUMNS: Final = (
    ReportColumn("node", "NODE", "label", "the node; (all) where the journal saw nothing of any"),
    ReportColumn("start", "FROM", "time", "since when"),
    ReportColumn("end", "UNTIL", "time", "until when"),
    ReportColumn("complete", "COMPLETE", "text", "yes, no, or unknown"),
    ReportColumn("kind", "WHAT", "text", "as in the table coverage"),
    ReportColumn("packets", "PACKETS", "count", "packets recorded; of kind evicted, that there were", rank=2),
    ReportColumn("dropped", "DROPPED", "bad", "packets that should have been captured and were not, sometime in it"),
    *(ReportColumn(f"drops_{each}", f"BY {each}".upper(), "count", f"dropped by {each}", rank=WIDE) for each in DROPS),
    ReportColumn("reason", "WHY", "text", "more about it, in words", rank=1),
    ReportColumn("cluster", "CLUSTER", "text", "the cluster", rank=WIDE),
)

ORDER: Final = 'node, cluster, start, "end"'
ORDER_TEXT: Final = "by node and time"


def sql(window: Window, filters: Filters, by: str, points: Points) -> str:
    """One row for each time of a node in which the same is true, with COLUMNS. Raises UsageError: it is of nodes."""
    del by, points
    if filters != Filters(node=filters.node):
        raise UsageError("coverage is of nodes: it can be asked for a node, not for pods, services or namespaces")
    return f"""SELECT coalesce(node, '(all)') AS node, "start", "end", kind, packets, reason, cluster,
        CASE WHEN complete THEN 'yes' WHEN NOT complete THEN 'no' ELSE 'unknown' END AS complete,
        CASE WHEN {" AND ".join(f"drops_{reason} IS NULL" for reason in LOST)} THEN NULL ELSE {_DROPPED} END AS dropped,
        {", ".join(f"drops_{reason}" for reason in DROPS)}
    FROM ({spans(window)}) WHERE {_of(filters.node)} OR node IS NULL"""


def spans(window: Window) -> str:
    """Rows of the table coverage that lie in the window, and for each agent's node what of the window none tells of."""
    since = "NULL" if window.since_ns is None else timestamp_sql(window.since_ns)
    until = "NULL" if window.until_ns is None else timestamp_sql(window.until_ns)
    columns = ", ".join(
        {"kind": "'missing'", "complete": "false"}.get(name, f'"{name}"' if name in _KEPT else "NULL") + f' AS "{name}"'
        for name in COVERAGE.schema.names
    )
    return f"""
    WITH inside AS (
        SELECT * FROM coverage WHERE ({until} IS NULL OR "start" < {until}) AND ({since} IS NULL OR "end" > {since})
    ), known AS (
        SELECT min("start") AS first, max("end") AS last FROM coverage WHERE node IS NOT NULL
    ), ends AS (
        SELECT cluster, node, min(i."start") AS first, max(i."end") AS last
        FROM (SELECT DISTINCT cluster, node FROM coverage WHERE cluster IS NOT NULL AND node IS NOT NULL)
        LEFT JOIN inside i USING (cluster, node) GROUP BY ALL
    ), outside AS (
        SELECT cluster, node, coalesce({since}, known.first) AS "start",
            coalesce(ends.first, {until}, known.last) AS "end"
        FROM ends, known WHERE ends.first IS NULL OR {since} IS NOT NULL
        UNION ALL
        SELECT cluster, node, ends.last AS "start", {until} AS "end" FROM ends
    )
    SELECT * FROM inside
    UNION ALL
    SELECT {columns} FROM outside WHERE epoch_ns("end") - epoch_ns("start") > {SLACK_NS}"""


_KEPT: Final = ("cluster", "node", "start", "end")


def seconds(window: Window, node: str | None) -> str:
    """One row for each node and second in the window, or as far as the lake tells of the node."""
    second = NANOSECONDS
    since_ns = None if window.since_ns is None else window.since_ns // second * second
    until_ns = None if window.until_ns is None else -(-window.until_ns // second) * second
    whole = Window(since_ns, until_ns)
    of_packets = [whole.overlaps("ts", "ts"), *whole.days()]

    def within(first: str, last: str) -> str:
        """The seconds that a row touches, of the window."""
        begin = f"{first} // {second} * {second}"
        since = begin if since_ns is None else f"greatest({begin}, {since_ns})"
        until = last if until_ns is None else f"least({last}, {until_ns})"
        return f"unnest(range({since}, {until}, {second})) AS ns"

    return f"""
    WITH told AS (
        SELECT *, epoch_ns("start") AS since, epoch_ns("end") AS until FROM coverage
    ), of_node AS (
        SELECT cluster, node, kind, complete, {_DROPPED} AS lost, drops_kernel IS NOT NULL AS is_counted, since, until,
            {within("since", "until")}
        FROM told WHERE node IS NOT NULL AND {_of(node)}
    ), states AS (
        SELECT cluster, node, ns, bool_or(NOT complete AND kind <> 'dropped') AS is_lacking,
            bool_and(coalesce(complete, false)) AS is_whole, bool_and(is_counted) AS is_counted,
            CASE WHEN min(kind) = max(kind) THEN min(kind)
                ELSE array_to_string(list_sort(list_distinct(list(kind))), ', ') END AS kinds,
            coalesce(sum(lost) FILTER (kind = 'dropped'), 0)::BIGINT AS dropped,
            min(since) FILTER (kind = 'dropped') AS dropped_since, max(until) FILTER (kind = 'dropped') AS dropped_until
        FROM of_node GROUP BY cluster, node, ns
    ), spans AS (
        SELECT cluster, node, min(since) AS first, max(until) AS last
        FROM told WHERE node IS NOT NULL AND {_of(node)} GROUP BY cluster, node
    ), every AS (
        SELECT *, unnest(range({f"first // {second} * {second}" if since_ns is None else since_ns},
            {"last" if until_ns is None else until_ns}, {second})) AS ns
        FROM spans
    ), captured AS (
        SELECT node, epoch_ns(ts) // {second} * {second} AS ns, count(*) AS packets
        FROM packets WHERE {" AND ".join(of_packets)} AND {_of(node)} GROUP BY ALL
    ), unseen AS (
        SELECT DISTINCT cluster, {within("since", "until")} FROM told WHERE kind = 'journal'
    )
    SELECT e.cluster, e.node, {_time("e.ns")} AS second, coalesce(c.packets, 0) AS packets,
        CASE WHEN s.is_lacking THEN false
            WHEN e.first > e.ns OR e.last < e.ns + {second} THEN CASE WHEN e.cluster IS NOT NULL THEN false END
            WHEN s.is_whole THEN true END AS complete,
        coalesce(s.kinds, '') AS kinds, CASE WHEN s.is_counted THEN s.dropped END AS dropped,
        {_time("s.dropped_since")} AS dropped_since, {_time("s.dropped_until")} AS dropped_until,
        EXISTS (FROM unseen u WHERE u.ns = e.ns AND (u.cluster IS NULL OR u.cluster = e.cluster)) AS journal_gap
    FROM every e
    LEFT JOIN states s ON s.cluster IS NOT DISTINCT FROM e.cluster AND s.node = e.node AND s.ns = e.ns
    LEFT JOIN captured c ON c.node = e.node AND c.ns = e.ns
    ORDER BY e.node, e.cluster, e.ns"""


def _of(node: str | None) -> str:
    return "true" if node is None else f"node = {quoted(node)}"


def _time(ns: str) -> str:
    return f"make_timestamp_ns({ns})::TIMESTAMPTZ_NS"
