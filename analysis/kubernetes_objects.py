"""What one Kubernetes object says about the owners of addresses.

A pod owns its addresses from `status.startTime`, but had them for certain only a little later, when its sandbox was
there; in between, who had them before may have them still. A completed pod owns them until it finished, and as its
times are whole seconds, perhaps a second longer.
A hostNetwork pod shares its node's address and owns the ports it declares; host ports of others are owned likewise.
A service owns its cluster IPs from its creation; of its external, load-balancer and node addresses, which it may
share, only its ports. A node owns its addresses, those its network plug-in announced, and bridge and tunnel
addresses that follow from its pod range.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final

from analysis.dumps import Dump, parse_time
from analysis.errors import Problem
from analysis.layout import NANOSECONDS
from analysis.ownerships import BEGINNING_NS, NO_END_NS, Ownership, Proof

Object = dict[str, Any]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_ANNOUNCED: Final = (
    "projectcalico.org/IPv4Address",
    "projectcalico.org/IPv6Address",
    "projectcalico.org/IPv4IPIPTunnelAddr",
    "projectcalico.org/IPv4VXLANTunnelAddr",
    "projectcalico.org/IPv6VXLANTunnelAddr",
    "projectcalico.org/IPv4WireguardInterfaceAddr",
    "projectcalico.org/IPv6WireguardInterfaceAddr",
    "flannel.alpha.coreos.com/public-ip",
    "flannel.alpha.coreos.com/public-ipv6",
    "network.cilium.io/ipv4-cilium-host",
    "network.cilium.io/ipv6-cilium-host",
    "io.cilium.network.ipv4-cilium-host",
    "io.cilium.network.ipv6-cilium-host",
)
"""Annotations in which network plug-ins announce a node's own addresses."""

_OWN_ADDRESS_PLAN: Final = ("projectcalico.org/", "network.cilium.io/", "io.cilium.network")
"""Plug-ins that may give the first addresses of a pod range to pods."""


@dataclass(frozen=True, slots=True)
class Controller:
    """Who made an object: a controlling ownerReference."""

    kind: str
    name: str
    uid: str


class Cluster:
    """What the meaning of one object needs to know of the others, from all dumps together."""

    def __init__(self) -> None:
        self.controllers: dict[str, Controller] = {}
        """Who made an object, by the object's UID."""
        self.node_ips: dict[str, None] = {}
        """Addresses of all nodes, in order, once each."""
        self.pod_ips: dict[str, set[str]] = {}
        """Addresses of the pods that have their own, by node."""

    def learn(self, item: Object) -> None:
        """Take note of one object."""
        controller = _controller(item)
        if controller:
            self.controllers[item["metadata"]["uid"]] = controller
        if item["kind"] == "Node":
            self.node_ips.update(dict.fromkeys(_node_ips(item)))
        elif item["kind"] == "Pod" and not _at(item, "spec", "hostNetwork"):
            self.pod_ips.setdefault(_at(item, "spec", "nodeName") or "", set()).update(_pod_ips(item))


def ownerships(dumps: Sequence[Dump]) -> tuple[list[Ownership], list[Problem]]:
    """Everything that the dumps' objects say, unsettled; an object that makes no sense is a problem."""
    cluster = Cluster()
    found: list[Ownership] = []
    problems: list[Problem] = []
    sound = []
    for dump in dumps:
        for item in dump.objects:
            with problems_of(item, dump, problems):
                cluster.learn(item)
                sound.append((item, dump))
    for item, dump in sound:
        with problems_of(item, dump, problems):
            found.extend(of_object(item, Proof(dump.taken_ns, dump.name, dump.is_part), cluster))
    return found, problems


def of_object(item: Object, proof: Proof, cluster: Cluster) -> list[Ownership]:
    """What one object owns. Raises as dictionaries do where it is not as Kubernetes writes it."""
    reader = _READERS.get(item["kind"])
    if reader is None:
        return []
    _check_texts(item["metadata"]["name"])
    return list(reader(item, proof, cluster))


