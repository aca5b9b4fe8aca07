"""The pods of one node that a recording is limited to: their addresses, kept up to date in a file for the agent.

    {"generation": 7, "observed_ns": 1772373780000000000, "addresses": ["10.244.1.7"],
     "pods": [{"namespace": "shop", "name": "orders-1", "uid": "...", "ips": ["10.244.1.7"]}],
     "own_connections": ["10.0.0.5:43512"]}

`generation` counts the changes, over restarts too. The agent itself has no token and asks nobody. `own_connections` are
this end's of those to the API server, which the agent leaves out.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from capture import log
from capture.connection import ApiError, Connection
from capture.contract import NANOSECONDS, JournalRecord
from capture.errors import PodtapError
from capture.reflector import TIMING, Timing
from capture.watch import Resource, follow, moment

GRACE_NS: Final = 30 * NANOSECONDS
"""How long a pod that went stays in scope: its last packets, and answers to them, are still under way."""
TICK_S: Final = 1.0
READABLE: Final = 0o644
"""The file's mode, whatever the umask: the agent is another user, and root without the right to read all files."""
_DESCRIPTORS: Final = "/proc/self/fd"
_ENDED: Final = ("Succeeded", "Failed")


@dataclass(frozen=True)
class ScopedPod:
    """A pod in scope."""

    namespace: str
    name: str
    uid: str
    ips: tuple[str, ...]
    """None if it shares the node's addresses."""


@dataclass
class _Member:
    pod: ScopedPod
    until_ns: int | None = None
    """It leaves then; None: it is there."""


class PodScope:
    """Who is in scope: decided by what was seen and when, without I/O."""

    def __init__(self) -> None:
        self._members: dict[str, _Member] = {}

    def learn(self, record: JournalRecord) -> None:
        """Take note of one change."""
        if record.object is None:
            return
        pod = _scoped(record.object)
        if record.type == "deleted" or (record.object.get("status") or {}).get("phase") in _ENDED:
            member = self._members.get(pod.uid)
            if member is not None and member.until_ns is None:
                member.until_ns = record.observed_ns + GRACE_NS
            return
        if pod.uid not in self._members and _shares_addresses(record.object):
            # Whose packets are the pod's, and whose the node's, no filter on addresses can tell.
            log.warning("a pod in scope shares its node's addresses: it is not recorded", pod=pod.name)
        self._members[pod.uid] = _Member(pod)

    def forget(self, now_ns: int) -> None:
        """Those whose time is over leave."""
        self._members = {
            uid: member for uid, member in self._members.items() if member.until_ns is None or now_ns < member.until_ns
        }

    def pods(self) -> list[ScopedPod]:
        """All in scope, in a stable order."""
        pods = [member.pod for member in self._members.values()]
        return sorted(pods, key=lambda pod: (pod.namespace, pod.name, pod.uid))


def addresses(pods: list[ScopedPod]) -> list[str]:
    """Of all of them, each once, in order."""
    found = {ip for pod in pods for ip in pod.ips}
    return sorted(found, key=lambda ip: (ipaddress.ip_address(ip).version, int(ipaddress.ip_address(ip))))


class ScopeFile:
    """The file, written whole: a reader sees the old or the new one."""

    def __init__(self, path: Path) -> None:
        """Goes on counting from what is there."""
        self._path = path
        self._generation = 0
        self._written: tuple[list[ScopedPod], list[str]] | None = None
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # the first one, or none that we wrote
            self._generation = int(json.loads(path.read_bytes())["generation"])

    def update(self, pods: list[ScopedPod], now_ns: int, own: list[str]) -> bool:
        """Writes if something changed; returns whether. Raises OSError."""
        if (pods, own) == self._written:
            return False
        content = {
            "generation": self._generation + 1,
            "observed_ns": now_ns,
            "addresses": addresses(pods),
            "pods": [
                {"namespace": pod.namespace, "name": pod.name, "uid": pod.uid, "ips": list(pod.ips)} for pod in pods
            ],
            "own_connections": own,
        }
        part = self._path.with_name(f".{self._path.name}.part")
        with part.open("w") as file:
            json.dump(content, file)
            file.write("\n")
            file.flush()
            os.fchmod(file.fileno(), READABLE)
            os.fsync(file.fileno())
        part.rename(self._path)
        self._generation += 1
        self._written = pods, own
        return True


def own_connections() -> list[str]:
    """This process's ends of its TCP connections, as 10.0.0.5:43512 or [fd00::5]:43512, in order."""
    ends = []
    for name in os.listdir(_DESCRIPTORS):
        with contextlib.suppress(OSError):  # it is no socket, is not connected, or is closed by now
            if not os.readlink(f"{_DESCRIPTORS}/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as end:
                if end.family in (socket.AF_INET, socket.AF_INET6) and end.type == socket.SOCK_STREAM:
                    end.getpeername()
                    ends.append(_text(*end.getsockname()[:2]))
    return sorted(ends)


def _text(host: str, port: int) -> str:
    address = ipaddress.ip_address(host.partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


class _Follower:
    """What a follower of pods tells."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.scope = PodScope()

    def write(self, records: list[JournalRecord]) -> None:
        for record in records:
            self.scope.learn(record)

    def asked(self, kind: str, verb: str) -> None:
        """Nobody counts it."""

    def failed(self, kind: str, error: ApiError) -> None:
        log.warning("pods can't be followed: the scope stays as it is", reason=str(error))


def keep_scope(
    connection: Connection,
    namespace: str,
    selector: str,
    node: str,
    output: Path,
    stop: threading.Event,
    timing: Timing = TIMING,
) -> None:
    """Follows the node's pods and keeps the file, until `stop` is set. Raises PodtapError where it can't be written."""
    resource = Resource.of("Pod", namespace, fieldSelector=f"spec.nodeName={node}", labelSelector=selector)
    reflector, follower, file = resource.reflector(timing), _Follower(), ScopeFile(output)
    arguments = (resource, reflector, connection, follower, stop)
    threading.Thread(target=follow, args=arguments, name="follow-Pod", daemon=True).start()
    while not stop.wait(TICK_S):
        now = moment()
        with follower.lock:
            follower.scope.forget(now.time_ns)
            pods = follower.scope.pods()
        if not reflector.was_listed:
            continue  # an empty scope would stop the recording
        try:
            if file.update(pods, now.time_ns, own_connections()):
                log.info("the scope changed", pods=len(pods), addresses=len(addresses(pods)))
        except OSError as error:
            raise PodtapError(f"{output} can't be written: {error.strerror}; give another --output") from error


def _scoped(pod: dict[str, Any]) -> ScopedPod:
    metadata, status = pod["metadata"], pod.get("status") or {}
    ips: tuple[str, ...] = ()
    if not _shares_addresses(pod):
        shown = [each.get("ip") for each in status.get("podIPs") or []] or [status.get("podIP")]
        ips = tuple(ip for ip in shown if ip)
    return ScopedPod(metadata.get("namespace") or "", metadata["name"], metadata["uid"], ips)


def _shares_addresses(pod: dict[str, Any]) -> bool:
    return bool((pod.get("spec") or {}).get("hostNetwork"))
