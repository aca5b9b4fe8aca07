"""Connections to endpoints that come and go at known times, while the proxies of all nodes know nothing of it."""

from __future__ import annotations

import copy
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from analysis.lake_reader import open_lake
from analysis.pipeline import analyze
from analysis.reports.filters import Filters
from analysis.reports.stale import stale_connections
from analysis.reports.window import Window
from analysis.watching import LATE_NS
from tests.journal_rig import SWIFT, Rig, make_server, running
from tests.lab.api_server import ApiServer
from tests.lab.greeters import Greeting, greet, greet_udp, greeters
from tests.lab.lab import Lab
from tests.lab.test_stitching import captured_nodes
from tests.lab.tools import needs
from tests.lab.topology import Pod, Service, Topology

pytestmark = [pytest.mark.usefixtures("root"), needs("iptables-restore")]

PODS = (Pod("client", "node-a"), Pod("web-1", "node-a", {"app": "web"}), Pod("web-2", "node-b", {"app": "web"}))
SERVICES = (
    Service("web", {"app": "web"}, 80, 8080, protocols=("TCP", "UDP")),
    Service("open", {"app": "web"}, 80, 8080, kind="NodePort"),
    Service("other", {"app": "x"}, 80, 8080),
)
KINDS = ("Pod", "Service", "EndpointSlice", "Node")
WITH_BOOKMARKS = replace(SWIFT, watch=2.5, silence=2.8)
DELAY_S = 0.2
"""The journal hears of a change by then, and a connection's first packet is sent."""

Object = dict[str, Any]


@dataclass
class Change:
    """What web-1 became, and when, in seconds since 1970."""

    state: str
    since: float
    by: float


@dataclass
class Asked:
    """A connection, and between which moments its first packet was sent."""

    protocol: str
    service: str
    pod: str
    key: tuple[str, int]
    since: float
    by: float
    change: Change


class Story:
    """What happened, and what each connection should be called."""

    def __init__(self, lab: Lab, server: ApiServer) -> None:
        self.lab, self.server = lab, server
        self.slices: dict[str, Object] = {
            item["metadata"]["labels"]["kubernetes.io/service-name"]: item
            for item in lab.objects()["endpointslices"]["items"]
        }
        self.change = Change("ready", 0, 0)
        self.asked: list[Asked] = []

    def touch(self) -> None:
        """A change that says nothing of web."""
        item = self.slices["other"]
        item["ports"] = [{"name": "", "protocol": "TCP", "port": 1 + len(self.server.requests) % 60000}]
        item["metadata"].pop("resourceVersion", None)
        self.server.apply(copy.deepcopy(item))

    def become(self, state: str, conditions: Object | None) -> None:
        """web-1 has these conditions; None: no slice names it any more."""
        since = time.time()
        for service in ("web", "open"):
            item = copy.deepcopy(self.slices[service])
            item["metadata"].pop("resourceVersion", None)
            item["endpoints"] = [
                each if each["targetRef"]["name"] != "web-1" else each | {"conditions": conditions}
                for each in item["endpoints"]
                if conditions is not None or each["targetRef"]["name"] != "web-1"
            ]
            self.server.apply(item)
        self.change = Change(state, since, time.time())
        time.sleep(2 * DELAY_S)

    def ask(self, seconds: float) -> None:
        client, outside = self.lab.pod("client").namespace, self.lab.outside.namespace
        web, node, port = self.lab.service("web").ip, self.lab.node("node-a").ip, self.lab.service("open").node_port
        assert web and port
        own_ports = itertools.count(20_000 + len(self.asked))
        ways: list[tuple[str, str, Callable[[], Greeting]]] = [
            ("TCP", "web", lambda: greet(client, web, 80)),
            ("UDP", "web", lambda: greet_udp(client, web, 80, next(own_ports))),
            ("TCP", "open", lambda: greet(outside, node, port)),
        ]
        end = time.time() + seconds
        while time.time() < end:
            for protocol, service, way in ways:
                since = time.time()
                answer = way()
                key = answer.own_ip, answer.own_port
                self.asked.append(Asked(protocol, service, answer.pod, key, since, time.time(), self.change))
            time.sleep(0.05)


