"""NetworkPolicies as iptables rules on the nodes of the pods that they select, so that denied traffic is real.

A packet leaves a pod by its node's FORWARD chain and enters one by its node's FORWARD chain, also between two pods on
one bridge (br_netfilter). There, behind the services' NAT and before masquerading, both ends have their own addresses.

The chains, in the order in which a packet passes them:

KUBE-NWPLCY         in front of all else in FORWARD; answers and known connections pass
KUBE-POD-E-<hash>   of a pod that a policy isolates for egress; a rule that allows returns
KUBE-POD-I-<hash>   the same for ingress
KUBE-DENY-<hash>    of the policies that isolate a pod together: only counts and drops

The last kind is never flushed while a lab runs: its counters are exact whatever pods come and go.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any, Final

from tests.lab.cni_plumbing import set_sysctls

if TYPE_CHECKING:
    from tests.lab.lab import Lab

TOP: Final = "KUBE-NWPLCY"
_SAVED: Final = re.compile(r'^\[(\d+):\d+\] -A KUBE-DENY-\S+ .*--comment "denied by ([^"]*)".* -j DROP$', re.M)
_NEIGHBOUR_DISCOVERY: Final = range(133, 138)

Object = Mapping[str, Any]


@dataclass(frozen=True)
class Allowed:
    """One way in or out: from or to these networks but for the exceptions, on this port; None means any."""

    networks: tuple[str, ...] | None
    exceptions: tuple[str, ...] = ()
    protocol: str | None = None
    ports: str | None = None
    """As iptables takes it: 80 or 8000:8080."""


@dataclass(frozen=True)
class Isolation:
    """What policies let a pod do in one direction; all else is denied."""

    ip: str
    direction: str
    """Ingress or Egress."""
    policies: tuple[str, ...]
    """namespace/name of all that isolate it."""
    allowed: tuple[Allowed, ...]

    @property
    def chain(self) -> str:
        return f"KUBE-POD-{self.direction[0]}-{_hashed(self.ip)}"

    @property
    def deny_chain(self) -> str:
        return f"KUBE-DENY-{_hashed(self.direction, *self.policies)}"


def apply(lab: Lab) -> None:
    """Starts to enforce the policies of a lab, and follows every change."""
    writer = PolicyWriter(lab)
    writer.sync()
    lab.on_change(writer.changed)


def drops(lab: Lab) -> dict[str, int]:
    """Packets dropped by each policy (namespace/name). Where several isolate a pod together, each counts the packet."""
    found = Counter({_name(policy): 0 for policy in lab.objects()["networkpolicies"]["items"]})
    for node in lab.nodes.values():
        for command in ("iptables-save", "ip6tables-save") if lab.topology.ipv6 else ("iptables-save",):
            for packets, names in _SAVED.findall(node.namespace.run(command, "-c", "-t", "filter")):
                found.update(dict.fromkeys(names.split(", "), int(packets)))
    return dict(found)


class PolicyWriter:
    """The agents of all nodes that enforce policies."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._written: dict[tuple[str, int], tuple[Isolation, ...]] = {}
        self._deny_chains: dict[tuple[str, int], set[str]] = {}

    def changed(self, event: str, item: dict[str, Any]) -> None:
        """To be told of every change in the cluster."""
        if item["kind"] in ("Pod", "NetworkPolicy", "Namespace"):
            self.sync()

    def sync(self) -> None:
        """Makes the rules of every node what the cluster's objects ask for."""
        objects = {plural: each["items"] for plural, each in self.lab.objects().items()}
        for family in (4, 6) if self.lab.topology.ipv6 else (4,):
            by_node: dict[str, list[Isolation]] = {node: [] for node in self.lab.nodes}
            found = isolations(objects["networkpolicies"], objects["pods"], objects["namespaces"], family)
            for node, isolation in found:
                by_node[node].append(isolation)
            for node, wanted in by_node.items():
                self._write(node, family, tuple(wanted))

    def _write(self, node: str, family: int, wanted: tuple[Isolation, ...]) -> None:
        before = self._written.get((node, family), ())
        if wanted == before:
            return
        namespace = self.lab.node(node).namespace
        known = self._deny_chains.setdefault((node, family), set())
        if not before and not known:
            set_sysctls(namespace, {f"net/bridge/bridge-nf-call-{'ip' if family == 4 else 'ip6'}tables": 1})
        command = "iptables-restore" if family == 4 else "ip6tables-restore"
        namespace.run(command, "--noflush", "--wait", given=restore(wanted, before, known, family))
        self._written[node, family] = wanted
        known.update(each.deny_chain for each in wanted)


