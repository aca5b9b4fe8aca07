"""What a check found, and how it is told: pure."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from capture.contract import NANOSECONDS

OK, WARN, BAD = "ok", "warn", "bad"
_COLOURS: Final = {OK: "32", WARN: "33", BAD: "31;1"}
_ORDER: Final = (OK, WARN, BAD)
_UNITS: Final = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: str
    """ok; warn: something may be missing, or soon will; bad: packets that should be recorded are lost."""
    subject: str
    """A word or two."""
    text: str
    """What is, and what it means."""
    advice: str = ""
    """What to do next; '' where nothing has to be done."""


def worst(findings: Iterable[Finding]) -> str:
    """Of their levels; ok of none."""
    return max((each.level for each in findings), key=_ORDER.index, default=OK)


def lines(findings: Sequence[Finding], width: int = 100, colours: bool = False, indent: str = "") -> list[str]:
    """A line or more each: level, subject, text; then its advice, with an arrow."""
    subject_width = max((len(each.subject) for each in findings), default=0)
    found = []
    for each in findings:
        level = f"\x1b[{_COLOURS[each.level]}m{each.level:4}\x1b[0m" if colours else f"{each.level:4}"
        head = f"{indent}{level}  {each.subject:{subject_width}}  "
        blank = " " * (len(indent) + 4 + 2 + subject_width + 2)
        room = max(30, width - len(blank))
        text = textwrap.wrap(printable(each.text), room, break_on_hyphens=False) or [""]
        found.append(head + text[0])
        found += [blank + rest for rest in text[1:]]
        advice = textwrap.wrap(printable(each.advice), room - 3, break_long_words=False, break_on_hyphens=False)
        found += [f"{blank}{'-> ' if number == 0 else '   '}{line}" for number, line in enumerate(advice)]
    return found


def summary(findings: Sequence[Finding]) -> str:
    """The last line: what a tired person reads first."""
    bad, warn = ([each.subject for each in findings if each.level == level] for level in (BAD, WARN))
    parts = [f"bad: {', '.join(dict.fromkeys(bad))}"] if bad else []
    parts += [f"to look at: {', '.join(dict.fromkeys(warn))}"] if warn else []
    return "; ".join(parts) or "all is well"


def printable(text: str) -> str:
    """Without what could move a terminal's cursor: names come from outside."""
    return _CONTROL.sub("?", text)


def duration_text(time_ns: float) -> str:
    """Two units at most: `48 s`, `2 h 10 min`, `3 d 4 h`."""
    seconds = max(0, time_ns) / NANOSECONDS
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s".replace(".0 s", " s")
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    for (large, name), (small, small_name) in itertools.pairwise(_UNITS):
        if whole >= large:
            rest = whole % large // small
            return f"{whole // large} {name}" + (f" {rest} {small_name}" if rest else "")
    raise AssertionError("120 s are minutes")


def size_text(size_bytes: float) -> str:
    """As `4.0 GiB`, `820 MiB`."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.1f} {unit}" if unit != "B" and value < 10 else f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def time_text(time_ns: int, now_ns: int) -> str:
    """UTC; with its day where that is another one than today's."""
    when, now = (datetime.fromtimestamp(each // NANOSECONDS, UTC) for each in (time_ns, now_ns))
    return f"{when:%H:%M:%S} UTC" if when.date() == now.date() else f"{when:%Y-%m-%d %H:%M:%S} UTC"


def share_text(part: float, whole: float) -> str:
    """As a percentage with two digits that say something."""
    share = 100 * part / whole if whole else 0.0
    return f"{share:.2g} %" if share < 10 else f"{share:.0f} %"
