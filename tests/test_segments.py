"""Finding, ordering and reading capture files; every shared capture is compared with what tshark read of it."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import itertools
import lzma
import os
import random
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import lz4.frame
import numpy as np
import pytest
import xxhash
import zstandard

from analysis.compression import ContentStream
from analysis.errors import PodtapError, UsageError
from analysis.segments import Segment, find_segments
from capture.contract import Manifest, to_json

PCAPS = Path(__file__).resolve().parents[1].parent / "shared" / "pcaps"
SECOND = 10**9


def capture(first_s: int = 1000, packets: int = 3) -> bytes:
    header = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, 1)
    return header + b"".join(struct.pack("<IIII", first_s + i, 0, 4, 4) + b"abcd" for i in range(packets))


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def only(path: Path | str) -> Segment:
    segments, problems = find_segments([str(path)])
    assert problems == []
    return segments[0]


def count(segment: Segment, chunk_bytes: int = 1 << 20) -> int:
    return sum(len(frames) for _, frames in segment.chunks(chunk_bytes))


# --- tshark's answers ------------------------------------------------------------------------------------------------


def shared_captures() -> list[str]:
    folders = [f for f in PCAPS.glob("*") if f.is_dir() and f.name not in ("oracle", "expected")]
    return sorted(str(path.relative_to(PCAPS)) for folder in folders for path in folder.rglob("*") if path.is_file())


def tshark_frames(name: str) -> list[tuple[int | None, int, int]]:
    """(time, length, captured) of each frame; no time where tshark has none, or its 32-bit nanoseconds overflowed."""
    with gzip.open(PCAPS / "oracle" / f"{name}.tsv.gz", "rt", errors="replace") as lines:
        rows = [line.split("\t", 4)[1:4] for line in list(lines)[1:]]
    return [(nanoseconds(epoch), int(length), int(captured)) for epoch, length, captured in rows]


def nanoseconds(epoch: str) -> int | None:
    if not epoch or epoch.startswith("-"):
        return None
    seconds, _, fraction = epoch.partition(".")
    ns = int(seconds) * SECOND + int(fraction.ljust(9, "0"))
    return ns if ns < 1 << 63 else ns - (1000 << 64)  # microseconds before 1970, which tshark shows as unsigned


# tshark takes the pseudo-header of this link type off both lengths; to us it is part of the packet.
PSEUDO_HEADERS = {"corrupt/tcpdump__atm-oam-heapoverflow.pcap"}
# tshark knows no such link type and shows nothing; frames are read whatever the link type.
UNKNOWN_TO_TSHARK = {"corrupt/tcpdump__frf16_magic_ie-oobr.pcap"}
READ_BEYOND_DAMAGE = {"corrupt/badlen__wikipedia_huge_caplen_midfile.pcap": 135}


@pytest.mark.skipif(not PCAPS.exists(), reason="the folder shared/pcaps is absent")
def test_every_shared_capture_gives_the_frames_that_tshark_reads() -> None:
    compared = 0
    for name in shared_captures():
        expected = tshark_frames(name)
        segments, _ = find_segments([str(PCAPS / name)])
        assert segments or not expected, name
        for segment in segments:
            got = [(int(f["ts"]), int(f["length"]), int(f["captured"])) for _, c in segment.chunks(1 << 16) for f in c]
            if name in PSEUDO_HEADERS | UNKNOWN_TO_TSHARK:
                assert len(got) == 1, name
                continue
            assert len(got) == READ_BEYOND_DAMAGE.get(name, len(expected)), name
            for number, (ours, theirs) in enumerate(zip(got, expected, strict=False), start=1):
                assert ours[1:] == theirs[1:] and theirs[0] in (ours[0], None), (name, number)
            compared += len(expected)
    assert compared > 50_000


@pytest.mark.skipif(not PCAPS.exists(), reason="the folder shared/pcaps is absent")
def test_only_damaged_shared_captures_are_problems() -> None:
    with (PCAPS / "oracle" / "SUMMARY.tsv").open() as rows:
        tshark_codes = {row[0]: int(row[2]) for row in (line.split("\t") for line in list(rows)[1:])}
    for name in shared_captures():
        segments, problems = find_segments([str(PCAPS / name)])
        for segment in segments:
            count(segment)
            problems += segment.problems
        unknown_link_type = name in UNKNOWN_TO_TSHARK
        nothing_decompressed = name == "corrupt/cut__wikipedia_zst.pcap.zst"  # tshark reads 0 frames and is content
        assert bool(problems) == ((tshark_codes[name] != 0 and not unknown_link_type) or nothing_decompressed), name


# --- compression -----------------------------------------------------------------------------------------------------

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zstd": zstandard.compress,
    "lz4": lz4.frame.compress,
    "xz": lzma.compress,
}
EACH_COMPRESSION = pytest.mark.parametrize("compression", COMPRESSORS)


def incompressible(packets: int = 300) -> bytes:
    rng = random.Random(1)
    packet = (struct.pack("<IIII", 1000 + i, 0, 100, 100) + rng.randbytes(100) for i in range(packets))
    return capture(packets=0) + b"".join(packet)


@EACH_COMPRESSION
def test_the_magic_tells_the_compression_not_the_name(tmp_path: Path, compression: str) -> None:
    plain = only(write(tmp_path / "plain.gz", capture()))
    packed = only(write(tmp_path / "packed.pcap", COMPRESSORS[compression](capture())))
    assert (plain.compression, packed.compression) == (None, compression)
    assert count(plain) == count(packed) == 3
    assert plain.content_hash == packed.content_hash == xxhash.xxh3_128_hexdigest(capture())
    assert plain.bytes_read == packed.bytes_read == len(capture())


@EACH_COMPRESSION
def test_members_and_frames_follow_each_other(tmp_path: Path, compression: str) -> None:
    content, compress = incompressible(), COMPRESSORS[compression]
    parts = [content[:10_000], content[10_000:10_001], content[10_001:]]
    segment = only(write(tmp_path / "a", b"".join(map(compress, parts))))
    assert count(segment) == 300
    assert segment.problems == []


def test_the_magic_of_a_member_may_lie_across_two_reads() -> None:
    def stream(first: int) -> bytes:
        return gzip.compress(random.Random(1).randbytes(first), mtime=0)

    first = next(n for n in range(4000, 4200) if (len(stream(n)) - 6) % 4096 == 4095)
    buffer = bytearray(10_000)
    content = ContentStream(io.BytesIO(stream(first) + gzip.compress(b"second")))
    assert buffer[: content.readinto(memoryview(buffer))].endswith(b"second")
    assert content.damage is None


def test_zeros_that_pad_a_gzip_are_no_damage(tmp_path: Path) -> None:
    segment = only(write(tmp_path / "a", gzip.compress(capture()) + bytes(10_000)))
    assert (count(segment), segment.problems) == (3, [])


@EACH_COMPRESSION
def test_garbage_after_the_compressed_data_is_said(tmp_path: Path, compression: str) -> None:
    segment = only(write(tmp_path / "a", COMPRESSORS[compression](capture()) + b"garbage"))
    assert count(segment) == 3
    assert f"something else follows the {compression} data" in segment.problems[0].message


@EACH_COMPRESSION
def test_a_cut_compressed_file_keeps_what_came_out(tmp_path: Path, compression: str) -> None:
    content = incompressible(3000)
    packed = COMPRESSORS[compression](content)
    segment = only(write(tmp_path / "a", packed[: len(packed) * 2 // 3]))
    frames = count(segment)
    assert segment.truncated and "cut short" in segment.problems[0].message
    assert segment.problems[0].offset == segment.bytes_read
    assert frames == (segment.bytes_read - 24) // 116 > 1000


def test_damaged_gzip_gives_every_byte_before_the_damage() -> None:
    content = incompressible()
    packed = bytearray(gzip.compress(content))
    packed[-8] ^= 0xFF  # the checksum at the end: all content came before
    buffer = bytearray(2 * len(content))
    stream = ContentStream(io.BytesIO(packed))
    assert buffer[: stream.readinto(memoryview(buffer))] == content
    assert stream.damage and "gzip data is damaged" in stream.damage


@EACH_COMPRESSION
def test_flipped_bytes_of_compressed_data_never_raise(tmp_path: Path, compression: str) -> None:
    rng = random.Random(7)
    packed = COMPRESSORS[compression](incompressible(50))
    for _ in range(100):
        damaged = bytearray(packed)
        damaged[rng.randrange(len(packed))] ^= rng.randrange(1, 256)
        for segment in find_segments([str(write(tmp_path / "a", bytes(damaged)))])[0]:
            assert count(segment, 1000) <= 50 or not segment.problems


def test_what_compression_is_not_read_is_no_capture(tmp_path: Path) -> None:
    _, problems = find_segments([str(write(tmp_path / "a.pcap.bz2", bz2.compress(capture())))])
    assert "not a capture (starts with 42 5a 68" in problems[0].message


# --- reading ---------------------------------------------------------------------------------------------------------


def test_a_segment_can_be_read_again(tmp_path: Path) -> None:
    segment = only(write(tmp_path / "a", capture() + b"cut"))
    assert [count(segment), count(segment)] == [3, 3]
    assert len(segment.problems) == len(segment.interfaces) == 1


def test_chunks_do_not_share_their_buffers(tmp_path: Path) -> None:
    chunks = list(only(write(tmp_path / "a", incompressible())).chunks(1000))
    assert len(chunks) > 10
    assert not any(np.shares_memory(a[0], b[0]) for a, b in itertools.pairwise(chunks))


def test_hash_content_is_the_hash_of_reading(tmp_path: Path) -> None:
    hashed, read = (only(write(tmp_path / "a", gzip.compress(incompressible()))) for _ in range(2))
    count(read)
    assert hashed.hash_content() == read.content_hash == xxhash.xxh3_128_hexdigest(incompressible())


def test_a_file_that_vanished_is_a_problem_when_it_is_read(tmp_path: Path) -> None:
    segment = only(path := write(tmp_path / "a", capture()))
    path.unlink()
    assert segment.hash_content() == ""
    assert (count(segment), "No such file" in segment.problems[0].message) == (0, True)


def test_standard_input_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(gzip.compress(capture()))))
    segment = only("-")
    assert (segment.name, segment.path, segment.first_ts, segment.compression) == ("-", "-", None, "gzip")
    assert segment.hash_content() == ""
    assert (count(segment), segment.problems) == (3, [])
    assert segment.content_hash == xxhash.xxh3_128_hexdigest(capture())


def test_a_pipe_is_read_as_it_comes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    threading.Thread(target=(tmp_path / "pipe").write_bytes, args=[capture()], daemon=True).start()
    assert count(only(tmp_path / "pipe")) == 3


# --- manifests and names ---------------------------------------------------------------------------------------------


def test_the_contract_path_names_the_node(tmp_path: Path) -> None:
    def node(path: str) -> str | None:
        return only(write(tmp_path / path, capture())).node

    start = "1704153600000000000"
    assert node(f"root/prod/node-7/20240102/{start}-000001.pcap") == "node-7"
    assert node(f"root/prod/007/20240102/{start}-000002.pcap.zst.part") == "007"
    assert node("root/prod/node-7/20240102/capture.pcap") is None
    assert node(f"root/prod/node-7/2024/{start}-000001.pcap") is None
    assert node(f"root/prod/node-7/20240102/{start}-000001.pcapng") is None


def test_what_has_no_manifest_is_unsealed_only_where_an_agent_wrote_it(tmp_path: Path) -> None:
    assert only(write(tmp_path / "1-1.pcap.part", capture())).unsealed
    assert not only(write(tmp_path / "1-1.pcap", capture())).unsealed
    assert only(write(tmp_path / "prod/node-7/20240102/1704153600000000000-000001.pcap", capture())).unsealed


def test_the_manifest_vouches_for_the_uncompressed_content(tmp_path: Path) -> None:
    def sha256_ok(name: str, sha256: str) -> bool | None:
        stem = f"{name}/prod/node-7/20240102/1704153600000000000-000001"
        manifest = Manifest("prod", "node-7", stem, 0, 0, 1, 0, 3, 100, sha256)
        write(tmp_path / f"{stem}.json", to_json(manifest))
        segment = only(write(tmp_path / f"{stem}.pcap.zst", zstandard.compress(capture())))
        count(segment)
        assert bool(segment.problems) == (segment.sha256_ok is False)
        return segment.sha256_ok

    assert sha256_ok("right", hashlib.sha256(capture()).hexdigest()) is True
    assert sha256_ok("wrong", "0" * 64) is False


def test_names_are_as_long_as_it_takes_to_be_unique(tmp_path: Path) -> None:
    for name in ("a/x/1.pcap", "b/x/1.pcap", "b/y/1.pcap", "b/y/2.pcap"):
        write(tmp_path / name, capture())
    segments, _ = find_segments([str(tmp_path)])
    assert [s.name for s in segments] == ["a/x/1.pcap", "b/x/1.pcap", "y/1.pcap", "2.pcap"]


def test_a_name_that_is_no_text_is_made_one(tmp_path: Path) -> None:
    segment = only(write(tmp_path / os.fsdecode(b"a\xff.pcap"), capture()))
    assert (segment.name, count(segment)) == ("a\\udcff.pcap", 3)


# --- finding ---------------------------------------------------------------------------------------------------------


def found(*inputs: Path | str) -> list[str]:
    return [segment.name for segment in find_segments([str(given) for given in inputs])[0]]


def test_segments_come_in_time_order_then_by_the_numbers_in_their_names(tmp_path: Path) -> None:
    times = {"part_10": 500, "part_2": 500, "z": 100, "a": 900, "empty_10": None, "empty_9": None}
    for name, first_s in times.items():
        content = capture(packets=0) if first_s is None else gzip.compress(capture(first_s))
        write(tmp_path / name, content)
    segments, _ = find_segments([str(tmp_path)])
    assert [s.name for s in segments] == ["z", "part_2", "part_10", "a", "empty_9", "empty_10"]
    assert [s.first_ts for s in segments[:2]] == [100 * SECOND, 500 * SECOND]


def test_a_folder_gives_what_may_be_a_capture_at_any_depth(tmp_path: Path) -> None:
    for name in ("1", "sub/2.pcap", "sub/sub/3.cap", "4.pcap.part"):
        write(tmp_path / name, capture())
    for name in ("a.json", "b.MD", "c.tsv.gz", ".hidden", ".git/object", "d.idx", "e.py"):
        write(tmp_path / name, b"no capture")
    os.mkfifo(tmp_path / "pipe")
    assert sorted(found(tmp_path)) == ["1", "2.pcap", "3.cap", "4.pcap.part"]
    assert find_segments([str(tmp_path)])[1] == []


def test_the_same_file_counts_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a", capture())
    (tmp_path / "link").symlink_to(path)
    assert found(path, path, tmp_path, tmp_path / "." / "a", tmp_path / "*") == ["a"]


def test_a_quoted_glob_is_expanded(tmp_path: Path) -> None:
    for name in ("a1", "a2", "b/a3"):
        write(tmp_path / name, capture())
    assert found(tmp_path / "a*") == ["a1", "a2"]
    assert found(tmp_path / "**" / "a3") == ["a3"]
    write(tmp_path / "c[1]", capture())
    assert found(tmp_path / "c[1]") == ["c[1]"]


@pytest.mark.parametrize("missing", ["nothing-here", "nothing-*"])
def test_an_input_that_does_not_exist_is_a_usage_error(tmp_path: Path, missing: str) -> None:
    with pytest.raises(UsageError, match=r"nothing-.*: no such file or folder"):
        find_segments([str(tmp_path / missing)])


def test_a_folder_without_captures_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "README.md", b"")
    with pytest.raises(PodtapError, match="no captures in this folder"):
        find_segments([str(tmp_path)])


def test_what_can_not_be_read_never_costs_the_rest(tmp_path: Path) -> None:
    write(tmp_path / "1-good", capture())
    write(tmp_path / "2-empty", b"")
    write(tmp_path / "3-text", b"hello world")
    write(tmp_path / "4-short", b"\xd4\xc3")
    (tmp_path / "5-dangling").symlink_to(tmp_path / "nowhere")
    write(tmp_path / "6-damaged", b"\x1f\x8b" + b"\xee" * 50)
    segments, problems = find_segments([str(tmp_path / "*")])
    assert [s.name for s in segments] == ["1-good"]
    expected = [
        "empty file",
        "not a capture (starts with 68 65 6c 6c, b'hell')",
        "not a capture (starts with d4 c3",
        "can't be read: No such file or directory",
        "the gzip data is damaged",
    ]
    assert len(problems) == len(expected)
    for problem, message in zip(problems, expected, strict=True):
        assert problem.message.startswith(message)


def test_a_folder_that_can_not_be_listed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "open" / "1", capture())
    write(tmp_path / "closed" / "2", capture())
    scandir = os.scandir

    def guarded(path: str) -> object:
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    segments, problems = find_segments([str(tmp_path)])
    assert [s.name for s in segments] == ["1"]
    assert [str(p) for p in problems] == [f"{tmp_path}/closed: can't be read: Permission denied"]


def test_a_damaged_segment_never_costs_the_next(tmp_path: Path) -> None:
    write(tmp_path / "1", capture(1000)[:-1])
    write(tmp_path / "2", capture(2000))
    segments, _ = find_segments([str(tmp_path)])
    assert [(count(s), s.truncated, len(s.problems)) for s in segments] == [(2, True, 1), (3, False, 0)]
