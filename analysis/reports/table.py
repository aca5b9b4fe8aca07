"""A report as a table, fitted to the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from analysis.reports.columns import WIDE, ReportColumn
from analysis.reports.report import Report
from analysis.reports.window import time_text

GAP = 2
"""Blanks between two columns."""
LABEL_WIDTH = 14
"""Narrower than this a label says too little: then columns go instead."""
ALARMING_SHARE = 0.01
"""Retransmissions above this share of the TCP segments are felt by applications."""


def print_table(report: Report, console: Console, width: int | None, wide: bool) -> None:
    """The report as a table of at most `width` characters (None: as wide as it needs).

    Where it does not fit, first the columns of the highest rank go, then labels are shortened in the middle. Wide is
    every column, and labels whole.
    """
    columns = [column for column in report.columns if wide or column.rank < WIDE]
    rows = report.dicts()
    cells = {column.name: [_cell(column, row[column.name]) for row in rows] for column in columns}
    widths = {c.name: max(len(c.head), *(len(cell) for cell in cells[c.name])) for c in columns}
    if width is not None and not wide:
        columns = _fitting(columns, widths, width)
        _narrow_labels(columns, widths, width)
    _print_line(console, columns, widths, {c.name: c.head for c in columns}, {c.name: "bold" for c in columns})
    for at, row in enumerate(rows):
        texts = {c.name: shorten(cells[c.name][at], widths[c.name]) for c in columns}
        _print_line(console, columns, widths, texts, {c.name: _style(c, row[c.name]) for c in columns})
    if hidden := [c.head for c in report.columns if c.rank < WIDE and c not in columns]:
        console.print(f"not shown for want of width: {', '.join(hidden)} (-o wide)", style="dim", soft_wrap=True)


def _print_line(
    console: Console,
    columns: Sequence[ReportColumn],
    widths: dict[str, int],
    texts: dict[str, str],
    styles: dict[str, str],
) -> None:
    """One line, labels to the left and figures to the right; never wrapped."""
    cells = []
    for column in columns:
        text, width = texts[column.name], widths[column.name]
        aligned = text.ljust(width) if column.unit in ("label", "text") else text.rjust(width)
        cells.append(Text(aligned, style=styles[column.name]))
    line = Text(" " * GAP).join(cells)
    line.rstrip()
    console.print(line, soft_wrap=True)


def _fitting(columns: Sequence[ReportColumn], widths: dict[str, int], width: int) -> list[ReportColumn]:
    """The columns that fit with labels of LABEL_WIDTH; those of rank 0 stay whatever the width."""
    kept = list(columns)

    def needed() -> int:
        least = (min(widths[c.name], LABEL_WIDTH) if c.unit == "label" else widths[c.name] for c in kept)
        return sum(least) + GAP * (len(kept) - 1)

    while needed() > width and (rank := max(column.rank for column in kept)) > 0:
        kept = [column for column in kept if column.rank < rank]
    return kept


def _narrow_labels(columns: Sequence[ReportColumn], widths: dict[str, int], width: int) -> None:
    """Take from the widest label, again and again, until the table fits or labels are at LABEL_WIDTH."""
    labels = [column.name for column in columns if column.unit == "label"]
    excess = sum(widths[column.name] for column in columns) + GAP * (len(columns) - 1) - width
    while excess > 0:
        widest = max(labels, key=lambda name: widths[name])
        if widths[widest] <= LABEL_WIDTH:
            return
        widths[widest] -= 1
        excess -= 1


def shorten(text: str, width: int) -> str:
    """The text in at most `width` characters, cut in the middle: both ends of a pod's name matter."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return text[: width - 1 - tail] + "…" + text[len(text) - tail :]


def _style(column: ReportColumn, value: Any) -> str:
    alarming = (column.unit == "bad" and value) or (column.unit == "share" and (value or 0) >= ALARMING_SHARE)
    return "red" if alarming else ""


def _cell(column: ReportColumn, value: Any) -> str:
    """A value for a person; '-' is missing."""
    if value is None:
        return "-"
    match column.unit:
        case "bytes":
            return bytes_text(value)
        case "ns":
            return milliseconds_text(value)
        case "share":
            return f"{value:.2%}"
        case "time":
            return time_text(value, 3)
        case "count" | "bad":
            return f"{value:,}"
    # Names come from the wire: none may move the cursor or change the colours.
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in value)


def bytes_text(number: int) -> str:
    """1,023 B, 1.0 KiB, 3.2 GiB."""
    size = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:,.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"


def milliseconds_text(ns: int) -> str:
    """Three significant digits of milliseconds: 0.042 ms, 1.23 ms, 12.3 ms, 5,003 ms."""
    ms = ns / 1_000_000
    places = 3 if ms < 1 else 2 if ms < 10 else 1 if ms < 100 else 0
    return f"{ms:,.{places}f} ms"
