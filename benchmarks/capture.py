"""podtap's agent beside tcpdump, dumpcap and netsniff-ng: processor time a packet, drops, memory.

Each captures the same frames with a ring of the same size, in turn, several times; processor time is what it used from
when it was ready to its exit: podtap's with everything that seals a segment, and once more without SHA-256 and
rotation.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.lab.namespaces import Namespace, new_prefix, remove, remove_abandoned  # noqa: E402

KIB = 1024
READY_SECONDS = 10.0


@dataclass(frozen=True)
class Contender:
    """How to run it, when it is ready, and what it says that it captured and dropped."""

    name: str
    command: Callable[[Path, argparse.Namespace], list[str]]
    is_ready: Callable[[str], bool]
    counts: Callable[[Path, str], tuple[int, int]]
    """(captured, dropped) of its folder and what it printed."""


@dataclass
class Result:
    """Of one contender, a value a run."""

    cpu_seconds: list[float] = field(default_factory=list)
    captured: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)
    hash_seconds: list[float] = field(default_factory=list)
    """What SHA-256 of all that it wrote takes; podtap's includes it."""


def number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    return int(match[1]) if match else -1


def podtap_counts(folder: Path, _: str) -> tuple[int, int]:
    ledgers = [json.loads(path.read_text())["ledger"] for path in folder.glob("*/*/*/*.json")]
    written = sum(ledger["written"] for ledger in ledgers)
    return written, sum(ledger["accepted"] for ledger in ledgers) - written


PODTAP = (str(ROOT / ".venv/bin/podtap"),)
ALONE = (sys.executable, str(ROOT / "benchmarks/capture_alone.py"))


def podtap(name: str, *more: str, program: tuple[str, ...] = PODTAP) -> Contender:
    def command(folder: Path, options: argparse.Namespace) -> list[str]:
        agent = [*program, "agent", "-i", options.interface, "-B", str(options.ring), *more]
        return [*agent, "--root", str(folder), "--metrics", "", "--quota", "500G"]

    return Contender(name, command, lambda text: '"recording"' in text, podtap_counts)


def tcpdump(name: str, snaplen: int) -> Contender:
    def command(folder: Path, options: argparse.Namespace) -> list[str]:
        flags = ["-n", "-Z", "root", "--time-stamp-precision=nano", "-s", str(snaplen), "-B", str(options.ring)]
        return ["tcpdump", "-i", options.interface, *flags, "-w", str(folder / "x.pcap")]

    return Contender(
        name,
        command,
        lambda text: "listening on" in text,
        lambda _, text: (number(r"(\d+) packets captured", text), number(r"(\d+) packets dropped by kernel", text)),
    )


