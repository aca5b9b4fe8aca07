"""The agent on a wire: what it records is what was sent, whatever happens to it, its disk or its interface.

Truth is what the sending socket counted; captures are read by tshark, or by a reader of a few lines in tests/wire.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.traffic import send
from capture.filtering import Wanted, in_scope, program
from capture.freezes import add_freeze
from capture.libpcap import MOST_SNAPLEN
from capture.scope_file import Scope
from tests.wire import Record, Wire, read_all, records, records_of

ROOT = Path(__file__).resolve().parents[1]
PODTAP = [sys.executable, "-c", "import podtap; podtap.main()"]
KILLS = int(os.environ.get("PODTAP_KILLS", "6"))
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


@pytest.mark.parametrize("device", ["any", "wire"])
def test_all_that_is_sent_is_recorded(wire: Wire, start: Callable[..., Agent], device: str) -> None:
    agent = start("-i", device, "-s", "0", "-C", "3")
    frames = [numbered(number) for number in range(20_000)] + [numbered(20_000, 60_000)]
    began_ns = time.time_ns()
    wire.send(frames)
    assert agent.stop() == 0
    manifests = agent.manifests()
    assert balance(manifests) == dict.fromkeys(REASONS, 0) | {"accepted": len(frames), "written": len(frames)}
    found = agent.records()
    link_header = 20 if device == "any" else 14
    assert [number_of(record, link_header) for record in found] == list(range(len(frames)))
    assert [record.length - link_header for record in found] == [len(frame) - 14 for frame in frames]
    assert found[-1].captured == found[-1].length
    assert all(began_ns <= record.time_ns <= time.time_ns() for record in found)
    assert {manifest["link_type"] for manifest in manifests} == {276 if device == "any" else 1}
    assert len(manifests) == 1
    assert (manifests[0]["first_packet_ns"], manifests[0]["last_packet_ns"]) == (
        min(record.time_ns for record in found),
        max(record.time_ns for record in found),
    )
    assert manifests[0]["payload"] == "all"


def test_segments_follow_each_other_by_size_without_a_gap(wire: Wire, start: Callable[..., Agent]) -> None:
    agent = start("-i", "wire", "-C", "1")
    sent = blast(wire, 100_000, 100_000)
    assert agent.stop() == 0
    manifests = agent.manifests()
    assert len(manifests) > 5
    assert balance(manifests) == dict.fromkeys(REASONS, 0) | {"accepted": sent, "written": sent}
    assert len(agent.records()) == sent
    assert_hashed(manifests)
    for manifest in manifests:
        times = [record.time_ns for record in records(manifest["path"].with_suffix(".pcap"))]
        ends = (manifest["first_packet_ns"], manifest["last_packet_ns"])
        assert ends == ((min(times), max(times)) if times else (None, None))
    assert all(1_000_000 <= manifest["size_bytes"] < 3_000_000 for manifest in manifests[:-1])


def test_a_quiet_link_rotates_too_and_what_comes_is_in_the_file_within_a_second(
    wire: Wire, start: Callable[..., Agent]
) -> None:
    agent = start("-i", "wire", "-G", "1")
    wire.send([numbered(1)])
    time.sleep(1)
    assert len([record for path in agent.root.rglob("*.pcap*") for record in records(path)]) == 1
    time.sleep(2)
    assert agent.stop() == 0
    assert [manifest["packets"] for manifest in agent.manifests()][:3] == [1, 0, 0]


def test_while_it_is_stopped_the_ring_overflows_and_the_ledger_still_adds_up(
    wire: Wire, start: Callable[..., Agent]
) -> None:
    agent = start("-i", "wire", "-s", "0", "-B", "1024")
    agent.process.send_signal(signal.SIGSTOP)
    sent = blast(wire, 100_000, 50_000)
    agent.process.send_signal(signal.SIGCONT)
    sent += blast(wire, 1000, 10_000)
    assert agent.stop() == 0
    sums = balance(agent.manifests())
    assert sums["accepted"] == sent
    assert sums["kernel"] > 50_000
    assert sums["written"] == len(agent.records()) == sent - sums["kernel"]
    assert sums["libpcap"] == sums["disk"] == sums["policy"] == 0


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def wait_until_written(agent: Agent, count: int) -> None:
    deadline = time.monotonic() + 10
    while sum(len(whole(path)) for path in agent.root.rglob("*.pcap*")) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def fill(path: Path) -> None:
    """Until nothing more goes onto the disk."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def test_on_a_full_disk_packets_are_dropped_and_counted_until_there_is_room(
    wire: Wire, start: Callable[..., Agent], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "6M") as disk:
        agent = start("-i", "wire", "-s", "0", "-C", "2", root=disk / "root", log=tmp_path / "log")
        sent = blast(wire, 2000, 20_000)
        wait_until_written(agent, sent)
        filler = disk / "filler"
        fill(filler)
        sent += blast(wire, 20_000, 10_000)
        agent.wait_for("packets are dropped until the disk works again")
        filler.unlink()
        agent.wait_for("the disk works again")
        sent += blast(wire, 2000, 20_000)
        assert agent.stop() == 0
        manifests = agent.manifests()
        sums = balance(manifests)
        found = agent.records()
        assert_hashed(manifests)
    assert sums["accepted"] == sent
    assert sums["disk"] > 0
    assert sums["written"] == len(found) >= 4000
    assert sums["kernel"] == sums["libpcap"] == sums["policy"] == 0


