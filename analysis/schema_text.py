"""`podtap schema`: the tables of the lake and what their columns mean, as text or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pyarrow as pa
from rich.console import Console
from rich.table import Table as TextTable
from rich.text import Text

from analysis.schemas import Table


def type_name(dtype: pa.DataType) -> str:
    """The type as a reader of the table thinks of it: name is a dictionary-encoded string, time is UTC nanoseconds."""
    if pa.types.is_dictionary(dtype):
        return "name"
    if pa.types.is_timestamp(dtype):
        return "time"
    if pa.types.is_list(dtype):
        return f"list of {type_name(dtype.value_type)}"
    return str(dtype)


def schema_json(tables: Sequence[Table]) -> str:
    """A list of tables with their columns; `null` is what a missing value means, empty where none is ever missing."""
    described = [
        {
            "table": table.name,
            "row": table.row,
            "partitions": ["date", "node"] if table.time else [],
            "columns": [
                {"column": c.name, "dtype": type_name(c.type), "unit": c.unit, "null": c.null, "doc": c.doc}
                for c in table.columns
            ],
        }
        for table in tables
    ]
    return json.dumps(described, indent=2)


def print_schema(tables: Sequence[Table], console: Console) -> None:
    """One text table for each table."""
    for table in tables:
        partitions = f"by the day of {table.time} and the node of the observation point" if table.time else "none"
        text = TextTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for head, fixed in (
            ("COLUMN", True),
            ("TYPE", True),
            ("UNIT", True),
            ("MEANING", False),
            ("NULL MEANS", False),
        ):
            text.add_column(head, no_wrap=fixed, ratio=None if fixed else 3 if head == "MEANING" else 2)
        for column in table.columns:
            cells = (column.name, type_name(column.type), column.unit, column.doc, column.null or "never null")
            text.add_row(*map(Text, cells))
        console.print(Text.assemble((table.name, "bold"), f": {table.row}"))
        console.print(Text(f"partitions: {partitions}"), text, "", sep="\n")
