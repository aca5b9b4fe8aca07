"""Files of `kubectl get ... -o json`: found, read, and dated."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from analysis.compression import ContentStream
from analysis.errors import PodtapError, Problem
from capture.contract import BUNDLE, FREEZES, parse_stem

HOW_TO_DUMP: Final = (
    "kubectl get pods,services,endpointslices,nodes,replicasets,jobs -A -o json"
    " > cluster-$(date -u +%Y%m%dT%H%M%SZ).json"
)
_SUFFIXES: Final = (".json", ".json.gz", ".json.zst")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_HEAVY: Final = frozenset(("args", "command", "env", "envFrom", "images", "managedFields", "volumeMounts", "volumes"))
"""Never needed, and most of a dump's size: dropped while parsing."""

# What the API server and the kubelet stamp with their present time.
_STAMP: Final = re.compile(
    r'"(?:creationTimestamp|startTime|completionTime|startedAt|finishedAt|lastTransitionTime|lastHeartbeatTime'
    r'|renewTime|time)"\s*:\s*"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)'
)
_CIVIL: Final = re.compile(r"(?<!\d)(20\d\d)-?(\d\d)-?(\d\d)[T_-]?(\d\d)[:-]?(\d\d)[:-]?(\d\d)(?!\d)")
_SECONDS: Final = re.compile(r"(?<!\d)(1\d{9})(?!\d)")


@dataclass(frozen=True, slots=True)
class Dump:
    """One file: what the cluster looked like at one moment."""

    path: str
    taken_ns: int
    """It was taken at this time or later."""
    objects: list[dict[str, Any]]
    """API objects, each with its `kind`."""
    is_part: bool
    """It holds single objects, or a page of a list: what it lacks may be there."""

    @property
    def name(self) -> str:
        """The file's name."""
        return Path(self.path).name


@lru_cache(maxsize=1 << 16)
def parse_time(text: str) -> int:
    """An API server's RFC 3339 time in nanoseconds since 1970; ValueError if it is none."""
    return (datetime.fromisoformat(text) - _EPOCH) // timedelta(microseconds=1) * 1000


def format_time(time_ns: int) -> str:
    """What parse_time reads, in whole seconds, or in microseconds where they are none."""
    time = _EPOCH + timedelta(microseconds=time_ns // 1000)
    return f"{time:%Y-%m-%dT%H:%M:%S.%fZ}" if time.microsecond else f"{time:%Y-%m-%dT%H:%M:%SZ}"


def taken_ns(file_name: str, text: str) -> int:
    """When a dump was taken, at the earliest.

    kubectl does not write it down. A UTC time or epoch seconds in the file's name say it; the newest time that an
    object in it carries bounds it from below, and is all there is if the name is silent. The file's own time of
    modification says nothing: it is that of the last copy.
    """
    newest = max(_STAMP.findall(text), default="1970-01-01T00:00:00")
    return max(_time_in_name(file_name), parse_time(newest + "Z"))


def _time_in_name(name: str) -> int:
    for match in _CIVIL.finditer(name):
        try:
            return (datetime(*map(int, match.groups()), tzinfo=UTC) - _EPOCH) // timedelta(seconds=1) * 10**9  # type: ignore[arg-type, misc]
        except ValueError:  # digits, but no date
            continue
    seconds = _SECONDS.search(name)
    return int(seconds[1]) * 10**9 if seconds else 0


def read_dumps(paths: Sequence[str]) -> tuple[list[Dump], list[Problem]]:
    """Read files, and the .json, .json.gz and .json.zst files of folders; PodtapError if one does not exist."""
    dumps, problems = [], []
    for path in paths:
        for file in _files(Path(path)):
            dump, damage = _read_dump(file)
            dumps.append(dump)
            problems.extend(damage)
    return dumps, problems


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if _may_be_dump(file) and file.is_file())
    if not path.exists():
        raise PodtapError(f"{path}: no such file or folder; make one with: {HOW_TO_DUMP}")
    return [path]


def _may_be_dump(file: Path) -> bool:
    """Not what a recorder writes beside its captures."""
    is_recorders = parse_stem(file.name) or file.name == BUNDLE or file.parent.name == FREEZES
    return file.name.endswith(_SUFFIXES) and not is_recorders


def _read_dump(file: Path) -> tuple[Dump, list[Problem]]:
    problems = []
    content, damage = _content(file)
    if damage:
        problems.append(Problem(str(file), None, f"{damage}; what was read before is used"))
    text = content.decode(json.detect_encoding(content), "replace")  # PowerShell writes UTF-16
    documents, end, complaint = _documents(text)
    if complaint:
        offset = len(text[:end].encode())
        problems.append(Problem(str(file), offset, f"not JSON: {complaint}; dump again with: {HOW_TO_DUMP}"))
    objects = [item for document in documents for item in _objects(document)]
    is_part = not all(_is_whole_list(document) for document in documents)
    return Dump(str(file), taken_ns(file.name, text), objects, is_part), problems


def _content(file: Path) -> tuple[bytes, str | None]:
    with file.open("rb") as source:
        stream = ContentStream(source)
        content, piece = bytearray(), memoryview(bytearray(1 << 20))
        while filled := stream.readinto(piece):
            content += piece[:filled]
    return bytes(content), stream.damage


def _documents(text: str) -> tuple[list[Any], int, str | None]:
    """The JSON values that follow each other in `text`, and where and why reading stopped before its end."""
    decoder = json.JSONDecoder(object_hook=_without_heavy)
    documents: list[Any] = []
    at = 0
    while at < len(text) and (rest := re.compile(r"[^\s\ufeff]").search(text, at)):
        try:
            document, at = decoder.raw_decode(text, rest.start())
        except json.JSONDecodeError as error:
            return documents, error.pos, error.msg
        except RecursionError:
            return documents, rest.start(), "nested too deeply"
        documents.append(document)
    return documents, at, None


def _without_heavy(value: dict[str, Any]) -> dict[str, Any]:
    for key in _HEAVY & value.keys():
        if not isinstance(value[key], str):  # labels may be called so too
            del value[key]
    return value


def _is_whole_list(document: Any) -> bool:
    if not isinstance(document, dict) or not isinstance(document.get("items"), list):
        return False
    metadata = document.get("metadata")
    return not (isinstance(metadata, dict) and metadata.get("continue"))


def _objects(document: Any) -> Iterator[dict[str, Any]]:
    """The objects of a List, a PodList (whose items don't carry their kind) or a single one."""
    kind = document.get("kind") if isinstance(document, dict) else None
    if not isinstance(kind, str):
        return
    if not kind.endswith("List"):
        yield document
        return
    items = document.get("items")
    for item in items if isinstance(items, list) else []:
        if isinstance(item, dict):
            yield {"kind": kind.removesuffix("List"), **item}
