"""The connection tracking table of a namespace: who was really meant, and who answered."""

from __future__ import annotations

from dataclasses import dataclass

from tests.lab.namespaces import Namespace


@dataclass(frozen=True)
class Tracked:
    """One connection, as its two directions expect packets: (source, source port, destination, destination port).

    Without address translation `reply` is `original` the other way round.
    """

    protocol: str
    state: str
    """Of TCP, otherwise empty."""
    original: tuple[str, int, str, int]
    reply: tuple[str, int, str, int]


def tracked_connections(namespace: Namespace) -> list[Tracked]:
    """TCP, UDP and SCTP of both families; conntrack complains on stderr of nothing, and says how many there are."""
    lines = [
        line
        for family in ("ipv4", "ipv6")
        for line in namespace.run("conntrack", "-L", "-f", family, check=False).splitlines()
    ]
    return [_tracked(line.split()) for line in lines if "sport=" in line]


def _tracked(words: list[str]) -> Tracked:
    values: dict[str, list[str]] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if equals:
            values.setdefault(name, []).append(value)
    tuples = [(values["src"][k], int(values["sport"][k]), values["dst"][k], int(values["dport"][k])) for k in range(2)]
    return Tracked(words[0], words[3] if words[0] == "tcp" else "", tuples[0], tuples[1])
