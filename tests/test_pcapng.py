"""pcapng: sections, interfaces, every kind of packet block, exact times, and what is left of damaged files."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import numba
import numpy as np
import pytest

from analysis.framing_kernels import ticks_to_ns
from analysis.segments import Segment, find_segments
from tests import naive_framing as naive

CHUNK_SIZES = (1, 100, 1 << 20)
IF_NAME, IF_TSRESOL, IF_TSOFFSET = 2, 9, 14
ISB_IFDROP, ISB_OSDROP = 5, 7
NANOSECONDS = b"\x09"


class Writer:
    """Builds a pcapng, block by block, in one byte order."""

    def __init__(self, order: str = "<") -> None:
        self.order = order
        self.content = b""

    def pack(self, layout: str, *values: int) -> bytes:
        return struct.pack(self.order + layout, *values)

    def options(self, options: dict[int, bytes]) -> bytes:
        if not options:
            return b""
        packed = [self.pack("HH", code, len(value)) + padded(value) for code, value in options.items()]
        return b"".join(packed) + bytes(4)

    def block(self, kind: int, body: bytes) -> Writer:
        body = padded(body)
        self.content += self.pack("II", kind, len(body) + 12) + body + self.pack("I", len(body) + 12)
        return self

    def section(self, major: int = 1) -> Writer:
        return self.block(0x0A0D0D0A, self.pack("IHHq", 0x1A2B3C4D, major, 0, -1))

    def interface(self, link_type: int = 1, snaplen: int = 0, **options: bytes) -> Writer:
        codes = {"name": IF_NAME, "resolution": IF_TSRESOL, "offset": IF_TSOFFSET, "unknown": 4000}
        packed = self.options({codes[name]: value for name, value in options.items()})
        return self.block(1, self.pack("HHI", link_type, 0, snaplen) + packed)

    def enhanced(
        self,
        interface: int,
        ticks: int,
        packet: bytes,
        length: int | None = None,
        options: dict[int, bytes] | None = None,
    ) -> Writer:
        wire = len(packet) if length is None else length
        head = self.pack("IIIII", interface, ticks >> 32, ticks & 0xFFFFFFFF, len(packet), wire)
        return self.block(6, head + padded(packet) + self.options(options or {}))

    def old(self, interface: int, drops: int, ticks: int, packet: bytes) -> Writer:
        head = self.pack("HHIIII", interface, drops, ticks >> 32, ticks & 0xFFFFFFFF, len(packet), len(packet))
        return self.block(2, head + packet)

    def simple(self, packet: bytes, length: int) -> Writer:
        return self.block(3, self.pack("I", length) + packet)

    def statistics(self, interface: int, options: dict[int, bytes]) -> Writer:
        return self.block(5, self.pack("III", interface, 0, 0) + self.options(options))


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def random_capture(seed: int, sections: int = 3, packets: int = 6) -> bytes:
    rng = random.Random(seed)
    content = b""
    for _ in range(sections):
        w = Writer(rng.choice("<>")).section()
        snaplens = [rng.choice((0, 40, 65_535)) for _ in range(rng.randrange(1, 4))]
        for snaplen in snaplens:
            options = {"unknown": b"abc"}
            if rng.random() < 0.7:
                options["resolution"] = bytes([rng.choice((0, 3, 6, 9, 10, 12, 18, 0x80, 0x94, 0xA2, 0xBF))])
            if rng.random() < 0.4:
                options["offset"] = w.pack("q", rng.randrange(-(10**9), 10**9))
            w.interface(rng.choice((1, 113)), snaplen, **options)
        for _ in range(packets):
            interface = rng.randrange(len(snaplens))
            packet = rng.randbytes(rng.choice((1, 6, 60)))
            ticks = rng.getrandbits(rng.choice((40, 51, 61, 64)))
            kind = rng.randrange(6)
            if kind == 0:
                w.old(interface, rng.choice((0, 0xFFFF)), ticks, packet)
            elif kind == 1:
                w.simple(packet[: snaplens[0] or None], len(packet))
            elif kind == 2:
                w.block(rng.choice((4, 10, 0xBAD, 0x80000001)), rng.randbytes(rng.randrange(30)))
            else:
                options = {4000: b"x", 2: w.pack("I", rng.getrandbits(32))} if kind == 3 else {}
                w.enhanced(interface, ticks, packet, len(packet) + kind, options)
        content += w.content
    return content


@pytest.fixture
def segment(tmp_path: Path) -> Segment:
    """A segment whose file can be rewritten, as long as it stays a pcapng."""
    path = tmp_path / "a.pcapng"
    path.write_bytes(Writer().section().content)
    return find_segments([str(path)])[0][0]


def rewritten(segment: Segment, content: bytes, chunk_bytes: int = 1 << 20) -> naive.Read:
    Path(segment.path).write_bytes(content)
    return naive.read(segment, chunk_bytes)


@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
def test_each_kind_of_packet_block_is_read(segment: Segment, order: str) -> None:
    w = Writer(order).section().interface(name=b"eth0", snaplen=3).interface(113, name=b"lo\0", resolution=NANOSECONDS)
    w.enhanced(0, 1_700_000_000_000_001, b"enhanced", 60, {2: w.pack("I", 2)}).simple(b"sim", 70)
    w.old(1, 0, 1_700_000_000_000_000_002, b"old!!")
    read = rewritten(segment, w.content)
    assert [f._replace(file_offset=0) for f in read.frames] == [
        naive.Frame(1_700_000_000_000_001_000, 0, b"enhanced", 60, 0, 2),
        naive.Frame(1_700_000_000_000_001_000, 0, b"sim", 70, 0, 0),
        naive.Frame(1_700_000_000_000_000_002, 0, b"old!!", 5, 1, 0),
    ]
    assert [(i.name, i.link_type, i.snaplen) for i in segment.interfaces] == [("eth0", 1, 3), ("lo", 113, 0)]
    assert segment.problems == []


@pytest.mark.kernel
@pytest.mark.parametrize("chunk_bytes", CHUNK_SIZES)
def test_scan_blocks_equals_its_naive_twin(segment: Segment, chunk_bytes: int) -> None:
    packets = 0
    for seed in range(40):
        content = random_capture(seed)
        read = rewritten(segment, content, chunk_bytes)
        assert read == naive.read_pcapng(content)
        assert segment.problems == []
        packets += len(read.frames)
    assert packets > 400


def test_sections_number_their_interfaces_anew_and_may_change_byte_order(segment: Segment) -> None:
    first = Writer("<").section().interface(name=b"a").interface(name=b"b").enhanced(1, 0, b"1")
    second = Writer(">").section().interface(name=b"c").enhanced(0, 0, b"2").enhanced(1, 0, b"3")
    read = rewritten(segment, first.content + second.content)
    assert [(f.packet, segment.interfaces[f.interface].name) for f in read.frames] == [(b"1", "b"), (b"2", "c")]
    assert ["interface 1" in p.message for p in segment.problems] == [True]


def test_many_interfaces_keep_their_own_clocks(segment: Segment) -> None:
    w = Writer().section()
    for exponent in range(30):
        w.interface(resolution=bytes([exponent % 10]))
    for number in range(30):
        w.enhanced(number, 3 * 10 ** (number % 10), b"a")
    assert {f.ts for f in rewritten(segment, w.content).frames} == {3_000_000_000}


@pytest.mark.kernel
def test_times_are_exact_in_every_resolution() -> None:
    @numba.njit  # type: ignore[untyped-decorator]
    def ns_of(high: int, low: int, per_second: np.uint64, offset_s: int) -> int:
        return int(ticks_to_ns(high, low, per_second, offset_s))

    rng = random.Random(3)
    for resolution in [*range(19), *range(0x80, 0x80 + 61)]:
        exponent = resolution & 0x7F
        per_second = np.uint64(2**exponent if resolution & 0x80 else 10**exponent)
        for _ in range(20):
            ticks = rng.getrandbits(rng.randrange(1, 65))
            offset_s = rng.choice((0, rng.randrange(-(2 << 33), 2 << 33), 1 << 60, -(1 << 60)))
            ns = ns_of(np.int64(ticks >> 32), np.int64(ticks & 0xFFFFFFFF), per_second, np.int64(offset_s))
            assert ns == naive.ticks_to_ns(ticks, resolution, offset_s), (resolution, ticks, offset_s)


@pytest.mark.parametrize(
    ("resolution", "offset_s", "ticks", "ns"),
    [
        (6, 0, 1_700_000_000_123_456, 1_700_000_000_123_456_000),
        (9, 0, 1_700_000_000_123_456_789, 1_700_000_000_123_456_789),
        (0, 0, 1_700_000_000, 1_700_000_000_000_000_000),
        (12, 1_700_000_000, 123_456_789_012, 1_700_000_000_123_456_789),
        (0x80 | 20, 0, 5 << 19, 2_500_000_000),
        (6, -10, 11_000_000, 1_000_000_000),
        (6, 0, 2**64 - 505_425_287, -505_425_287_000),
        (0, 0, 2**62, (1 << 62) - 1),
        (6, -(2**63), 0, 1 - (1 << 62)),
    ],
    ids=["us", "ns", "s", "ps and offset", "2^-20", "negative offset", "before 1970", "too late", "too early"],
)
def test_time_stamps_become_nanoseconds(segment: Segment, resolution: int, offset_s: int, ticks: int, ns: int) -> None:
    w = Writer().section().interface(resolution=bytes([resolution]), offset=struct.pack("<q", offset_s))
    assert [f.ts for f in rewritten(segment, w.enhanced(0, ticks, b"a").content).frames] == [ns]


def test_the_last_statistics_of_each_interface_count(segment: Segment) -> None:
    w = Writer(">").section().interface().interface().enhanced(0, 0, b"a", options={4: struct.pack(">Q", 99)})
    for interface, ifdrop, osdrop in [(0, 1, 10), (1, 2, 20), (0, 3, 30)]:
        w.statistics(interface, {ISB_IFDROP: w.pack("Q", ifdrop), ISB_OSDROP: w.pack("Q", osdrop)})
    w.statistics(1, {ISB_IFDROP: b"\xff" * 8, ISB_OSDROP: b"\xff" * 8}).statistics(7, {ISB_IFDROP: bytes(8)})
    rewritten(segment, w.content)
    assert (segment.drops_interface, segment.drops_kernel) == (3 + 2, 30 + 20)


@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
def test_drop_counts_of_packets_stand_in_for_missing_statistics(segment: Segment, order: str) -> None:
    w = Writer(order).section().interface()
    w.enhanced(0, 0, b"a", options={4: w.pack("Q", 5)}).old(0, 2, 0, b"b").old(0, 0xFFFF, 0, b"c")
    rewritten(segment, w.content)
    assert (segment.drops_interface, segment.drops_kernel) == (None, 7)


def test_a_capture_that_counts_no_drops_says_so(segment: Segment) -> None:
    rewritten(segment, Writer().section().interface().enhanced(0, 0, b"a").content)
    assert (segment.drops_interface, segment.drops_kernel) == (None, None)


@pytest.mark.kernel
@pytest.mark.parametrize("chunk_bytes", CHUNK_SIZES)
def test_a_file_cut_at_any_byte_keeps_its_whole_blocks(segment: Segment, chunk_bytes: int) -> None:
    content = random_capture(4, sections=2, packets=4)
    whole = naive.read_pcapng(content).frames
    for end in range(4, len(content)):
        read = rewritten(segment, content[:end], chunk_bytes)
        assert read == naive.read_pcapng(content[:end])
        assert read.frames == whole[: len(read.frames)]
        assert read.damages == []


@pytest.mark.kernel
def test_flipped_bytes_never_raise_and_cost_nothing_before_them(segment: Segment) -> None:
    rng = random.Random(5)
    for seed in range(60):
        content = bytearray(random_capture(seed))
        whole = naive.read_pcapng(bytes(content)).frames
        flipped = sorted(rng.randrange(28, len(content)) for _ in range(rng.choice((1, 3))))
        for at in flipped:
            content[at] ^= rng.randrange(1, 256)
        reads = [rewritten(segment, bytes(content), chunk_bytes) for chunk_bytes in CHUNK_SIZES]
        borders = [f.file_offset for f in whole[1:]] + [len(content)]
        untouched = [f for f, border in zip(whole, borders, strict=True) if border <= flipped[0]]
        assert reads[0].frames[: len(untouched)] == untouched
        assert reads[1:] == reads[:1] * 2


@pytest.mark.kernel
def test_find_block_equals_its_naive_twin(segment: Segment) -> None:
    rng = random.Random(6)
    for seed in range(40):
        content = random_capture(seed)
        at = rng.choice(naive.read_pcapng(content).frames).file_offset
        damaged = content[:at] + rng.randbytes(rng.randrange(12, 200)) + content[at:]
        expected = naive.read_pcapng(damaged)
        assert len(expected.damages) > 0
        assert [rewritten(segment, damaged, size) for size in CHUNK_SIZES] == [expected] * len(CHUNK_SIZES)


def test_a_damaged_block_costs_that_block_only(segment: Segment) -> None:
    before = Writer().section().interface().enhanced(0, 1, b"first").content
    bad = Writer().enhanced(0, 2, b"second").content
    after = Writer().enhanced(0, 3, b"third").content
    for at in (7, len(bad) - 1):  # either of its two lengths
        damaged = bytearray(bad)
        damaged[at] ^= 0xFF
        read = rewritten(segment, before + damaged + after)
        assert [f.packet for f in read.frames] == [b"first", b"third"]
        assert read.damages == [len(before)]
        assert f"skipped {len(bad)} bytes" in segment.problems[0].message


def test_a_packet_longer_than_its_block_is_skipped(segment: Segment) -> None:
    w = Writer().section().interface()
    at = len(w.content)
    w.block(6, w.pack("IIIII", 0, 0, 0, 5, 5) + b"abcd").block(6, b"").enhanced(0, 0, b"good")
    read = rewritten(segment, w.content)
    assert ([f.packet for f in read.frames], read.damages) == ([b"good"], [at, at + 36])


def test_a_simple_packet_without_any_interface_is_a_problem(segment: Segment) -> None:
    read = rewritten(segment, Writer().section().simple(b"abcd", 4).content)
    assert (read.frames, read.damages) == ([], [28])


def test_a_short_interface_description_keeps_the_numbers_right(segment: Segment) -> None:
    w = Writer().section().block(1, b"\1\0\0\0").interface(113, name=b"second").enhanced(1, 0, b"a")
    read = rewritten(segment, w.content)
    assert [segment.interfaces[f.interface].name for f in read.frames] == ["second"]
    assert read.damages == [28]


def test_another_version_is_said_not_guessed(segment: Segment) -> None:
    content = Writer().section(major=2).interface().enhanced(0, 0, b"a").content
    assert rewritten(segment, content).frames == []
    assert "version 2.0 is not supported" in str(segment.problems[0])
    assert segment.bytes_read == len(content)
