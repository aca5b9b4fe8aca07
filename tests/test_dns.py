"""DNS transactions: messages encoded by Scapy or by hand, against what their maker knows and a slow twin."""

from __future__ import annotations

import ipaddress
import struct
import warnings
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scapy.layers.dns import DNS, DNSQR, DNSRR, DNSRRMX, DNSRROPT, DNSRRSOA, DNSRRSRV, dnstypes

from analysis.dns import RCODE_NAMES, Dns, DnsRows, joined_rows, to_arrow
from analysis.dns_kernels import SWEEP_EVERY
from analysis.dns_message_kernels import TYPE_NAMES
from analysis.layout import ACK, FRAGMENT_FIRST, FRAGMENT_LAST, PACKET, SYN, TCP, UDP
from analysis.schemas import DNS as DNS_TABLE
from tests.naive_dns import Message, read, transact

MS = 1_000_000
SECOND = 1_000_000_000
CLIENT, SERVER = "10.1.2.3", "10.96.0.10"


def address(text: str) -> int:
    ip = ipaddress.ip_address(text)
    return int(ip) if ip.version == 6 else 0xFFFF << 32 | int(ip)


class Capture:
    """Packets as the flow stage hands them on, made by hand."""

    def __init__(self) -> None:
        self.data = bytearray(b"\0")
        self.packets: list[npt.NDArray[np.void]] = []

    def add(
        self, ts: int, payload: bytes, *, response: bool = False, client: str = CLIENT, port: int = 40000,
        server: str = SERVER, server_port: int = 53, cut: int = 0, **fields: int,
    ) -> None:  # fmt: skip
        packet = np.zeros(1, PACKET)
        ends = [(address(client), port), (address(server), server_port)]
        (src, src_port), (dst, dst_port) = reversed(ends) if response else ends
        values: dict[str, Any] = {
            "ts": ts, "frame_number": len(self.packets) + 1, "src_hi": src >> 64, "src_lo": src & (1 << 64) - 1,
            "dst_hi": dst >> 64, "dst_lo": dst & (1 << 64) - 1, "src_port": src_port, "dst_port": dst_port,
            "flow_uid": hash((ends[0], ends[1])) & 0xFFFFFFFF, "payload_offset": len(self.data),
            "payload_captured": len(payload) - cut, "payload_length": len(payload), "protocol": UDP, "ip_version": 4,
            "has_ports": 1, "from_orig": not response,
        }  # fmt: skip
        for name, value in (values | fields).items():
            packet[name] = value
        self.data += payload[: len(payload) - cut]
        self.packets.append(packet)

    def query(self, ts: int, name: str = "example.com", trans_id: int = 7, qtype: int = 1, **more: Any) -> None:
        self.add(ts, message(trans_id, name, qtype), **more)

    def answer(
        self, ts: int, name: str = "example.com", trans_id: int = 7, qtype: int = 1, rcode: int = 0, **more: Any
    ) -> None:
        answers = [] if rcode else [record(1, b"\x0a\0\0\1")]
        self.add(ts, message(trans_id, name, qtype, answers, rcode=rcode), **({"response": True} | more))

    def tcp(self, ts: int, seq: int, payload: bytes, flags: int = ACK, **more: Any) -> None:
        self.add(ts, payload, protocol=TCP, tcp_seq=seq % (1 << 32), tcp_flags=flags, **more)

    def records(self) -> npt.NDArray[np.void]:
        return np.concatenate(self.packets) if self.packets else np.zeros(0, PACKET)

    def rows(self, cuts: Iterable[int] = (), take_early: bool = False) -> list[dict[str, Any]]:
        """The rows in order of time, the input cut into chunks before the packets with these indexes."""
        data, dns, taken = np.frombuffer(self.data, np.uint8), Dns(), []
        for part in np.split(self.records(), sorted(cuts)):
            dns.feed(data, part)
            taken += dns.rows() if take_early else []
        dns.finish()
        return sorted(as_dicts([*taken, *dns.rows()]), key=lambda row: (row["ts"], str(row)))

    def row(self) -> dict[str, Any]:
        (row,) = self.rows()
        return row


def as_dicts(parts: list[DnsRows]) -> list[dict[str, Any]]:
    rows = []
    for part in parts:
        columns = to_arrow(part)
        for name in ("ts", "query_ts", "response_ts"):
            columns[name] = columns[name].cast("int64")
        texts = {name: column.to_pylist() for name, column in columns.items()}
        texts["client"] = part.records["client_lo"].tolist()
        rows += [{name: texts[name][i] for name in texts} for i in range(len(part))]
    return rows


def wire(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".") if label) + b"\0"


def record(code: int, rdata: bytes, owner: bytes = b"\xc0\x0c", ttl: int = 60) -> bytes:
    return owner + struct.pack(">HHIH", code, 1, ttl, len(rdata)) + rdata