@contextmanager
def problems_of(item: Object, dump: Dump, problems: list[Problem]) -> Iterator[None]:
    """An object of the wrong shape costs itself, not the dump."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        metadata = item.get("metadata")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        message = (
            f"{item['kind']} {name} is left out, it is not as Kubernetes writes it: {type(error).__name__}: {error}"
        )
        problems.append(Problem(dump.path, None, message))


def _of_pod(pod: Object, proof: Proof, cluster: Cluster) -> Iterator[Ownership]:
    start_ns, end_ns = _pod_lifetime(pod, proof)
    if start_ns >= end_ns:
        return
    workload, workload_kind = workload_of(pod, cluster)
    own = partial(
        _ownership,
        pod,
        proof,
        start_ns=start_ns,
        held_ns=_held_ns(pod, start_ns, proof),
        kept_ns=end_ns - NANOSECONDS if is_completed(pod) else None,
        end_ns=end_ns,
        workload=workload,
        workload_kind=workload_kind,
        node=_at(pod, "spec", "nodeName"),
    )
    host_network = _at(pod, "spec", "hostNetwork")
    if not host_network:
        for ip in _pod_ips(pod):
            yield own(ip)
    host_ips = _pod_ips(pod) if host_network else _host_ips(pod)
    for port in _container_ports(pod):
        number = port["containerPort"] if host_network else port.get("hostPort")
        if number:
            listens_on = port.get("hostIP")
            ips = host_ips if listens_on in (None, "", "0.0.0.0", "::") else [canonical_ip(listens_on)]
            for ip in ips:
                yield own(ip, number, port.get("protocol", "TCP"))


def _of_service(service: Object, proof: Proof, cluster: Cluster) -> Iterator[Ownership]:
    own = partial(_ownership, service, proof)
    spec = service["spec"]
    for ip in spec.get("clusterIPs") or [spec.get("clusterIP")]:
        if ip and ip != "None":  # headless
            yield own(canonical_ip(ip))
    ingress = _at(service, "status", "loadBalancer", "ingress") or []
    outside = [canonical_ip(ip) for ip in spec.get("externalIPs") or []]
    outside += [canonical_ip(point["ip"]) for point in ingress if point.get("ip")]
    owned: set[tuple[str, int, str]] = set()
    for port in spec.get("ports") or []:
        protocol = port.get("protocol", "TCP")
        owned.update((ip, port["port"], protocol) for ip in outside)
        if port.get("nodePort"):
            owned.update((ip, port["nodePort"], protocol) for ip in cluster.node_ips)
    for address in sorted(owned):
        yield own(*address)


def _of_node(node: Object, proof: Proof, cluster: Cluster) -> Iterator[Ownership]:
    name = node["metadata"]["name"]
    own = partial(_ownership, node, proof, node=name)
    ranges = [ipaddress.ip_network(cidr) for cidr in _at(node, "spec", "podCIDRs") or []]
    ips = dict.fromkeys(_node_ips(node))
    ips.update(dict.fromkeys(_from_pod_ranges(node, ranges, cluster.pod_ips.get(name, set()))))
    for ip in ips:
        yield own(ip)
    for pod_range in ranges:
        yield own(str(pod_range))


def _of_service_cidr(service_cidr: Object, proof: Proof, cluster: Cluster) -> Iterator[Ownership]:
    for cidr in service_cidr["spec"]["cidrs"]:
        yield _ownership(service_cidr, proof, str(ipaddress.ip_network(cidr)), identity="service")


_READERS: Final[dict[str, Callable[[Object, Proof, Cluster], Iterator[Ownership]]]] = {
    "Pod": _of_pod,
    "Service": _of_service,
    "Node": _of_node,
    "ServiceCIDR": _of_service_cidr,
}


def _ownership(
    item: Object,
    proof: Proof,
    ip: str,
    port: int | None = None,
    protocol: str | None = None,
    *,
    identity: str | None = None,
    start_ns: int | None = None,
    held_ns: int | None = None,
    kept_ns: int | None = None,
    end_ns: int = NO_END_NS,
    workload: str | None = None,
    workload_kind: str | None = None,
    node: str | None = None,
) -> Ownership:
    metadata = item["metadata"]
    _check_texts(protocol, metadata.get("namespace"), metadata.get("uid"), workload, workload_kind, node)
    start_ns = _created_ns(item) if start_ns is None else start_ns
    if port is not None and (type(port) is not int or not 0 < port < 1 << 16):
        raise ValueError(f"{port!r} is no port")
    return Ownership(
        ip=ip,
        port=port,
        protocol=protocol,
        start_ns=start_ns,
        held_ns=start_ns if held_ns is None else held_ns,
        kept_ns=max(start_ns, min(proof.taken_ns, end_ns) if kept_ns is None else kept_ns),
        end_ns=end_ns,
        identity=identity or item["kind"].lower(),
        namespace=metadata.get("namespace"),
        name=metadata["name"],
        uid=metadata.get("uid"),
        workload=workload,
        workload_kind=workload_kind,
        node=node,
        labels=tuple(sorted(f"{key}={value}" for key, value in (metadata.get("labels") or {}).items())),
        proofs=frozenset([proof]),
    )


def _check_texts(*texts: Any) -> None:
    for text in texts:
        if not isinstance(text, str | None):
            raise TypeError(f"{text!r} is no text")


def _pod_lifetime(pod: Object, proof: Proof) -> tuple[int, int]:
    """Since when and until when a pod owned its addresses; empty if it completed at a time that nothing tells."""
    started = _at(pod, "status", "startTime")
    start_ns = parse_time(started) if started else _created_ns(pod)
    if is_completed(pod):
        return start_ns, _finished_ns(pod)
    deadline = _at(pod, "metadata", "deletionTimestamp")
    return start_ns, max(parse_time(deadline), proof.taken_ns) if deadline else NO_END_NS


def _held_ns(pod: Object, start_ns: int, proof: Proof) -> int:
    """By when a pod had its addresses for certain: its sandbox was there, a container ran, or the dump shows them.

    The sandbox's own time goes first: one that is made again (a node's reboot) may get another address, and containers
    tell of the one before, too. A dump without the status of any container knows no better than the pod's start.
    """
    conditions = _at(pod, "status", "conditions") or []
    times = [
        each.get("lastTransitionTime")
        for each in conditions
        if each["type"] == "PodReadyToStartContainers" and each["status"] == "True"
    ]
    statuses = [status for key in _CONTAINER_STATUSES for status in _at(pod, "status", key) or []]
    if not any(times):
        times = [
            _at(status, key, state, "startedAt")
            for status in statuses
            for key in ("state", "lastState")
            for state in ("running", "terminated")
        ]
    if not statuses and not any(times):
        return start_ns
    proven = [parse_time(time) + NANOSECONDS for time in times if time]  # they are whole seconds, rounded down
    return max(start_ns, min([*proven, proof.taken_ns]))


def is_completed(pod: Object) -> bool:
    """It runs no more, whatever the API goes on to show."""
    return _at(pod, "status", "phase") in ("Succeeded", "Failed")


def kept_ns(pod: Object) -> int:
    """The latest time at which a pod had its addresses for certain, as far as it tells itself: a container ran."""
    conditions = _at(pod, "status", "conditions") or []
    times = [
        each.get("lastTransitionTime") for each in conditions if each["type"] in _RUNNING and each["status"] == "True"
    ]
    times += [
        _at(status, key, state, time)
        for container_statuses in _CONTAINER_STATUSES
        for status in _at(pod, "status", container_statuses) or []
        for key in ("state", "lastState")
        for state, time in (("running", "startedAt"), ("terminated", "startedAt"), ("terminated", "finishedAt"))
    ]
    return max((parse_time(time) for time in times if time), default=BEGINNING_NS)


def _finished_ns(pod: Object) -> int:
    """By when the last container of a completed pod finished, else when it was last seen to become unready.

    At most a second later than it did: Kubernetes rounds down.
    """
    statuses = [status for key in _CONTAINER_STATUSES for status in _at(pod, "status", key) or []]
    times = [_at(status, "state", "terminated", "finishedAt") for status in statuses]
    if not any(times):
        conditions = _at(pod, "status", "conditions") or []
        unready = [each for each in conditions if each["type"] in _READY and each["status"] == "False"]
        times = [each.get("lastTransitionTime") for each in unready]
    return max((parse_time(time) + NANOSECONDS for time in times if time), default=BEGINNING_NS)


_CONTAINER_STATUSES: Final = ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses")
_READY: Final = ("Ready", "ContainersReady")
_RUNNING: Final = (*_READY, "PodReadyToStartContainers")


def workload_of(pod: Object, cluster: Cluster) -> tuple[str | None, str | None]:
    """Name and kind of the top of a pod's owner chain, as far as the dumps show it."""
    top = _controller(pod)
    if top is None:
        return None, None
    if top.kind == "Node":  # a static pod: named after its manifest and its node
        return pod["metadata"]["name"].removesuffix("-" + top.name), top.kind
    seen = set()
    while top.uid in cluster.controllers and top.uid not in seen:
        seen.add(top.uid)
        top = cluster.controllers[top.uid]
    template_hash = _at(pod, "metadata", "labels", "pod-template-hash")
    if top.kind == "ReplicaSet" and template_hash and top.name.endswith("-" + template_hash):
        return top.name.removesuffix("-" + template_hash), "Deployment"  # its ReplicaSet is in no dump
    return top.name, top.kind


