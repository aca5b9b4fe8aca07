"""What a real API server was recorded to answer, and the changes that its streams tell of."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.lab.api_resources import RESOURCES, Object
from tests.lab.api_server import ApiServer

FOLDER: Final = Path(__file__).resolve().parents[2].parent / "shared" / "k8s"
_KINDS: Final = {resource.plural: resource for resource in RESOURCES}


@dataclass(frozen=True)
class Recording:
    """One request and its answer."""

    name: str
    target: str
    status: int
    headers: dict[str, str]
    body: bytes
    times: tuple[float, ...] = ()
    """When the lines of a stream came, in seconds."""

    @property
    def lines(self) -> list[Object]:
        return [json.loads(line) for line in self.body.splitlines()]

    @property
    def revision(self) -> int:
        """Of a list."""
        return int(json.loads(self.body)["metadata"]["resourceVersion"])

    @property
    def items(self) -> list[Object]:
        """Those of a list, as a watch would show them."""
        resource = _KINDS[self.target.partition("?")[0].rpartition("/")[2]]
        kind = {"kind": resource.kind, "apiVersion": resource.api_version}
        return [kind | item for item in json.loads(self.body)["items"]]


def recordings(pattern: str) -> list[Recording]:
    """In the order of their names; `pattern` as in `watch/*`."""
    return [_read(path) for path in sorted(FOLDER.glob(f"{pattern}.http"))]


def _read(path: Path) -> Recording:
    first, status, *headers = path.read_text().splitlines()
    body = next(path.with_suffix(suffix) for suffix in (".jsonl", ".json") if path.with_suffix(suffix).exists())
    times = path.with_suffix(".times")
    return Recording(
        str(path.relative_to(FOLDER).with_suffix("")),
        first.removeprefix("# request: "),
        int(status.split()[1]),
        {name: value for name, _, value in (line.partition(": ") for line in headers)},
        body.read_bytes(),
        tuple(map(float, times.read_text().split())) if times.exists() else (),
    )


class History:
    """All changes known of one recording session, by revision."""

    def __init__(self, lists: Iterable[Recording], streams: Iterable[Recording]) -> None:
        self.changes: dict[int, tuple[str, Object]] = {}
        streamed = set()
        for stream in streams:
            for line in stream.lines:
                if line["type"] != "BOOKMARK":
                    self.changes[_revision(line["object"])] = (line["type"], line["object"])
                    streamed.add(line["object"]["kind"])
        known: dict[str, dict[str, Object]] = {}
        for each in sorted(lists, key=lambda each: each.revision):
            named = {item["metadata"]["name"]: item for item in each.items}
            kind = each.target.rpartition("/")[2]
            for item in each.items:
                self.changes.setdefault(_revision(item), ("MODIFIED", item))
            for name in known.get(kind, {}).keys() - named.keys():
                if (item := known[kind][name])["kind"] not in streamed:
                    self._lose(item, each.revision)
            known[kind] = named

    def _lose(self, item: Object, before: int) -> None:
        """When it went, nobody wrote down: at the last revision without another change."""
        revision = max(set(range(before)) - self.changes.keys())
        metadata = item["metadata"] | {"resourceVersion": str(revision)}
        self.changes[revision] = ("DELETED", item | {"metadata": metadata})

    def feed(self, server: ApiServer, until: int) -> None:
        """Goes on from wherever the server is."""
        for revision in sorted(self.changes):
            if server.store.revision < revision <= until:
                server.record(*self.changes[revision])
        server.store.advance(until)


def _revision(item: Object) -> int:
    return int(item["metadata"]["resourceVersion"])