def message(
    trans_id: int, name: str | None, qtype: int = 1, answers: list[bytes] | None = None, rcode: int = 0
) -> bytes:
    """A query, or a response if there is a list of answers."""
    flags = 0x0100 if answers is None else 0x8180 | rcode
    question = b"" if name is None else wire(name) + struct.pack(">HH", qtype, 1)
    counts = (trans_id, flags, int(name is not None), len(answers or []), 0, 0)
    return struct.pack(">6H", *counts) + question + b"".join(answers or [])


def scapy_bytes(layer: Any) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Scapy's own making
        return bytes(layer)


def scapy_answers(*records: Any, name: str = "example.com", **fields: Any) -> bytes:
    return scapy_bytes(DNS(id=7, qr=1, qd=[DNSQR(qname=name)], an=list(records), **fields))


# --- one transaction -----------------------------------------------------------------------------------------------


def test_a_query_and_its_answer_are_one_row_of_the_schema() -> None:
    capture = Capture()
    query = DNS(id=7, qd=[DNSQR(qname="Web.Example.COM", qtype="AAAA")])
    capture.add(5 * MS, scapy_bytes(query), segment=2, interface=4)
    reply = DNS(id=7, qr=1, qd=[DNSQR(qname="web.example.com", qtype="AAAA")])
    reply.an = [DNSRR(rrname="web.example.com", type="AAAA", rdata="2001:db8::1")]
    capture.add(8 * MS, scapy_bytes(reply), response=True, segment=3, interface=4)
    dns = Dns()
    dns.feed(np.frombuffer(capture.data, np.uint8), capture.records())
    (rows,) = dns.rows()
    for name, column in to_arrow(rows).items():
        assert column.type == DNS_TABLE.schema.field(name).type, name
        assert column.null_count == 0, name
    (row,) = as_dicts([rows])
    del row["client"]
    assert row == {
        "query_frame": 1, "response_frame": 2, "query_ts": 5 * MS, "response_ts": 8 * MS, "ts": 5 * MS,
        "latency_ns": 3 * MS, "last_attempt_latency_ns": 3 * MS, "attempts": 1, "trans_id": 7, "truncated": False,
        "search_expansion": False, "client_port": 40000, "server_port": 53, "status": "answered", "transport": "udp",
        "qtype": "AAAA", "rcode": "NOERROR", "query": "web.example.com", "answers": "AAAA 2001:db8::1",
    }  # fmt: skip
    assert rows.records[["query_segment", "response_segment", "interface"]].tolist() == [(2, 3, 4)]
    assert rows.records["client_lo"][0] == address(CLIENT) and rows.records["server_lo"][0] == address(SERVER)


def test_the_caller_adds_no_other_column_than_names_of_other_tables() -> None:
    others = {"query_segment", "response_segment", "flow_uid", "flow_first_seen", "interface", "cluster"}
    sides = {c.name for c in DNS_TABLE.columns if c.name.startswith(("client_", "server_"))}
    ports = {"client_port", "server_port"}
    assert set(to_arrow(joined_rows([]))) == {c.name for c in DNS_TABLE.columns} - others - sides | ports


@pytest.mark.parametrize(
    ("records", "text"),
    [
        ([DNSRR(type="A", rdata="192.0.2.1")], "A 192.0.2.1"),
        ([DNSRR(type="CNAME", rdata="Web.x.net"), DNSRR(type="A", rdata="192.0.2.1")], "CNAME web.x.net, A 192.0.2.1"),
        ([DNSRR(type="NS", rdata="ns1.example.com")], "NS ns1.example.com"),
        ([DNSRR(type="PTR", rdata="host.example.com")], "PTR host.example.com"),
        ([DNSRRMX(preference=10, exchange="mail.example.com")], "MX 10 mail.example.com"),
        ([DNSRRSRV(priority=1, weight=2, port=5060, target="sip.example.com")], "SRV 1 2 5060 sip.example.com"),
        ([DNSRR(type="TXT", rdata=[b'v="1"\\', b"\x7f;"])], 'TXT "v=\\"1\\"\\\\" "\\127;"'),
        (
            [DNSRRSOA(mname="ns.a", rname="hostmaster.a", serial=4294967295, refresh=2, retry=3, expire=4, minimum=5)],
            "SOA ns.a hostmaster.a 4294967295 2 3 4 5",
        ),
        ([DNSRR(type=257, rdata=b"\0\5issueca")], "CAA \\# 9 00056973737565" + "6361"),
        ([DNSRR(type=999, rdata=b"")], "TYPE999 \\# 0"),
    ],
)  # fmt: skip
def test_answers_read_as_dig_prints_them(records: list[Any], text: str) -> None:
    capture = Capture()
    capture.query(0)
    capture.add(MS, scapy_answers(*records), response=True)
    assert capture.row()["answers"] == text


