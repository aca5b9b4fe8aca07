"""A hop in user space that loses, doubles, delays and reorders packets, as its seed says, and counts what it did.

What is about to leave by an interface goes to a TAP device instead, whose other end is a thread of this process; what
that lets through leaves by the interface after all, with a mark that spares it a second round. A GSO packet comes
apart on the way. It works for bridged and for routed traffic, where NFQUEUE would see routed packets only.
"""

from __future__ import annotations

import fcntl
import heapq
import itertools
import os
import random
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from tests.lab.namespaces import Namespace

_TUNSETIFF: Final = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_MARK: Final = 0x7E1A
_LARGEST: Final = 1 << 16
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Mischief:
    """What the relay does; shares are of the packets that match, 0 to 1."""

    lose: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    """These wait, and others overtake them."""
    wait: float = 0.005
    """How long those do, in seconds."""
    delay: float = 0.0
    """How long all others take, in seconds."""
    jitter: float = 0.0
    """Up to how much longer; what comes later may go earlier."""


class Relay:
    """`with Relay(namespace, interface, Mischief(reorder=0.05), seed=1) as relay:` stands at the interface."""

    def __init__(
        self, namespace: Namespace, interface: str, mischief: Mischief, seed: int, match: str = "meta l4proto tcp"
    ) -> None:
        """`match`: which packets pass through it; any expression of nft."""
        self._namespace = namespace
        self._interface = interface
        self._mischief = mischief
        self._choice = random.Random(seed)
        self._match = match
        self._name = f"relay{next(_numbers)}"
        self._waiting: list[tuple[float, int, bytes]] = []
        self._order = itertools.count()
        self._stop_read, self._stop_write = os.pipe()
        self.seen = 0
        self.lost = 0
        self.duplicated = 0
        self.reordered = 0

    def __enter__(self) -> Relay:
        with self._namespace.entered():
            self._tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(self._tap, _TUNSETIFF, struct.pack("16sH22x", self._name.encode(), _IFF_TAP | _IFF_NO_PI))
            self._out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._out.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, _MARK)
        self._out.bind((self._interface, 0))
        quiet = f"sysctl -qw net.ipv6.conf.{self._name}.disable_ipv6=1"
        self._namespace.run("sh", "-c", f"{quiet} && ip link set {self._name} mtu 9000 up")
        rules = f"""table netdev {self._name} {{
  chain divert {{
    type filter hook egress device "{self._interface}" priority 0
    meta mark != {_MARK} {self._match} counter fwd to "{self._name}"
  }}
}}
"""
        self._namespace.run("nft", "-f", "-", given=rules)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What waits still leaves."""
        self._namespace.run("nft", "delete", "table", "netdev", self._name)
        os.write(self._stop_write, b".")
        self._thread.join()
        self._out.close()
        for descriptor in (self._tap, self._stop_read, self._stop_write):
            os.close(descriptor)

    def _run(self) -> None:
        stopping = False
        while not stopping or self._waiting:
            timeout = max(self._waiting[0][0] - time.monotonic(), 0) if self._waiting else None
            readable, _, _ = select.select([self._tap] + ([] if stopping else [self._stop_read]), [], [], timeout)
            stopping = stopping or self._stop_read in readable
            if self._tap in readable:
                self._take(os.read(self._tap, _LARGEST))
            now = time.monotonic()
            while self._waiting and self._waiting[0][0] <= now:
                self._out.send(heapq.heappop(self._waiting)[2])

    def _take(self, frame: bytes) -> None:
        """Draws the same numbers for each frame, so that a seed means the same whatever happens to the others."""
        self.seen += 1
        lose, duplicate, reorder, jitter = (self._choice.random() for _ in range(4))
        todo = self._mischief
        if lose < todo.lose:
            self.lost += 1
            return
        due = time.monotonic() + todo.delay + jitter * todo.jitter
        if reorder < todo.reorder:
            self.reordered += 1
            due += todo.wait
        copies = 1
        if duplicate < todo.duplicate:
            self.duplicated += 1
            copies = 2
        for _ in range(copies):
            heapq.heappush(self._waiting, (due, next(self._order), frame))
