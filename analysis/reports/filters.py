"""Who: the pods, services, nodes and namespaces that a report or a read is about, and their SQL.

A filter matches if either side of the flow matches it. As with kubectl, the namespace says where pods, services and
labels are looked for: `-n shop --pod web-1` is traffic of the pod web-1 of shop, with whomever.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from analysis.errors import UsageError

FLOW_SIDES = ("orig", "resp")
CONNECTION_SIDES = (*FLOW_SIDES, "backend")
DNS_SIDES = ("client", "server")


@dataclass(frozen=True)
class Filters:
    """All given must match. `labels` are key=value of pods; a pod matches that bore them all at some time."""

    namespace: str | None = None
    pod: str | None = None
    service: str | None = None
    node: str | None = None
    labels: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        namespace: str | None = None,
        pod: str | None = None,
        service: str | None = None,
        node: str | None = None,
        selector: str | Sequence[str] = (),
    ) -> Filters:
        """`selector` is one or more of kubectl's "key=value,key=value". Raises UsageError where it is not."""
        selectors = [selector] if isinstance(selector, str) else selector
        labels = tuple(_label(part) for text in selectors for part in text.split(","))
        return cls(namespace, pod, service, node, labels)

    def __str__(self) -> str:
        named = {"namespace": self.namespace, "pod": self.pod, "service": self.service, "node": self.node}
        return " and ".join(
            [*(f"{kind} '{name}'" for kind, name in named.items() if name), *(f"label '{x}'" for x in self.labels)]
        )

    def sql(self, sides: Sequence[str]) -> str:
        """The condition on a table that has the identity columns of both sides and `node`, its observation point's."""
        conditions = []
        if self.pod:
            conditions.append(self._in_namespace(sides, "pod", f"= {quoted(self.pod)}"))
        if self.service:
            conditions.append(self._in_namespace(sides, "service", f"= {quoted(self.service)}"))
        if self.labels:
            conditions.append(self._in_namespace(sides, "pod_uid", f"IN ({self._pods_with_labels()})"))
        if self.namespace and not conditions:
            conditions.append(_either(f"{side}_namespace = {quoted(self.namespace)}" for side in sides))
        if self.node:
            columns = ["node", *(f"{side}_node" for side in sides)]
            conditions.append(_either(f"{column} = {quoted(self.node)}" for column in columns))
        return " AND ".join(conditions) or "true"

    def _in_namespace(self, sides: Sequence[str], column: str, test: str) -> str:
        def there(side: str) -> str:
            return f" AND {side}_namespace = {quoted(self.namespace)}" if self.namespace else ""

        return _either(f"({side}_{column} {test}{there(side)})" for side in sides)

    def _pods_with_labels(self) -> str:
        bears_all = " AND ".join(f"list_contains(labels, {quoted(label)})" for label in self.labels)
        return f"SELECT uid FROM identities WHERE identity = 'pod' AND {bears_all}"


def _either(conditions: Iterable[str]) -> str:
    return f"({' OR '.join(conditions)})"


def _label(text: str) -> str:
    key, equals, value = text.strip().partition("=")
    if not key or not equals or key.endswith("!"):
        raise UsageError(f"'{text}' is not a label selector: write KEY=VALUE, such as app=web")
    return f"{key}={value.removeprefix('=')}"


def quoted(text: str) -> str:
    """A string as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"