def test_an_address_of_the_wrong_size_is_shown_as_unknown_data() -> None:
    capture = Capture()
    capture.query(0)
    capture.add(MS, message(7, "example.com", 1, [record(1, b"\1\2\3"), record(5, b"\xc0")]), response=True)
    assert capture.row()["answers"] == "A \\# 3 010203, CNAME \\# 1 c0"


def test_answers_beyond_64_kib_of_text_end_in_dots() -> None:
    capture = Capture()
    capture.query(0)
    capture.add(MS, message(7, "example.com", 1, [record(999, bytes(30000))] * 2), response=True)
    assert capture.row()["answers"] == "TYPE999 \\# 30000 " + "00" * 30000 + ", ..."


@pytest.mark.kernel
@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0, 0, 1, 0xFFFF, 0x0DB8]), min_size=8, max_size=8))
def test_ipv6_addresses_read_as_rfc_5952_says(groups: list[int]) -> None:
    packed = struct.pack(">8H", *groups)
    ip = ipaddress.IPv6Address(packed)
    capture = Capture()
    capture.query(0)
    capture.add(MS, message(7, "example.com", 1, [record(28, packed)]), response=True)
    assert capture.row()["answers"] == f"AAAA {f'::ffff:{ip.ipv4_mapped}' if ip.ipv4_mapped else ip}"


def test_type_names_are_those_scapy_knows() -> None:
    renamed = {10: "NULL", 104: "NID", 108: "EUI48", 109: "EUI64"}
    scapys = {code: dnstypes[code] for code in dnstypes if code < 258} | renamed
    common = TYPE_NAMES.keys() & scapys.keys()
    assert len(common) > 60
    assert {c: TYPE_NAMES[c] for c in common} == {c: scapys[c] if scapys[c] != "ALL" else "ANY" for c in common}


def test_the_rcode_of_edns_is_whole() -> None:
    capture = Capture()
    capture.query(0)
    capture.add(MS, scapy_answers(ar=[DNSRROPT(extrcode=1)]), response=True)
    assert capture.row()["rcode"] == RCODE_NAMES[16] == "BADVERS"


@pytest.mark.parametrize(("rcode", "name"), [(2, "SERVFAIL"), (3, "NXDOMAIN"), (5, "REFUSED"), (15, "RCODE15")])
def test_rcodes_have_names(rcode: int, name: str) -> None:
    capture = Capture()
    capture.query(0)
    capture.answer(MS, rcode=rcode)
    assert capture.row()["rcode"] == name


def test_names_are_lower_case_and_escaped() -> None:
    capture = Capture()
    name = b"\x04A.b\\\x03\x00 \xff\x00"
    capture.add(0, struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + name + b"\0\1\0\1")
    assert capture.row()["query"] == "a\\046b\\092.\\000\\032\\255"


def test_the_root_is_a_dot() -> None:
    capture = Capture()
    capture.query(0, "", qtype=2)
    assert (capture.row()["query"], capture.row()["qtype"]) == (".", "NS")


@pytest.mark.parametrize("pointer", [12, 13, 0xFF])
def test_a_compression_loop_makes_the_question_unreadable(pointer: int) -> None:
    capture = Capture()
    capture.add(0, struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + b"\x01a" + bytes([0xC0, pointer]) + b"\0\1\0\1")
    assert (capture.row()["query"], capture.row()["qtype"]) == (None, None)


@pytest.mark.parametrize(("pointers", "name"), [(1, "a"), (128, "a"), (129, None)])
def test_up_to_128_compression_pointers_are_followed(pointers: int, name: str | None) -> None:
    """Forward, which RFC 1035 does not foresee and Wireshark reads."""
    question = b"\xc0\x12\0\1\0\1"
    for i in range(1, pointers):
        question += struct.pack(">H", 0xC000 | 0x12 + 2 * i)
    capture = Capture()
    capture.add(0, struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + question + b"\1a\0")
    assert capture.row()["query"] == name


# --- what belongs together -----------------------------------------------------------------------------------------


def statuses(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(row["status"], row["query"], row["attempts"], row["latency_ns"]) for row in rows]


def test_a_retry_before_the_answer_is_an_attempt_also_after_5_seconds() -> None:
    capture = Capture()
    for ts in (0, 5 * SECOND, 11 * SECOND):
        capture.query(ts)
    capture.answer(11 * SECOND + MS)
    row = capture.row()
    assert (row["attempts"], row["latency_ns"], row["last_attempt_latency_ns"]) == (3, 11 * SECOND + MS, MS)
    assert (row["query_frame"], row["response_frame"]) == (1, 4)