def test_a_folder_that_vanishes_is_made_anew(wire: Wire, start: Callable[..., Agent]) -> None:
    agent = start("-i", "wire")
    sent = blast(wire, 1000, 20_000)
    wait_until_written(agent, sent)
    shutil.rmtree(agent.root)
    agent.wait_for("packets are dropped until the disk works again")
    sent += blast(wire, 1000, 20_000)
    agent.wait_for("the disk works again")
    sent += blast(wire, 1000, 20_000)
    assert agent.stop() == 0
    manifests = agent.manifests()
    sums = balance(manifests)
    assert sums["accepted"] == sent
    assert sums["written"] == len(agent.records()) >= 1000
    assert sums["disk"] == sent - sums["written"]
    assert manifests[0]["gap_before_ns"] > 0


NET_RAW_ONLY = ("setpriv", "--bounding-set", "-all,+net_raw", "--inh-caps", "-all,+net_raw", "--no-new-privs")


def test_a_read_only_folder_is_waited_for(wire: Wire, start: Callable[..., Agent], tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "6M") as disk:
        agent = start("-i", "wire", "-G", "1", root=disk / "root", log=tmp_path / "log", prefix=NET_RAW_ONLY)
        sent = blast(wire, 1000, 20_000)
        time.sleep(1.5)
        closed = [agent.root / "cluster/n", *agent.root.glob("cluster/n/*/")]
        for folder in closed:
            folder.chmod(0o555)
        sent += blast(wire, 1000, 2000)
        agent.wait_for("packets are dropped until the disk works again")
        for folder in closed:
            folder.chmod(0o755)
        agent.wait_for("the disk works again")
        sent += blast(wire, 1000, 20_000)
        assert agent.stop() == 0
        sums = balance(agent.manifests())
        assert sums["accepted"] == sent == sums["written"] + sums["disk"]
        assert sums["written"] == len(agent.records())


def readiness(wire: Wire) -> str:
    return wire.right.run("curl", "-s", "http://127.0.0.1:9798/readyz")


def wait_until_ready(wire: Wire) -> None:
    deadline = time.monotonic() + 10
    while readiness(wire) != "ok\n":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_mount_that_becomes_read_only_is_waited_for(wire: Wire, start: Callable[..., Agent], tmp_path: Path) -> None:
    """Where the agent sees it, that is: whatever it opens, renames or removes there is refused by the kernel."""
    with small_disk(tmp_path / "disk", "16M") as disk:
        agent = start(
            *("-i", "wire", "-G", "1", "--metrics", "127.0.0.1:9798"), root=disk / "root", log=tmp_path / "log"
        )
        inside = ("nsenter", "-t", str(agent.pid), "-m")
        sent = blast(wire, 1000, 20_000)
        wait_until_written(agent, sent)
        subprocess.run([*inside, "mount", "--bind", disk, disk], check=True)
        subprocess.run([*inside, "mount", "-o", "remount,bind,ro", disk], check=True)
        sent += blast(wire, 6000, 2000)
        agent.wait_for("packets are dropped until the disk works again")
        assert "Read-only file system" in readiness(wire)
        sent += blast(wire, 1000, 20_000)
        subprocess.run([*inside, "umount", disk], check=True)
        agent.wait_for("the disk works again")
        wait_until_ready(wire)
        sent += blast(wire, 1000, 20_000)
        assert agent.stop() == 0
        manifests = agent.manifests()
        sums = balance(manifests)
        assert sums["accepted"] == sent == sums["written"] + sums["disk"]
        assert sums["disk"] > 1000
        assert sums["written"] == len(agent.records())
        assert_hashed(manifests)
        assert [path for path in agent.root.rglob("*.part")] == []
        assert any(manifest["gap_before_ns"] for manifest in manifests)


@pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="no loop devices")
def test_a_disk_that_hangs_makes_it_unready_within_ten_seconds(
    wire: Wire, start: Callable[..., Agent], tmp_path: Path
) -> None:
    """Writes to a frozen file system do not return: the reader can't go on."""
    image, disk = tmp_path / "image", tmp_path / "disk"
    disk.mkdir()
    image.write_bytes(bytes(32 << 20))
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, disk], check=True)
    frozen = False
    try:
        agent = start("-i", "wire", "--metrics", "127.0.0.1:9798", root=disk / "root", log=tmp_path / "log")
        sent = blast(wire, 1000, 20_000)
        wait_until_written(agent, sent)
        assert readiness(wire) == "ok\n"
        subprocess.run(["fsfreeze", "-f", disk], check=True)
        frozen = True
        began_s = time.monotonic()
        sent += blast(wire, 1000, 20_000)
        while "has not looked for packets" not in readiness(wire):
            assert time.monotonic() - began_s < 10
            time.sleep(0.1)
        subprocess.run(["fsfreeze", "-u", disk], check=True)
        frozen = False
        wait_until_ready(wire)
        assert agent.stop() == 0
        sums = balance(agent.manifests())
        assert sums["accepted"] == sums["written"] == len(agent.records()) == sent
    finally:
        if frozen:
            subprocess.run(["fsfreeze", "-u", disk], check=True)
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize(("device", "flaps"), [("any", 50), ("wire", 20)])
def test_an_interface_that_flaps_is_recorded_whenever_it_is_there(
    wire: Wire, start: Callable[..., Agent], device: str, flaps: int
) -> None:
    agent = start("-i", device, "-s", "0")
    sent = 0
    for number in range(flaps):
        wire.right.ip("link set wire down")
        if number % 10 == 9:
            wire.right.ip("link delete wire")
            wire.connect()
        else:
            wire.right.ip("link set wire up")
        if device == "wire":
            wait_until_captured(agent, wire, number)
        else:
            wait_until_up(wire)
        wire.send([numbered(number * 10 + each) for each in range(10)])
        sent += 10
    assert agent.stop() == 0
    sums = balance(agent.manifests())
    found = [number_of(record, 20 if device == "any" else 14) for record in agent.records()]
    assert [number for number in found if number < PROBE] == list(range(sent))
    assert sums["written"] == sums["accepted"] == len(found)


PROBE = 1 << 30


