"""`podtap report flows`: who talked to whom, how much, and how well."""

from __future__ import annotations

from typing import Final

from analysis.reports.columns import WIDE, ReportColumn, sides
from analysis.reports.connections import Points, flows_by_side
from analysis.reports.filters import FLOW_SIDES, Filters
from analysis.reports.sides import PARTS, side_label
from analysis.reports.window import Window

FAILED_STATES: Final = ("S0", "REJ", "RSTO", "RSTR", "RSTOS0", "RSTRH")
"""TCP connections that nobody answered, that were refused, or that a reset ended (Zeek's conn_state).

Not SH and SHR: they end in a FIN, which only an established connection sends; the capture missed one direction.
"""

COLUMNS: Final = (
    *sides(FLOW_SIDES),
    ReportColumn("connections", "CONNS", "count", "connections, and conversations of other protocols"),
    ReportColumn("failed", "FAILED", "bad", f"TCP connections that ended as {', '.join(FAILED_STATES)}"),
    ReportColumn(
        "stale",
        "STALE",
        "bad",
        "connections sent to an endpoint that had been removed from its service; null if of none it is known",
        rank=WIDE,
    ),
    ReportColumn("orig_bytes", "SENT", "bytes", "payload from orig, retransmissions not counted twice"),
    ReportColumn("resp_bytes", "RECEIVED", "bytes", "payload from resp"),
    ReportColumn("tcp_segments", "SEGMENTS", "count", "TCP segments with data, SYN or FIN, both ways", rank=3),
    ReportColumn("retransmitted_tcp_segments", "RETRANS", "bad", "of these, retransmissions", rank=1),
    ReportColumn("retransmit_rate", "RATE", "share", "their share; null without TCP segments"),
    ReportColumn("handshake_rtt_p50_ns", "RTT P50", "ns", "TCP handshake, SYN to ACK: median", rank=2),
    ReportColumn("handshake_rtt_p95_ns", "RTT P95", "ns", "95th percentile", rank=9),
    ReportColumn("handshake_rtt_p99_ns", "RTT P99", "ns", "99th percentile", rank=2),
)

ORDER: Final = "failed DESC, orig_bytes + resp_bytes DESC, connections DESC"
ORDER_TEXT: Final = "most failed first, then most bytes"


def sql(window: Window, filters: Filters, by: str, points: Points) -> str:
    """One row for each pair of sides at the level `by`, with COLUMNS."""
    keys = ", ".join(f"{side}_{part}" for side in FLOW_SIDES for part in PARTS)
    failed = f"is_primary AND protocol = 'TCP' AND conn_state IN {FAILED_STATES}"
    return f"""
    WITH {flows_by_side(window, filters, by, points)},
    pairs AS (
        SELECT {keys},
            count(*) FILTER (is_primary) AS connections,
            count(*) FILTER ({failed}) AS failed,
            CASE WHEN bool_or(endpoint <> 'unknown') THEN count(*) FILTER (is_primary AND is_stale) END AS stale,
            {_total("orig_bytes", "is_primary")} AS orig_bytes,
            {_total("resp_bytes", "is_primary")} AS resp_bytes,
            {_total("orig_tcp_segments", "counts_orig")} + {_total("resp_tcp_segments", "counts_resp")} AS tcp_segments,
            {_total("orig_retransmits", "counts_orig")} + {_total("resp_retransmits", "counts_resp")}
                AS retransmitted_tcp_segments,
            quantile_disc(handshake_rtt_ns, [0.5, 0.95, 0.99]) FILTER (is_primary) AS rtt
        FROM sided GROUP BY ALL
    )
    SELECT {side_label("orig")}, {side_label("resp")}, {keys},
        connections, failed, stale, orig_bytes, resp_bytes, tcp_segments, retransmitted_tcp_segments,
        retransmitted_tcp_segments / nullif(tcp_segments, 0) AS retransmit_rate,
        rtt[1] AS handshake_rtt_p50_ns, rtt[2] AS handshake_rtt_p95_ns, rtt[3] AS handshake_rtt_p99_ns
    FROM pairs"""


def _total(figure: str, counts: str) -> str:
    return f"coalesce(sum({figure}) FILTER ({counts}), 0)::BIGINT"
