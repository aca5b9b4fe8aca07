"""Cilium: the tunnel's VNI is the sender's security identity, and services are resolved before a pod connects.

Three things are models. Cilium's eBPF programs forward between interfaces, here the kernel routes. Its socket load
balancing rewrites connect(), here the pod's own namespace rewrites the destination in its OUTPUT chain: nothing outside
the socket ever sees a service's address. Geneve runs in user space. What pods send otherwise (node ports, say) is
kube-proxy's.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from tests.lab import addresses, tunnels
from tests.lab.cni_plumbing import (
    MTU,
    VXLAN_OVERHEAD,
    Cni,
    add_veth,
    hashed,
    masquerade,
    pair_of,
    set_offloads,
    set_sysctls,
)
from tests.lab.service_ports import ServicePort, service_ports
from tests.lab.topology import Pod

if TYPE_CHECKING:
    from tests.lab.lab import Lab, RunningNode, RunningPod

PORT: Final = 8472
REMOTE_NODE: Final = 6
"""Cilium's reserved identity of what other nodes send themselves."""
FIRST_IDENTITY: Final = 256
IDENTITIES: Final = 65536 - FIRST_IDENTITY
FIRST_TABLE: Final = 100_000
"""An identity's routing table is this plus the identity."""


def identity(pod: Pod) -> int:
    """Pods of a namespace with the same labels have the same one."""
    labels = "".join(sorted(f"{key}={value};" for key, value in pod.labels.items()))
    digest = hashlib.sha256(f"{pod.namespace};{labels}".encode()).digest()
    return FIRST_IDENTITY + int.from_bytes(digest[:4], "big") % IDENTITIES


