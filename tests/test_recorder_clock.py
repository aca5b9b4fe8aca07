"""The agent while its clock is set to other times."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from capture.freezes import add_freeze
from tests.agents import ROOT, Agent, assert_hashed, balance, blast, start, wire
from tests.wire import Wire

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
