"""Labs start, change and leave nothing behind; their objects say what is."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP
from scapy.utils import rdpcap

from analysis.dumps import read_dumps
from analysis.kubernetes_objects import ownerships
from tests.lab import __main__ as command
from tests.lab import addresses
from tests.lab.captures import Capture
from tests.lab.conversations import connect, converse, listen
from tests.lab.lab import Lab
from tests.lab.namespaces import FILES, MOUNTED
from tests.lab.topology import Ingress, Node, Pod, Policy, Port, Service, Topology

REPOSITORY = Path(__file__).parents[2]
STARTS_WITHIN_SECONDS = 3
SMALL = Topology(
    pods=(
        Pod("client", "node-a"),
        Pod("web-1", "node-b", {"app": "web"}, (Port(8080),), deployment="web"),
        Pod("web-2", "node-a", {"app": "web"}, (Port(8080),), deployment="web"),
        Pod("agent", "node-b", ports=(Port(9100),), host_network=True),
    ),
    services=(
        Service("web", {"app": "web"}, 80, 8080),
        Service("front", {"app": "web"}, 80, 8080, kind="LoadBalancer"),
        Service("direct", {"app": "web"}, 80, 8080, kind="Headless"),
    ),
    policies=(Policy("all", {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]}),),
    dns=False,
)


@pytest.fixture
def lab(root: None) -> Iterator[Lab]:
    with Lab(SMALL) as running:
        yield running


def test_start_takes_less_than_three_seconds(root: None) -> None:
    """Measured here: 0.3 s; the best of three, as others may be busy on this machine."""

    def start() -> float:
        begun = time.monotonic()
        with Lab(SMALL):
            return time.monotonic() - begun

    assert min(start() for _ in range(3)) < STARTS_WITHIN_SECONDS


def left_of(prefix: str) -> list[str]:
    """Whatever a lab may leave: namespaces, files, processes that run in its namespaces or in none any more."""
    left = [path.name for folder in (MOUNTED, FILES) if folder.exists() for path in folder.glob(f"{prefix}*")]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if prefix in arguments:
            left.append(arguments)
    return left


def processes_of(lab: Lab) -> dict[int, str]:
    """Command lines of whatever runs in a lab's namespaces, by process id."""
    listed = [
        subprocess.run(["ip", "netns", "pids", path.name], capture_output=True, text=True).stdout.split()
        for path in MOUNTED.glob(f"{lab.prefix}*")
    ]
    return {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes().decode() for each in listed for pid in each}


@pytest.mark.parametrize("cni", ["flannel", "calico-ipip", "cilium-geneve"])
def test_nothing_is_left(root: None, cni: str) -> None:
    topology = Topology(pods=SMALL.pods, cni=cni)
    with Lab(topology) as lab:
        prefix = lab.prefix
        sleepers = [each.namespace.start("sleep", "1000") for each in (lab.pod("client"), lab.node("node-a"))]
        assert len(left_of(prefix)) > 5
        processes = processes_of(lab)
        assert sum("tunnels.py" in each for each in processes.values()) == (0 if cni == "flannel" else 2)
    assert [sleeper.wait(5) for sleeper in sleepers] == [-signal.SIGTERM] * 2
    assert left_of(prefix) == []
    assert not [pid for pid in processes if Path(f"/proc/{pid}").exists()]


def test_nothing_is_left_when_starting_fails(root: None, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(SMALL)
    monkeypatch.setattr(lab, "_make_services", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError), lab:
        pytest.fail("it started")
    assert lab.prefix
    assert left_of(lab.prefix) == []


OPEN_AND_WAIT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
from tests.lab.lab import Lab
from tests.lab.topology import Pod, Topology
with Lab(Topology(pods=(Pod("client", "node-a"),), cni="cilium-geneve", dns=False)) as lab:
    sleeper = lab.pod("client").namespace.start("sleep", "1000")
    print(lab.prefix, flush=True)
    time.sleep(1000)
"""


def open_elsewhere() -> tuple[subprocess.Popen[str], str]:
    """A lab in another process, and its prefix."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [sys.executable, "-c", OPEN_AND_WAIT], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, env=environment
    )
    assert process.stdout
    return process, process.stdout.readline().strip()


def test_the_next_lab_removes_what_a_killed_one_left(root: None) -> None:
    process, prefix = open_elsewhere()
    with process:
        process.kill()
    assert any("client" in name for name in left_of(prefix))
    with Lab(Topology(dns=False)):
        assert left_of(prefix) == []


