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
    return f"""
    WITH told AS (
        SELECT *, epoch_ns("start") AS since, epoch_ns("end") AS until, {_DROPPED} AS lost
        FROM coverage WHERE {_of(node)}
    ), spans AS (
        SELECT cluster, node, min(since) AS first, max(until) AS last
        FROM told WHERE node IS NOT NULL GROUP BY cluster, node
    ), nodes AS (
        SELECT *, unnest(range({f"first // {second} * {second}" if since_ns is None else since_ns},
            {"last" if until_ns is None else until_ns}, {second})) AS ns
        FROM spans
    ), captured AS (
        SELECT node, epoch_ns(ts) // {second} * {second} AS ns, count(*) AS packets
        FROM packets WHERE {" AND ".join(of_packets)} AND {_of(node)} GROUP BY ALL
    ), states AS (
        SELECT n.cluster, n.node, n.ns, coalesce(string_agg(DISTINCT t.kind, ', ' ORDER BY t.kind), '') AS kinds,
            CASE WHEN bool_or(NOT t.complete AND t.kind <> 'dropped') THEN false
                WHEN any_value(n.first) > n.ns OR any_value(n.last) < n.ns + {second}
                    THEN CASE WHEN n.cluster IS NOT NULL THEN false END
                WHEN count(*) = count(*) FILTER (t.complete) THEN true END AS complete,
            CASE WHEN count(*) = count(t.drops_kernel)
                THEN coalesce(sum(t.lost) FILTER (t.kind = 'dropped'), 0) END AS dropped,
            min(t.since) FILTER (t.kind = 'dropped') AS dropped_since,
            max(t.until) FILTER (t.kind = 'dropped') AS dropped_until
        FROM nodes n LEFT JOIN told t ON n.cluster IS NOT DISTINCT FROM t.cluster AND n.node = t.node
            AND t.since < n.ns + {second} AND t.until > n.ns
        GROUP BY n.cluster, n.node, n.ns
    )
    SELECT s.cluster, s.node, {_time("s.ns")} AS second, coalesce(c.packets, 0) AS packets, s.complete, s.kinds,
        s.dropped::BIGINT AS dropped,
        {_time("s.dropped_since")} AS dropped_since, {_time("s.dropped_until")} AS dropped_until,
        EXISTS (
            FROM coverage j WHERE j.kind = 'journal' AND (j.cluster IS NULL OR j.cluster = s.cluster)
                AND epoch_ns(j."start") < s.ns + {second} AND epoch_ns(j."end") > s.ns
        ) AS journal_gap
    FROM states s LEFT JOIN captured c ON s.node = c.node AND s.ns = c.ns
    ORDER BY s.node, s.cluster, s.ns"""


def _of(node: str | None) -> str:
    return "true" if node is None else f"node = {quoted(node)}"


def _time(ns: str) -> str:
    return f"make_timestamp_ns({ns})::TIMESTAMPTZ_NS"
