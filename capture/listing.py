"""What a node says of its recording: one line of `podtap agent list -o json` for each folder of a node."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from capture.contract import ContractError, Freeze, from_json

FOLDER: Final = r"[A-Za-z0-9%~][A-Za-z0-9._%~-]*"
"""One part of a path, as contract.safe_name() makes it."""
_PATH: Final = re.compile(rf"{FOLDER}/{FOLDER}", re.ASCII)


@dataclass
class Listed:
    """One segment of a window."""

    path: str
    """`<cluster>/<node>/<day>/<start>-<seq>`"""
    start_ns: int
    end_ns: int
    packets: int
    size_bytes: int
    """Of the packets, uncompressed."""
    send_bytes: int
    """About what it takes to send it."""


@dataclass
class NodeListing:
    """What a node's folder holds, and what of it is in the window."""

    cluster: str
    node: str
    path: str
    """`<cluster>/<node>` as folders."""
    now_ns: int
    """The node's clock."""
    oldest_ns: int | None = None
    newest_ns: int | None = None
    open_since_ns: int | None = None
    """The segment that is being written began then."""
    pinned_segments: int = 0
    """Of all: what freezes keep, as the agent last saw to it."""
    pinned_bytes: int = 0
    segments: list[dict[str, Any]] = field(default_factory=list)
    """As Listed."""
    freezes: list[dict[str, Any]] = field(default_factory=list)
    """As contract.Freeze."""

    def listed(self) -> list[Listed]:
        """The segments of the window."""
        return [Listed(**each) for each in self.segments]

    def line(self) -> str:
        """As parse_listing() takes it."""
        return json.dumps(asdict(self), separators=(",", ":"))


def parse_listing(line: bytes) -> NodeListing:
    """A line that came from a node, and may be anything. ContractError tells what is wrong with it."""
    listing = from_json(NodeListing, line)
    if not _PATH.fullmatch(listing.path):
        raise ContractError(f"{listing.path[:200]!r} is no folder of a node")
    listing.segments = [asdict(from_json(Listed, json.dumps(each).encode())) for each in listing.segments]
    listing.freezes = [asdict(from_json(Freeze, json.dumps(each).encode())) for each in listing.freezes]
    return listing
