"""Classic pcap: every header there is, read the same in chunks of any size, and what is left of damaged files."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from analysis.segments import Segment, find_segments
from tests import naive_framing as naive

NANOSECONDS = 0xA1B23C4D
MICROSECONDS = 0xA1B2C3D4
KUZNETZOV = 0xA1B2CD34
CHUNK_SIZES = (1, 100, 1 << 20)


def file_header(
    order: str = "<", magic: int = MICROSECONDS, minor: int = 4, snaplen: int = 262_144, link_type: int = 1
) -> bytes:
    return struct.pack(order + "IHHiIII", magic, 2, minor, 0, 0, snaplen, link_type)


def record(
    seconds: int, fraction: int, packet: bytes, length: int | None = None, order: str = "<", tail: bytes = b""
) -> bytes:
    wire = len(packet) if length is None else length
    return struct.pack(order + "IIII", seconds, fraction, len(packet), wire) + tail + packet


def random_capture(seed: int, order: str = "<", magic: int = MICROSECONDS, packets: int = 12) -> bytes:
    rng = random.Random(seed)
    content = file_header(order, magic)
    for number in range(packets):
        packet = rng.randbytes(rng.choice((1, 5, 60, 200)))
        tail = struct.pack(order + "IHBx", 3, 0x800, rng.randrange(5)) if magic == KUZNETZOV else b""
        fraction = rng.randrange(10**9 if magic == NANOSECONDS else 10**6)
        content += record(1_700_000_000 + number, fraction, packet, len(packet) + rng.randrange(3), order, tail)
    return content


@pytest.fixture
def segment(tmp_path: Path) -> Segment:
    """A segment whose file can be rewritten, as long as it stays a pcap."""
    path = tmp_path / "a.pcap"
    path.write_bytes(file_header())
    return find_segments([str(path)])[0][0]


def rewritten(segment: Segment, content: bytes, chunk_bytes: int = 1 << 20) -> naive.Read:
    Path(segment.path).write_bytes(content)
    return naive.read(segment, chunk_bytes)


def test_each_field_of_a_record_is_where_the_format_says(segment: Segment) -> None:
    read = rewritten(segment, file_header() + record(1_700_000_001, 999_999, b"abcd", length=60))
    assert read.frames == [naive.Frame(1_700_000_001_999_999_000, 24, b"abcd", 60)]
    assert [(i.name, i.link_type, i.snaplen) for i in segment.interfaces] == [(None, 1, 262_144)]
    assert segment.problems == [] and not segment.truncated


@pytest.mark.kernel
@pytest.mark.parametrize("chunk_bytes", CHUNK_SIZES)
@pytest.mark.parametrize("magic", [MICROSECONDS, NANOSECONDS, KUZNETZOV], ids=hex)
@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
def test_scan_records_equals_its_naive_twin(segment: Segment, order: str, magic: int, chunk_bytes: int) -> None:
    for seed in range(5):
        content = random_capture(seed, order, magic)
        read = rewritten(segment, content, chunk_bytes)
        assert len(read.frames) == 12
        assert read == naive.read_pcap(content)


def test_the_kuznetzov_header_tells_the_direction(segment: Segment) -> None:
    host, outgoing = (struct.pack("<IHBx", 1, 0x800, packet_type) for packet_type in (0, 4))
    content = file_header(magic=KUZNETZOV) + record(1, 0, b"a", tail=host) + record(2, 0, b"b", tail=outgoing)
    assert [(f.packet, f.direction) for f in rewritten(segment, content).frames] == [(b"a", 1), (b"b", 2)]


def test_a_file_of_headers_only_has_no_packets_and_no_problem(segment: Segment) -> None:
    assert rewritten(segment, file_header()) == naive.Read([], [], None)
    assert segment.problems == []


@pytest.mark.kernel
@pytest.mark.parametrize("chunk_bytes", CHUNK_SIZES)
def test_a_file_cut_at_any_byte_keeps_its_whole_records(segment: Segment, chunk_bytes: int) -> None:
    content = random_capture(1, packets=4)
    whole = naive.read_pcap(content).frames
    borders = [24, *(f.file_offset + 16 + len(f.packet) for f in whole)]
    for end in range(4, len(content)):
        read = rewritten(segment, content[:end], chunk_bytes)
        assert read.frames == whole[: sum(border <= end for border in borders[1:])]
        assert (read.cut_at is None) == (end in borders)
        assert len(segment.problems) == (end not in borders)
        assert segment.bytes_read == end


@pytest.mark.kernel
def test_flipped_bytes_never_raise_and_cost_nothing_before_them(segment: Segment) -> None:
    rng = random.Random(2)
    for seed in range(60):
        content = bytearray(random_capture(seed, packets=8))
        whole = naive.read_pcap(bytes(content)).frames
        flipped = sorted(rng.randrange(24, len(content)) for _ in range(rng.choice((1, 3))))
        for at in flipped:
            content[at] ^= rng.randrange(1, 256)
        reads = [rewritten(segment, bytes(content), chunk_bytes) for chunk_bytes in CHUNK_SIZES]
        untouched = [f for f in whole if f.file_offset + 16 + len(f.packet) <= flipped[0]]
        assert reads[0].frames[: len(untouched)] == untouched
        assert reads == [naive.read_pcap(bytes(content))] * len(CHUNK_SIZES)


def test_an_absurd_length_costs_one_packet_only(segment: Segment) -> None:
    content = bytearray(random_capture(3))
    frames = naive.read_pcap(bytes(content)).frames
    content[frames[5].file_offset + 8 : frames[5].file_offset + 12] = b"\xff\xff\xff\x7f"
    for chunk_bytes in CHUNK_SIZES:
        read = rewritten(segment, bytes(content), chunk_bytes)
        assert read.frames == frames[:5] + frames[6:]
        assert read.damages == [frames[5].file_offset]
        skipped = frames[6].file_offset - frames[5].file_offset
        assert f"skipped {skipped} bytes" in segment.problems[0].message


def test_garbage_at_the_end_is_said_and_is_no_packet(segment: Segment) -> None:
    content = random_capture(4)
    read = rewritten(segment, content + b"\xee" * 768)
    assert read == naive.Read(naive.read_pcap(content).frames, [len(content)], None)
    assert "nothing readable follows" in segment.problems[0].message


def test_records_of_another_day_are_no_continuation(segment: Segment) -> None:
    """A capture may carry another one, in a download: only this one's own records are taken up again."""
    bad = struct.pack("<IIII", 0, 0, 0x7FFFFFFF, 0)
    inner = b"".join(record(1_600_000_000 + i, 0, b"inner") for i in range(5))
    outer = b"".join(record(1_700_000_000 + i, 0, b"outer") for i in range(5))
    read = rewritten(segment, file_header() + outer + bad + inner + outer)
    assert [f.packet for f in read.frames] == [b"outer"] * 10


