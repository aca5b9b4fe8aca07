"""A crash between any two steps: the next start ends what was begun, and every sealed segment is whole."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.contract import Tombstone, to_json
from capture.ring import Ring
from capture.salvage import facts_of
from tests.rings import (
    SMALL,
    START_NS,
    assert_hashes,
    assert_sealed,
    files,
    manifests,
    pcap,
    record_segment,
    sll2_packets,
    tombstones,
    tshark_packets,
    walk,
)

PACKETS = sll2_packets(20, START_NS)
DATA = pcap(PACKETS)


def start(root: Path, **limits: int) -> Ring:
    ring = Ring(root, "lab", "node-a", replace(SMALL, **limits))  # type: ignore[arg-type]
    ring.salvage()
    return ring


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a node with three sealed segments, whose agent has ended."""
    ring = start(tmp_path)
    for _ in range(3):
        record_segment(ring, 20)
    ring.close()
    return ring.folder


def restart(folder: Path, **limits: int) -> None:
    """The next agent: it starts, records, and ends."""
    for _ in range(2):
        ring = start(folder.parents[1], **limits)
        record_segment(ring, 20)
        ring.close()
    assert not [name for name in files(folder) if name.endswith((".tmp", ".part"))]
    walk(folder)
    assert_hashes(folder)
    for manifest in manifests(folder):
        if manifest["salvaged"]:
            assert tshark_packets(folder / f"{manifest['stem']}.pcap") == manifest["packets"]


# --- What each step of sealing leaves, if it is the last one ---------------------------------------------------------


def opened(path: Path) -> None:
    path.with_name(path.name + ".part").write_bytes(b"")


def with_half_a_header(path: Path) -> None:
    path.with_name(path.name + ".part").write_bytes(DATA[:13])


def with_a_header(path: Path) -> None:
    path.with_name(path.name + ".part").write_bytes(DATA[:24])


def with_some_packets(path: Path) -> None:
    path.with_name(path.name + ".part").write_bytes(DATA[:-30])


def with_all_packets(path: Path) -> None:
    path.with_name(path.name + ".part").write_bytes(DATA)


def renamed(path: Path) -> None:
    path.write_bytes(DATA)


def with_a_part_of_its_manifest(path: Path) -> None:
    path.write_bytes(DATA)
    path.with_suffix(".json.123.tmp").write_text('{"packets": 20')


@pytest.mark.parametrize(
    ("crash", "packets"),
    [
        (opened, 0),
        (with_half_a_header, 0),
        (with_a_header, 0),
        (with_some_packets, 19),
        (with_all_packets, 20),
        (renamed, 20),
        (with_a_part_of_its_manifest, 20),
    ],
    ids=lambda each: getattr(each, "__name__", None),
)
def test_a_crash_while_sealing(folder: Path, crash: Callable[[Path], None], packets: int) -> None:
    stem = manifests(folder)[-1]["stem"]
    name = f"{stem[:9]}{int(stem[9:28]) + 1}-000004"
    crash(folder / f"{name}.pcap")
    restart(folder)
    salvaged = [manifest for manifest in manifests(folder) if manifest["salvaged"]]
    assert [(each["stem"], each["packets"]) for each in salvaged] == [(name, packets)] * bool(packets)
    if packets:
        assert salvaged[0]["first_packet_ns"] == START_NS
        assert salvaged[0]["last_packet_ns"] == START_NS + (packets - 1) * 10**6
        assert salvaged[0]["link_type"] == 276
    assert tombstones(folder) == []


# --- And of evicting -------------------------------------------------------------------------------------------------


def tombstone_of(folder: Path, manifest: dict[str, object]) -> None:
    """The oldest's, as the ring would have written it."""
    root = folder.parents[1]
    copy = root.with_name(f"{root.name}-copy")
    shutil.copytree(root, copy)
    ring = Ring(copy, "lab", "node-a", replace(SMALL, segments=len(manifests(folder)) - 1))
    ring.salvage()
    ring.close()
    (folder / "tombstones.jsonl").write_bytes((ring.folder / "tombstones.jsonl").read_bytes())
    assert tombstones(folder)[0]["stem"] == manifest["stem"]
    shutil.rmtree(copy)


@pytest.mark.parametrize(
    "gone", [[], [".json"], [".json", ".pcap"], [".pcap"]], ids=lambda gone: "".join(gone) or "none"
)
def test_a_crash_while_evicting(folder: Path, gone: list[str]) -> None:
    first = manifests(folder)[0]
    tombstone_of(folder, first)
    for suffix in gone:
        (folder / f"{first['stem']}{suffix}").unlink()
    restart(folder)
    assert [each["stem"] for each in tombstones(folder)] == [first["stem"]]
    assert not [name for name in files(folder) if name.startswith(first["stem"])]


def test_a_crash_while_tombstones_are_merged(folder: Path) -> None:
    (folder / "tombstones.jsonl.17.tmp").write_text("{")
    (folder / "ring.json.17.tmp").write_text("{")
    restart(folder)
    assert tombstones(folder) == []


# --- And of compressing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [".pcap.zst.tmp", ".pcap.zst"])
def test_a_crash_while_compressing(folder: Path, left: str) -> None:
    import zstandard

    stem = manifests(folder)[1]["stem"]
    data = zstandard.ZstdCompressor().compress((folder / f"{stem}.pcap").read_bytes())
    (folder / f"{stem}{left}").write_bytes(data[:-7] if left.endswith("tmp") else data)
    ring = start(folder.parents[1])
    ring.close()
    there = {name for name in files(folder) if name.startswith(stem)}
    suffix = ".pcap" if left.endswith("tmp") else ".pcap.zst"
    assert there == {f"{stem}.json", f"{stem}{suffix}"}


