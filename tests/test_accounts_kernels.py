"""The flows' accounts against plain sums over the packets that went in."""

from __future__ import annotations

import random
import struct
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from analysis.accounts_kernels import MINUTE, SYN_ACK_SENT
from analysis.flows import CONN_STATES, Flows, conn_states
from analysis.layout import ACK, FIN, ICMP, PACKET, POINT_NAMED, RST, SYN, TCP, UDP, VERDICT

pytestmark = pytest.mark.kernel

SECOND = 1_000_000_000
MINUTE_NS = 60 * SECOND
START = 1_760_000_000 * 1_000_000_000 // MINUTE_NS * MINUTE_NS


def packets(seed: int, count: int) -> np.ndarray:
    """UDP datagrams and TCP packets with data between a few hosts, some minutes long, without a pause of a minute."""
    choose = random.Random(seed)
    made = np.zeros(count, PACKET)
    for i, p in enumerate(made):
        client, server = choose.randrange(3), choose.randrange(2)
        ends = [(0xFFFF0A000001 + client, 40000 + client), (0xFFFF0A000101 + server, 53)]
        if choose.random() < 0.4:
            ends.reverse()
        (p["src_lo"], p["src_port"]), (p["dst_lo"], p["dst_port"]) = ends
        p["ts"] = START + i * choose.randrange(900_000_000, 1_000_000_000)
        p["protocol"] = choose.choice([TCP, UDP])
        p["ip_version"], p["has_ports"], p["vni"], p["vlan"], p["flow"] = 4, 1, -1, -1, -1
        p["payload_length"] = choose.randrange(1, 1400)
        p["ip_length"] = p["payload_length"] + 40
    made["ts"].sort()
    return made


def verdicts(seed: int, count: int) -> np.ndarray:
    choose = np.random.default_rng(seed)
    made = np.zeros(count, VERDICT)
    for name in ("new_bytes", "gap_bytes", "missed_bytes", "tcp_segments", "retransmitted", "out_of_order"):
        made[name] = choose.integers(0, 50, count)
    return made


def disturbed(seed: int, assigned: np.ndarray) -> None:
    """What other stages may say of packets: copies, fragments that came before, tunnels. Times go backwards, too."""
    choose = np.random.default_rng(seed)
    count = len(assigned)
    assigned["is_copy"] = (choose.random(count) < 0.1) & (assigned["starts_flow"] == 0)
    assigned["earlier_fragments"] = np.where(assigned["protocol"] == UDP, choose.integers(0, 3, count), 0)
    assigned["earlier_payload"] = assigned["earlier_fragments"] * 1400
    assigned["earlier_ip_bytes"] = assigned["earlier_fragments"] * 1420
    assigned["vni"] = choose.integers(-1, 4, count)
    assigned["encapsulation"] = choose.integers(0, 4, count)
    assigned["ts"] += choose.integers(-2_000_000_000, 2_000_000_000, count)


def sent(p: Any, verdict: Any) -> int:
    """Bytes of its flow."""
    return int(verdict["new_bytes"] if p["protocol"] == TCP else p["payload_length"] + p["earlier_payload"])


def totals(all_packets: np.ndarray, all_verdicts: np.ndarray) -> dict[int, dict[str, int]]:
    """By flow, in plain Python."""
    found: dict[int, dict[str, int]] = {}
    for p, verdict in zip(all_packets, all_verdicts, strict=True):
        uid, ts = int(p["flow_uid"]), int(p["ts"])
        row = found.get(uid)
        if row is None:
            row = found[uid] = defaultdict(int)
            row |= {"first_seen": int(p["flow_first_seen"]), "last_seen": ts, "orig_vni": -1, "resp_vni": -1}
            row["encapsulation"] = int(p["encapsulation"])
        if p["is_copy"]:
            continue
        me, you = ("orig", "resp") if p["dst_port"] == 53 else ("resp", "orig")
        row["first_seen"], row["last_seen"] = min(row["first_seen"], ts), max(row["last_seen"], ts)
        row[f"{me}_packets"] += 1 + int(p["earlier_fragments"])
        row[f"{me}_bytes"] += sent(p, verdict)
        row[f"{you}_bytes"] += int(verdict["gap_bytes"])
        row[f"{me}_ip_bytes"] += int(p["ip_length"]) + int(p["earlier_ip_bytes"])
        row[f"{me}_tcp_segments"] += int(verdict["tcp_segments"])
        row[f"{me}_retransmits"] += int(verdict["retransmitted"])
        row[f"{me}_out_of_order"] += int(verdict["out_of_order"])
        row["missed_bytes"] += int(verdict["missed_bytes"])
        if row[f"{me}_vni"] < 0:
            row[f"{me}_vni"] = int(p["vni"])
    return found


