"""`podtap report dns`: how long lookups took, and what went wrong with them, by client, server or name."""

from __future__ import annotations

from typing import Final

from analysis.reports.columns import ReportColumn, sides
from analysis.reports.connections import SLACK_NS, Points
from analysis.reports.filters import DNS_SIDES, FLOW_SIDES, Filters
from analysis.reports.sides import PARTS, side_label, side_parts
from analysis.reports.window import Window
from analysis.schemas import identity_columns

FIGURES: Final = (
    ReportColumn("queries", "QUERIES", "count", "questions asked, each once however often it was repeated"),
    ReportColumn("latency_p50_ns", "P50", "ns", "first query to response: median", rank=1),
    ReportColumn("latency_p95_ns", "P95", "ns", "95th percentile", rank=2),
    ReportColumn("latency_p99_ns", "P99", "ns", "99th percentile"),
    ReportColumn("latency_max_ns", "MAX", "ns", "longest", rank=3),
    ReportColumn("unanswered", "UNANSWERED", "bad", "questions without a response in the capture"),
    ReportColumn("retries", "RETRIES", "bad", "queries sent again before the response"),
    ReportColumn("nxdomain", "NXDOMAIN", "count", "answered: no such name", rank=4),
    ReportColumn("servfail", "SERVFAIL", "bad", "answered: the server failed", rank=4),
    ReportColumn("search_expansions", "SEARCH", "count", "walks of the search list (ndots): asked for nothing", rank=5),
    ReportColumn("unmatched_responses", "UNMATCHED", "count", "responses to queries the capture has not", rank=9),
)

ORDER: Final = "unanswered + servfail DESC, retries DESC, queries DESC"
ORDER_TEXT: Final = "most unanswered and failed first, then most retries"


def columns(by: str) -> tuple[ReportColumn, ...]:
    """By name: the name; by service: the servers; else the clients."""
    if by == "name":
        return (ReportColumn("name", "NAME", "label", "the name asked for; null where unreadable"), *FIGURES)
    return (*sides([_side(by)]), *FIGURES)


def sql(window: Window, filters: Filters, by: str, points: Points) -> str:
    """One row for each client, server or name, with the columns of `columns(by)`."""
    if by == "name":
        label, keys, parts = "query AS name", "query", "query"
    else:
        side = _side(by)
        label, parts = side_label(side), side_parts(side, by)
        keys = ", ".join(f"{side}_{part}" for part in PARTS)
        label = f"{label}, {keys}"
    chosen = filters.sql(DNS_SIDES)
    counted = {Points.ONE: "SELECT * FROM seen", Points.SEVERAL: _ONCE, Points.STITCHED: _PRIMARY.format(chosen)}
    if points is Points.STITCHED:
        chosen = "true"
    return f"""
    WITH {_bypassed(window) + "," if points is Points.SEVERAL else ""}
    seen AS (SELECT * FROM dns WHERE {" AND ".join([*lookups_in(window), chosen])}),
    counted AS ({counted[points]}),
    sided AS (
        SELECT {parts}, latency_ns, status, attempts, rcode, search_expansion, attempts > 0 AS asked FROM counted t
    ),
    lookups AS (
        SELECT {keys},
            count(*) FILTER (asked) AS queries,
            quantile_disc(latency_ns, [0.5, 0.95, 0.99]) FILTER (asked) AS latency,
            max(latency_ns) AS latency_max_ns,
            count(*) FILTER (status = 'unanswered') AS unanswered,
            coalesce(sum(attempts - 1) FILTER (asked), 0)::BIGINT AS retries,
            count(*) FILTER (asked AND rcode = 'NXDOMAIN') AS nxdomain,
            count(*) FILTER (asked AND rcode = 'SERVFAIL') AS servfail,
            count(*) FILTER (asked AND search_expansion) AS search_expansions,
            count(*) FILTER (NOT asked) AS unmatched_responses
        FROM sided GROUP BY ALL
    )
    SELECT {label}, queries, latency[1] AS latency_p50_ns, latency[2] AS latency_p95_ns, latency[3] AS latency_p99_ns,
        latency_max_ns, unanswered, retries, nxdomain, servfail, search_expansions, unmatched_responses
    FROM lookups"""


