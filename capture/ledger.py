"""Pure: running totals of what became of the packets, and the ledger of one segment out of two of them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Final

from capture.contract import Ledger
from capture.libpcap import Stats

_WRAP: Final = 2**32


@dataclass(frozen=True)
class Totals:
    """Packets since the agent started. What waits in the kernel's ring is in none of them but `received`."""

    received: int = 0
    """Accepted by the socket's filter."""
    read: int = 0
    """Taken out of the ring."""
    kernel: int = 0
    libpcap: int = 0
    disk: int = 0
    policy: int = 0
    interface: int = 0

    def __add__(self, other: Totals) -> Totals:
        return Totals(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(Totals)))

    def __sub__(self, other: Totals) -> Totals:
        return Totals(*(getattr(self, each.name) - getattr(other, each.name) for each in fields(Totals)))

    @property
    def waiting(self) -> int:
        """In the ring, or left out by libpcap: what this is when the ring is empty."""
        return self.received - self.read - self.kernel - self.libpcap


def ledger_of(part: Totals, is_interface_known: bool) -> Ledger:
    """Of the packets that were read, or dropped, during one segment: those that wait belong to the next one's."""
    return Ledger(
        accepted=part.read + part.kernel + part.libpcap,
        written=part.read - part.disk - part.policy,
        kernel=part.kernel,
        libpcap=part.libpcap,
        disk=part.disk,
        policy=part.policy,
        interface=part.interface if is_interface_known else None,
    )


def add_lost(ledger: Ledger, lost: Ledger) -> None:
    """To a segment's ledger that of an earlier one whose data is gone: nobody else tells of these packets."""
    ledger.accepted += lost.accepted
    ledger.kernel += lost.kernel
    ledger.libpcap += lost.libpcap
    ledger.policy += lost.policy
    ledger.disk += lost.disk + lost.written
    if ledger.interface is not None and lost.interface is not None:
        ledger.interface += lost.interface


def gone(ledger: Ledger, is_elsewhere: bool) -> Ledger:
    """What add_lost() is to be given of a segment that could not be sealed, since somebody removed or moved its data.

    What was moved counts where it comes back.
    """
    if not is_elsewhere:
        return ledger
    return replace(ledger, accepted=ledger.accepted - ledger.written, written=0)


class Unwrapped:
    """libpcap's 32-bit counters as counts since `first`."""

    def __init__(self, first: Stats) -> None:
        self._last = first
        self._sums = Stats(0, 0, 0)

    def count(self, stats: Stats) -> Stats:
        """Call at least once in 2**32 packets."""
        deltas = ((new - old) % _WRAP for new, old in zip(stats, self._last, strict=True))
        self._sums = Stats(*(total + delta for total, delta in zip(self._sums, deltas, strict=True)))
        self._last = stats
        return self._sums
