"""NetworkPolicies: what is denied does not arrive, what is allowed does, and the counters say how much was dropped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from tests.lab import policies
from tests.lab.greeters import greet, greet_udp, greeters
from tests.lab.lab import Lab
from tests.lab.policies import Allowed, isolations, selects
from tests.lab.tools import needs
from tests.lab.topology import Pod, Policy, Port, Service, Topology

requires = [pytest.mark.usefixtures("root"), needs("iptables-restore")]

DENY_ALL = {"podSelector": {"matchLabels": {"app": "vault"}}, "policyTypes": ["Ingress"]}
FROM_FRONT = {
    "podSelector": {"matchLabels": {"app": "web"}},
    "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "front"}}}], "ports": [{"port": "http"}]}],
}
ONLY_DNS = {
    "podSelector": {"matchLabels": {"role": "quiet"}},
    "policyTypes": ["Egress"],
    "egress": [{"ports": [{"port": 53, "protocol": "UDP"}]}],
}
PODS = (
    Pod("front", "node-a", labels={"role": "front"}),
    Pod("other", "node-a", labels={"role": "other"}),
    Pod("quiet", "node-b", labels={"role": "quiet"}),
    Pod("web-1", "node-a", labels={"app": "web"}, ports=(Port(8080, name="http"),)),
    Pod("web-2", "node-b", labels={"app": "web"}, ports=(Port(8080, name="http"),)),
    Pod("vault", "node-b", labels={"app": "vault"}),
    Pod("free", "node-b", labels={"app": "free"}),
)
TOPOLOGY = Topology(
    pods=PODS,
    services=(Service("web", {"app": "web"}, 80, 8080),),
    policies=(Policy("deny-vault", DENY_ALL), Policy("front-only", FROM_FRONT), Policy("only-dns", ONLY_DNS)),
    ipv6=True,
    dns=False,
)
NOBODY = {"default/deny-vault": 0, "default/front-only": 0, "default/only-dns": 0}


@pytest.fixture(scope="module", params=["flannel", "calico"])
def lab(request: pytest.FixtureRequest, root: None) -> Iterator[Lab]:
    with Lab(replace(TOPOLOGY, cni=request.param)) as lab, greeters(lab, "web-1", "web-2", "vault", "free"):
        yield lab


class Dropped:
    """What the counters count meanwhile."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._before = policies.drops(lab)

    def now(self) -> dict[str, int]:
        return {name: count - self._before[name] for name, count in policies.drops(self._lab).items()}


class TestTraffic:
    pytestmark = requires

    @pytest.mark.parametrize("server", ["web-1", "web-2"])
    @pytest.mark.parametrize("family", [4, 6])
    def test_who_is_selected_may_pass_on_this_node_and_another(self, lab: Lab, server: str, family: int) -> None:
        dropped = Dropped(lab)
        pod = lab.pod(server)
        ip = pod.ip if family == 4 else pod.ip6
        assert ip
        assert greet(lab.pod("front").namespace, ip, 8080).pod == server
        assert dropped.now() == NOBODY

    @pytest.mark.parametrize("server", ["web-1", "web-2"])
    @pytest.mark.parametrize("family", [4, 6])
    def test_who_is_not_loses_every_packet_and_each_is_counted(self, lab: Lab, server: str, family: int) -> None:
        dropped = Dropped(lab)
        pod = lab.pod(server)
        ip = pod.ip if family == 4 else pod.ip6
        assert ip
        with pytest.raises(TimeoutError):
            greet_udp(lab.pod("other").namespace, ip, 8080, timeout=0.2)
        assert dropped.now() == NOBODY | {"default/front-only": 1}

    def test_a_service_is_judged_by_its_backends(self, lab: Lab) -> None:
        dropped = Dropped(lab)
        vip = lab.service("web").ip
        assert vip
        assert {greet(lab.pod("front").namespace, vip, 80).pod for _ in range(20)} == {"web-1", "web-2"}
        with pytest.raises(TimeoutError):
            greet(lab.pod("other").namespace, vip, 80, timeout=0.2)
        assert dropped.now() == NOBODY | {"default/front-only": 1}

    def test_default_deny(self, lab: Lab) -> None:
        dropped = Dropped(lab)
        for client in ("front", "free"):
            with pytest.raises(TimeoutError):
                greet(lab.pod(client).namespace, lab.pod("vault").ip, 8080, timeout=0.2)
        assert dropped.now() == NOBODY | {"default/deny-vault": 2}

    def test_egress_is_dropped_where_the_client_is(self, lab: Lab) -> None:
        dropped = Dropped(lab)
        with pytest.raises(TimeoutError):
            greet(lab.pod("quiet").namespace, lab.pod("free").ip, 8080, timeout=0.2)
        assert dropped.now() == NOBODY | {"default/only-dns": 1}

    def test_answers_of_who_may_not_ask_pass(self, lab: Lab) -> None:
        """A policy is about who opens: web-1 is isolated for ingress only, and may ask others."""
        assert greet(lab.pod("web-1").namespace, lab.pod("free").ip, 8080).pod == "free"

    def test_the_node_itself_may_always_come_in(self, lab: Lab) -> None:
        assert greet(lab.node("node-b").namespace, lab.pod("vault").ip, 8080).pod == "vault"

    def test_rules_follow_pods_and_counters_stay(self, lab: Lab) -> None:
        dropped = Dropped(lab)
        lab.start_pod(Pod("late", "node-b", labels={"role": "front"}))
        assert greet(lab.pod("late").namespace, lab.pod("web-1").ip, 8080).pod == "web-1"
        ip = lab.pod("late").ip
        lab.kill_pod("late")
        lab.start_pod(Pod("heir", "node-b", labels={"role": "other"}), ip=ip)
        with pytest.raises(TimeoutError):
            greet_udp(lab.pod("heir").namespace, lab.pod("web-1").ip, 8080, timeout=0.2)
        lab.kill_pod("heir")
        assert dropped.now() == NOBODY | {"default/front-only": 1}


