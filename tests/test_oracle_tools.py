"""Flows against the answers that Zeek, nDPI and Arkime ship with their own captures."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import oracle
from tests.tables import analysed_once

pytestmark = oracle.needs_captures

ZEEK_COLUMNS = {
    "conn_state": "conn_state", "history": "history", "missed_bytes": "missed_bytes",
    "orig_bytes": "orig_bytes", "orig_pkts": "orig_packets", "orig_ip_bytes": "orig_ip_bytes",
    "resp_bytes": "resp_bytes", "resp_pkts": "resp_packets", "resp_ip_bytes": "resp_ip_bytes",
}  # fmt: skip

FILTERED = {"core.pcap.dynamic-filter", "core.pcap.read-trace-with-filter", "core.print-bpf-filters"}
"""These of Zeek's tests read a part of the capture only."""
NOT_FOLLOWED = {
    "l2/zeek__pbb.pcap": "802.1ah",
    "l2/zeek__vntag.pcap": "802.1BR",
    "tunnels/zeek__Teredo.pcap": "Teredo",
    "tunnels/zeek__gtp7_ipv6.pcap": "GTP",
}
OTHER_PORTS = {"sctp/zeek__sctp.pcap": "Zeek knows no SCTP and gives it no ports"}
TUNNEL_PORTS = {"4789", "6081"}
ANALYZER_LIMIT = {"tunnels/zeek__vxlan.pcap": "X: Zeek gave up the flow's analyzers when its tunnel changed"}


def answers(tool: str, ending: str) -> Iterator[tuple[str, Path]]:
    for capture, paths in oracle.expected().items():
        for path in paths:
            if path.is_relative_to(oracle.CAPTURES / "expected" / tool) and path.name.endswith(ending):
                yield capture, path


def zeek_logs() -> list[Any]:
    """Zeek's conn.log of whole captures, with all columns."""
    logs = []
    for capture, path in answers("zeek", "--conn.log"):
        rows = list(oracle.zeek_rows(path))
        if not rows or not ZEEK_COLUMNS.keys() <= rows[0].keys():
            continue
        if path.name.removesuffix("--conn.log") in FILTERED or capture in NOT_FOLLOWED or capture in OTHER_PORTS:
            continue
        if capture not in ZEEK_DIFFERS:
            logs.append(pytest.param(capture, rows, id=path.name))
    return logs


ZEEK_DIFFERS = {"l2/zeek__q-in-q.pcap": "one datagram from two routers, which counts once here"}


