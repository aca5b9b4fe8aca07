"""podtap journal against the API server stand-in: what a large cluster costs it, and how it bears faults in real time.

python -m benchmarks.journal scale [--pods N]      memory and processor time of the command; two minutes
python -m benchmarks.journal faults [--rounds N]   requests while a fault lasts, seconds until all is known; 4 minutes
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from capture.reflector import TIMING
from tests.journal_rig import PODS, churn, make_pod, make_server, running
from tests.journals import files_of
from tests.kubeconfigs import write_kubeconfig
from tests.lab.api_server import ApiServer

PODTAP: Final = Path(sys.executable).with_name("podtap")
FAULTS: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("500", {}),
    ("429", {"retry_after": 1}),
    ("401", {}),
    ("403", {}),
    ("410", {"verb": "watch"}),
    ("eof", {}),
    ("reset", {}),
    ("silence", {}),
    ("bad-json", {}),
    ("slow", {"delay": 0.5}),
    ("down", {}),
    ("down, then forgets", {}),
)
LASTS_S: Final = (120.0, 160.0)


def heavy_pod(number: int, version: int = 0) -> dict[str, Any]:
    """About 6 KB, most of it what the journal does not keep."""
    pod = make_pod(f"web-{number}", f"10.{244 + number // 62500}.{number // 250 % 250}.{number % 250 + 1}")
    pod["metadata"]["labels"] |= {"version": str(version)}
    pod["metadata"]["managedFields"] = [{"manager": "kubelet", "fieldsV1": {f"f:{each}": {} for each in range(150)}}]
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7d4f8c9b5", "uid": "rs", "controller": True}
    pod["metadata"]["ownerReferences"] = [owner]
    environment = [{"name": f"VARIABLE_{each}", "value": "x" * 60} for each in range(25)]
    pod["spec"]["containers"] = [{"name": "web", "ports": [{"containerPort": 8080}], "env": environment}]
    times = {"status": "True", "lastTransitionTime": "2026-03-01T14:03:00Z"}
    kinds = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
    pod["status"]["conditions"] = [{"type": kind} | times for kind in kinds]
    return pod


def serve(pods: int, link: Connection) -> None:
    """In a process of its own: what it takes is not the journal's."""
    with make_server(window=20_000) as server:
        for number in range(pods):
            server.apply(heavy_pod(number))
            about = {"kind": "Pod", "namespace": "shop", "name": f"web-{number}", "uid": f"uid-web-{number}"}
            metadata = {"name": f"web-{number}.1", "namespace": "shop", "uid": f"event-{number}"}
            server.apply({"kind": "Event", "apiVersion": "v1", "metadata": metadata, "involvedObject": about})
        link.send((server.port, len(json.dumps(heavy_pod(0)))))
        while order := link.recv():
            if order == "forget":
                server.stop()
                server.apply(heavy_pod(0, 1))
                server.compact()
                server.store.restart()
                server.start()
            else:
                for number in range(int(order)):
                    server.apply(heavy_pod(number % pods, number))
                    time.sleep(0.02)
            link.send(None)


