"""`podtap report paths`: over which hops the packets went, how long each took, and on which of them they were lost."""

from __future__ import annotations

from typing import Final

from analysis.reports.columns import WIDE, ReportColumn
from analysis.reports.connections import Points, chosen_connections
from analysis.reports.filters import Filters
from analysis.reports.window import Window

ENDS: Final = ("from", "to")
PLACE: Final = ("node", "interface", "kind", "pod", "encapsulation")

COLUMNS: Final = (
    ReportColumn("from", "FROM", "label", "the point that packets came from: node/interface+tunnel (kind of pod)"),
    ReportColumn("to", "TO", "label", "the next point; (beyond) is behind the last one, (before) ahead of the first"),
    *(
        ReportColumn(f"{end}_{part}", f"{end} {part}".upper(), "text", f"the {part} of `{end}`", rank=WIDE)
        for end in ENDS
        for part in PLACE
    ),
    ReportColumn("connections", "CONNS", "count", "connections whose path has this hop"),
    ReportColumn("packets", "PACKETS", "count", "packets compared: a sample of those that both points saw", rank=3),
    ReportColumn("latency_p50_ns", "P50", "ns", "how long they took: median", rank=1),
    ReportColumn("latency_p99_ns", "P99", "ns", "99th percentile"),
    ReportColumn("lost_packets", "LOST", "bad", "packets that were lost here and sent again", rank=2),
    ReportColumn("lost_tcp_segments", "LOST SEGMENTS", "bad", "TCP segments that were sent again for that"),
)

ORDER: Final = "lost_tcp_segments DESC, latency_p99_ns DESC NULLS LAST, connections DESC"
ORDER_TEXT: Final = "most lost first, then slowest"


def sql(window: Window, filters: Filters, by: str, points: Points) -> str:
    """One row for each hop, with COLUMNS; `by` says nothing here, and without stitched connections there are none."""
    del by, points
    keys = ", ".join(f"{end}_{part}" for end in ENDS for part in PLACE)
    lost = ", ".join(
        f"{prefix}_{part} AS {end}_{part}"
        for end, prefix in zip(ENDS, ("after", "before"), strict=True)
        for part in PLACE
    )
    same = " AND ".join(f"h.{key} IS NOT DISTINCT FROM l.{key}" for key in keys.split(", "))
    either = ", ".join(f"coalesce(h.{key}, l.{key}) AS {key}" for key in keys.split(", "))
    return f"""
    WITH chosen AS ({chosen_connections(window, filters)}),
    taken AS (
        SELECT {keys}, connection_uid, packets, latencies_ns FROM hops SEMI JOIN chosen USING (connection_uid)
        WHERE {window.overlaps("first_seen", "last_seen")}
    ),
    h AS (
        SELECT {keys}, count(DISTINCT connection_uid) AS connections, sum(packets)::BIGINT AS packets,
            list_sort(flatten(list(latencies_ns))) AS latencies
        FROM taken GROUP BY ALL
    ),
    l AS (
        SELECT {lost}, count(*) AS lost_packets, sum(tcp_segments)::BIGINT AS lost_tcp_segments
        FROM losses SEMI JOIN chosen USING (connection_uid) WHERE {window.overlaps("ts", "ts")} GROUP BY ALL
    )
    SELECT {_label("from", "(before)")}, {_label("to", "(beyond)")}, {keys}, connections, packets,
        {_quantile(0.5)} AS latency_p50_ns, {_quantile(0.99)} AS latency_p99_ns, lost_packets, lost_tcp_segments
    FROM (
        SELECT {either}, coalesce(connections, 0) AS connections, coalesce(packets, 0)::BIGINT AS packets, latencies,
            coalesce(lost_packets, 0) AS lost_packets, coalesce(lost_tcp_segments, 0)::BIGINT AS lost_tcp_segments
        FROM h FULL JOIN l ON {same}
    )"""


def _quantile(share: float) -> str:
    """Of a sorted list, the value that so many are at or below; null of an empty one."""
    return f"latencies[greatest(1, ceil({share} * len(latencies)))::BIGINT]"


def _label(end: str, outside: str) -> str:
    node, interface, kind, pod, encapsulation = (f"{end}_{part}" for part in PLACE)
    return f"""CASE WHEN {node} IS NULL THEN '{outside}'
        ELSE concat_ws('+', concat_ws('/', {node}, {interface}), {encapsulation})
            || CASE WHEN {kind} IS NULL THEN '' ELSE ' (' || concat_ws(' of ', {kind}, {pod}) || ')' END
        END AS "{end}\""""