def test_a_compressed_segment_without_its_manifest_is_salvaged(folder: Path) -> None:
    import zstandard

    stem = manifests(folder)[-1]["stem"]
    name = f"{stem[:9]}{int(stem[9:28]) + 1}-000004"
    (folder / f"{name}.pcap.zst").write_bytes(zstandard.ZstdCompressor().compress(DATA))
    restart(folder)
    assert [manifest["packets"] for manifest in manifests(folder) if manifest["salvaged"]] == [20]
    assert not (folder / f"{name}.pcap.zst").exists()


# --- What a crash may leave in a file --------------------------------------------------------------------------------


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("unit_ns", [1, 1000])
def test_captures_of_other_writers_are_salvaged_too(tmp_path: Path, byte_order: str, unit_ns: int) -> None:
    import struct

    header = struct.pack(f"{byte_order}IHHiIII", 0xA1B23C4D if unit_ns == 1 else 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    record = struct.pack(f"{byte_order}IIII", START_NS // 10**9, 17, 60, 1500) + bytes(60)
    path = tmp_path / "x.pcap"
    path.write_bytes(header + record + record[:-1])
    with open(path, "rb") as file:
        facts = facts_of(file.fileno())
    assert facts is not None
    assert (facts.packets, facts.size_bytes, facts.first_packet_ns) == (1, 24 + 76, START_NS + 17 * unit_ns)


@pytest.mark.parametrize(
    "tail",
    [
        bytes(4096),
        b"\xff" * 100,
        DATA,
        DATA[24:40],
        DATA[24:32] + b"\xff\xff\xff\x7f" * 2 + bytes(100),
        DATA[24:28] + b"\x00\xca\x9a\x3b" + DATA[32:100],
    ],
    ids=["zeros", "ones", "another file", "a header", "a huge length", "a second of 10^9 nanoseconds"],
)
def test_a_tail_that_is_no_record_is_cut_off(folder: Path, tail: bytes) -> None:
    stem = manifests(folder)[-1]["stem"]
    (folder / f"{stem[:9]}{int(stem[9:28]) + 1}-000004.pcap.part").write_bytes(DATA + tail)
    restart(folder)
    assert [manifest["size_bytes"] for manifest in manifests(folder) if manifest["salvaged"]] == [len(DATA)]


@given(st.integers(0, len(DATA)), st.binary(max_size=64))
@settings(max_examples=300)
def test_whatever_a_file_holds_tshark_reads_what_is_salvaged(at: int, garbage: bytes) -> None:
    """Here: that a second look finds the same. tshark is asked about a few, below."""
    fd = os.memfd_create("part")
    try:
        os.write(fd, (DATA[:at] + garbage + DATA[at + len(garbage) :]))
        facts = facts_of(fd)
        if facts:
            os.ftruncate(fd, facts.size_bytes)
            assert facts_of(fd) == facts
            assert 24 < facts.size_bytes <= len(DATA) + len(garbage)
    finally:
        os.close(fd)


def test_tshark_reads_what_is_salvaged(tmp_path: Path) -> None:
    for seed in range(6):
        chance = random.Random(seed)
        data = bytearray(DATA)
        for _ in range(3):
            data[chance.randrange(24, len(data))] = chance.randrange(256)
        path = tmp_path / f"{seed}.pcap"
        path.write_bytes(data)
        with open(path, "rb") as file:
            facts = facts_of(file.fileno())
        if facts:
            os.truncate(path, facts.size_bytes)
            assert tshark_packets(path) == facts.packets


# --- A real one ------------------------------------------------------------------------------------------------------

WRITER = """
import os, sys, time
from pathlib import Path
from dataclasses import replace
from capture.ring import Ring
from tests.rings import SMALL, facts, pcap, sll2_packets
ring = Ring(Path(sys.argv[1]), "lab", "node-a", replace(SMALL, segment_bytes=32 << 10))
ring.salvage()
print("recording", flush=True)
number = 0
while True:
    part = ring.open(time.time_ns())
    packets = sll2_packets(200, time.time_ns())
    data = pcap(packets)
    for at in range(0, len(data), 5000):
        ring.make_room(5000)
        os.write(part.fd, data[at : at + 5000])
    ring.seal(part, facts(data, packets))
    print(part.stem, flush=True)
"""


def test_random_kills(tmp_path: Path) -> None:
    """What was said to be sealed is there or has a tombstone; nothing that is sealed is torn."""
    chance = random.Random(17)
    said: list[str] = []
    root = Path(__file__).resolve().parents[1]
    for _ in range(20):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], cwd=root, stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "recording\n"
        time.sleep(chance.uniform(0, 0.3))
        writer.send_signal(signal.SIGKILL)
        said += [line.strip() for line in writer.stdout.read().splitlines() if len(line) == 35]
        writer.wait()
        writer.stdout.close()
    folder = tmp_path / "lab" / "node-a"
    ring = start(tmp_path)
    ring.close()
    walk(folder)
    there = {manifest["stem"] for manifest in manifests(folder)}
    buried = max((each["stem"] for each in tombstones(folder)), default="")
    assert len(said) > 20
    assert [stem for stem in said if stem not in there and stem > buried] == []
    assert {each["reason"] for each in tombstones(folder)} <= {"quota"}
    assert_sealed(folder)
    assert json.loads((folder / "ring.json").read_text())["lost_segments"] == 0


def test_a_tombstone_is_a_line(folder: Path) -> None:
    assert to_json(Tombstone("x", "y", 1, "quota")).count(b"\n") == 1
