"""kube-proxy: services as its iptables mode writes them, chain by chain as recorded from a real one.

Left out is the counting by nfacct objects, which need a tool of their own. Unlike a real one this kube-proxy always
writes all rules, and at once: a test knows that the rules hold when the call that changed something returns.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from tests.lab import addresses
from tests.lab.cni_plumbing import set_sysctls
from tests.lab.service_ports import Endpoint, ServicePort, service_ports

if TYPE_CHECKING:
    from tests.lab.lab import Lab, RunningPod

MARK: Final = "0x4000"
"""On packets whose source shall become the node's: KUBE-POSTROUTING takes it off again."""
MASQUERADE: Final = "KUBE-MARK-MASQ"
SYSCTLS: Final = {
    "net/ipv4/conf/all/route_localnet": 1,
    "net/bridge/bridge-nf-call-iptables": 1,
    "net/bridge/bridge-nf-call-ip6tables": 1,
}
"""What kube-proxy sets or needs: node ports on 127.0.0.1; answers that a bridge forwards, seen by conntrack."""

_FIXED_CHAINS: Final = {
    "mangle": ("KUBE-PROXY-CANARY",),
    "filter": (
        "KUBE-EXTERNAL-SERVICES",
        "KUBE-FIREWALL",
        "KUBE-FORWARD",
        "KUBE-NODEPORTS",
        "KUBE-PROXY-CANARY",
        "KUBE-PROXY-FIREWALL",
        "KUBE-SERVICES",
    ),
    "nat": (MASQUERADE, "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-PROXY-CANARY", "KUBE-SERVICES"),
}
_NEW: Final = "-m conntrack --ctstate NEW "
_FIREWALL: Final = _NEW + '-m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL'
_PORTALS: Final = '-m comment --comment "kubernetes service portals" -j KUBE-SERVICES'
_EXTERNAL: Final = (
    _NEW + '-m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES'
)
_JUMPS: Final = {
    "filter": (
        "INPUT -j KUBE-FIREWALL",
        f"INPUT {_FIREWALL}",
        'INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS',
        f"INPUT {_EXTERNAL}",
        f"FORWARD {_FIREWALL}",
        'FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD',
        f"FORWARD {_NEW}{_PORTALS}",
        f"FORWARD {_EXTERNAL}",
        "OUTPUT -j KUBE-FIREWALL",
        f"OUTPUT {_FIREWALL}",
        f"OUTPUT {_NEW}{_PORTALS}",
    ),
    "nat": (
        f"PREROUTING {_PORTALS}",
        f"OUTPUT {_PORTALS}",
        'POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING',
    ),
}
"""From the kernel's own chains into kube-proxy's: put in front of what is there, once."""

BRIDGED: Final = ("flannel", "flannel-host-gw", "weave")
"""CNI styles whose pods are ports of a bridge."""


@dataclass
class Rules:
    """What one kube-proxy wants of one address family: its chains by table, and their rules."""

    chains: dict[str, list[str]] = field(default_factory=lambda: {t: list(c) for t, c in _FIXED_CHAINS.items()})
    rules: dict[str, list[str]] = field(default_factory=lambda: {table: [] for table in _FIXED_CHAINS})

    def chain(self, name: str) -> None:
        self.chains["nat"].append(name)

    def add(self, table: str, *rules: str) -> None:
        self.rules[table].extend(rules)

    def text(self, before: Rules | None = None) -> str:
        """For `iptables-restore --noflush`: one transaction that also removes the chains of `before` that are gone."""
        lines = []
        for table, chains in self.chains.items():
            gone = [chain for chain in before.chains[table] if chain not in chains] if before else []
            lines += [f"*{table}", *(f":{chain} - [0:0]" for chain in (*chains, *gone))]
            if not before:
                lines += [f"-I {jump}" for jump in reversed(_JUMPS.get(table, ()))]
            lines += [f"-A {rule}" for rule in self.rules[table]]
            lines += [*(f"-X {chain}" for chain in gone), "COMMIT"]
        return "\n".join(lines) + "\n"


