"""Every connection once, although it was seen at several observation points.

A capture of all interfaces of a node shows one connection at the pod's interface, the bridge and the overlay device,
and the other node shows it again; each is a flow. Adding them up would tell three times what happened. The derived
tables say which flows are one connection, and which of them counts. In a lake that has none (yet), flows of one
Community ID at different points that overlap in time are taken as one connection, and each figure from the flow that
knows it best:

- traffic, outcome and handshake from the flow that began first, the point nearest to orig; but not where packets went
  past that point: orig acknowledges what was not seen, or another point saw twice as many TCP segments of orig (a
  bridge sees one direction only, or the first packet only, where NAT turns the rest on its way); nor, as UDP does not
  acknowledge, where the answers are known by resp's other address: at that point, or at one that saw orig before it;
- TCP segments and retransmissions of a sender from the flow that saw most of its TCP segments: the point nearest to
  the sender, for loss only takes away.

There, a connection through NAT has one Community ID on either side of it and is counted on both.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from analysis.reports.filters import CONNECTION_SIDES, FLOW_SIDES, Filters
from analysis.reports.sides import side_parts
from analysis.reports.window import Window
from analysis.schemas import identity_columns

POINT: Final = "node, interface, encapsulation"
SLACK_NS: Final = 1_000_000_000
"""Two points see a packet at different times, the more so if two clocks tell them."""
_ANSWERS_WITHIN_NS: Final = 10 * SLACK_NS
"""How long after the last question an answer may come by UDP, and how long a port is taken to be with one socket."""

_STALE_NS: Final = 60 * SLACK_NS
"""Sockets go on being balanced to an endpoint that is gone for no longer than this; then somebody means the pod."""
IS_STALE: Final = f"""(c.endpoint IS NOT DISTINCT FROM 'removed'
    AND (c.resp_service IS NOT NULL OR coalesce(c.endpoint_removed_ns <= {_STALE_NS}, false)))"""
"""SQL: whether a row c of connections was sent to an endpoint of a service that had been removed."""

_IDENTITY_OF: Final = {side: [column.name for column in identity_columns(side, side)] for side in FLOW_SIDES}


class Points(Enum):
    """What a lake says of its observation points."""

    ONE = 1
    """There is only one: every flow is a connection."""
    SEVERAL = 2
    """There are several, and nobody has stitched their flows yet."""
    STITCHED = 3
    """The tables connections and connection_flows are there."""


FIGURES: Final = (
    "orig_packets",
    "orig_bytes",
    "resp_packets",
    "resp_bytes",
    "orig_tcp_segments",
    "resp_tcp_segments",
    "orig_retransmits",
    "resp_retransmits",
)
"""What flow_minutes has by the minute and flows has of the whole flow."""


def flows_by_side(window: Window, filters: Filters, by: str, points: Points) -> str:
    """CTEs that end in `sided`: one row a flow, its sides at the level `by`, and its figures within the window.

    `is_primary` marks the flow whose traffic counts, `counts_orig` and `counts_resp` the one whose TCP segments of that
    sender count; `is_reversed` says that the flow itself calls orig resp.
    """
    if points is Points.STITCHED:
        return _stitched(window, filters, by)
    several_points = points is Points.SEVERAL
    where = f"{flows_in(window)} AND {filters.sql(FLOW_SIDES)}"
    return f"""{_turned(window) + "," if several_points else ""}
    seen AS NOT MATERIALIZED ({_SEEN if window.is_everything else _seen_in(window)} WHERE {where}),
    counted AS ({_ONCE if several_points else _ALL}),
    sided AS (
        SELECT flow_uid, protocol, conn_state, handshake_rtt_ns, {", ".join(FIGURES)},
               is_primary, counts_orig, counts_resp, false AS is_reversed, NULL AS endpoint, false AS is_stale,
               {", ".join(side_parts(side, by) for side in FLOW_SIDES)}
        FROM counted t
    )"""


def _stitched(window: Window, filters: Filters, by: str) -> str:
    """The same where connections are known: a side is called by all that any of its flows tells of it.

    Resp is the service that orig spoke to, and the pod behind it.
    """
    figures = ", ".join(
        f"CASE WHEN is_reversed THEN {_of_other_side(figure)} ELSE {figure} END AS {figure}" for figure in FIGURES
    )
    orig = ", ".join(f"c.{column}" for column in _IDENTITY_OF["orig"])
    resp = ", ".join(
        f"CASE WHEN c.backend_pod IS NULL THEN c.{column} ELSE c.{column.replace('resp', 'backend', 1)} END AS {column}"
        for column in _IDENTITY_OF["resp"]
        if column != "resp_service"
    )
    return f"""
    seen AS NOT MATERIALIZED (
        {_SEEN if window.is_everything else _seen_in(window)} WHERE {flows_in(window)}
    ),
    chosen AS ({chosen_connections(window, filters)}),
    counted AS (
        SELECT s.flow_uid, s.protocol, s.conn_state, s.handshake_rtt_ns, s.server_name, {figures},
            f.is_primary, f.counts_orig, f.counts_resp, f.is_reversed,
            {orig}, c.orig_ip, {resp}, c.resp_service, c.resp_ip, c.endpoint, {IS_STALE} AS is_stale
        FROM seen s JOIN connection_flows f USING (flow_uid) JOIN connections c USING (connection_uid)
        SEMI JOIN chosen USING (connection_uid)
        WHERE f.is_primary OR f.counts_orig OR f.counts_resp
    ),
    sided AS (
        SELECT flow_uid, protocol, conn_state, handshake_rtt_ns, {", ".join(FIGURES)},
               is_primary, counts_orig, counts_resp, is_reversed, endpoint, is_stale,
               {", ".join(side_parts(side, by) for side in FLOW_SIDES)}
        FROM counted t
    )"""


def chosen_connections(window: Window, filters: Filters) -> str:
    """SQL: the connections that the filters choose: by what they are called, not their flows, and where they were seen.

    A flow is called by its own node's clock, a connection by the reference node's.
    """
    return f"""SELECT DISTINCT connection_uid FROM connections JOIN connection_flows USING (connection_uid)
        JOIN (SELECT flow_uid, node FROM flows WHERE {flows_in(window)}) USING (flow_uid)
        WHERE {filters.sql(CONNECTION_SIDES)}"""


def _of_other_side(figure: str) -> str:
    side, _, what = figure.partition("_")
    return f"{'resp' if side == 'orig' else 'orig'}_{what}"


def flows_in(window: Window) -> str:
    """SQL: flows that can have been active in the window, however long before it they began."""
    return " AND ".join([window.overlaps("first_seen", "last_seen"), *window.days_until()])


def _seen_in(window: Window) -> str:
    """Flows with the figures of their minutes in the window in place of their own."""
    sums = ", ".join(f"sum({figure})::BIGINT AS {figure}" for figure in FIGURES)
    return f"""SELECT f.* EXCLUDE ({", ".join(FIGURES)}), active.* EXCLUDE (flow_uid) FROM flows f JOIN (
        SELECT flow_uid, {sums} FROM flow_minutes WHERE {window.minutes()} GROUP BY flow_uid
    ) active USING (flow_uid)"""


_SEEN: Final = "SELECT * FROM flows"

_ALL: Final = "SELECT *, true AS is_primary, true AS counts_orig, true AS counts_resp FROM seen"


def _turned(window: Window) -> str:
    """CTE `turned`: UDP flows without an answer at a point, only because NAT led the answers past it.

    One port may speak to many; a point that saw it do so within a few seconds speaks for itself. Whatever the filters
    leave out may be the evidence.
    """
    return f"""
    udp AS MATERIALIZED (
        SELECT hash(node, orig_ip, orig_port) AS client, hash(interface, encapsulation) AS point, hash(resp_ip) AS resp,
            hash(flow_uid) AS id, orig_packets > 0 AS asked, resp_packets > 0 AS answered,
            epoch_ns(first_seen) AS first_ns, epoch_ns(last_seen) AS last_ns
        FROM flows WHERE protocol = 'UDP' AND {flows_in(window)}
    ), asking AS (
        SELECT *, first_ns - {_ANSWERS_WITHIN_NS} > coalesce(max(last_ns) OVER (
            port ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ), 0) AND last_ns + {_ANSWERS_WITHIN_NS} < coalesce(lead(first_ns) OVER port, {2**63 - 1}) AS is_alone
        FROM udp SEMI JOIN (FROM udp WHERE NOT answered) USING (client, point)
        WHERE asked WINDOW port AS (PARTITION BY client, point ORDER BY first_ns, id)
    ), unanswered AS (
        FROM asking WHERE is_alone AND NOT answered
    ), turned AS (  -- the nearest in time is enough, and a port may have ten thousand flows
        SELECT q.id FROM unanswered q ASOF JOIN (FROM udp WHERE asked AND answered) r
            ON q.client = r.client AND q.first_ns >= r.first_ns
            WHERE q.point <> r.point AND q.resp <> r.resp AND q.first_ns <= r.last_ns
        UNION
        SELECT q.id FROM unanswered q ASOF JOIN (FROM udp WHERE NOT asked AND answered) r
            ON q.client = r.client AND q.point = r.point AND q.first_ns <= r.first_ns
            WHERE q.resp <> r.resp AND r.first_ns - q.last_ns <= {_ANSWERS_WITHIN_NS}
    )"""


_ONCE: Final = f"""
    WITH narrow AS (  -- hashes: sorting ten million texts takes four times as long
        SELECT flow_uid, hash(community_id) AS community, hash({POINT}) AS point, orig_tcp_segments, resp_tcp_segments,
            orig_packets = 0 OR (resp_packets = 0 AND contains(history, 'A'))
                OR (protocol = 'UDP' AND hash(flow_uid) IN (FROM turned)) AS is_one_way,
            epoch_ns(first_seen) AS first_ns, epoch_ns(last_seen) AS last_ns, hash(flow_uid) AS tie
        FROM seen
    ), begins AS (
        SELECT *, coalesce(first_ns > {SLACK_NS} + max(last_ns) OVER (
            PARTITION BY community ORDER BY first_ns, tie ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ), true) AS begins_stretch
        FROM narrow
    ), overlapping AS (
        SELECT *, count(*) FILTER (begins_stretch) OVER (PARTITION BY community ORDER BY first_ns, tie) AS stretch
        FROM begins
    ), at_point AS (
        -- Flows that one point tells apart (another VLAN, a port used again at once) are different connections.
        SELECT *, row_number() OVER (PARTITION BY community, stretch, point ORDER BY first_ns, tie) AS nth
        FROM overlapping
    ), compared AS (
        SELECT *, is_one_way OR 2 * orig_tcp_segments < max(orig_tcp_segments) OVER (
            PARTITION BY community, stretch, nth
        ) AS is_bypassed
        FROM at_point
    ), ranked AS (
        SELECT flow_uid,
            row_number() OVER (c ORDER BY is_bypassed, first_ns, tie) = 1 AS is_primary,
            row_number() OVER (c ORDER BY orig_tcp_segments DESC, first_ns, tie) = 1 AS counts_orig,
            row_number() OVER (c ORDER BY resp_tcp_segments DESC, first_ns DESC, tie) = 1 AS counts_resp
        FROM compared WINDOW c AS (PARTITION BY community, stretch, nth)
    )
    SELECT * FROM seen JOIN ranked USING (flow_uid)
"""
