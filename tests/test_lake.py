"""The lake on disk: what is committed is there, all of it and once, whatever happens in between."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from analysis import lake, pipeline
from analysis.schemas import TABLES, TIME
from podtap import main
from tests.tables import Analysed, analysed, assert_same_tables, stored

SAMPLES = Path(__file__).resolve().parents[1] / "sample_pcaps"
DNS, IPV6 = str(SAMPLES / "dns.pcap"), str(SAMPLES / "ipv6.pcap")


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_same_input_twice_changes_nothing(tmp_path: Path) -> None:
    pipeline.analyze([DNS], tmp_path)
    before = files(tmp_path)
    renamed = tmp_path.parent / "another-name.pcap"
    shutil.copy(DNS, renamed)
    assert pipeline.analyze([DNS], tmp_path).unchanged
    assert pipeline.analyze([str(renamed)], tmp_path).unchanged
    assert files(tmp_path) == before


def test_the_same_bytes_from_a_pipe_twice_change_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "podtap", "analyze", "-", "--lake", str(tmp_path)]
    for _ in range(2):
        subprocess.run(command, input=Path(DNS).read_bytes(), cwd=SAMPLES.parent, check=True)
    assert_same_tables(Analysed(stored(tmp_path), []), analysed(DNS))


@pytest.mark.parametrize("size", ["1m", "2m", "3m"])
def test_a_full_disk_is_said_and_the_same_command_goes_on(size: str, tmp_path: Path) -> None:
    """Of 4 MB, the facts take less than 3, so that what is derived from them is also what does not fit."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["analyze", str(SAMPLES / "incident"), "--lake", str(disk / "lake")]
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(disk)], check=True)
    try:
        full = CliRunner().invoke(main, command)
        assert (full.exit_code, "make room, or choose another --lake" in full.stderr) == (1, True), full.stderr
        assert not (disk / "lake" / lake.WIP).exists()
        subprocess.run(["mount", "-o", "remount,size=30m", str(disk)], check=True)
        again = CliRunner().invoke(main, command)
        assert again.exit_code == 0, again.stderr
        assert_same_tables(Analysed(stored(disk / "lake"), []), analysed(SAMPLES / "incident"))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_another_input_adds_to_the_lake(tmp_path: Path) -> None:
    pipeline.analyze([DNS], tmp_path)
    assert not pipeline.analyze([IPV6], tmp_path).unchanged
    assert len(stored(tmp_path)["packets"]) == len(analysed(DNS).tables["packets"]) + len(
        analysed(IPV6).tables["packets"]
    )


def test_input_with_more_behind_it_is_analysed_together(tmp_path: Path) -> None:
    pipeline.analyze([DNS], tmp_path)
    pipeline.analyze([DNS, IPV6], tmp_path)
    assert_same_tables(Analysed(stored(tmp_path), []), analysed(DNS, IPV6))
    assert len([record for record in lake.read_records(tmp_path) if not record.derived_from]) == 1


def test_a_row_group_holds_its_own_words_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline.analyze([DNS], tmp_path / "one")
    (file,) = (tmp_path / "one" / "dns").rglob("*.parquet")
    rows = pq.ParquetFile(file).read()
    monkeypatch.setattr(lake, "ROW_GROUP_ROWS", 2)
    batch = lake.Batch(tmp_path / "several", "x")
    batch.add("dns", rows)
    batch.commit()
    (file,) = (tmp_path / "several" / "dns").rglob("*.parquet")
    several = pq.ParquetFile(file)
    assert several.num_row_groups == len(rows) // 2 > 2
    assert several.read().to_pylist() == rows.to_pylist()
    for group in range(several.num_row_groups):
        assert len(several.read_row_group(group)["flow_uid"].chunk(0).dictionary) <= 2


