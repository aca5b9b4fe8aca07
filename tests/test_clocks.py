"""Clocks that are apart: what is told of the incident stays the same, and the offsets are those that were put in."""

from __future__ import annotations

import gzip
import json
import re
import struct
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.clocks import clock_offsets, crossings_of
from analysis.lake_reader import Lake, open_lake
from analysis.paths import SEEN
from analysis.pipeline import analyze

INCIDENT = Path(__file__).resolve().parents[1] / "sample_pcaps" / "incident"
SECOND = 1_000_000_000
BETTER_THAN_NS = 50_000
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
REUSED = ("cart-cqhfrn4nzn-b6gjr", "report-7rn6z8v462-z2lfx")
"""The second had the address of the first a tenth of a second after it was killed."""


def shifted(capture: bytes, offset_ns: int, drift_ppb: int) -> tuple[bytes, int]:
    """A pcap as a clock would have stamped it that is so far ahead and gains so much; and when it began."""
    (begin,) = (s * SECOND + ns for s, ns in [struct.unpack_from("<II", capture, 24)])
    parts, at = [capture[:24]], 24
    while at < len(capture):
        seconds, nanoseconds, length = struct.unpack_from("<III", capture, at)
        time = seconds * SECOND + nanoseconds
        time += offset_ns + (time - begin) * drift_ppb // SECOND
        parts.append(struct.pack("<II", *divmod(time, SECOND)) + capture[at + 8 : at + 16 + length])
        at += 16 + length
    return b"".join(parts), begin


def as_the_kubelet_tells(folder: Path, seconds: int) -> Path:
    """The metadata, if the clock of node-b is ahead by so much: what happened to its pods is told by it."""
    folder.mkdir()
    for path in (INCIDENT / "metadata").iterdir():
        dump = json.loads(path.read_text())
        for item in dump["items"]:
            if item["kind"] == "Pod" and item["spec"].get("nodeName") == "node-b":
                item["status"] = later(item["status"], seconds)
        (folder / path.name).write_text(json.dumps(dump))
    return folder


