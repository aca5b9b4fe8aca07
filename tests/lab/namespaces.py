"""Network namespaces: what pods, nodes and the wire between nodes are made of.

All namespaces of one lab share a prefix that names the process which made them, so that whoever comes next can remove
what a crash left behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

MOUNTED: Final = Path("/run/netns")
FILES: Final = Path("/etc/netns")
"""What `ip netns exec` lays over /etc inside a namespace, such as its resolv.conf."""
PREFIX: Final = "podtap"
CLONE_NEWNET: Final = 0x40000000
_numbers: Final = itertools.count(1)
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """One network namespace. Commands see its own /etc/resolv.conf and the like, if files() wrote any."""

    def __init__(self, name: str) -> None:
        self.name = name
        _call("ip", "netns", "add", name)
        self.ip("link set lo up")

    def ip(self, *lines: str) -> None:
        """Several `ip` commands in one process; a line is what follows the word ip."""
        _call("ip", "-n", self.name, "-batch", "-", given="\n".join(lines) + "\n")

    def run(self, *argv: str, given: str | None = None, check: bool = True, timeout: float = 60) -> str:
        """Standard output of a command that runs inside."""
        return _call("ip", "netns", "exec", self.name, *argv, given=given, check=check, timeout=timeout)

    def start(self, *argv: str, **options: Any) -> subprocess.Popen[str]:
        """A command that goes on inside; close() ends it, if nobody did before."""
        options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "text": True} | options
        return subprocess.Popen(["ip", "netns", "exec", self.name, *argv], **options)

    def files(self, **texts: str) -> None:
        """Own versions of files in /etc: files(**{"resolv.conf": "nameserver 10.96.0.10\\n"})."""
        folder = FILES / self.name
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread is inside meanwhile. Sockets made there stay there; files() are not seen."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(MOUNTED / self.name, os.O_RDONLY)
        try:
            _set_namespace(there)
            try:
                yield
            finally:
                _set_namespace(home)
        finally:
            os.close(there)
            os.close(home)

    def close(self) -> None:
        remove([self.name])


def new_prefix() -> str:
    """For the names of one lab's namespaces: podtap-<pid>-<its start time>-<number>-"""
    return f"{PREFIX}-{os.getpid()}-{_started(os.getpid())}-{next(_numbers)}-"


def remove_abandoned() -> None:
    """Removes the namespaces of labs whose process is gone."""
    names = [path.name for path in MOUNTED.glob(f"{PREFIX}-*")] if MOUNTED.exists() else []
    remove(name for name in names if not _is_alive(*name.split("-")[1:3]))


def remove(names: Iterable[str]) -> None:
    """Ends what runs in the namespaces, and deletes them with their interfaces."""
    names = list(names)
    pids = {int(pid) for name in names for pid in _call("ip", "netns", "pids", name, check=False).split()}
    pids.discard(os.getpid())
    for sent in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sent)
        deadline = time.monotonic() + 0.5
        while pids and time.monotonic() < deadline:
            pids = {pid for pid in pids if _is_running(pid)}
            time.sleep(0.01)
    for name in names:
        _call("ip", "netns", "delete", name, check=False)
        shutil.rmtree(FILES / name, ignore_errors=True)


def _call(*argv: str, given: str | None = None, check: bool = True, timeout: float = 60) -> str:
    done = subprocess.run(argv, input=given, capture_output=True, text=True, timeout=timeout)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: exit code {done.returncode}\n{given or ''}{done.stderr}{done.stdout}")
    return done.stdout


def _set_namespace(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _started(pid: int) -> str:
    """When a process began, in clock ticks since the machine did: a pid may be used again, this pair not."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def _is_alive(pid: str, started: str) -> bool:
    try:
        return _started(int(pid)) == started
    except (OSError, ValueError):
        return False


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