def until_told_in_time(rig: Rig, touch: Any) -> None:
    """The watch has been told that nothing is left of what was before it."""

    def is_told() -> bool:
        touch()
        time.sleep(0.2)
        changes = [record for record in rig.records() if record["type"] == "modified"]
        return bool(changes) and changes[-1].get("unseen_since_ns") is None

    rig.until(is_told, 20)


@contextmanager
def journal_of(folder: Path, lab: Lab) -> Iterator[tuple[Rig, Story]]:
    with make_server() as server:
        server.follow(lab)
        with running(folder, server, kinds=KINDS, timing=WITH_BOOKMARKS) as rig:
            story = Story(lab, server)
            until_told_in_time(rig, story.touch)
            yield rig, story
            time.sleep(LATE_NS / 1e9 + 1)  # what comes last before a gap may have been on its way
            story.touch()
            time.sleep(2 * DELAY_S)


def pairs(rows: Iterable[Object], asked: Iterable[Asked]) -> list[tuple[Asked, Object]]:
    """What was asked, and what is told of it. A client may use a port again: in the order of time."""
    told: dict[Any, list[Object]] = {}
    for row in sorted(rows, key=lambda row: row["first_seen"]):
        told.setdefault((row["protocol"], row["orig_ip"], row["orig_port"]), []).append(row)
    return [(each, told[each.protocol, *each.key].pop(0)) for each in asked]


def wrong(rows: Iterable[Object], asked: Iterable[Asked]) -> list[Any]:
    """What was told otherwise than it was."""
    found: list[Any] = []
    for each, row in pairs(rows, asked):
        change = each.change if each.pod == "web-1" else Change("ready", 0, 0)
        by_address = isinstance(row["resp_service"], str)
        services = {f"default/{each.service}"} if by_address else {"default/open", "default/web"}
        if row["endpoint"] != change.state or row["endpoint_of"] not in services or row["endpoint_pod"] != each.pod:
            found.append((each, row))
        if change.state == "removed":
            ago = row["endpoint_removed_ns"] / 1e9
            if not each.since - change.by - DELAY_S <= ago <= each.by - change.since:
                found.append((each, ago))
    return found


@pytest.mark.parametrize("cni", ["flannel", "cilium"])
def test_every_connection_knows_what_its_endpoint_was(cni: str, tmp_path: Path) -> None:
    """Flannel's nodes translate the service's address in the kernel's tables, Cilium's in the socket."""
    topology = Topology(pods=PODS, services=SERVICES, cni=cni, dns=False)
    with Lab(topology) as lab, greeters(lab, "web-1", "web-2"):
        with captured_nodes(lab, tmp_path), journal_of(tmp_path, lab) as (rig, story):
            story.ask(0.5)
            story.become("terminating", {"ready": False, "serving": True, "terminating": True})
            story.ask(0.5)
            story.become("removed", None)
            story.ask(2)
            story.become("ready", {"ready": True, "serving": True, "terminating": False})
            story.ask(0.5)
        address = f"{lab.pod('web-1').ip}:8080, pod web-1"
    captures = [str(tmp_path / f"{node}.pcap") for node in lab.nodes]
    analyze(captures, tmp_path / "lake", metadata=[str(rig.root / "_journal")])
    lake = open_lake(tmp_path / "lake")
    rows: Any = lake.sql("FROM connections WHERE backend_port = 8080").to_dict("records")
    assert len(rows) == len(story.asked)
    assert wrong(rows, story.asked) == []
    removed = [each for each in story.asked if (each.pod, each.change.state) == ("web-1", "removed")]
    assert len(removed) >= 10
    assert {each.change.state for each in story.asked if each.pod == "web-1"} == {"ready", "terminating", "removed"}
    late = [
        (each.by - each.change.since) - row["endpoint_removed_ns"] / 1e9
        for each, row in pairs(rows, story.asked)
        if each in removed
    ]
    off = f"{min(late):.4f} to {max(late):.4f} s late"
    print(f"{cni}: {len(rows)} connections, {len(removed)} to an endpoint that was removed, {off}")
    notes = stale_connections(lake, Window(), Filters())
    told = Counter({note.split(" that ")[0]: int(note.split()[0]) for note in notes})
    services = Counter(row["endpoint_of"] for row in rows if row["endpoint"] == "removed")
    assert told == {f"{number} connections were sent to an endpoint of {of}": number for of, number in services.items()}
    assert all(note.endswith(f" s before ({address})") for note in notes)
    assert int(lake.report("flows")["stale"].sum()) == len(removed)
