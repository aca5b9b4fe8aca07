"""kube-proxy's nftables mode: one table a family, with maps from address and port to the chain of a service.

Names, maps and rules are as recorded from a real one. Unlike a real one it replaces the whole table at every change,
in one transaction; connections go on, for conntrack and not the table remembers them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tests.lab import addresses
from tests.lab.kube_proxy import hashed, pod_network
from tests.lab.service_ports import Endpoint, ServicePort

if TYPE_CHECKING:
    from tests.lab.lab import Lab

MARK: Final = "0x00004000"

_HOOKS: Final = """
chain filter-prerouting-pre-dnat {
    type filter hook prerouting priority dstnat - 10; policy accept;
    ct state new jump firewall-check
}
chain filter-output-pre-dnat {
    type filter hook output priority -110; policy accept;
    ct state new jump firewall-check
}
chain filter-input {
    type filter hook input priority filter; policy accept;
    ct state new jump nodeport-endpoints-check
    ct state new jump service-endpoints-check
}
chain filter-forward {
    type filter hook forward priority filter; policy accept;
    ct state new jump service-endpoints-check
    ct state new jump cluster-ips-check
}
chain filter-output {
    type filter hook output priority filter; policy accept;
    ct state new jump service-endpoints-check
    ct state new jump cluster-ips-check
}
chain nat-prerouting {
    type nat hook prerouting priority dstnat; policy accept;
    jump services
}
chain nat-output {
    type nat hook output priority -100; policy accept;
    jump services
}
chain nat-postrouting {
    type nat hook postrouting priority srcnat; policy accept;
    jump masquerading
}
chain reject-chain {
    comment "helper for @no-endpoint-services / @no-endpoint-nodeports"
    reject
}
"""


class NftablesWriter:
    """One `nft -f` a node and family."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def write(self, node: str, family: int, ports: list[ServicePort]) -> None:
        services = str(addresses.SERVICE_NETWORK if family == 4 else addresses.SERVICE_NETWORK6)
        text = table(ports, node, family, pod_network(family), services)
        self.lab.node(node).namespace.run("nft", "-f", "-", given=text)


@dataclass
class _Elements:
    """What the sets and maps hold, and the chains that the maps lead to."""

    hairpin: dict[str, None] = field(default_factory=dict)
    cluster_ips: dict[str, None] = field(default_factory=dict)
    dead_services: dict[str, str] = field(default_factory=dict)
    dead_node_ports: dict[str, str] = field(default_factory=dict)
    services: dict[str, str] = field(default_factory=dict)
    node_ports: dict[str, str] = field(default_factory=dict)
    affinity: list[str] = field(default_factory=list)
    chains: list[str] = field(default_factory=list)


def table(ports: Iterable[ServicePort], node: str, family: int, pods: str | None, services: str) -> str:
    """The table of one node and family, for `nft -f`; `pods` and `services` are their networks."""
    made = _Elements()
    for port in ports:
        _add_port(made, port, node, pods)
    ip, address, loopback = ("ip", "ipv4_addr", "127.0.0.0/8") if family == 4 else ("ip6", "ipv6_addr", "::1")
    l4 = "meta l4proto . th dport"
    to_service = f"{address} . inet_proto . inet_service : verdict"
    to_port = "inet_proto . inet_service : verdict"
    mark_outside = _masquerade("masquerade clusterIP traffic from outside cluster")
    outside = f"{ip} daddr @cluster-ips {ip} saddr != {pods} {mark_outside}" if pods else ""
    body = [
        'comment "rules for kube-proxy"',
        _set(
            "hairpin-connections",
            f"{address} . {address} . inet_proto . inet_service",
            "service hairpin connections",
            made.hairpin,
        ),
        _set("cluster-ips", address, "Active ClusterIPs", made.cluster_ips),
        _map(
            "no-endpoint-services",
            to_service,
            "vmap to drop or reject packets to services with no endpoints",
            made.dead_services,
        ),
        _map(
            "no-endpoint-nodeports",
            to_port,
            "vmap to drop or reject packets to service nodeports with no endpoints",
            made.dead_node_ports,
        ),
        _map("firewall-ips", to_service, "destinations that are subject to LoadBalancerSourceRanges", {}),
        _map("service-ips", to_service, "ClusterIP, ExternalIP and LoadBalancer IP traffic", made.services),
        _map("service-nodeports", to_port, "NodePort traffic", made.node_ports),
        *made.affinity,
        _HOOKS,
        _chain("nodeport-endpoints-check", f"{ip} daddr != {loopback} {l4} vmap @no-endpoint-nodeports"),
        _chain("service-endpoints-check", f"{ip} daddr . {l4} vmap @no-endpoint-services"),
        _chain("firewall-check", f"{ip} daddr . {l4} vmap @firewall-ips"),
        _chain(
            "services",
            outside,
            f"{ip} daddr . {l4} vmap @service-ips",
            f"fib daddr type local {ip} daddr != {loopback} {l4} vmap @service-nodeports",
        ),
        _chain(
            "masquerading",
            f"meta mark & {MARK} != 0 meta mark set meta mark ^ {MARK} masquerade fully-random",
            f"ct status dnat {ip} saddr . {ip} daddr . {l4} @hairpin-connections masquerade fully-random",
        ),
        _chain(
            "cluster-ips-check",
            f'{ip} daddr @cluster-ips reject comment "Reject traffic to invalid ports of ClusterIPs"',
            f'{ip} daddr {services} drop comment "Drop traffic to unallocated ClusterIPs"',
        ),
        *made.chains,
    ]
    name = f"table {ip} kube-proxy"
    return f"{name}\ndelete {name}\n{name} {{\n" + "\n".join(body) + "\n}\n"


