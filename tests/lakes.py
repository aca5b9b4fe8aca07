"""Small lakes for tests, written row by row from `schemas.TABLES`, without the pipeline."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.schemas import TABLES, TIME

SECOND = 1_000_000_000
MINUTE = 60 * SECOND


def at(text: str) -> int:
    """UTC nanoseconds of "2026-03-01T14:03:00" with up to six decimal places."""
    moment = datetime.fromisoformat(text).replace(tzinfo=UTC)
    return int(moment.replace(microsecond=0).timestamp()) * SECOND + moment.microsecond * 1000


def _empty(type_: pa.DataType) -> Any:
    """What a column that may not be null has where a test does not care."""
    if type_ == TIME or pa.types.is_integer(type_):
        return 0
    if pa.types.is_boolean(type_):
        return False
    return [] if pa.types.is_list(type_) else ""


def write(lake: Path, name: str, rows: list[dict[str, Any]], node: str = "n1", file: str = "part-0") -> None:
    """Add rows to a table of the lake; columns left out are null, or 0 or empty where they may not be null."""
    table = TABLES[name]
    for row in rows:
        unknown = set(row) - set(table.schema.names)
        assert not unknown, f"{name} has no {unknown}"
    days: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        day = "" if table.time is None else datetime.fromtimestamp(row[table.time] // SECOND, UTC).strftime("%Y-%m-%d")
        days.setdefault(day, []).append(row)
    for day, of_day in days.items():
        folder = lake / name if table.time is None else lake / name / f"date={day}" / f"node={node}"
        folder.mkdir(parents=True, exist_ok=True)
        columns = [
            pa.array([row.get(c.name, None if c.null else _empty(c.type)) for row in of_day]).cast(c.type)
            if not pa.types.is_dictionary(c.type)
            else pa.array([row.get(c.name, None if c.null else "") for row in of_day], pa.string()).cast(c.type)
            for c in table.columns
        ]
        pq.write_table(pa.Table.from_arrays(columns, schema=table.schema), folder / f"{file}.parquet")


def identity(side: str, kind: str, name: str, **more: Any) -> dict[str, Any]:
    """Identity columns of one side: identity("orig", "pod", "shop/web-1", workload="web")."""
    namespace, _, short = name.rpartition("/")
    columns: dict[str, Any] = {f"{side}_identity": kind}
    if namespace:
        columns[f"{side}_namespace"] = namespace
    if kind in ("pod", "service", "node"):
        columns[f"{side}_{kind}"] = short
    if kind == "pod":
        columns[f"{side}_pod_uid"] = f"uid-{short}"
    return columns | {f"{side}_{key}": value for key, value in more.items()}


def minute(flow: dict[str, Any], first_ts: int, last_ts: int | None = None, **figures: int) -> dict[str, Any]:
    """A row of flow_minutes of this flow."""
    last_ts = first_ts if last_ts is None else last_ts
    start = first_ts - first_ts % MINUTE
    return {"flow_uid": flow["flow_uid"], "minute": start, "first_ts": first_ts, "last_ts": last_ts, **figures}


def whole(flow: dict[str, Any]) -> dict[str, Any]:
    """The only row of flow_minutes of a flow that lies within one minute."""
    names = set(TABLES["flow_minutes"].schema.names) & set(flow)
    figures = {name: flow[name] for name in names - {"flow_uid"}}
    return minute(flow, flow["first_seen"], flow["last_seen"], **figures)