def minutes_of(all_packets: np.ndarray, all_verdicts: np.ndarray) -> list[tuple[Any, ...]]:
    """In plain Python: (flow, minute, first and last time, what each side did); a flow that goes back has one again."""
    rows: dict[int, list[dict[str, int]]] = defaultdict(list)
    for p, verdict in zip(all_packets, all_verdicts, strict=True):
        uid, ts = int(p["flow_uid"]), int(p["ts"])
        minute = ts // MINUTE_NS * MINUTE_NS
        if not rows[uid] or (rows[uid][-1]["minute"] != minute and not p["is_copy"]):
            rows[uid].append(defaultdict(int) | {"minute": minute, "first_ts": ts, "last_ts": ts})
        if p["is_copy"]:
            continue
        row = rows[uid][-1]
        me, you = ("orig", "resp") if p["dst_port"] == 53 else ("resp", "orig")
        row["first_ts"], row["last_ts"] = min(row["first_ts"], ts), max(row["last_ts"], ts)
        row[f"{me}_packets"] += 1 + int(p["earlier_fragments"])
        row[f"{me}_bytes"] += sent(p, verdict)
        row[f"{you}_bytes"] += int(verdict["gap_bytes"])
        row[f"{me}_tcp_segments"] += int(verdict["tcp_segments"])
        row[f"{me}_retransmits"] += int(verdict["retransmitted"])
    return sorted((uid, *(row[name] for name in MINUTE.names[1:])) for uid, found in rows.items() for row in found)


@pytest.mark.parametrize("cut", [1, 7, 300])
def test_accounts_and_minutes_add_up_to_the_packets_wherever_chunks_end(cut: int) -> None:
    count = 300
    given, judged = packets(5, count), verdicts(6, count)
    flows = Flows()
    points, hashes = np.array([POINT_NAMED], np.int64), np.array([7], np.uint64)
    flows.assign(np.zeros(0, np.uint8), given, points, hashes)
    disturbed(7, given)
    for begin in range(0, count, cut):
        flows.account(np.zeros(1, np.uint8), given[begin : begin + cut], judged[begin : begin + cut])
    accounts, sides, _, _, minutes = map(np.concatenate, zip(*flows.last_rows(5), strict=True))
    assert sorted(tuple(m.tolist()) for m in minutes) == minutes_of(given, judged)
    got: dict[int, dict[str, int]] = {}
    for account, orig, resp in zip(accounts, sides[0::2], sides[1::2], strict=True):
        row = {name: int(account[name]) for name in ("first_seen", "last_seen", "missed_bytes", "encapsulation")}
        for side, record in (("orig", orig), ("resp", resp)):
            row |= {f"{side}_{name}": int(record[name]) for name in SIDE_SUMS}
        got[int(account["flow_uid"])] = row
    expected = totals(given, judged)
    assert len(got) == 12
    assert got == {uid: {name: expected[uid][name] for name in got[uid]} for uid in expected}


SIDE_SUMS = ("packets", "bytes", "ip_bytes", "tcp_segments", "retransmits", "out_of_order", "vni")


# --- one connection ------------------------------------------------------------------------------------------------

Step = tuple[str, int, int, bytes]
"""Who sends, flags, window, payload."""


@dataclass
class Connection:
    """What became of it."""

    account: Any
    sides: np.ndarray
    history: str
    name: str | None

    def state(self) -> str:
        flow, orig, resp = np.array([self.account]), self.sides[:1], self.sides[1:]
        history = np.frombuffer(self.history.encode(), np.uint8).reshape(1, -1)
        return CONN_STATES[conn_states(flow, orig, resp, history)[0]]


