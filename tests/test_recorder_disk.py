"""The agent on a disk that is full, gone, read-only, or hangs: what it drops is counted, and it goes on."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.agents import Agent, assert_hashed, balance, blast, start, wait_until_written, wire
from tests.wire import Wire


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path) -> None:
    """Until nothing more goes onto the disk."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def disk_messages(agent: Agent) -> list[str]:
    return [line["message"] for line in agent.lines() if line["message"].endswith("the disk works again")]


def test_on_a_full_disk_packets_are_dropped_and_counted_until_there_is_room(
    wire: Wire, start: Callable[..., Agent], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "32M") as disk:
        agent = start("-i", "wire", "-s", "0", "-C", "2", root=disk / "root", log=tmp_path / "log")
        sent = blast(wire, 2000, 20_000)
        wait_until_written(agent, sent)
        filler = disk / "filler"
        fill(filler)
        sent += blast(wire, 20_000, 10_000)
        agent.wait_for("packets are dropped until the disk works again")
        filler.unlink()
        # It may have said so before: a little goes on any disk.
        while disk_messages(agent)[-1] != "the disk works again":
            time.sleep(0.02)
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


def test_what_a_full_disk_kept_from_being_sealed_is_sealed_at_the_end(
    wire: Wire, start: Callable[..., Agent], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "6M") as disk:
        agent = start("-i", "wire", "-G", "2", root=disk / "root", log=tmp_path / "log")
        sent = blast(wire, 1000, 20_000)
        wait_until_written(agent, sent)
        fill(disk / "filler")
        agent.wait_for("a segment could not be sealed, it is tried again")
        (disk / "filler").unlink()
        assert agent.stop() == 0
        assert balance(agent.manifests())["written"] == len(agent.records()) == sent


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


def packets_and_drops(folders: list[Path]) -> tuple[int, int]:
    """Of all segments below, those that were salvaged, too."""
    manifests = [json.loads(path.read_text()) for folder in folders for path in folder.glob("*/n/[0-9]*/*.json")]
    dropped = sum(manifest["ledger"][reason] for manifest in manifests for reason in ("kernel", "disk"))
    return sum(manifest["packets"] for manifest in manifests), dropped


def test_what_was_in_a_folder_that_is_moved_away_and_comes_back_counts_once(
    wire: Wire, start: Callable[..., Agent]
) -> None:
    """It is neither lost, nor another agent's: it is salvaged when it is back."""
    agent = start("-i", "wire", "-G", "2")
    root, away, aside = agent.root, agent.root.with_name("away"), agent.root.with_name("aside")
    sent = blast(wire, 1000, 20_000)
    wait_until_written(agent, sent)
    root.rename(away)
    agent.wait_for("packets are dropped until the disk works again")
    sent += blast(wire, 1000, 20_000)
    agent.wait_for("the disk works again")
    sent += blast(wire, 1000, 20_000)
    wait_until_written(agent, 1)
    root.rename(aside)
    away.rename(root)
    deadline = time.monotonic() + 20
    while not any(json.loads(path.read_text())["salvaged"] for path in root.glob("*/n/[0-9]*/*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert agent.stop() == 0
    aside.rename(root.with_name("recording"))
    second = Agent(wire, root.with_name("recording"), "-i", "wire")  # which salvages what is there
    assert second.stop() == 0
    packets, dropped = packets_and_drops([root, second.root])
    assert (packets + dropped, sent) == (sent, sent)
    assert packets >= 1000