def test_labs_of_several_processes_do_not_meet(root: None) -> None:
    with ExitStack() as stack:
        processes = [stack.enter_context(open_elsewhere()[0]) for _ in range(2)]
        with Lab(SMALL) as one, Lab(SMALL) as two:
            assert all(process.poll() is None for process in processes)
            assert len({path.name.rpartition("-node-a")[0] for path in MOUNTED.glob("*-node-a")}) >= 4
            web = one.pod("web-1")
            assert web.ip == two.pod("web-1").ip
            with listen(web.namespace, web.ip):
                connect(one.pod("client").namespace, web.ip).close()
                with pytest.raises(ConnectionRefusedError):
                    connect(two.pod("client").namespace, web.ip)
        assert all(process.poll() is None for process in processes)
        for process in processes:
            process.send_signal(signal.SIGINT)
            assert process.wait(20)


def test_nothing_is_visible_outside(lab: Lab) -> None:
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True).stdout
    assert "cni0" not in links
    assert lab.pod("client").interface not in links


def test_a_pod_takes_the_address_of_one_that_died(lab: Lab) -> None:
    client, old = lab.pod("client"), lab.pod("web-1")
    assert converse(client.namespace, old.namespace, old.ip).received == 1000
    sleeper = old.namespace.start("sleep", "1000")
    lab.kill_pod("web-1")
    assert sleeper.wait(5) == -signal.SIGTERM
    assert not (MOUNTED / old.namespace.name).exists()
    with pytest.raises(OSError):
        connect(client.namespace, old.ip, timeout=0.5)
    new = lab.start_pod(Pod("batch", "node-b"), ip=old.ip)
    assert new.ip == old.ip
    assert converse(client.namespace, new.namespace, old.ip).received == 1000
    assert lab.backends(lab.service("web").spec) == [lab.pod("web-2")]
    with pytest.raises(ValueError, match="belongs to a pod"):
        lab.start_pod(Pod("third", "node-b"), ip=old.ip)


@pytest.mark.parametrize("cni", ["calico", "cilium", "cilium-geneve", "weave"])
def test_addresses_are_reused_in_every_style(root: None, cni: str) -> None:
    pods = (Pod("client", "node-a"), Pod("old", "node-b", {"app": "old"}))
    with Lab(Topology(pods=pods, cni=cni, dns=False)) as lab:
        client, ip = lab.pod("client").namespace, lab.pod("old").ip
        assert converse(client, lab.pod("old").namespace, ip).received == 1000
        lab.kill_pod("old")
        new = lab.start_pod(Pod("new", "node-b", {"app": "new"}), ip=ip)
        assert converse(client, new.namespace, ip).received == 1000
        assert converse(new.namespace, client, lab.pod("client").ip).seen_client[0] == ip


def test_addresses_are_not_reused_unasked(lab: Lab) -> None:
    ip = lab.pod("web-1").ip
    lab.kill_pod("web-1")
    assert lab.start_pod(Pod("other", "node-b")).ip != ip


def test_a_host_network_pod_is_its_node(lab: Lab) -> None:
    agent, node = lab.pod("agent"), lab.node("node-b")
    assert (agent.ip, agent.namespace) == (node.ip, node.namespace)
    found = converse(lab.pod("web-1").namespace, agent.namespace, agent.ip, port=9100)
    assert found.seen_client[0] == lab.pod("web-1").ip or found.seen_client[0] == node.ip
    lab.kill_pod("agent")
    assert converse(lab.pod("client").namespace, lab.pod("web-1").namespace, lab.pod("web-1").ip).received


@pytest.mark.parametrize("gso", [True, False])
def test_packets_larger_than_the_mtu_can_be_switched_off(root: None, tmp_path: Path, gso: bool) -> None:
    pods = (Pod("client", "node-a"), Pod("web", "node-b"))
    path = tmp_path / "x.pcap"
    with Lab(Topology(pods=pods, gso=gso, dns=False)) as lab:
        client, web = lab.pod("client").namespace, lab.pod("web")
        with Capture(client, path, "eth0") as capture:
            converse(client, web.namespace, web.ip, 500_000)
    packets = rdpcap(str(path))
    assert len(packets) == capture.packets
    largest = max(packet[IP].len for packet in packets if TCP in packet)
    assert largest > 1450 if gso else largest == 1450


def test_flows_stay_on_one_cpu(lab: Lab) -> None:
    """Else packets overtake each other, and TCP retransmits what was never lost."""
    steering = "/sys/class/net/{}/queues/rx-0/rps_cpus"
    client, node = lab.pod("client"), lab.node("node-a")
    for namespace, interface in (
        (client.namespace, "eth0"),
        (node.namespace, client.interface),
        (node.namespace, node.uplink),
        (lab.outside.namespace, "eth0"),
    ):
        mask = int(namespace.run("cat", steering.format(interface)).replace(",", ""), 16)
        assert mask == (1 << (os.cpu_count() or 1)) - 1