def test_a_retry_after_5_minutes_is_another_transaction() -> None:
    capture = Capture()
    capture.query(0)
    capture.query(300 * SECOND + 1)
    assert statuses(capture.rows()) == [("unanswered", "example.com", 1, None)] * 2


def test_a_second_response_is_no_row() -> None:
    capture = Capture()
    capture.query(0)
    capture.answer(MS)
    capture.answer(2 * MS)
    assert statuses(capture.rows()) == [("answered", "example.com", 1, MS)]


def test_a_second_response_after_10_seconds_has_no_query() -> None:
    for late, expected in ((10 * SECOND, ["answered"]), (10 * SECOND + 1, ["answered", "unmatched_response"])):
        capture = Capture()
        capture.query(0)
        capture.answer(MS)
        capture.answer(MS + late)
        assert [row["status"] for row in capture.rows()] == expected


def test_the_same_query_after_the_answer_is_another_transaction() -> None:
    capture = Capture()
    for ts in (0, SECOND):
        capture.query(ts)
        capture.answer(ts + MS)
    assert statuses(capture.rows()) == [("answered", "example.com", 1, MS)] * 2


def test_a_response_without_a_query_is_unmatched() -> None:
    capture = Capture()
    capture.answer(MS)
    row = capture.row()
    assert statuses([row]) == [("unmatched_response", "example.com", 0, None)]
    assert (row["query_ts"], row["response_frame"], row["rcode"], row["client_port"]) == (None, 1, "NOERROR", 40000)


def test_a_forged_response_leaves_the_query_open() -> None:
    capture = Capture()
    capture.query(0)
    capture.answer(MS, "evil.example")
    capture.answer(2 * MS, qtype=28)
    capture.answer(3 * MS)
    assert statuses(capture.rows()) == [
        ("answered", "example.com", 1, 3 * MS),
        ("unmatched_response", "evil.example", 0, None),
        ("unmatched_response", "example.com", 0, None),
    ]


def test_a_response_to_a_damaged_question_answers_if_nothing_better_comes() -> None:
    capture = Capture()
    capture.query(0)
    capture.answer(MS, "exa?ple.com", rcode=5)
    capture.answer(2 * MS, "evil.example")
    rows = capture.rows()
    assert statuses(rows) == [
        ("answered", "example.com", 1, MS),
        ("unmatched_response", "evil.example", 0, None),
    ]
    assert (rows[0]["rcode"], rows[0]["response_frame"]) == ("REFUSED", 2)


def test_a_client_that_asks_again_did_not_take_a_response_to_another_question() -> None:
    capture = Capture()
    capture.query(0)
    capture.answer(MS, "evil.example")
    capture.query(SECOND)
    assert statuses(capture.rows()) == [
        ("unanswered", "example.com", 2, None),
        ("unmatched_response", "evil.example", 0, None),
    ]


def test_responses_to_damaged_questions_answer_in_the_order_of_the_queries() -> None:
    capture = Capture()
    for ts, name in enumerate(("a.example", "b.example")):
        capture.query(ts * MS, name)
    for ts in (2, 4):
        capture.answer(ts * MS, "x.example")
    assert statuses(capture.rows()) == [
        ("answered", "a.example", 1, 2 * MS),
        ("answered", "b.example", 1, 3 * MS),
    ]


@pytest.mark.parametrize(("after", "expected"), [(10 * SECOND, 1), (10 * SECOND + 1, 2)])
def test_a_response_to_another_question_answers_a_query_of_the_last_10_seconds(after: int, expected: int) -> None:
    capture = Capture()
    capture.query(0)
    capture.answer(after, "evil.example")
    assert len(capture.rows()) == expected


def test_one_id_may_ask_two_questions_at_a_time() -> None:
    capture = Capture()
    capture.query(0, qtype=1)
    capture.query(MS, qtype=28)
    capture.answer(3 * MS, qtype=1)
    capture.answer(6 * MS, qtype=28)
    assert [(row["qtype"], row["latency_ns"]) for row in capture.rows()] == [("A", 3 * MS), ("AAAA", 5 * MS)]


def test_a_response_without_a_question_closes_the_latest_query_with_its_id() -> None:
    capture = Capture()
    capture.query(0, "a.example")
    capture.query(MS, "b.example")
    capture.add(2 * MS, message(7, None, 0, [], rcode=1), response=True)
    assert [(row["query"], row["status"], row["rcode"]) for row in capture.rows()] == [
        ("a.example", "unanswered", None),
        ("b.example", "answered", "FORMERR"),
    ]


def test_the_case_of_a_name_does_not_matter() -> None:
    capture = Capture()
    capture.query(0, "eXaMpLe.CoM")
    capture.answer(MS, "example.com")
    assert statuses(capture.rows()) == [("answered", "example.com", 1, MS)]