def isolations(
    policies: Sequence[Object], pods: Sequence[Object], namespaces: Sequence[Object], family: int
) -> Iterator[tuple[str, Isolation]]:
    """For each pod and direction that a policy isolates: its node, and what it may do. hostNetwork pods are exempt."""
    labels = {each["metadata"]["name"]: each["metadata"].get("labels") or {} for each in namespaces}
    pods = [pod for pod in pods if _ip(pod, family)]
    for pod in pods:
        if pod["spec"].get("hostNetwork"):
            continue
        for direction in ("Ingress", "Egress"):
            own = [policy for policy in policies if _isolates(policy, pod, direction)]
            if own:
                allowed = tuple(way for policy in own for way in _allowed(policy, direction, pod, pods, labels, family))
                names = tuple(sorted(_name(policy) for policy in own))
                ip = _ip(pod, family) or ""
                yield pod["spec"]["nodeName"], Isolation(ip, direction, names, tuple(dict.fromkeys(allowed)))


def restore(wanted: Iterable[Isolation], before: Iterable[Isolation], deny_chains: set[str], family: int) -> str:
    """For `iptables-restore --noflush`; `deny_chains` are those that exist and must keep their counters."""
    wanted = list(wanted)
    gone = {each.chain for each in before} - {each.chain for each in wanted}
    new = {each.deny_chain: each for each in wanted if each.deny_chain not in deny_chains}
    chains = [TOP, *(each.chain for each in wanted), *gone, *new]
    lines = ["*filter", *(f":{chain} - [0:0]" for chain in chains)]
    if not deny_chains:
        lines.append(f"-I FORWARD -j {TOP}")
    for chain, each in new.items():
        lines.append(f'-A {chain} -m comment --comment "denied by {", ".join(each.policies)}" -j DROP')
    lines.append(f"-A {TOP} -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN")
    if family == 6:
        lines += [f"-A {TOP} -p ipv6-icmp --icmpv6-type {kind} -j RETURN" for kind in _NEIGHBOUR_DISCOVERY]
    lines += [f"-A {TOP} {'-d' if each.direction == 'Ingress' else '-s'} {each.ip} -j {each.chain}" for each in wanted]
    for each in wanted:
        lines += [f"-A {each.chain} {match} -j RETURN" for way in each.allowed for match in _matches(way, each)]
        lines.append(f"-A {each.chain} -j {each.deny_chain}")
    lines += [*(f"-X {chain}" for chain in gone), "COMMIT"]
    return "\n".join(lines) + "\n"


def _matches(way: Allowed, isolation: Isolation) -> Iterator[str]:
    option = "-s" if isolation.direction == "Ingress" else "-d"
    port = f"-p {way.protocol} -m {way.protocol}" if way.protocol else ""
    port += f" --dport {way.ports}" if way.ports else ""
    for network in ("",) if way.networks is None else way.networks:
        for part in _without(network, way.exceptions) if network else ("",):
            yield f"{f'{option} {part} ' if part else ''}{port}"


def _without(network: str, exceptions: Iterable[str]) -> list[str]:
    """The network in pieces that leave out the exceptions."""
    parts = [ip_network(network)]
    for exception in map(ip_network, exceptions):
        parts = [
            piece
            for part in parts
            for piece in (
                part.address_exclude(exception)  # type: ignore[arg-type]
                if exception.subnet_of(part)  # type: ignore[arg-type]
                else [part]
            )
        ]
    return [str(part) for part in parts]


def _isolates(policy: Object, pod: Object, direction: str) -> bool:
    spec = policy["spec"]
    default = ["Ingress", "Egress"] if "egress" in spec else ["Ingress"]
    return (
        policy["metadata"]["namespace"] == pod["metadata"]["namespace"]
        and direction in (spec.get("policyTypes") or default)
        and selects(spec.get("podSelector") or {}, pod["metadata"].get("labels") or {})
    )


