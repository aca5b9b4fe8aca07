"""What is pinned and what goes: decisions, without a disk."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.contract import Freeze, stem
from capture.errors import UsageError
from capture.retention import Limits, StoredSegment, covers, evictions, on_disk, overwritten_in_ns, pin

KIB = 1024
LIMITS = Limits(quota_bytes=1000 * KIB, frozen_quota_bytes=100 * KIB, segment_bytes=10 * KIB)


def segment(at: int, disk_bytes: int = 10 * KIB, pinned: bool = False, refused: bool = False) -> StoredSegment:
    """Number `at` has packets of [10 at, 10 at + 9] and was sealed at 10 at + 10."""
    return StoredSegment(
        stem=stem(10 * at, at),
        manifest_sha256=str(at),
        previous_sha256=str(at - 1),
        sha256="",
        since_ns=10 * at,
        until_ns=10 * at + 9,
        packets=1,
        size_bytes=disk_bytes,
        disk_bytes=disk_bytes,
        sealed_boot_ns=10 * at + 10,
        pinned=pinned,
        refused=refused,
    )


def going(
    segments: list[StoredSegment], limits: Limits = LIMITS, other: int = 0, now: int = 0
) -> list[tuple[int, str]]:
    return [(int(each.manifest_sha256), reason) for each, reason in evictions(segments, other, limits, now)]


# --- Evictions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "other_bytes", "expected"),
    [
        (100, 0, []),
        (101, 0, [0]),
        (100, 1, [0]),
        (100, 25 * KIB, [0, 1, 2]),
        (10, 1000 * KIB, list(range(10))),
        (10, 1000 * KIB + 1, []),
        (0, 2000 * KIB, []),
    ],
    ids=["full", "one too many", "a byte too much", "room for two and a half", "room for all", "never", "nothing left"],
)
def test_the_oldest_go_until_all_fits(count: int, other_bytes: int, expected: list[int]) -> None:
    assert going([segment(at) for at in range(count)], other=other_bytes) == [(at, "quota") for at in expected]


def test_what_is_pinned_neither_goes_nor_counts() -> None:
    segments = [segment(at, pinned=at in (0, 2)) for at in range(103)]
    assert going(segments) == [(1, "quota")]


def test_what_could_not_be_pinned_says_so_when_it_goes() -> None:
    assert going([segment(at, refused=at == 0) for at in range(102)]) == [(0, "frozen_quota"), (1, "quota")]


def test_age_is_counted_from_when_it_was_sealed() -> None:
    limits = replace(LIMITS, max_age_ns=100)
    segments = [segment(at, pinned=at == 1) for at in range(5)]
    assert going(segments, limits, now=110) == []
    assert going(segments, limits, now=111) == [(0, "age")]
    assert going(segments, limits, now=10_000) == [(0, "age"), (2, "age"), (3, "age"), (4, "age")]


def test_there_are_never_more_than_so_many() -> None:
    assert going([segment(at) for at in range(5)], replace(LIMITS, segments=3)) == [(0, "quota"), (1, "quota")]


SEGMENTS = st.lists(st.tuples(st.integers(1, 300 * KIB), st.booleans()), max_size=30)


@given(SEGMENTS, st.integers(0, 1200 * KIB), st.integers(1, 20))
def test_no_more_goes_than_has_to(sizes: list[tuple[int, bool]], other_bytes: int, most: int) -> None:
    limits = replace(LIMITS, segments=most)
    segments = [segment(at, size, pinned) for at, (size, pinned) in enumerate(sizes)]
    loose = [each for each in segments if not each.pinned]
    gone = [each for each, _ in evictions(segments, other_bytes, limits, 0)]

    def fits(kept: list[StoredSegment]) -> bool:
        total = other_bytes + sum(each.disk_bytes for each in kept)
        return len(kept) <= most and (total <= limits.quota_bytes or other_bytes > limits.quota_bytes)

    assert gone == loose[: len(gone)]
    assert fits(loose[len(gone) :])
    assert not gone or not fits(loose[len(gone) - 1 :])


# --- Pins ------------------------------------------------------------------------------------------------------------


def freeze(since_ns: int, until_ns: int, created_ns: int = 0) -> Freeze:
    return Freeze(f"{created_ns}", since_ns, until_ns, created_ns=created_ns)


def pinned(segments: list[StoredSegment]) -> list[int]:
    return [int(each.manifest_sha256) for each in segments if each.pinned]


@pytest.mark.parametrize(
    ("since_ns", "until_ns", "is_covered"),
    [(0, 20, False), (0, 21, True), (25, 26, True), (29, 30, True), (30, 40, False), (0, 100, True)],
)
def test_a_window_is_half_open(since_ns: int, until_ns: int, is_covered: bool) -> None:
    assert covers(freeze(since_ns, until_ns), segment(2)) is is_covered


def test_each_freeze_pins_from_its_oldest_on_until_the_quota_is_full() -> None:
    segments = [segment(at, 40 * KIB) for at in range(6)]
    pin(segments, [freeze(0, 20, created_ns=2), freeze(30, 60, created_ns=1)], LIMITS.frozen_quota_bytes)
    assert pinned(segments) == [3, 4]
    assert [int(each.manifest_sha256) for each in segments if each.refused] == [0, 1, 5]


def test_what_is_pinned_stays_so_until_no_freeze_covers_it() -> None:
    segments = [segment(at, 40 * KIB) for at in range(4)]
    pin(segments, [freeze(20, 40, created_ns=5)], LIMITS.frozen_quota_bytes)
    assert pinned(segments) == [2, 3]
    pin(segments, [freeze(20, 40, created_ns=5), freeze(0, 20, created_ns=1)], LIMITS.frozen_quota_bytes)
    assert pinned(segments) == [2, 3]
    pin(segments, [freeze(20, 40)], 0)
    assert pinned(segments) == [2, 3], "a smaller quota takes nothing back"
    pin(segments, [freeze(0, 20, created_ns=1)], LIMITS.frozen_quota_bytes)
    assert pinned(segments) == [0, 1]
    pin(segments, [], LIMITS.frozen_quota_bytes)
    assert pinned(segments) == []
    assert not any(each.refused for each in segments)


WINDOWS = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300), st.integers(0, 5)), max_size=5)


@given(SEGMENTS, WINDOWS, WINDOWS, st.integers(0, 1000 * KIB))
def test_pins_keep_to_the_quota_and_are_never_lost(
    sizes: list[tuple[int, bool]],
    first: list[tuple[int, int, int]],
    then: list[tuple[int, int, int]],
    quota_bytes: int,
) -> None:
    segments = [segment(at, size) for at, (size, _) in enumerate(sizes)]
    freezes = [freeze(*each) for each in first]
    pin(segments, freezes, quota_bytes)
    before = set(pinned(segments))
    pin(segments, freezes + [freeze(*each) for each in then], quota_bytes)
    assert before <= set(pinned(segments))
    assert sum(each.disk_bytes for each in segments if each.pinned) <= quota_bytes
    for each in segments:
        is_covered = any(covers(one, each) for one in freezes + [freeze(*window) for window in then])
        assert (each.pinned or each.refused) == is_covered
        assert not (each.pinned and each.refused)


# --- Limits and rates ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(quota_bytes=64 << 20), "too small for segments of 67,108,864"),
        (Limits(quota_bytes=1000, segment_bytes=100), "give 1,048,576 at least"),
        (Limits(frozen_quota_bytes=-1), "negative"),
        (Limits(max_age_ns=0), "negative"),
        (Limits(segments=0), "no size or number"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits: Limits, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        limits.check()


def test_the_defaults_make_sense() -> None:
    Limits().check()
    Limits(frozen_quota_bytes=0).check()


@pytest.mark.parametrize(("size", "blocks"), [(0, 0), (1, 1), (4096, 1), (4097, 2)])
def test_files_take_whole_blocks(size: int, blocks: int) -> None:
    assert on_disk(size) == blocks * 4096


def test_the_oldest_goes_when_the_rest_of_the_quota_is_used_up_at_the_present_rate() -> None:
    segments = [segment(at) for at in range(40)]
    # 10 KiB each 10 ns; 1000 - 400 - 100 KiB are left.
    assert overwritten_in_ns(segments, 100 * KIB, LIMITS, 400) == 500
    assert overwritten_in_ns(segments, 800 * KIB, LIMITS, 400) == 0
    assert overwritten_in_ns(segments, 0, replace(LIMITS, max_age_ns=450), 400) == 60
    assert overwritten_in_ns(segments[:1], 0, LIMITS, 400) is None
    assert overwritten_in_ns([], 0, LIMITS, 400) is None
    assert overwritten_in_ns([segment(0, pinned=True), segment(1, pinned=True)], 0, LIMITS, 400) is None