def test_the_qr_bit_tells_who_is_client() -> None:
    capture = Capture()
    capture.query(0, response=True)  # asked by the address at port 53, as resolvers do among each other
    capture.answer(MS, response=False)
    row = capture.row()
    assert (row["client_port"], row["server_port"], row["latency_ns"]) == (53, 40000, MS)


def test_both_sides_of_a_flow_may_ask_with_one_id() -> None:
    capture = Capture()
    for response in (False, True):
        capture.query(0, response=response, port=53)
    for response in (False, True):
        capture.answer(MS, response=response, port=53)
    assert [row["status"] for row in capture.rows()] == ["answered", "answered"]


def test_flows_do_not_mix() -> None:
    capture = Capture()
    capture.query(0, port=40000)
    capture.answer(MS, port=40001)
    assert sorted(row["status"] for row in capture.rows()) == ["unanswered", "unmatched_response"]


def test_what_the_snaplen_cut_still_matches() -> None:
    capture = Capture()
    capture.query(0, cut=6)
    capture.answer(MS, cut=2)
    row = capture.row()
    assert (row["status"], row["query"], row["rcode"], row["answers"]) == ("answered", None, "NOERROR", None)


@pytest.mark.parametrize(("captured", "statuses"), [(4, ["answered"]), (3, ["unmatched_response"])])
def test_id_and_flags_are_enough_of_a_query(captured: int, statuses: list[str]) -> None:
    capture = Capture()
    capture.query(0, cut=len(message(7, "example.com")) - captured)
    capture.answer(MS)
    assert [row["status"] for row in capture.rows()] == statuses


def test_copies_later_fragments_and_multicast_are_left_out() -> None:
    capture = Capture()
    capture.query(0, is_copy=1)
    capture.query(0, fragment=FRAGMENT_LAST)
    capture.query(0, server="224.0.0.251", port=5353, server_port=5353)
    capture.query(0, server="ff02::fb", server_port=5353)
    capture.query(0, port=5353, server_port=5353)
    capture.query(0, server_port=5355)
    capture.query(0, port=137, server_port=137)
    capture.query(MS, fragment=FRAGMENT_FIRST)
    assert [row["query_frame"] for row in capture.rows()] == [8]


@pytest.mark.parametrize("port", [5353, 1053, 30053])
def test_resolvers_listen_at_other_ports_too(port: int) -> None:
    capture = Capture()
    capture.query(0, server_port=port)
    capture.answer(MS, server_port=port)
    capture.add(2 * MS, message(8, "example.com", 20000), server_port=port)  # not a type that anybody asks for
    capture.add(2 * MS, b"\x80" * 40, server_port=port)
    assert statuses(capture.rows()) == [("answered", "example.com", 1, MS)]


# --- over TCP -------------------------------------------------------------------------------------------------------


def framed(*messages: bytes) -> bytes:
    return b"".join(struct.pack(">H", len(m)) + m for m in messages)


QUERIES = framed(*[message(i, f"name{i}.example") for i in range(4)])
ISN = (1 << 32) - 20  # the sequence number wraps in the first message


def stream(capture: Capture, pieces: list[tuple[int, bytes]], syn: bool = True) -> list[tuple[Any, Any]]:
    if syn:
        capture.tcp(0, ISN - 1, b"", SYN)
    for number, (offset, payload) in enumerate(pieces):
        capture.tcp((number + 1) * MS, ISN + offset, payload)
    return sorted((row["trans_id"], row["query_frame"] - syn) for row in capture.rows())


def pieces_of(size: int) -> list[tuple[int, bytes]]:
    return [(at, QUERIES[at : at + size]) for at in range(0, len(QUERIES), size)]


def test_several_messages_in_one_packet() -> None:
    assert stream(Capture(), [(0, QUERIES)]) == [(i, 1) for i in range(4)]


