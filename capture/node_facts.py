"""What is to be seen of an agent and its node, without touching either: /proc, the recording's folder, the endpoint."""

from __future__ import annotations

import ctypes
import fcntl
import http.client
import os
import re
import socket
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from capture.clock import read_clock
from capture.contract import (
    MANIFEST_SUFFIX,
    Clock,
    ContractError,
    Counters,
    Freeze,
    Interface,
    Manifest,
    from_json,
    node_folder,
)
from capture.endpoint import split_address
from capture.errors import UsageError
from capture.freezes import read_freezes
from capture.interfaces import State
from capture.netlink import Link, Netlink
from capture.node_counters import read_counters
from capture.ring_state import RingState, read_state
from capture.running_agents import RunningAgent
from capture.stored_segments import names

MANIFESTS: Final = 10
"""The newest ones that are looked at."""
_SECONDS: Final = 3.0
_SAMPLE: Final = re.compile(r'^(\w+)(?:\{\w+="((?:[^"\\]|\\.)*)"[^}]*\})? (\S+)$')
_SIOCETHTOOL: Final = 0x8946
_GET_STRINGS, _GET_SET_SIZE, _GET_FEATURES = 0x1B, 0x37, 0x3A
_FEATURE_NAMES: Final = 4


@dataclass
class Device:
    """How packets may pass an interface unseen."""

    name: str
    has_xdp: bool = False
    virtual_functions: int = 0
    """SR-IOV functions that are switched on."""
    offloads_flows: bool = False
    """hw-tc-offload is on: flows may be forwarded in hardware."""


@dataclass
class Endpoint:
    """What the agent's endpoint answered."""

    address: str
    problem: str = ""
    """Why it did not."""
    not_ready: list[str] = field(default_factory=list)
    """A sentence for each reason."""
    values: dict[str, dict[str, float]] = field(default_factory=dict)
    """By metric and value of its label ('' without one)."""

    def value(self, name: str, label: str = "") -> float | None:
        return self.values.get(name, {}).get(label)


@dataclass
class Disk:
    """The file system that holds the recording."""

    size_bytes: int
    free_bytes: int
    """For the agent, which is root."""
    free_inodes: int | None
    """None: it has no limit."""
    is_read_only: bool


@dataclass
class NodeFacts:
    """All that the checks are made of; None is not known."""

    now_ns: int
    cluster: str
    node: str
    folder: Path
    agent: RunningAgent | None = None
    endpoint: Endpoint | None = None
    """None: no address is known, or none was wanted."""
    ring: RingState | None = None
    manifests: list[Manifest] = field(default_factory=list)
    """The newest, oldest first."""
    has_folder: bool = False
    freezes: list[Freeze] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """What could not be read."""
    disk: Disk | None = None
    clock: Clock = field(default_factory=Clock)
    counters: Counters = field(default_factory=lambda: Counters(0))
    interfaces: list[Interface] = field(default_factory=list)
    devices: list[Device] = field(default_factory=list)
    libpcap: str = ""
    """Its version; '' where there is none."""
    libpcap_problem: str = ""


def gather(root: Path, cluster: str, node: str, metrics: str, agent: RunningAgent | None) -> NodeFacts:
    """UsageError: `metrics` is no address."""
    folder = root / node_folder(cluster, node)
    facts = NodeFacts(time.time_ns(), cluster, node, folder, agent, clock=read_clock(), counters=read_counters())
    facts.endpoint = ask(metrics) if metrics else None
    _read_folder(facts)
    facts.disk = _disk(folder)
    try:
        facts.interfaces, facts.devices = _interfaces()
    except OSError as error:
        facts.problems.append(f"the interfaces can't be listed: {error}")
    try:
        from capture import libpcap

        facts.libpcap = libpcap.version()
    except Exception as error:  # libpcap's own errors cannot be named without it
        facts.libpcap_problem = str(error)
    return facts