def lookups_in(window: Window) -> list[str]:
    """SQL conditions: lookups that were under way in the window; they may have begun the day before."""
    return [window.overlaps("ts", "coalesce(response_ts, ts)"), *window.days(slack_days=1)]


def _side(by: str) -> str:
    return "server" if by == "service" else "client"


_KEY: Final = "client_ip, client_port, server_ip, server_port, transport, trans_id, query, qtype"

_LOOKUP: Final = "hash(node, client_ip, client_port, transport, trans_id, query, qtype)"
_ROW: Final = "hash(flow_uid, ts, trans_id, query, qtype)"
_WAITS_NS: Final = 300 * 1_000_000_000
"""How long a query may wait for its answer: UNANSWERED_AFTER_NS of dns_kernels.py."""


def _bypassed(window: Window) -> str:
    """CTE `bypassed`: lookups that look unanswered at a point only because NAT led their answers past it.

    A bridge may show queries after DNAT and answers before it is undone: the same lookup with two servers. It was
    answered for all that if the answer has the other server's address at this very point, or if a point that saw the
    query before this one saw its answer with the other address. An answer that was lost is at neither. Clients do ask
    two servers with one id and port (musl); then this point has seen them ask both, and speaks for itself.
    Whatever the filters leave out may be the evidence.
    """
    return f"""
    narrow AS (
        SELECT {_LOOKUP} AS lookup, hash(interface) AS point, hash(server_ip) AS server, {_ROW} AS id, status,
            attempts > 0 AS asked, epoch_ns(ts) AS ns, epoch_ns(response_ts) AS response_ns
        FROM dns WHERE {" AND ".join(lookups_in(window))}
    ), asks_one AS (
        SELECT lookup, point FROM narrow WHERE asked GROUP BY ALL HAVING min(server) = max(server)
    ), bypassed AS (
        SELECT DISTINCT q.id FROM (FROM narrow SEMI JOIN asks_one USING (lookup, point) WHERE status = 'unanswered') q
        JOIN narrow r ON q.lookup = r.lookup AND q.server <> r.server AND CASE r.status
            WHEN 'unmatched_response' THEN q.point = r.point AND r.ns - q.ns BETWEEN 0 AND {_WAITS_NS}
            WHEN 'answered' THEN q.point <> r.point AND q.ns BETWEEN r.ns AND r.response_ns
            ELSE false
        END
    )"""


_NAMES: Final = ", ".join(
    f"c.{column.name} AS {side}{column.name.removeprefix(of)}"
    for side, of in zip(DNS_SIDES, FLOW_SIDES, strict=True)
    for column in identity_columns(of, of)
)
_PRIMARY: Final = f"""
    -- A lookup is that of its connection's primary flow, and named as the connection is: by the reference node's clock.
    -- The filters choose connections by any of their flows.
    SELECT seen.* REPLACE ({_NAMES})
    FROM seen JOIN connection_flows USING (flow_uid) JOIN connections c USING (connection_uid)
    WHERE is_primary AND connection_uid IN (
        SELECT connection_uid FROM seen JOIN connection_flows USING (flow_uid) WHERE {{}}
    )"""

_ONCE: Final = f"""
    -- A lookup seen at several observation points is one: that of the point nearest to the client, which saw it first.
    -- But not where the answer went past that point.
    WITH begins AS (
        SELECT *, status = 'unanswered' AND {_ROW} IN (FROM bypassed) AS is_bypassed,
            coalesce(epoch_ns(ts) > {SLACK_NS} + max(epoch_ns(coalesce(response_ts, ts))) OVER (
            PARTITION BY {_KEY} ORDER BY ts, flow_uid ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ), true) AS begins_lookup
        FROM seen
    ), overlapping AS (
        SELECT *, count(*) FILTER (begins_lookup) OVER (PARTITION BY {_KEY} ORDER BY ts, flow_uid) AS stretch
        FROM begins
    ), at_point AS (
        SELECT *, row_number() OVER (PARTITION BY {_KEY}, stretch, flow_uid ORDER BY ts) AS nth
        FROM overlapping
    )
    SELECT * FROM at_point QUALIFY row_number() OVER (
        PARTITION BY {_KEY}, stretch, nth ORDER BY attempts = 0, is_bypassed, ts, flow_uid) = 1
"""