def apply(lab: Lab) -> None:
    """Starts the kube-proxies of a lab, in the mode that its topology names; they follow every change."""
    from tests.lab import ipvs_model, kube_proxy_nftables

    modes: dict[str, Callable[[Lab], Writer]] = {
        "iptables": IptablesWriter,
        "nftables": kube_proxy_nftables.NftablesWriter,
        "ipvs-model": ipvs_model.IpvsWriter,
    }
    if lab.topology.proxy not in modes:
        return
    for node in lab.nodes.values():
        set_sysctls(node.namespace, SYSCTLS)
    proxy = KubeProxy(lab, modes[lab.topology.proxy](lab))
    proxy.sync()
    lab.on_change(proxy.changed)


class Writer(Protocol):
    """What differs between kube-proxy's modes."""

    def write(self, node: str, family: int, ports: list[ServicePort]) -> None:
        """Gives a node the rules for the service ports of an address family, in place of those it had."""


class KubeProxy:
    """The kube-proxies of all nodes."""

    def __init__(self, lab: Lab, writer: Writer) -> None:
        self.lab = lab
        self._writer = writer
        self._ports: dict[int, list[ServicePort]] = {}
        self._hairpins: dict[str, RunningPod] = {}

    def changed(self, event: str, item: dict[str, Any]) -> None:
        """To be told of every change in the cluster."""
        if item["kind"] in ("Service", "EndpointSlice"):
            self.sync()

    def sync(self) -> None:
        """Makes the rules of every node what the cluster's objects ask for."""
        objects = self.lab.objects()
        for family in (4, 6) if self.lab.topology.ipv6 else (4,):
            ports = service_ports(objects["services"]["items"], objects["endpointslices"]["items"], family)
            before = self._ports.get(family)
            if ports == before:
                continue
            self._ports[family] = ports
            for node in self.lab.nodes:
                self._writer.write(node, family, ports)
            for ip, endpoint in gone_udp(before or [], ports):
                self._forget(family, ip, endpoint)
        if self.lab.topology.cni in BRIDGED:
            self._allow_hairpins()

    def _allow_hairpins(self) -> None:
        """Let bridges send packets back to the pod that they came from: its own service may have chosen it."""
        for pod in self.lab.pods.values():
            if not pod.spec.host_network and self._hairpins.get(pod.name) is not pod:
                self.lab.node(pod.node).namespace.ip(f"link set {pod.interface} type bridge_slave hairpin on")
                self._hairpins[pod.name] = pod

    def _forget(self, family: int, ip: str, endpoint: str) -> None:
        """Else the next datagram from the same port would still go to the pod that is gone."""
        forget = ("conntrack", "-D", "-f", f"ipv{family}", "-p", "udp", "--orig-dst", ip, "--dst-nat", endpoint)
        for node in self.lab.nodes.values():
            node.namespace.run(*forget, check=False)  # it fails where there was nothing to forget


def gone_udp(before: Iterable[ServicePort], after: Iterable[ServicePort]) -> set[tuple[str, str]]:
    """Pairs of service IP and endpoint IP that a UDP service used before, and no more."""

    def pairs(ports: Iterable[ServicePort]) -> set[tuple[str, str]]:
        udp = (port for port in ports if port.protocol == "udp")
        return {(port.cluster_ip, endpoint.ip) for port in udp for endpoint in port.endpoints}

    return pairs(before) - pairs(after)


class IptablesWriter:
    """One iptables-restore a node and family."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._written: dict[tuple[str, int], Rules] = {}

    def write(self, node: str, family: int, ports: list[ServicePort]) -> None:
        wanted = rules(ports, node, family, pod_network(family))
        command = "iptables-restore" if family == 4 else "ip6tables-restore"
        text = wanted.text(self._written.get((node, family)))
        self.lab.node(node).namespace.run(command, "--noflush", "--wait", given=text)
        self._written[node, family] = wanted


def pod_network(family: int) -> str:
    """What kube-proxy's --cluster-cidr says: only pods may use a cluster IP without being masqueraded."""
    return str(addresses.POD_NETWORK if family == 4 else addresses.POD_NETWORK6)