def _allowed(
    policy: Object,
    direction: str,
    pod: Object,
    pods: Sequence[Object],
    namespaces: Mapping[str, Mapping[str, str]],
    family: int,
) -> Iterator[Allowed]:
    """The ways that one policy opens for a pod."""
    for rule in policy["spec"].get(direction.lower()) or ():
        peers = rule.get("from" if direction == "Ingress" else "to")
        if not peers:
            groups: list[tuple[Sequence[Object], Allowed]] = [(pods, Allowed(None))]
        else:
            groups = [_peer(peer, policy, pods, namespaces, family) for peer in peers]
        for members, way in groups:
            if way.networks == ():
                continue
            ports: Sequence[Object] = rule.get("ports") or ({},)
            for port in ports:
                if isinstance(port.get("port"), str):
                    yield from _on_named_port(port, pod if direction == "Ingress" else None, members, way, family)
                else:
                    yield _on_port(port, way)


def _peer(
    peer: Object, policy: Object, pods: Sequence[Object], namespaces: Mapping[str, Mapping[str, str]], family: int
) -> tuple[Sequence[Object], Allowed]:
    """The pods of a peer, and their addresses; of an ipBlock only the networks are known."""
    if "ipBlock" in peer:
        block = peer["ipBlock"]
        fits = ip_network(block["cidr"]).version == family
        return [], Allowed((block["cidr"],) if fits else (), tuple(block.get("except") or ()) if fits else ())
    selector = peer.get("namespaceSelector")
    members = [
        pod
        for pod in pods
        if selects(peer.get("podSelector") or {}, pod["metadata"].get("labels") or {})
        and (
            pod["metadata"]["namespace"] == policy["metadata"]["namespace"]
            if selector is None
            else selects(selector, namespaces.get(pod["metadata"]["namespace"], {}))
        )
    ]
    return members, Allowed(tuple(str(ip_network(_ip(pod, family) or "")) for pod in members))


def _on_port(port: Object, way: Allowed) -> Allowed:
    if not port:
        return way
    number = port.get("port")
    ports = f"{number}:{port['endPort']}" if "endPort" in port else number and str(number)
    return Allowed(way.networks, way.exceptions, port.get("protocol", "TCP").lower(), ports)


def _on_named_port(
    port: Object, pod: Object | None, servers: Sequence[Object], way: Allowed, family: int
) -> Iterator[Allowed]:
    """The name stands for another number on every server that has it: the pod itself, or those it may go to."""
    protocol = port.get("protocol", "TCP")
    for server in servers if pod is None else [pod]:
        for each in container_ports(server):
            if (each.get("name"), each.get("protocol", "TCP")) == (port["port"], protocol):
                networks = way.networks if pod else (str(ip_network(_ip(server, family) or "")),)
                yield Allowed(networks, way.exceptions, protocol.lower(), str(each["containerPort"]))


def container_ports(pod: Object) -> Iterator[Object]:
    for container in pod["spec"]["containers"]:
        yield from container.get("ports") or ()


def selects(selector: Object, labels: Mapping[str, str]) -> bool:
    """Whether a label selector selects these labels; an empty one selects everything."""
    wanted = selector.get("matchLabels") or {}
    return wanted.items() <= labels.items() and all(
        _holds(expression, labels) for expression in selector.get("matchExpressions") or ()
    )


def _holds(expression: Object, labels: Mapping[str, str]) -> bool:
    value = labels.get(expression["key"])
    match expression["operator"]:
        case "In":
            return value in expression["values"]
        case "NotIn":
            return value not in expression["values"]
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case operator:
            raise ValueError(f"a label selector has no operator {operator}")


def _ip(pod: Object, family: int) -> str | None:
    """The pod's address; one whose containers have ended has none any more, though its object still shows it."""
    status = pod.get("status") or {}
    if status.get("phase") in ("Succeeded", "Failed"):
        return None
    ips = (entry["ip"] for entry in status.get("podIPs") or ())
    return next((ip for ip in ips if ip_address(ip).version == family), None)


def _name(policy: Object) -> str:
    return f"{policy['metadata']['namespace']}/{policy['metadata']['name']}"


def _hashed(*parts: str) -> str:
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16].upper()
