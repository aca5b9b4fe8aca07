"""The samples tell the truth, and the tables say the same.

Expected values come from the generators, which know what they sent and why, and from tshark's recorded answers
(sample_pcaps/wireshark.tsv). Metadata come from the cast list that the generators share.
"""

from __future__ import annotations

import csv
import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.dataset as ds
import pytest

from analysis.pipeline import analyze

FOLDER = Path(__file__).resolve().parents[1] / "sample_pcaps"
SAMPLES = sorted(path.name for path in FOLDER.glob("*.pcap*") if path.suffix != ".py")
RETRANSMIT_FIELDS = ("sender", "kind", "seq", "length", "tcp_segments")
"""`evidence` and the original are compared on their own: a story names only some of it."""


Rows = list[dict[str, Any]]


@cache
def module(file: str) -> ModuleType:
    """A generator; its name is no Python name, and it imports its neighbours."""
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location(f"sample_{file.replace('.', '_')}", FOLDER / file)
        assert spec is not None and spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
    finally:
        sys.path.remove(str(FOLDER))
    return loaded


def truth(sample: str, table: str) -> Rows:
    return module(f"{sample}.py").TRUTH[table]


def rows_of(lake: Path, table: str) -> Rows:
    """A table's rows, or none if nothing of it was written; times as nanoseconds."""
    files = sorted((lake / table).rglob("*.parquet"))
    if not files:
        return []
    data = ds.dataset(files).to_table()
    for index, field in enumerate(data.schema):
        if str(field.type).startswith("timestamp"):
            data = data.set_column(index, field.name, data.column(index).cast("int64"))
    return data.to_pylist()


@pytest.fixture(scope="session")
def lakes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each sample analysed on its own."""
    folder = tmp_path_factory.mktemp("samples")
    for sample in SAMPLES:
        analyze([str(FOLDER / sample)], folder / sample, metadata=[str(FOLDER / "metadata")], jobs=1)
    return {sample: folder / sample for sample in SAMPLES}


# --- the samples themselves -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_generator_reproduces_its_capture_byte_for_byte(sample: str, tmp_path: Path) -> None:
    module(f"{sample}.py").STORY.capture.write(tmp_path / sample)
    assert (tmp_path / sample).read_bytes() == (FOLDER / sample).read_bytes()


def test_the_generator_reproduces_the_metadata() -> None:
    made = module("metadata.py").files()
    assert made == {path.name: path.read_text() for path in (FOLDER / "metadata").glob("*.json")}


def test_captures_follow_each_other_in_time_and_are_small() -> None:
    stories = [module(f"{sample}.py").STORY.capture.packets() for sample in SAMPLES]
    spans = sorted((packets[0][0], packets[-1][0]) for packets in stories)
    assert all(end < begin for (_, end), (begin, _) in zip(spans, spans[1:], strict=False))
    assert sum((FOLDER / sample).stat().st_size for sample in SAMPLES) < 1_000_000


# --- what the tables say ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", SAMPLES)
def test_every_frame_is_a_packet_at_its_time(sample: str, lakes: dict[str, Path]) -> None:
    expected = [(ts, len(frame)) for ts, frame in module(f"{sample}.py").STORY.capture.packets()]
    packets = sorted(rows_of(lakes[sample], "packets"), key=lambda row: row["frame_number"])
    assert [(row["ts"], row["length"]) for row in packets] == expected
    assert [row["frame_number"] for row in packets if row["malformed"]] == []


def flow_key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What tells the flows of a sample apart, whatever podtap calls an interface without a name."""
    ends = tuple(row[name] for name in ("protocol", "orig_ip", "orig_port", "resp_ip", "resp_port"))
    return (*ends, row["interface"])


@pytest.mark.parametrize("sample", SAMPLES)
def test_flows_are_those_of_the_story(sample: str, lakes: dict[str, Path]) -> None:
    expected = {flow_key(flow): flow for flow in truth(sample, "flows")}
    found = {
        flow_key(row): {name: row[name] for name in expected.get(flow_key(row), {})}
        for row in rows_of(lakes[sample], "flows")
    }
    assert found == expected


@pytest.mark.parametrize("sample", SAMPLES)
def test_retransmissions_have_the_cause_that_the_story_gave_them(sample: str, lakes: dict[str, Path]) -> None:
    rows = [row for row in rows_of(lakes[sample], "retransmits") if row["kind"]]
    found = {row["frame_number"]: {name: row[name] for name in RETRANSMIT_FIELDS} for row in rows}
    expected = {
        row["frame_number"]: {name: row[name] for name in RETRANSMIT_FIELDS} for row in truth(sample, "retransmits")
    }
    assert found == expected


@pytest.mark.parametrize("sample", SAMPLES)
def test_retransmissions_know_their_original_and_their_evidence(sample: str, lakes: dict[str, Path]) -> None:
    found = {row["frame_number"]: row for row in rows_of(lakes[sample], "retransmits")}
    for expected in truth(sample, "retransmits"):
        row = found[expected["frame_number"]]
        assert set(expected["evidence"]) <= set((row["evidence"] or "").split("+")), expected
        if "attempt" in expected:
            names = ("ts", "original_frame", "original_ts", "delay_ns", "attempt")
            assert {name: row[name] for name in names} == {name: expected[name] for name in names}


@pytest.mark.parametrize("sample", SAMPLES)
def test_wireshark_kind_is_what_tshark_says_of_each_observation_point(sample: str, lakes: dict[str, Path]) -> None:
    with (FOLDER / "wireshark.tsv").open() as file:
        recorded = [row for row in csv.DictReader(file, delimiter="\t") if row["sample"] == sample]
    expected = {int(row["frame_number"]): row["wireshark_kind"] for row in recorded}
    rows = rows_of(lakes[sample], "retransmits")
    assert {row["frame_number"]: row["wireshark_kind"] for row in rows if row["wireshark_kind"]} == expected


@pytest.mark.parametrize("sample", SAMPLES)
def test_dns_transactions_are_those_of_the_story(sample: str, lakes: dict[str, Path]) -> None:
    expected = truth(sample, "dns")
    found = [{name: row[name] for name in expected[0]} for row in rows_of(lakes[sample], "dns")] if expected else []

    def order(row: dict[str, Any]) -> tuple[Any, ...]:
        return (row["query_frame"] or row["response_frame"], row["trans_id"])

    assert sorted(found, key=order) == sorted(expected, key=order)
    assert len(rows_of(lakes[sample], "dns")) == len(expected)
