"""A journal at work beside an API server stand-in: real HTTP on loopback, and time passes twenty times as fast."""

from __future__ import annotations

import copy
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from capture.connection import Connection
from capture.contract import KINDS
from capture.journal import Journal, JournalLimits
from capture.journal_files import JournalFiles
from capture.metrics import Metrics
from capture.prune import prune
from capture.reflector import Reflector, Timing
from capture.watch import Resource, follow, moment
from tests.journals import Record, State, files_of, read, replay
from tests.kubeconfigs import write_kubeconfig
from tests.lab.api_resources import EVENTS, RESOURCES, Object
from tests.lab.api_server import ApiServer

PODS = ("Pod",)
SWIFT = Timing(watch=1.25, silence=1.4, read=0.75, first_delay=0.05, longest_delay=1.5, well=0.5)
HEALED_S = 5.0
"""By then what is known equals what is there: 35 / 20, and more for a machine that is busy."""


def make_server(**options: Any) -> ApiServer:
    return ApiServer(resources=(*RESOURCES, EVENTS), **options)


def make_pod(name: str, ip: str = "", node: str = "node-a", **status: Any) -> Object:
    status = {"phase": "Running", **({"podIP": ip, "podIPs": [{"ip": ip}]} if ip else {}), **status}
    metadata = {"name": name, "namespace": "shop", "uid": f"uid-{name}", "labels": {"app": "web"}}
    return {"kind": "Pod", "apiVersion": "v1", "metadata": metadata, "spec": {"nodeName": node}, "status": status}


def truth(server: ApiServer, kinds: Sequence[str] = KINDS) -> State:
    """What the server has, as the journal keeps it."""
    state: State = {}
    for resource in server.resources:
        if resource.kind in kinds:
            with server.store.changed:
                items = copy.deepcopy(server.store.items(resource))
            if items:
                state[resource.kind] = {item["metadata"]["uid"]: prune(resource.kind, item) for _, item in items}
    return state


def churn(server: ApiServer, number: int, names: int = 40) -> None:
    """Some pods come, change and go."""
    chance = random.Random(number)
    for _ in range(10):
        name = f"p{chance.randrange(names)}"
        pod = make_pod(name, f"10.244.0.{chance.randrange(1, 250)}", phase=chance.choice(["Pending", "Running"]))
        pod["metadata"]["uid"] = f"uid-{name}-{number // 10}"
        known = {item["metadata"]["name"] for item in truth(server, PODS).get("Pod", {}).values()}
        if name in known and chance.random() < 0.5:
            server.delete(pod)
        elif name not in known:
            server.apply(pod)


@dataclass
class Rig:
    """One journal; start() again after stop() or kill() is a restart."""

    root: Path
    server: ApiServer
    kubeconfig: Path
    kinds: Sequence[str] = KINDS
    timing: Timing = SWIFT
    limits: JournalLimits = JournalLimits()  # noqa: RUF009
    writer: str = "journal-0"
    reflectors: list[Reflector] = field(default_factory=list)

    def start(self) -> None:
        self.counts = Metrics()
        self.files = JournalFiles(self.root, self.writer)
        self._stop = threading.Event()
        resources = [Resource.of(kind) for kind in self.kinds]
        self.reflectors = [resource.reflector(self.timing) for resource in resources]
        self.journal = Journal(self.files, self.reflectors, self.limits, self.counts)
        connection = Connection(self.kubeconfig)
        self._threads = [
            threading.Thread(target=follow, args=(resource, reflector, connection, self.journal, self._stop))
            for resource, reflector in zip(resources, self.reflectors, strict=True)
        ]
        self._threads.append(threading.Thread(target=self._tick))
        for thread in self._threads:
            thread.start()

    def _tick(self) -> None:
        while not self._stop.wait(0.05):
            self.journal.tick(moment())

    def stop(self) -> None:
        self._end()
        self.journal.close(moment())
        self.files.close()

    def kill(self) -> None:
        """What was not flushed is lost; nothing is ended."""
        with self.journal.lock:
            self.journal._retry_s = math.inf
            part, self.journal._part = self.journal._part, None
        assert part is not None
        self._end()
        part.abandon()
        self.files.close()

    def begin_end(self) -> None:
        self._stop.set()

    def _end(self) -> None:
        self.begin_end()
        for thread in self._threads:
            thread.join()

    def state(self) -> State:
        """What a reader of the newest file knows now."""
        return replay(read(files_of(self.root)[-1]))

    def records(self) -> list[Record]:
        return [record for path in files_of(self.root) for record in read(path)]

    def until(self, condition: Callable[[], bool], seconds: float = 10) -> float:
        """Waits; returns how long it took."""
        begun = time.monotonic()
        while not condition():
            assert time.monotonic() - begun < seconds, "waited in vain"
            time.sleep(0.02)
        return time.monotonic() - begun

    def until_true(self, seconds: float = 10) -> float:
        """Until the journal says what is there, and knows that it does."""
        return self.until(lambda: not self.journal.ready() and self.state() == truth(self.server, self.kinds), seconds)


@contextmanager
def running(tmp_path: Path, server: ApiServer, **options: Any) -> Iterator[Rig]:
    rig = Rig(tmp_path / "root", server, write_kubeconfig(tmp_path, server), **options)
    rig.start()
    try:
        yield rig
    finally:
        rig.begin_end()
        server.stop()  # or open watches would have to be waited for
        rig.stop()
