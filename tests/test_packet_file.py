"""A segment's file, written in pieces of all sizes: its bytes, its SHA-256 and its times are of what was given."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import mmap
import os
import random
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from capture import direct_writing
from capture.direct_writing import BLOCK_BYTES, LEAST_BYTES, DirectWriting
from capture.libpcap import Handle, _loaded, _PacketHeader
from capture.packet_file import BUFFER_BYTES, PacketFile
from capture.segment_writer import Part, open_part

HEADER = struct.pack("=IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 65535, 1)


@pytest.fixture
def part(tmp_path: Path) -> Iterator[Part]:
    made = open_part(tmp_path, "20260101/1-1", 1, 0)
    yield made
    os.close(made.fd)


class Given:
    """Packets, as they are given to a file, and as they should stand in it."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._content = self._random.randbytes(1 << 16)
        self.kept = bytearray(HEADER)
        self.pending = bytearray()
        self.packets = self._kept_packets = 0
        self._dump = _loaded().pcap.pcap_dump

    def give(self, file: PacketFile, count: int) -> None:
        for _ in range(count):
            self.packets += 1
            size = self._random.choice([0, 60, 60, 66, 1514, 40_000])
            data = self._content[:size]
            header = _PacketHeader()
            header.time.seconds, header.time.fraction = self.packets, 5
            header.captured, header.length = size, size + 1
            self._dump(file.dumper.pointer, ctypes.byref(header), data)
            self.pending += struct.pack("=IIII", self.packets, 5, size, size + 1) + data
        file.add(count)

    def keep(self) -> None:
        self.kept += self.pending
        self.pending.clear()
        self._kept_packets = self.packets

    def lose(self) -> None:
        self.pending.clear()
        self.packets = self._kept_packets


def assert_is(file: PacketFile, given: Given) -> None:
    there = file.part.path.read_bytes()
    assert (there, file.sha256) == (given.kept, hashlib.sha256(given.kept).hexdigest())
    assert (file.size_bytes, file.packets) == (len(given.kept), given.packets)
    seconds = 10**9
    assert file.packet_times() == ((seconds + 5, given.packets * seconds + 5) if given.packets else (None, None))


def in_page_cache(path: Path) -> list[bool]:
    """Of each block of a file."""
    size = path.stat().st_size
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as mapped:
        states = (ctypes.c_ubyte * -(-size // BLOCK_BYTES))()
        begin = (ctypes.c_ubyte * size).from_buffer(mapped)
        assert ctypes.CDLL(None).mincore(begin, ctypes.c_size_t(size), states) == 0
        del begin
    return [bool(state & 1) for state in states]


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder beside the project, for /tmp may be in memory; how quick it is does not count."""
    monkeypatch.setattr(direct_writing, "MOST_WAIT_S", 1e9)
    with tempfile.TemporaryDirectory(dir=Path(__file__).resolve().parents[1], prefix=".disk-") as folder:
        probe = Path(folder) / "probe"
        with probe.open("wb") as file:
            is_written = DirectWriting().write(file.fileno(), memoryview(mmap.mmap(-1, LEAST_BYTES)), 0)
        if not is_written or any(in_page_cache(probe)):
            pytest.skip("the file system does not write past the page cache")
        yield Path(folder)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_given_is_in_the_file(part: Part, seed: int) -> None:
    model, given = Handle.dead(1, 65535), Given(seed)
    file = PacketFile(part, model, DirectWriting())
    for count in random.Random(seed).choices([1, 3, 40, 600, 1200], k=20):
        given.give(file, count)
        if count != 40:
            file.flush()
            given.keep()
            if count > 3:
                assert_is(file, given)
    file.close()


@pytest.mark.parametrize("seed", range(3))
def test_after_an_error_it_holds_what_was_flushed_and_goes_on(
    part: Part, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, given, chance = Handle.dead(1, 65535), Given(seed), random.Random(seed)
    file = PacketFile(part, model, DirectWriting())
    pwrite, left = os.pwrite, 0

    def failing(fd: int, data: Any, offset: int) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "full")
        return pwrite(fd, data if len(data) >= LEAST_BYTES else data[: 1 + len(data) // 2], offset)

    for count in chance.choices([1, 40, 600, 1200], k=20):
        with monkeypatch.context() as context:
            left = chance.randrange(60)
            context.setattr(os, "pwrite", failing)
            given.give(file, count)
            try:
                file.flush()
                given.keep()
            except OSError:
                given.lose()
        assert_is(file, given)
    file.close()


def test_large_pieces_are_not_left_in_the_page_cache(disk: Path) -> None:
    model, given = Handle.dead(1, 65535), Given(0)
    part = open_part(disk, "20260101/1-1", 1, 0)
    file = PacketFile(part, model, DirectWriting())
    for end_bytes in (10_000, 3 * BUFFER_BYTES, 6 * BUFFER_BYTES):
        while file.end_bytes < end_bytes:
            given.give(file, 10)
        file.flush()
    cached = in_page_cache(part.path)
    assert sum(cached) < len(cached) / 4, "some, of the small pieces at a flush"
    file.close()
    os.close(part.fd)


def test_a_slow_disk_is_written_to_through_the_page_cache(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = memoryview(mmap.mmap(-1, LEAST_BYTES + 100))
    direct = DirectWriting()
    with (disk / "file").open("wb") as file:
        assert direct.write(file.fileno(), data[:-1], 0) == LEAST_BYTES
        assert direct.write(file.fileno(), data, 1) == 0, "not where a block begins"
        assert direct.write(file.fileno(), data[: LEAST_BYTES - 1], 0) == 0, "a small piece"
        monkeypatch.setattr(direct_writing, "MOST_WAIT_S", 0)
        assert direct.write(file.fileno(), data, 0) == LEAST_BYTES
        assert direct.write(file.fileno(), data, 0) == 0
        monkeypatch.setattr(direct_writing, "AGAIN_S", -1)
        direct = DirectWriting()
        assert [direct.write(file.fileno(), data, 0) for _ in range(2)] == [LEAST_BYTES] * 2, "it is tried again"


def test_a_file_system_that_can_not_gets_the_page_cache(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, command: int, flags: int = 0) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no")
        return 0

    monkeypatch.setattr(direct_writing.fcntl, "fcntl", refuse)
    model, given = Handle.dead(1, 65535), Given(0)
    file = PacketFile(part, model, DirectWriting())
    while file.end_bytes < 1.5 * BUFFER_BYTES:
        given.give(file, 100)
    file.flush()
    given.keep()
    assert_is(file, given)
    file.close()
