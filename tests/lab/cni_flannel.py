"""Flannel: a bridge for the pods of a node, and VXLAN or plain routes between the nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.lab import addresses
from tests.lab.cni_plumbing import (
    Cni,
    VxlanMesh,
    add_veth,
    hashed,
    masquerade,
    pair_of,
    set_offloads,
    set_sysctls,
    vxlan_mtu,
)

if TYPE_CHECKING:
    from tests.lab.lab import Lab, RunningNode, RunningPod

BRIDGE: Final = "cni0"
PORT: Final = 8472
VNI: Final = 1


class Flannel(Cni):
    """`flannel.1` (and `flannel-v6.1`) when it tunnels; routes to the other nodes when it is host-gw."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self.is_vxlan = lab.topology.cni == "flannel"
        if self.is_vxlan:
            self.mtu = vxlan_mtu(lab)

    def set_up(self) -> None:
        for node in self.lab.nodes.values():
            gateway = addresses.in_pod_range(node.number, 1)
            node.namespace.ip(
                f"link add {BRIDGE} mtu {self.mtu} type bridge",
                f"link set {BRIDGE} address {addresses.mac(0x0A, 0xF4, node.number, 1)} up",
                *self.lab.addresses_of(BRIDGE, gateway, 24, 64),
                *([] if self.is_vxlan else self.plain_routes(node)),
            )
            set_sysctls(
                node.namespace, {f"net/bridge/bridge-nf-call-{tables}": 1 for tables in ("iptables", "ip6tables")}
            )
            set_offloads(node.namespace, [BRIDGE], self.lab.topology.gso)
        if self.is_vxlan:
            VxlanMesh(self, "flannel.1", "flannel-v6.1", VNI, PORT).set_up()
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
