"""Flannel: a bridge for the pods of a node, and VXLAN or plain routes between the nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.lab import addresses
from tests.lab.cni_plumbing import (
    MTU,
    VXLAN_OVERHEAD,
    VXLAN_OVERHEAD6,
    add_veth,
    hashed,
    masquerade,
    pair_of,
    set_offloads,
    set_sysctls,
)

if TYPE_CHECKING:
    from tests.lab.lab import Lab, RunningNode, RunningPod

BRIDGE = "cni0"
PORT = 8472
VNI = 1


class Flannel:
    """`flannel.1` (and `flannel-v6.1`) when it tunnels; routes to the other nodes when it is host-gw."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.is_vxlan = lab.topology.cni == "flannel"
        overhead = VXLAN_OVERHEAD6 if lab.topology.ipv6 else VXLAN_OVERHEAD
        self.mtu = MTU - overhead if self.is_vxlan else MTU

    def set_up(self) -> None:
        for node in self.lab.nodes.values():
            gateway = addresses.in_pod_range(node.number, 1)
            node.namespace.ip(
                f"link add {BRIDGE} mtu {self.mtu} type bridge",
                f"link set {BRIDGE} address {addresses.mac(0x0A, 0xF4, node.number, 1)} up",
                *self.lab.addresses_of(BRIDGE, gateway, 24, 64),
                *(self._tunnel(node) if self.is_vxlan else self._routes(node)),
            )
            set_sysctls(node.namespace, {"net/bridge/bridge-nf-call-iptables": 1})
            if self.lab.topology.ipv6:
                set_sysctls(node.namespace, {"net/bridge/bridge-nf-call-ip6tables": 1})
            set_offloads(node.namespace, [BRIDGE], self.lab.topology.gso)
        if self.is_vxlan:
            self._introduce()
        masquerade(self.lab, "FLANNEL-POSTRTG")

    def annotations(self, node: RunningNode) -> dict[str, str]:
        prefix = "flannel.alpha.coreos.com/"
        found = {f"{prefix}backend-type": "vxlan" if self.is_vxlan else "host-gw", f"{prefix}public-ip": node.ip}
        return found | ({f"{prefix}public-ipv6": node.ip6} if node.ip6 else {})

    def interface_name(self, namespace: str) -> str:
        return hashed("veth", namespace, 12)

    def connect(self, pod: RunningPod) -> None:
        add_veth(self.lab, pod, self.mtu, f"link set {pod.interface} master {BRIDGE}")
        gateway = addresses.in_pod_range(self.lab.node(pod.node).number, 1)
        pod.namespace.ip(
            "link set eth0 up",
            *self.lab.addresses_of("eth0", pair_of(pod), 24, 64),
            *self.lab.families(f"route add default via {gateway.ip}", f"route add default via {gateway.ip6}"),
        )

    def disconnect(self, pod: RunningPod) -> None:
        self.lab.node(pod.node).namespace.ip(f"link del {pod.interface}")

    def _peers(self, node: RunningNode) -> list[RunningNode]:
        return [peer for peer in self.lab.nodes.values() if peer is not node]

    def _routes(self, node: RunningNode) -> list[str]:
        return [
            line
            for peer in self._peers(node)
            for line in self.lab.families(
                f"route add {peer.pod_range.ip} via {peer.ip}", f"route add {peer.pod_range.ip6} via {peer.ip6}"
            )
        ]

    def _tunnel(self, node: RunningNode) -> list[str]:
        own = addresses.in_pod_range(node.number, 0)
        return [
            f"link add flannel.1 mtu {self.mtu} address {_tunnel_mac(node, 4)} type vxlan id {VNI} local {node.ip}"
            f" dev {node.uplink} dstport {PORT} nolearning",
            f"addr add {own.ip}/32 dev flannel.1",
            "link set flannel.1 up",
        ] + (
            [
                f"link add flannel-v6.1 mtu {self.mtu} address {_tunnel_mac(node, 6)} type vxlan id {VNI}"
                f" local {node.ip6} dev {node.uplink} dstport {PORT} nolearning udp6zerocsumrx",
                f"addr add {own.ip6}/128 dev flannel-v6.1 nodad",
                "link set flannel-v6.1 up",
            ]
            if self.lab.topology.ipv6
            else []
        )

    def _introduce(self) -> None:
        """Routes, neighbours and forwarding entries are written, never learnt."""
        for node in self.lab.nodes.values():
            lines = []
            for peer in self._peers(node):
                remote = addresses.in_pod_range(peer.number, 0)
                lines += self.lab.families(
                    f"neigh add {remote.ip} lladdr {_tunnel_mac(peer, 4)} dev flannel.1 nud permanent",
                    f"neigh add {remote.ip6} lladdr {_tunnel_mac(peer, 6)} dev flannel-v6.1 nud permanent",
                )
                lines += self.lab.families(
                    f"route add {peer.pod_range.ip} via {remote.ip} dev flannel.1 onlink",
                    f"route add {peer.pod_range.ip6} via {remote.ip6} dev flannel-v6.1 onlink",
                )
            node.namespace.ip(*lines)
            forwarding = [
                line
                for peer in self._peers(node)
                for line in self.lab.families(
                    f"fdb add {_tunnel_mac(peer, 4)} dev flannel.1 dst {peer.ip} self permanent",
                    f"fdb add {_tunnel_mac(peer, 6)} dev flannel-v6.1 dst {peer.ip6} self permanent",
                )
            ]
            node.namespace.run("bridge", "-batch", "-", given="\n".join(forwarding) + "\n")


def _tunnel_mac(node: RunningNode, version: int) -> str:
    return addresses.mac(0x0F, version, node.number)


cni = Flannel
