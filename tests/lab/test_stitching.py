"""Connections, paths and losses of whole nodes, against the kernel's counters, rules' counters and conntrack."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from analysis.lake_reader import Lake, open_lake
from analysis.pipeline import analyze
from analysis.reports.completeness import completeness
from analysis.reports.window import Window
from tests.lab import faults
from tests.lab.captures import Capture
from tests.lab.conntrack import tracked_connections
from tests.lab.faults import Loss
from tests.lab.greeters import Greeting, greet, greet_udp, greeters
from tests.lab.lab import Lab, RunningNode
from tests.lab.tools import needs
from tests.lab.topology import CNIS, Pod, Service, Topology
from tests.lab.truth import Truth
from tests.lab.workloads import HttpServer, at_once, download, upload

pytestmark = [pytest.mark.usefixtures("root"), needs("iptables-restore", "nft", "conntrack")]

PODS = (Pod("client", "node-a"), Pod("web", "node-b", {"app": "web"}))
WEB = Service("web", {"app": "web"}, 80, 8080)
TUNNELS = {
    "flannel": "+vxlan",
    "calico-vxlan": "+vxlan",
    "calico-ipip": "+ipip",
    "cilium": "+vxlan",
    "cilium-geneve": "+geneve",
    "weave": "+vxlan",
}


@contextlib.contextmanager
def captured_nodes(lab: Lab, folder: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name, node in lab.nodes.items():
            stack.enter_context(Capture(node.namespace, folder / f"{name}.pcap", snaplen=160))
        yield


def analysed(folder: Path, *nodes: str) -> Lake:
    lake = folder / f"lake-{'-'.join(nodes)}"
    analyze([str(folder / f"{node}.pcap") for node in nodes], lake)
    return open_lake(lake)


def retransmitted(lake: Lake, sender: str | None = None) -> int:
    """TCP segments by the report, of this address only."""
    rows = lake.report("retransmits")
    counted = rows if sender is None else rows[rows["sender_name"] == sender]
    return int(counted["retransmitted_tcp_segments"].sum())


def lost_between(lake: Lake) -> dict[tuple[str, str], int]:
    """TCP segments by the two points as the report names them; without those that arrived at the last one."""
    rows = lake.report("paths").to_dict("records")
    return {(row["from"], row["to"]): row["lost_tcp_segments"] for row in rows if row["lost_tcp_segments"]}


def point(node: RunningNode, interface: str, tunnel: str = "") -> str:
    (link,) = json.loads(node.namespace.run("ip", "-j", "link", "show", "dev", interface))
    return f"{node.name}/if{link['ifindex']}{tunnel}"


@pytest.mark.parametrize("gso", [True, False], ids=["gso", "no-gso"])
@pytest.mark.parametrize("cni", CNIS)
def test_whole_nodes_count_what_the_kernel_counts(cni: str, gso: bool, tmp_path: Path) -> None:
    """Through a service, up to nine copies of each packet; some full packets are lost on the cable between nodes."""
    with Lab(Topology(pods=PODS, services=(WEB,), cni=cni, dns=False, gso=gso)) as lab:
        client, web, vip = lab.pod("client"), lab.pod("web"), lab.service("web").ip
        assert vip
        cable = tuple(point(lab.node(node), "eth0", TUNNELS.get(cni, "")) for node in ("node-b", "node-a"))
        loss = Loss(lab.wire, "to-node-b", faults.seeded(7, 0.2 if gso else 0.03), "meta length > 1000")
        with HttpServer(web.namespace), captured_nodes(lab, tmp_path), Truth(lab) as truth, loss:
            done = at_once(
                lambda: download(client.namespace, vip, 1 << 20, 80), lambda: upload(client.namespace, vip, 1 << 20, 80)
            )
            truth.settle()
        assert [each.error for each in done] == ["", ""]
        counted = {pod: truth.retransmitted_segments(pod) for pod in ("client", "web")}
    assert loss.lost > 0
    both = analysed(tmp_path, "node-a", "node-b")
    assert len(both.sql("FROM connections WHERE protocol = 'TCP'")) == len(done)
    assert retransmitted(both) == sum(counted.values())
    lost = lost_between(both)
    print(f"{cni} gso={gso}: retransmitted {counted}, {loss.lost} lost by the rule, by podtap {lost}")
    if not gso:  # a GSO packet is one to the rule, and many TCP segments to the kernel
        assert lost[cable] >= 0.99 * loss.lost
    assert {hop for hop in lost if hop[1] != "(beyond)"} <= {cable}
    alone = {node: analysed(tmp_path, node) for node in lab.nodes}
    assert retransmitted(alone["node-b"], web.ip) == counted["web"]
    assert retransmitted(alone["node-a"], client.ip) == counted["client"]
    assert retransmitted(alone["node-a"]) <= sum(counted.values())
    assert any("lower bound" in note for note in completeness(alone["node-a"], Window()).notes())
    assert not any("lower bound" in note for note in completeness(both, Window()).notes())


@dataclass(frozen=True)
class Hop:
    """Where a rule takes packets away, and the two points that this is between."""

    node: str
    interface: str
    hook: str
    match: str
    points: tuple[tuple[str, str], tuple[str, str]]


VETH = "the pod's"
FULL = "meta length > 1000"
HOPS = {
    "pod to bridge": Hop("node-b", VETH, "ingress", faults.DATA, (("node-b", VETH), ("node-b", "cni0"))),
    "bridge to overlay": Hop("node-b", "flannel.1", "egress", FULL, (("node-b", "cni0"), ("node-b", "flannel.1"))),
    "overlay to uplink": Hop("node-b", "eth0", "egress", FULL, (("node-b", "flannel.1"), ("node-b", "eth0"))),
    "uplink to overlay": Hop("node-a", "eth0", "ingress", FULL, (("node-a", "eth0"), ("node-a", "flannel.1"))),
    "overlay to bridge": Hop("node-a", "flannel.1", "ingress", FULL, (("node-a", "flannel.1"), ("node-a", "cni0"))),
    "bridge to pod": Hop("node-a", VETH, "egress", FULL, (("node-a", "cni0"), ("node-a", VETH))),
}


@pytest.mark.parametrize("where", HOPS)
def test_packets_are_lost_at_the_hop_whose_rule_took_them(where: str, tmp_path: Path) -> None:
    hop = HOPS[where]
    with Lab(Topology(pods=PODS, cni="flannel", dns=False, proxy="none", gso=False)) as lab:
        client, web = lab.pod("client"), lab.pod("web")
        veths = {"node-a": client.interface, "node-b": web.interface}

        def named(node: str, interface: str) -> str:
            name = veths[node] if interface == VETH else interface
            return point(lab.node(node), name, "+vxlan" if interface == "eth0" else "")

        between = tuple(named(*each) for each in hop.points)
        device = veths[hop.node] if hop.interface == VETH else hop.interface
        loss = Loss(lab.node(hop.node).namespace, device, faults.seeded(11, 0.05), hop.match, hop.hook)
        with HttpServer(web.namespace), captured_nodes(lab, tmp_path), Truth(lab) as truth, loss:
            assert download(client.namespace, web.ip, 2 << 20).error == ""
            truth.settle()
    lost = lost_between(analysed(tmp_path, "node-a", "node-b"))
    print(f"{where}: {loss.lost} lost by the rule, by podtap {lost}")
    assert loss.lost >= 20
    assert lost[between] >= 0.99 * loss.lost
    assert {each for each in lost if each[1] != "(beyond)"} == {between}


# --- Services --------------------------------------------------------------------------------------------------------

BACKENDS = (Pod("web-1", "node-a", {"app": "web"}), Pod("web-2", "node-b", {"app": "web", "only": "b"}))
SERVICES = (
    Service("web", {"app": "web"}, 80, 8080, protocols=("TCP", "UDP")),
    Service("open", {"app": "web"}, 80, 8080, kind="NodePort"),
    Service("local", {"only": "b"}, 80, 8080, kind="NodePort", external_traffic_policy="Local"),
    Service("balanced", {"app": "web"}, 80, 8080, kind="LoadBalancer"),
    Service("self", {"only": "b"}, 80, 8080),
)
SETUPS = [("flannel", "iptables"), ("flannel", "nftables"), ("calico", "ipvs-model"), ("cilium", "iptables")]
ROUNDS = 50


def asked(lab: Lab) -> list[tuple[str, Greeting]]:
    """Clients in pods and outside ask every kind of service, again and again; each answer says which pod gave it."""
    client, outside, itself = lab.pod("client").namespace, lab.outside.namespace, lab.pod("web-2").namespace
    web, own = lab.service("web").ip, lab.service("self").ip
    open_port, local_port = lab.service("open").node_port, lab.service("local").node_port
    balanced = lab.service("balanced").load_balancer_ip
    node_a, node_b = lab.node("node-a").ip, lab.node("node-b").ip
    assert web and own and open_port and local_port and balanced
    answers = []
    for _ in range(ROUNDS):
        answers += [("TCP", greet(client, web, 80)), ("UDP", greet_udp(client, web, 80))]
        answers += [("TCP", greet(outside, node_a, open_port)), ("TCP", greet(outside, node_b, local_port))]
        answers += [("TCP", greet(outside, balanced, 80))]
        if not lab.topology.cni.startswith("cilium"):  # there, a pod's word to itself never leaves it
            answers += [("TCP", greet(itself, own, 80))]
    return answers


@pytest.mark.parametrize(("cni", "proxy"), SETUPS)
def test_every_connection_through_a_service_knows_its_backend(cni: str, proxy: str, tmp_path: Path) -> None:
    topology = Topology(pods=(Pod("client", "node-a"), *BACKENDS), services=SERVICES, cni=cni, proxy=proxy, dns=False)
    with Lab(topology) as lab, greeters(lab, "web-1", "web-2"):
        with captured_nodes(lab, tmp_path):
            answers = asked(lab)
        backends = {pod.name: pod.ip for pod in (lab.pod("web-1"), lab.pod("web-2"))}
        tracked = [each for node in lab.nodes.values() for each in tracked_connections(node.namespace)]
        lab.write_dumps(tmp_path / "metadata")
    lake = tmp_path / "lake"
    analyze([str(tmp_path / f"{node}.pcap") for node in lab.nodes], lake, metadata=[str(tmp_path / "metadata")])
    found: Any = (
        open_lake(lake)
        .sql(
            "SELECT protocol, orig_ip, orig_port, backend_ip, coalesce(snat_ip, orig_ip) AS seen_ip, backend_pod"
            " FROM connections WHERE protocol IN ('TCP', 'UDP')"
        )
        .to_dict("records")
    )
    expected = Counter(
        (protocol, answer.own_ip, answer.own_port, backends[answer.pod], answer.seen_ip, answer.pod)
        for protocol, answer in answers
    )
    for key in expected:
        if key[0] == "UDP":
            expected[key] = 1  # from a port that was used before, it is the same connection
    assert Counter(tuple(row.values()) for row in found) == expected
    told = {key[:4] for key in expected}
    translated = {
        (each.protocol.upper(), *each.original[:2], each.reply[0])
        for each in tracked
        if each.reply[0] in backends.values() and each.original[2] not in backends.values()
    }
    compared = {each for each in translated if each[:3] in {key[:3] for key in told}}
    assert compared <= told
    print(f"{cni} {proxy}: {len(answers)} connections, {len(compared)} of them in conntrack -L")
    assert len(compared) >= len(answers) / 3
