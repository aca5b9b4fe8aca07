"""What goes wrong on the way: packets that an interface loses, and one that is slow. The kernel does it and counts.

A loss is decided by the number of the packet among those that match, so that it is the same each time; `random` mode of
iptables could not be seeded. Where packets are to be late, doubled or out of order, see relay.py.

A capture on the interface sees what is lost on its way in ("ingress": the packet had come that far), and not what is
lost on its way out ("egress"). Of a pod's own packets the first stop is the node's end of its veth, ingress.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Collection
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

from tests.lab.namespaces import Namespace

PERIOD: Final = 1 << 14
"""After how many packets a seeded choice is repeated."""
SYN: Final = "tcp flags syn / syn,ack,rst"
SYNACK: Final = "tcp flags syn,ack / syn,ack,rst"
FIN: Final = "tcp flags & fin == fin"
DATA: Final = "meta l4proto tcp meta length > 200"
ANY_TCP: Final = "meta l4proto tcp"
"""What a loss may match; any expression of nft will do."""
_numbers = itertools.count(1)


def first(count: int) -> frozenset[int]:
    """Loses the first packets."""
    return frozenset(range(count))


def every(nth: int) -> frozenset[int]:
    """Loses every nth packet, as `--mode nth` of iptables."""
    return frozenset(range(nth - 1, PERIOD, nth))


def seeded(seed: int, rate: float) -> frozenset[int]:
    """Loses this share of the packets, as the seed chooses."""
    choice = random.Random(seed)
    return frozenset(number for number in range(PERIOD) if choice.random() < rate)


class Loss:
    """`with Loss(namespace, interface, seeded(1, 0.02)) as loss:` loses packets; `loss.lost` says how many."""

    def __init__(
        self,
        namespace: Namespace,
        interface: str,
        numbers: Collection[int],
        match: str = ANY_TCP,
        hook: str = "ingress",
    ) -> None:
        """`numbers`: which of the packets that match, counted from 0. A GSO packet is one packet, lost as a whole."""
        self._namespace = namespace
        self._table = f"podtap-loss-{next(_numbers)}"
        self._rules = f"""table netdev {self._table} {{
  chain lose {{
    type filter hook {hook} device "{interface}" priority 0
    {match} counter
    {match} numgen inc mod {PERIOD} {{ {", ".join(_ranges(numbers))} }} counter drop
  }}
}}
"""
        self._counts: list[int] | None = None

    def __enter__(self) -> Loss:
        self._namespace.run("nft", "-f", "-", given=self._rules)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._counts = self._read()
        self._namespace.run("nft", "delete", "table", "netdev", self._table)

    @property
    def matched(self) -> int:
        """Packets that it chose from."""
        return (self._counts or self._read())[0]

    @property
    def lost(self) -> int:
        """Packets that died here."""
        return (self._counts or self._read())[1]

    def _read(self) -> list[int]:
        listed = json.loads(self._namespace.run("nft", "-j", "list", "table", "netdev", self._table))
        rules = [each["rule"]["expr"] for each in listed["nftables"] if "rule" in each]
        return [part["counter"]["packets"] for rule in rules for part in rule if "counter" in part]


@dataclass
class Bandwidth:
    """`with Bandwidth(namespace, interface, "20mbit"):` lets no more out of the interface (a token bucket)."""

    namespace: Namespace
    interface: str
    rate: str
    burst: str = "16kb"
    limit: str = "64kb"
    """What waits at most; what comes beyond it is lost, and `lost` counts it."""
    lost: int = 0
    sent: int = 0

    def __enter__(self) -> Bandwidth:
        shape = ("tbf", "rate", self.rate, "burst", self.burst, "limit", self.limit)
        self._tc("qdisc", "add", "dev", self.interface, "root", *shape)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.read()
        self._tc("qdisc", "delete", "dev", self.interface, "root")

    def read(self) -> None:
        """Brings `lost` and `sent`, packets, up to date."""
        shown: list[dict[str, Any]] = json.loads(self._tc("-s", "-j", "qdisc", "show", "dev", self.interface))
        self.lost, self.sent = next((each["drops"], each["packets"]) for each in shown if each["kind"] == "tbf")

    def _tc(self, *words: str) -> str:
        return self.namespace.run("tc", *words)


def _ranges(numbers: Collection[int]) -> list[str]:
    """Neighbours as one element: nft refuses a set whose elements it could join."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return [str(low) if low == high else f"{low}-{high}" for low, high in ranges]


@dataclass
class SmallMtu:
    """`with SmallMtu(namespace, interface, 1280):` makes a hop narrower: ICMP must tell the sender."""

    namespace: Namespace
    interface: str
    mtu: int

    def __enter__(self) -> SmallMtu:
        (shown,) = json.loads(self.namespace.run("ip", "-j", "link", "show", "dev", self.interface))
        self._before: int = shown["mtu"]
        self.namespace.ip(f"link set {self.interface} mtu {self.mtu}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.namespace.ip(f"link set {self.interface} mtu {self._before}")
