"""Services: the rules are those of a real kube-proxy, and real connections go where they must."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import kube_proxy, kube_proxy_nftables
from tests.lab.greeters import greet, greet_udp, greeters
from tests.lab.lab import Lab
from tests.lab.namespaces import Namespace, new_prefix
from tests.lab.service_ports import ServicePort, service_ports
from tests.lab.tools import needs
from tests.lab.topology import Pod, Service, Topology
from tests.oracle import SHARED

RECORDED = SHARED / "k8s" / "kubeproxy"
NETWORKS = {4: ("10.244.0.0/16", "10.96.0.0/16"), 6: (None, "fd00:10:96::/112")}
"""Of pods, as far as the recorded kube-proxy was told, and of services."""
needs_recordings = pytest.mark.skipif(not RECORDED.exists(), reason="kube-proxy's recordings in ../shared are absent")
pytestmark = [pytest.mark.usefixtures("root"), needs("iptables-restore", "nft", "conntrack")]

WEB = (Pod("web-1", "node-a", labels={"app": "web"}), Pod("web-2", "node-b", labels={"app": "web", "only": "b"}))
SERVICES = (
    Service("web", {"app": "web"}, 80, 8080, protocols=("TCP", "UDP")),
    Service("open", {"app": "web"}, 80, 8080, kind="NodePort"),
    Service("local", {"only": "b"}, 80, 8080, kind="NodePort", external_traffic_policy="Local"),
    Service("balanced", {"app": "web"}, 80, 8080, kind="LoadBalancer"),
    Service("self", {"only": "b"}, 80, 8080),
    Service("nobody", {"app": "nobody"}, 80, 8080, kind="NodePort"),
)


@pytest.fixture(scope="module", params=["iptables", "nftables", "ipvs-model"])
def lab(request: pytest.FixtureRequest, root: None) -> Iterator[Lab]:
    topology = Topology(
        pods=(Pod("client", "node-a"), *WEB), services=SERVICES, proxy=request.param, ipv6=True, dns=False
    )
    with Lab(topology) as lab, greeters(lab, "web-1", "web-2"):
        yield lab


@pytest.fixture
def bare(root: None) -> Iterator[Namespace]:
    """A network namespace with nothing in it."""
    namespace = Namespace(new_prefix() + "bare")
    try:
        yield namespace
    finally:
        namespace.close()


def recorded_ports(mode: str, family: int) -> list[ServicePort]:
    items = json.loads((RECORDED / mode / "cluster_objects_at_capture.json").read_text())["items"]
    by_kind = {kind: [item for item in items if item["kind"] == kind] for kind in ("Service", "EndpointSlice")}
    return service_ports(by_kind["Service"], by_kind["EndpointSlice"], family)


def rules_in(saved: str) -> Counter[str]:
    """Without comments, counting objects, and the order of services, which is that of a Go map."""
    lines = [re.sub(r" -m nfacct --nfacct-name +\S+", "", line) for line in saved.splitlines()]
    return Counter(line for line in lines if not line.startswith("#"))


@needs_recordings
@pytest.mark.parametrize("family", [4, 6])
def test_iptables_rules_are_those_recorded(bare: Namespace, family: int) -> None:
    rules = kube_proxy.rules(recorded_ports("iptables", family), "node-a", family, NETWORKS[family][0])
    prefix = "iptables" if family == 4 else "ip6tables"
    bare.run(f"{prefix}-restore", "--noflush", given=rules.text())
    recorded = (RECORDED / "iptables" / f"iptables-save.v{family}").read_text()
    assert rules_in(bare.run(f"{prefix}-save")) == rules_in(recorded)


@needs_recordings
@pytest.mark.parametrize("family", [4, 6])
def test_jumps_and_chains_keep_their_order(bare: Namespace, family: int) -> None:
    rules = kube_proxy.rules(recorded_ports("iptables", family), "node-a", family, NETWORKS[family][0])
    prefix = "iptables" if family == 4 else "ip6tables"
    bare.run(f"{prefix}-restore", "--noflush", given=rules.text())
    recorded = (RECORDED / "iptables" / f"iptables-save.v{family}").read_text()

    def by_chain(saved: str) -> dict[str, list[str]]:
        chains: dict[str, list[str]] = {}
        for line in rules_in(saved):
            if line.startswith("-A ") and not line.startswith("-A KUBE-SERVICES"):
                chains.setdefault(line.split()[1], []).append(line)
        return chains

    assert by_chain(bare.run(f"{prefix}-save")) == by_chain(recorded)


def canonical(ruleset: dict[str, Any]) -> set[str]:
    """Every object of a ruleset, without handles and the order of elements."""
    found = set()
    for entry in ruleset["nftables"]:
        ((kind, value),) = entry.items()
        if kind == "metainfo":
            continue
        value = {key: each for key, each in value.items() if key != "handle"}
        if "elem" in value:
            value["elem"] = sorted(json.dumps(each) for each in value["elem"])
        found.add(json.dumps({kind: value}, sort_keys=True))
    return found


@needs_recordings
def test_nftables_rules_are_those_recorded(bare: Namespace) -> None:
    for family, (pods, services) in NETWORKS.items():
        ports = recorded_ports("nftables", family)
        bare.run("nft", "-f", "-", given=kube_proxy_nftables.table(ports, "node-a", family, pods, services))
    recorded = json.loads((RECORDED / "nftables" / "nft_ruleset.json").read_text())
    assert canonical(json.loads(bare.run("nft", "-j", "list", "ruleset"))) == canonical(recorded)


def test_chains_are_named_as_kube_proxy_names_them() -> None:
    assert kube_proxy.chain_name("SVC", "default/kubernetes:https", "tcp") == "KUBE-SVC-NPX46M4PTMTKRN6Y"


def conntrack(lab: Lab, node: str, family: str = "ipv4") -> list[tuple[dict[str, str], dict[str, str]]]:
    """The TCP connections that a node knows: addresses and ports as asked, and as answered."""
    found = []
    for line in lab.node(node).namespace.run("conntrack", "-L", "-p", "tcp", "-f", family).splitlines():
        pairs = re.findall(r"\b(src|dst|sport|dport)=(\S+)", line)
        found.append((dict(pairs[:4]), dict(pairs[4:8])))
    return found


@pytest.mark.parametrize("family", [4, 6])
def test_a_cluster_ip_reaches_all_backends_and_hides_them(lab: Lab, family: int) -> None:
    client, service = lab.pod("client"), lab.service("web")
    vip, own = (service.ip, client.ip) if family == 4 else (service.ip6, client.ip6)
    assert vip
    greetings = [greet(client.namespace, vip, 80) for _ in range(30)]
    assert {greeting.pod for greeting in greetings} == {"web-1", "web-2"}
    assert {(greeting.seen_ip, greeting.own_ip) for greeting in greetings} == {(own, own)}
    known = {int(asked["sport"]): (asked, answered) for asked, answered in conntrack(lab, "node-a", f"ipv{family}")}
    for greeting in greetings:
        asked, answered = known[greeting.own_port]
        backend = lab.pod(greeting.pod)
        assert (asked["src"], asked["dst"], asked["dport"]) == (own, vip, "80")
        assert answered["src"] == (backend.ip if family == 4 else backend.ip6)
        assert (answered["dst"], answered["sport"]) == (own, "8080")


def test_udp_is_balanced_too(lab: Lab) -> None:
    service = lab.service("web")
    assert service.ip
    answers = {greet_udp(lab.pod("client").namespace, service.ip, 80).pod for _ in range(30)}
    assert answers == {"web-1", "web-2"}


def addresses_of(lab: Lab, node: str) -> set[str]:
    shown = json.loads(lab.node(node).namespace.run("ip", "-j", "addr"))
    return {address["local"] for interface in shown for address in interface["addr_info"]}


@pytest.mark.parametrize("family", [4, 6])
def test_a_node_port_masquerades(lab: Lab, family: int) -> None:
    outside, node, service = lab.outside, lab.node("node-a"), lab.service("open")
    ip = node.ip if family == 4 else node.ip6
    assert ip and service.node_port
    greetings = [greet(outside.namespace, ip, service.node_port) for _ in range(20)]
    assert {greeting.pod for greeting in greetings} == {"web-1", "web-2"}
    assert {greeting.seen_ip for greeting in greetings} <= addresses_of(lab, "node-a")


@pytest.mark.parametrize("family", [4, 6])
def test_external_traffic_policy_local_keeps_the_client(lab: Lab, family: int) -> None:
    outside, node, service = lab.outside, lab.node("node-b"), lab.service("local")
    ip = node.ip if family == 4 else node.ip6
    assert ip and service.node_port
    greeting = greet(outside.namespace, ip, service.node_port)
    assert (greeting.pod, greeting.seen_ip) == ("web-2", outside.ip if family == 4 else outside.ip6)


def test_external_traffic_policy_local_drops_where_no_endpoint_is(lab: Lab) -> None:
    node, service = lab.node("node-a"), lab.service("local")
    assert service.node_port
    refusal = ConnectionRefusedError if lab.topology.proxy == "ipvs-model" else TimeoutError
    with pytest.raises(refusal):
        greet(lab.outside.namespace, node.ip, service.node_port, timeout=0.3)


def test_pods_reach_a_local_node_port_on_any_node(lab: Lab) -> None:
    node, service = lab.node("node-a"), lab.service("local")
    assert service.node_port
    if lab.topology.proxy != "ipvs-model":
        assert greet(lab.pod("client").namespace, node.ip, service.node_port).pod == "web-2"


def test_a_load_balancer_ip_works_from_outside(lab: Lab) -> None:
    service = lab.service("balanced")
    assert service.load_balancer_ip
    greetings = {greet(lab.outside.namespace, service.load_balancer_ip, 80).pod for _ in range(20)}
    assert greetings == {"web-1", "web-2"}


@pytest.mark.parametrize("family", [4, 6])
def test_hairpin_a_pod_reaches_itself_by_its_service(lab: Lab, family: int) -> None:
    pod, service = lab.pod("web-2"), lab.service("self")
    vip, own = (service.ip, pod.ip) if family == 4 else (service.ip6, pod.ip6)
    assert vip
    greeting = greet(pod.namespace, vip, 80)
    assert greeting.pod == "web-2"
    assert greeting.own_ip == own
    assert greeting.seen_ip in addresses_of(lab, "node-b")


def unreachables(lab: Lab, pod: str) -> int:
    with lab.pod(pod).namespace.entered():
        names, values = [
            line.split()
            for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()
            if line.startswith("Icmp:")
        ]
    return int(values[names.index("InDestUnreachs")])


def test_a_service_without_endpoints_is_refused_by_icmp(lab: Lab) -> None:
    client, service = lab.pod("client"), lab.service("nobody")
    assert service.ip and service.node_port
    before, started = unreachables(lab, "client"), time.monotonic()
    for ip, port in ((service.ip, 80), (lab.node("node-a").ip, service.node_port)):
        with pytest.raises(ConnectionRefusedError):
            greet(client.namespace, ip, port)
    assert time.monotonic() - started < 1
    assert unreachables(lab, "client") == before + 2
    # Over IPv6 the refusal comes back before connect() has let go of the socket: the kernel heeds the second one only,
    # which answers the retransmitted SYN.
    assert service.ip6
    with pytest.raises(ConnectionRefusedError):
        greet(client.namespace, service.ip6, 80)


def test_the_rules_follow_pods_that_come_and_go(lab: Lab) -> None:
    client, service = lab.pod("client").namespace, lab.service("web")
    assert service.ip
    lab.start_pod(Pod("web-3", "node-b", labels={"app": "web"}))
    with greeters(lab, "web-3"):
        seen = {greet(client, service.ip, 80).pod for _ in range(60)}
        answers = {greet_udp(client, service.ip, 80, own_port=4000 + number).pod for number in range(20)}
        assert seen == answers == {"web-1", "web-2", "web-3"}
    lab.kill_pod("web-3")
    assert {greet(client, service.ip, 80).pod for _ in range(30)} == {"web-1", "web-2"}
    # The same ports again: conntrack must have forgotten the pod that is gone.
    answers = {greet_udp(client, service.ip, 80, own_port=4000 + number).pod for number in range(20)}
    assert answers == {"web-1", "web-2"}


def test_ipvs_takes_turns_and_owns_the_address(root: None) -> None:
    topology = Topology(pods=(Pod("client", "node-a"), *WEB), services=SERVICES, proxy="ipvs-model", dns=False)
    with Lab(topology) as lab, greeters(lab, "web-1", "web-2"):
        client, service = lab.pod("client").namespace, lab.service("web")
        assert service.ip
        order = [greet(client, service.ip, 80).pod for _ in range(6)]
        assert order in (["web-1", "web-2"] * 3, ["web-2", "web-1"] * 3)
        assert "1 received" in client.run("ping", "-c", "1", "-W", "1", service.ip)
        assert f"{service.ip}/32" in lab.node("node-a").namespace.run("ip", "addr", "show", "kube-ipvs0")


@pytest.mark.parametrize("proxy", ["iptables", "nftables"])
def test_session_affinity_keeps_a_client_at_one_backend(root: None, proxy: str) -> None:
    service = Service("sticky", {"app": "web"}, 80, 8080, session_affinity="ClientIP")
    topology = Topology(pods=(Pod("client", "node-a"), *WEB), services=(service,), proxy=proxy, dns=False)
    with Lab(topology) as lab, greeters(lab, "web-1", "web-2"):
        ip = lab.service("sticky").ip
        assert ip
        assert len({greet(lab.pod("client").namespace, ip, 80).pod for _ in range(20)}) == 1


@pytest.mark.parametrize("cni", ["flannel-host-gw", "calico", "calico-vxlan", "weave"])
def test_services_work_over_every_cni(root: None, cni: str) -> None:
    topology = Topology(pods=(Pod("client", "node-a"), *WEB), services=SERVICES, cni=cni, dns=False)
    with Lab(topology) as lab, greeters(lab, "web-1", "web-2"):
        client, service, hairpin = lab.pod("client"), lab.service("web"), lab.service("self")
        assert service.ip and hairpin.ip
        greetings = [greet(client.namespace, service.ip, 80) for _ in range(20)]
        assert {(greeting.pod, greeting.seen_ip) for greeting in greetings} == {
            ("web-1", client.ip),
            ("web-2", client.ip),
        }
        assert greet(lab.pod("web-2").namespace, hairpin.ip, 80).pod == "web-2"
        port = lab.service("local").node_port
        assert port
        assert greet(lab.outside.namespace, lab.node("node-b").ip, port).seen_ip == lab.outside.ip
