"""What all CNI styles share: what one is, veth pairs, sysctls, offloads, and rules that masquerade."""

from __future__ import annotations

import array
import fcntl
import hashlib
import socket
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from tests.lab import addresses
from tests.lab.addresses import Pair
from tests.lab.namespaces import Namespace

if TYPE_CHECKING:
    from tests.lab.lab import Lab, RunningNode, RunningPod

MTU: Final = 1500
VXLAN_OVERHEAD: Final = 50
VXLAN_OVERHEAD6: Final = 70
_SIOCETHTOOL: Final = 0x8946
_OFFLOADS: Final = (0x1F, 0x24, 0x2C)
"""ETHTOOL_STSO, ETHTOOL_SGSO, ETHTOOL_SGRO."""


class Cni(Protocol):
    """Gives pods their network, as one plug-in does."""

    def set_up(self) -> None:
        """Connects the nodes."""

    def annotations(self, node: RunningNode) -> dict[str, str]:
        """What the plug-in writes into a node's object."""

    def interface_name(self, namespace: str) -> str:
        """What the plug-in calls the node's end of a pod's veth."""

    def connect(self, pod: RunningPod) -> None:
        """Gives a pod its interface, addresses and routes."""

    def disconnect(self, pod: RunningPod) -> None:
        """Takes them away, so that another pod can have the address at once."""


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
    networks = [("iptables-restore", addresses.POD_NETWORK, "224.0.0.0/4")]
    if lab.topology.ipv6:
        networks.append(("ip6tables-restore", addresses.POD_NETWORK6, "ff00::/8"))
    for node in lab.nodes.values():
        for command, network, multicast in networks:
            rules = f"""*nat
:{chain} - [0:0]
-A POSTROUTING -j {chain}
-A {chain} -s {network} -d {network} -j RETURN
-A {chain} -s {network} -d {node.ip if network.version == 4 else node.ip6} -j RETURN
-A {chain} -s {network} ! -d {multicast} -j MASQUERADE --random-fully
COMMIT
"""
            node.namespace.run(command, "--noflush", "--wait", given=rules)
