"""Writes tables.md, beside this file, from analysis/schemas.py: `make docs`."""

from __future__ import annotations

from pathlib import Path

from analysis.schema_text import type_name
from analysis.schemas import TABLES, Column, Table

INTRODUCTION = """# Tables

Made from [analysis/schemas.py](../analysis/schemas.py) by `make docs`; `podtap schema` prints the same.

Each table is a folder of Parquet files: `pd.read_parquet("lake/flows")` needs nothing of podtap. Columns of type
*name* are dictionary-encoded strings, categoricals in pandas; *time* is `timestamp[ns, UTC]`. A partitioned table has
two more columns, which live in the path only: `date`, the UTC day of the row's own time, and `node`, that of the
observation point. Words are defined in [definitions.md](definitions.md).
"""


def row(column: Column) -> str:
    cells = (f"`{column.name}`", type_name(column.type), column.unit, column.doc, column.null or "never null")
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"


def section(table: Table) -> str:
    partitions = f"Partitioned by `date` (of `{table.time}`) and `node`." if table.time else "Not partitioned."
    head = "| column | type | unit | meaning | null means |\n|---|---|---|---|---|"
    return "\n".join([f"\n## {table.name}\n", f"A row is {table.row}. {partitions}\n", head, *map(row, table.columns)])


def markdown() -> str:
    """The whole of tables.md."""
    return "\n".join([INTRODUCTION.rstrip(), *map(section, TABLES.values())]) + "\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(markdown())