def test_captures_hold_everything_and_cut_packets(lab: Lab, tmp_path: Path) -> None:
    client, web = lab.pod("client").namespace, lab.pod("web-1")
    with (
        Capture(client, tmp_path / "whole.pcap", "eth0", expression="tcp"),
        Capture(client, tmp_path / "cut.pcap", "eth0", snaplen=256, expression="tcp"),
    ):
        converse(client, web.namespace, web.ip, 100_000)
    whole, cut = (rdpcap(str(tmp_path / name)) for name in ("whole.pcap", "cut.pcap"))
    assert len(whole) == len(cut)
    assert max(len(packet) for packet in cut) == 256
    sent = sum(len(packet[TCP].payload) for packet in whole if packet[TCP].dport == 8080)
    assert sent == 100_000
    assert {path.name for path in tmp_path.iterdir()} == {"whole.pcap", "cut.pcap"}


def test_a_capture_on_no_interface_fails_at_once(lab: Lab, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="No such device"), Capture(lab.pod("client").namespace, tmp_path / "x", "y"):
        pytest.fail("it listens")


def test_objects_say_what_is(lab: Lab) -> None:
    lists = lab.objects()
    assert {item["kind"] for each in lists.values() for item in each["items"]} == {
        *("Namespace", "Node", "ServiceCIDR", "Deployment", "ReplicaSet", "Pod", "Service", "EndpointSlice"),
        "NetworkPolicy",
    }
    pods = {pod["metadata"]["name"]: pod for pod in lists["pods"]["items"]}
    assert {name: pod["status"]["podIP"] for name, pod in pods.items()} == {p.name: p.ip for p in lab.pods.values()}
    now = datetime.now(UTC)
    starts = [datetime.fromisoformat(pod["status"]["startTime"]) for pod in pods.values()]
    assert all(timedelta() <= now - start < timedelta(minutes=1) for start in starts)
    assert pods["agent"]["spec"]["hostNetwork"]
    assert pods["agent"]["spec"]["containers"][0]["ports"][0]["hostPort"] == 9100
    services = {item["metadata"]["name"]: item for item in lists["services"]["items"]}
    assert services["direct"]["spec"]["clusterIP"] == "None"
    assert services["front"]["status"]["loadBalancer"]["ingress"][0]["ip"] == lab.service("front").load_balancer_ip
    endpoints = {item["metadata"]["name"]: item["endpoints"] for item in lists["endpointslices"]["items"]}
    backends = [lab.pod("web-1").ip, lab.pod("web-2").ip]
    assert [each["addresses"][0] for each in endpoints["web-ipv4"]] == backends
    versions = [int(item["metadata"]["resourceVersion"]) for each in lists.values() for item in each["items"]]
    assert len(set(versions)) == len(versions)
    uids = {item["metadata"]["uid"] for each in lists.values() for item in each["items"]}
    assert len(uids) == len(versions)


def test_changes_come_in_the_order_of_a_real_cluster(lab: Lab) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    lab.on_change(lambda event, item: events.append((event, item)))
    ip = lab.pod("web-1").ip
    lab.kill_pod("web-1")
    lab.start_pod(Pod("web-3", "node-b", {"app": "web"}, deployment="web"), ip=ip)
    lab.finish_pod("web-3")
    seen = [
        (event, item["metadata"]["name"], item["status"]["phase"], item["status"].get("podIP"))
        for event, item in events
        if item["kind"] == "Pod"
    ]
    assert seen == [
        ("MODIFIED", "web-1", "Running", ip),  # with a deletionTimestamp
        ("MODIFIED", "web-1", "Failed", ip),
        ("MODIFIED", "web-1", "Failed", ip),  # grace 0
        ("DELETED", "web-1", "Failed", ip),
        ("ADDED", "web-3", "Pending", None),
        ("MODIFIED", "web-3", "Pending", None),  # scheduled
        ("MODIFIED", "web-3", "Running", ip),
        ("MODIFIED", "web-3", "Succeeded", ip),
    ]
    pods = [item for _, item in events if item["kind"] == "Pod"]
    assert [pod["metadata"].get("deletionGracePeriodSeconds") for pod in pods[:4]] == [1, 1, 0, 0]
    assert all(pod["metadata"]["deletionTimestamp"] for pod in pods[:4])
    versions = [int(item["metadata"]["resourceVersion"]) for _, item in events]
    assert versions == sorted(set(versions))
    slices = [item for _, item in events if item["metadata"]["name"] == "web-ipv4"]
    states = [[(e["addresses"][0] == ip, e["conditions"]["ready"]) for e in item["endpoints"]] for item in slices]
    assert states == [[(True, False), (False, True)], [(False, True)], [(False, True), (True, True)], [(False, True)]]
    replicas = [item["spec"]["replicas"] for _, item in events if item["kind"] == "ReplicaSet"]
    assert replicas == [1, 2, 1]


