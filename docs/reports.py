"""Writes reports.md, beside this file, from analysis/reports/: `make docs`."""

from __future__ import annotations

from pathlib import Path

from analysis.reports.report import REPORTS, ReportKind

INTRODUCTION = """# Columns of the reports

Made from [analysis/reports/](../analysis/reports) by `make docs`. These are the names in `-o json` and `-o csv`, which
have all columns; a table shows what fits. Figures there are exact: `_ns` are nanoseconds, `_bytes` bytes, shares run
from 0 to 1, times are RFC 3339 in UTC.

Where a side has no name at the level that `--by` asks for, the next best stands for it, down to its address: a report
hides no traffic because nobody could name it. The side's `kind` says what its name is.
"""


def section(name: str, kind: ReportKind) -> str:
    rows = (f"| `{column.name}` | {column.unit} | {column.doc} |" for column in kind.columns("pod"))
    return "\n".join(
        [f"\n## {name}\n", f"Sorted by {kind.order_text}.\n", "| column | unit | meaning |\n|---|---|---|", *rows]
    )


def markdown() -> str:
    """The whole of reports.md."""
    return "\n".join([INTRODUCTION.rstrip(), *(section(name, kind) for name, kind in REPORTS.items())]) + "\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(markdown())
