"""What an address is that nobody is known to own: outside the cluster, or perhaps a part of it."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

UNKNOWN: Final = 0
EXTERNAL: Final = 1
ON_NODE: Final = 2

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NEIGHBOURHOOD: Final = {4: 16, 6: 48}
"""Prefix length around a cluster's address that may be the cluster's too (RFC 4193 gives a site a /48)."""

_WIDEST_SERVICE_RANGE: Final = {4: 12, 6: 108}
"""The API server takes no wider --service-cluster-ip-range."""


def _networks(*texts: str) -> list[Network]:
    return [ipaddress.ip_network(text) for text in texts]


# Several hosts, none in particular, or (169.254.169.0/24) services of the cloud: nothing that the cluster owns.
_NOT_IN_A_CLUSTER: Final = _networks("0.0.0.0/32", "224.0.0.0/4", "255.255.255.255/32", "169.254.169.0/24", "ff00::/8")
# Helpers that answer on every node: NodeLocal DNS (169.254.20.10), gateways of Calico and AWS (169.254.1.1), the
# source of kubelet probes in Istio's ambient mode (169.254.7.127).
_ON_EVERY_NODE: Final = _networks("169.254.0.0/16")
# Every interface has such an address, of pods too.
_ANYBODY: Final = _networks("127.0.0.0/8", "::/64", "fe80::/10")
_PRIVATE: Final = _networks(
    *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"),  # RFC 1918, RFC 6598
    *("192.0.0.0/24", "198.18.0.0/15", "240.0.0.0/4"),
    "fc00::/7",
)


class _Ranges:
    """A set of addresses. IPv6 is told apart by its upper 64 bits: a smaller range stands for its /64."""

    def __init__(self, networks: Iterable[Network]) -> None:
        networks = list(networks)
        v4 = [network for network in networks if network.version == 4]
        v6 = [network.supernet(new_prefix=min(64, network.prefixlen)) for network in networks if network.version == 6]
        self._v4 = _bounds(ipaddress.collapse_addresses(v4), 0)
        self._v6 = _bounds(ipaddress.collapse_addresses(v6), 64)

    def contain(self, numbers: npt.NDArray[np.uint64], is_v6: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Whether each address is among them."""
        return np.where(is_v6, _within(numbers, self._v6), _within(numbers, self._v4))


Bounds = tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]


def _bounds(networks: Iterable[Network], shift: int) -> Bounds:
    """First and last address of each, in order."""
    pairs = [(int(network[0]) >> shift, int(network[-1]) >> shift) for network in networks]
    first, last = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(first, np.uint64), np.array(last, np.uint64)


def _within(numbers: npt.NDArray[np.uint64], bounds: Bounds) -> npt.NDArray[np.bool_]:
    first, last = bounds
    if not len(first):
        return np.zeros(len(numbers), np.bool_)
    at = np.searchsorted(first, numbers, side="right")
    within: npt.NDArray[np.bool_] = (at > 0) & (numbers <= last[np.maximum(at, 1) - 1])
    return within


class ClusterRanges:
    """Where a cluster's addresses lie, as far as is known."""

    def __init__(
        self, pod_ips: Iterable[str], other_ips: Iterable[str], service_start: Iterable[str], ranges: Iterable[str]
    ) -> None:
        """`service_start`: the addresses of the service default/kubernetes, the first of the service ranges."""
        given = _networks(*ranges)
        pods = _neighbourhoods(pod_ips) | set(given)
        services = {_service_range(ipaddress.ip_address(ip)) for ip in service_start}
        self._private = _Ranges(pods | services | _neighbourhoods(other_ips))
        # The neighbours of a node's public address are strangers, those of a pod's are not.
        self._public = _Ranges(pods)

    def classify(self, addresses: Sequence[str | None]) -> npt.NDArray[np.int32]:
        """UNKNOWN, EXTERNAL or ON_NODE for each address; UNKNOWN for what is none.

        A public address is external unless pods have its neighbours; a private one (also shared, benchmarking and
        documentation ranges) unless anything of the cluster has. Who is near the cluster may have been in it.
        """
        numbers, is_v6, is_address = _parse(addresses)
        private = _Ranges(_PRIVATE).contain(numbers, is_v6)
        near = np.where(private, self._private.contain(numbers, is_v6), self._public.contain(numbers, is_v6))
        kind = np.where(near, UNKNOWN, EXTERNAL)
        kind[_Ranges(_ON_EVERY_NODE).contain(numbers, is_v6)] = ON_NODE
        kind[_Ranges(_ANYBODY).contain(numbers, is_v6)] = UNKNOWN
        kind[_Ranges(_NOT_IN_A_CLUSTER).contain(numbers, is_v6)] = EXTERNAL
        kind[~is_address] = UNKNOWN
        return kind.astype(np.int32)


def _neighbourhoods(ips: Iterable[str]) -> set[Network]:
    addresses = map(ipaddress.ip_address, ips)
    return {ipaddress.ip_network(f"{ip}/{_NEIGHBOURHOOD[ip.version]}", strict=False) for ip in addresses}


def _service_range(first: ipaddress.IPv4Address | ipaddress.IPv6Address) -> Network:
    """The widest range of which `first` is the first address after the base."""
    base = int(first) - 1
    trailing_zeros = (base & -base).bit_length() - 1 if base else first.max_prefixlen
    prefix = max(first.max_prefixlen - trailing_zeros, _WIDEST_SERVICE_RANGE[first.version])
    return ipaddress.ip_network(f"{first - 1}/{prefix}")


def _parse(
    addresses: Sequence[str | None],
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Numbers to compare with `_Ranges`, whether each is IPv6, and whether it is an address at all."""
    packed = [_packed(address) for address in addresses]
    sizes = np.array([len(each) for each in packed], np.int64)
    upper = b"".join(each[:8] if len(each) == 16 else b"\0\0\0\0" + (each or b"\0\0\0\0") for each in packed)
    return np.frombuffer(upper, ">u8").astype(np.uint64), sizes == 16, sizes > 0


def _packed(address: str | None) -> bytes:
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address) if address else b""
    except OSError:
        return b""