def connection(steps: list[Step], protocol: int = TCP, missed: int = 0) -> Connection:
    """Packets a second apart; c is the client, s the server."""
    made, data = np.zeros(len(steps), PACKET), bytearray(1)
    seqs = {"c": 101, "s": 901}
    for number, (p, (who, flags, window, payload)) in enumerate(zip(made, steps, strict=True)):
        ends = [(0xFFFF0A000001, 40000), (0xFFFF0A000002, 80)]
        (p["src_lo"], p["src_port"]), (p["dst_lo"], p["dst_port"]) = ends if who == "c" else reversed(ends)
        p["ts"], p["protocol"], p["tcp_flags"], p["tcp_window"] = START + number * SECOND, protocol, flags, window
        p["ip_version"], p["has_ports"], p["tcp_analyzable"] = 4, protocol != ICMP, 1
        p["vni"], p["vlan"], p["flow"], p["icmp_type"] = -1, -1, -1, 8
        if flags & SYN:  # also when it is sent again
            seqs[who] = {"c": 100, "s": 900}[who]
        p["tcp_seq"] = seqs[who]
        p["payload_offset"], p["payload_length"], p["payload_captured"] = len(data), len(payload), len(payload)
        seqs[who] += len(payload) + bool(flags & (SYN | FIN))
        data += payload
    flows = Flows()
    flows.assign(np.zeros(0, np.uint8), made, np.array([POINT_NAMED], np.int64), np.array([7], np.uint64))
    judged = np.zeros(len(made), VERDICT)
    judged["missed_bytes"] = missed
    flows.account(np.frombuffer(data, np.uint8), made, judged)
    ((accounts, sides, history, names, _),) = flows.last_rows(1)
    (account,) = accounts
    return Connection(account, sides, history[0][: account["history_length"]].tobytes().decode(), names[0])


OPENING: list[Step] = [("c", SYN, 1, b""), ("s", SYN | ACK, 1, b""), ("c", ACK, 1, b"")]


@pytest.mark.parametrize(
    ("steps", "seconds"),
    [
        (OPENING, 2),
        ([OPENING[0], *OPENING], 2),  # from the SYN that was sent last
        ([*OPENING, OPENING[0], *OPENING[1:]], 2),  # and once
        ([*OPENING[:2], ("s", ACK, 1, b""), OPENING[2]], 3),
        ([*OPENING[:2], ("c", RST | ACK, 1, b"")], None),
        (OPENING[1:], None),
        ([OPENING[0], OPENING[2]], None),
    ],
)
def test_a_handshake_is_from_the_last_syn_to_the_first_ack_of_orig(steps: list[Step], seconds: int | None) -> None:
    assert connection(steps).account["handshake_rtt"] == (-1 if seconds is None else seconds * SECOND)


def test_zero_windows_count_but_in_packets_that_open_and_close() -> None:
    steps: list[Step] = [("c", SYN, 0, b""), ("s", SYN | ACK, 0, b""), ("c", ACK, 0, b""), ("s", ACK, 0, b"")]
    steps += [("c", FIN | ACK, 0, b""), ("s", RST, 0, b"")]
    assert connection(steps).account["zero_windows"] == 2


def test_what_happens_often_has_a_letter_at_powers_of_ten() -> None:
    zero: Step = ("c", ACK, 0, b"")
    assert connection([*OPENING, *[zero] * 9]).history == "ShAW"
    assert connection([*OPENING, *[zero] * 30]).history == "ShAWW"
    assert connection([*OPENING, *[zero] * 100]).history == "ShAWWW"


def test_a_gap_is_the_letter_of_who_sent_what_was_missed() -> None:
    assert connection([("c", ACK, 1, b"x"), ("s", ACK, 1, b"")], missed=5).history == "DgaG"


CLOSE, ANSWER = ("c", FIN | ACK, 1, b""), ("s", FIN | ACK, 1, b"")


@pytest.mark.parametrize(
    ("steps", "state"),
    [
        ([*OPENING, ANSWER, ("s", RST, 1, b""), CLOSE], "SF"),  # the reset after resp's own close is forgotten
        ([*OPENING, CLOSE, ANSWER, ("c", RST, 1, b"")], "SF"),
        ([*OPENING, CLOSE, ("c", RST, 1, b"")], "RSTO"),
        ([("c", ACK, 1, b"x"), ("c", SYN, 1, b"")], "S0"),  # the SYN comes late
    ],
)
def test_odd_ends_have_zeeks_states(steps: list[Step], state: str) -> None:
    assert connection(steps).state() == state


