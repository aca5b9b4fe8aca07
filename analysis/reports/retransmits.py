"""`podtap report retransmits`: who had to send again, to whom, and how."""

from __future__ import annotations

from typing import Final

from analysis.reports.columns import ReportColumn, sides
from analysis.reports.connections import Points, flows_by_side
from analysis.reports.filters import Filters
from analysis.reports.sides import PARTS, side_label
from analysis.reports.window import Window

SIDES: Final = ("sender", "peer")

KINDS: Final = (
    "rto",
    "rto_recovery",
    "tlp",
    "fast",
    "unknown",
    "unseen_original",
    "spurious",
    "syn",
    "synack",
    "fin",
    "network_duplicate",
    "out_of_order",
    "keep_alive",
    "zero_window_probe",
    "capture_gap",
)
"""All of `retransmits.kind`, those that are retransmissions first; the last five are not and only look like it."""

SHOWN_KINDS: Final = {"rto": 4, "fast": 4, "tlp": 6, "syn": 5, "spurious": 6}
"""Kinds in a table that is not wide, with their rank there."""

COLUMNS: Final = (
    *sides(SIDES),
    ReportColumn("tcp_segments", "SEGMENTS", "count", "TCP segments with data, SYN or FIN from the sender", rank=1),
    ReportColumn("retransmitted_tcp_segments", "RETRANS", "bad", "of these, retransmissions, as the kernel counts"),
    ReportColumn("rate", "RATE", "share", "their share; null without TCP segments"),
    *(
        ReportColumn(kind, kind.upper(), "count", f"packets of kind {kind}", rank=SHOWN_KINDS.get(kind, 9))
        for kind in KINDS
    ),
    ReportColumn("delay_p50_ns", "DELAY P50", "ns", "time since the same data was sent before: median", rank=3),
    ReportColumn("delay_p99_ns", "DELAY P99", "ns", "99th percentile", rank=2),
    ReportColumn("first_ts", "FIRST", "time", "first retransmission", rank=9),
    ReportColumn("last_ts", "LAST", "time", "last retransmission", rank=7),
)

ORDER: Final = "retransmitted_tcp_segments DESC, tcp_segments DESC"
ORDER_TEXT: Final = "most retransmitted first"


def sql(window: Window, filters: Filters, by: str, points: Points) -> str:
    """One row for each sender and peer at the level `by` with a packet of any kind, with COLUMNS.

    Delays and times are those of retransmissions, without the packets that only look like it. Within a window,
    retransmissions count by their own time, and tcp_segments by the minute.
    """
    keys = ", ".join(f"{side}_{part}" for side in SIDES for part in PARTS)
    same = " AND ".join(
        f"senders.{side}_{part} IS NOT DISTINCT FROM again.{side}_{part}" for side in SIDES for part in PARTS
    )
    kinds = ", ".join(f"count(*) FILTER (kind = '{kind}') AS {kind}" for kind in KINDS)
    return f"""
    WITH {flows_by_side(window, filters, by, points)},
    senders AS NOT MATERIALIZED ({_sender("orig", "resp")} UNION ALL {_sender("resp", "orig")}),
    events AS (
        SELECT flow_uid, sender, kind, tcp_segments AS again, ts, delay_ns FROM retransmits
        WHERE kind IS NOT NULL AND {" AND ".join([window.overlaps("ts", "ts"), *window.days()])}
    ),
    again AS (
        SELECT {keys}, sum(again)::BIGINT AS retransmitted_tcp_segments, {kinds},
            quantile_disc(delay_ns, [0.5, 0.99]) FILTER (again > 0) AS delay,
            min(ts) FILTER (again > 0) AS first_ts, max(ts) FILTER (again > 0) AS last_ts
        FROM events JOIN senders USING (flow_uid, sender) GROUP BY ALL
    ),
    pairs AS (
        SELECT again.*, senders.tcp_segments FROM again JOIN (
            SELECT {keys}, sum(senders.sent)::BIGINT AS tcp_segments FROM senders SEMI JOIN again ON {same} GROUP BY ALL
        ) AS senders ON {same}
    )
    SELECT {side_label("sender")}, {side_label("peer")}, {keys}, tcp_segments, retransmitted_tcp_segments,
        retransmitted_tcp_segments / nullif(tcp_segments, 0) AS rate, {", ".join(KINDS)},
        delay[1] AS delay_p50_ns, delay[2] AS delay_p99_ns, first_ts, last_ts
    FROM pairs"""


def _sender(sender: str, peer: str) -> str:
    """One row a flow that counts for this sender: its parts and its peer's, and the TCP segments it sent."""
    parts = ", ".join(
        f"{side}_{part} AS {role}_{part}" for role, side in zip(SIDES, (sender, peer), strict=True) for part in PARTS
    )
    told = f"CASE WHEN is_reversed THEN '{peer}' ELSE '{sender}' END"
    return f"""SELECT flow_uid, {told} AS sender, {parts}, {sender}_tcp_segments AS sent
        FROM sided WHERE protocol = 'TCP' AND counts_{sender}"""
