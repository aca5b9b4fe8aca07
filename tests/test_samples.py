"""The samples tell the truth, and the tables say the same.

Expected values come from the generators, which know what they sent and why, and from tshark's recorded answers
(sample_pcaps/wireshark.tsv). Metadata come from the cast list that the generators share.
"""

from __future__ import annotations

import csv
import importlib.util
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.dataset as ds
import pytest

from analysis.pipeline import analyze
from tests.tables import analysed, analysed_once, assert_same_tables
from tests.test_oracle_borders import records, write_parts

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
        sys.modules[spec.name] = loaded  # where dataclasses look for their module
        spec.loader.exec_module(loaded)
    finally:
        sys.path.remove(str(FOLDER))
    return loaded


def truth(sample: str, table: str) -> Rows:
    rows: Rows = module(f"{sample}.py").TRUTH[table]
    return rows


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


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All samples in one lake."""
    lake = tmp_path_factory.mktemp("whole")
    analyze([str(FOLDER / sample) for sample in SAMPLES], lake, metadata=[str(FOLDER / "metadata")])
    return lake


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
    assert all(end < begin for (_, end), (begin, _) in pairwise(spans))
    assert sum((FOLDER / sample).stat().st_size for sample in SAMPLES) < 1_000_000


# --- what the tables say ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", SAMPLES)
def test_every_frame_is_the_packet_that_was_sent(sample: str, lakes: dict[str, Path]) -> None:
    packets = sorted(rows_of(lakes[sample], "packets"), key=lambda row: row["frame_number"])
    expected = truth(sample, "packets")
    assert [{name: row[name] for name in known} for row, known in zip(packets, expected, strict=True)] == expected
    assert [row["frame_number"] for row in packets if row["malformed"] or row["is_copy"]] == []


def flow_key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What tells the flows of a sample apart, whatever podtap calls an interface without a name."""
    ends = tuple(row[name] for name in ("protocol", "orig_ip", "orig_port", "resp_ip", "resp_port"))
    return (*ends, row["interface"])


@pytest.mark.parametrize("sample", SAMPLES)
def test_flows_are_those_of_the_story(sample: str, lakes: dict[str, Path]) -> None:
    expected = {flow_key(flow): flow for flow in truth(sample, "flows")}
    rows = rows_of(lakes[sample], "flows")
    found = {flow_key(row): {name: row[name] for name in expected.get(flow_key(row), {})} for row in rows}
    assert found == expected
    assert len(rows) == len(expected)


@pytest.mark.parametrize(
    ("sample", "orig_port", "history"),
    [
        pytest.param("vxlan_overlay.pcap", 42003, "ShADadFf", id="request and response"),
        pytest.param("ipv6.pcap", 46002, "ShADaTFf", id="upload with a retransmission"),
        pytest.param(
            "tcp_retransmissions.pcap", 40008, "ShADdtFf", id="retransmission by resp, which never only acknowledged"
        ),
        pytest.param("tcp_retransmissions.pcap", 40013, "ShADawFf", id="zero window"),
        pytest.param("tcp_retransmissions.pcap", 40015, "ShADaGFf", id="gap of the capture"),
        pytest.param("several_interfaces.pcapng", 44002, "ShADadR", id="reset by orig"),
        pytest.param("several_interfaces.pcapng", 44003, "Sr", id="refused"),
        pytest.param("service_dnat.pcapng", 43004, "S", id="SYNs without an answer"),
        pytest.param("dns.pcap", 41001, "Dd", id="UDP"),
        pytest.param("dns.pcap", 41061, "^d", id="UDP response only: its direction is told by the port"),
    ],
)
def test_history_is_what_zeek_would_write(sample: str, orig_port: int, history: str, lakes: dict[str, Path]) -> None:
    flows = [row for row in rows_of(lakes[sample], "flows") if row["orig_port"] == orig_port]
    assert {row["history"] for row in flows} == {history}


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


# --- names, files, and all samples together ---------------------------------------------------------------------------


def cast(ip: str, port: int | None) -> dict[str, str | None]:
    """Who has this address in the story."""
    shop = module("_shop.py")
    blank = dict.fromkeys(("namespace", "pod", "workload", "workload_kind", "service", "node"))
    pods = {address: pod for pod in shop.PODS if pod.phase == "Running" for address in (pod.ip, pod.ip6)}
    services = {address: one for one in shop.SERVICES for address in (one.ip, one.ip6, one.load_balancer)}
    services |= {(shop.NODE_1.ip, one.node_port): one for one in shop.SERVICES if one.node_port}
    service = services.get(ip) or services.get((ip, port))
    pod = pods.get(ip)
    if service:
        return {**blank, "identity": "service", "namespace": service.namespace, "service": service.name}
    if pod and (not pod.host_network or pod.port == port):
        kind, workload = pod.workload
        named = {"namespace": pod.namespace, "pod": pod.name, "workload": workload, "workload_kind": kind}
        return {**blank, "identity": "pod", **named, "node": pod.node}
    if ip in (shop.NODE_1.ip, "10.244.1.1"):
        return {**blank, "identity": "node", "node": shop.NODE_1.name}
    return {**blank, "identity": "nobody of the cluster"}


@pytest.mark.parametrize("sample", SAMPLES)
def test_both_sides_of_a_flow_are_named_after_the_cast(sample: str, lakes: dict[str, Path]) -> None:
    for row in rows_of(lakes[sample], "flows"):
        for side in ("orig", "resp"):
            expected = cast(row[f"{side}_ip"], row[f"{side}_port"])
            found = {name: row[f"{side}_{name}"] for name in expected}
            if found["identity"] in ("external", "unknown"):  # an address near the cluster may belong to it
                found["identity"] = "nobody of the cluster"
            assert found == expected, row[f"{side}_ip"]


def test_a_finished_pod_does_not_own_the_address_that_it_had(lakes: dict[str, Path]) -> None:
    shop = module("_shop.py")
    assert shop.REPORT.ip == shop.CART.ip
    flows = rows_of(lakes["tcp_retransmissions.pcap"], "flows")
    assert {row["resp_pod"] for row in flows if row["resp_ip"] == shop.CART.ip} == {shop.CART.name}


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_file_is_accounted_for(sample: str, lakes: dict[str, Path]) -> None:
    capture = module(f"{sample}.py").STORY.capture
    [row] = rows_of(lakes[sample], "segments")
    drops = [[getattr(one, name) for one in capture.interfaces] for name in ("dropped_kernel", "dropped_interface")]
    assert [row["drops_kernel"], row["drops_interface"]] == [None if None in one else sum(one) for one in drops]
    frames = [frame for _, frame in capture.packets()]
    assert (row["packets"], row["cut_packets"]) == (len(frames), sum(len(f) > capture.snaplen for f in frames))
    assert (row["bytes"], row["problems"], row["truncated"]) == ((FOLDER / sample).stat().st_size, None, False)


@pytest.mark.parametrize("table", ["flows", "flow_minutes", "retransmits", "dns", "packets"])
def test_all_samples_together_say_what_each_says_alone(table: str, lakes: dict[str, Path], whole: Path) -> None:
    alone = [row for lake in lakes.values() for row in rows_of(lake, table)]
    assert sorted(map(repr, rows_of(whole, table))) == sorted(map(repr, alone))


def test_fragments_find_their_first_one_in_any_file(tmp_path: Path) -> None:
    sample = FOLDER / "fragments.pcap"
    write_parts(tmp_path, sample, list(range(1, len(records(sample)[1]))))
    assert_same_tables(analysed(tmp_path), analysed_once(sample))