def _read_folder(facts: NodeFacts) -> None:
    folder = facts.folder
    facts.has_folder = folder.is_dir()
    facts.ring = read_state(folder)
    try:
        facts.freezes, unread = read_freezes(folder)
        facts.problems += unread
        newest = sorted(name for name in names(folder) if name.endswith(MANIFEST_SUFFIX))[-MANIFESTS:]
    except OSError as error:
        facts.problems.append(f"{folder} can't be read: {error.strerror}")
        return
    for name in newest:
        try:
            facts.manifests.append(from_json(Manifest, (folder / name).read_bytes()))
        except FileNotFoundError:
            continue  # evicted meanwhile
        except (OSError, ContractError) as error:
            facts.problems.append(f"{folder / name} can't be read: {error}")


def _disk(folder: Path) -> Disk | None:
    """Of the nearest folder that is there."""
    for each in (folder, *folder.parents):
        try:
            found = os.statvfs(each)
        except OSError:
            continue
        inodes = found.f_ffree if found.f_files else None
        unit = found.f_frsize
        return Disk(found.f_blocks * unit, found.f_bfree * unit, inodes, bool(found.f_flag & os.ST_RDONLY))
    return None


def ask(address: str) -> Endpoint:
    """What an agent's endpoint says."""
    try:
        host, port = split_address(address)
    except ValueError as error:
        raise UsageError(str(error)) from error
    found = Endpoint(address)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        _, metrics = _get(host, port, "/metrics")
        status, text = _get(host, port, "/readyz")
    except (OSError, http.client.HTTPException) as error:
        found.problem = str(error) or type(error).__name__
        return found
    found.values = parse_metrics(metrics)
    found.not_ready = text.splitlines() if status != http.HTTPStatus.OK else []
    return found


def _get(host: str, port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(host, port, timeout=_SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read(1 << 20).decode(errors="replace")
    finally:
        connection.close()


def parse_metrics(text: str) -> dict[str, dict[str, float]]:
    """Our own exposition: metrics have one label at most."""
    found: dict[str, dict[str, float]] = {}
    for line in text.splitlines():
        if match := _SAMPLE.match(line):
            found.setdefault(match[1], {})[match[2] or ""] = float(match[3])
    return found


def _interfaces() -> tuple[list[Interface], list[Device]]:
    netlink = Netlink()
    try:
        state = State()
        for message in netlink.listing():
            state.apply(message)
    finally:
        netlink.close()
    return list(state.interfaces().values()), [_device(link) for link in state.links.values()]


def _device(link: Link) -> Device:
    found = Device(link.name, link.has_xdp)
    try:
        functions = Path("/sys/class/net", link.name, "device/sriov_numvfs")
        found.virtual_functions = int(functions.read_text()) if functions.exists() else 0
        found.offloads_flows = not link.kind and "hw-tc-offload" in _features_on(link.name)
    except (OSError, ValueError):
        pass
    return found


def _features_on(interface: str) -> set[str]:
    """Names of the offloads that are on, as `ethtool -k` shows them."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:

        def call(request: bytearray) -> None:
            buffer = (ctypes.c_char * len(request)).from_buffer(request)
            fcntl.ioctl(control, _SIOCETHTOOL, struct.pack("16sP", interface.encode(), ctypes.addressof(buffer)))
            del buffer

        sizes = bytearray(struct.pack("=IIQI", _GET_SET_SIZE, 0, 1 << _FEATURE_NAMES, 0))
        call(sizes)
        count = struct.unpack_from("=I", sizes, 16)[0]
        strings = bytearray(struct.pack("=III", _GET_STRINGS, _FEATURE_NAMES, count) + bytes(32 * count))
        call(strings)
        blocks = (count + 31) // 32
        features = bytearray(struct.pack("=II", _GET_FEATURES, blocks) + bytes(16 * blocks))
        call(features)
    found = set()
    for number in range(count):
        active = struct.unpack_from("=I", features, 8 + 16 * (number // 32) + 8)[0]
        if active >> number % 32 & 1:
            found.add(bytes(strings[12 + 32 * number : 44 + 32 * number]).partition(b"\0")[0].decode())
    return found
