"""Clocks that are apart: what is told of the incident stays the same, and the offsets are those that were put in."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import pytest

from analysis.lake_reader import Lake, open_lake
from analysis.pipeline import analyze

INCIDENT = Path(__file__).resolve().parents[1] / "sample_pcaps" / "incident"
SECOND = 1_000_000_000
BETTER_THAN_NS = 50_000
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


def told(folder: Path, offset_ns: int, drift_ppb: int) -> tuple[Lake, int]:
    """A lake of both nodes, where node-b's clock is apart, and when node-b's capture began."""
    (folder / "node-a.pcap").write_bytes(gzip.decompress((INCIDENT / "node-a.pcap.gz").read_bytes()))
    moved, begin = shifted(gzip.decompress((INCIDENT / "node-b.pcap.gz").read_bytes()), offset_ns, drift_ppb)
    (folder / "node-b.pcap").write_bytes(moved)
    captures = [str(folder / "node-a.pcap"), str(folder / "node-b.pcap")]
    analyze(captures, folder / "lake", metadata=[str(INCIDENT / "metadata")])
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
    table = lake.sql(f"SELECT protocol, {', '.join(sides)} FROM connections")
    return sorted(table.itertuples(index=False, name=None), key=str)


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
    for report, columns in {
        "paths": ("from", "to", "connections", "lost_packets", "lost_tcp_segments"),
        "flows": ("orig", "resp", "connections", "failed", "orig_bytes", "resp_bytes", "retransmitted_tcp_segments"),
        "dns": ("client", "queries", "unanswered", "retries", "nxdomain"),
    }.items():
        assert rows(lake, report, *columns) == rows(right, report, *columns), report
    assert owners(lake) == owners(right)
    for pod in REUSED:
        assert rows(lake, "flows", "orig", "resp", "connections", pod=pod) == rows(
            right, "flows", "orig", "resp", "connections", pod=pod
        )
    truth = dict(named_flows(right))
    wrong = [
        (key, pods)
        for key, pods in named_flows(lake)
        if not all(one in (other, None) for one, other in zip(pods, truth[key], strict=True))
    ]
    assert wrong == []
    unnamed = sum(None in pods for _, pods in named_flows(lake)) - sum(None in pods for pods in truth.values())
    assert unnamed < 0.05 * len(truth)
