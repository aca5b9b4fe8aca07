"""What all CNI styles share: what one is, veth pairs, sysctls, offloads, and rules that masquerade."""

from __future__ import annotations

import array
import fcntl
import hashlib
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.lab import addresses
from tests.lab.addresses import Pair
from tests.lab.namespaces import Namespace

if TYPE_CHECKING:
    from tests.lab.lab import Lab, RunningNode, RunningPod

MTU: Final = 1500
VXLAN_OVERHEAD: Final = 50
VXLAN_OVERHEAD6: Final = 70
"""Over IPv4, and over IPv6."""
_SIOCETHTOOL: Final = 0x8946
_OFFLOADS: Final = (0x1F, 0x24, 0x2C)
"""ETHTOOL_STSO, ETHTOOL_SGSO, ETHTOOL_SGRO."""


class Cni(ABC):
    """Gives pods their network, as one plug-in does."""

    mtu = MTU

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    @abstractmethod
    def set_up(self) -> None:
        """Connects the nodes."""

    @abstractmethod
    def interface_name(self, namespace: str) -> str:
        """What the plug-in calls the node's end of a pod's veth."""

    @abstractmethod
    def connect(self, pod: RunningPod) -> None:
        """Gives a pod its interface, addresses and routes."""

    def disconnect(self, pod: RunningPod) -> None:
        """Takes them away, so that another pod can have the address at once."""
        self.lab.node(pod.node).namespace.ip(f"link del {pod.interface}")

    def annotations(self, node: RunningNode) -> dict[str, str]:
        """What the plug-in writes into a node's object."""
        return {}

    def serve(self) -> None:  # noqa: B027 (most balance nothing)
        """For plug-ins that balance services themselves: called once all pods run."""

    def peers(self, node: RunningNode) -> list[RunningNode]:
        """All nodes but this one."""
        return [peer for peer in self.lab.nodes.values() if peer is not node]

    def plain_routes(self, node: RunningNode) -> list[str]:
        """Lines for `ip`: the other nodes' pods are behind the other nodes."""
        return [
            line
            for peer in self.peers(node)
            for line in self.lab.families(
                f"route add {peer.pod_range.ip} via {peer.ip}", f"route add {peer.pod_range.ip6} via {peer.ip6}"
            )
        ]


def vxlan_mtu(lab: Lab) -> int:
    """What a pod may send where its packets may be wrapped over any family that the lab has."""
    return MTU - (VXLAN_OVERHEAD6 if lab.topology.ipv6 else VXLAN_OVERHEAD)


class VxlanMesh:
    """One VXLAN device a family on every node; what others learn is written down: routes, neighbours, forwarding."""

    def __init__(self, cni: Cni, device: str, device6: str, vni: int, port: int) -> None:
        self.cni = cni
        self.vni = vni
        self.port = port
        self.devices = cni.lab.families(device, device6)

    def set_up(self) -> None:
        for node in self.cni.lab.nodes.values():
            lines, forwarding = [], []
            for device, version in zip(self.devices, (4, 6), strict=False):
                lines += self._device(node, device, version)
                for peer in self.cni.peers(node):
                    remote = _own_address(peer, version)
                    mac = _tunnel_mac(peer, version)
                    to, cidr = (peer.ip, peer.pod_range.ip) if version == 4 else (peer.ip6, peer.pod_range.ip6)
                    lines.append(f"neigh add {remote} lladdr {mac} dev {device} nud permanent")
                    lines.append(f"route add {cidr} via {remote} dev {device} onlink")
                    forwarding.append(f"fdb add {mac} dev {device} dst {to} self permanent")
            node.namespace.ip(*lines)
            node.namespace.run("bridge", "-batch", "-", given="\n".join(forwarding) + "\n")
            set_offloads(node.namespace, self.devices, self.cni.lab.topology.gso)

    def _device(self, node: RunningNode, device: str, version: int) -> list[str]:
        local, length = (node.ip, 32) if version == 4 else (node.ip6, 128)
        return [
            f"link add {device} mtu {self.cni.mtu} address {_tunnel_mac(node, version)} type vxlan id {self.vni}"
            f" local {local} dev {node.uplink} dstport {self.port} nolearning",
            f"addr add {_own_address(node, version)}/{length} dev {device}" + (" nodad" if version == 6 else ""),
            f"link set {device} up",
        ]


def _own_address(node: RunningNode, version: int) -> str:
    own = addresses.in_pod_range(node.number, 0)
    return own.ip if version == 4 else own.ip6


def _tunnel_mac(node: RunningNode, version: int) -> str:
    return addresses.mac(0x0F, version, node.number)


def hashed(prefix: str, text: str, length: int = 15) -> str:
    """An interface name that starts with the prefix and is as long as asked."""
    return prefix + hashlib.sha256(text.encode()).hexdigest()[: length - len(prefix)]


def set_sysctls(namespace: Namespace, values: Mapping[str, int | str]) -> None:
    """Values by path below /proc/sys, as the namespace sees them."""
    with namespace.entered():
        for path, value in values.items():
            Path("/proc/sys", path).write_text(str(value))


def set_offloads(namespace: Namespace, interfaces: Iterable[str], on: bool) -> None:
    """Whether the interfaces take and make packets larger than their MTU; they do so by themselves."""
    if on:
        return
    with namespace.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for interface in interfaces:
            for command in _OFFLOADS:
                value = array.array("I", [command, 0])
                request = struct.pack("16sP", interface.encode(), value.buffer_info()[0])
                fcntl.ioctl(control, _SIOCETHTOOL, request)


def add_veth(lab: Lab, pod: RunningPod, mtu: int, *lines: str) -> None:
    """A veth pair between a pod and its node; the lines are run on the node next, in the same process."""
    host = int(pod.ip.rpartition(".")[2])
    node = lab.node(pod.node)
    node.namespace.ip(
        f"link add {pod.interface} mtu {mtu} type veth peer name eth0 netns {pod.namespace.name}"
        f" mtu {mtu} address {pod_mac(node, host)}",
        f"link set {pod.interface} up",
        *lines,
    )


def pod_mac(node: RunningNode, host: int) -> str:
    """Derived from the address: a pod that takes an address takes the neighbours' entries with it."""
    return addresses.mac(0x0A, 0xF4, node.number, host)


def pair_of(pod: RunningPod) -> Pair:
    """A pod's addresses; the second one is only for labs with IPv6."""
    return Pair(pod.ip, pod.ip6 or "")


def masquerade(lab: Lab, chain: str) -> None:
    """What leaves the cluster carries its node's address."""
    for node in lab.nodes.values():
        _masquerade(node, chain, "iptables-restore", str(addresses.POD_NETWORK), "224.0.0.0/4")
        if lab.topology.ipv6:
            _masquerade(node, chain, "ip6tables-restore", str(addresses.POD_NETWORK6), "ff00::/8")


def _masquerade(node: RunningNode, chain: str, command: str, pods: str, multicast: str) -> None:
    rules = f"""*nat
:{chain} - [0:0]
-A POSTROUTING -j {chain}
-A {chain} -s {pods} -d {pods} -j RETURN
-A {chain} -s {pods} ! -d {multicast} -j MASQUERADE --random-fully
COMMIT
"""
    node.namespace.run(command, "--noflush", "--wait", given=rules)
