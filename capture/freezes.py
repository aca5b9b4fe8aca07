"""A node's freezes/*.json: windows whose segments are kept. Anybody on the node may add one; the ring reads them.

No API server is needed, nor a running agent: the next start reads them too.
"""

from __future__ import annotations

import os
import secrets
import stat
import time
from pathlib import Path
from typing import Final

from capture.contract import FREEZES, MANIFEST_SUFFIX, ContractError, Freeze, from_json, safe_name, to_json
from capture.errors import UsageError
from capture.segment_writer import sync_folder, write_atomically

_MOST_BYTES: Final = 64 * 1024


def add_freeze(
    folder: Path, since_ns: int, until_ns: int, reason: str = "", by: str = "", freeze_id: str | None = None
) -> Freeze:
    """Pin [since, until) in a node's folder, from now on. `freeze_id`: where many nodes are to share one.

    UsageError: the window is empty. FileNotFoundError: there is no such folder.
    """
    if until_ns <= since_ns:
        raise UsageError("nothing to freeze: the end of the window is not after its beginning")
    now_ns = time.time_ns()
    freeze = Freeze(freeze_id or f"{now_ns:019d}-{secrets.token_hex(3)}", since_ns, until_ns, reason, now_ns, by)
    freezes = folder / FREEZES
    freezes.mkdir(exist_ok=True)
    write_atomically(_path(folder, freeze.id), to_json(freeze))
    sync_folder(folder)
    return freeze


def thaw(folder: Path, freeze_id: str) -> bool:
    """Let go of a freeze: its segments are evicted in their turn. False: there is none of this id."""
    try:
        _path(folder, freeze_id).unlink()
    except FileNotFoundError:
        return False
    sync_folder(folder / FREEZES)
    return True


def read_freezes(folder: Path) -> tuple[list[Freeze], list[str]]:
    """All freezes of a node's folder, and what is wrong with those that could not be read."""
    reader = FreezeReader()
    return reader.read(folder), reader.problems


class FreezeReader:
    """Reads them again and again; what was known of a file that can't be read any more still holds."""

    def __init__(self) -> None:
        self._known: dict[str, Freeze] = {}
        self.problems: list[str] = []

    def read(self, folder: Path) -> list[Freeze]:
        """OSError: freezes can't be listed, so nothing may be evicted."""
        known: dict[str, Freeze] = {}
        self.problems = []
        for name in _names(folder):
            try:
                known[name] = _read(folder, name)
            except FileNotFoundError:
                continue  # thawed meanwhile
            except (OSError, ContractError) as error:
                self.problems.append(f"{FREEZES}/{name} can't be read: {error}")
                if name in self._known:
                    known[name] = self._known[name]
        self._known = known
        return list(known.values())


def _path(folder: Path, freeze_id: str) -> Path:
    return folder / FREEZES / f"{safe_name(freeze_id)}{MANIFEST_SUFFIX}"


def _names(folder: Path) -> list[str]:
    try:
        names = os.listdir(folder / FREEZES)
    except FileNotFoundError:
        return []
    return sorted(name for name in names if name.endswith(MANIFEST_SUFFIX) and not name.startswith("."))


def _read(folder: Path, name: str) -> Freeze:
    """Never waits at a FIFO, never follows a link out of the folder, never reads much."""
    fd = os.open(folder / FREEZES / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ContractError("it is no file")
        data = os.read(fd, _MOST_BYTES)
    finally:
        os.close(fd)
    return from_json(Freeze, data)