def test_dumps_name_everything(lab: Lab, tmp_path: Path) -> None:
    first = lab.write_dumps(tmp_path)
    ip = lab.pod("web-1").ip
    lab.kill_pod("web-1")
    lab.start_pod(Pod("batch", "node-b"), ip=ip)
    second = lab.write_dumps(tmp_path)
    assert first != second
    assert json.loads(first.read_text())["kind"] == "List"
    for path, name in ((first, "web-1"), (second, "batch")):
        dumps, problems = read_dumps([str(path)])
        found, more = ownerships(dumps)
        assert not [*problems, *more]
        owners = {(each.ip, each.port): (each.identity, each.name, each.workload, each.node) for each in found}
        assert owners[ip, None] == ("pod", name, "web" if name == "web-1" else None, "node-b")
        assert owners[lab.node("node-b").ip, 9100][:2] == ("pod", "agent")
        assert owners[lab.node("node-a").ip, None][:2] == ("node", "node-a")
        assert owners["10.244.1.0", None][:2] == ("node", "node-a")  # Flannel's tunnel
        assert owners[lab.service("web").ip or "", None][:2] == ("service", "web")


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"cni": "cilum"}, "no CNI style"),
        ({"proxy": "ipvs"}, "no kube-proxy mode"),
        ({"cni": "weave", "ipv6": True}, "no IPv6"),
        ({"pods": (Pod("a", "node-a"), Pod("a", "node-b"))}, "stand for two things: a"),
        ({"pods": (Pod("wire", "node-a"),)}, "stand for two things: wire"),
        ({"pods": (Pod("a", "node-z"),)}, "'node-z', which is no node"),
        ({"services": (Service("a", {}), Service("a", {}))}, "same name"),
    ],
)
def test_a_topology_that_cannot_be_is_refused(wrong: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Topology(**wrong)


def test_the_cluster_brings_what_it_needs_itself() -> None:
    topology = Topology(ingresses=(Ingress("shop", "shop.example", {"/": "web"}),))
    assert [pod.name for pod in topology.all_pods] == ["coredns", "ingress-nginx-controller"]
    assert [service.name for service in topology.all_services] == ["kube-dns", "ingress-nginx-controller"]
    assert Topology(dns=False).all_pods == ()


def test_the_address_plan_has_no_overlaps() -> None:
    networks = (
        *(addresses.NODE_NETWORK, addresses.POD_NETWORK, addresses.SERVICE_NETWORK, addresses.OUTSIDE_NETWORK),
        addresses.BALANCER_NETWORK,
    )
    assert not [(a, b) for a in networks for b in networks if a is not b and a.overlaps(b)]
    networks6 = (
        *(addresses.NODE_NETWORK6, addresses.POD_NETWORK6, addresses.SERVICE_NETWORK6, addresses.OUTSIDE_NETWORK6),
    )
    assert not [(a, b) for a in networks6 for b in networks6 if a is not b and a.overlaps(b)]
    assert addresses.node(1) == addresses.Pair("172.18.0.11", "fd00:18::b")
    assert addresses.in_pod_range(2, 3) == addresses.Pair("10.244.2.3", "fd00:244:2::3")
    assert addresses.service(addresses.DNS).ip == "10.96.0.10"


def test_make_lab_prints_its_map_and_ends_with_ctrl_c(root: None, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.lab", "--dumps", str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert process.stdout
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "Ctrl-C" in line:
            break
    text = "".join(lines)
    assert re.search(r"client +10\.244\.1\.2 +podtap-\S+-client \(veth\w+ on node-a\)", text)
    assert "tcpdump" in text and "podtap analyze" in text and "\x1b" not in text
    enter = re.search(r"ip netns exec (\S+) bash", text)
    ask = re.search(r"ask the web: +(.*)", text)
    assert enter and ask
    deadline = time.monotonic() + 10
    answer = ""
    while "Directory listing" not in answer and time.monotonic() < deadline:
        answer = subprocess.run(ask[1].split(), capture_output=True, text=True).stdout
    assert "Directory listing" in answer
    process.send_signal(signal.SIGINT)
    with process:
        assert process.wait(20) == 0
    assert left_of(enter[1].removesuffix("client")) == []
    assert len(list(tmp_path.glob("cluster-*.json"))) == 1


def test_make_lab_without_root_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert command.main([]) == 1
    assert "needs root" in capsys.readouterr().err


def test_nodes_can_be_more_than_two(root: None) -> None:
    nodes = tuple(Node(f"node-{letter}") for letter in "abc")
    pods = tuple(Pod(f"pod-{letter}", f"node-{letter}") for letter in "abc")
    for cni in ("weave", "cilium", "flannel"):
        with Lab(Topology(nodes=nodes, pods=pods, cni=cni, dns=False)) as lab:
            for server in ("pod-a", "pod-c"):
                found = converse(lab.pod("pod-b").namespace, lab.pod(server).namespace, lab.pod(server).ip)
                assert found.received == 1000
