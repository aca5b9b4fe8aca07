"""The interface table against the lab's truth: which interface leads to which pod, for each CNI style."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from capture.contract import Interface
from capture.interfaces import InterfaceTable
from capture.netlink import Message, Netlink
from tests.lab.conversations import converse
from tests.lab.lab import Lab, RunningPod
from tests.lab.namespaces import Namespace, new_prefix
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
    eventually(lambda: victim.interface not in {each.name for each in table.now()})
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


@pytest.fixture
def node(root: None) -> Iterator[Namespace]:
    """Not a cluster's: the test makes its interfaces."""
    made = Namespace(new_prefix() + "alone")
    made.ip(
        "link add pod type veth peer name peer", "link set pod up", "link set peer up", "addr add 10.0.0.1/24 dev pod"
    )
    yield made
    made.close()


@pytest.fixture
def lone(node: Namespace) -> Iterator[InterfaceTable]:
    started = InterfaceTable()
    with node.entered():
        started.start()
    yield started
    started.stop()


def test_no_capability_is_needed(node: Namespace) -> None:
    program = """
import os, sys, time
from capture.interfaces import InterfaceTable
from capture.netlink import Message, Netlink
table = InterfaceTable()
table.start()
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("CapEff")][0], flush=True)
while not any(each.reaches == ["10.9.9.9"] and each.reaches_macs == ["02:00:00:00:00:09"] for each in table.now()):
    time.sleep(0.01)
print("seen")
"""
    drop = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")
    with node.start(*drop, sys.executable, "-c", program, stdout=subprocess.PIPE, stderr=None) as watching:
        assert watching.stdout
        assert int(watching.stdout.readline(), 16) == 0
        node.ip("route add 10.9.9.9/32 dev pod", "neigh add 10.9.9.9 dev pod lladdr 02:00:00:00:00:09")
        assert watching.communicate(timeout=10)[0] == "seen\n"


def test_routes_go_with_their_interface_and_move_to_another(node: Namespace, lone: InterfaceTable) -> None:
    node.ip("route add 10.9.9.9/32 dev pod", "route add 10.9.9.8/32 dev pod", "route add 10.9.9.7/32 via 10.0.0.2")
    eventually(lambda: leading_to(lone.now(), "10.9.9.8") == {"pod"})
    assert leading_to(lone.now(), "10.9.9.7") == set()
    node.ip("route replace 10.9.9.9/32 dev peer")
    eventually(lambda: leading_to(lone.now(), "10.9.9.9") == {"peer"})
    node.ip("route append 10.9.9.9/32 dev pod")  # behind the other one
    node.ip("link set pod down")
    eventually(lambda: leading_to(lone.now(), "10.9.9.8") == set())
    assert leading_to(lone.now(), "10.9.9.9") == {"peer"}
    node.ip("link set pod up")
    eventually(lambda: all(each.up for each in lone.now() if each.name == "pod"))
    assert leading_to(lone.now(), "10.9.9.8") == set()
    assert "10.9.9.8" not in node.run("ip", "route")


def test_a_flapping_interface(node: Namespace, lone: InterfaceTable) -> None:
    began_ns = time.time_ns()
    flaps = 15
    for _ in range(flaps):
        node.ip("link set pod down")
        eventually(lambda: not any(each.up for each in lone.now() if each.name == "pod"))
        node.ip("link set pod up")
        eventually(lambda: any(each.up for each in lone.now() if each.name == "pod"))
    found = [each for each in lone.during(began_ns, time.time_ns()) if each.name == "pod"]
    assert found[0].since_ns is None
    assert found[-1].until_ns is None
    assert [each.since_ns for each in found[1:]] == [each.until_ns for each in found[:-1]]
    assert sum(before.up and not after.up for before, after in itertools.pairwise(found)) == flaps


def test_what_a_bridge_forgets_is_still_behind_its_port(node: Namespace, lone: InterfaceTable) -> None:
    node.ip("link add cni0 type bridge", "link set cni0 up", "link set pod master cni0", "link set peer master cni0")
    mac = "02:00:00:00:00:09"
    node.run("bridge", "fdb", "add", mac, "dev", "pod", "master", "dynamic")
    node.ip(f"neigh add 10.9.9.9 dev cni0 lladdr {mac}")
    eventually(lambda: leading_to(lone.now(), "10.9.9.9") == {"pod"})
    node.run("bridge", "fdb", "del", mac, "dev", "pod", "master")
    node.ip("route add 10.9.9.8/32 dev peer")
    eventually(lambda: leading_to(lone.now(), "10.9.9.8") == {"peer"})  # what was before it is read
    assert leading_to(lone.now(), "10.9.9.9") == {"pod"}
    node.run("bridge", "fdb", "add", mac, "dev", "peer", "master", "dynamic")
    eventually(lambda: leading_to(lone.now(), "10.9.9.9") == {"peer"})
    node.ip("link del pod")
    eventually(lambda: {each.name for each in lone.now()} == {"lo", "cni0"})
    assert leading_to(lone.now(), "10.9.9.9") == set()


def test_a_storm_of_changes_ends_in_the_truth(
    node: Namespace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """More than the socket holds: some is lost, which the kernel says, and all is listed again; if need be, twice."""
    monkeypatch.setattr("capture.netlink.RECEIVE_BUFFER", 2048)
    monkeypatch.setattr("capture.interfaces.RETRY_SECONDS", 0.05)
    table = InterfaceTable()
    with node.entered():
        table.start()
    listing, failures = Netlink.listing, iter([TimeoutError("timed out")])

    def at_first_not(netlink: Netlink) -> Iterator[Message]:
        for failure in failures:
            raise failure
        return listing(netlink)

    monkeypatch.setattr(Netlink, "listing", at_first_not)
    verbs, ends = ("add", "del"), [(high, low) for high in range(8) for low in range(250)]
    lines = [f"route {verb} 10.9.{high}.{low}/32 dev pod" for high, low in ends for verb in verbs]
    try:
        node.ip(*lines, "route add 10.9.9.9/32 dev pod", "link del pod", "link add after type bridge")
        eventually(lambda: {each.name for each in table.now()} == {"lo", "after"})
        assert table.resyncs
        assert not any(each.reaches for each in table.now())
        assert "tried again soon" in capfd.readouterr().err
    finally:
        table.stop()


def test_stop_ends_the_thread_and_keeps_what_is_known(node: Namespace) -> None:
    table = InterfaceTable()
    with node.entered():
        table.start()
    table.stop()
    assert "interfaces" not in {thread.name for thread in threading.enumerate()}
    assert table.indices(["pod", "nobody"]).keys() == {"pod"}
    table.stop()
