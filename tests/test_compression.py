"""Sealed segments are compressed in the background; nobody can tell but by their size."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from capture.compression import Compressor, compress
from capture.freezes import add_freeze
from capture.ring import Ring
from tests.rings import SMALL, START_NS, disk_bytes, facts, files, manifests, pcap, record_segment, tombstones, walk

COMPRESSING = replace(SMALL, compress=True)


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[Ring]:
    ring = Ring(tmp_path, "lab", "node-a", COMPRESSING)
    ring.salvage()
    yield ring
    ring.close()


def record_zeros(ring: Ring, packets: int = 40) -> str:
    some = [(time.time_ns(), bytes(1000)) for _ in range(packets)]
    data = pcap(some)
    part = ring.open(time.time_ns())
    os.write(part.fd, data)
    return ring.seal(part, facts(data, some)).stem


def wait_for(folder: Path, *names: str) -> None:
    """Until these are there and nothing is under way."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        there = files(folder)
        if set(names) <= there and not any(name.removesuffix(".zst") in there - {name} for name in names):
            return
        time.sleep(0.01)
    raise AssertionError(f"{names} are not there, but {sorted(files(folder))}")


def test_a_compressed_segment_takes_the_place_of_the_plain_one(ring: Ring) -> None:
    stem = record_zeros(ring)
    manifest = (ring.folder / f"{stem}.json").read_bytes()
    wait_for(ring.folder, f"{stem}.pcap.zst")
    assert (ring.folder / f"{stem}.json").read_bytes() == manifest
    with subprocess.Popen(["tshark", "-r", str(ring.folder / f"{stem}.pcap.zst")], stdout=subprocess.PIPE) as tshark:
        assert tshark.stdout is not None
        assert len(tshark.stdout.read().splitlines()) == 40
    assert manifests(ring.folder)[0]["size_bytes"] == 24 + 40 * 1016


def test_its_hash_is_of_the_uncompressed_data(ring: Ring) -> None:
    import zstandard

    stem = record_zeros(ring)
    wait_for(ring.folder, f"{stem}.pcap.zst")
    data = zstandard.ZstdDecompressor().decompress((ring.folder / f"{stem}.pcap.zst").read_bytes())
    assert hashlib.sha256(data).hexdigest() == manifests(ring.folder)[0]["sha256"]


def test_the_quota_counts_what_is_really_there(ring: Ring) -> None:
    stems = []
    for _ in range(60):
        stems.append(record_zeros(ring))
        wait_for(ring.folder, f"{stems[-1]}.pcap.zst")
        assert disk_bytes(ring.folder) <= SMALL.quota_bytes
    assert len(manifests(ring.folder)) == 60, "60 of 40 KB each, on 1 MB"
    state = ring.state(0)
    assert state.bytes <= SMALL.quota_bytes
    walk(ring.folder)


def test_what_does_not_become_smaller_stays_as_it_is(ring: Ring) -> None:
    record_segment(ring, 2, size_bytes=20_000)
    last = record_zeros(ring)
    wait_for(ring.folder, f"{last}.pcap.zst")
    assert len(list(ring.folder.glob("*/*.pcap"))) == 1
    assert not list(ring.folder.rglob("*.tmp"))


def test_the_next_start_compresses_what_was_left(ring: Ring, tmp_path: Path) -> None:
    ring.close()
    plain = Ring(tmp_path, "lab", "node-a", SMALL)
    stem = record_zeros(plain)
    plain.close()
    again = Ring(tmp_path, "lab", "node-a", COMPRESSING)
    again.salvage()
    wait_for(again.folder, f"{stem}.pcap.zst")
    again.close()


def test_a_pinned_segment_stays_pinned(ring: Ring) -> None:
    add_freeze(ring.folder, 0, 2 * START_NS)
    stem = record_zeros(ring)
    wait_for(ring.folder, f"{stem}.pcap.zst")
    ring.close()
    assert (ring.folder / f"{stem}.pcap.zst").stat().st_mode & 0o777 == 0o440


def test_segments_that_go_while_they_are_compressed_are_gone(ring: Ring) -> None:
    for _ in range(150):
        record_segment(ring, 100, size_bytes=400)
    ring.close()
    stems = {manifest["stem"] for manifest in manifests(ring.folder)}
    names = files(ring.folder) - {"ring.json", "tombstones.jsonl"}
    assert {name.partition(".")[0] for name in names} == stems
    assert {each["reason"] for each in tombstones(ring.folder)} == {"quota"}
    walk(ring.folder)


def test_data_that_is_not_what_its_manifest_says_is_left_alone(tmp_path: Path) -> None:
    source, target = tmp_path / "x.pcap", tmp_path / "x.pcap.zst.tmp"
    source.write_bytes(bytes(5000))
    assert not compress(source, target, "0" * 64)
    assert not target.exists()
    assert compress(source, target, hashlib.sha256(bytes(5000)).hexdigest())
    assert target.stat().st_size < 100


def test_nothing_is_left_where_it_fails(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        compress(tmp_path / "x.pcap", tmp_path / "x.pcap.zst.tmp", "")
    assert list(tmp_path.iterdir()) == []


def test_the_thread_has_the_lowest_priority_and_the_others_keep_theirs() -> None:
    seen: list[int] = []
    compressor = Compressor(lambda stem: seen.append(os.getpriority(os.PRIO_PROCESS, 0)))
    compressor.add("x")
    while not seen:
        time.sleep(0.001)
    compressor.close()
    assert seen == [19]
    assert os.getpriority(os.PRIO_PROCESS, 0) < 19
