"""When: the window of time that a report or a read is about, and how a person writes it."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from analysis.errors import UsageError

NANOSECONDS: Final = 1_000_000_000
MINUTE_NS: Final = 60 * NANOSECONDS
DAY_NS: Final = 86_400 * NANOSECONDS

UNIT_NS: Final = {"s": NANOSECONDS, "m": MINUTE_NS, "h": 60 * MINUTE_NS, "d": DAY_NS}
RELATIVE: Final = re.compile(r"(?:\d+[smhd])+")
EPOCH: Final = re.compile(r"(\d+)(?:\.(\d{1,9}))?")
RFC3339: Final = re.compile(
    r"(\d{4}-\d{2}-\d{2})[Tt ](\d{2}:\d{2}(?::\d{2})?)(?:\.(\d{1,9}))?([Zz]|[+-]\d{2}:\d{2})?", re.ASCII
)


def parse_time(text: str, now_ns: int) -> int:
    """UTC nanoseconds of a time as people write it; `15m`, `1h30m`, `2d` are before `now_ns` (`now`), as kubectl's.

    A time without a zone is UTC. Raises UsageError where it is none of RFC 3339, epoch seconds and relative.
    """
    if text == "now":
        return now_ns
    if RELATIVE.fullmatch(text):
        return now_ns - sum(int(n) * UNIT_NS[unit] for n, unit in re.findall(r"(\d+)([smhd])", text))
    if epoch := EPOCH.fullmatch(text):
        return int(epoch[1]) * NANOSECONDS + _fraction_ns(epoch[2])
    if match := RFC3339.fullmatch(text):
        day, clock, fraction, zone = match.groups()
        try:
            whole = datetime.fromisoformat(f"{day}T{clock}{(zone or 'Z').upper()}")
        except ValueError as error:
            raise UsageError(f"'{text}' is not a time: {error}") from error
        return int(whole.timestamp()) * NANOSECONDS + _fraction_ns(fraction)
    raise UsageError(
        f"'{text}' is not a time: write RFC 3339 (2026-03-01T14:03:00Z), epoch seconds (1772373780), "
        "how long ago (15m, 2h, 1d) or now"
    )


def _fraction_ns(digits: str | None) -> int:
    return int((digits or "").ljust(9, "0"))


def time_text(ns: int, places: int = 9) -> str:
    """RFC 3339 in UTC of nanoseconds since 1970, with 0, 3, 6 or 9 decimal places, cut and not rounded."""
    seconds, rest = divmod(ns, NANOSECONDS)
    fraction = f".{rest:09d}"[: places + 1] if places else ""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + fraction + "Z"


@dataclass(frozen=True)
class Window:
    """The half-open interval [since_ns, until_ns); None leaves that end open. What was active in it counts."""

    since_ns: int | None = None
    until_ns: int | None = None

    @classmethod
    def of(cls, since: str | datetime | None, until: str | datetime | None, now_ns: int | None = None) -> Window:
        """From two times as text or datetime (pandas' Timestamps are ones; naive is UTC). Raises UsageError."""
        now_ns = time.time_ns() if now_ns is None else now_ns
        window = cls(*(None if end is None else _nanoseconds(end, now_ns) for end in (since, until)))
        if window.since_ns is not None and window.until_ns is not None and window.since_ns >= window.until_ns:
            raise UsageError(f"the window ends before it begins: {window}")
        return window

    @property
    def is_everything(self) -> bool:
        return self.since_ns is None and self.until_ns is None

    @property
    def is_whole_minutes(self) -> bool:
        return not any((end or 0) % MINUTE_NS for end in (self.since_ns, self.until_ns))

    def __str__(self) -> str:
        since = "the beginning" if self.since_ns is None else time_text(self.since_ns, _places(self.since_ns))
        until = "the end" if self.until_ns is None else time_text(self.until_ns, _places(self.until_ns))
        return f"{since} to {until}"

    def overlaps(self, first: str, last: str) -> str:
        """SQL: the rows whose closed interval of two timestamp columns has a moment in the window."""
        return _all([*self._before_until(first), *self._from_since(last)])

    def minutes(self) -> str:
        """SQL: the rows of flow_minutes with a packet that may lie in the window; a minute counts whole.

        `date` and `minute` say nothing that first_ts and last_ts do not: they let DuckDB skip files and row groups.
        """
        if self.since_ns is None:
            since = []
        else:
            minute = self.since_ns - self.since_ns % MINUTE_NS
            since = [f"date >= '{_day(minute)}'", f"minute >= {timestamp_sql(minute)}"]
        return _all([*since, *self.days_until(), *self._before_until("minute"), self.overlaps("first_ts", "last_ts")])

    def days(self, slack_days: int = 0) -> list[str]:
        """SQL conditions that skip partitions of days outside the window, but for `slack_days` before it."""
        since = [] if self.since_ns is None else [f"date >= '{_day(self.since_ns - slack_days * DAY_NS)}'"]
        return [*since, *self.days_until()]

    def days_until(self) -> list[str]:
        """SQL conditions that skip partitions of days after the window."""
        return [] if self.until_ns is None else [f"date <= '{_day(self.until_ns)}'"]

    def _before_until(self, column: str) -> list[str]:
        return [] if self.until_ns is None else [f"{column} < {timestamp_sql(self.until_ns)}"]

    def _from_since(self, column: str) -> list[str]:
        return [] if self.since_ns is None else [f"{column} >= {timestamp_sql(self.since_ns)}"]


def timestamp_sql(ns: int) -> str:
    """UTC nanoseconds as an SQL constant that DuckDB compares with the statistics of row groups."""
    return f"make_timestamp_ns({ns})::TIMESTAMPTZ_NS"


def _nanoseconds(end: str | datetime, now_ns: int) -> int:
    if isinstance(end, str):
        return parse_time(end, now_ns)
    moment = end if end.tzinfo else end.replace(tzinfo=UTC)
    whole = int(moment.replace(microsecond=0).timestamp()) * NANOSECONDS
    return whole + moment.microsecond * 1000 + getattr(moment, "nanosecond", 0)


def _places(ns: int) -> int:
    return 3 if ns % NANOSECONDS else 0


def _day(ns: int) -> str:
    return time_text(ns)[:10]


def _all(conditions: list[str]) -> str:
    return " AND ".join(conditions) or "true"
