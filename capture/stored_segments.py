"""What lies in a node's folder: sealed segments, and what a crash or a stranger left."""

from __future__ import annotations

import json
import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from capture.contract import MANIFEST_SUFFIX, PART, SEGMENT_SUFFIXES, sha256
from capture.retention import NAMES_BYTES, StoredSegment, on_disk
from capture.segment_writer import PCAP, TEMPORARY

ZSTD: Final = SEGMENT_SUFFIXES[1]
_DAY: Final = re.compile(r"\d{8}", re.ASCII)
_NAME: Final = re.compile(r"(\d{19}-\d{6,})(\.pcap|\.pcap\.zst|\.pcap\.part|\.json)", re.ASCII)
_MOST_MANIFEST_BYTES: Final = 16 << 20


@dataclass
class Found:
    """All files of a node's folder that are the ring's."""

    segments: list[StoredSegment] = field(default_factory=list)
    """Sealed, oldest first."""
    without_data: list[StoredSegment] = field(default_factory=list)
    """Manifests whose segment is gone."""
    unsealed: list[Path] = field(default_factory=list)
    """Segments without a manifest that can be read, and open files; oldest first."""
    temporary: list[Path] = field(default_factory=list)
    """Left of files that a crash kept from getting their name."""


def find(folder: Path) -> Found:
    """Look through a node's folder. Links and other files are nobody's business."""
    found = Found()
    now_ns, boot_ns = time.time_ns(), boot_time_ns()
    for day in _days(folder):
        for name, files in sorted(_files_of(folder / day, found.temporary).items()):
            stem = f"{day}/{name}"
            data = [suffix for suffix in SEGMENT_SUFFIXES if suffix in files]
            segment = _stored(folder, stem, files, now_ns, boot_ns) if MANIFEST_SUFFIX in files else None
            if segment and len(data) > 1:  # compressed, and the crash came before the other one went
                found.temporary.append(folder / f"{stem}{PCAP}")
                segment.disk_bytes -= on_disk(files[PCAP].st_size)
            if segment:
                (found.segments if data else found.without_data).append(segment)
            elif data:
                found.unsealed.append(folder / f"{stem}{data[0]}")
            if PCAP + PART in files:
                found.unsealed.append(folder / f"{stem}{PCAP}{PART}")
    return found


def _files_of(folder: Path, temporary: list[Path]) -> dict[str, dict[str, os.stat_result]]:
    """Name -> suffix -> what stat says, of the ring's files in a day's folder. Temporary ones go to the list."""
    found: dict[str, dict[str, os.stat_result]] = {}
    for entry in _entries(folder):
        match = _NAME.fullmatch(entry.name)
        if match:
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISREG(status.st_mode):
                found.setdefault(match[1], {})[match[2]] = status
        elif entry.name.endswith(TEMPORARY):
            temporary.append(Path(entry.path))
    return found


def _days(folder: Path) -> list[str]:
    entries = _entries(folder)
    return sorted(entry.name for entry in entries if _DAY.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False))


def names(folder: Path) -> set[str]:
    """`<day>/<name>` of all that is in the folders of days; quick."""
    return {f"{day}/{entry.name}" for day in _days(folder) for entry in _entries(folder / day)}


def boot_time_ns() -> int:
    """Of the clock that nobody sets."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return  # gone meanwhile


def _stored(
    folder: Path, stem: str, files: dict[str, os.stat_result], now_ns: int, boot_ns: int
) -> StoredSegment | None:
    """As its manifest tells; leniently: one that a later version wrote has its place in the chain too."""
    try:
        with open(folder / f"{stem}{MANIFEST_SUFFIX}", "rb") as file:
            data = file.read(_MOST_MANIFEST_BYTES)
        values = json.loads(data)
        segment = from_manifest(stem, values, sha256(data), _disk_bytes(files), boot_ns)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    segment.sealed_boot_ns = boot_ns - max(0, now_ns - _int(values["sealed_ns"]))
    segment.pinned = not any(files[each].st_mode & stat.S_IWUSR for each in SEGMENT_SUFFIXES if each in files)
    return segment


def from_manifest(
    stem: str, values: dict[str, Any], manifest_sha256: str, disk_bytes: int, boot_ns: int
) -> StoredSegment:
    """`values`: of a manifest. KeyError, TypeError: they are not as they should be."""
    first, last, previous = (values.get(key) for key in ("first_packet_ns", "last_packet_ns", "previous_sha256"))
    return StoredSegment(
        stem=stem,
        manifest_sha256=manifest_sha256,
        previous_sha256=None if previous is None else _str(previous),
        sha256=_str(values["sha256"]),
        since_ns=_int(values["opened_ns"] if first is None else first),
        until_ns=_int(values["sealed_ns"] if last is None else last),
        packets=_int(values["packets"]),
        size_bytes=_int(values["size_bytes"]),
        disk_bytes=disk_bytes,
        sealed_boot_ns=boot_ns,
    )


def _disk_bytes(files: dict[str, os.stat_result]) -> int:
    return NAMES_BYTES + sum(on_disk(status.st_size) for status in files.values())


def _int(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError("not a whole number")
    return value


def _str(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value