@pytest.mark.parametrize("syn", [True, False])
def test_a_message_over_several_packets_belongs_to_the_one_that_completes_it(syn: bool) -> None:
    size = len(QUERIES) // 4
    expected = [(i, -(-size * (i + 1) // 15)) for i in range(4)]
    assert stream(Capture(), pieces_of(15), syn) == expected


def test_retransmitted_and_reordered_packets_change_nothing() -> None:
    first, second, third, *rest = pieces_of(30)
    order = [first, third, second, first, (second[0] - 5, QUERIES[second[0] - 5 : second[0] + 30]), *rest]
    assert [trans_id for trans_id, _ in stream(Capture(), order)] == [0, 1, 2, 3]


def test_a_syn_that_is_sent_again_does_not_start_the_stream_anew() -> None:
    capture = Capture()
    capture.tcp(0, ISN - 1, b"", SYN)
    capture.tcp(0, ISN, QUERIES[:100])
    capture.tcp(0, ISN - 1, b"", SYN)
    capture.tcp(MS, ISN + 100, QUERIES[100:])
    assert sorted((row["trans_id"], row["query_ts"]) for row in capture.rows()) == [(0, 0), (1, 0), (2, 0), (3, MS)]


def test_what_the_capture_missed_costs_the_messages_in_it_only() -> None:
    whole = len(QUERIES) // 4
    capture = Capture()
    capture.tcp(0, ISN - 1, b"", SYN)
    capture.tcp(1, ISN, QUERIES[:whole])
    capture.tcp(2, ISN + 2 * whole, QUERIES[2 * whole :])
    capture.tcp(3, 1, b"", response=True, tcp_ack=(ISN + 4 * whole) % (1 << 32))
    capture.tcp(4, 1, framed(message(3, "name3.example", 1, [])), response=True)
    rows = sorted((row["trans_id"], row["status"], row["query_ts"]) for row in capture.rows())
    assert rows == [(0, "unanswered", 1), (2, "unanswered", 2), (3, "answered", 2)]


def test_a_gap_that_nobody_acknowledged_ends_with_the_recording() -> None:
    whole = len(QUERIES) // 4
    assert stream(Capture(), [(0, QUERIES[:whole]), (2 * whole, QUERIES[2 * whole :])]) == [(0, 1), (2, 2), (3, 2)]


def test_a_tcp_message_cut_by_the_snaplen_still_matches() -> None:
    capture = Capture()
    capture.tcp(0, 100, b"", SYN)
    capture.tcp(MS, 101, framed(message(9, "example.com")), cut=3)
    capture.tcp(2 * MS, 1, framed(message(9, "example.com", 1, [record(1, b"abcd")])), response=True, cut=2)
    row = capture.row()
    assert (row["status"], row["transport"], row["latency_ns"], row["query"]) == ("answered", "tcp", MS, None)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_cut_and_order_of_a_stream_gives_its_messages(data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(QUERIES) - 1), max_size=8)))
    bounds = [0, *cuts, len(QUERIES)]
    pieces = [(a, QUERIES[a:b]) for a, b in pairwise(bounds)]
    repeated = data.draw(st.lists(st.sampled_from(pieces), max_size=4))
    assert [i for i, _ in stream(Capture(), data.draw(st.permutations(pieces + repeated)))] == [0, 1, 2, 3]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.binary(max_size=40), st.booleans(), st.integers(0, 3)), max_size=12))
def test_random_tcp_bytes_never_raise(packets: list[tuple[int, bytes, bool, int]]) -> None:
    capture = Capture()
    for ts, (seq, payload, response, cut) in enumerate(packets):
        capture.tcp(ts, seq, payload, SYN if seq == 0 else ACK, response=response, cut=min(cut, len(payload)))
    capture.rows()


# --- search lists ---------------------------------------------------------------------------------------------------


def walk(names: list[str], gap_ns: int = MS, qtypes: tuple[int, ...] = (1,), last: int = 0) -> list[str]:
    """Ask the names one after another, all but the last fail; returns those recognised as search expansions."""
    capture = Capture()
    for i, name in enumerate(names):
        for qtype in qtypes:
            capture.query(i * (gap_ns + MS), name, i, qtype, port=40000 + i)
        for qtype in qtypes:
            rcode = last if i == len(names) - 1 else 3
            capture.answer(i * (gap_ns + MS) + MS, name, i, qtype, rcode, port=40000 + i)
    return [row["query"] for row in capture.rows() if row["search_expansion"]]


CLUSTER = ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "eu-west-1.compute.internal"]


@pytest.mark.parametrize("typed", ["api", "api.stripe.com", "web.other", "kubernetes.default.svc.cluster.local"])
def test_the_search_list_of_a_pod_is_recognised_to_its_end(typed: str) -> None:
    expansions = [f"{typed}.{suffix}" for suffix in CLUSTER]
    assert walk([*expansions, typed]) == expansions


def test_the_step_that_succeeds_is_no_expansion() -> None:
    assert walk(["db.shop.svc.cluster.local", "db.svc.cluster.local"]) == ["db.shop.svc.cluster.local"]


def test_ipv4_and_ipv6_walk_side_by_side() -> None:
    names = [f"api.example.com.{suffix}" for suffix in CLUSTER]
    assert walk([*names, "api.example.com"], qtypes=(1, 28)) == [name for name in names for _ in range(2)]


