"""Tiny TCP and UDP servers in pods that say who they are and whom they see, and clients that ask them."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tests.lab.lab import Lab
from tests.lab.namespaces import Namespace

_IP_MTU_DISCOVER: Final = 10  # linux/in.h
_IP_PMTUDISC_DO: Final = 2


@dataclass(frozen=True)
class Greeting:
    """What a client learns from one connection."""

    pod: str
    seen_ip: str
    """The client's address as the server sees it."""
    own_ip: str
    own_port: int
    """The client's own idea of it."""


def without_ids(datagrams: socket.socket) -> None:
    """Linux gives IPv4 datagrams that must not be fragmented no IP id, unless the socket is connected."""
    datagrams.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DO)


class Greeter:
    """Answers on one port of a pod, both protocols and address families. `numbered`: datagrams have an IP id."""

    def __init__(self, lab: Lab, pod: str, port: int, *, numbered: bool = True) -> None:
        self._pod = pod
        family = socket.AF_INET6 if lab.topology.ipv6 else socket.AF_INET
        with lab.pod(pod).namespace.entered():
            self._stream = socket.create_server(("", port), family=family, dualstack_ipv6=lab.topology.ipv6)
            self._datagrams = socket.socket(family, socket.SOCK_DGRAM)
            if lab.topology.ipv6:
                self._datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            if not numbered:
                without_ids(self._datagrams)
            self._datagrams.bind(("", port))
        loops = (self._accept, self._receive)
        self._threads = [threading.Thread(target=loop, name=f"greeter-{pod}", daemon=True) for loop in loops]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        for opened in (self._stream, self._datagrams):
            with contextlib.suppress(OSError):  # "not connected": it wakes the thread nevertheless
                opened.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._stream.close()
        self._datagrams.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, client = self._stream.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.sendall(self._greeting(client[0]))

    def _receive(self) -> None:
        while True:
            _, client = self._datagrams.recvfrom(1024)
            if not client:  # it was shut down
                return
            with contextlib.suppress(OSError):
                self._datagrams.sendto(self._greeting(client[0]), client)

    def _greeting(self, client: str) -> bytes:
        return json.dumps([self._pod, client.removeprefix("::ffff:")]).encode()


@contextlib.contextmanager
def greeters(lab: Lab, *pods: str, port: int = 8080, numbered: bool = True) -> Iterator[None]:
    """One in each pod, meanwhile."""
    with contextlib.ExitStack() as stack:
        for pod in pods:
            stack.callback(Greeter(lab, pod, port, numbered=numbered).close)
        yield


def greet(namespace: Namespace, ip: str, port: int, timeout: float = 30) -> Greeting:
    """One TCP connection from the namespace."""
    with namespace.entered():
        connection = socket.create_connection((ip, port), timeout=timeout)
    with connection:
        own = connection.getsockname()
        pod, seen = json.loads(connection.recv(1024, socket.MSG_WAITALL))
        return Greeting(pod, seen, own[0], own[1])


def greet_udp(namespace: Namespace, ip: str, port: int, own_port: int = 0, timeout: float = 30) -> Greeting:
    """One UDP request from the namespace."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with namespace.entered():
        asking = socket.socket(family, socket.SOCK_DGRAM)
    with asking:
        asking.settimeout(timeout)
        asking.bind(("", own_port))
        asking.connect((ip, port))
        asking.send(b"?")
        own = asking.getsockname()
        pod, seen = json.loads(asking.recv(1024))
        return Greeting(pod, seen, own[0], own[1])
