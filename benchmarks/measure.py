"""One run of one command: how long, how much processor, how much memory."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.1
"""Often enough, and not so often that it takes of the processors what is measured."""


@dataclass(frozen=True)
class Run:
    """Of all processes of the command together."""

    wall_seconds: float
    cpu_seconds: float
    peak_mib: float
    """Resident memory: the sum of every process's own peak, an upper bound where several run."""
    exit_code: int


def run(command: list[str], cores: int, out: Path, cwd: Path, environment: dict[str, str] | None = None) -> Run:
    """Run a command on that many cores of this machine; what it prints goes to `out/stdout` and `out/stderr`."""
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    peaks: dict[int, int] = {}
    ended = threading.Event()
    with (out / "stdout").open("wb") as stdout, (out / "stderr").open("wb") as stderr:
        begin = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            cwd=cwd,
            env={**os.environ, **(environment or {})},
            preexec_fn=lambda: os.sched_setaffinity(0, allowed),
        )
        watcher = threading.Thread(target=watch, args=(process.pid, peaks, ended))
        watcher.start()
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begin
    ended.set()
    watcher.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    return Run(wall, used.ru_utime + used.ru_stime, sum(peaks.values()) / 1024, process.returncode)


def watch(pid: int, peaks: dict[int, int], ended: threading.Event) -> None:
    """Keep the peak (KiB) of the process and of each of its descendants.

    The kernel keeps each one's peak, so few looks will do. What `wait4` says of memory is of no use here: it is never
    less than what this process, which forked, had itself.
    """
    while not ended.wait(SAMPLE_SECONDS):
        waiting = [pid]
        while waiting:
            with contextlib.suppress(OSError):  # it may have ended since it was listed
                each = waiting.pop()
                status = Path(f"/proc/{each}/status").read_text()
                if "VmHWM:" in status:
                    peaks[each] = int(status.partition("VmHWM:")[2].split()[0])
                for task in Path(f"/proc/{each}/task").iterdir():
                    waiting += map(int, (task / "children").read_text().split())
