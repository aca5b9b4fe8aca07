"""The analyst's side of podtap: captures in, Parquet tables and reports out.

from analysis import open_lake
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.lake_reader import open_lake

__all__ = ["open_lake"]


def __getattr__(name: str) -> Any:
    """`open_lake` on first use: the command's --help must not wait for DuckDB and pyarrow."""
    if name != "open_lake":
        raise AttributeError(f"module 'analysis' has no attribute '{name}'")
    from analysis.lake_reader import open_lake

    return open_lake
