"""What really happened in a lab: what the kernel did and counted, to compare podtap's figures with."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from tests.lab.conntrack import Tracked, tracked_connections
from tests.lab.kernel_counters import difference, kernel_counters
from tests.lab.namespaces import Namespace
from tests.lab.sockets import TcpSocket, is_quiet, tcp_sockets
from tests.lab.tracepoints import Retransmission, Tracepoints, inode

if TYPE_CHECKING:
    from tests.lab.lab import Lab


class Truth:
    """`with Truth(lab) as truth:` watches the workload inside; its figures are those of pods, nodes or "outside".

    They can be asked for while it runs, too, but not of a pod that is gone.
    """

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._tracepoints = Tracepoints()
        self._before: dict[str, dict[str, int]] = {}
        self._after: dict[str, dict[str, int]] = {}
        self._inodes: dict[str, int] = {}

    def __enter__(self) -> Truth:
        self._tracepoints.__enter__()
        self._before = {name: kernel_counters(namespace) for name, namespace in self._namespaces().items()}
        self._learn_inodes()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._learn_inodes()
            self._after = {name: kernel_counters(namespace) for name, namespace in self._namespaces().items()}
        finally:
            self._tracepoints.__exit__(kind, error, trace)

    def settle(self, timeout: float = 30.0) -> None:
        """Waits until all that was sent has arrived: what comes after would be seen by some and not by others."""
        deadline = time.monotonic() + timeout
        passes = 0
        while passes < 2:  # one end may have stirred the other since that was looked at
            busy = [name for name, namespace in self._namespaces().items() if not is_quiet(namespace)]
            passes = 0 if busy else passes + 1
            if busy and time.monotonic() > deadline:
                raise TimeoutError(f"still waiting for acknowledgements: {', '.join(busy)}")
            time.sleep(0.005)

    def counters(self, name: str) -> dict[str, int]:
        """How far the kernel's counters have moved, by nstat's names."""
        after = self._after.get(name) or kernel_counters(self._namespaces()[name])
        return difference(self._before.get(name, {}), after)

    def retransmitted_segments(self, name: str) -> int:
        """TCP segments that its kernel sent again: RetransSegs, less what failed to leave."""
        counters = self.counters(name)
        return counters["TcpRetransSegs"] - counters["TcpExtTCPRetransFail"]

    def retransmissions(self, name: str) -> list[Retransmission]:
        """The packets that its kernel sent again, in order of time."""
        if name not in self._inodes:
            self._learn_inodes()
        return self._tracepoints.events(self._inodes[name])

    def connections_opened(self, name: str) -> int:
        """TCP connections it began, whether or not anybody answered."""
        return self.counters(name)["TcpActiveOpens"]

    def connections_accepted(self, name: str) -> int:
        """TCP connections that others began with it, and that came about."""
        return self.counters(name)["TcpPassiveOpens"]

    def sockets(self, name: str) -> list[TcpSocket]:
        """Its TCP connections as they are now."""
        return tcp_sockets(self._namespaces()[name])

    def tracked_connections(self, name: str) -> list[Tracked]:
        """Its connection tracking table as it is now."""
        return tracked_connections(self._namespaces()[name])

    def _learn_inodes(self) -> None:
        self._inodes |= {name: inode(namespace.name) for name, namespace in self._namespaces().items()}

    def _namespaces(self) -> Mapping[str, Namespace]:
        named = {name: node.namespace for name, node in self._lab.nodes.items()}
        named |= {name: pod.namespace for name, pod in self._lab.pods.items()}
        return named | {"outside": self._lab.outside.namespace}
