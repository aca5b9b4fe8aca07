"""The address plan: which address everything in a lab has, as pure functions of its number."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Final

NODE_NETWORK: Final = IPv4Network("172.18.0.0/24")
NODE_NETWORK6: Final = IPv6Network("fd00:18::/64")
POD_NETWORK: Final = IPv4Network("10.244.0.0/16")
POD_NETWORK6: Final = IPv6Network("fd00:244::/32")
SERVICE_NETWORK: Final = IPv4Network("10.96.0.0/16")
SERVICE_NETWORK6: Final = IPv6Network("fd00:96::/112")
OUTSIDE_NETWORK: Final = IPv4Network("203.0.113.0/24")
OUTSIDE_NETWORK6: Final = IPv6Network("2001:db8:113::/64")
BALANCER_NETWORK: Final = IPv4Network("198.51.100.0/24")
FIRST_NODE: Final = 10
FIRST_POD: Final = 2
"""Flannel's tunnel has address .0 of a node's pod range, its bridge .1."""
DNS: Final = 10
FIRST_SERVICE: Final = 0x100
FIRST_NODE_PORT: Final = 31000


@dataclass(frozen=True)
class Pair:
    """An address of each family."""

    ip: str
    ip6: str


ROUTER: Final = Pair("172.18.0.1", "fd00:18::1")
"""Between the nodes and what is outside."""
OUTSIDE_ROUTER: Final = Pair("203.0.113.1", "2001:db8:113::1")
OUTSIDE: Final = Pair("203.0.113.10", "2001:db8:113::10")


def node(number: int) -> Pair:
    """Nodes count from 1."""
    return Pair(str(NODE_NETWORK[FIRST_NODE + number]), str(NODE_NETWORK6[FIRST_NODE + number]))


def pod_range(number: int) -> Pair:
    """The CIDRs out of which a node's pods get their addresses."""
    return Pair(f"10.244.{number}.0/24", f"fd00:244:{number:x}::/64")


def in_pod_range(number: int, host: int) -> Pair:
    """The address of a node's pod range that ends in `host`."""
    ranges = pod_range(number)
    return Pair(str(IPv4Network(ranges.ip)[host]), str(IPv6Network(ranges.ip6)[host]))


def service(number: int) -> Pair:
    """Services count from 0; DNS has a number of its own."""
    return Pair(str(SERVICE_NETWORK[number]), str(SERVICE_NETWORK6[number]))


def load_balancer(number: int) -> str:
    """The address of a LoadBalancer service, which count from 1."""
    return str(BALANCER_NETWORK[number])


def mac(*numbers: int) -> str:
    """A locally administered MAC address that tells what it is."""
    return ":".join(f"{number:02x}" for number in (0x02, *numbers, *[0] * (5 - len(numbers))))