def later(value: Any, seconds: int) -> Any:
    if isinstance(value, dict):
        return {key: later(each, seconds) for key, each in value.items()}
    if isinstance(value, list):
        return [later(each, seconds) for each in value]
    if isinstance(value, str) and TIME.fullmatch(value):
        return (datetime.fromisoformat(value) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return value


def told(folder: Path, offset_ns: int, drift_ppb: int, metadata: Path | None = None) -> tuple[Lake, int]:
    """A lake of both nodes, where node-b's clock is apart, and when node-b's capture began."""
    (folder / "node-a.pcap").write_bytes(gzip.decompress((INCIDENT / "node-a.pcap.gz").read_bytes()))
    moved, begin = shifted(gzip.decompress((INCIDENT / "node-b.pcap.gz").read_bytes()), offset_ns, drift_ppb)
    (folder / "node-b.pcap").write_bytes(moved)
    captures = [str(folder / "node-a.pcap"), str(folder / "node-b.pcap")]
    analyze(captures, folder / "lake", metadata=[str(metadata or INCIDENT / "metadata")])
    return open_lake(folder / "lake"), begin


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return told(tmp_path_factory.mktemp("right"), 0, 0)[0]


def rows(lake: Lake, report: str, *columns: str, **asked: str) -> list[Any]:
    table = lake.report(report, **asked)[list(columns)]
    return sorted(table.itertuples(index=False, name=None), key=str)


def owners(lake: Lake) -> list[Any]:
    """Every connection, and who its sides were; its own times are those of a clock."""
    sides = [f"{side}_{what}" for side in ("orig", "resp", "backend") for what in ("ip", "port", "identity", "pod")]
    table = lake.sql(f"SELECT protocol, {', '.join(sides)} FROM connections ORDER BY first_seen").fillna("")
    return sorted(table.itertuples(index=False, name=None), key=lambda row: (*row[:3], *row[5:7], *row[9:11]))


def named_flows(lake: Lake) -> list[Any]:
    """Every flow at each point, and the pods at its ends: None where that is ambiguous."""
    keys = "node, interface, encapsulation, protocol, orig_ip, orig_port, resp_ip, resp_port"
    table = lake.sql(
        f"""SELECT {keys}, row_number() OVER (PARTITION BY {keys} ORDER BY first_seen) AS nth,
            CASE WHEN orig_identity <> 'ambiguous' THEN coalesce(orig_pod, '') END AS orig,
            CASE WHEN resp_identity <> 'ambiguous' THEN coalesce(resp_pod, '') END AS resp FROM flows"""
    )
    return [
        (row[:-2], row[-2:])
        for row in table.astype(object).where(table.notna(), None).itertuples(index=False, name=None)
    ]


@pytest.mark.parametrize(
    ("offset_ns", "drift_ppb"), [(5_000_000, 0), (2 * SECOND, 0), (-2 * SECOND, 40_000), (300_000_000, -100_000)]
)
def test_clocks_that_are_apart_change_nothing(offset_ns: int, drift_ppb: int, tmp_path: Path, right: Lake) -> None:
    lake, begin = told(tmp_path, offset_ns, drift_ppb)
    clocks: Any = lake.sql("FROM clocks").to_dict("records")
    assert clocks
    for clock in clocks:
        middle = (clock["start"].value + clock["end"].value) // 2
        truth = offset_ns + (middle - offset_ns - begin) * drift_ppb // SECOND
        assert abs(clock["offset_ns"] - truth) < BETTER_THAN_NS
    is_close = abs(offset_ns) < SECOND  # else what a kubelet tells in whole seconds may be ambiguous
    for report, by, columns in (
        ("paths", ["from", "to"], ["connections", "lost_packets", "lost_tcp_segments"]),
        (
            "flows",
            ["orig", "resp"],
            ["connections", "failed", "orig_bytes", "resp_bytes", "retransmitted_tcp_segments"],
        ),
        ("dns", ["client"], ["queries", "unanswered", "retries", "nxdomain"]),
    ):
        if is_close or report == "paths":
            assert rows(lake, report, *by, *columns) == rows(right, report, *by, *columns), report
        sums = [each.report(report).groupby(by[0])[columns].sum() for each in (lake, right)]
        found, known = (
            each[[not str(key).endswith((*REUSED, "(ambiguous)")) for key in each.index]].to_dict() for each in sums
        )
        assert found == known, report
    assert wrong_owners(lake, right) == []
    assert owners(lake) == owners(right) or not is_close
    for pod in REUSED:
        found, known = (sum(lake.report("flows", pod=pod)["connections"]) for lake in (lake, right))
        assert 0 < found <= known
        assert found == known or not is_close
    truth = dict(named_flows(right))
    assert wrong_names(named_flows(lake), truth) == []
    unnamed = sum(None in pods for _, pods in named_flows(lake)) - sum(None in pods for pods in truth.values())
    assert unnamed < 0.05 * len(truth)


def wrong_owners(lake: Lake, right: Lake) -> list[Any]:
    """Of connections; ambiguous ones are few, and not wrong."""
    truth = owners(right)
    found = owners(lake)
    assert [row[:3] for row in found] == [row[:3] for row in truth]
    named = [sum(side in ("pod", "service") for side in row[3::4]) for row in found]
    assert sum(named) > 0.95 * sum(sum(side in ("pod", "service") for side in row[3::4]) for row in truth)
    return [
        (one, other)
        for one, other in zip(found, truth, strict=True)
        for at in (3, 7, 11)
        if one[at] != "ambiguous" and one[at : at + 2] != other[at : at + 2] and other[at] != "ambiguous"
    ]


def wrong_names(flows: list[Any], truth: dict[Any, Any]) -> list[Any]:
    """Of flows as named_flows() has them; where the truth itself is not known, any name may be right."""
    return [
        (key, pods)
        for key, pods in flows
        if not all(one in (other, None) or other is None for one, other in zip(pods, truth[key], strict=True))
    ]


@pytest.mark.parametrize("seconds", [2, -2])
def test_what_a_kubelet_tells_by_a_clock_that_is_apart_makes_no_name_wrong(
    seconds: int, tmp_path: Path, right: Lake
) -> None:
    """node-b's pods came and went by node-b's clock, whoever else sees their packets."""
    lake, _ = told(tmp_path, seconds * SECOND, 0, as_the_kubelet_tells(tmp_path / "metadata", seconds))
    truth = dict(named_flows(right))
    flows = named_flows(lake)
    assert wrong_names(flows, truth) == []
    unnamed = sum(None in pods for _, pods in flows) - sum(None in pods for pods in truth.values())
    assert unnamed < 0.05 * len(truth)
    assert wrong_owners(lake, right) == []


@pytest.mark.parametrize("offset_ns", [0, -55_000])
def test_an_offset_is_that_of_the_wire_though_clocks_make_the_points_of_two_nodes_alternate(offset_ns: int) -> None:
    """Ten microseconds within a node, fifty on the wire, either way."""
    node = np.array([0, 0, 1, 1])
    seen = np.zeros(4 * 200, SEEN)
    for packet in range(200):
        way = packet % 2
        rows = seen[4 * packet : 4 * packet + 4]
        rows["packet"], rows["key"], rows["way"] = packet, packet, way
        rows["flow"] = [0, 1, 2, 3] if way else [3, 2, 1, 0]
        rows["ts"] = packet * SECOND // 20 + np.array([0, 10_000, 60_000, 70_000]) + offset_ns * node[rows["flow"]]
        rows[:] = rows[np.argsort(rows["ts"])]
    (offset,) = clock_offsets([crossings_of(seen, node)])
    assert (offset.node, offset.bound_ns) == (1, 50_000)
    assert abs(offset.offset_ns - offset_ns) <= 10
