"""The interface table against the lab's truth: which interface leads to which pod, for each CNI style."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest

from capture.contract import Interface
from capture.interfaces import InterfaceTable
from tests.lab.conversations import converse
from tests.lab.lab import Lab, RunningPod
from tests.lab.topology import CNIS, Pod, Topology

SECONDS = 5.0
LEARNT_LATE = ("flannel", "flannel-host-gw", "weave")
"""A bridge tells of a pod once it has spoken with its node."""
CNI = {"flannel-host-gw": "flannel", "calico-vxlan": "calico", "calico-ipip": "calico", "cilium-geneve": "cilium"}


@pytest.fixture(scope="module", params=CNIS)
def lab(request: pytest.FixtureRequest, root: None) -> Iterator[Lab]:
    pods = (
        Pod("client", "node-a"),
        Pod("near", "node-a"),
        Pod("far", "node-b"),
        Pod("agent", "node-a", host_network=True),
    )
    topology = Topology(pods=pods, cni=request.param, dns=False, ipv6=request.param != "weave")
    with Lab(topology) as running:
        yield running


@pytest.fixture
def table(lab: Lab) -> Iterator[InterfaceTable]:
    started = InterfaceTable()
    with lab.node("node-a").namespace.entered():
        started.start()
    yield started
    started.stop()


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def leading_to(interfaces: list[Interface], address: str | None) -> set[str]:
    return {each.name for each in interfaces if address in each.reaches}


def speak(lab: Lab, *names: str) -> None:
    """Everybody answers their node over each address, as a kubelet's probes ask for."""
    node = lab.node("node-a").namespace
    for pod in (lab.pod(name) for name in names):
        for address in (pod.ip, pod.ip6):
            if address:
                converse(node, pod.namespace, address)


def is_known(table: InterfaceTable, pod: RunningPod) -> bool:
    return all(leading_to(table.now(), each) == {pod.interface} for each in (pod.ip, pod.ip6) if each)


def test_the_right_interface_leads_to_each_pod(lab: Lab, table: InterfaceTable) -> None:
    speak(lab, "client", "near")
    for name in ("client", "near"):
        pod = lab.pod(name)
        eventually(lambda pod=pod: is_known(table, pod))  # type: ignore[misc]
        found = next(each for each in table.now() if each.name == pod.interface)
        assert (found.role, found.cni) == ("pod", CNI.get(lab.topology.cni, lab.topology.cni))
        assert found.kind == "veth"
        assert found.up
    # Neither other nodes nor their pods are taken for pods of this node.
    assert leading_to(table.now(), lab.pod("far").ip) == set()
    assert leading_to(table.now(), lab.node("node-b").ip) == set()


def test_every_interface_is_as_iproute2_shows_it(lab: Lab, table: InterfaceTable) -> None:
    links = json.loads(lab.node("node-a").namespace.run("ip", "-d", "-j", "addr"))
    found = {each.index: each for each in table.now()}
    assert set(found) == {link["ifindex"] for link in links}
    names = {link["ifname"]: link["ifindex"] for link in links}
    for link in links:
        each = found[link["ifindex"]]
        kind = link.get("linkinfo", {}).get("info_kind", "loopback" if link["ifname"] == "lo" else "")
        assert (each.name, each.kind, each.mtu) == (link["ifname"], kind, link["mtu"])
        assert each.mac == (link.get("address", "") if link["link_type"] in ("ether", "loopback") else "")
        assert each.up == ("LOWER_UP" in link["flags"])
        assert each.master == names.get(link.get("master", ""))
        assert each.addresses == sorted(f"{own['local']}/{own['prefixlen']}" for own in link["addr_info"])
        vni = link.get("linkinfo", {}).get("info_data", {}).get("id") if kind == "vxlan" else None
        assert each.vni == (vni or None)  # 0 where each packet has its own
        if kind == "veth":
            assert each.peer == (link["link_index"] if "link_index" in link else names[link["link"]])
            assert each.peer_netns == link.get("link_netnsid")


def test_a_pod_whose_address_another_one_takes(lab: Lab, table: InterfaceTable) -> None:
    started_ns = time.time_ns()
    victim = lab.start_pod(Pod("victim", "node-a"))
    speak(lab, "victim")
    eventually(lambda: is_known(table, victim))
    killed_ns = time.time_ns()
    lab.kill_pod("victim")
    eventually(lambda: leading_to(table.now(), victim.ip) == set())
    gone_ns = time.time_ns()
    heir = lab.start_pod(Pod("heir", "node-a"), ip=victim.ip)
    if lab.topology.cni in LEARNT_LATE:
        speak(lab, "heir")
    eventually(lambda: is_known(table, heir))
    assert heir.interface != victim.interface

    then = table.during(started_ns, killed_ns)
    assert leading_to(then, victim.ip) == {victim.interface}
    now = table.during(gone_ns, time.time_ns())
    assert leading_to(now, victim.ip) == {heir.interface}
    assert victim.interface not in {each.name for each in now}
    # Both, and the borders between them, in a window over all of it.
    both = [each for each in table.during(started_ns, time.time_ns()) if victim.ip in each.reaches]
    ends = {each.name: each for each in sorted(both, key=lambda each: each.since_ns or 0)}
    assert set(ends) == {victim.interface, heir.interface}
    ended, began = ends[victim.interface].until_ns, min(e.since_ns or 0 for e in both if e.name == heir.interface)
    assert ended is not None
    assert killed_ns <= ended <= gone_ns <= began
    lab.kill_pod("heir")
