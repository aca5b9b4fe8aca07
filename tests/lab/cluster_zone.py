"""The zone cluster.local out of a cluster's objects, record for record as CoreDNS' kubernetes plug-in serves it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_address
from typing import Any, Final, NamedTuple

ZONE: Final = "cluster.local."
TTL: Final = 30
REVERSE_ZONES: Final = ("in-addr.arpa.", "ip6.arpa.")
SOA: Final = f"ns.dns.{ZONE} hostmaster.{ZONE} 1 7200 1800 86400 {TTL}"

Object = Mapping[str, Any]


class Record(NamedTuple):
    """One resource record; names end in a dot."""

    name: str
    kind: str
    data: str

    def __str__(self) -> str:
        return f"{self.name} {TTL} IN {self.kind} {self.data}"


def records(services: Iterable[Object], slices: Sequence[Object], pods: Iterable[Object]) -> list[Record]:
    """Every record once, in a stable order."""
    found = [Record(ZONE, "SOA", SOA), Record(f"dns-version.{ZONE}", "TXT", '"1.1.0"')]
    for service in services:
        found += _of_service(service, slices)
    for pod in pods:
        if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            continue
        for ip in _pod_ips(pod):
            found.append(_address(f"{_dashed(ip)}.{pod['metadata']['namespace']}.pod.{ZONE}", ip))
    return list(dict.fromkeys(found))


def _of_service(service: Object, slices: Sequence[Object]) -> Iterator[Record]:
    metadata, spec = service["metadata"], service["spec"]
    name = f"{metadata['name']}.{metadata['namespace']}.svc.{ZONE}"
    if spec.get("type") == "ExternalName":
        yield Record(name, "CNAME", f"{spec['externalName']}.")
        return
    ips = [ip for ip in spec.get("clusterIPs") or () if ip != "None"]
    for ip in ips:
        yield _address(name, ip)
        yield Record(_reverse(ip), "PTR", name)
        if (metadata["namespace"], metadata["name"]) == ("kube-system", "kube-dns"):
            yield _address(f"ns.dns.{ZONE}", ip)
    if ips:
        for port in spec.get("ports") or ():
            if port.get("name"):
                protocol = port.get("protocol", "TCP").lower()
                yield Record(f"_{port['name']}._{protocol}.{name}", "SRV", f"0 100 {port['port']} {name}")
    own = [
        s
        for s in slices
        if s["metadata"]["namespace"] == metadata["namespace"]
        and (s["metadata"].get("labels") or {}).get("kubernetes.io/service-name") == metadata["name"]
    ]
    yield from _of_endpoints(name, own, is_headless=not ips)


def _of_endpoints(name: str, slices: Sequence[Object], *, is_headless: bool) -> Iterator[Record]:
    """Every endpoint has a name of its own; a headless service answers with its endpoints' addresses."""
    ready = [
        (s, entry, ip)
        for s in slices
        for entry in s.get("endpoints") or ()
        if (entry.get("conditions") or {}).get("ready") in (None, True)
        for ip in entry["addresses"]
    ]
    for s, entry, ip in ready:
        host = f"{entry.get('hostname') or _dashed(ip)}.{name}"
        yield _address(host, ip)
        yield Record(_reverse(ip), "PTR", host)
        if is_headless:
            yield _address(name, ip)
            for port in s.get("ports") or ():
                if port.get("name"):
                    owner = f"_{port['name']}._{port.get('protocol', 'TCP').lower()}.{name}"
                    yield Record(owner, "SRV", f"0 {100 // len(ready)} {port['port']} {host}")


def _address(name: str, ip: str) -> Record:
    return Record(name, "AAAA" if ":" in ip else "A", ip)


def _pod_ips(pod: Object) -> list[str]:
    status = pod.get("status") or {}
    return [entry["ip"] for entry in status.get("podIPs") or ()]


def _dashed(ip: str) -> str:
    return ip.replace(".", "-").replace(":", "-")


def _reverse(ip: str) -> str:
    return f"{ip_address(ip).reverse_pointer}."