def _controller(item: Object) -> Controller | None:
    for reference in _at(item, "metadata", "ownerReferences") or []:
        if reference.get("controller"):
            return Controller(reference["kind"], reference["name"], reference["uid"])
    return None


def _created_ns(item: Object) -> int:
    created = _at(item, "metadata", "creationTimestamp")
    return parse_time(created) if created else BEGINNING_NS


def _pod_ips(pod: Object) -> list[str]:
    status = pod.get("status") or {}
    ips = [entry["ip"] for entry in status.get("podIPs") or []] or [status.get("podIP")]
    return [canonical_ip(ip) for ip in ips if ip]


def _host_ips(pod: Object) -> list[str]:
    status = pod.get("status") or {}
    ips = [entry["ip"] for entry in status.get("hostIPs") or []] or [status.get("hostIP")]
    return [canonical_ip(ip) for ip in ips if ip]


def _container_ports(pod: Object) -> Iterator[Object]:
    for key in ("containers", "initContainers"):  # sidecars are init containers
        for container in _at(pod, "spec", key) or []:
            yield from container.get("ports") or []


def _node_ips(node: Object) -> Iterator[str]:
    for address in _at(node, "status", "addresses") or []:
        if address["type"] in ("InternalIP", "ExternalIP"):
            yield canonical_ip(address["address"])
    annotations = _at(node, "metadata", "annotations") or {}
    for key in _ANNOUNCED:
        if annotations.get(key):
            yield canonical_ip(annotations[key].partition("/")[0])


def _from_pod_ranges(node: Object, ranges: list[Network], pod_ips: set[str]) -> Iterator[str]:
    """The bridge (.1) and, with Flannel's VXLAN, the tunnel (.0) address: nowhere written, but fixed by the range.

    Only where nothing speaks against the range being what this node's pods get their addresses from.
    """
    annotations = _at(node, "metadata", "annotations") or {}
    pods = [ipaddress.ip_address(ip) for ip in pod_ips]
    planned_elsewhere = any(key.startswith(_OWN_ADDRESS_PLAN) for key in annotations)
    if planned_elsewhere or not all(any(pod in pod_range for pod_range in ranges) for pod in pods):
        return
    for pod_range in ranges:
        yield str(pod_range[1])
        if annotations.get("flannel.alpha.coreos.com/backend-type") == "vxlan":
            yield str(pod_range[0])


@lru_cache(maxsize=1 << 16)
def canonical_ip(text: str) -> str:
    """The address as packets' addresses are written."""
    return str(ipaddress.ip_address(text))


def _at(item: Any, *path: str) -> Any:
    """The value at a path of keys; None where one is missing or null."""
    for key in path:
        if item is None:
            return None
        item = item.get(key)
    return item