def hashed(text: str, length: int) -> str:
    """What kube-proxy names chains by."""
    return base64.b32encode(hashlib.sha256(text.encode()).digest()).decode()[:length]


def chain_name(kind: str, *parts: str) -> str:
    """A chain's name as kube-proxy makes it: KUBE-SVC-67NZLRHBNDSAWJRO."""
    return f"KUBE-{kind}-{hashed(''.join(parts), 16)}"


def rules(ports: Iterable[ServicePort], node: str, family: int, pods: str | None) -> Rules:
    """The rules of one node for service ports of one family; `pods` is the pods' network, if kube-proxy was told."""
    made = Rules()
    made.add(
        "filter",
        "KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
        f'KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark {MARK}/{MARK} -j ACCEPT',
        'KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule"'
        " -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    )
    if family == 4:
        made.add(
            "filter",
            'KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections"'
            " -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP",
        )
    made.add(
        "nat",
        f"{MASQUERADE} -j MARK --set-xmark {MARK}/{MARK}",
        f"KUBE-POSTROUTING -m mark ! --mark {MARK}/{MARK} -j RETURN",
        f"KUBE-POSTROUTING -j MARK --set-xmark {MARK}/0x0",
        'KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT"'
        " -j MASQUERADE --random-fully",
    )
    for port in ports:
        _add_port(made, port, node, pods)
    made.add(
        "nat",
        f"KUBE-SERVICES {'! -d ::1/128 ' if family == 6 else ''}"
        '-m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain"'
        " -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS",
    )
    return made


def _add_port(made: Rules, port: ServicePort, node: str, pods: str | None) -> None:
    key = port.label + port.protocol
    cluster, external = (chain_name(kind, key) for kind in ("SVC", "EXT"))
    if port.health_check_port:
        made.add(
            "filter",
            f'KUBE-NODEPORTS -p tcp -m comment --comment "{port.label} health check node port"'
            f" -m tcp --dport {port.health_check_port} -j ACCEPT",
        )
    if not port.endpoints:
        _add_refusals(made, port, "has no endpoints", "REJECT", with_cluster_ip=True)
        return
    made.add("nat", f"KUBE-SERVICES {_to(port, port.cluster_ip, f'{port.label} cluster IP')} -j {cluster}")
    made.chain(cluster)
    if pods:
        to = _to(port, port.cluster_ip, f"{port.label} cluster IP")
        made.add("nat", f"{cluster} ! -s {pods} {to} -j {MASQUERADE}")
    _add_balance(made, port, cluster, port.endpoints)
    for endpoint in port.endpoints:
        _add_endpoint(made, port, endpoint)
    if not port.is_external:
        return
    made.chain(external)
    for kind, ips in (("external IP", port.external_ips), ("loadbalancer IP", port.load_balancer_ips)):
        for ip in ips:
            made.add("nat", f"KUBE-SERVICES {_to(port, ip, f'{port.label} {kind}')} -j {external}")
    if port.node_port:
        to = f'-p {port.protocol} -m comment --comment "{port.label}" -m {port.protocol} --dport {port.node_port}'
        loopback = (f"KUBE-NODEPORTS -d 127.0.0.0/8 {to} -j {external}",) if ":" not in port.cluster_ip else ()
        made.add("nat", *loopback, f"KUBE-NODEPORTS {to} -j {external}")
    if not port.external_local:
        comment = f"masquerade traffic for {port.label} external destinations"
        made.add("nat", f'{external} -m comment --comment "{comment}" -j {MASQUERADE}', f"{external} -j {cluster}")
        return
    _add_local(made, port, node, pods)


def _add_local(made: Rules, port: ServicePort, node: str, pods: str | None) -> None:
    """externalTrafficPolicy Local: what comes from pods and the node itself may still go to any endpoint."""
    key = port.label + port.protocol
    cluster, external, local = (chain_name(kind, key) for kind in ("SVC", "EXT", "SVL"))
    from_node = "-m addrtype --src-type LOCAL"
    if pods:
        comment = f"pod traffic for {port.label} external destinations"
        made.add("nat", f'{external} -s {pods} -m comment --comment "{comment}" -j {cluster}')
    for verb, target in (("masquerade", MASQUERADE), ("route", cluster)):
        comment = f"{verb} LOCAL traffic for {port.label} external destinations"
        made.add("nat", f'{external} -m comment --comment "{comment}" {from_node} -j {target}')
    here = port.endpoints_on(node)
    if here:
        made.chain(local)
        made.add("nat", f"{external} -j {local}")
        _add_balance(made, port, local, here)
    else:
        _add_refusals(made, port, "has no local endpoints", "DROP", with_cluster_ip=False)


def _add_refusals(made: Rules, port: ServicePort, why: str, verdict: str, *, with_cluster_ip: bool) -> None:
    """A port that nobody answers; in the filter table, for NAT leaves such packets alone."""
    comment = f"{port.label} {why}"
    if with_cluster_ip:
        made.add("filter", f"KUBE-SERVICES {_to(port, port.cluster_ip, comment)} -j {verdict}")
    for ip in (*port.external_ips, *port.load_balancer_ips):
        made.add("filter", f"KUBE-EXTERNAL-SERVICES {_to(port, ip, comment)} -j {verdict}")
    if port.node_port:
        made.add(
            "filter",
            f'KUBE-EXTERNAL-SERVICES -p {port.protocol} -m comment --comment "{comment}" -m addrtype --dst-type LOCAL'
            f" -m {port.protocol} --dport {port.node_port} -j {verdict}",
        )


def _add_balance(made: Rules, port: ServicePort, chain: str, endpoints: tuple[Endpoint, ...]) -> None:
    """One of n endpoints with probability 1/n, of the rest one with 1/(n-1), and so on."""
    if port.affinity_seconds:
        for endpoint in endpoints:
            target = _endpoint_chain(port, endpoint)
            made.add(
                "nat",
                f'{chain} -m comment --comment "{port.label} -> {endpoint}"'
                f" -m recent --name {target} --rcheck --seconds {port.affinity_seconds} --reap -j {target}",
            )
    for left, endpoint in zip(range(len(endpoints), 0, -1), endpoints, strict=True):
        chance = f" -m statistic --mode random --probability {1 / left:.10f}" if left > 1 else ""
        target = _endpoint_chain(port, endpoint)
        made.add("nat", f'{chain} -m comment --comment "{port.label} -> {endpoint}"{chance} -j {target}')


def _add_endpoint(made: Rules, port: ServicePort, endpoint: Endpoint) -> None:
    """A pod that reaches itself through its service must not see its own address as the client's."""
    chain = _endpoint_chain(port, endpoint)
    comment = f'-m comment --comment "{port.label}"'
    remember = f" -m recent --name {chain} --set" if port.affinity_seconds else ""
    made.chain(chain)
    made.add(
        "nat",
        f"{chain} -s {endpoint.ip} {comment} -j {MASQUERADE}",
        f"{chain} -p {port.protocol} {comment}{remember} -m {port.protocol} -j DNAT --to-destination {endpoint}",
    )


def _endpoint_chain(port: ServicePort, endpoint: Endpoint) -> str:
    return chain_name("SEP", port.label, port.protocol, str(endpoint))


def _to(port: ServicePort, ip: str, comment: str) -> str:
    return f'-d {ip} -p {port.protocol} -m comment --comment "{comment}" -m {port.protocol} --dport {port.port}'
