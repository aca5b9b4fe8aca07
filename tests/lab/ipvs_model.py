"""A model of kube-proxy's IPVS mode, for kernels without IPVS: what the wire shows is alike, what does it is not.

Alike: every cluster IP is an address of the node (kube-ipvs0), so that it answers pings; connections are handed out in
turn (scheduler rr); clients see the virtual address only, servers the client's, as IPVS's NAT mode does it; node ports,
hairpins and clients that are no pods are masqueraded, externalTrafficPolicy Local keeps the client; conntrack knows
each connection, as with net.ipv4.vs.conntrack=1; a service without endpoints is refused by ICMP port unreachable.

Different: nftables changes the address before routing, where IPVS does on the way to the local host; there is no
connection table of IPVS's own (`ipvsadm -Lnc`), no ipset, no persistence (session affinity), no weight 0 that lets old
connections finish; kube-ipvs0 is a bridge without ports instead of a dummy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.lab.cni_plumbing import set_sysctls
from tests.lab.kube_proxy import pod_network
from tests.lab.service_ports import Endpoint, ServicePort

if TYPE_CHECKING:
    from tests.lab.lab import Lab

DEVICE: Final = "kube-ipvs0"
MARK: Final = "0x4000"
UNSERVED: Final = "0x8000"
"""On what a virtual server without real servers got."""
SYSCTLS: Final = {"net/ipv4/conf/all/arp_ignore": 1, "net/ipv4/conf/all/arp_announce": 2}
"""Every node has the cluster IPs: nobody may answer ARP requests for them."""


class IpvsWriter:
    """One `nft -f` a node and family, and the virtual addresses on a device."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._addresses: dict[tuple[str, int], list[str]] = {}
        for node in lab.nodes.values():
            node.namespace.ip(f"link add {DEVICE} type bridge", f"link set {DEVICE} up")
            set_sysctls(node.namespace, SYSCTLS)

    def write(self, node: str, family: int, ports: list[ServicePort]) -> None:
        namespace = self.lab.node(node).namespace
        had, wanted = self._addresses.get((node, family), []), virtual_addresses(ports)
        lines = [f"addr del {ip} dev {DEVICE}" for ip in had if ip not in wanted]
        lines += [f"addr add {ip} dev {DEVICE}" for ip in wanted if ip not in had]
        if lines:
            namespace.ip(*lines)
        self._addresses[node, family] = wanted
        namespace.run("nft", "-f", "-", given=table(ports, node, family, pod_network(family)))


def virtual_addresses(ports: list[ServicePort]) -> list[str]:
    """What kube-ipvs0 is to have, with prefix lengths."""
    ips = {ip: None for port in ports for ip in (port.cluster_ip, *port.external_ips, *port.load_balancer_ips)}
    return [f"{ip}/128" if ":" in ip else f"{ip}/32" for ip in ips]


def table(ports: list[ServicePort], node: str, family: int, pods: str) -> str:
    """The table of one node and family, for `nft -f`."""
    ip, address = ("ip", "ipv4_addr") if family == 4 else ("ip6", "ipv6_addr")
    servers: list[str] = []
    virtual: dict[str, str] = {}
    node_ports: dict[str, str] = {}
    hairpins: dict[str, None] = {}
    for number, port in enumerate(ports):
        if port.affinity_seconds:
            raise ValueError(f"{port.label}: the IPVS model has no session affinity")
        keys = {f"{port.cluster_ip} . {port.protocol} . {port.port}": f"{number}-cluster"}
        for each in (*port.external_ips, *port.load_balancer_ips):
            keys[f"{each} . {port.protocol} . {port.port}"] = f"{number}-external"
        for key, chain in keys.items():
            virtual[key] = f"goto server-{chain}"
        servers.append(_server(f"server-{number}-cluster", port, port.endpoints, masquerade=False))
        if port.is_external:
            outside = port.endpoints_on(node) if port.external_local else port.endpoints
            name = f"server-{number}-external"
            servers.append(_server(name, port, outside, masquerade=not port.external_local))
        if port.node_port:
            node_ports[f"{port.protocol} . {port.node_port}"] = f"goto server-{number}-external"
        hairpins |= {f"{e.ip} . {e.ip} . {port.protocol} . {e.port}": None for e in port.endpoints}
    vips = {each.partition("/")[0]: None for each in virtual_addresses(ports)}
    cluster_ips = {port.cluster_ip: None for port in ports}
    lookup = "meta l4proto . th dport vmap"
    name = f"table {ip} ipvs-model"
    return f"""{name}
delete {name}
{name} {{
set cluster-ips {{ type {address}; {_elements(cluster_ips)} }}
set virtual-ips {{ type {address}; {_elements(vips)} }}
set hairpins {{ type {address} . {address} . inet_proto . inet_service; {_elements(hairpins)} }}
map virtual-servers {{ type {address} . inet_proto . inet_service : verdict; {_elements(virtual)} }}
map node-ports {{ type inet_proto . inet_service : verdict; {_elements(node_ports)} }}
chain schedule {{
    {ip} daddr @cluster-ips {ip} saddr != {pods} meta mark set meta mark | {MARK}
    {ip} daddr . {lookup} @virtual-servers
    fib daddr type local {ip} daddr != @virtual-ips {lookup} @node-ports
}}
chain prerouting {{ type nat hook prerouting priority dstnat; jump schedule; }}
chain output {{ type nat hook output priority -100; jump schedule; }}
chain postrouting {{
    type nat hook postrouting priority srcnat;
    meta mark & {MARK} != 0 meta mark set meta mark ^ {MARK} masquerade fully-random
    ct status dnat {ip} saddr . {ip} daddr . meta l4proto . th dport @hairpins masquerade fully-random
}}
chain input {{
    type filter hook input priority filter;
    meta mark & {UNSERVED} != 0 reject
}}
chain local {{
    type filter hook output priority filter;
    meta mark & {UNSERVED} != 0 reject
}}
{chr(10).join(servers)}
}}
"""


def _server(name: str, port: ServicePort, endpoints: tuple[Endpoint, ...], *, masquerade: bool) -> str:
    """One virtual server: its real servers have their turns."""
    if not endpoints:
        return f"chain {name} {{ meta mark set meta mark | {UNSERVED}; }}"
    ip = "ip6" if ":" in port.cluster_ip else "ip"
    turns = ", ".join(f"{number} : {each.ip} . {each.port}" for number, each in enumerate(endpoints))
    mark = f"meta mark set meta mark | {MARK};" if masquerade else ""
    choice = f"meta l4proto {port.protocol} dnat {ip} to numgen inc mod {len(endpoints)} map {{ {turns} }};"
    return f"chain {name} {{ {mark} {choice} }}"


def _elements(found: dict[str, str] | dict[str, None]) -> str:
    if not found:
        return ""
    return f"elements = {{ {', '.join(key if value is None else f'{key} : {value}' for key, value in found.items())} }}"
