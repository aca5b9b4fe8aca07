"""What people do to find out why a network is slow: ping, traceroute, path MTU, look-ups through the C library."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import sys
import time
from dataclasses import dataclass
from typing import Final

from tests.lab.namespaces import Namespace

TRACEROUTE_PORT: Final = 33434
_IP_MTU_DISCOVER, _IP_PMTUDISC_DO, _IP_MTU, _IP_RECVERR = 10, 2, 14, 11
_IPV6_MTU_DISCOVER, _IPV6_MTU, _IPV6_RECVERR = 23, 24, 25
_TIME_OF_PING: Final = re.compile(r"icmp_seq=\d+ .*time=([0-9.]+) ms")
_LOOK_UPS: Final = """
import json, socket, sys, time
for name in sys.argv[2:]:
    begun = time.time_ns()
    begun_ns = time.monotonic_ns()
    try:
        error, found = "", socket.getaddrinfo(name, None, int(sys.argv[1]), socket.SOCK_STREAM)
    except OSError as problem:
        error, found = str(problem), []
    took = time.monotonic_ns() - begun_ns
    print(json.dumps([name, sorted({each[4][0] for each in found}), begun, took, error]))
"""


@dataclass(frozen=True)
class Pings:
    """What ping says in the end."""

    sent: int
    rtts_ns: tuple[int, ...]
    """Of those that were answered."""


@dataclass(frozen=True)
class LookUp:
    """A name that a program wanted resolved, with all queries that the C library made of it."""

    name: str
    addresses: tuple[str, ...]
    begun: int
    """In ns, CLOCK_REALTIME."""
    took_ns: int
    error: str


def ping(namespace: Namespace, host: str, count: int = 3, size: int = 56, interval: float = 0.01) -> Pings:
    """Don't-fragment is set, as with most of today's traffic."""
    words = ("-n", "-c", str(count), "-i", str(interval), "-s", str(size), "-M", "do", "-W", "1", host)
    printed = namespace.run("ping", *words, check=False)
    rtts = tuple(round(float(each) * 1e6) for each in _TIME_OF_PING.findall(printed))
    found = re.search(r"(\d+) packets transmitted", printed)
    return Pings(int(found[1]) if found else 0, rtts)


def traceroute(namespace: Namespace, host: str, most: int = 8, timeout: float = 0.5) -> list[str | None]:
    """Who says that the packet died with him, by distance; None where nobody does. The last one is the host."""
    hops: list[str | None] = []
    for distance in range(1, most + 1):
        hops.append(_died_at(namespace, host, distance, timeout))
        if hops[-1] == host:
            break
    return hops


def path_mtu(namespace: Namespace, host: str, port: int = TRACEROUTE_PORT, tries: int = 3) -> int:
    """What the kernel holds for the largest packet that arrives, after some as large that must not be fragmented."""
    with _error_socket(namespace, host) as probe:
        is_v6 = probe.family == socket.AF_INET6
        level, known = (socket.IPPROTO_IPV6, _IPV6_MTU) if is_v6 else (socket.IPPROTO_IP, _IP_MTU)
        probe.setsockopt(level, _IPV6_MTU_DISCOVER if is_v6 else _IP_MTU_DISCOVER, _IP_PMTUDISC_DO)
        probe.connect((host, port))
        for _ in range(tries):
            with contextlib.suppress(OSError):  # what ICMP said of the packet before
                probe.send(bytes(probe.getsockopt(level, known) - (48 if is_v6 else 28)))
            time.sleep(0.02)
        return probe.getsockopt(level, known)


def look_up(namespace: Namespace, *names: str, family: int = socket.AF_INET) -> list[LookUp]:
    """One after the other, by getaddrinfo, with the namespace's resolv.conf."""
    printed = namespace.run(sys.executable, "-ISc", _LOOK_UPS, str(int(family)), *names)
    rows = [json.loads(line) for line in printed.splitlines()]
    return [LookUp(name, tuple(addresses), begun, took, error) for name, addresses, begun, took, error in rows]


def _error_socket(namespace: Namespace, host: str) -> socket.socket:
    """A UDP socket that tells of ICMP errors."""
    is_v6 = ":" in host
    with namespace.entered():
        probe = socket.socket(socket.AF_INET6 if is_v6 else socket.AF_INET, socket.SOCK_DGRAM)
    level = socket.IPPROTO_IPV6 if is_v6 else socket.IPPROTO_IP
    probe.setsockopt(level, _IPV6_RECVERR if is_v6 else _IP_RECVERR, 1)
    return probe


def _died_at(namespace: Namespace, host: str, distance: int, timeout: float) -> str | None:
    with _error_socket(namespace, host) as probe:
        is_v6 = probe.family == socket.AF_INET6
        if is_v6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, distance)
        else:
            probe.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, distance)
        probe.sendto(b"where does this die?", (host, TRACEROUTE_PORT + distance))
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                _, messages, _, _ = probe.recvmsg(512, 512, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
            except BlockingIOError:
                time.sleep(0.001)
                continue
            for _, _, data in messages:
                return _offender(data)
        return None


def _offender(data: bytes) -> str:
    """The address behind a struct sock_extended_err."""
    (family,) = struct.unpack_from("=H", data, 16)
    if family == socket.AF_INET6:
        return socket.inet_ntop(socket.AF_INET6, data[24:40])
    return socket.inet_ntop(socket.AF_INET, data[20:24])