def test_a_syn_ack_of_orig_is_not_its_syn() -> None:
    assert connection([("s", ACK, 1, b"x"), ("c", SYN | ACK, 1, b"")]).sides[0]["state"] == SYN_ACK_SENT


def test_a_flow_of_icmp_has_its_types_as_ports() -> None:
    ping = connection([("c", 0, 0, b"ping")], ICMP)
    assert ping.account[["has_ports", "orig_port", "resp_port"]].tolist() == (1, 8, 0)
    assert ping.history == ""


def test_a_flow_that_ended_in_a_sweep_does_not_end_again() -> None:
    given = packets(5, 20)
    flows = Flows()
    flows.assign(np.zeros(0, np.uint8), given, np.array([POINT_NAMED], np.int64), np.array([7], np.uint64))
    flows.account(np.zeros(1, np.uint8), given, verdicts(6, 20))
    uids = set(given["flow_uid"].tolist())
    flows._close(np.array([0]))
    assert flows.finished == 1
    assert sorted(uid for rows in flows.last_rows(4) for uid in rows[0]["flow_uid"].tolist()) == sorted(uids)


# --- server names --------------------------------------------------------------------------------------------------


def client_hello(name: bytes, extensions: bytes = b"", session: bytes = b"", ciphers: int = 1) -> bytes:
    """A TLS record (RFC 8446, 4.1.2), whose server name (RFC 6066) comes after other extensions."""
    sni = struct.pack(">HBH", len(name) + 3, 0, len(name)) + name
    every = extensions + struct.pack(">HH", 0, len(sni)) + sni
    hello = bytes(34) + bytes([len(session)]) + session + struct.pack(">H", 2 * ciphers) + bytes(2 * ciphers)
    hello += b"\1\0" + struct.pack(">H", len(every)) + every
    return b"\x16\3\1" + struct.pack(">H", len(hello) + 4) + b"\1" + len(hello).to_bytes(3, "big") + hello


PADDING = struct.pack(">HH", 21, 7) + bytes(7)


@pytest.mark.parametrize(
    ("payload", "name"),
    [
        (client_hello(b"shop.example"), "shop.example"),
        (client_hello(b"Shop.Example", PADDING * 2, bytes(32), 9), "shop.example"),
        (client_hello(b"shop.example")[:-1], None),
        (client_hello(b"shop.example")[:40], None),
        (b"GET / HTTP/1.1\r\nAccept: */*\r\nhOsT:   Shop.Example\r\n\r\n", "shop.example"),
        (b"GET / HTTP/1.1\r\nX-Host: other\r\nHost: shop.example:8080\r\n\r\n", "shop.example:8080"),
        (b"GET / HTTP/1.1\r\nHost: shop.exam", None),
        (b"get / http/1.1\r\nHost: shop.example\r\n\r\n", None),
        (b"\x17" + client_hello(b"shop.example")[1:], None),
    ],
)  # fmt: skip
def test_the_first_data_of_orig_name_the_server(payload: bytes, name: str | None) -> None:
    for later in (b"GET / HTTP/1.1\r\nHost: second.example\r\n\r\n", b""):
        assert connection([*OPENING, ("c", ACK, 1, payload), ("c", ACK, 1, later)]).name == name
    assert connection([*OPENING, ("s", ACK, 1, payload)]).name is None


def test_flows_of_one_orig_are_side_by_side_and_end_once() -> None:
    given = packets(5, 200)
    flows = Flows()
    flows.assign(np.zeros(0, np.uint8), given, np.array([POINT_NAMED], np.int64), np.array([7], np.uint64))
    flows.account(np.zeros(1, np.uint8), given, verdicts(6, 200))
    parts = [rows[0] for rows in flows.last_rows(5)]
    ends = [(each["orig_hi"], each["orig_lo"], each["first_seen"]) for part in parts for each in part]
    assert len(parts) > 1
    assert ends == sorted(ends)
    assert len(ends) == len(set(given["flow_uid"].tolist()))