def _add_port(made: _Elements, port: ServicePort, node: str, pods: str | None) -> None:
    made.cluster_ips[port.cluster_ip] = None
    base = f"{port.namespace}/{port.name}/{port.protocol}/{port.port_name}"
    key = f"{hashed(base, 8)}-{base}"
    externals = [f"{ip} . {port.protocol} . {port.port}" for ip in (*port.external_ips, *port.load_balancer_ips)]
    node_port = f"{port.protocol} . {port.node_port}"
    cluster = f"{port.cluster_ip} . {port.protocol} . {port.port}"
    here = port.endpoints_on(node)
    if not port.endpoints or (port.external_local and not here):
        verdict = "drop" if port.endpoints else "goto reject-chain"
        dead = externals if port.endpoints else [cluster, *externals]
        made.dead_services |= dict.fromkeys(dead, verdict)
        if port.node_port:
            made.dead_node_ports[node_port] = verdict
    if not port.endpoints:
        return
    made.services[cluster] = f"goto service-{key}"
    made.hairpin |= {f"{e.ip} . {e.ip} . {port.protocol} . {e.port}": None for e in here}
    _add_balance(made, port, f"service-{key}", port.endpoints)
    if not port.is_external:
        return
    made.services |= dict.fromkeys(externals, f"goto external-{key}")
    if port.node_port:
        made.node_ports[node_port] = f"goto external-{key}"
    if not port.external_local:
        made.chains.append(_chain(f"external-{key}", _masquerade("masquerade traffic"), f"goto service-{key}"))
        return
    ip = "ip6" if ":" in port.cluster_ip else "ip"
    from_pods = f'{ip} saddr {pods} goto service-{key} comment "short-circuit pod traffic"' if pods else ""
    made.chains.append(
        _chain(
            f"external-{key}",
            from_pods,
            f"fib saddr type local {_masquerade('masquerade local traffic')}",
            f'fib saddr type local goto service-{key} comment "short-circuit local traffic"',
            f"goto local-{key}" if here else "",
        )
    )
    if here:
        _add_balance(made, port, f"local-{key}", here)


def _add_balance(made: _Elements, port: ServicePort, chain: str, endpoints: tuple[Endpoint, ...]) -> None:
    ip = "ip6" if ":" in port.cluster_ip else "ip"
    l4 = f"meta l4proto {port.protocol}"
    if not port.affinity_seconds:
        choice = ", ".join(f"{number} : {e.ip} . {e.port}" for number, e in enumerate(endpoints))
        made.chains.append(_chain(chain, f"{l4} dnat {ip} to numgen random mod {len(endpoints)} map {{ {choice} }}"))
        return
    names = [_endpoint_name(port, endpoint) for endpoint in endpoints]
    choice = ", ".join(f"{number} : goto endpoint-{name}" for number, name in enumerate(names))
    known = [f"{ip} saddr @affinity-{name} goto endpoint-{name}" for name in names]
    made.chains.append(_chain(chain, *known, f"numgen random mod {len(endpoints)} vmap {{ {choice} }}"))
    if not chain.startswith("service-"):
        return
    for name, endpoint in zip(names, endpoints, strict=True):
        address = "ipv6_addr" if ip == "ip6" else "ipv4_addr"
        made.affinity.append(
            f"set affinity-{name} {{\ntype {address}\nflags dynamic,timeout\ntimeout {port.affinity_seconds}s\n}}"
        )
        remember = f"update @affinity-{name} {{ {ip} saddr }}"
        made.chains.append(_chain(f"endpoint-{name}", remember, f"{l4} dnat {ip} to {endpoint}"))


def _endpoint_name(port: ServicePort, endpoint: Endpoint) -> str:
    base = f"{port.namespace}/{port.name}/{port.protocol}/{port.port_name}__{endpoint.ip}/{endpoint.port}"
    base = base.replace(":", ".")
    return f"{hashed(base, 8)}-{base}"


def _masquerade(comment: str) -> str:
    return f'meta mark set meta mark | {MARK} comment "{comment}"'


def _chain(name: str, *rules: str) -> str:
    return "\n".join([f"chain {name} {{", *(rule for rule in rules if rule), "}"])


def _set(name: str, kind: str, comment: str, elements: Iterable[str]) -> str:
    return _declare("set", name, kind, comment, list(elements))


def _map(name: str, kind: str, comment: str, elements: dict[str, str]) -> str:
    return _declare("map", name, kind, comment, [f"{key} : {value}" for key, value in elements.items()])


def _declare(what: str, name: str, kind: str, comment: str, elements: list[str]) -> str:
    holds = [f"elements = {{ {', '.join(elements)} }}"] if elements else []
    return "\n".join([f"{what} {name} {{", f"type {kind}", f'comment "{comment}"', *holds, "}"])
