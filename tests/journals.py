"""Reads journals as their contract says, with nothing of podtap's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import zstandard

Record = dict[str, Any]
State = dict[str, dict[str, Any]]
"""Objects by kind and UID."""


def files_of(root: Path) -> list[Path]:
    """Of all writers, in the order of their times."""
    found = (path for suffix in (".zst", ".part") for path in (root / "_journal").glob(f"*/*/[0-9]*.jsonl{suffix}"))
    return sorted(found, key=lambda path: path.name)


def read(path: Path) -> list[Record]:
    """Up to the last whole line."""
    return list(_records(path.read_bytes()))


def _records(data: bytes) -> Iterator[Record]:
    if data.startswith(zstandard.FRAME_HEADER):
        data = b"".join(zstandard.ZstdDecompressor().read_to_iter(data))
    for line in data.split(b"\n")[:-1]:
        yield json.loads(line)


def replay(records: Iterable[Record]) -> State:
    """What is there after the records of one file. Listings that end say what there is, and nothing else."""
    state: State = {}
    listing: dict[str, set[str]] = {}
    for record in records:
        kind = record.get("kind", "")
        known = state.setdefault(kind, {})
        if record["type"] in ("listed", "added", "modified"):
            known[record["uid"]] = record["object"]
        elif record["type"] == "deleted":
            known.pop(record["uid"], None)
        if record["type"] == "listed":
            listing.setdefault(kind, set()).add(record["uid"])
        elif record["type"] == "list_complete":
            listed = listing.pop(kind, set())
            assert set(known) == listed, f"{kind}: a listing ended and showed not all, or not only, what is known"
    return {kind: known for kind, known in state.items() if known}