def test_so_does_each_day_of_rows_that_come_together(tmp_path: Path) -> None:
    pipeline.analyze([DNS], tmp_path / "one")
    (file,) = (tmp_path / "one" / "dns").rglob("*.parquet")
    rows, time = pq.ParquetFile(file).read(), TABLES["dns"].time
    later = rows[time].cast(pa.int64()).to_pylist()
    moved = pa.array([ts + (number % 2) * 86_400 * 10**9 for number, ts in enumerate(later)], pa.int64())
    batch = lake.Batch(tmp_path / "several", "x")
    batch.add("dns", rows.set_column(rows.schema.get_field_index(time), rows.schema.field(time), moved.cast(TIME)))
    batch.commit()
    days = [pq.ParquetFile(each).read() for each in (tmp_path / "several" / "dns").rglob("*.parquet")]
    assert [len(day) for day in days] == [len(rows) // 2] * 2
    assert all(len(day["flow_uid"].chunk(0).dictionary) <= len(day) for day in days)


def test_a_commit_that_was_interrupted_is_whole_for_readers_and_finished_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(root: Path, record: lake.Record) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(lake, "_move_into_place", stop)
        patched.setattr(lake.Batch, "discard", lambda batch: None)  # as if the machine had stopped
        pipeline.analyze([DNS], tmp_path)
    assert not (tmp_path / "flows").exists()
    assert_same_tables(Analysed(stored(tmp_path), []), analysed(DNS))
    lake.settle(tmp_path)
    assert not (tmp_path / lake.WIP).exists()
    assert len(pd.read_parquet(tmp_path / "packets")) == len(analysed(DNS).tables["packets"])


def test_an_analysis_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(pipeline, "segments_table", fail)
    with pytest.raises(RuntimeError):
        pipeline.analyze([DNS], tmp_path / "lake")
    assert files(tmp_path / "lake") == {}


def test_a_node_called_007_is_no_number_to_pandas(tmp_path: Path) -> None:
    segment = tmp_path / "prod" / "007" / "20260314" / "1773496920000000000-000001.pcap"
    segment.parent.mkdir(parents=True)
    shutil.copy(DNS, segment)
    pipeline.analyze([str(tmp_path / "prod")], tmp_path / "lake")
    assert set(pd.read_parquet(tmp_path / "lake" / "flows")["node"]) == {"007"}


@pytest.mark.parametrize(
    ("names", "begin_ns", "nodes"),
    [
        (("node-a", "node-b"), 400_000_000, {"node-a", "node-b"}),
        (("node-a", "node-b"), 499_000_000, {"node-a", "node-b"}),
        (("dump-1", "dump-2"), 400_000_000, {"dump-1", "dump-2"}),
        (("dump-1", "dump-2"), 499_000_000, {"unknown"}),  # rotated by a tcpdump whose packets are not in order
    ],
)
def test_a_node_that_was_quiet_until_the_end_of_the_others_capture_is_a_node_of_its_own(
    tmp_path: Path, names: tuple[str, str], begin_ns: int, nodes: set[str]
) -> None:
    """The first capture ends at half a second."""
    content = Path(DNS).read_bytes()
    (length,) = struct.unpack_from("<I", content, 24 + 8)
    header, record = content[:24], content[24 : 24 + 16 + length]

    def capture(*nanoseconds: int) -> bytes:
        return header + b"".join(struct.pack("<II", 1_773_496_920, each) + record[8:] for each in nanoseconds)

    one, other = (tmp_path / f"{name}.pcap" for name in names)
    one.write_bytes(capture(0, 500_000_000))
    other.write_bytes(capture(begin_ns, 510_000_000))
    pipeline.analyze([str(one), str(other)], tmp_path / "lake")
    assert {str(node) for node in pd.read_parquet(tmp_path / "lake" / "segments")["node"]} == nodes


@pytest.mark.parametrize("names", [("node-a", "node-b"), ("007", "008")])
def test_captures_of_the_same_moments_are_of_two_nodes_named_after_the_files(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    """However short: the same packets a microsecond apart."""
    content = Path(DNS).read_bytes()[: 24 + 2000]
    seconds, fraction = struct.unpack_from("<II", content, 24)
    (tmp_path / f"{names[0]}.pcap").write_bytes(content)
    (tmp_path / f"{names[1]}.pcap").write_bytes(content[:24] + struct.pack("<II", seconds, fraction + 1) + content[32:])
    pipeline.analyze([str(tmp_path / f"{name}.pcap") for name in names], tmp_path / "lake")
    for table in ("packets", "flows", "segments"):
        rows = pd.read_parquet(tmp_path / "lake" / table)
        assert {str(node) for node in rows["node"]} == set(names), table
