"""What the kernel counts in a network namespace: RetransSegs, ActiveOpens and the rest of /proc/net."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from tests.lab.namespaces import Namespace

_PAIRED: Final = ("snmp", "netstat")
"""Files in which a line of names is followed by a line of values."""


def kernel_counters(namespace: Namespace) -> dict[str, int]:
    """By name, as nstat has them: TcpRetransSegs, TcpExtTCPSynRetrans, Ip6InReceives ...

    TcpRetransSegs counts TCP segments: all that a GSO packet carries, SYN and SYN-ACK too. TcpExtTCPTimeouts,
    TcpExtTCPLossProbes and TcpExtTCPFastRetrans count timers and episodes, not packets.
    """
    folder = Path("/proc/thread-self/net")
    with namespace.entered():
        texts = {name: (folder / name).read_text() for name in (*_PAIRED, "snmp6")}
    counters = {name: value for file in _PAIRED for name, value in _pairs(texts[file])}
    fields = (line.split() for line in texts["snmp6"].splitlines())
    return counters | {name: int(value) for name, value in fields}


def difference(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """How far counters have moved; one that was not there before began at 0, as all do in a new namespace."""
    return {name: value - before.get(name, 0) for name, value in after.items()}


def _pairs(text: str) -> Iterator[tuple[str, int]]:
    lines = iter(text.splitlines())
    for names, values in zip(lines, lines, strict=True):
        group = names.partition(":")[0]
        for name, value in zip(names.split()[1:], values.split()[1:], strict=True):
            yield group + name, int(value)
