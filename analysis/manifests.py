"""Manifests: what the agent wrote beside its segments, and the names of interfaces that follow from them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from analysis.errors import Problem
from capture.contract import MANIFEST_SUFFIX, PART, SEGMENT_SUFFIXES, ContractError, Interface, Manifest, from_json

BEGINNING_NS: Final = -(2**63)
_SEGMENT_PATH: Final = re.compile(
    r"(?:^|/)(?P<cluster>[^/]+)/(?P<node>[^/]+)/(?P<stem>\d{8}/(?P<start_ns>\d{19})-(?P<seq>\d{6,}))"
    r"(?P<suffix>\.pcap(?:\.zst)?)(?P<part>\.part)?$"
)


@dataclass(frozen=True)
class Place:
    """Where in a recording a file lies, by its path."""

    folder: str
    """The node's."""
    cluster: str
    """As a folder is called; a manifest says the very name."""
    node: str
    stem: str
    seq: int
    is_part: bool


def place_of(path: str) -> Place | None:
    """The place of a segment by its (absolute) path; None for a capture that no agent wrote."""
    match = _SEGMENT_PATH.search(path)
    if match is None:
        return None
    folder = path[: match.end("node")]
    return Place(folder, match["cluster"], match["node"], match["stem"], int(match["seq"]), bool(match["part"]))


def manifest_path(segment: str) -> Path:
    """Where the manifest of a capture file is, if it has one."""
    path = Path(segment.removesuffix(PART))
    suffix = next((each for each in reversed(SEGMENT_SUFFIXES) if path.name.endswith(each)), path.suffix)
    return path.with_name(path.name.removesuffix(suffix) + MANIFEST_SUFFIX)


def read_manifest(segment: str) -> Manifest | Problem | None:
    """What stands beside a segment; a Problem if that is no manifest, None if there is nothing."""
    path = manifest_path(segment)
    try:
        return from_json(Manifest, path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        return Problem(str(path), None, f"can't be read: {error.strerror or error}")
    except ContractError as error:
        return Problem(str(path), None, f"{error}; its segment was read without it")


class InterfaceNames:
    """What a node's interfaces were called, by index and time."""

    def __init__(self, interfaces: Iterable[Interface] = ()) -> None:
        self._of: dict[int, list[tuple[int, str]]] = {}
        for each in sorted(interfaces, key=lambda each: each.since_ns or BEGINNING_NS):
            names = self._of.setdefault(each.index, [])
            if not names or names[-1][1] != each.name:
                names.append((BEGINNING_NS if each.since_ns is None else each.since_ns, each.name))

    def of(self, index: int) -> list[tuple[int, str]]:
        """(Since when, name), in order; the first one counts before its time, too. Never empty."""
        return self._of.get(index) or [(BEGINNING_NS, f"if{index}")]


def names_without_manifest(stem: str, manifests: Sequence[Manifest]) -> InterfaceNames:
    """The names in a segment that has no manifest: as the node's manifests before and after it leave and find them."""
    before = max((each for each in manifests if each.stem < stem), key=lambda each: each.stem, default=None)
    after = min((each for each in manifests if each.stem > stem), key=lambda each: each.stem, default=None)
    found = {each.index: each for each in (after.interfaces if after else ()) if each.since_ns is None}
    found |= {each.index: each for each in (before.interfaces if before else ()) if each.until_ns is None}
    return InterfaceNames(Interface(each.index, each.name) for each in found.values())
