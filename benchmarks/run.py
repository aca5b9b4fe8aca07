"""podtap and its peers on the same captures, in turn: a Markdown report of medians, ratios and peak memory.

    python benchmarks/run.py [--kind ethernet|node|both] [--packets N] [--runs N] [--slow-runs N] [--peers a,b]

A ratio is the peer's wall time divided by podtap's, whole processes, on the same file and the same number of cores.
"""

from __future__ import annotations

import argparse
import compileall
import os
import platform
import re
import socket
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Final

from benchmarks import generate
from benchmarks.measure import Run, run
from benchmarks.peers import NOWHERE, PEERS, PODTAP, ROOT, Peer, install, version

ONE, BOTH = 1, 2


@dataclass(frozen=True)
class Duel:
    """A peer against podtap on that many cores; `target`: how many times faster podtap has to be, None: just told."""

    peer: str
    cores: int
    target: float | None = None
    aim: bool = False
    """The target is hoped for, not promised."""


DUELS: Final = (
    Duel("nfpcapd", ONE, 1, aim=True),
    Duel("nfpcapd", BOTH, 1),
    Duel("softflowd", ONE),
    Duel("argus", ONE, 1),
    Duel("tcptrace", ONE, 1),
    Duel("tenzir", BOTH, 5),
    Duel("nfstream", ONE, 6),
    Duel("tshark", ONE, 30),
    Duel("pcaptoparquet", ONE, 100),
)
SPEEDUP_TARGET: Final = 1.6
"""podtap on both cores against podtap on one."""
MEMORY_TARGET_MIB: Final = 1024
HELP_TARGET_SECONDS: Final = 0.3
COLD_TARGET_SECONDS: Final = 20
SMALL: Final = 20_000

Results = dict[tuple[str, int], list[Run]]
"""The runs of each contender: name, cores."""
Problems = dict[tuple[str, int], str]
"""Why a contender's times count for nothing."""
HEADER: Final = """\
| program | makes | version | cores | runs | seconds (min-max) | CPU s | peak MiB | podtap is faster by | target |
|---|---|---|---|---|---|---|---|---|---|"""


def main() -> None:
    options = arguments()
    peers = {peer.name: peer for peer in PEERS if peer.name in options.peers}
    for name, obstacle in [(name, install(peer)) for name, peer in peers.items()]:
        if obstacle:
            print(f"- {name} left out: {obstacle}")
            del peers[name]
    compile_kernels()
    cores = len(os.sched_getaffinity(0))
    print(f"{processor()}, {cores} cores, Linux {platform.release()}, Python {platform.python_version()}\n")
    for kind in generate.KINDS if options.kind == "both" else [options.kind]:
        compare(kind, options.packets, peers, options.runs, options.slow_runs)
    if options.growth:
        show_growth("ethernet", [options.packets, options.growth])
    show_start(options.runs)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run podtap and its peers on the same captures.")
    parser.add_argument("--kind", choices=[*generate.KINDS, "both"], default="both")
    parser.add_argument("--packets", type=int, default=5_000_000)
    parser.add_argument("--runs", type=int, default=5, help="of each contender; medians are shown (default 5)")
    parser.add_argument("--slow-runs", type=int, default=1, help="of tshark and pcaptoparquet (default 1)")
    parser.add_argument("--growth", type=int, default=20_000_000, help="packets of the larger file for memory; 0: none")
    parser.add_argument("--peers", type=lambda text: text.split(","), default=[peer.name for peer in PEERS])
    options = parser.parse_args()
    if unknown := set(options.peers) - {peer.name for peer in PEERS}:
        parser.error(f"no such peer: {', '.join(sorted(unknown))}")
    return options


def processor() -> str:
    name = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return name[1] if name else platform.machine()


# --- Runs ------------------------------------------------------------------------------------------------------------


def compare(kind: str, packets: int, peers: dict[str, Peer], runs: int, slow_runs: int) -> None:
    """All contenders on one capture, one after the other, round after round."""
    capture = generate.capture(kind, packets)
    read_once(capture)
    duels = [duel for duel in DUELS if duel.peer in peers]
    contenders = [(PODTAP, ONE), (PODTAP, BOTH), *((peers[duel.peer], duel.cores) for duel in duels)]
    results: Results = {(peer.name, cores): [] for peer, cores in contenders}
    left_out: Problems = {}
    for number in range(runs):
        for peer, cores in contenders:
            key = peer.name, cores
            if key not in left_out and not (peer.slow and number >= slow_runs):
                print(f"{kind}, round {number + 1}: {peer.name}, cores: {cores}", file=sys.stderr)
                done, problem = once(peer, capture, cores, packets)
                results[key].append(done)
                if problem:
                    left_out[key] = problem
    size_mb = capture.stat().st_size / 1e6
    print(f"## {kind}: {packets:,} packets, {size_mb:,.0f} MB\n")
    show_duels(duels, peers, results, left_out)


def once(peer: Peer, capture: Path, cores: int, packets: int) -> tuple[Run, str]:
    """One run, and what was wrong with it: nothing, if the peer ended well and had read all packets."""
    with tempfile.TemporaryDirectory(dir=generate.DATA) as folder, nowhere():
        out = Path(folder)
        done = run(peer.command(capture, out, cores), cores, out, ROOT)
        if done.exit_code:
            last = (out / "stderr").read_text(errors="replace").strip().splitlines()[-1:]
            return done, f"exit code {done.exit_code}: {' '.join(last)}"
        try:
            counted = peer.counted(out)
        except OSError:
            counted = 0
        return done, "" if counted == packets else f"read {counted:,} of {packets:,} packets"


