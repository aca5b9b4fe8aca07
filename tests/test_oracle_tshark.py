"""Whole captures against tshark's answers, frame by frame. Where podtap means to differ: docs/differences.md."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests import oracle
from tests.tables import analysed_once

pytestmark = oracle.needs_captures

KINDS = ("keep_alive", "spurious_retransmission", "fast_retransmission", "out_of_order", "retransmission")
TIMEOUT_NS = {"tcp": 300 * oracle.NANOSECONDS, "udp": 60 * oracle.NANOSECONDS}

SPLIT_DIFFERENTLY = {
    "corrupt/ndpi__fuzz-2006-06-26-2594.pcap": "addresses damaged within a call that tshark knows from its SDP",
    "mixed/ndpi__mongodb.pcap": "one connection seen in two VLANs",
    "pcapng/pcapngtest__be_test011.pcapng": "simple packet blocks have no time",
    "pcapng/pcapngtest__le_test011.pcapng": "the same",
    "pcapng/pcapngtest__be_test100.pcapng": "several interfaces, and packets without time",
    "pcapng/pcapngtest__le_test100.pcapng": "the same",
    "pcapng/pcpp__many_interfaces-1.pcapng": "several interfaces",
    "pcapng/wireshark__many_interfaces.pcapng.1": "several interfaces",
    "tcp/arkime__tcp-reassembly-synthetic.pcap": "a SYN after the FINs begins a new flow, even with the old number",
    "tunnels/tcpdump__vxlan_port_8472.pcap": "tshark does not look for VXLAN at Linux' own port",
}
OTHER_HANDSHAKES = {
    "l2/zeek__nflog-http.pcap": "the packets were read from the kernel at one time: the handshake took 0 s",
    "mixed/ndpi__mongodb.pcap": SPLIT_DIFFERENTLY["mixed/ndpi__mongodb.pcap"],
    "tcp/ndpi__rtsp.pcap": "copies of one packet at several interfaces, which count once",
    "tcp/ndpi__psiphon3.pcap": "a mirror port shows all twice; tshark takes the last of the SYNs",
    "tcp/ndpi__wow.pcap": "the same",
    "tcp/arkime__wireshark-retrans.pcap": "the same",
    "tcp/zeek__m57-long-49583-80.pcap": "the same",
    "rotation/wireshark-retrans/whole.pcap": "the same",
    "rotation/wireshark-retrans/part_00000_20091124005149.pcap": "the same",
    "pcapng/tcpdump__timestamp_invalid_nano.pcap": "nanoseconds beyond a second",
}


def plain_frames(capture: str, layer: str) -> list[dict[str, str]]:
    return [frame for frame in oracle.frames(capture) if oracle.is_plain(frame, layer) and frame[f"{layer}.stream"]]


def flow_of_frame(capture: str) -> dict[int, str]:
    packets = analysed_once(oracle.CAPTURES / capture).tables["packets"]
    return dict(zip(packets["frame_number"].to_pylist(), packets["flow_uid"].to_pylist(), strict=True))


@pytest.mark.parametrize("capture", oracle.whole())
def test_every_frame_is_a_packet(capture: str) -> None:
    analysed = analysed_once(oracle.CAPTURES / capture)
    packets = analysed.tables["packets"]
    expected = [int(frame["frame.len"]) for frame in oracle.frames(capture)]
    lengths = dict(zip(packets["frame_number"].to_pylist(), packets["length"].to_pylist(), strict=True))
    assert sorted(lengths) == list(range(1, len(expected) + 1))
    if not any(segment["skipped_packets"] for segment in analysed.rows("segments")):
        assert [lengths[number] for number in sorted(lengths)] == expected


@pytest.mark.parametrize("capture", oracle.whole())
def test_wireshark_kind_is_what_tshark_says_of_every_frame(capture: str) -> None:
    frames = {int(frame["frame.number"]): frame for frame in plain_frames(capture, "tcp")}
    expected = {}
    for number, frame in frames.items():
        kind = next((kind for kind in KINDS if frame[f"tcp.analysis.{kind}"]), None)
        if kind:
            expected[number] = kind
    rows = analysed_once(oracle.CAPTURES / capture).rows("retransmits")
    ours = {row["frame_number"]: row["wireshark_kind"] for row in rows if row["wireshark_kind"]}
    assert {number: kind for number, kind in ours.items() if number in frames} == expected


@pytest.mark.parametrize("layer", ["tcp", "udp"])
@pytest.mark.parametrize("capture", [name for name in oracle.whole() if name not in SPLIT_DIFFERENTLY])
def test_flows_are_tsharks_streams_cut_at_idle_times(capture: str, layer: str) -> None:
    last_seen: dict[str, int] = {}
    cuts: Counter[str] = Counter()
    streams: dict[tuple[str, int], list[int]] = {}
    flows: dict[str, list[int]] = {}
    flow_uids = flow_of_frame(capture)
    for frame in plain_frames(capture, layer):
        stream, ts = frame[f"{layer}.stream"], oracle.nanoseconds(frame["frame.time_epoch"])
        if ts - last_seen.setdefault(stream, ts) > TIMEOUT_NS[layer]:
            cuts[stream] += 1
            last_seen[stream] = ts
        last_seen[stream] = max(last_seen[stream], ts)
        number = int(frame["frame.number"])
        streams.setdefault((stream, cuts[stream]), []).append(number)
        flows.setdefault(flow_uids[number], []).append(number)
    assert sorted(flows.values()) == sorted(streams.values())


@pytest.mark.parametrize("capture", [name for name in oracle.whole() if name not in OTHER_HANDSHAKES])
def test_a_whole_handshake_takes_as_long_as_in_tshark(capture: str) -> None:
    flow_uids = flow_of_frame(capture)
    expected = {
        flow_uids[int(frame["frame.number"])]: oracle.nanoseconds(frame["tcp.analysis.initial_rtt"])
        for frame in plain_frames(capture, "tcp")
        if frame["tcp.analysis.initial_rtt"]
    }
    flows = analysed_once(oracle.CAPTURES / capture).rows("flows")
    whole = [flow for flow in flows if flow["flow_uid"] in expected and flow["history"].startswith("ShA")]
    assert {flow["flow_uid"]: flow["handshake_rtt_ns"] for flow in whole} == {
        flow["flow_uid"]: expected[flow["flow_uid"]] for flow in whole
    }


def timed_responses(capture: str) -> dict[int, int]:
    """Frame and latency of every response that tshark matches to a query; frames with one DNS message only."""
    return {
        int(frame["frame.number"]): oracle.nanoseconds(frame["dns.time"])
        for frame in oracle.frames(capture)
        if frame["dns.time"] and "," not in frame["dns.id"] and is_unicast_dns(frame)
    }


def is_unicast_dns(frame: dict[str, str]) -> bool:
    return "mdns" not in frame["frame.protocols"].split(":")


REPEATED_AFTER_FIVE_SECONDS = {
    "dns/wireshark__dns+icmp.pcapng.gz": {3},
    "ip_frag/nfstream__dns_fragmented.pcap": {39},
    "ip_frag/zeek__ipv6-fragmented-dns.pcap": {8},
}


@pytest.mark.parametrize(
    "capture", [name for name in oracle.whole() if int(oracle.summary()[name]["dns_timed_responses"])]
)
def test_dns_latency_is_tsharks_dns_time(capture: str) -> None:
    ours: dict[int, dict[str, Any]] = {
        row["response_frame"]: row
        for row in analysed_once(oracle.CAPTURES / capture).rows("dns")
        if row["status"] == "answered"
    }
    for number, latency in timed_responses(capture).items():
        if number in REPEATED_AFTER_FIVE_SECONDS.get(capture, ()):
            assert ours[number]["attempts"] > 1
            assert ours[number]["last_attempt_latency_ns"] == latency
        else:
            assert ours[number]["latency_ns"] == latency, number