def test_a_packet_as_long_as_a_large_snaplen_is_read_in_small_chunks(segment: Segment) -> None:
    packet = bytes(500_000)  # BIG TCP
    content = file_header(snaplen=524_288) + record(1, 0, packet) + record(2, 0, b"a")
    assert [len(f.packet) for f in rewritten(segment, content, 1000).frames] == [500_000, 1]
    assert segment.problems == []


def test_a_packet_longer_than_any_snaplen_is_damage(segment: Segment) -> None:
    read = rewritten(segment, file_header(snaplen=65_535) + record(1, 0, bytes(262_145)))
    assert (read.frames, read.damages) == ([], [24])


@pytest.mark.parametrize(
    ("field", "link_type", "problems"), [(0x5400_0001, 1, 0), (0x0030_0071, 0x71, 1)], ids=["FCS length", "reserved"]
)
def test_the_high_bits_of_the_link_type_are_not_the_link_type(
    segment: Segment, field: int, link_type: int, problems: int
) -> None:
    read = rewritten(segment, file_header(link_type=field) + record(1, 0, b"a"))
    assert len(read.frames) == 1
    assert segment.interfaces[0].link_type == link_type
    assert [p.offset for p in segment.problems] == [20] * problems


def test_old_files_may_have_both_lengths_in_the_other_order(segment: Segment) -> None:
    swapped = struct.pack("<IIII", 1, 0, 60, 4) + b"abcd"
    read = rewritten(segment, file_header(minor=2) + swapped)
    assert [(f.packet, f.length) for f in read.frames] == [(b"abcd", 60)]


def test_another_version_is_said_not_guessed(segment: Segment) -> None:
    content = bytearray(random_capture(5))
    content[4:6] = b"\1\0"
    assert rewritten(segment, bytes(content)).frames == []
    assert "version 1.4 is not supported" in str(segment.problems[0])
    assert segment.bytes_read == len(content)


def test_many_damages_are_counted_not_listed(segment: Segment) -> None:
    good = b"".join(record(1000 + i, 0, b"abcd") for i in range(3))
    bad = struct.pack("<IIII", 0, 0, 0x7FFFFFFF, 0)
    rewritten(segment, file_header() + (good + bad) * 50 + good)
    assert len(segment.problems) == 21
    assert "30 more" in segment.problems[-1].message
