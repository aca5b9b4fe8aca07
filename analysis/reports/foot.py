"""The foot of a report: what was left out, the window, what went astray, how complete the data is, and the zone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analysis.reports.completeness import completeness, why_empty
from analysis.reports.filters import Filters
from analysis.reports.report import REPORTS, Report
from analysis.reports.stale import stale_connections
from analysis.reports.window import Window

if TYPE_CHECKING:
    from analysis.lake_reader import Lake


def foot(lake: Lake, report: Report, name: str, window: Window, filters: Filters) -> list[str]:
    """One sentence a line."""
    notes = []
    if not report.total:
        notes.append(why_empty(lake, REPORTS[name].table, window, filters))
    elif report.rows.num_rows < report.total:
        notes.append(f"{report.rows.num_rows:,} of {report.total:,} rows, {report.order_text}; --limit 0 shows all")
    if not window.is_everything:
        by_the_minute = name not in ("dns", "coverage") and not window.is_whole_minutes
        notes.append(f"active from {window}" + by_the_minute * "; a minute that is partly inside counts whole")
    if name == "flows":
        notes += stale_connections(lake, window, filters)
    return [*notes, *completeness(lake, window).notes(_counted(report, name)), "times in UTC"]


def _counted(report: Report, name: str) -> str:
    """What a gap makes a lower bound."""
    if name != "retransmits":
        return "counts"
    if report.rows.num_rows < report.total:
        return "retransmissions"
    number = sum(row["retransmitted_tcp_segments"] for row in report.dicts())
    return f"{number:,} {'retransmission' if number == 1 else 'retransmissions'}"
