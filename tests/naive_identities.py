"""The slow, obvious twin of Identities.identify: every row of the table is asked for every lookup."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Answer = tuple[str | None, ...]

EVERYWHERE_OUTSIDE = ["0.0.0.0/32", "224.0.0.0/4", "255.255.255.255/32", "169.254.169.0/24", "ff00::/8"]
ON_EVERY_NODE = ["169.254.0.0/16"]
ANYBODY = ["127.0.0.0/8", "::/64", "fe80::/10"]


@dataclass(frozen=True)
class Lookup:
    ip: str | None
    port: int | None
    protocol: str
    ts: int


def identify(rows: Sequence[dict[str, Any]], lookup: Lookup) -> Answer:
    """`rows` as of the table identities, times as nanoseconds. The answer in the order of identities.ANSWERS."""
    now = [row for row in rows if row["ip"] == lookup.ip and begun(row, lookup.ts) and not ended(row, lookup.ts)]
    of_port = [row for row in now if row["port"] is not None]
    of_port = [row for row in of_port if (row["port"], row["protocol"]) == (lookup.port, lookup.protocol)]
    owners = {names(row) for row in of_port or [row for row in now if row["port"] is None]}
    if len(owners) == 1:
        return owners.pop()
    return nameless("ambiguous") if owners else nameless(outside(rows, lookup.ip))


def begun(row: dict[str, Any], ts: int) -> bool:
    return row["start"] is None or row["start"] <= ts


def ended(row: dict[str, Any], ts: int) -> bool:
    return row["end"] is not None and row["end"] <= ts


def names(row: dict[str, Any]) -> Answer:
    pod = (row["name"], row["uid"]) if row["identity"] == "pod" else (None, None)
    service = row["name"] if row["identity"] == "service" else None
    return (row["identity"], row["namespace"], *pod, row["workload"], row["workload_kind"], service, row["node"])


def nameless(identity: str) -> Answer:
    return (identity, *[None] * 7)


def outside(rows: Sequence[dict[str, Any]], ip: str | None) -> str:
    if ip is None or not rows:
        return "unknown"
    address = ipaddress.ip_address(ip)
    if is_in(address, EVERYWHERE_OUTSIDE):
        return "external"
    if is_in(address, ON_EVERY_NODE):
        return "node"
    if is_in(address, ANYBODY):
        return "unknown"
    for row in rows:
        of_pods = "/" in row["ip"] or (row["identity"] == "pod" and row["port"] is None)
        if (of_pods or not public(address)) and is_in(address, [around(row["ip"])]):
            return "unknown"
    return "external"


def public(address: Any) -> bool:
    return address.is_global and not address.is_multicast


def around(ip: str) -> str:
    """A range as it is, an address with its neighbours."""
    return ip if "/" in ip else f"{ip}/48" if ":" in ip else f"{ip}/16"


def is_in(address: Any, networks: Sequence[str]) -> bool:
    return any(address in ipaddress.ip_network(network, strict=False) for network in networks)
