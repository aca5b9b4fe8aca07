"""Calico: no bridge; every pod is a route. Between nodes plain routes, VXLAN, or IPIP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.lab import addresses, tunnels
from tests.lab.cni_plumbing import (
    MTU,
    Cni,
    VxlanMesh,
    add_veth,
    hashed,
    masquerade,
    pair_of,
    set_sysctls,
    vxlan_mtu,
)

if TYPE_CHECKING:
    from tests.lab.lab import Lab, RunningNode, RunningPod

GATEWAY: Final = "169.254.1.1"
"""Nobody has this address: the node answers for it, as for any other (proxy ARP)."""
HOST_MAC: Final = "ee:ee:ee:ee:ee:ee"
"""Of every node's end of a veth; the IPv6 gateway is the link-local address that follows from it."""
GATEWAY6: Final = "fe80::ecee:eeff:feee:eeee"
PORT: Final = 4789
VNI: Final = 4096
IPIP_OVERHEAD: Final = 20


class Calico(Cni):
    """`cali*` veths, each with a /32 route; `vxlan.calico` or `tunl0` where it tunnels."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self.is_vxlan = lab.topology.cni == "calico-vxlan"
        self.is_ipip = lab.topology.cni == "calico-ipip"
        if self.is_vxlan:
            self.mtu = vxlan_mtu(lab)
        if self.is_ipip:
            self.mtu = MTU - IPIP_OVERHEAD

    def set_up(self) -> None:
        if self.is_vxlan:
            VxlanMesh(self, "vxlan.calico", "vxlan-v6.calico", VNI, PORT).set_up()
        elif self.is_ipip:
            self._ipip()
        else:
            for node in self.lab.nodes.values():
                node.namespace.ip(*self.plain_routes(node))
        masquerade(self.lab, "cali-nat-outgoing")

    def annotations(self, node: RunningNode) -> dict[str, str]:
        found = {"projectcalico.org/IPv4Address": f"{node.ip}/24"}
        if node.ip6:
            found["projectcalico.org/IPv6Address"] = f"{node.ip6}/64"
        own = addresses.in_pod_range(node.number, 0)
        if self.is_ipip:
            found["projectcalico.org/IPv4IPIPTunnelAddr"] = own.ip
        if self.is_vxlan:
            found["projectcalico.org/IPv4VXLANTunnelAddr"] = own.ip
            if node.ip6:
                found["projectcalico.org/IPv6VXLANTunnelAddr"] = own.ip6
        return found

    def interface_name(self, namespace: str) -> str:
        return hashed("cali", namespace)

    def connect(self, pod: RunningPod) -> None:
        add_veth(
            self.lab,
            pod,
            self.mtu,
            f"link set {pod.interface} address {HOST_MAC}",
            *self.lab.families(
                f"route add {pod.ip}/32 dev {pod.interface} scope link", f"route add {pod.ip6}/128 dev {pod.interface}"
            ),
        )
        neighbours = f"net/ipv4/neigh/{pod.interface}"
        set_sysctls(
            self.lab.node(pod.node).namespace,
            {f"net/ipv4/conf/{pod.interface}/proxy_arp": 1, f"{neighbours}/proxy_delay": 0},
        )
        pod.namespace.ip(
            "link set eth0 up",
            *self.lab.addresses_of("eth0", pair_of(pod), 32, 128),
            f"route add {GATEWAY} dev eth0 scope link",
            *self.lab.families(f"route add default via {GATEWAY}", f"route add default via {GATEWAY6} dev eth0"),
        )

    def _ipip(self) -> None:
        """IPIP carries IPv4 only, in Calico too: IPv6 goes without a tunnel."""
        nodes = self.lab.nodes.values()
        started = [
            tunnels.start(
                node.namespace, "ipip", "tunl0", node.ip, {peer.pod_range.ip: peer.ip for peer in self.peers(node)}
            )
            for node in nodes
        ]
        for node, tunnel in zip(nodes, started, strict=True):
            self.lab.on_exit(tunnel.close)
            tunnel.wait()
            node.namespace.ip(
                f"link set tunl0 mtu {self.mtu} txqueuelen {tunnels.QUEUE_LENGTH} up",
                f"addr add {addresses.in_pod_range(node.number, 0).ip}/32 dev tunl0",
                *(f"route add {peer.pod_range.ip} via {peer.ip} dev tunl0 onlink" for peer in self.peers(node)),
            )
            if self.lab.topology.ipv6:
                node.namespace.ip(
                    *(f"route add {peer.pod_range.ip6} via {peer.ip6}" for peer in self.peers(node)),
                )