@pytest.mark.parametrize(
    "names",
    [
        ["a.example.com", "b.example.com"],
        ["www.one.com", "www.two.com"],
        ["www.example.co", "www.example.com"],
        ["www.foo.com", "www.com"],
        ["example.com", "www.example.com"],
        ["example.com", "example.com"],
        ["api.shop.svc.cluster.local", "apis.svc.cluster.local"],
    ],
)
def test_names_that_no_search_list_makes_are_not_taken_for_one(names: list[str]) -> None:
    assert walk(names) == []


def test_a_walk_has_10_seconds_a_step() -> None:
    names = ["db.shop.svc.cluster.local", "db.svc.cluster.local"]
    assert walk(names, gap_ns=10 * SECOND) == names[:1]
    assert walk(names, gap_ns=10 * SECOND + 1) == []


def test_an_empty_answer_counts_as_a_failure_an_answer_does_not() -> None:
    for answers, expected in (([], True), ([record(1, b"abcd")], False)):
        capture = Capture()
        capture.query(0, "db.shop.svc.cluster.local", 1)
        capture.add(MS, message(1, "db.shop.svc.cluster.local", 1, answers), response=True)
        capture.query(2 * MS, "db.svc.cluster.local", 2)
        assert capture.rows()[0]["search_expansion"] is expected


def test_another_client_does_not_continue_a_walk() -> None:
    capture = Capture()
    capture.query(0, "db.shop.svc.cluster.local")
    capture.answer(MS, "db.shop.svc.cluster.local", rcode=3)
    capture.query(2 * MS, "db.svc.cluster.local", client="10.1.2.4")
    assert [row["search_expansion"] for row in capture.rows()] == [False, False]


# --- twins, borders, hostile bytes ----------------------------------------------------------------------------------

NAMES = ["db.shop.svc.cluster.local", "db.svc.cluster.local", "db.cluster.local", "db.host.org", "db", "db.x.org", None]
event = st.tuples(
    st.sampled_from([0, MS, SECOND, 9 * SECOND, 11 * SECOND, 301 * SECOND, -SECOND]),
    st.sampled_from([40000, 53]),
    st.sampled_from([CLIENT, "10.1.2.4"]),
    st.integers(0, 1),
    st.sampled_from(NAMES),
    st.sampled_from([1, 28]),
    st.sampled_from([None, None, 0, 3, 3, 2]),
    st.booleans(),
)


def capture_of(events: list[tuple[Any, ...]]) -> tuple[Capture, list[tuple[int, str, int, str, Message]]]:
    capture, messages, ts = Capture(), [], 1000 * SECOND
    for step, port, client, trans_id, name, qtype, rcode, empty in events:
        ts += step
        answers = None if rcode is None else [] if empty or rcode else [record(1, b"abcd")]
        payload = message(trans_id, name, qtype, answers, rcode or 0)
        capture.add(ts, payload, response=answers is not None, port=port, client=client)
        messages.append((ts, f"{client} {port}", port, client, read(payload, TYPE_NAMES)))
    return capture, messages


@pytest.mark.kernel
@settings(max_examples=300, deadline=None)
@given(st.lists(event, max_size=14))
def test_transactions_equal_their_naive_twins(events: list[tuple[Any, ...]]) -> None:
    capture, messages = capture_of(events)
    rcodes = {name: code for code, name in RCODE_NAMES.items()}
    ours = [
        (
            row["status"], (str(ipaddress.ip_address(row["client"] & 0xFFFFFFFF)), row["client_port"]), row["trans_id"],
            row["query"], row["query_ts"], row["response_ts"], row["attempts"], rcodes.get(row["rcode"]),
            row["search_expansion"],
        )
        for row in capture.rows()
    ]  # fmt: skip
    assert sorted(ours, key=str) == sorted((t.row() for t in transact(messages)), key=str)


@settings(max_examples=60, deadline=None)
@given(st.lists(event, max_size=14), st.sets(st.integers(0, 14)))
def test_rows_do_not_depend_on_where_chunks_end(events: list[tuple[Any, ...]], cuts: set[int]) -> None:
    capture, _ = capture_of(events)
    assert capture.rows(cuts, take_early=True) == capture.rows()


def test_a_stream_may_be_cut_before_every_packet() -> None:
    capture = Capture()
    stream(capture, pieces_of(7))
    assert capture.rows(range(len(capture.packets)), take_early=True) == capture.rows()


tail = st.one_of(
    st.binary(max_size=60),
    st.lists(
        st.builds(
            record,
            st.sampled_from([1, 2, 5, 6, 12, 15, 16, 28, 33, 41, 999]),
            st.one_of(st.binary(max_size=24), st.just(wire("ns.example.org")), st.just(b"\0\1\xc0\x0c")),
            st.sampled_from([b"\xc0\x0c", b"\0", b"\1x\0", b"\x41", b"\xc0\xff"]),
            st.sampled_from([60, 1 << 24]),
        ),
        max_size=4,
    ).map(b"".join),
)


