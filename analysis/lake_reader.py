"""Read a lake: DuckDB over its Parquet files for reports and SQL, pandas DataFrames for people.

from analysis import open_lake
lake = open_lake("lake")
lake.flows(since="2026-03-01T14:00:00Z", until="2026-03-01T14:10:00Z", namespace="shop")
lake.report("dns", by="name")
lake.sql("SELECT resp_service, count(*) FROM flows GROUP BY ALL")
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypedDict, Unpack

import duckdb
import pyarrow as pa

from analysis.errors import PodtapError, UsageError
from analysis.lake import committed_files
from analysis.reports.connections import POINT, Points, flows_in
from analysis.reports.coverage import seconds
from analysis.reports.dns import lookups_in
from analysis.reports.filters import DNS_SIDES, FLOW_SIDES, Filters, quoted
from analysis.reports.report import make_report
from analysis.reports.window import Window
from analysis.schemas import NAME, TABLES, TEXT, Table

if TYPE_CHECKING:
    import pandas as pd


SETTINGS: Final = {
    "TimeZone": "UTC",
    "autoinstall_known_extensions": "false",  # nothing is downloaded
    "preserve_insertion_order": "false",  # every result is sorted, so memory need not hold it in order
    "python_enable_replacements": "false",  # a mistyped table is an error, not a Python variable
    "temp_directory": tempfile.gettempdir(),
}


class Asked(TypedDict, total=False):
    """What of a table is wanted; everything where nothing is asked.

    `since`, `until`: RFC 3339, epoch seconds, how long ago ("15m"), or a datetime; the rows active in [since, until).
    `namespace`, `pod`, `service`, `node`, `selector` ("app=web"): the rows of flows either of whose sides matches all.
    """

    since: str | datetime | None
    until: str | datetime | None
    namespace: str | None
    pod: str | None
    service: str | None
    node: str | None
    selector: str | Sequence[str]


def open_lake(path: str | Path) -> Lake:
    """The lake at `path`, as it is now: what is committed later is seen by opening it again.

    Raises PodtapError where there is no lake.
    """
    return Lake(Path(path))


def identifiers(columns: Sequence[str]) -> str:
    """Columns for SQL; some are called like keywords."""
    return ", ".join(f'"{column}"' for column in columns)


def stored_schema(table: Table) -> pa.Schema:
    """The table's columns with those that its files have in their path only."""
    if table.time is None:
        return table.schema
    return table.schema.append(pa.field("date", TEXT)).append(pa.field("node", NAME))


