"""What a report's columns are: their name in JSON and CSV, their head in a table, and how important they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.reports.sides import PARTS

WIDE = 9
"""Rank of columns that only `-o wide`, json and csv show."""


@dataclass(frozen=True)
class ReportColumn:
    """One column. `unit`: label, text, count, bad (a count that should be 0), bytes, ns, share or time.

    Where a terminal is too narrow, the columns of the highest rank go first; those of rank 0 stay.
    """

    name: str
    head: str
    unit: str
    doc: str
    rank: int = 0


def sides(names: Sequence[str]) -> tuple[ReportColumn, ...]:
    """The columns that say whom a row is about: a label for each side, then the labels' parts."""
    labels = (ReportColumn(side, side.upper(), "label", f"the {side}: its parts in one text") for side in names)
    parts = (
        ReportColumn(f"{side}_{part}", f"{side} {part}".upper(), "text", f"the {side}'s {part}", rank=WIDE)
        for side in names
        for part in PARTS
    )
    return (*labels, *parts)
