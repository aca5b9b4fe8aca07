"""Pure: label selectors as kubectl takes them: `app=web,tier!=db,env in (a,b),!canary`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from capture.errors import UsageError

_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._/-]*"
_SET: Final = re.compile(rf"({_NAME})\s+(in|notin)\s*\(([^()]*)\)")
_EQUAL: Final = re.compile(rf"({_NAME})\s*(==|=|!=)\s*([A-Za-z0-9._-]*)")
_EXISTS: Final = re.compile(rf"(!?)\s*({_NAME})")


@dataclass(frozen=True)
class Requirement:
    """One of them; `values` is None where only the label's presence counts."""

    key: str
    values: frozenset[str] | None
    is_wanted: bool

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Where a value must not be, a label that is not there is as good."""
        fits = self.key in labels and (self.values is None or labels[self.key] in self.values)
        return fits == self.is_wanted


def parse(selector: str) -> list[Requirement]:
    """All of them must match; UsageError where it is no selector."""
    parts = re.split(r",(?![^(]*\))", selector) if selector.strip() else []
    return [_requirement(part.strip(), selector) for part in parts]


def _requirement(text: str, selector: str) -> Requirement:
    if match := _SET.fullmatch(text):
        values = frozenset(value.strip() for value in match[3].split(","))
        return Requirement(match[1], values, match[2] == "in")
    if match := _EQUAL.fullmatch(text):
        return Requirement(match[1], frozenset([match[3]]), match[2] != "!=")
    if match := _EXISTS.fullmatch(text):
        return Requirement(match[2], None, not match[1])
    raise UsageError(f"'{selector}' is no label selector: write app=web,tier!=db,'env in (a,b)',!canary")
