"""The TCP sockets of a namespace, as `ss` shows them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.lab.namespaces import Namespace

_ESTABLISHED, _FIN_WAIT2, _TIME_WAIT, _CLOSE, _LISTEN = 1, 5, 6, 7, 10
_WAITS_FOR_NOBODY: Final = (_ESTABLISHED, _FIN_WAIT2, _TIME_WAIT, _CLOSE, _LISTEN)


@dataclass(frozen=True)
class TcpSocket:
    """One end of a connection. What `ss` does not mention, since it is 0, is 0 here."""

    state: str
    local: tuple[str, int]
    remote: tuple[str, int]
    rtt_ns: int
    """Smoothed."""
    min_rtt_ns: int
    retransmitted_segments: int
    bytes_sent: int
    """Retransmissions included."""
    bytes_retransmitted: int
    bytes_acked: int
    """One more than were sent: the SYN counts, later the FIN too."""
    bytes_received: int


def tcp_sockets(namespace: Namespace) -> list[TcpSocket]:
    """All but those that listen."""
    lines = namespace.run("ss", "-HtinO", "state", "connected").splitlines()
    return [_socket(line.split()) for line in lines]


def is_quiet(namespace: Namespace) -> bool:
    """Nothing that its TCP sent waits for an acknowledgement: without new work, it will send nothing again."""
    folder = Path("/proc/thread-self/net")
    with namespace.entered():
        lines = [line for name in ("tcp", "tcp6") for line in (folder / name).read_text().splitlines()[1:]]
    for line in lines:
        state, queues = line.split()[3:5]
        waiting = int(queues.partition(":")[0], 16) if int(state, 16) != _LISTEN else 0
        if waiting or int(state, 16) not in _WAITS_FOR_NOBODY:
            return False
    return True


def _socket(words: list[str]) -> TcpSocket:
    state, _, _, local, remote, *details = words
    values = dict(word.split(":", 1) for word in details if ":" in word)
    return TcpSocket(
        state,
        _end(local),
        _end(remote),
        _nanoseconds(values.get("rtt", "0").partition("/")[0]),
        _nanoseconds(values.get("minrtt", "0")),
        int(values.get("retrans", "0/0").partition("/")[2]),
        *(int(values.get(name, "0")) for name in ("bytes_sent", "bytes_retrans", "bytes_acked", "bytes_received")),
    )


def _end(text: str) -> tuple[str, int]:
    address, _, port = text.rpartition(":")
    return address.strip("[]").removeprefix("::ffff:"), int(port)


def _nanoseconds(milliseconds: str) -> int:
    return round(float(milliseconds) * 1e6)
