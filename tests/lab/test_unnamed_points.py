"""Captures that do not say at which interface: one packet is in them as often as it passed, and counts once.

What the kernel counts is the truth; a capture of the same traffic that does name interfaces says how much there was.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from analysis.lake_reader import Lake, open_lake
from analysis.pipeline import analyze
from analysis.reports.completeness import completeness
from analysis.reports.window import Window
from tests.lab import faults
from tests.lab.captures import Capture, merged
from tests.lab.faults import Loss
from tests.lab.greeters import greet, greet_udp, greeters
from tests.lab.lab import Lab, RunningNode
from tests.lab.tools import needs
from tests.lab.topology import CNIS, Pod, Service, Topology
from tests.lab.truth import Truth
from tests.lab.workloads import HttpServer, at_once, download, upload

pytestmark = [pytest.mark.usefixtures("root"), needs("iptables-restore", "nft", "conntrack", "mergecap")]

PODS = (Pod("client", "node-a"), Pod("near", "node-a", {"app": "near"}), Pod("web", "node-b", {"app": "web"}))
SERVICES = (Service("web", {"app": "web"}, 80, 8080), Service("near", {"app": "near"}, 81, 8081))
SNAPLEN = 256
"""All headers, also of IPv6 in a tunnel."""
KINDS = {
    "sll": [("node-a",), ("node-b",), ("node-a", "node-b")],
    "merged": [("node-a",), ("node-b",), ("node-a", "node-b")],
    "mirror": [("node-b",)],
    "both-ends": [("node-b",)],
}
"""And of which nodes they are analysed. Addresses are translated on node-a."""
SETUPS = [
    *((cni, True, False) for cni in CNIS),
    ("calico-ipip", False, False),
    ("flannel", True, True),
    ("flannel", False, True),
    ("calico", False, True),
    ("cilium-geneve", True, True),
]
"""Plug-in, GSO, IPv6."""
GREETINGS = 10


@contextlib.contextmanager
def captured(lab: Lab, folder: Path) -> Iterator[None]:
    """Of each node: with names (`<node>.named.pcap`), and as each of KINDS."""
    parts: dict[str, list[Path]] = {}
    with contextlib.ExitStack() as stack:
        for name, node in lab.nodes.items():
            for kind, link_type in (("named", ""), ("sll", "LINUX_SLL")):
                path = folder / f"{name}.{kind}.pcap"
                stack.enter_context(Capture(node.namespace, path, snaplen=SNAPLEN, link_type=link_type))
            parts[name] = [folder / f"{name}.{interface}.part" for interface in ethernets(node)]
            for path, interface in zip(parts[name], ethernets(node), strict=True):
                stack.enter_context(Capture(node.namespace, path, interface, SNAPLEN))
            stack.enter_context(Capture(lab.wire, folder / f"{name}.wire.part", f"to-{name}", SNAPLEN))
        yield
    for name in lab.nodes:
        uplink, wire = folder / f"{name}.eth0.part", folder / f"{name}.wire.part"
        merged(parts[name], folder / f"{name}.merged.pcap")
        merged([uplink, uplink], folder / f"{name}.mirror.pcap")
        merged([uplink, wire], folder / f"{name}.both-ends.pcap")


def ethernets(node: RunningNode) -> list[str]:
    """Interfaces whose captures can be merged."""
    links = json.loads(node.namespace.run("ip", "-j", "link", "show", "up"))
    return [link["ifname"] for link in links if link["link_type"] == "ether"]


def analysed(folder: Path, kind: str, *nodes: str) -> Lake:
    lake = folder / f"lake-{kind}-{'-'.join(nodes)}"
    analyze([str(folder / f"{node}.{kind}.pcap") for node in nodes], lake)
    return open_lake(lake)


def retransmitted(lake: Lake) -> int:
    return int(lake.report("retransmits")["retransmitted_tcp_segments"].sum())


def opened(lake: Lake) -> Counter[tuple[Any, ...]]:
    """TCP connections by who opened them to whom, and what each side sent."""
    rows: Any = lake.sql(
        """SELECT c.orig_ip, c.orig_port, c.resp_ip, f.orig_bytes, f.resp_bytes FROM connections c
        JOIN flows f ON f.flow_uid = c.connection_uid WHERE c.protocol = 'TCP'"""
    )
    return Counter(tuple(row) for row in rows.itertuples(index=False))


def copies(lake: Lake) -> int:
    return int(lake.segments()["copies"].sum())


def told(lake: Lake) -> list[str]:
    return [note for note in completeness(lake, Window()).notes() if "without interface names" in note]


@pytest.mark.parametrize(("cni", "gso", "ipv6"), SETUPS)
def test_copies_are_no_retransmissions_and_no_connections(cni: str, gso: bool, ipv6: bool, tmp_path: Path) -> None:
    with Lab(Topology(pods=PODS, services=SERVICES, cni=cni, dns=False, gso=gso, ipv6=ipv6)) as lab:
        client, web = lab.pod("client").namespace, lab.pod("web").namespace
        far, near = (each.ip6 if ipv6 else each.ip for each in (lab.service("web"), lab.service("near")))
        assert far and near
        loss = Loss(lab.wire, "to-node-b", faults.seeded(7, 0.2 if gso else 0.03), "meta length > 1000")
        servers = HttpServer(web), greeters(lab, "near", port=8081)
        with servers[0], servers[1], captured(lab, tmp_path), Truth(lab) as truth, loss:
            done = at_once(lambda: download(client, far, 1 << 19, 80), lambda: upload(client, far, 1 << 19, 80))
            for _ in range(GREETINGS):
                greet(client, near, 81)
            truth.settle()
        counted = sum(truth.retransmitted_segments(pod.name) for pod in PODS)
    assert [each.error for each in done] == ["", ""]
    assert counted > 0
    named = {nodes: analysed(tmp_path, "named", *nodes) for nodes in KINDS["sll"]}
    expected = {nodes: (retransmitted(lake), opened(lake)) for nodes, lake in named.items()}
    assert expected["node-a", "node-b"][0] == counted
    for kind, nodes in ((kind, nodes) for kind, several in KINDS.items() for nodes in several):
        lake = analysed(tmp_path, kind, *nodes)
        found = retransmitted(lake)
        print(f"{cni} gso={gso} ipv6={ipv6} {kind} {'+'.join(nodes)}: {found} retransmitted of {counted}")
        assert found == expected[nodes][0], (kind, nodes)
        if kind in ("sll", "merged"):  # the others are of the uplink only
            assert opened(lake) == expected[nodes][1], (kind, nodes)
        else:
            assert opened(lake).total() == len(done)
        if kind == "sll" or copies(lake):  # merged, Calico's node-a shows each of its tuples once
            (note,) = told(lake)
            assert " for nothing" in note and "paths within a node can't be told" in note
    assert not any(told(lake) for lake in named.values())


# --- Snap lengths that leave no whole headers ------------------------------------------------------------------------

SHORT = {
    False: {42: "ports", 54: "ports", 66: "headers", 96: "headers", 110: "headers", 118: "headers"},
    True: {66: "ports", 78: "no options", 110: "headers", 140: "headers", 150: "headers"},
}
"""For IPv4 and IPv6, what is there of TCP at a pod's interface; in the tunnel, there is less of it. IPv6 has no ids:
where there are no timestamps either, order alone tells what was sent again from what was shown again."""


def passed(lake: Lake) -> dict[tuple[Any, ...], int]:
    """Packets of each 5-tuple, whoever opened it, at the point that saw most of them; copies don't count."""
    rows: Any = lake.sql(
        """SELECT protocol, src_ip, src_port, dst_ip, dst_port, max(packets) FROM (
            SELECT protocol, src_ip, src_port, dst_ip, dst_port, node, interface, encapsulation, count(*) AS packets
            FROM packets WHERE protocol IN ('TCP', 'UDP') AND src_port IS NOT NULL AND is_copy IS NOT TRUE GROUP BY ALL
        ) GROUP BY ALL"""
    )
    return {tuple(row[:-1]): row[-1] for row in rows.itertuples(index=False, name=None)}


