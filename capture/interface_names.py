"""What an interface is for, as its name and kind tell: pure."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

POD, BRIDGE, OVERLAY, TUNNEL, UPLINK, LOOPBACK = "pod", "bridge", "overlay", "tunnel", "uplink", "loopback"
"""Roles. overlay: carries pods' packets inside others to other nodes, or is part of that way; tunnel: any other."""


class Meaning(NamedTuple):
    """`role` and `cni` as in contract.Interface."""

    role: str = ""
    cni: str = ""


_NAMES: Final = tuple(
    (re.compile(pattern), Meaning(role, cni))
    for pattern, role, cni in (
        (r"cali[0-9a-f]{11}", POD, "calico"),
        (r"(vxlan|vxlan-v6|wireguard|wg-v6)\.(calico|cali)", OVERLAY, "calico"),
        (r"lxc_health|lxc[0-9a-f]+", POD, "cilium"),
        (r"cilium_(vxlan|geneve|ipip4|ipip6|tunl|ip6tnl|wg0)", OVERLAY, "cilium"),
        (r"cilium_(host|net)", BRIDGE, "cilium"),
        (r"flannel(-v6)?\.\d+|flannel\.ipip|flannel-wg(-v6)?", OVERLAY, "flannel"),
        (r"vethwepl[0-9a-f]+", POD, "weave"),
        (r"vethwe-(bridge|datapath|pcap)|vethwe[udr][0-9a-f]*|vxlan-6784.*|datapath", OVERLAY, "weave"),
        (r"weave", BRIDGE, "weave"),
        (r"cni0", BRIDGE, "flannel"),
        (r"tunl0", OVERLAY, "calico"),
        # Others' pods: AWS, Azure, GKE, OVN-Kubernetes, Antrea.
        (r"eni[0-9a-f]{11}|azv[0-9a-f]+|gke[0-9a-f]{11}", POD, ""),
        (r"antrea-gw\d+|ovn-k8s-mp\d+|kube-bridge|br-int|ovs-system", BRIDGE, ""),
        (r"antrea-tun\d+|genev_sys_\d+|vxlan_sys_\d+|gre_sys", OVERLAY, ""),
        # They hold addresses of services, and no packet of a pod is seen there.
        (r"kube-ipvs\d+|nodelocaldns|dummy\d+", "", ""),
        # Containers of this machine, not of the cluster.
        (r"docker\d+|br-[0-9a-f]{12}|virbr\d+|podman\d+|lxcbr\d+|lxdbr\d+", "", ""),
    )
)
"""The first that fits the whole name decides. Names that only the kind explains are not here."""

_KINDS: Final = {
    "loopback": LOOPBACK,
    "bridge": BRIDGE,
    "openvswitch": BRIDGE,
    "vxlan": OVERLAY,
    "geneve": OVERLAY,
    "ipip": TUNNEL,
    "ip6tnl": TUNNEL,
    "sit": TUNNEL,
    "gre": TUNNEL,
    "gretap": TUNNEL,
    "ip6gre": TUNNEL,
    "ip6gretap": TUNNEL,
    "vti": TUNNEL,
    "vti6": TUNNEL,
    "xfrm": TUNNEL,
    "wireguard": TUNNEL,
    "tun": TUNNEL,
    "bond": UPLINK,
    "team": UPLINK,
    "vlan": UPLINK,
}
_UPLINK: Final = re.compile(r"(eth|ens|enp|eno|enx|enP|em|venet)\d\w*")
"""Names of a pair's end that is a node's way out: the node is itself a container, such as kind's."""
_REPRESENTOR: Final = re.compile(r".*vf\d+|.*_\d+")
"""The host's end of an SR-IOV function."""
_PAIRS: Final = ("veth", "netkit")


def meaning(name: str, kind: str, master: str = "", is_peer_elsewhere: bool = False) -> Meaning:
    """The role and CNI of an interface, both "" where they are not known.

    `kind` as contract.Interface's; `master`: the name of the bridge or bond it belongs to; `is_peer_elsewhere`: its
    other end is in another network namespace.
    """
    for pattern, known in _NAMES:
        if pattern.fullmatch(name):
            return known
    if kind in _PAIRS:
        if _UPLINK.fullmatch(name):
            return Meaning(UPLINK)
        if master:
            of_master = meaning(master, "bridge")
            return Meaning(POD, of_master.cni) if of_master.role == BRIDGE else Meaning()
        return Meaning(POD if is_peer_elsewhere else "")
    if not kind:
        return Meaning("" if _REPRESENTOR.fullmatch(name) else UPLINK)
    return Meaning(_KINDS.get(kind, ""))
