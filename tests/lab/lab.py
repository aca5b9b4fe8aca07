"""A running cluster: builds a topology out of network namespaces, lets its pods come and go, and removes it all."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from tests.lab import addresses, dns, ingress, kube_proxy, policies
from tests.lab.addresses import Pair
from tests.lab.cni_calico import Calico
from tests.lab.cni_cilium import Cilium
from tests.lab.cni_flannel import Flannel
from tests.lab.cni_plumbing import Cni, set_offloads, set_sysctls
from tests.lab.cni_weave import Weave
from tests.lab.namespaces import Namespace, new_prefix, remove, remove_abandoned
from tests.lab.objects import KILLED, Objects
from tests.lab.topology import Node, Pod, Service, Topology

UPLINK: Final = "eth0"
ALL_CPUS: Final = f"{(1 << (os.cpu_count() or 1)) - 1:x}"
"""Receive packet steering keeps each flow on one CPU. Without it a sender that moves between CPUs has its packets
overtake each other in the backlogs of veths, and TCP retransmits what was never lost."""
_PLUGINS: Final[dict[str, type[Cni]]] = {
    "flannel": Flannel,
    "flannel-host-gw": Flannel,
    "calico": Calico,
    "calico-vxlan": Calico,
    "calico-ipip": Calico,
    "cilium": Cilium,
    "cilium-geneve": Cilium,
    "weave": Weave,
}


@dataclass
class RunningNode:
    """A node of a running lab."""

    spec: Node
    number: int
    namespace: Namespace
    ip: str
    ip6: str | None
    pod_range: Pair
    uplink: str = UPLINK

    @property
    def name(self) -> str:
        return self.spec.name


@dataclass
class RunningPod:
    """A pod of a running lab. A hostNetwork pod's namespace, addresses and interface are its node's."""

    spec: Pod
    namespace: Namespace
    ip: str
    ip6: str | None
    interface: str
    """Its veth's end in the node's namespace."""

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def node(self) -> str:
        return self.spec.node


@dataclass
class RunningService:
    """A service of a running lab; a headless one has no address."""

    spec: Service
    ip: str | None
    ip6: str | None
    node_port: int | None
    load_balancer_ip: str | None
    """Routed to the first node, from outside."""


@dataclass
class Host:
    """Whoever is no part of the cluster."""

    namespace: Namespace
    ip: str
    ip6: str | None


class Lab:
    """`with Lab(topology) as lab:` is a cluster that runs."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.store = Objects(topology)
        self.prefix = ""
        self.nodes: dict[str, RunningNode] = {}
        self.pods: dict[str, RunningPod] = {}
        self.services: dict[tuple[str, str], RunningService] = {}
        self.outside: Host
        self._namespaces: list[Namespace] = []
        self._exits = contextlib.ExitStack()
        self.wire: Namespace
        """The switch between the nodes: node-b is plugged in at its port `to-node-b`."""
        self._cni: Cni
        self._router: Namespace
        self._given: dict[str, int] = {}

    def __enter__(self) -> Lab:
        remove_abandoned()
        self.prefix = new_prefix()
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def pod(self, name: str) -> RunningPod:
        return self.pods[name]

    def node(self, name: str) -> RunningNode:
        return self.nodes[name]

    def service(self, name: str, namespace: str | None = None) -> RunningService:
        """The one of this name; the namespace decides where several namespaces have one."""
        found = [each for key, each in self.services.items() if key[1] == name and namespace in (None, key[0])]
        if len(found) != 1:
            raise KeyError(f"{len(found)} services are called {name}")
        return found[0]

    def backends(self, service: Service) -> list[RunningPod]:
        """The pods that answer for it now, in the order in which they started."""
        return [
            pod
            for pod in self.pods.values()
            if pod.spec.namespace == service.namespace
            and service.selector
            and service.selector.items() <= pod.spec.labels.items()
        ]

    def on_exit(self, function: Callable[[], object]) -> None:
        """Calls it before the namespaces go, last come first."""
        self._exits.callback(function)

    def on_change(self, callback: Callable[[str, dict[str, Any]], object]) -> None:
        """Calls it with ADDED, MODIFIED or DELETED and the object, whenever an object changes."""
        self.store.on_change(callback)

    def objects(self) -> dict[str, dict[str, Any]]:
        """The objects of each kind as `kubectl get -o json` lists them, by their plural: "pods", "services" ..."""
        return self.store.lists()

    def write_dumps(self, folder: str | Path) -> Path:
        """What `kubectl get ... -A -o json` would write now, as a new file in the folder."""
        return self.store.write_dump(Path(folder))

    def start_pod(self, spec: Pod, ip: str | None = None) -> RunningPod:
        """A new pod; with the IP of one that is gone, if asked."""
        if spec.name in self.pods or spec.name in self.nodes:
            raise ValueError(f"{spec.name} is running")
        self.store.pod_created(spec)
        pod = self._host_pod(spec) if spec.host_network else self._own_pod(spec, ip)
        self.pods[spec.name] = pod
        node = self.nodes[spec.node]
        self.store.pod_running(spec, _known(pod.ip, pod.ip6), _known(node.ip, node.ip6))
        return pod

    def kill_pod(self, name: str) -> None:
        """Its processes and its interface are gone when this returns."""
        pod = self.pods[name]
        self.store.pod_terminating(pod.spec)
        self._stop(pod)
        self.store.pod_finished(pod.spec, "Failed", KILLED)
        self.store.pod_deleted(pod.spec)

    def finish_pod(self, name: str) -> None:
        """It has Succeeded: its object stays and keeps its IP, which others may take."""
        pod = self.pods[name]
        self._stop(pod)
        self.store.pod_finished(pod.spec, "Succeeded", 0)

    def _build(self) -> None:
        self._build_network()
        self._cni = _PLUGINS[self.topology.cni](self)
        self._cni.set_up()
        self.store.namespaces_created()
        for node in self.nodes.values():
            cidrs = self.families(node.pod_range.ip, node.pod_range.ip6)
            self.store.node_joined(node.spec, _known(node.ip, node.ip6), cidrs, self._cni.annotations(node))
        self._make_services()
        self.store.policies_created()
        for pod in self.topology.all_pods:
            self.start_pod(pod)
        self._cni.serve()
        kube_proxy.apply(self)
        policies.apply(self)
        dns.start(self)
        ingress.start(self)

    def _remove(self) -> None:
        try:
            self._exits.close()
        finally:
            remove([namespace.name for namespace in self._namespaces])
            self._namespaces.clear()

    def new_namespace(self, name: str) -> Namespace:
        """One that goes with the lab."""
        namespace = Namespace(self.prefix + name)
        self._namespaces.append(namespace)
        dead = 0 if self.topology.ipv6 else 1
        settings: dict[str, int | str] = {f"net/ipv6/conf/{which}/disable_ipv6": dead for which in ("all", "default")}
        settings |= {f"net/ipv6/conf/default/{what}": 0 for what in ("accept_dad", "accept_ra", "router_solicitations")}
        if Path("/proc/sys/net/core/rps_default_mask").exists():  # since Linux 6.3
            settings["net/core/rps_default_mask"] = ALL_CPUS
        set_sysctls(namespace, settings)
        return namespace

    def _build_network(self) -> None:
        """A switch, the nodes, a router, and a host beyond it."""
        wire, router, outside = (self.new_namespace(name) for name in ("wire", "router", "outside"))
        self.wire, self._router = wire, router
        wire.ip("link add switch type bridge mcast_snooping 0", "link set switch up")
        set_sysctls(wire, {"net/bridge/bridge-nf-call-iptables": 0, "net/bridge/bridge-nf-call-ip6tables": 0})
        self._plug_in(wire, router, "router", addresses.ROUTER, 0)
        router.ip(
            f"link add eth1 address {addresses.mac(1, 1)} type veth peer name {UPLINK} netns {outside.name}"
            f" address {addresses.mac(1, 2)}",
            "link set eth1 up",
            *self.addresses_of("eth1", addresses.OUTSIDE_ROUTER, 24, 64),
        )
        outside.ip(
            f"link set {UPLINK} up",
            *self.addresses_of(UPLINK, addresses.OUTSIDE, 24, 64),
            *self.families(
                f"route add default via {addresses.OUTSIDE_ROUTER.ip}",
                f"route add default via {addresses.OUTSIDE_ROUTER.ip6}",
            ),
        )
        self.forward(router)
        self.outside = Host(outside, addresses.OUTSIDE.ip, addresses.OUTSIDE.ip6 if self.topology.ipv6 else None)
        for number, node in enumerate(self.topology.nodes, start=1):
            namespace = self.new_namespace(node.name)
            pair = addresses.node(number)
            self._plug_in(wire, namespace, node.name, pair, number)
            namespace.ip(
                *self.families(
                    f"route add default via {addresses.ROUTER.ip}",
                    f"route add default via {addresses.ROUTER.ip6}",
                )
            )
            self.forward(namespace)
            ip6 = pair.ip6 if self.topology.ipv6 else None
            self.nodes[node.name] = RunningNode(node, number, namespace, pair.ip, ip6, addresses.pod_range(number))
        set_offloads(router, ["eth0", "eth1"], self.topology.gso)
        set_offloads(outside, [UPLINK], self.topology.gso)

    def _plug_in(self, wire: Namespace, namespace: Namespace, name: str, pair: Pair, number: int) -> None:
        port = f"to-{name}"[:15]
        wire.ip(
            f"link add {port} type veth peer name {UPLINK} netns {namespace.name} address {addresses.mac(0, number)}",
            f"link set {port} master switch up",
        )
        namespace.ip(f"link set {UPLINK} up", *self.addresses_of(UPLINK, pair, 24, 64))
        set_offloads(wire, [port], self.topology.gso)
        set_offloads(namespace, [UPLINK], self.topology.gso)

    def families(self, line: str, line6: str) -> list[str]:
        """Both, or only the first where there is no IPv6."""
        return [line, line6] if self.topology.ipv6 else [line]

    def addresses_of(self, interface: str, pair: Pair, length: int, length6: int) -> list[str]:
        """Lines for `ip` that give an interface its addresses."""
        return self.families(
            f"addr add {pair.ip}/{length} dev {interface}",
            f"addr add {pair.ip6}/{length6} dev {interface} nodad",
        )

    def forward(self, namespace: Namespace) -> None:
        """Make it a router, as every node is."""
        settings = {"net/ipv4/ip_forward": 1, "net/ipv4/conf/all/rp_filter": 0, "net/ipv4/conf/default/rp_filter": 0}
        settings |= {"net/ipv6/conf/all/forwarding": 1} if self.topology.ipv6 else {}
        set_sysctls(namespace, settings)

    def _make_services(self) -> None:
        numbers = itertools.count(addresses.FIRST_SERVICE)
        node_ports = itertools.count(addresses.FIRST_NODE_PORT)
        balancers = itertools.count(1)
        for spec in self.topology.all_services:
            is_dns = (spec.namespace, spec.name) == ("kube-system", "kube-dns")
            pair = addresses.service(addresses.DNS if is_dns else next(numbers))
            ip, ip6 = (None, None) if spec.kind == "Headless" else (pair.ip, pair.ip6)
            has_port = spec.kind in ("NodePort", "LoadBalancer")
            node_port = (spec.node_port or next(node_ports)) if has_port else None
            balancer_ip = addresses.load_balancer(next(balancers)) if spec.kind == "LoadBalancer" else None
            if balancer_ip:
                first = next(iter(self.nodes.values()))
                self._router.ip(f"route add {balancer_ip} via {first.ip}")
            service = RunningService(spec, ip, ip6 if self.topology.ipv6 else None, node_port, balancer_ip)
            self.services[spec.namespace, spec.name] = service
            self.store.service_created(spec, _known(service.ip, service.ip6), node_port, balancer_ip)

    def _host_pod(self, spec: Pod) -> RunningPod:
        node = self.nodes[spec.node]
        return RunningPod(spec, node.namespace, node.ip, node.ip6, node.uplink)

    def _own_pod(self, spec: Pod, ip: str | None) -> RunningPod:
        node = self.nodes[spec.node]
        pair = self._free_address(node, ip)
        namespace = self.new_namespace(spec.name)
        if self.topology.dns and spec.namespace != "kube-system":
            search = f"{spec.namespace}.svc.cluster.local svc.cluster.local cluster.local"
            resolver = addresses.service(addresses.DNS).ip
            namespace.files(**{"resolv.conf": f"nameserver {resolver}\nsearch {search}\noptions ndots:5\n"})
        ip6 = pair.ip6 if self.topology.ipv6 else None
        pod = RunningPod(spec, namespace, pair.ip, ip6, self._cni.interface_name(namespace.name))
        self._cni.connect(pod)
        set_offloads(namespace, [UPLINK], self.topology.gso)
        set_offloads(node.namespace, [pod.interface], self.topology.gso)
        return pod

    def _free_address(self, node: RunningNode, ip: str | None) -> Pair:
        used = {pod.ip for pod in self.pods.values()}
        if ip is None:
            return next(pair for pair in self._never_used(node) if pair.ip not in used)
        if ip in used:
            raise ValueError(f"{ip} belongs to a pod that runs")
        if ip_address(ip) not in ip_network(node.pod_range.ip):
            raise ValueError(f"{ip} is not in {node.pod_range.ip}, the range of {node.name}")
        return addresses.in_pod_range(node.number, int(ip_address(ip)) & 0xFF)

    def _never_used(self, node: RunningNode) -> Iterator[Pair]:
        for host in range(self._given.get(node.name, addresses.FIRST_POD), 255):
            self._given[node.name] = host + 1
            yield addresses.in_pod_range(node.number, host)

    def _stop(self, pod: RunningPod) -> None:
        del self.pods[pod.name]
        if pod.spec.host_network:
            return
        self._cni.disconnect(pod)
        remove([pod.namespace.name])
        self._namespaces.remove(pod.namespace)


def _known(*ips: str | None) -> list[str]:
    return [ip for ip in ips if ip]
