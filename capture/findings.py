"""What a check found, and how it is told: pure."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from capture.contract import NANOSECONDS

OK, WARN, BAD = "ok", "warn", "bad"
_COLOURS: Final = {OK: "32", WARN: "33", BAD: "31;1"}
_ORDER: Final = (OK, WARN, BAD)
NOT_SEEN: Final = "not seen"
"""The subject of ways past the recorder: to be known, and seldom to be changed."""
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


def by_level(findings: Iterable[Finding]) -> list[Finding]:
    """The worst last, where a terminal's reader is."""
    return sorted(findings, key=lambda each: _ORDER.index(each.level))


def lines(findings: Sequence[Finding], width: int = 100, colours: bool = False, indent: str = "") -> list[str]:
    """A line or more each: level, subject, text; then its advice, with an arrow."""
    subject_width = max((len(printable(each.subject)) for each in findings), default=0)
    found = []
    for each in findings:
        level = f"\x1b[{_COLOURS[each.level]}m{each.level:4}\x1b[0m" if colours else f"{each.level:4}"
        head = f"{indent}{level}  {printable(each.subject):{subject_width}}  "
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
    bad, warn = (_subjects(findings, level) for level in (BAD, WARN))
    look = [subject for subject in warn if subject != NOT_SEEN]
    parts = [f"bad: {', '.join(bad)}"] if bad else []
    parts += [f"to look at: {', '.join(look)}"] if look else []
    parts = parts or ["all is well"]
    return "; ".join([*parts, "not all packets can be seen here"] if NOT_SEEN in warn else parts)


def _subjects(findings: Sequence[Finding], level: str) -> list[str]:
    return list(dict.fromkeys(printable(each.subject) for each in findings if each.level == level))


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


def share_text(part: float, whole: float) -> str:
    """As a percentage with two digits that say something."""
    share = 100 * part / whole if whole else 0.0
    return f"{share:.2g} %" if share < 10 else f"{share:.0f} %"