def wait_until_captured(agent: Agent, wire: Wire, attempt: int) -> None:
    """Send probes until one is in a file: the agent has its interface back."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        wire.send([numbered(PROBE + attempt)])
        for path in agent.root.rglob("*.pcap*"):
            if any(number_of(record, 14) == PROBE + attempt for record in records(path)):
                return
        time.sleep(0.05)
    raise AssertionError(agent.log.read_text())


def wait_until_up(wire: Wire) -> None:
    deadline = time.monotonic() + 10
    while "LOWER_UP" not in wire.left.run("ip", "link", "show", "wire"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


HOUR_NS = 3600 * 10**9


@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed: no clock of its own for a process")
def test_where_the_clock_jumps_names_stay_in_order_and_what_is_kept_is_what_should_be(
    wire: Wire, start: Callable[..., Agent], tmp_path: Path
) -> None:
    """The clock that the agent reads; packets' times are the kernel's and stay true, as the monotonic clock does."""
    library, offset = tmp_path / "clock.so", tmp_path / "offset"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, ROOT / "tests/jumping_clock.c"], check=True)
    offset.write_bytes(bytes(8))
    agent = start(
        *("-i", "wire", "-G", "1", "--max-age", "6s"),
        prefix=("env", f"LD_PRELOAD={library}", f"CLOCK_OFFSET={offset}"),
    )
    began_ns = time.time_ns()
    sent = blast(wire, 500, 20_000)
    frozen = add_freeze(agent.root / "cluster/n", began_ns, time.time_ns() + 1, "the beginning")
    jumps = (HOUR_NS, 0, -HOUR_NS, -HOUR_NS + 5_000_000, -HOUR_NS)
    tombstones = agent.root / "cluster/n/tombstones.jsonl"
    for number, jump_ns in enumerate(jumps):
        time.sleep(2.2)
        assert number != 1 or not tombstones.exists(), "an hour forward makes nothing old"
        with offset.open("r+b") as file:
            file.write(struct.pack("=q", jump_ns))
        sent += blast(wire, 500, 20_000)
    time.sleep(1.2)
    assert agent.stop() == 0
    ended_ns = time.time_ns()
    manifests = agent.manifests()
    gone = [json.loads(line) for line in tombstones.read_text().splitlines()]
    assert {each["reason"] for each in gone} == {"age"}, "an hour back makes nothing young"
    kept = {manifest["stem"] for manifest in manifests}
    numbers = [int(stem.rpartition("-")[2]) for stem in sorted(kept | {each["stem"] for each in gone})]
    assert numbers == list(range(1, len(numbers) + 1))
    seconds = (ended_ns - began_ns) / 1e9
    assert seconds / 2 <= len(numbers) <= seconds + 2
    assert min(kept).endswith("-000001")
    assert frozen.since_ns <= manifests[0]["first_packet_ns"] < frozen.until_ns
    assert sent == sum(each["packets"] for each in [*manifests, *gone])
    balance(manifests)
    assert_hashed(manifests)
    for manifest in manifests:
        if manifest["packets"]:
            assert began_ns <= manifest["first_packet_ns"] <= manifest["last_packet_ns"] <= ended_ns
    late = [manifest for manifest in manifests if manifest["opened_ns"] < began_ns - HOUR_NS / 2]
    assert late, "what was opened when the clock was an hour behind says so"
    stepped = [each["clock"]["stepped"] for each in manifests]
    assert 3 <= sum(stepped) <= len(jumps)
    assert not stepped[0] and not all(stepped)


def test_killed_at_any_time_it_leaves_whole_segments_and_the_next_start_seals_the_rest(
    wire: Wire, start: Callable[..., Agent]
) -> None:
    """The packets are numbered: what was sent more than a second before a kill is there."""
    chance = random.Random(1)
    number = 0
    worst_tail_s = 0.0
    read: set[Path] = set()
    for _ in range(KILLS):
        agent = start("-i", "wire", "-C", "1")
        began = number
        kill_s = time.monotonic() + chance.uniform(0.3, 1.5)
        times: list[tuple[float, int]] = []
        while time.monotonic() < kill_s:
            wire.send([numbered(each) for each in range(number, number + 500)])
            number += 500
            times.append((time.monotonic(), number))
            time.sleep(0.005)
        agent.process.kill()
        killed_s = time.monotonic()
        agent.process.wait()
        new = [path for path in agent.root.glob("cluster/n/*/*.pcap*") if path not in read]
        kept = {number_of(record, 14) for path in new for record in whole(path)}
        lost = next((each for each in range(began, number + 1) if each not in kept), number)
        tail_s = killed_s - max((sent_s for sent_s, count in times if count <= lost), default=times[0][0])
        worst_tail_s = max(worst_tail_s, tail_s)
        assert tail_s <= 1
        read |= {path for path in new if path.suffix == ".pcap"}
    agent = start("-i", "wire")
    assert agent.stop() == 0
    manifests = agent.manifests()
    salvaged = sum(manifest["salvaged"] for manifest in manifests)
    print(f"{KILLS} kills, {number:,} packets: {len(manifests):,} segments, {salvaged:,} of them salvaged")
    print(f"lost of the worst tail: {worst_tail_s:.2f} s")
    assert salvaged >= KILLS / 2
    assert [path for path in agent.root.rglob("*.part")] == []
    paths = [manifest["path"].with_suffix(".pcap") for manifest in manifests]
    assert wireshark_counts(paths) == [manifest["packets"] for manifest in manifests]
    assert_hashed(manifests)


def whole(path: Path) -> list[Record]:
    """Up to the last whole record."""
    data = path.read_bytes()
    at = 24
    while at + 16 <= len(data) and at + 16 + int.from_bytes(data[at + 8 : at + 12], sys.byteorder) <= len(data):
        at += 16 + int.from_bytes(data[at + 8 : at + 12], sys.byteorder)
    return records_of(data[:at]) if len(data) >= 24 else []


def wireshark_counts(paths: list[Path]) -> list[int]:
    """Packets in each file; whatever Wireshark finds wrong with one fails."""
    done = subprocess.run(["capinfos", "-T", "-r", "-M", "-c", *paths], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return [int(line.split("\t")[1]) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("device", ["any", "wire"])
@pytest.mark.parametrize("pods", [8, 100])
def test_a_filter_that_is_exchanged_loses_nothing(wire: Wire, device: str, pods: int, tmp_path: Path) -> None:
    """Other pods come and go, a hundred times, around one whose packets go on. The kernel gives filters as little room
    as Linux before 6.9 does: with so many pods there is none for two at once."""
    # Where the file is missing, all namespaces share it.
    wire.right.run("sh", "-c", "echo 20480 > /proc/sys/net/core/optmem_max", check=False)
    scope = Scope(1, ("10.0.0.2",))
    wanted = Wanted(snaplen=MOST_SNAPLEN)
    frames = [numbered(number) for number in range(50_000)]
    swaps = 0

    def send() -> None:
        """In tenths, so that filters are exchanged however fast the wire is."""
        for tenth in range(10):
            wire.send(frames[tenth * 5000 : (tenth + 1) * 5000])
            while swaps < 2 * tenth:
                time.sleep(0.001)

    with wire.sniffing(lambda handle: program(handle, wanted, scope=scope), device) as sniffer:
        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        path = tmp_path / "x.pcap"
        while sender.is_alive():
            swaps += 1
            scope = Scope(1, ("10.0.0.2", *(f"10.0.9.{(swaps + each) % 250}" for each in range(1, pods))))
            keep = in_scope(scope.addresses, sniffer.link_type)
            sniffer.refilter(keep, lambda handle: program(handle, Wanted(headers_only=False, snaplen=128)))
        found = read_all(sniffer, path)
    assert [number_of(record, 20 if device == "any" else 14) for record in found] == list(range(len(frames)))
    totals = sniffer.totals()
    assert (totals.received, totals.read, totals.kernel, totals.libpcap, totals.policy) == (50_000, 50_000, 0, 0, 0)


def test_what_waits_of_a_pod_that_left_is_policys(wire: Wire, tmp_path: Path) -> None:
    scope = Scope(1, ("10.0.0.1",))
    with wire.sniffing(lambda handle: program(handle, Wanted(), scope=scope)) as sniffer:
        wire.send([numbered(number) for number in range(1000)])
        scope = Scope(2, ("10.0.0.3",))
        sniffer.refilter(in_scope(scope.addresses, sniffer.link_type))
        wire.send(
            [numbered(number).replace(bytes([10, 0, 0, 2]), bytes([10, 0, 0, 3])) for number in range(1000, 1010)]
        )
        wire.send([numbered(number) for number in range(2000, 2010)])
        found = read_all(sniffer, tmp_path / "x.pcap")
    assert [number_of(record, 20) for record in found] == list(range(1000, 1010))
    totals = sniffer.totals()
    assert (totals.received, totals.read, totals.policy, totals.waiting) == (1010, 1010, 1000, 0)


def test_the_scope_file_is_followed(wire: Wire, start: Callable[..., Agent], tmp_path: Path) -> None:
    scope = tmp_path / "scope.json"

    def say(generation: int, *addresses: str) -> None:
        pods = [{"namespace": "shop", "name": f"pod-{each}"} for each in addresses]
        part = tmp_path / "part"
        part.write_text(json.dumps({"generation": generation, "addresses": addresses, "pods": pods}))
        part.rename(scope)

    def wait_for(generation: int) -> None:
        deadline = time.monotonic() + 5
        while not any(line.get("generation") == generation for line in agent.lines()):
            assert time.monotonic() < deadline, agent.lines()
            time.sleep(0.02)

    agent = start("--scope-file", str(scope))
    wire.send([numbered(number) for number in range(10)])
    say(1, "10.0.0.2")
    wait_for(1)
    wire.send([numbered(number) for number in range(10, 20)])
    say(2, "10.0.0.3", "fd00::1")
    wait_for(2)
    wire.send([numbered(number) for number in range(20, 30)])
    scope.write_text("{")
    agent.wait_for("the scope can't be read, the former one stays")
    wire.send([numbered(number) for number in range(30, 40)])
    say(3, "10.0.0.1")
    wait_for(3)
    wire.send([numbered(number) for number in range(40, 50)])
    assert agent.stop() == 0
    assert [number_of(record, 20) for record in agent.records()] == [*range(10, 20), *range(40, 50)]
    assert agent.manifests()[-1]["scope"] == "pods shop/pod-10.0.0.1"


def test_of_several_interfaces_others_are_left_out_also_when_they_come_late(
    wire: Wire, start: Callable[..., Agent]
) -> None:
    agent = start("-i", "later", "-i", "wire", "--", "udp or arp")
    wire.send([numbered(1)])
    for name in ("other", "later"):
        wire.right.ip(
            f"link add {name} type veth peer name {name}-end", f"link set {name} up", f"link set {name}-end up"
        )
    agent.wait_for("the filter was exchanged")
    with wire.right.entered():
        for name, number in (("other", 2), ("later", 3)):
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
                out.bind((name, 0))
                out.send(numbered(number))
    wire.right.ip("link delete other", "link delete later")
    assert agent.stop() == 0
    assert [number_of(record, 20) for record in agent.records()] == [1, 3]
    assert agent.manifests()[0]["capture"] == ["later", "wire"]


def test_the_loopback_is_seen_once_and_the_agents_own_endpoint_not_at_all(
    wire: Wire, start: Callable[..., Agent]
) -> None:
    agent = start("--metrics", "127.0.0.1:9798")
    metrics = wire.right.run("curl", "-sf", "http://127.0.0.1:9798/metrics")
    assert "podtap_ready 1" in metrics
    assert wire.right.run("curl", "-sf", "http://127.0.0.1:9798/readyz") == "ok\n"
    wire.right.run("ping", "-q", "-c", "5", "-i", "0.01", "127.0.0.1")
    time.sleep(0.7)
    metrics = wire.right.run("curl", "-sf", "http://127.0.0.1:9798/metrics")
    assert "podtap_accepted_packets_total 10\n" in metrics
    assert "podtap_written_packets_total 10\n" in metrics
    assert agent.stop() == 0
    assert balance(agent.manifests())["accepted"] == 10


def test_own_traffic_is_recorded_where_it_is_asked_for(wire: Wire, start: Callable[..., Agent]) -> None:
    agent = start("--metrics", "127.0.0.1:9798", "--include-own-traffic")
    wire.right.run("curl", "-sf", "http://127.0.0.1:9798/metrics")
    assert agent.stop() == 0
    assert balance(agent.manifests())["accepted"] >= 8


def test_a_snaplen_is_of_the_record_as_tcpdump_has_it(wire: Wire, start: Callable[..., Agent], tmp_path: Path) -> None:
    for device in ("any", "wire"):
        agent = start("-i", device, "-s", "50", root=tmp_path / device)
        wire.send([numbered(1, 1000)])
        assert agent.stop() == 0
        assert [(record.captured, record.length) for record in agent.records()] == [
            (50, 1006 if device == "any" else 1000)
        ]
        assert (agent.manifests()[0]["payload"], agent.manifests()[0]["snaplen"]) == ("snaplen", 50)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--", "port", "foo"], "unknown port 'foo'"),
        (["--", "ether host 02:00:00:00:00:01"], "ethernet addresses supported only on ethernet"),
        (["-i", "nope"], "No such device"),
        (["--metrics", "here"], "is not an address and port"),
        (["--quota", "1M"], "too small"),
        (["-s", "-1"], "not in the range"),
    ],
)
def test_what_was_called_wrongly_is_said_before_anything_is_written(
    wire: Wire, start: Callable[..., Agent], arguments: list[str], words: str
) -> None:
    agent = start(*arguments, ready=False)
    assert agent.process.wait(20) == 2
    assert words in agent.log.read_text()
    assert not agent.root.exists()


def test_without_the_capability_it_says_what_is_missing(wire: Wire, start: Callable[..., Agent]) -> None:
    agent = start(ready=False, prefix=("setpriv", "--bounding-set", "-all", "--inh-caps", "-all"))
    assert agent.process.wait(20) == 1
    assert "CAP_NET_RAW" in agent.log.read_text()