class Cilium(Cni):
    """`lxc*` veths and one tunnel device for all peers."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self.mtu = MTU - VXLAN_OVERHEAD
        self.is_geneve = lab.topology.cni == "cilium-geneve"
        self.device = "cilium_geneve" if self.is_geneve else "cilium_vxlan"
        self._tunnels: dict[str, tunnels.Tunnel] = {}
        self._tables: set[tuple[str, int]] = set()
        self._balancing: list[ServicePort] | None = None

    def set_up(self) -> None:
        nodes = self.lab.nodes.values()
        if self.is_geneve:
            for node in nodes:
                ranges = {
                    cidr: peer.ip
                    for peer in self.peers(node)
                    for cidr in self.lab.families(peer.pod_range.ip, peer.pod_range.ip6)
                }
                self._tunnels[node.name] = tunnels.start(node.namespace, "geneve", self.device, node.ip, ranges)
                self.lab.on_exit(self._tunnels[node.name].close)
        for node in nodes:
            self._device(node)
        masquerade(self.lab, "CILIUM_POST_nat")

    def annotations(self, node: RunningNode) -> dict[str, str]:
        own = addresses.in_pod_range(node.number, 1)
        keys = self.lab.families("network.cilium.io/ipv4-cilium-host", "network.cilium.io/ipv6-cilium-host")
        return dict(zip(keys, (own.ip, own.ip6), strict=False))

    def interface_name(self, namespace: str) -> str:
        return hashed("lxc", namespace)

    def connect(self, pod: RunningPod) -> None:
        node = self.lab.node(pod.node)
        own = addresses.in_pod_range(node.number, 1)
        routes = self.lab.families(
            f"route add {pod.ip}/32 dev {pod.interface} scope link", f"route add {pod.ip6}/128 dev {pod.interface}"
        )
        add_veth(self.lab, pod, self.mtu, *routes)
        if self.lab.topology.ipv6:  # IPv4 answers for any address of its own by itself
            settings = {f"conf/{pod.interface}/proxy_ndp": 1, f"neigh/{pod.interface}/proxy_delay": 0}
            set_sysctls(node.namespace, {f"net/ipv6/{path}": value for path, value in settings.items()})
            node.namespace.ip(f"neigh add proxy {own.ip6} dev {pod.interface}")
        self._identify(node, pod)
        pod.namespace.ip(
            "link set eth0 up",
            *self.lab.addresses_of("eth0", pair_of(pod), 32, 128),
            *self.lab.families(f"route add {own.ip} dev eth0 scope link", f"route add {own.ip6} dev eth0"),
            *self.lab.families(f"route add default via {own.ip}", f"route add default via {own.ip6} dev eth0"),
        )
        if self._balancing is not None:
            self._balance(pod, self._balancing)

    def disconnect(self, pod: RunningPod) -> None:
        if not self.is_geneve:
            node = self.lab.node(pod.node).namespace
            rule = f"rule del iif {pod.interface} lookup {FIRST_TABLE + identity(pod.spec)}\n"
            for family in self.lab.families("-4", "-6"):
                node.run("ip", family, "-batch", "-", given=rule)
        super().disconnect(pod)

    def serve(self) -> None:
        self._follow("", {"kind": "Service"})
        self.lab.on_change(self._follow)

    def _device(self, node: RunningNode) -> None:
        """`cilium_host` has the address that pods know as their router."""
        mac = addresses.mac(0x0F, 4, node.number)
        if self.is_geneve:
            self._tunnels[node.name].wait()
            device = [f"link set {self.device} address {mac} mtu {self.mtu} txqueuelen {tunnels.QUEUE_LENGTH}"]
        else:
            external = f"type vxlan external dstport {PORT} nolearning"
            device = [f"link add {self.device} mtu {self.mtu} address {mac} {external}"]
        node.namespace.ip(
            "link add cilium_host type veth peer name cilium_net",
            "link set cilium_host arp off up",
            "link set cilium_net arp off up",
            *self.lab.addresses_of("cilium_host", addresses.in_pod_range(node.number, 1), 32, 128),
            *device,
            f"link set {self.device} up",
            *(
                f"neigh add {ip} lladdr {addresses.mac(0x0F, 4, peer.number)} dev {self.device} nud permanent"
                for peer in self.peers(node)
                for ip in self.lab.families(*_router(peer))
            ),
            *self._routes(node, REMOTE_NODE, ""),
        )
        set_offloads(node.namespace, [] if self.is_geneve else [self.device], self.lab.topology.gso)
        if self.is_geneve:
            for ip in self.lab.families(*_router(node)):
                self._tunnels[node.name].set_vni(ip, REMOTE_NODE)

    def _routes(self, node: RunningNode, vni: int, table: str) -> list[str]:
        """Lines for `ip`: to the pods of all other nodes, with a VNI."""
        lines = []
        own = _router(node)
        for peer in self.peers(node):
            encapsulation = "" if self.is_geneve else f"encap ip id {vni} dst {peer.ip}"
            ranges = (peer.pod_range.ip, peer.pod_range.ip6)
            for cidr, via, source in zip(self.lab.families(*ranges), _router(peer), own, strict=False):
                lines.append(
                    f"route add {cidr} {encapsulation} via {via} dev {self.device} onlink src {source} {table}"
                )
        return lines

    def _identify(self, node: RunningNode, pod: RunningPod) -> None:
        """What the pod sends to other nodes carries its identity."""
        number = identity(pod.spec)
        if self.is_geneve:
            for ip in self.lab.families(pod.ip, pod.ip6 or ""):
                self._tunnels[node.name].set_vni(ip, number)
            return
        table = FIRST_TABLE + number
        if (node.name, number) not in self._tables:
            self._tables.add((node.name, number))
            node.namespace.ip(*self._routes(node, number, f"table {table}"))
        for family in self.lab.families("-4", "-6"):
            rule = f"rule add iif {pod.interface} lookup {table}\n"
            node.namespace.run("ip", family, "-batch", "-", given=rule)

    def _follow(self, event: str, item: dict[str, Any]) -> None:
        """Every pod's rules are what the services and their backends ask for."""
        if item["kind"] not in ("Service", "EndpointSlice"):
            return
        objects = self.lab.objects()
        services, slices = objects["services"]["items"], objects["endpointslices"]["items"]
        wanted = [
            port
            for family in ((4, 6) if self.lab.topology.ipv6 else (4,))
            for port in service_ports(services, slices, family)
        ]
        if wanted != self._balancing:
            self._balancing = wanted
            for pod in self.lab.pods.values():
                if not pod.spec.host_network:
                    self._balance(pod, wanted)

    def _balance(self, pod: RunningPod, ports: list[ServicePort]) -> None:
        for command, is_ipv6 in (("iptables-restore", False), ("ip6tables-restore", True)):
            if is_ipv6 and not self.lab.topology.ipv6:
                continue
            rules = [rule for port in ports if (":" in port.cluster_ip) == is_ipv6 for rule in _balance_rules(port)]
            pod.namespace.run(command, "--wait", given="\n".join(["*nat", *rules, "COMMIT", ""]))


def _balance_rules(port: ServicePort) -> list[str]:
    """Each backend with the same chance; without one nothing is rewritten, and kube-proxy's rules refuse it."""
    to = f"-A OUTPUT -d {port.cluster_ip} -p {port.protocol} --dport {port.port}"
    left = range(len(port.endpoints), 0, -1)
    return [
        to
        + (f" -m statistic --mode random --probability {1 / rest:.10f}" if rest > 1 else "")
        + f" -j DNAT --to-destination {endpoint}"
        for rest, endpoint in zip(left, port.endpoints, strict=True)
    ]


def _router(node: RunningNode) -> tuple[str, str]:
    own = addresses.in_pod_range(node.number, 1)
    return own.ip, own.ip6