@contextmanager
def nowhere() -> Iterator[None]:
    """Take the flows that softflowd sends, and do nothing with them."""
    host, _, port = NOWHERE.partition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taker:
        taker.bind((host, int(port)))
        yield


def read_once(capture: Path) -> None:
    """So that nobody waits for the disk."""
    with capture.open("rb") as data:
        while data.read(1 << 24):
            pass


def compile_kernels() -> None:
    """So that podtap need not, nor Python its modules; and there is nothing to measure where it does not work."""
    compileall.compile_dir(ROOT / "analysis", quiet=1)
    _, problem = once(PODTAP, generate.capture("node", SMALL), BOTH, SMALL)
    if problem:
        sys.exit(f"podtap does not analyse {SMALL:,} packets: {problem}")


# --- The report ------------------------------------------------------------------------------------------------------


def typical(runs: list[Run]) -> Run:
    """The median of each figure."""
    return Run(*(statistics.median(figures) for figures in zip(*map(astuple, runs), strict=True)))


def verdict(value: float, target: float | None, aim: bool = False) -> str:
    """A ratio beside its target."""
    if target is None:
        return ""
    missed = "not yet (an aim)" if aim else "missed"
    return f"{'ok' if value >= target else missed}, at least {target:g}x"


def show_duels(duels: list[Duel], peers: dict[str, Peer], results: Results, left_out: Problems) -> None:
    print(HEADER)
    for cores in (ONE, BOTH):
        runs = results[PODTAP.name, cores]
        ratio, target = "", left_out.get((PODTAP.name, cores), "")
        if cores == BOTH and not target:
            speedup = typical(results[PODTAP.name, ONE]).wall_seconds / typical(runs).wall_seconds
            ratio, target = f"itself on one core, {speedup:.2f}x", verdict(speedup, SPEEDUP_TARGET)
        print(row(PODTAP, "this", cores, runs, ratio, target))
    for duel in duels:
        key = duel.peer, duel.cores
        peer, runs = peers[duel.peer], results[key]
        times = typical(runs).wall_seconds / typical(results[PODTAP.name, duel.cores]).wall_seconds
        ratio, target = f"{times:.2f}x", verdict(times, duel.target, duel.aim)
        if problem := left_out.get(key) or left_out.get((PODTAP.name, duel.cores)):
            ratio, target = "no ratio", problem
        print(row(peer, version(peer), duel.cores, runs, ratio, target))
    peak = max(typical(results[PODTAP.name, cores]).peak_mib for cores in (ONE, BOTH))
    print(f"\npodtap's peak memory: {peak:,.0f} MiB, {limit(peak, MEMORY_TARGET_MIB, 'MiB')}\n")


def row(peer: Peer, its_version: str, cores: int, runs: list[Run], ratio: str, target: str) -> str:
    walls = [each.wall_seconds for each in runs]
    seconds = f"{statistics.median(walls):.2f} ({min(walls):.2f}-{max(walls):.2f})"
    usual = typical(runs)
    figures = f"{cores} | {len(runs)} | {seconds} | {usual.cpu_seconds:.2f} | {usual.peak_mib:,.0f}"
    return f"| {peer.name} | {peer.makes} | {its_version} | {figures} | {ratio} | {target} |"


def limit(value: float, most: float, unit: str) -> str:
    return f"{'ok' if value < most else 'missed'}, under {most:g} {unit}"


def show_growth(kind: str, sizes: list[int]) -> None:
    """Memory and speed of podtap as the file grows."""
    print("## Growth\n\n| packets | cores | seconds | packets/s | peak MiB | limit |\n|---|---|---|---|---|---|")
    for packets in sizes:
        capture = generate.capture(kind, packets)
        read_once(capture)
        for cores in (ONE, BOTH):
            print(f"growth, {packets:,} packets, cores: {cores}", file=sys.stderr)
            done, problem = once(PODTAP, capture, cores, packets)
            memory = problem or limit(done.peak_mib, MEMORY_TARGET_MIB, "MiB")
            cells = f"{done.wall_seconds:.1f} | {packets / done.wall_seconds:,.0f} | {done.peak_mib:,.0f} | {memory}"
            print(f"| {packets:,} | {cores} | {cells} |")
    print()


def show_start(runs: int) -> None:
    """`podtap --help`, and what the very first run takes longer because it compiles."""
    capture = generate.capture("node", SMALL)
    with tempfile.TemporaryDirectory(dir=generate.DATA) as folder:
        out = Path(folder)
        asked = [run([sys.executable, "-m", "podtap", "--help"], ONE, out, ROOT) for _ in range(runs)]
        cold = run(PODTAP.command(capture, out / "1", BOTH), BOTH, out, ROOT, {"NUMBA_CACHE_DIR": f"{out}/cache"})
        says_so = "compil" in (out / "stderr").read_text(errors="replace")
        usual = run(PODTAP.command(capture, out / "2", BOTH), BOTH, out, ROOT)
    seconds = typical(asked).wall_seconds
    extra = cold.wall_seconds - usual.wall_seconds
    print("## Start\n")
    print(f"- `podtap --help`: {seconds:.2f} s, {limit(seconds, HELP_TARGET_SECONDS, 's')}")
    print(f"- the very first run ({SMALL:,} packets): {extra:.1f} s more, {limit(extra, COLD_TARGET_SECONDS, 's')};")
    print(f"  it says that it compiles: {'yes' if says_so else 'no'}; exit codes {cold.exit_code}, {usual.exit_code}")


if __name__ == "__main__":
    main()
