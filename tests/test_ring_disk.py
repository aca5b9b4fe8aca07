"""A disk that is full, read-only or gone: nothing torn is sealed, and the ring goes on when it is back."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from capture.ring import Limits, Part, Ring
from tests.rings import (
    SMALL,
    START_NS,
    assert_hashes,
    assert_sealed,
    facts,
    manifests,
    pcap,
    record_segment,
    sll2_packets,
    tombstones,
    walk,
)

DISK_BYTES = 1 << 20
LARGE = Limits(quota_bytes=1 << 30, segment_bytes=64 << 10)
"""A quota beyond the disk: nothing is evicted."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "podtap-test", path], check=True)
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


@pytest.fixture
def ring(disk: Path) -> Iterator[Ring]:
    ring = Ring(disk / "root", "lab", "node-a", LARGE)
    ring.salvage()
    yield ring
    ring.close()


def fill(disk: Path, but: int = 0) -> Path:
    """All that is left, with a file of somebody else."""
    path = disk / "other"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(fd, bytes(4096))
    except OSError as error:
        assert error.errno == errno.ENOSPC
    finally:
        os.close(fd)
    if but:
        os.truncate(path, path.stat().st_size // 4096 * 4096 - but)
    return path


def begin(ring: Ring, packets: int = 100) -> tuple[Part, bytes, list[tuple[int, bytes]]]:
    some = sll2_packets(packets, START_NS)
    data = pcap(some)
    part = ring.open(time.time_ns())
    os.write(part.fd, data)
    return part, data, some


def test_what_does_not_fit_on_the_disk_is_cut_off(ring: Ring, disk: Path) -> None:
    """As the agent does: it knows the last offset that was written whole."""
    some = sll2_packets(100, START_NS)
    part = ring.open(START_NS)
    data = pcap(some[:50])
    os.write(part.fd, data)
    fill(disk, but=8192)
    written = 0
    with pytest.raises(OSError, match="No space"):
        while True:
            written += os.write(part.fd, pcap(some[50:])[24:])
    assert written % 116
    (disk / "other").unlink()
    ring.seal(part, facts(data, some[:50]))
    assert_sealed(ring.folder)


def test_a_segment_that_has_no_room_for_its_manifest_is_sealed_later(ring: Ring, disk: Path) -> None:
    record_segment(ring)
    part, data, some = begin(ring)
    other = fill(disk)
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            ring.seal(part, facts(data, some))
    assert len(manifests(ring.folder)) == 1
    assert not list(ring.folder.rglob("*.tmp"))
    assert ring.state(0).waiting_segments == 1
    other.unlink()
    last = record_segment(ring)
    assert part.manifest is not None
    assert walk(ring.folder)[:2] == [last.stem, part.manifest.stem]
    assert ring.seal(part, facts(data, some)) is part.manifest
    assert ring.state(0).waiting_segments == 0
    assert_sealed(ring.folder)


def test_what_waited_for_room_is_salvaged_by_the_next_start(ring: Ring, disk: Path) -> None:
    part, data, some = begin(ring)
    other = fill(disk)
    with pytest.raises(OSError, match="No space"):
        ring.seal(part, facts(data, some))
    ring.close()
    other.unlink()
    ring = Ring(disk / "root", "lab", "node-a", LARGE)
    (salvaged,) = ring.salvage()
    ring.close()
    assert (salvaged.stem, salvaged.packets) == (part.stem, 100)
    assert_sealed(ring.folder)


def test_a_full_disk_stops_no_start(ring: Ring, disk: Path) -> None:
    ring.close()
    other = fill(disk)
    ring = Ring(disk / "root", "lab", "node-a", LARGE)
    assert ring.salvage() == []
    with pytest.raises(OSError, match="No space"):
        record_segment(ring)
    other.unlink()
    record_segment(ring)
    ring.close()
    assert_sealed(ring.folder)


def test_what_cannot_be_salvaged_on_a_full_disk_is_salvaged_later(ring: Ring, disk: Path) -> None:
    part, _, _ = begin(ring)
    ring.close()
    other = fill(disk)
    ring = Ring(disk / "root", "lab", "node-a", LARGE)
    assert ring.salvage() == []
    assert part.stem in ring.state(0).problems[0]
    assert ring.state(0).waiting_segments == 1
    other.unlink()
    record_segment(ring)
    ring.close()
    assert sorted(walk(ring.folder)) == [manifest["stem"] for manifest in manifests(ring.folder)]
    assert [manifest["salvaged"] for manifest in manifests(ring.folder)] == [True, False]
    assert_sealed(ring.folder)


def test_one_that_cannot_be_sealed_keeps_no_other_from_it(ring: Ring) -> None:
    """Its bytes are not there, say."""
    part, data, some = begin(ring)
    os.ftruncate(part.fd, len(data) - 1)
    for _ in range(2):
        with pytest.raises(OSError, match="bytes of"):
            ring.seal(part, facts(data, some))
    record_segment(ring)
    record_segment(ring)
    assert ring.state(0).waiting_segments == 1
    ring.close()
    assert len(walk(ring.folder)) == 2


def test_one_that_cannot_be_salvaged_keeps_no_other_from_it(ring: Ring, disk: Path) -> None:
    """A folder in the place of a capture, say: its name can't be taken."""
    part, _, _ = begin(ring)
    ring.close()
    part.path.with_suffix("").mkdir()
    ring = Ring(disk / "root", "lab", "node-a", LARGE)
    assert ring.salvage() == []
    record_segment(ring)
    assert "Is a directory" in ring.state(0).problems[0]
    part.path.with_suffix("").rmdir()
    record_segment(ring)
    assert ring.state(0).problems == []
    ring.close()
    assert len(walk(ring.folder)) == 3
    assert_sealed(ring.folder)


def test_a_root_that_cannot_be_made_is_waited_for(disk: Path) -> None:
    (disk / "root").write_text("not a folder")
    ring = Ring(disk / "root", "lab", "node-a", LARGE)
    assert ring.salvage() == []
    assert "can't be used" in ring.state(0).problems[0]
    with pytest.raises(OSError, match="root"):
        ring.open(time.time_ns())
    (disk / "root").unlink()
    record_segment(ring)
    assert ring.state(0).problems == []
    ring.close()


def test_a_full_disk_can_be_evicted_from(disk: Path) -> None:
    """Although a tombstone has to be written first."""
    ring = Ring(disk / "root", "lab", "node-a", SMALL)
    stems = [record_segment(ring, 500).stem for _ in range(8)]
    ring.close()
    fill(disk)
    before = (ring.folder / "tombstones.jsonl").exists()
    assert not before
    ring = Ring(disk / "root", "lab", "node-a", replace(SMALL, segment_bytes=16 << 10, segments=3))
    ring.salvage()
    ring.close()
    assert [manifest["stem"] for manifest in manifests(ring.folder)] == stems[-3:]
    assert [each["stem"] for each in tombstones(ring.folder)] == stems[:5]
    walk(ring.folder)


def test_a_read_only_disk_is_waited_for(ring: Ring, disk: Path) -> None:
    """The kernel makes none read-only in which a file is open for writing: so it is met by a new start."""
    first = record_segment(ring)
    ring.close()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    ring = Ring(disk / "root", "lab", "node-a", LARGE)
    assert ring.salvage() == []
    with pytest.raises(OSError, match="Read-only"):
        ring.open(time.time_ns())
    assert "Read-only" in ring.state(0).problems[0]
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    second = record_segment(ring)
    ring.close()
    assert walk(ring.folder) == [second.stem, first.stem]


def test_a_folder_that_vanished_is_made_again(ring: Ring) -> None:
    for _ in range(3):
        record_segment(ring)
    part, data, some = begin(ring)
    shutil.rmtree(ring.folder.parents[1])
    with pytest.raises(FileNotFoundError):
        ring.make_room(1)
    with pytest.raises(FileNotFoundError):
        ring.seal(part, facts(data, some))
    last = record_segment(ring)
    (lost,) = tombstones(ring.folder)
    assert (lost["reason"], lost["segments"]) == ("lost", 3)
    assert last.stem.endswith("-000005")
    walk(ring.folder)
    assert_hashes(ring.folder)
    assert ring.state(0).waiting_segments == 0


def test_a_folder_that_was_mounted_over_and_is_back_is_known_again(ring: Ring, disk: Path) -> None:
    stems = [record_segment(ring).stem for _ in range(3)]
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "podtap-test", disk / "root"], check=True)
    try:
        record_segment(ring)
        assert ring.state(0).segments == 1
    finally:
        subprocess.run(["umount", "--lazy", disk / "root"], check=True)
    stems.append(record_segment(ring).stem)
    assert [manifest["stem"] for manifest in manifests(ring.folder)] == stems
    assert stems == sorted(stems)
    assert_hashes(ring.folder)


def test_a_part_that_somebody_removed_is_told(ring: Ring) -> None:
    part, data, some = begin(ring)
    part.path.unlink()
    with pytest.raises(FileNotFoundError):
        ring.make_room(1)
    with pytest.raises(FileNotFoundError):
        ring.seal(part, facts(data, some))
    assert not part.is_elsewhere
    record_segment(ring)
    assert len(walk(ring.folder)) == 1


def test_a_part_that_somebody_moved_is_told_and_is_not_lost(ring: Ring) -> None:
    part, data, some = begin(ring)
    away = part.path.rename(part.path.with_name("away"))
    with pytest.raises(FileNotFoundError):
        ring.seal(part, facts(data, some))
    assert part.is_elsewhere
    assert away.stat().st_size >= len(data)


def test_a_part_that_somebody_replaced_is_told(ring: Ring) -> None:
    part, _, _ = begin(ring)
    part.path.unlink()
    part.path.write_bytes(b"other")
    with pytest.raises(FileNotFoundError, match="another file"):
        ring.make_room(1)
