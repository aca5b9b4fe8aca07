"""Files of the journal: readable while they are written, whole after a crash, and never more than they may be."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.contract import Freeze, JournalRecord, from_json
from capture.errors import PodtapError
from capture.freezes import add_freeze, thaw
from capture.journal_files import JournalFile, JournalFiles, surplus
from tests.journals import read

NOW = 1_772_373_780 * 10**9


def records(count: int, first: int = 0) -> list[JournalRecord]:
    return [
        JournalRecord(
            "added", NOW + number, "Pod", f"uid-{number}", str(number), {"metadata": {"name": f"{number:x}" * 9}}
        )
        for number in range(first, first + count)
    ]


def test_what_was_flushed_can_be_read_and_the_name_says_that_it_is_not_ended(tmp_path: Path) -> None:
    part = JournalFiles(tmp_path, "journal-0").open(NOW)
    assert part.path.relative_to(tmp_path).as_posix() == (
        "_journal/journal-0/20260301/1772373780000000000-000001.jsonl.part"
    )
    part.write(records(3))
    part.flush(NOW)
    part.write(records(3, 3))
    assert [each["uid"] for each in read(part.path)] == ["uid-0", "uid-1", "uid-2"]
    part.flush(NOW + 5)
    assert len(read(part.path)) == 6
    assert part.path.stat().st_mtime_ns == NOW + 5
    part.abandon()


def test_a_sealed_file_is_read_by_others(tmp_path: Path) -> None:
    part = JournalFiles(tmp_path, "journal-0").open(NOW)
    part.write(records(1000))
    sealed = part.seal(NOW + 7)
    assert sealed.name == "1772373780000000000-000001.jsonl.zst"
    assert not part.path.exists()
    lines = subprocess.run(["zstd", "-dc", str(sealed)], capture_output=True, check=True).stdout.splitlines()
    assert [from_json(JournalRecord, line) for line in lines] == records(1000)
    assert sealed.stat().st_mtime_ns == NOW + 7


def test_numbers_count_up_over_restarts(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        files = JournalFiles(tmp_path, "journal-0")
        part = files.open(NOW + number)
        assert f"-00000{number}." in part.path.name
        part.write(records(1))
        part.seal(NOW)
        files.close()


def test_two_processes_do_not_share_a_name(tmp_path: Path) -> None:
    files = JournalFiles(tmp_path, "journal-0")
    with pytest.raises(PodtapError, match=r"another podtap journal writes .*journal-0; give another --name"):
        JournalFiles(tmp_path, "journal-0")
    JournalFiles(tmp_path, "journal-1")
    files.close()
    JournalFiles(tmp_path, "journal-0")


def test_a_name_from_outside_stays_inside(tmp_path: Path) -> None:
    folder = JournalFiles(tmp_path / "root", "../../etc").folder
    assert folder.parent == tmp_path / "root" / "_journal"


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_part_that_was_cut_anywhere_is_made_whole(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("cut")
    files = JournalFiles(root, "journal-0")
    part = files.open(NOW)
    part.write(records(data.draw(st.integers(0, 20))))
    part.flush(NOW)
    part.abandon()
    size = data.draw(st.integers(0, part.path.stat().st_size))
    os.truncate(part.path, size)
    os.utime(part.path, ns=(NOW, NOW))
    whole = part.path.read_bytes().count(b"\n")
    made = files.salvage()
    assert [path.suffix for path in files.folder.glob("*/*")] == [".zst"] * len(made)
    kept = [each["uid"] for path in made for each in read(path)]
    assert kept == [f"uid-{number}" for number in range(whole)]
    assert all(path.stat().st_mtime_ns == NOW for path in made)
    assert files.salvage() == []
    files.close()


def test_a_part_without_a_whole_line_goes(tmp_path: Path) -> None:
    files = JournalFiles(tmp_path, "journal-0")
    part = files.open(NOW)
    part.abandon()
    part.path.write_bytes(b'{"type":"listed"')
    assert files.salvage() == []
    assert list(files.folder.glob("*/*")) == []


def test_a_crash_while_a_file_is_sealed_loses_nothing(tmp_path: Path) -> None:
    files = JournalFiles(tmp_path, "journal-0")
    part = files.open(NOW)
    part.write(records(5))
    part.flush(NOW)
    part.abandon()
    begun = part.path.with_name(f".{part.path.name}.sealing")
    begun.write_bytes(b"half a file")
    [made] = files.salvage()
    assert len(read(made)) == 5
    assert list(files.folder.glob("*/.*")) == []


def test_old_files_go_and_their_empty_days_with_them(tmp_path: Path) -> None:
    files = JournalFiles(tmp_path, "journal-0")
    day = 86_400 * 10**9
    for number in range(4):
        part = files.open(NOW + number * day)
        part.write(records(10))
        part.seal(NOW)
    size = files.sealed()[0].size_bytes
    assert len(files.retain(NOW + 4 * day, quota_bytes=3 * size, max_age_ns=None)) == 1
    assert [path.name for path in sorted(files.folder.iterdir())] == ["20260302", "20260303", "20260304"]
    assert len(files.retain(NOW + 4 * day, quota_bytes=1 << 30, max_age_ns=int(1.5 * day))) == 1
    assert len(files.retain(NOW + 4 * day, quota_bytes=0, max_age_ns=0)) == 1
    assert len(files.sealed()) == 1


def test_files_that_tell_of_a_frozen_window_stay_until_it_is_thawed(tmp_path: Path) -> None:
    """The third began after the window did, which ends before the fourth begins."""
    files = JournalFiles(tmp_path, "journal-0")
    for number in range(6):
        part = files.open(NOW + number * 100)
        part.write(records(10))
        part.seal(NOW)
    size = files.sealed()[0].size_bytes
    freeze = add_freeze(files.folder, NOW + 150, NOW + 300)

    def kept() -> list[int]:
        return [(file.start_ns - NOW) // 100 for file in files.sealed()]

    files.retain(NOW + 10**9, quota_bytes=2 * size + 9, max_age_ns=1)
    assert kept() == [1, 2, 5]
    assert files.known_until_ns() == NOW
    thaw(files.folder, freeze.id)
    files.retain(NOW + 10**9, quota_bytes=1 << 30, max_age_ns=1)
    assert kept() == [5]


def test_of_frozen_files_no_more_stay_than_the_quota_once_more() -> None:
    known = [JournalFile(Path(f"{start}"), start, 10) for start in range(6)]
    gone = surplus(known, 60, 20, None, [Freeze("f", 0, 100)])
    assert [file.start_ns for file in gone] == [2, 3], "0 and 1 are frozen, 4 and 5 within the quota"


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), min_size=1, max_size=12, unique_by=lambda each: each[0]),
    st.integers(0, 40),
    st.none() | st.integers(0, 60),
)
def test_retention_keeps_the_newest_within_the_limits(
    files: list[tuple[int, int]], quota: int, max_age: int | None
) -> None:
    known = [JournalFile(Path(f"{start:02}"), start, size) for start, size in files]
    gone = surplus(known, 60, quota, max_age)
    kept = sorted((file for file in known if file not in gone), key=lambda file: file.start_ns)
    assert kept
    assert all(file.start_ns < kept[0].start_ns for file in gone)
    assert len(kept) == 1 or sum(file.size_bytes for file in kept) <= quota
    if max_age is not None and len(kept) > 1:
        assert kept[1].start_ns >= 60 - max_age
    for last in gone[-1:]:  # it had to go
        with_it = [last, *kept]
        assert sum(file.size_bytes for file in with_it) > quota or (
            max_age is not None and with_it[1].start_ns < 60 - max_age
        )
