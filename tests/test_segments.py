"""Finding, ordering and reading capture files; every shared capture is compared with what tshark read of it."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import random
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import lz4.frame
import numpy as np
import pytest
import xxhash
import zstandard

from analysis.compression import ContentStream
from analysis.errors import PodtapError, UsageError
from analysis.segments import Segment, find_segments
from tests import naive_framing as naive

PCAPS = Path(__file__).resolve().parents[1].parent / "shared" / "pcaps"
SECOND = 10**9


def capture(first_s: int = 1000, packets: int = 3) -> bytes:
    header = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, 1)
    return header + b"".join(struct.pack("<IIII", first_s + i, 0, 4, 4) + b"abcd" for i in range(packets))


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def only(path: Path | str) -> Segment:
    segments, problems = find_segments([str(path)])
    assert problems == []
    return segments[0]


def count(segment: Segment, chunk_bytes: int = 1 << 20) -> int:
    return sum(len(frames) for _, frames in segment.chunks(chunk_bytes))


# --- tshark's answers ------------------------------------------------------------------------------------------------


def shared_captures() -> list[str]:
    folders = [f for f in PCAPS.glob("*") if f.is_dir() and f.name not in ("oracle", "expected")]
    return sorted(str(path.relative_to(PCAPS)) for folder in folders for path in folder.rglob("*") if path.is_file())


def tshark_frames(name: str) -> list[tuple[int | None, int, int]]:
    with gzip.open(PCAPS / "oracle" / f"{name}.tsv.gz", "rt", errors="replace") as rows:
        next(rows, None)
        return [(_ns(row[1]), int(row[2]), int(row[3])) for row in (line.split("\t", 5) for line in rows)]


def _ns(epoch: str) -> int | None:
    seconds, _, fraction = epoch.partition(".")
    if not epoch:
        return None
    ns = int(seconds) * SECOND + int(fraction.ljust(9, "0"))
    return ns - (1 << 64) // 1000 * 1000 - 1000 * (ns > 1 << 64) if ns > 1 << 63 else ns
