"""Label and field selectors, and what a watch that has them is told of a change."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tests.lab.api_resources import Object, Resource
from tests.lab.api_status import bad_request
from tests.lab.api_store import Change

Requirement = Callable[[Mapping[str, str]], bool]
_COMMA: Final = re.compile(r",(?![^(]*\))")
_KEY: Final = r"(?P<key>[A-Za-z0-9](?:[-A-Za-z0-9_./]*[A-Za-z0-9])?)"
_VALUE: Final = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
_FORMS: Final = tuple(
    re.compile(form)
    for form in (
        rf"(?P<not>!?)\s*{_KEY}",
        rf"{_KEY}\s*(?P<operator>==|=|!=|<|>)\s*(?P<value>[^\s=!<>()]*)",
        rf"{_KEY}\s+(?P<operator>in|notin)\s*\((?P<values>[^()]*)\)",
    )
)
_FIELD: Final = re.compile(r"(?P<label>[^=!]+)(?P<operator>==|=|!=)(?P<value>.*)")


@dataclass(frozen=True)
class Selection:
    """Which objects a request is about."""

    resource: Resource
    namespace: str = ""
    labels: tuple[Requirement, ...] = ()
    fields: tuple[tuple[str, bool, str], ...] = ()
    """Label, whether it must equal, value."""

    @property
    def has_selectors(self) -> bool:
        return bool(self.labels or self.fields)

    def matches(self, item: Object) -> bool:
        metadata = item["metadata"]
        if self.namespace and metadata.get("namespace") != self.namespace:
            return False
        labels = metadata.get("labels") or {}
        return all(holds(labels) for holds in self.labels) and all(
            (_value(item, label, self.resource.fields.get(label, "")) == value) == equal
            for label, equal, value in self.fields
        )

    def event(self, change: Change) -> tuple[str, Object] | None:
        """What leaves the selection is deleted for whoever watches it: as it was last, at the change's version."""
        before = change.previous is not None and self.matches(change.previous)
        if change.current is not None and self.matches(change.current):
            return ("MODIFIED" if before else "ADDED"), change.current
        if change.previous is None or not before:
            return None
        metadata = change.previous["metadata"] | {"resourceVersion": str(change.revision)}
        return "DELETED", change.previous | {"metadata": metadata}


def select(resource: Resource, namespace: str, labels: str, fields: str) -> Selection:
    """Raises ApiError for a selector that a real server would refuse."""
    return Selection(resource, namespace, parse_labels(labels), parse_fields(resource, fields))


def parse_labels(text: str) -> tuple[Requirement, ...]:
    return tuple(_requirement(part.strip()) for part in _COMMA.split(text)) if text.strip() else ()


def _requirement(text: str) -> Requirement:
    found = next(filter(None, (form.fullmatch(text) for form in _FORMS)), None)
    if found is None:
        raise bad_request(f"unable to parse requirement: found '{text}', which is no requirement")
    given = found.groupdict()
    key = given["key"]
    if "operator" not in given:
        return lambda labels: (key in labels) != bool(given["not"])
    operator, values = given["operator"], given.get("values")
    wanted = {part.strip() for part in values.split(",")} if values is not None else {given["value"]}
    for value in wanted:
        if not _VALUE.fullmatch(value):
            raise bad_request(f'unable to parse requirement: values[0][{key}]: Invalid value: "{value}"')
    if operator in ("=", "==", "in"):
        return lambda labels: labels.get(key) in wanted
    if operator in ("!=", "notin"):
        return lambda labels: labels.get(key) not in wanted
    if not re.fullmatch(r"-?\d+", given["value"]):
        raise bad_request("unable to parse requirement: for 'Gt', 'Lt' operators, the value must be an integer")
    limit = int(given["value"])

    def compares(labels: Mapping[str, str]) -> bool:
        value = labels.get(key, "")
        if not re.fullmatch(r"-?\d+", value):
            return False
        return int(value) > limit if operator == ">" else int(value) < limit

    return compares


def parse_fields(resource: Resource, text: str) -> tuple[tuple[str, bool, str], ...]:
    if not text.strip():
        return ()
    parsed = []
    for part in text.split(","):
        found = _FIELD.fullmatch(part)
        if not found:
            raise bad_request(f'invalid selector: "{text}"; can\'t understand "{part}"')
        label = found["label"].strip()
        if label not in ("metadata.name", "metadata.namespace") and label not in resource.fields:
            known = ', "metadata.namespace"' if resource.namespaced else ""
            raise bad_request(
                f"field label not supported: {label}"
                if resource.fields
                else f'"{label}" is not a known field selector: only "metadata.name"{known}'
            )
        parsed.append((label, found["operator"] != "!=", found["value"]))
    return tuple(parsed)


def _value(item: Object, label: str, default: str) -> str:
    value: Any = item
    for name in label.split("."):
        value = (value or {}).get(name)
    if value is None:
        return default
    return str(value).lower() if isinstance(value, bool) else str(value)
