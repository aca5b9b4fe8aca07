"""As in the agent: one thread writes, one seals, one compresses, one asks how it goes, and people freeze and thaw."""

from __future__ import annotations

import os
import queue
import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from capture.freezes import add_freeze, thaw
from capture.ring import Part, Ring, SegmentFacts
from tests.rings import SMALL, disk_bytes, facts, files, manifests, pcap, sll2_packets, tombstones, walk

LIMITS = replace(SMALL, frozen_quota_bytes=256 << 10, segment_bytes=32 << 10, compress=True)


def test_all_at_once(tmp_path: Path) -> None:
    ring = Ring(tmp_path, "lab", "node-a", LIMITS)
    ring.salvage()
    done = threading.Event()
    problems: list[BaseException] = []
    largest = [0]
    written: queue.Queue[tuple[Part, SegmentFacts] | None] = queue.Queue(2)
    stems: list[str] = []
    chance = random.Random(3)

    def write() -> None:
        while not done.is_set():
            packets = sll2_packets(chance.randrange(1, 300), time.time_ns())
            data = pcap(packets)
            part = ring.open(time.time_ns())
            for at in range(0, len(data), 4096):
                ring.make_room(4096)
                os.write(part.fd, data[at : at + 4096])
            if chance.random() < 0.1:
                ring.discard(part)
            else:
                written.put((part, facts(data, packets)), timeout=30)

    def seal() -> None:
        while (one := written.get(timeout=30)) is not None:
            stems.append(ring.seal(*one).stem)

    def ask() -> None:
        while not done.wait(0.002):
            largest[0] = max(largest[0], disk_bytes(ring.folder))
            state = ring.state(time.time_ns())
            assert state.bytes <= LIMITS.quota_bytes
            assert state.frozen_bytes <= LIMITS.frozen_quota_bytes

    def freeze_and_thaw() -> None:
        while not done.wait(0.05):
            now_ns = time.time_ns()
            freeze = add_freeze(ring.folder, now_ns - 10**8, now_ns + 10**8)
            time.sleep(0.1)
            thaw(ring.folder, freeze.id)

    def told(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                work()
            except BaseException as error:
                problems.append(error)
                done.set()

        return run

    threads = [threading.Thread(target=told(work)) for work in (write, seal, ask, freeze_and_thaw)]
    for thread in threads:
        thread.start()
    done.wait(3)
    done.set()
    threads[0].join()
    written.put(None)
    for thread in threads:
        thread.join()
    ring.close()
    assert problems == []
    assert len(stems) > 20
    assert largest[0] <= LIMITS.quota_bytes + LIMITS.frozen_quota_bytes
    walk(ring.folder)
    left = {manifest["stem"] for manifest in manifests(ring.folder)}
    assert {name.partition(".")[0] for name in files(ring.folder) if name[0] == "2"} == left
    gone = sum(each["segments"] for each in tombstones(ring.folder))
    assert len(left) + gone == len(stems)
    assert {reason for each in tombstones(ring.folder) for reason in each["reason"].split(",")} <= {
        "quota",
        "frozen_quota",
    }
