"""A report as records for programs: JSON and CSV, with all columns and exact figures."""

from __future__ import annotations

import csv
import json
from typing import IO, Any

from analysis.reports.report import Report
from analysis.reports.window import time_text


def write_json(report: Report, out: IO[str]) -> None:
    """A list of objects, one a line; times are RFC 3339 in UTC with nanoseconds, missing values null."""
    lines = ",".join("\n  " + json.dumps(record, ensure_ascii=False) for record in _records(report))
    out.write(f"[{lines}\n]\n" if lines else "[]\n")


def write_csv(report: Report, out: IO[str]) -> None:
    """A header, then one line a row; missing values are empty."""
    writer = csv.DictWriter(out, [column.name for column in report.columns], lineterminator="\n")
    writer.writeheader()
    writer.writerows(_records(report))


def _records(report: Report) -> list[dict[str, Any]]:
    times = {column.name for column in report.columns if column.unit == "time"}
    return [
        {name: time_text(value) if name in times and value is not None else value for name, value in row.items()}
        for row in report.dicts()
    ]