class Lake:
    """The tables of one lake at the time it was opened.

    Every table comes as a DataFrame whose times are datetime64[ns, UTC], whose names are categoricals and which has a
    column `node`, the node of the observation point. Integers that may be missing come as float64, as pandas has it.
    """

    def __init__(self, path: Path) -> None:
        files = {name: committed_files(path, name) for name in TABLES}
        if not any(files.values()):
            raise PodtapError(f"there is no lake at {path}: run podtap analyze FILE... --lake {path}")
        self.path = path
        self._connection = duckdb.connect()
        for name, value in SETTINGS.items():
            self._connection.execute(f"SET {name} = {quoted(value)}")
        for table in TABLES.values():
            self._make_view(table, files[table.name])

    def _make_view(self, table: Table, files: Sequence[Path]) -> None:
        if not files:
            self._connection.register(table.name, stored_schema(table).empty_table())
            return
        paths = ", ".join(quoted(str(path)) for path in files)
        partitions = "" if table.time is None else ", hive_types = {'date': VARCHAR, 'node': VARCHAR}"
        self._connection.execute(
            f"CREATE VIEW {table.name} AS SELECT {identifiers(stored_schema(table).names)} FROM "
            f"read_parquet([{paths}], hive_partitioning = {table.time is not None}{partitions})"
        )

    def arrow(self, query: str) -> pa.Table:
        """The result of an SQL query over the tables; times as timestamp[ns, UTC], names as plain strings."""
        result: pa.Table = self._connection.sql(query).to_arrow_table()
        return result

    def sql(self, query: str) -> pd.DataFrame:
        """The result of an SQL query (DuckDB's dialect) over the tables, which go by their names."""
        return self.arrow(query).to_pandas()

    @cached_property
    def points(self) -> Points:
        """Whether one connection may have several flows, each seen at another place, and whether it is known which."""
        if self.arrow("SELECT count(*) AS n FROM (FROM connection_flows LIMIT 1)")["n"][0].as_py():
            return Points.STITCHED
        points = self.arrow(f"SELECT count(*) AS n FROM (SELECT DISTINCT {POINT} FROM flows)")
        return Points.SEVERAL if points["n"][0].as_py() > 1 else Points.ONE

    def report(
        self, name: str, by: str = "pod", sort_by: str | None = None, limit: int | None = None, **asked: Unpack[Asked]
    ) -> pd.DataFrame:
        """One of the reports, with the columns of `podtap report NAME -o json`."""
        return make_report(self, name, *_question(asked), by, sort_by, limit).rows.to_pandas()

    def packets(self, columns: Sequence[str] | None = None, **asked: Unpack[Asked]) -> pd.DataFrame:
        """Packets seen in the window, of the flows asked for."""
        window, filters = _question(asked)
        conditions = [window.overlaps("ts", "ts"), *window.days()]
        return self._read("packets", columns, [*conditions, *_of_flows(filters)])

    def flows(self, columns: Sequence[str] | None = None, **asked: Unpack[Asked]) -> pd.DataFrame:
        """Flows with a packet in a minute of the window; their figures are those of the whole flow."""
        window, filters = _question(asked)
        conditions = [filters.sql(FLOW_SIDES)]
        if not window.is_everything:
            active = f"SELECT flow_uid FROM flow_minutes WHERE {window.minutes()}"
            conditions += [flows_in(window), f"flow_uid IN ({active})"]
        return self._read("flows", columns, conditions)

    def flow_minutes(self, columns: Sequence[str] | None = None, **asked: Unpack[Asked]) -> pd.DataFrame:
        """Minutes with a packet in the window, of the flows asked for."""
        window, filters = _question(asked)
        return self._read("flow_minutes", columns, [window.minutes(), *_of_flows(filters)])

    def retransmits(self, columns: Sequence[str] | None = None, **asked: Unpack[Asked]) -> pd.DataFrame:
        """Retransmissions, and what looks like one, in the window."""
        window, filters = _question(asked)
        conditions = [window.overlaps("ts", "ts"), *window.days(), filters.sql(FLOW_SIDES)]
        return self._read("retransmits", columns, conditions)

    def dns(self, columns: Sequence[str] | None = None, **asked: Unpack[Asked]) -> pd.DataFrame:
        """DNS transactions that were under way in the window."""
        window, filters = _question(asked)
        return self._read("dns", columns, [*lookups_in(window), filters.sql(DNS_SIDES)])

    def coverage(
        self, since: str | datetime | None = None, until: str | datetime | None = None, node: str | None = None
    ) -> pd.DataFrame:
        """One row for each node and second of the table coverage, or of [since, until), whole seconds both.

        `second` is when it begins, `packets` what was captured in it. `complete`: True where nothing that was there to
        be captured is missing in it, False where something is, None where nobody knows: of captures of no agent, before
        a crash, and where packets were dropped: `dropped` is how many, in [dropped_since, dropped_until), and in which
        second of these nobody knows. `kinds` are those of the table, joined by ', '; '': the lake has nothing of that
        time. In a `journal_gap` pods may have come and gone unseen.
        """
        return self.arrow(seconds(Window.of(since, until), node)).to_pandas()

    def segments(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The input files: what was read, dropped, truncated."""
        return self._read("segments", columns, [])

    def identities(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Who owned which address when."""
        return self._read("identities", columns, [])

    def _read(self, name: str, columns: Sequence[str] | None, conditions: Sequence[str]) -> pd.DataFrame:
        table = TABLES[name]
        schema = stored_schema(table)
        wanted = [field for field in schema.names if field != "date"] if columns is None else list(columns)
        if unknown := [column for column in wanted if column not in schema.names]:
            raise UsageError(f"{name} has no column {', '.join(unknown)}; it has {', '.join(schema.names)}")
        where = " AND ".join(conditions) or "true"
        order = "" if table.time is None else f" ORDER BY {table.time}"
        query = f"SELECT {identifiers(wanted)} FROM {name} WHERE {where}{order}"
        typed = pa.schema([schema.field(column).with_nullable(True) for column in wanted])
        # Batch by batch: names become numbers before all of their text would be in memory.
        reader = self._connection.sql(query).to_arrow_reader()
        batches = [pa.Table.from_batches([batch]).cast(typed) for batch in reader]
        return pa.concat_tables([typed.empty_table(), *batches]).unify_dictionaries().to_pandas()


def _question(asked: Asked) -> tuple[Window, Filters]:
    who = {name: value for name, value in asked.items() if name not in ("since", "until")}
    return Window.of(asked.get("since"), asked.get("until")), Filters.of(**who)  # type: ignore[arg-type]


def _of_flows(filters: Filters) -> list[str]:
    """SQL conditions on a table that has a flow_uid and no names of its own."""
    where = filters.sql(FLOW_SIDES)
    return [] if where == "true" else [f"flow_uid IN (SELECT flow_uid FROM flows WHERE {where})"]
