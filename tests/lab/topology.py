"""What a lab is to look like: nodes, pods, services, policies. A description only; lab.py builds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

CNIS: Final = (
    "flannel",
    "flannel-host-gw",
    "calico",
    "calico-vxlan",
    "calico-ipip",
    "cilium",
    "cilium-geneve",
    "weave",
)
PROXIES: Final = ("iptables", "nftables", "ipvs-model", "none")
RESERVED: Final = ("wire", "router", "outside")
"""Network namespaces that every lab has."""


@dataclass(frozen=True)
class Node:
    """A machine of the cluster."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Port:
    """What a container declares that it listens on."""

    number: int
    protocol: str = "TCP"
    name: str | None = None
    host_port: int | None = None


@dataclass(frozen=True)
class Pod:
    """One pod; its name is unique in the whole lab, so that it alone finds the pod."""

    name: str
    node: str
    labels: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[Port, ...] = ()
    namespace: str = "default"
    deployment: str | None = None
    """What owns it, through a ReplicaSet."""
    host_network: bool = False


@dataclass(frozen=True)
class Service:
    """One port of the pods that the selector finds, by one address."""

    name: str
    selector: Mapping[str, str]
    port: int = 80
    target_port: int | None = None
    """None means the same as `port`."""
    kind: str = "ClusterIP"
    """ClusterIP, NodePort, LoadBalancer, or Headless: a ClusterIP that is None."""
    node_port: int | None = None
    """None lets the lab choose one, where the kind has one."""
    external_traffic_policy: str = "Cluster"
    namespace: str = "default"
    protocols: tuple[str, ...] = ("TCP",)
    session_affinity: str = "None"

    @property
    def backend_port(self) -> int:
        """The port on the pods."""
        return self.target_port or self.port


@dataclass(frozen=True)
class Policy:
    """A NetworkPolicy; `spec` is as in Kubernetes."""

    name: str
    spec: Mapping[str, Any]
    namespace: str = "default"


@dataclass(frozen=True)
class Ingress:
    """HTTP paths of one host name and the services that answer them, all in the Ingress's namespace."""

    name: str
    host: str
    paths: Mapping[str, str]
    """Service name by path prefix."""
    namespace: str = "default"


COREDNS: Final = "coredns"
INGRESS_CONTROLLER: Final = "ingress-nginx-controller"


@dataclass(frozen=True)
class Topology:
    """One cluster."""

    nodes: tuple[Node, ...] = (Node("node-a"), Node("node-b"))
    pods: tuple[Pod, ...] = ()
    services: tuple[Service, ...] = ()
    policies: tuple[Policy, ...] = ()
    ingresses: tuple[Ingress, ...] = ()
    cni: str = "flannel"
    proxy: str = "iptables"
    ipv6: bool = False
    dns: bool = True
    """A CoreDNS pod on the first node, behind the service kube-dns."""
    gso: bool = True
    """Whether devices take packets larger than their MTU, as real ones do (TSO, GSO, GRO)."""

    def __post_init__(self) -> None:
        if self.cni not in CNIS:
            raise ValueError(f"{self.cni!r} is no CNI style: {', '.join(CNIS)}")
        if self.proxy not in PROXIES:
            raise ValueError(f"{self.proxy!r} is no kube-proxy mode: {', '.join(PROXIES)}")
        nodes = [node.name for node in self.nodes]
        if self.cni == "weave" and self.ipv6:
            raise ValueError("Weave Net has no IPv6")
        names = [*RESERVED, *nodes, *(pod.name for pod in self.all_pods)]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"names that stand for two things: {', '.join(sorted(twice))}")
        for pod in self.all_pods:
            if pod.node not in nodes:
                raise ValueError(f"pod {pod.name} is on {pod.node!r}, which is no node")
        services = [(service.namespace, service.name) for service in self.all_services]
        if len(set(services)) < len(services):
            raise ValueError("two services have the same name")

    @cached_property
    def all_pods(self) -> tuple[Pod, ...]:
        """Those asked for, and those that the cluster itself needs."""
        own = []
        if self.dns:
            own.append(
                Pod(
                    COREDNS,
                    self.nodes[0].name,
                    labels={"k8s-app": "kube-dns"},
                    ports=(Port(53, "UDP", "dns"), Port(53, "TCP", "dns-tcp")),
                    namespace="kube-system",
                    deployment="coredns",
                )
            )
        if self.ingresses:
            own.append(
                Pod(
                    INGRESS_CONTROLLER,
                    self.nodes[-1].name,
                    labels={"app.kubernetes.io/name": "ingress-nginx"},
                    ports=(Port(80, name="http"),),
                    namespace="ingress-nginx",
                    deployment="ingress-nginx-controller",
                )
            )
        return (*self.pods, *own)

    @cached_property
    def all_services(self) -> tuple[Service, ...]:
        """Those asked for, and those that the cluster itself needs."""
        own = []
        if self.dns:
            own.append(
                Service("kube-dns", {"k8s-app": "kube-dns"}, port=53, namespace="kube-system", protocols=("UDP", "TCP"))
            )
        if self.ingresses:
            selector = {"app.kubernetes.io/name": "ingress-nginx"}
            own.append(Service(INGRESS_CONTROLLER, selector, port=80, kind="NodePort", namespace="ingress-nginx"))
        return (*self.services, *own)