class Process:
    """The command, and what it took so far."""

    def __init__(self, folder: Path, kubeconfig: Path) -> None:
        command = [PODTAP, "journal", "--root", folder, "--metrics", "", "--kubeconfig", kubeconfig]
        self.folder, self.begun = folder, time.monotonic()
        self.popen = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def cpu(self) -> float:
        words = Path(f"/proc/{self.popen.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> str:
        lines = Path(f"/proc/{self.popen.pid}/status").read_text().splitlines()
        known = dict(line.split(":", 1) for line in lines)
        now, peak = (int(known[key].split()[0]) // 1024 for key in ("VmRSS", "VmHWM"))
        return f"{now} MB resident, {peak} MB at most"

    def wait_for(self, kind: str, listings: int) -> None:
        end = rb'"kind":"%b","observed_ns":\d+,"resource_version":"\d+","type":"list_complete"' % kind.encode()
        whole = re.compile(end)
        while sum(len(whole.findall(file.read_bytes())) for file in files_of(self.folder)) < listings:
            time.sleep(0.1)


def scale(pods: int) -> None:
    context = multiprocessing.get_context("spawn")
    link, theirs = context.Pipe()
    server = context.Process(target=serve, args=(pods, theirs), daemon=True)
    server.start()
    port, pod_bytes = link.recv()
    folder = Path(tempfile.mkdtemp())
    process = Process(folder / "root", write_kubeconfig(folder, ApiServer(port=port)))
    process.wait_for("Pod", 1)
    process.wait_for("Event", 1)
    print(f"{pods:,} pods of {pod_bytes:,} bytes, and as many Events")
    print(f"all listed: {process.cpu():.2f} CPU-s, {process.memory()}")

    def do(order: str | int) -> None:
        link.send(order)
        link.recv()
        time.sleep(2)

    def forget() -> None:
        do("forget")
        process.wait_for("Pod", 2)

    told: list[tuple[str, Callable[[], None]]] = [
        ("a quiet minute", lambda: time.sleep(60)),
        ("1,000 changes, 50 a second", lambda: do(1000)),
        ("all listed again after a 410", forget),
    ]
    for what, happen in told:
        before = process.cpu()
        happen()
        print(f"{what}: {process.cpu() - before:.2f} CPU-s, {process.memory()}")
    [part] = files_of(process.folder)
    plain = part.stat().st_size
    process.popen.terminate()
    process.popen.wait()
    [sealed] = files_of(process.folder)
    print(f"the file: {plain / 1e6:.1f} MB while it is written, {sealed.stat().st_size / 1e6:.2f} MB sealed")
    link.send("")


def bear(fault: str, options: dict[str, Any], seed: int) -> tuple[int, float]:
    """Requests in the worst minute, and seconds until what is known was what is there."""
    chance = random.Random(seed)
    folder = Path(tempfile.mkdtemp())
    asked: list[float] = []
    with make_server() as server, running(folder, server, kinds=PODS, timing=TIMING) as rig:
        count = rig.journal.asked
        rig.journal.asked = lambda kind, verb: (asked.append(time.monotonic()), count(kind, verb))[1]  # type: ignore[method-assign]
        rig.until_true(60)
        time.sleep(chance.uniform(12, 40))
        begun = time.monotonic()
        injected = None if fault.startswith("down") else server.inject(fault, "pods", **options)
        if injected is None:
            server.stop()
        end = begun + chance.uniform(*LASTS_S)
        for number in range(1000):
            churn(server, number)
            time.sleep(min(5, max(0, end - time.monotonic())))
            if time.monotonic() >= end:
                break
        if fault.endswith("forgets"):
            server.compact()
            server.store.restart()
        during = [each for each in asked if begun <= each]
        if injected:
            server.heal(injected)
        else:
            server.start()
        healed = rig.until_true(120)
    return max((sum(first <= each < first + 60 for each in during) for first in during), default=0), healed


def faults(rounds: int) -> None:
    cases = [(fault, options, number) for number in range(rounds) for fault, options in FAULTS]
    with ThreadPoolExecutor(len(cases)) as pool:
        results = list(pool.map(lambda case: (case[0], *bear(*case)), cases))
    print("| fault | requests in the worst minute | all is known after |\n|---|---|---|")
    for fault, _ in FAULTS:
        asked, healed = zip(*((asked, healed) for name, asked, healed in results if name == fault), strict=True)
        print(f"| {fault} | {max(asked)} | {min(healed):.1f} to {max(healed):.1f} s |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["scale", "faults"])
    parser.add_argument("--pods", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    threading.stack_size(1 << 20)
    if arguments.what == "scale":
        scale(arguments.pods)
    else:
        faults(arguments.rounds)


if __name__ == "__main__":
    main()