@pytest.mark.kernel
@settings(max_examples=400, deadline=None)
@given(
    st.integers(0, 15).map(lambda rcode: 0x8000 | rcode),
    st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 2), st.integers(0, 2)),
    st.one_of(st.just(wire("a.b") + b"\0\1\0\1"), st.just(b"\1a\xc0\x0c\0\1\0\1"), st.binary(max_size=20)),
    tail,
    st.one_of(st.none(), st.integers(4, 40)),
)
@example(0x8000, (1, 1, 0, 0), wire("a.b") + b"\0\1\0\1", record(16, b""), None)
@example(0x8000, (1, 1, 0, 0), b"".join(b"\x3f" + b"x" * 63 for _ in range(4)) + b"\0\0\1\0\1", b"", None)
@example(0x8000, (1, 1, 0, 0), wire("a.b") + b"\0\1\0\1", b"", 11)
def test_a_message_reads_as_its_naive_twin_reads_it(
    flags: int, counts: tuple[int, ...], question: bytes, rest: bytes, size: int | None
) -> None:
    payload = (struct.pack(">6H", 7, flags, *counts) + question + rest)[:size]
    expected = read(payload, TYPE_NAMES)
    capture = Capture()
    capture.add(0, payload, response=True)
    row = capture.row()
    assert row["query"] == expected.query
    assert row["answers"] == (", ".join(expected.answers) or None)
    assert row["rcode"] == RCODE_NAMES.get(expected.rcode, f"RCODE{expected.rcode}")


@pytest.mark.kernel
@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=100), st.integers(0, 100), st.booleans())
def test_random_bytes_never_raise(payload: bytes, cut: int, response: bool) -> None:
    capture = Capture()
    capture.add(0, payload, response=response, cut=min(cut, len(payload)))
    capture.add(0, payload, response=response, server_port=5353)
    capture.rows()


def test_many_messages_are_swept_without_a_change_to_what_is_near() -> None:
    """Enough queries over 1,000 s to make room several times; every tenth has no answer."""
    count = SWEEP_EVERY
    packets = np.zeros(2 * count, PACKET)
    question, reply = message(7, "example.com"), message(7, "example.com", 1, [record(1, b"abcd")])
    source = Capture()
    source.add(0, question)
    source.add(0, reply, response=True)
    packets[0::2] = source.packets[0]
    packets[1::2] = source.packets[1]
    packets["flow_uid"] = np.arange(count, dtype=np.uint64).repeat(2) + 1
    packets["ts"] = np.arange(2 * count, dtype=np.int64) * (1000 * SECOND // (2 * count))
    packets = np.delete(packets, np.arange(1, 2 * count, 20))
    dns = Dns()
    dns.feed(np.frombuffer(source.data, np.uint8), packets)
    before_the_end = joined_rows(dns.rows()).records
    dns.finish()
    status = np.concatenate([before_the_end["status"], joined_rows(dns.rows()).records["status"]])
    answered, unanswered, unmatched = np.bincount(status, minlength=3)
    assert (answered, unanswered, unmatched) == (count - (count + 9) // 10, (count + 9) // 10, 0)
    assert np.count_nonzero(before_the_end["status"] == 1) > 0, "5 minutes without an answer need no end of recording"


def test_a_spare_response_outlives_a_sweep() -> None:
    """Enough messages to make room, between a response to another question and the end of its query's 5 minutes."""
    source = Capture()
    for ts, name in ((0, "a.example"), (0, "b.example"), (MS, "x.example")):
        (source.answer if ts else source.query)(ts, name)
    source.query(2 * MS)
    before, flood = np.concatenate(source.packets[:3]), np.repeat(source.packets[3], 2 * SWEEP_EVERY)
    flood["flow_uid"] = np.arange(10, 10 + 2 * SWEEP_EVERY)
    dns = Dns()
    dns.feed(np.frombuffer(source.data, np.uint8), np.concatenate([before, flood]))
    dns.finish()
    rows = [row for row in as_dicts(dns.rows()) if row["ts"] == 0]
    assert sorted(statuses(rows)) == [("answered", "a.example", 1, MS), ("unanswered", "b.example", 1, None)]


def test_a_flood_of_queries_is_not_kept_for_5_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.dns.OPEN_LIMIT", 1000)
    source = Capture()
    source.query(0)
    packets = np.repeat(source.packets[0], SWEEP_EVERY + 1)
    packets["flow_uid"] = np.arange(1, SWEEP_EVERY + 2)
    dns = Dns()
    dns.feed(np.frombuffer(source.data, np.uint8), packets)
    assert len(joined_rows(dns.rows())) == SWEEP_EVERY
    dns.finish()
    assert len(joined_rows(dns.rows())) == 1
