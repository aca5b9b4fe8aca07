"""`podtap agent` on the right end of a wire, and what its recording must be whatever happens.

Truth is what the sending socket counted; captures are read by a reader of a few lines in tests/wire.py.
"""

from __future__ import annotations

import hashlib
import json
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.traffic import send
from tests.wire import Record, Wire, records, records_of

ROOT = Path(__file__).resolve().parents[1]
PODTAP = [sys.executable, "-c", "import podtap; podtap.main()"]
REASONS = ("written", "kernel", "libpcap", "disk", "policy")
FRAME = (
    bytes.fromhex("0200000000020200000000010800")
    + bytes.fromhex("4500001e0000000040110000")
    + bytes([10, 0, 0, 1, 10, 0, 0, 2])
)


def numbered(number: int, size: int = 60) -> bytes:
    """A UDP packet that carries its number where headers are."""
    return (FRAME + struct.pack("!HHHH", number >> 16, number & 0xFFFF, 10, 0)).ljust(size, b"\0")


def number_of(record: Record, link_header: int) -> int:
    high, low = struct.unpack_from("!HH", record.data, link_header + 20)
    return int(high << 16 | low)


class Agent:
    """`podtap agent` on the right end of a wire."""

    def __init__(
        self,
        wire: Wire,
        root: Path,
        *arguments: str,
        ready: bool = True,
        prefix: tuple[str, ...] = (),
        log: Path | None = None,
    ) -> None:
        self.root = root
        self.log = log or root.parent / f"{root.name}.log"
        with self.log.open("a") as out:
            self._skip = out.tell()
            self.process = wire.right.start(
                *prefix,
                *PODTAP,
                "agent",
                "--root",
                str(root),
                "--node",
                "n",
                "--metrics",
                "",
                *arguments,
                stdout=out,
                stderr=out,
                cwd=ROOT,
            )
        if ready:
            self.wait_for("recording")

    def wait_for(self, message: str, seconds: float = 20) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for line in self.lines():
                if line["message"] == message:
                    return line
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.02)
        raise AssertionError(f"no '{message}' in {self.log.read_text()}")

    def lines(self) -> list[dict[str, Any]]:
        whole = self.log.read_text()[self._skip :].rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(5)

    @property
    def pid(self) -> int:
        return self.process.pid

    def manifests(self) -> list[dict[str, Any]]:
        paths = sorted(self.root.glob("cluster/n/[0-9]*/*.json"))
        return [json.loads(path.read_text()) | {"path": path} for path in paths]

    def records(self) -> list[Record]:
        return [record for path in sorted(self.root.glob("cluster/n/*/*.pcap")) for record in records(path)]


def balance(manifests: list[dict[str, Any]]) -> dict[str, int]:
    """Sums over all segments; each one's ledger has to add up."""
    for manifest in manifests:
        ledger = manifest["ledger"]
        assert ledger["accepted"] == sum(ledger[reason] for reason in REASONS)
        assert ledger["written"] == manifest["packets"]
    return {key: sum(manifest["ledger"][key] for manifest in manifests) for key in ("accepted", *REASONS)}


def assert_hashed(manifests: list[dict[str, Any]]) -> None:
    for manifest in manifests:
        data = manifest["path"].with_suffix(".pcap").read_bytes()
        assert hashlib.sha256(data).hexdigest() == manifest["sha256"]


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    made = Wire()
    yield made
    made.close()


@pytest.fixture
def start(wire: Wire, tmp_path: Path) -> Iterator[Callable[..., Agent]]:
    agents: list[Agent] = []

    def started(*arguments: str, **options: Any) -> Agent:
        agents.append(Agent(wire, options.pop("root", tmp_path / "root"), *arguments, **options))
        return agents[-1]

    yield started
    for agent in agents:
        if agent.process.poll() is None:
            agent.process.kill()
            agent.process.wait()


def blast(wire: Wire, count: int, rate: float = 0) -> int:
    """Frames of benchmarks/traffic.py; returns how many the kernel took."""
    with wire.left.entered():
        return send("wire", count, rate)


def wait_until_written(agent: Agent, count: int) -> None:
    deadline = time.monotonic() + 10
    while sum(len(whole(path)) for path in agent.root.rglob("*.pcap*")) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def whole(path: Path) -> list[Record]:
    """Up to the last whole record."""
    data = path.read_bytes()
    at = 24
    while at + 16 <= len(data) and at + 16 + int.from_bytes(data[at + 8 : at + 12], sys.byteorder) <= len(data):
        at += 16 + int.from_bytes(data[at + 8 : at + 12], sys.byteorder)
    return records_of(data[:at]) if len(data) >= 24 else []
