"""Which ways past the recorder packets have on this node, as its interfaces tell: pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from capture.contract import Interface
from capture.findings import NOT_SEEN, OK, WARN, Finding
from capture.interface_names import OVERLAY, POD
from capture.node_facts import Device


def blind_spots(interfaces: Sequence[Interface], devices: Sequence[Device]) -> list[Finding]:
    """At least one finding: that all ways are seen, as far as can be told."""
    unseen = [*_cilium(interfaces), *_beside_the_node(interfaces), *_before_sockets(devices), *_encrypted(interfaces)]
    text = "No way past the recorder was found: packets are seen at each interface that they cross."
    return [*_pods(interfaces), *(unseen or [Finding(OK, NOT_SEEN, text)])]


def _cilium(interfaces: Sequence[Interface]) -> Iterator[Finding]:
    if any(each.cni == "cilium" for each in interfaces):
        yield Finding(
            WARN,
            NOT_SEEN,
            "Cilium forwards with eBPF: where it may (BPF host routing, netkit), packets to a pod skip the pod's lxc"
            " interface, and packets between two pods of this node are seen in one direction only. A missing hop is no"
            " loss. Services are resolved in the socket: no packet shows their address.",
            "between nodes all is seen at the physical interface; cilium-dbg status shows Host Routing: BPF or Legacy",
        )
    elif netkit := [each.name for each in interfaces if each.kind == "netkit"]:
        text = f"{_some(netkit)}: packets to a pod may skip its netkit interface: they are seen in one direction only."
        yield Finding(WARN, NOT_SEEN, text)


def _pods(interfaces: Sequence[Interface]) -> Iterator[Finding]:
    pods = [each for each in interfaces if each.role == POD and each.up]
    silent = [each.name for each in pods if not each.reaches]
    if pods:
        text = f"{len(pods)} interfaces lead to pods; behind {len(pods) - len(silent)} of them an address is known"
        rest = f", not behind {_some(silent)}: who is there, only packets tell." if silent else "."
        yield Finding(OK, "pods", text + rest)


def _beside_the_node(interfaces: Sequence[Interface]) -> Iterator[Finding]:
    for kind in ("macvlan", "ipvlan", "macvtap"):
        if names := [each.name for each in interfaces if each.kind == kind]:
            text = f"{_some(names)}: traffic among pods that are {kind} of one interface never reaches the node."
            yield Finding(WARN, NOT_SEEN, text, "record such pods in their own network namespace")


def _before_sockets(devices: Sequence[Device]) -> Iterator[Finding]:
    if names := [each.name for each in devices if each.has_xdp]:
        text = f"{_some(names)}: an XDP program may drop, answer or redirect packets before the recorder can see them."
        yield Finding(WARN, NOT_SEEN, text, "ip -d link shows the program; a missing hop there is no loss")
    if names := [f"{each.name} ({each.virtual_functions})" for each in devices if each.virtual_functions]:
        text = f"{_some(names)}: pods with an SR-IOV function of their own send past the node."
        yield Finding(WARN, NOT_SEEN, text, "record such pods in their own network namespace")
    if names := [each.name for each in devices if each.offloads_flows]:
        text = (
            f"{_some(names)}: hw-tc-offload is on; flows that the card forwards itself are seen by their first packets."
        )
        yield Finding(WARN, NOT_SEEN, text, "ethtool -K DEVICE hw-tc-offload off, for as long as it is recorded")


def _encrypted(interfaces: Sequence[Interface]) -> Iterator[Finding]:
    names = [each.name for each in interfaces if each.kind == "wireguard" and each.up]
    if names:
        role = "the overlay" if any(each.role == OVERLAY for each in interfaces if each.name in names) else "a tunnel"
        text = f"{_some(names)}: {role} is encrypted; outside it podtap sees WireGuard, inside all."
        yield Finding(OK, NOT_SEEN, text)


def _some(names: Sequence[str]) -> str:
    """Three of them, and how many more."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
