"""Weave Net: all pods of the cluster on one Ethernet, which VXLAN carries; the VNI tells sender and receiver.

Its fast datapath is Open vSwitch, here a second bridge (`datapath`) with a VXLAN port for every peer: the kernel's
VXLAN expects one VNI a device, and each peer sends with another one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.lab import addresses
from tests.lab.cni_plumbing import Cni, add_veth, hashed, masquerade, pair_of, set_offloads, set_sysctls

if TYPE_CHECKING:
    from tests.lab.lab import RunningNode, RunningPod

BRIDGE: Final = "weave"
DATAPATH: Final = "datapath"
PORT: Final = 6784
PREFIX_LENGTH: Final = addresses.POD_NETWORK.prefixlen


def vni(sender: int, receiver: int) -> int:
    """Of what one peer sends to another: 12 bits each (weave/router/fastdp.go, tunnelIDFor)."""
    return sender | receiver << 12


def short_id(node_number: int) -> int:
    """Weave draws them by chance; these only look so."""
    return 0x5A7 ^ node_number * 0x111


class Weave(Cni):
    """`vethwepl*` veths on the bridge `weave`."""

    mtu = 1376
    """Weave's own choice: room for encryption, too."""

    def set_up(self) -> None:
        for node in self.lab.nodes.values():
            gateway = addresses.in_pod_range(node.number, 1)
            node.namespace.ip(
                f"link add {BRIDGE} mtu {self.mtu} type bridge",
                f"link set {BRIDGE} address {addresses.mac(0x0A, 0xF4, node.number, 1)} up",
                f"addr add {gateway.ip}/{PREFIX_LENGTH} dev {BRIDGE}",
                f"link add {DATAPATH} mtu {self.mtu} type bridge mcast_snooping 0",
                f"link set {DATAPATH} up",
                f"link add vethwe-bridge mtu {self.mtu} type veth peer name vethwe-datapath mtu {self.mtu}",
                f"link set vethwe-bridge master {BRIDGE} up",
                f"link set vethwe-datapath master {DATAPATH} up",
                *(line for peer in self.peers(node) for line in self._port(node, peer)),
            )
            ports = [self._port_name(node, peer) for peer in self.peers(node)]
            lines = []
            for name, peer in zip(ports, self.peers(node), strict=True):
                sent = vni(short_id(node.number), short_id(peer.number))
                lines.append(f"fdb append 00:00:00:00:00:00 dev {name} dst {peer.ip} vni {sent} self")
                lines.append(f"link set dev {name} isolated on")
            node.namespace.run("bridge", "-batch", "-", given="\n".join(lines) + "\n")
            set_sysctls(node.namespace, {"net/bridge/bridge-nf-call-iptables": 1})
            devices = [BRIDGE, DATAPATH, "vethwe-bridge", "vethwe-datapath", *ports]
            set_offloads(node.namespace, devices, self.lab.topology.gso)
        masquerade(self.lab, "WEAVE")

    def interface_name(self, namespace: str) -> str:
        return hashed("vethwepl", namespace)

    def connect(self, pod: RunningPod) -> None:
        add_veth(self.lab, pod, self.mtu, f"link set {pod.interface} master {BRIDGE}")
        gateway = addresses.in_pod_range(self.lab.node(pod.node).number, 1)
        pod.namespace.ip(
            "link set eth0 up",
            *self.lab.addresses_of("eth0", pair_of(pod), PREFIX_LENGTH, 64),
            f"route add default via {gateway.ip}",
        )

    def _port_name(self, node: RunningNode, peer: RunningNode) -> str:
        """As Weave calls its only one; the others are told apart."""
        number = self.peers(node).index(peer)
        return f"vxlan-{PORT}" + (f".{number}" if number else "")

    def _port(self, node: RunningNode, peer: RunningNode) -> list[str]:
        name = self._port_name(node, peer)
        received = vni(short_id(peer.number), short_id(node.number))
        return [
            f"link add {name} mtu {self.mtu} type vxlan id {received} local {node.ip} dev {node.uplink}"
            f" dstport {PORT} df set nolearning",
            f"link set {name} master {DATAPATH} up",
        ]
