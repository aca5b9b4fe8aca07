"""The file that tells the agent which pods to record; `podtap scope` keeps it up to date.

    {"generation": 7, "addresses": ["10.244.1.7"], "pods": [{"namespace": "shop", "name": "orders-1"}],
     "own_connections": ["10.0.0.5:43512"]}

`own_connections` may be missing: the ends on this node of the writer's own connections.
"""

from __future__ import annotations

import ipaddress
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from capture import log
from capture.endpoint import split_address

MOST_NAMES: Final = 50
"""Of pods, in a manifest."""
_MOST_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True)
class Scope:
    """The pods to record."""

    generation: int = 0
    addresses: tuple[str, ...] = ()
    text: str = "no pods yet"
    """Which they are."""
    own_connections: tuple[tuple[str, int], ...] = ()


class ScopeFile:
    """Read when it changed. Until it is there no pod is in the scope; where it can't be read, the former ones are."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self.scope = Scope()
        self.problem = ""

    def read(self) -> Scope:
        """Costs one stat where nothing changed."""
        try:
            status = os.stat(self._path)
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
            if seen == self._seen:
                return self.scope
            with open(self._path, "rb") as file:
                self.scope = parse(file.read(_MOST_BYTES))
            self._seen = seen
            self._say("")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._say(f"can't read the scope {self._path}: {error}")
        return self.scope

    def _say(self, problem: str) -> None:
        if problem != self.problem and problem:
            log.warning("the scope can't be read, the former one stays", problem=problem)
        self.problem = problem


def parse(data: bytes) -> Scope:
    """ValueError, KeyError, TypeError or AttributeError where it is no scope."""
    value: dict[str, Any] = json.loads(data)
    addresses = tuple(sorted(str(ipaddress.ip_address(each)) for each in value["addresses"]))
    names = sorted(f"{pod['namespace']}/{pod['name']}" for pod in value.get("pods", ()))
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return Scope(
        int(value["generation"]),
        addresses,
        f"pods {', '.join(names[:MOST_NAMES])}{more}" if names else "no pods",
        tuple(split_address(each) for each in value.get("own_connections", ())),
    )
