"""Services and EndpointSlices as a kube-proxy sees them: one row a service port and address family."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

DEFAULT_AFFINITY_SECONDS: Final = 10800
"""What the API server fills in for sessionAffinity ClientIP."""


@dataclass(frozen=True, order=True)
class Endpoint:
    """One backend; `node` is None where the EndpointSlice names none."""

    ip: str
    port: int
    node: str | None = None

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"


@dataclass(frozen=True)
class ServicePort:
    """One port of a service in one address family, with its ready endpoints in kube-proxy's order."""

    namespace: str
    name: str
    port_name: str
    protocol: str
    """tcp, udp or sctp: as iptables says it."""
    cluster_ip: str
    port: int
    node_port: int | None
    external_ips: tuple[str, ...]
    load_balancer_ips: tuple[str, ...]
    external_local: bool
    """externalTrafficPolicy Local: what comes from outside stays on the node where it came in, and keeps its client."""
    health_check_port: int | None
    affinity_seconds: int | None
    endpoints: tuple[Endpoint, ...]

    @property
    def label(self) -> str:
        """What kube-proxy calls it in comments and chain names: namespace/name:port."""
        return f"{self.namespace}/{self.name}" + (f":{self.port_name}" if self.port_name else "")

    @property
    def is_external(self) -> bool:
        """Whether it can be reached by anything but its cluster IP."""
        return bool(self.node_port or self.external_ips or self.load_balancer_ips)

    def endpoints_on(self, node: str) -> tuple[Endpoint, ...]:
        return tuple(endpoint for endpoint in self.endpoints if endpoint.node == node)


def service_ports(
    services: Iterable[Mapping[str, Any]], slices: Iterable[Mapping[str, Any]], family: int
) -> list[ServicePort]:
    """The service ports of a family (4 or 6) that a kube-proxy handles; headless and external names are not its own."""
    slices = [s for s in slices if s["addressType"] == f"IPv{family}"]
    return [
        _service_port(service, port, cluster_ip, slices, family)
        for service in services
        if (cluster_ip := _of_family(service["spec"].get("clusterIPs") or (), family))
        for port in service["spec"]["ports"]
    ]


def _service_port(
    service: Mapping[str, Any],
    port: Mapping[str, Any],
    cluster_ip: tuple[str, ...],
    slices: list[Mapping[str, Any]],
    family: int,
) -> ServicePort:
    spec, metadata = service["spec"], service["metadata"]
    balancers = service.get("status", {}).get("loadBalancer", {}).get("ingress") or ()
    affinity = None
    if spec.get("sessionAffinity") == "ClientIP":
        client_ip = (spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}
        affinity = client_ip.get("timeoutSeconds", DEFAULT_AFFINITY_SECONDS)
    own = [
        s
        for s in slices
        if s["metadata"].get("namespace") == metadata["namespace"]
        and (s["metadata"].get("labels") or {}).get("kubernetes.io/service-name") == metadata["name"]
    ]
    return ServicePort(
        namespace=metadata["namespace"],
        name=metadata["name"],
        port_name=port.get("name") or "",
        protocol=port.get("protocol", "TCP").lower(),
        cluster_ip=cluster_ip[0],
        port=port["port"],
        node_port=port.get("nodePort"),
        external_ips=_of_family(spec.get("externalIPs") or (), family),
        load_balancer_ips=_of_family((entry["ip"] for entry in balancers if "ip" in entry), family),
        external_local=spec.get("externalTrafficPolicy") == "Local",
        health_check_port=spec.get("healthCheckNodePort"),
        affinity_seconds=affinity,
        endpoints=_endpoints(own, port.get("name") or ""),
    )


def _endpoints(slices: list[Mapping[str, Any]], port_name: str) -> tuple[Endpoint, ...]:
    """The ready ones; where none is, those that still serve while they terminate. Two slices may name the same one."""
    found: dict[str, dict[tuple[str, int], Endpoint]] = {"ready": {}, "terminating": {}}
    for s in slices:
        numbers = [port["port"] for port in s.get("ports") or () if (port.get("name") or "") == port_name]
        for entry in s.get("endpoints") or ():
            conditions = entry.get("conditions") or {}
            if conditions.get("ready") in (None, True):
                rows = found["ready"]
            elif conditions.get("serving") and conditions.get("terminating"):
                rows = found["terminating"]
            else:
                continue
            for number in numbers:
                key = entry["addresses"][0], number
                known = rows.get(key)
                rows[key] = Endpoint(*key, entry.get("nodeName") or (known.node if known else None))
    return tuple(sorted((found["ready"] or found["terminating"]).values(), key=str))


def _of_family(addresses: Iterable[str], family: int) -> tuple[str, ...]:
    return tuple(a for a in addresses if a != "None" and ipaddress.ip_address(a).version == family)
