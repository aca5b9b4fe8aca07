"""Ask a report of a lake: the same for the command and for Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from analysis.errors import UsageError
from analysis.reports import coverage, dns, flows, paths, retransmits
from analysis.reports.columns import ReportColumn
from analysis.reports.connections import Points
from analysis.reports.filters import Filters
from analysis.reports.sides import LEVELS
from analysis.reports.window import Window

if TYPE_CHECKING:
    import pyarrow as pa

    from analysis.lake_reader import Lake


@dataclass(frozen=True)
class ReportKind:
    """One of the reports: the table it is about, its columns at a level, its SQL and its order."""

    table: str
    columns: Callable[[str], Sequence[ReportColumn]]
    sql: Callable[[Window, Filters, str, Points], str]
    order: str
    order_text: str


REPORTS: Final = {
    "flows": ReportKind("flows", lambda by: flows.COLUMNS, flows.sql, flows.ORDER, flows.ORDER_TEXT),
    "retransmits": ReportKind(
        "retransmits", lambda by: retransmits.COLUMNS, retransmits.sql, retransmits.ORDER, retransmits.ORDER_TEXT
    ),
    "paths": ReportKind("hops", lambda by: paths.COLUMNS, paths.sql, paths.ORDER, paths.ORDER_TEXT),
    "dns": ReportKind("dns", dns.columns, dns.sql, dns.ORDER, dns.ORDER_TEXT),
    "coverage": ReportKind("coverage", lambda by: coverage.COLUMNS, coverage.sql, coverage.ORDER, coverage.ORDER_TEXT),
}


@dataclass(frozen=True)
class Report:
    """An answer: `rows` has exactly `columns`, times as timestamp[ns, UTC]; `total` counts rows before the limit."""

    columns: Sequence[ReportColumn]
    rows: pa.Table
    total: int
    order_text: str

    def dicts(self) -> list[dict[str, Any]]:
        """The rows as plain Python; times are nanoseconds since 1970, which datetime could not hold."""
        rows = self.rows
        for place, column in enumerate(self.columns):
            if column.unit == "time":
                rows = rows.set_column(place, column.name, rows[column.name].cast("int64"))
        return rows.to_pylist()


def make_report(
    lake: Lake,
    name: str,
    window: Window,
    filters: Filters,
    by: str = "pod",
    sort_by: str | None = None,
    limit: int | None = None,
) -> Report:
    """One of REPORTS; `limit` None gives all rows. Raises UsageError where `name`, `by` or `sort_by` does not exist."""
    kind = REPORTS.get(name)
    if kind is None:
        raise UsageError(f"there is no report '{name}'; there are {', '.join(REPORTS)}")
    if by not in LEVELS:
        raise UsageError(f"a report cannot be by '{by}'; it can be by {', '.join(LEVELS)}")
    columns = kind.columns(by)
    order, order_text = (kind.order, kind.order_text) if sort_by is None else _order(sort_by, columns)
    names = ", ".join(f'"{column.name}"' for column in columns)
    ties = ", ".join(f'"{column.name}"' for column in columns if column.unit in ("label", "text"))
    rows = lake.arrow(
        f"SELECT {names}, count(*) OVER () AS total FROM ({kind.sql(window, filters, by, lake.points)}) "
        f"ORDER BY {order}, {ties}" + ("" if limit is None else f" LIMIT {limit}")
    )
    total = rows["total"][0].as_py() if rows.num_rows else 0
    return Report(columns, rows.drop_columns(["total"]), total, order_text)


def _order(sort_by: str, columns: Sequence[ReportColumn]) -> tuple[str, str]:
    """Names from A to Z, figures from the largest down; what is missing comes last."""
    units = {column.name: column.unit for column in columns}
    if sort_by not in units:
        raise UsageError(f"this report has no column '{sort_by}'; it has {', '.join(units)}")
    if units[sort_by] in ("label", "text"):
        return f'"{sort_by}" ASC NULLS LAST', f"by {sort_by}"
    return f'"{sort_by}" DESC NULLS LAST', f"largest {sort_by} first"