def dumpcap(folder: Path, options: argparse.Namespace) -> list[str]:
    return ["dumpcap", "-i", options.interface, "-B", str(options.ring // KIB), "-w", str(folder / "x.pcap"), "-q"]


def netsniff(folder: Path, options: argparse.Namespace) -> list[str]:
    ring = ["--ring-size", f"{options.ring}KiB"]
    return ["netsniff-ng", "-i", options.interface, "-o", str(folder / "x.pcap"), "-s", "-T", "0xa1b23c4d", *ring]


CONTENDERS = (
    podtap("podtap -s 0", "-s", "0"),
    tcpdump("tcpdump -s 0", 0),
    podtap("podtap"),
    podtap("podtap alone", "-C", "100000", "-G", "86400", program=ALONE),
    tcpdump("tcpdump -s 96", 96),
    Contender(
        "dumpcap",
        dumpcap,
        lambda text: "Capturing on" in text,
        lambda _, text: (
            number(r"received/dropped on interface .*?: (\d+)/", text),
            number(r"received/dropped on interface .*?: \d+/(\d+)", text),
        ),
    ),
    Contender(
        "netsniff-ng",
        netsniff,
        lambda text: "Running!" in text,
        lambda _, text: (number(r"(\d+)\s+packets passed", text), number(r"(\d+)\s+packets failed", text)),
    ),
)
RATIOS = (
    ("podtap -s 0", "tcpdump -s 0", 0.9),
    ("podtap", "tcpdump -s 96", 0.9),
    ("podtap alone", "tcpdump -s 96", 0.75),
)


def installed(contender: Contender) -> bool:
    return shutil.which(contender.name.split()[0]) is not None


def cpu_clock(pid: int) -> float:
    """Processor seconds of all threads of another process, also of those that ended."""
    return time.clock_gettime((~pid << 3) | 2)


def resident_mib(pid: int) -> float:
    """Without the kernel's ring, which every contender maps."""
    total = 0
    for block in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path(f"/proc/{pid}/smaps").read_text()):
        if "socket:[" not in block.partition("\n")[0]:
            total += number(r"Rss:\s+(\d+) kB", block)
    return total / KIB


def hash_seconds_a_byte() -> float:
    """Processor time of SHA-256 alone, over bytes that are in the cache."""
    piece, pieces = os.urandom(256 * KIB), 512
    digest = hashlib.sha256()
    before = time.thread_time()
    for _ in range(pieces):
        digest.update(piece)
    return (time.thread_time() - before) / (len(piece) * pieces)


def run(contender: Contender, right: Namespace, left: Namespace, options: argparse.Namespace, result: Result) -> None:
    """One run; adds to the result."""
    folder = Path(tempfile.mkdtemp(prefix="podtap-", dir=options.folder))
    log = folder / "log"
    try:
        with log.open("w") as out:
            process = right.start(*contender.command(folder, options), stdout=out, stderr=out)
            deadline = time.monotonic() + READY_SECONDS
            while not contender.is_ready(log.read_text()):
                if time.monotonic() > deadline or process.poll() is not None:
                    raise RuntimeError(f"{contender.name}: {log.read_text()}")
                time.sleep(0.05)
            time.sleep(0.5)
            before = cpu_clock(process.pid)
            traffic = str(ROOT / "benchmarks/traffic.py")
            left.run(sys.executable, traffic, "wire", str(options.packets), str(options.rate), timeout=600)
            time.sleep(1)
            result.memory_mib.append(resident_mib(process.pid))
            process.send_signal(signal.SIGINT)
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        result.cpu_seconds.append(used.ru_utime + used.ru_stime - before)
        written_bytes = sum(path.stat().st_size for path in folder.rglob("*.pcap"))
        result.hash_seconds.append(written_bytes * hash_seconds_a_byte())
        captured, dropped = contender.counts(folder, log.read_text())
        result.captured.append(captured)
        result.dropped.append(dropped)
    finally:
        shutil.rmtree(folder)


def report(results: dict[str, Result], options: argparse.Namespace) -> str:
    rows = [
        f"{options.packets:,} packets, {options.rate:,.0f}/s, interface {options.interface}, ring {options.ring:,} KiB,"
        f" medians of {options.runs}",
        "",
        "| | CPU s | ns a packet | captured | dropped | resident MiB beside the ring |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        cpu = statistics.median(result.cpu_seconds)
        rows.append(
            f"| {name} | {cpu:.2f} | {cpu / options.packets * 1e9:.0f} | {statistics.median(result.captured):,.0f} | "
            f"{statistics.median(result.dropped):,.0f} | {max(result.memory_mib):.0f} |"
        )
    for ours, theirs, wanted in RATIOS:
        if ours in results and theirs in results:
            pairs = zip(results[ours].cpu_seconds, results[theirs].cpu_seconds, strict=True)
            ratio = statistics.median(mine / other for mine, other in pairs)
            hashing = statistics.median(results[ours].hash_seconds)
            theirs_s = statistics.median(results[theirs].cpu_seconds)
            rest = statistics.median(results[ours].cpu_seconds) - hashing
            rows.append(f"\n{ours} / {theirs}: {ratio:.2f} (median of the runs' ratios; wanted: at most {wanted:.2f})")
            if ours == "podtap alone":
                continue
            rows.append(
                f"SHA-256 alone takes {hashing / options.packets * 1e9:.0f} ns a packet, {hashing / theirs_s:.2f}x "
                f"{theirs}; all else that podtap does {rest / options.packets * 1e9:.0f} ns, {rest / theirs_s:.2f}x"
            )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packets", type=int, default=2_000_000)
    parser.add_argument("--rate", type=float, default=330_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--ring", type=int, default=32 * KIB, help="KiB")
    parser.add_argument("--interface", default="wire", choices=["wire", "any"])
    parser.add_argument("--folder", type=Path, help="where captures are written")
    parser.add_argument("--only", default="", help="names, separated by commas")
    options = parser.parse_args()
    remove_abandoned()
    prefix = new_prefix()
    left, right = Namespace(f"{prefix}l"), Namespace(f"{prefix}r")
    try:
        for each in (left, right):
            each.run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
        left.ip(f"link add wire type veth peer name wire netns {right.name}", "link set wire up arp off")
        right.ip("link set wire up arp off")
        wanted = [each for each in CONTENDERS if not options.only or each.name in options.only.split(",")]
        absent = {each.name for each in wanted if not each.name.startswith("podtap") and not installed(each)}
        for name in sorted(absent):
            print(f"{name} is not installed, and left out", file=sys.stderr)
        wanted = [each for each in wanted if each.name not in absent]
        results = {each.name: Result() for each in wanted}
        for _ in range(options.runs):
            for contender in wanted:
                run(contender, right, left, options, results[contender.name])
        print(report(results, options))
    finally:
        remove([left.name, right.name])


if __name__ == "__main__":
    main()