def pod(name: str, ip: str, namespace: str = "default", **labels: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"nodeName": "node-a", "containers": [{"ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIPs": [{"ip": ip}]},
    }


def allowed(spec: Mapping[str, Any], *others: dict[str, Any]) -> tuple[Allowed, ...]:
    """What a policy allows the pod `web`, among others."""
    policy = {"metadata": {"name": "p", "namespace": "default"}, "spec": {"podSelector": {}, **spec}}
    spaces = [
        {"metadata": {"name": "default", "labels": {}}},
        {"metadata": {"name": "team", "labels": {"team": "a"}}},
    ]
    pods = [pod("web", "10.244.1.2"), *others]
    return next(each.allowed for _, each in isolations([policy], pods, spaces, 4) if each.ip == "10.244.1.2")


def test_peers_by_namespace_and_pod_must_fit_both() -> None:
    others = (
        pod("a", "10.244.1.3", "team", role="front"),
        pod("b", "10.244.1.4", "team"),
        pod("c", "10.244.1.5", role="front"),
    )
    team, front = {"matchLabels": {"team": "a"}}, {"matchLabels": {"role": "front"}}
    both = [{"from": [{"namespaceSelector": team, "podSelector": front}]}]
    assert allowed({"ingress": both}, *others) == (Allowed(("10.244.1.3/32",)),)
    either = [{"from": [{"namespaceSelector": team}, {"podSelector": front}]}]
    assert allowed({"ingress": either}, *others) == (
        Allowed(("10.244.1.3/32", "10.244.1.4/32")),
        Allowed(("10.244.1.5/32",)),
    )


def test_ip_blocks_ports_and_ranges() -> None:
    block = {"ipBlock": {"cidr": "203.0.113.0/24", "except": ["203.0.113.128/25"]}}
    ports = [{"port": 80}, {"port": 8000, "endPort": 8080, "protocol": "UDP"}, {"port": "http"}]
    networks, exceptions = ("203.0.113.0/24",), ("203.0.113.128/25",)
    assert allowed({"ingress": [{"from": [block], "ports": ports}]}) == (
        Allowed(networks, exceptions, "tcp", "80"),
        Allowed(networks, exceptions, "udp", "8000:8080"),
        Allowed(networks, exceptions, "tcp", "8080"),
    )
    assert policies._without("203.0.113.0/24", exceptions) == ["203.0.113.0/25"]


def test_no_rule_denies_and_an_empty_rule_allows_all() -> None:
    assert allowed({"ingress": []}) == ()
    assert allowed({"ingress": [{}]}) == (Allowed(None),)


def test_a_pod_that_ended_is_no_peer() -> None:
    ended = pod("ended", "10.244.1.3", role="front")
    ended["status"]["phase"] = "Succeeded"
    front = [{"from": [{"podSelector": {"matchLabels": {"role": "front"}}}]}]
    assert allowed({"ingress": front}, ended) == ()


@pytest.mark.parametrize(
    ("operator", "values", "holds"),
    [("In", ["a"], True), ("NotIn", ["a"], False), ("Exists", [], True), ("DoesNotExist", [], False)],
)
def test_label_expressions(operator: str, values: list[str], holds: bool) -> None:
    selector = {"matchExpressions": [{"key": "app", "operator": operator, "values": values}]}
    assert selects(selector, {"app": "a"}) is holds
    assert selects({}, {})
