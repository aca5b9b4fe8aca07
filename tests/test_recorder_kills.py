"""The agent is killed at random, under load: what it had written is whole, and the next start seals it."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.agents import Agent, assert_hashed, number_of, numbered, start, whole, wire
from tests.wire import Wire

KILLS = int(os.environ.get("PODTAP_KILLS", "6"))


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


def wireshark_counts(paths: list[Path]) -> list[int]:
    """Packets in each file; whatever Wireshark finds wrong with one fails."""
    done = subprocess.run(["capinfos", "-T", "-r", "-M", "-c", *paths], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return [int(line.split("\t")[1]) for line in done.stdout.splitlines()]
