"""Connections that were sent to endpoints which had been removed from their service, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from analysis.reports.connections import IS_STALE, chosen_connections
from analysis.reports.filters import Filters
from analysis.reports.window import NANOSECONDS, Window

if TYPE_CHECKING:
    from analysis.lake_reader import Lake

SHOWN: Final = 3


def stale_connections(lake: Lake, window: Window, filters: Filters) -> list[str]:
    """A sentence for each endpoint, that with most connections first."""
    rows = lake.arrow(
        f"""WITH chosen AS ({chosen_connections(window, filters)})
        SELECT count(*) AS connections, c.endpoint_of, c.endpoint_pod, c.backend_ip, c.backend_port,
            min(c.endpoint_removed_ns) AS least_ns, max(c.endpoint_removed_ns) AS most_ns
        FROM connections c SEMI JOIN chosen USING (connection_uid)
        WHERE {IS_STALE} AND {window.overlaps("c.first_seen", "c.last_seen")}
        GROUP BY ALL ORDER BY connections DESC, most_ns DESC, c.endpoint_of, c.backend_ip, c.backend_port"""
    ).to_pylist()
    notes = [_sentence(row) for row in rows[:SHOWN]]
    if more := sum(row["connections"] for row in rows[SHOWN:]):
        notes.append(f"and {more:,} more to {len(rows) - SHOWN:,} others: see endpoint in the table connections")
    return notes


def _sentence(row: dict[str, Any]) -> str:
    number, ip = row["connections"], row["backend_ip"]
    who = "1 connection was" if number == 1 else f"{number:,} connections were"
    address = f"[{ip}]:{row['backend_port']}" if ":" in ip else f"{ip}:{row['backend_port']}"
    pod = f", pod {row['endpoint_pod']}" if row["endpoint_pod"] else ""
    removed = f"had been removed{_ago(row['least_ns'], row['most_ns'])}"
    return f"{who} sent to an endpoint of {row['endpoint_of']} that {removed} ({address}{pod})"


def _ago(least_ns: int | None, most_ns: int | None) -> str:
    if least_ns is None or most_ns is None:
        return ""
    least, most = (f"{ns / NANOSECONDS:,.1f}" for ns in (least_ns, most_ns))
    return f" {least} s before" if least == most else f" {least} to {most} s before"