def without_outer_tunnels(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Zeek logs the UDP flow that carries a tunnel too; here every packet belongs to its innermost flow."""
    return [row for row in rows if row["id.resp_p"] not in TUNNEL_PORTS]


def as_in_zeek(flow: dict[str, Any], row: dict[str, str]) -> dict[str, str]:
    """Our values of the columns that this row of conn.log has a value for."""
    named = {column: flow[ours] for column, ours in ZEEK_COLUMNS.items()}
    return {
        column: "-" if value == "" else str(value)
        for column, value in named.items()
        if row[column] != "-" or column == "history"
    }


@pytest.mark.parametrize(("capture", "rows"), zeek_logs())
def test_flows_are_the_connections_of_zeek(capture: str, rows: list[dict[str, str]]) -> None:
    flows: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for flow in sorted(analysed_once(oracle.CAPTURES / capture).rows("flows"), key=lambda flow: flow["first_seen"]):
        ends = (flow["orig_ip"], str(flow["orig_port"] or 0), flow["resp_ip"], str(flow["resp_port"] or 0))
        flows.setdefault(ends, []).append(flow)
    for row in without_outer_tunnels(rows):
        ends = (row["id.orig_h"], row["id.orig_p"], row["id.resp_h"], row["id.resp_p"])
        assert flows.get(ends), f"{ends} is missing"
        if capture in ANALYZER_LIMIT:
            row["history"] = row["history"].replace("X", "-")
        ours = as_in_zeek(flows[ends].pop(0), row)
        assert ours == {column: row[column] for column in ours}, ends
    assert not [ends for ends, left in flows.items() if left and ends[3] not in TUNNEL_PORTS]


NDPI_FLOW = re.compile(
    r"^\s+\d+\s+(?P<protocol>\w+) (?P<a>\S+?):?(?P<a_port>\d*) (?:<->|->) (?P<b>\S+?):?(?P<b_port>\d*) \["
    r".*?\[(?P<there>\d+) pkts/\d+ bytes (?:<->|->) (?P<back>\d+) pkts/\d+ bytes\]"
)


def ndpi_packets(path: Path) -> Counter[tuple[Any, ...]]:
    """Packets each way by protocol, sender and receiver, as ndpiReader counted them."""
    packets: Counter[tuple[Any, ...]] = Counter()
    for line in path.read_text(errors="replace").splitlines():
        if match := NDPI_FLOW.match(line):
            a, b = [(match[end].strip("[]"), match[f"{end}_port"]) for end in "ab"]
            packets[match["protocol"], a, b] += int(match["there"])
            packets[match["protocol"], b, a] += int(match["back"])
    return +packets


NDPI_DIFFERS = {
    "corrupt/ndpi__fuzz-2006-06-26-2594.pcap": "nDPI drops packets with damaged headers, which are counted here",
    "corrupt/ndpi__fuzz-2020-02-16-11740.pcap": "the same",
    "corrupt/ndpi__fuzz-2021-10-13.pcap": "nDPI makes a flow of a packet without a whole IP header",
    "tcp/ndpi__fix2.pcap": "the mirror port copied packets before and after a router; copies count once here",
    "tcp/ndpi__rtsp.pcap": "copies at each interface of the host; they count once here",
    "tcp/ndpi__heuristic_tcp_ack_payload.pcap": "a mirror port showed each packet of one connection twice",
    "tcp/ndpi__psiphon3.pcap": "each packet twice",
    "tcp/ndpi__wow.pcap": "each packet of the client twice",
    "tcp/ndpi__reasm_segv_anon.pcapng": "GTP is not followed",
    "tunnels/ndpi__capwap.pcap": "CAPWAP is not followed",
}


@pytest.mark.parametrize(
    ("capture", "path"),
    [pytest.param(*answer, id=answer[0]) for answer in answers("ndpi", ".out") if answer[0] not in NDPI_DIFFERS],
)
def test_packets_each_way_are_those_of_ndpi(capture: str, path: Path) -> None:
    ours: Counter[tuple[Any, ...]] = Counter()
    for flow in analysed_once(oracle.CAPTURES / capture).rows("flows"):
        if flow["protocol"] in ("TCP", "UDP"):
            orig, resp = [(flow[f"{side}_ip"], str(flow[f"{side}_port"])) for side in ("orig", "resp")]
            ours[flow["protocol"], orig, resp] += flow["orig_packets"]
            ours[flow["protocol"], resp, orig] += flow["resp_packets"]
    expected = {ends: count for ends, count in ndpi_packets(path).items() if ends[0] in ("TCP", "UDP")}
    assert +ours == Counter(expected)


def arkime_sessions() -> list[Any]:
    found = []
    for capture, path in answers("arkime", ".json"):
        sessions = [session["body"] for session in json.loads(path.read_text())["sessions3"]]
        found.append(pytest.param(capture, sessions, id=capture))
    return found


ARKIME_DIFFERS = {"tcp/arkime__wireshark-retrans.pcap": "a mirror port showed each packet several times"}


@pytest.mark.parametrize(("capture", "sessions"), [each for each in arkime_sessions() if each.id not in ARKIME_DIFFERS])
def test_packets_of_a_community_id_are_those_of_arkime(capture: str, sessions: list[dict[str, Any]]) -> None:
    expected: Counter[str] = Counter()
    for session in sessions:
        expected[session["network"]["community_id"]] += session["network"]["packets"]
    ours: Counter[str] = Counter()
    for flow in analysed_once(oracle.CAPTURES / capture).rows("flows"):
        ours[flow["community_id"]] += flow["orig_packets"] + flow["resp_packets"]
    assert ours == expected


@pytest.mark.parametrize(("capture", "sessions"), arkime_sessions())
def test_handshakes_take_twice_what_arkime_says(capture: str, sessions: list[dict[str, Any]]) -> None:
    """Arkime's initRTT is half the time from SYN to ACK, in whole milliseconds; it does not wait for a SYN-ACK."""
    flows = analysed_once(oracle.CAPTURES / capture).rows("flows")
    for session in sessions:
        if "initRTT" in session and session["tcpflags"]["syn-ack"]:
            times = [f["handshake_rtt_ns"] for f in flows if f["community_id"] == session["network"]["community_id"]]
            assert session["initRTT"] in [time // 2_000_000 for time in times if time is not None], session["network"]