@pytest.mark.parametrize(("gso", "ipv6"), [(False, False), (True, False), (False, True)])
def test_where_headers_are_cut_nothing_that_was_sent_is_called_a_copy(gso: bool, ipv6: bool, tmp_path: Path) -> None:
    services = (SERVICES[0], Service("near", {"app": "near"}, 81, 8081, protocols=("TCP", "UDP")))
    with Lab(Topology(pods=PODS, services=services, dns=False, gso=gso, ipv6=ipv6)) as lab:
        client, web = lab.pod("client").namespace, lab.pod("web").namespace
        far, near = (each.ip6 if ipv6 else each.ip for each in (lab.service("web"), lab.service("near")))
        assert far and near
        loss = Loss(lab.wire, "to-node-b", faults.seeded(7, 0.2 if gso else 0.03), "meta length > 1000")
        with contextlib.ExitStack() as stack:
            for name, node in lab.nodes.items():
                for length in (SNAPLEN, *SHORT[ipv6]):
                    for kind, link_type, more in (("named", "", 4), ("sll", "LINUX_SLL", 0)):  # by its longer header
                        path = tmp_path / f"{name}.{kind}{length}.pcap"
                        stack.enter_context(Capture(node.namespace, path, snaplen=length + more, link_type=link_type))
            truth = stack.enter_context(Truth(lab))
            stack.enter_context(HttpServer(web))
            stack.enter_context(greeters(lab, "near", port=8081))
            stack.enter_context(loss)
            done = at_once(lambda: download(client, far, 1 << 19, 80), lambda: upload(client, far, 1 << 19, 80))
            for _ in range(GREETINGS):
                greet(client, near, 81)
                greet_udp(client, near, 81)
            truth.settle()
        counted = sum(truth.retransmitted_segments(pod.name) for pod in PODS)
    assert [each.error for each in done] == ["", ""]
    whole = analysed(tmp_path, f"named{SNAPLEN}", "node-a", "node-b")
    assert retransmitted(whole) == counted
    connections = {key[:3] for key in opened(whole)}
    for length, what in SHORT[ipv6].items():
        lakes = {kind: analysed(tmp_path, f"{kind}{length}", "node-a", "node-b") for kind in ("named", "sll")}
        named = passed(lakes["named"])
        for kind, lake in lakes.items():
            found = retransmitted(lake)
            print(f"gso={gso} ipv6={ipv6} {kind} {length}: {found} retransmitted of {counted}, {copies(lake)} copies")
            least = 0.8 * counted if (kind, what) == ("sll", "no options") else counted
            assert (least <= found <= counted) if what != "ports" else found == 0, (kind, length)
            notes = completeness(lake, Window()).notes()
            assert any("without TCP headers" in note for note in notes) == (what == "ports"), (kind, length)
            here = passed(lake)
            if what != "no options":
                assert all(here.get(key, 0) >= packets for key, packets in named.items()), (kind, length)
            assert {key[:3] for key in opened(lake)} >= connections, (kind, length)
