"""The name server beyond the cluster: answers late, or not at all, as told, and remembers everything it was asked."""

from __future__ import annotations

import heapq
import random
import selectors
import socket
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

from tests.lab.namespaces import Namespace

PORT: Final = 53
TTL: Final = 60
NAMES: Final = {
    "example.com": ("203.0.113.80", "2001:db8:113::80"),
    "www.example.com": ("203.0.113.80", "2001:db8:113::80"),
    "api.example.org": ("203.0.113.81",),
}
_SOA: Final = "ns.example.com. hostmaster.example.com. 1 7200 1800 86400 60"
_SO_TIMESTAMPNS: Final = 35


@dataclass
class Asked:
    """One query as it arrived here."""

    time_ns: int
    client_ip: str
    client_port: int
    transport: str
    trans_id: int
    name: str
    qtype: str
    rcode: str | None = None
    """None: not answered (yet)."""
    answered_ns: int | None = None
    is_lost: bool = False
    """Chosen not to be answered."""


@dataclass(order=True)
class _Due:
    at: float
    number: int
    send: socket.socket = field(compare=False)
    to: tuple[str, int] | None = field(compare=False)
    wire: bytes = field(compare=False)
    asked: Asked = field(compare=False)


class UpstreamDns:
    """A name server on port 53 of all addresses of a namespace. Set delay_seconds, loss and names at any time."""

    def __init__(self, namespace: Namespace, names: Mapping[str, Sequence[str]] = NAMES, seed: int = 0) -> None:
        self.names = dict(names)
        """Addresses by name; a name outside does not exist."""
        self.delay_seconds = 0.0
        self.loss = 0.0
        """The share of queries that stay without answer; which ones, the seed decides."""
        self.log: list[Asked] = []
        self._random = random.Random(seed)
        self._due: list[_Due] = []
        self._count = 0
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        with namespace.entered():
            self._open()
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._serve, name="upstream-dns", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._wake.send(b"x")
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._wake.close()
        self._selector.close()

    def reseed(self, seed: int) -> None:
        """From here on the same queries get lost as after any reseed with this seed."""
        self._random.seed(seed)

    def _open(self) -> None:
        family = socket.AF_INET6 if _has_ipv6() else socket.AF_INET
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            opened = socket.socket(family, kind)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            opened.bind(("", PORT))
            if kind == socket.SOCK_DGRAM:
                opened.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
                self._selector.register(opened, selectors.EVENT_READ, self._datagram)
            else:
                opened.listen()
                self._selector.register(opened, selectors.EVENT_READ, self._accept)

    def _serve(self) -> None:
        while True:
            wait = max(self._due[0].at - time.monotonic(), 0) if self._due else None
            for key, _ in self._selector.select(wait):
                if key.data is None:
                    return
                key.data(key.fileobj)
            while self._due and self._due[0].at <= time.monotonic():
                self._answer(heapq.heappop(self._due))

    def _datagram(self, opened: socket.socket) -> None:
        wire, ancillary, _, sender = opened.recvmsg(65535, 256)
        seconds, nanoseconds = struct.unpack("qq", ancillary[0][2])
        self._asked(wire, opened, sender[:2], "udp", seconds * 10**9 + nanoseconds)

    def _accept(self, listening: socket.socket) -> None:
        connection, _ = listening.accept()
        self._selector.register(connection, selectors.EVENT_READ, self._stream)

    def _stream(self, connection: socket.socket) -> None:
        """One whole query at a time: resolvers send it in one piece."""
        head = connection.recv(2, socket.MSG_WAITALL)
        wire = connection.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL) if len(head) == 2 else b""
        if not wire:
            self._selector.unregister(connection)
            self._due = [due for due in self._due if due.send is not connection]
            heapq.heapify(self._due)
            connection.close()
            return
        self._asked(wire, connection, connection.getpeername()[:2], "tcp", time.time_ns())

    def _asked(self, wire: bytes, opened: socket.socket, sender: tuple[str, int], transport: str, at: int) -> None:
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True)
        qtype = dns.rdatatype.to_text(question.rdtype)
        client = sender[0].removeprefix("::ffff:")
        asked = Asked(at, client, sender[1], transport, query.id, name, qtype)
        asked.is_lost = self._random.random() < self.loss
        self.log.append(asked)
        if asked.is_lost:
            return
        room = 65535 if transport == "tcp" else max(query.payload, 512)
        answer = answer_to(query, self.names).to_wire(max_size=room, prefer_truncation=True)
        if transport == "tcp":
            answer = len(answer).to_bytes(2, "big") + answer
        self._count += 1
        to = None if transport == "tcp" else sender
        heapq.heappush(self._due, _Due(time.monotonic() + self.delay_seconds, self._count, opened, to, answer, asked))

    def _answer(self, due: _Due) -> None:
        start = 2 if due.to is None else 0
        due.asked.rcode = dns.rcode.to_text(dns.rcode.Rcode(due.wire[start + 3] & 0x0F))
        due.asked.answered_ns = time.time_ns()
        if due.to is None:
            due.send.sendall(due.wire)
        else:
            due.send.sendto(due.wire, due.to)


def answer_to(query: dns.message.Message, names: Mapping[str, Sequence[str]]) -> dns.message.Message:
    """Addresses of names that exist, NODATA for their other types, NXDOMAIN for all others; with an SOA to cache by."""
    answer = dns.message.make_response(query, recursion_available=True)
    question = query.question[0]
    addresses = names.get(question.name.to_text(omit_final_dot=True).lower())
    kind = dns.rdatatype.to_text(question.rdtype)
    fitting = [ip for ip in addresses or () if kind == ("AAAA" if ":" in ip else "A")]
    if fitting:
        answer.answer.append(dns.rrset.from_text(question.name, TTL, "IN", kind, *fitting))
    else:
        answer.set_rcode(dns.rcode.NOERROR if addresses is not None else dns.rcode.NXDOMAIN)
        answer.authority.append(dns.rrset.from_text(dns.name.root, TTL, "IN", "SOA", _SOA))
    return answer


def _has_ipv6() -> bool:
    """Whether the namespace that the thread is in has an IPv6 address to answer from."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
