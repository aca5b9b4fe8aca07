"""Which packets make a flow, and what became of it: the kernels against their naive twin on random conversations."""

from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from analysis import layout
from analysis.flows import Flows, flows_table
from analysis.flows_kernels import EARLY_FRAGMENTS
from analysis.layout import POINT_NAMED
from tests import naive_flows
from tests.naive_flows import ACK, FIN, RST, SYN, TCP, UDP, Packet

pytestmark = pytest.mark.kernel

CONVERSATIONS = 500 if os.environ.get("NUMBA_DISABLE_JIT", "0") != "1" else 40
SECOND = naive_flows.SECOND
V4_MAPPED = 0xFFFF00000000
NO_DATA = np.zeros(0, np.uint8)


def records(packets: list[Packet]) -> np.ndarray:
    """PACKET[n], all seen at one interface."""
    made = np.zeros(len(packets), layout.PACKET)
    for name in ("ip_id", "vni", "vlan", "flow", "ifindex", "quote_offset"):
        made[name] = -1
    made["ip_version"], made["has_ports"], made["tcp_analyzable"] = 4, 1, 1
    made["frame_number"] = np.arange(1, len(packets) + 1)
    for record, p in zip(made, packets, strict=True):
        record["ts"], record["protocol"], record["payload_length"] = p.ts, p.protocol, p.length
        record["src_lo"], record["src_port"] = V4_MAPPED | p.src[0], p.src[1]
        record["dst_lo"], record["dst_port"] = V4_MAPPED | p.dst[0], p.dst[1]
        record["tcp_flags"], record["tcp_seq"], record["tcp_ack"] = p.flags, p.seq, p.ack
        record["tcp_window"], record["ip_length"] = p.window, 40 + p.length
    return made


def assign(packets: list[Packet], chunk: int = 1000, **columns: object) -> tuple[np.ndarray, list[dict[str, object]]]:
    """The packets with their flows, and the rows of the flows table; nothing is known of retransmissions."""
    flows, made = Flows(), records(packets)
    for name, values in columns.items():
        made[name] = values
    data = np.zeros(1, np.uint8)
    for begin in range(0, len(made), chunk):
        part = made[begin : begin + chunk]
        flows.assign(NO_DATA, part, np.array([POINT_NAMED]), np.array([7], np.uint64))
        verdicts = np.zeros(len(part), layout.VERDICT)
        verdicts["new_bytes"] = part["payload_length"]
        flows.account(data, part, verdicts)
    parts = flows.last_rows(200)
    return made, [row for *part, _ in parts for row in flows_table(*part, ["eth0"]).to_pylist()]


def groups(uids: np.ndarray) -> list[list[int]]:
    by_flow: dict[int, list[int]] = {}
    for number, uid in enumerate(uids.tolist()):
        by_flow.setdefault(uid, []).append(number)
    return sorted(by_flow.values())


def conversation(random_: random.Random, protocol: int) -> list[Packet]:
    """A connection as it might be captured: from its middle on, with losses, repeats, resets, ports used again."""
    client = (random_.randrange(1, 4), random_.choice((40000, 40001, 50)))
    server = (random_.randrange(4, 7), random_.choice((80, 53, 45000)))
    now, seqs = (
        10**18 + random_.randrange(100) * SECOND,
        {client: random_.randrange(1 << 32), server: random_.choice((5, 900))},
    )
    script: list[tuple[naive_flows.End, int, int]] = []
    if random_.random() < 0.8:
        script += [(client, SYN, 0), (server, SYN | ACK, 0), (client, ACK, 0)]
    for _ in range(random_.randrange(6)):
        side = random_.choice((client, server))
        script += [(side, ACK, random_.choice((0, 1, 500)))]
    script += random_.choice(
        (
            [],
            [(client, RST, 0)],
            [(server, RST | ACK, 0)],
            [(client, FIN | ACK, 0), (server, FIN | ACK, 9), (client, ACK, 0)],
            [(client, FIN | ACK, 0), (server, ACK, 0)],
            [(server, FIN | ACK, 0), (client, RST, 0), (server, RST, 0)],
            [(client, SYN | FIN, 0)],
            [(client, FIN | RST, 0)],
        )
    )
    packets = []
    for side, flags, length in script:
        other = server if side == client else client
        now += random_.choice((1000, SECOND, 61 * SECOND)) if random_.random() < 0.97 else 301 * SECOND
        packet = Packet(
            now, protocol, side, other, length, flags, seqs[side], seqs[other] if flags & ACK else 0,
            random_.choice((0, 1000, 1000, 1000)),
        )  # fmt: skip
        seqs[side] = (seqs[side] + length + bool(flags & (SYN | FIN))) % (1 << 32)
        packets += [packet] * random_.choice((0, 1, 1, 1, 1, 1, 1, 2))
    if random_.random() < 0.2:  # behind NAT, one side's packets may pass elsewhere
        packets = [packet for packet in packets if packet.src == server]
    return [replace(packet, ts=packet.ts + place) for place, packet in enumerate(packets)]


def capture(random_: random.Random) -> list[Packet]:
    """Several conversations at a time, some on the same ports one after the other."""
    packets = [p for _ in range(6) for p in conversation(random_, random_.choice((TCP, TCP, TCP, UDP)))]
    return sorted(packets, key=lambda packet: packet.ts)


def test_packets_make_the_flows_of_the_naive_twin() -> None:
    random_ = random.Random(1)
    for _ in range(CONVERSATIONS):
        packets = capture(random_)
        made, _rows = assign(packets)
        assert groups(made["flow_uid"]) == sorted(flow.numbers for flow in naive_flows.flows(packets)), packets


def test_flows_end_as_zeek_would_say() -> None:
    random_ = random.Random(2)
    states: Counter[str] = Counter()
    for _ in range(CONVERSATIONS):
        packets = capture(random_)
        _, rows = assign(packets)
        ours = sorted(
            (row["orig_port"], row["resp_port"], row["conn_state"], row["history"], row["orig_packets"]) for row in rows
        )
        twins = naive_flows.flows(packets)
        expected = sorted((f.orig[1], f.resp[1], f.conn_state(), f.history, f.sides[f.orig].packets) for f in twins)
        assert ours == expected, packets
        states.update(flow.conn_state() for flow in twins)
    if CONVERSATIONS > 100:
        assert states.keys() == {
            "OTH",
            "S0",
            "S1",
            "SF",
            "REJ",
            "S2",
            "S3",
            "RSTO",
            "RSTR",
            "RSTOS0",
            "RSTRH",
            "SH",
            "SHR",
        }


def test_chunks_do_not_show() -> None:
    random_ = random.Random(3)
    for _ in range(20):
        packets = capture(random_)
        whole, rows = assign(packets)
        parts, parted = assign(packets, chunk=3)
        assert groups(whole["flow_uid"]) == groups(parts["flow_uid"])
        assert sorted(map(repr, rows)) == sorted(map(repr, parted))


def test_answers_alone_tell_one_connection_from_the_next() -> None:
    """Between two NATs only the answers have these addresses; their client used a port again."""
    server, client = (1, 8080), (2, 40000)
    flags = (SYN | ACK, ACK, FIN | ACK, FIN | ACK)
    packets = [
        Packet(connection * SECOND + step, TCP, server, client, 0, flag, first + (flag != SYN | ACK), 10 + connection)
        for connection, first in ((1, 500), (2, 900))
        for step, flag in enumerate(flags)
    ]
    made, _ = assign(packets)
    assert groups(made["flow_uid"]) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_another_vlan_or_direction_is_another_observation_of_the_connection() -> None:
    a, b = (1, 40000), (2, 80)
    packets = [Packet(SECOND, TCP, a, b, 0, SYN, 9), Packet(SECOND + 1, TCP, a, b, 0, SYN, 9)]
    packets += [Packet(SECOND + 2, TCP, b, a, 0, SYN | ACK, 5, 10)]
    made, _ = assign(packets, vlan=[3, 4, 3])
    assert groups(made["flow_uid"]) == [[0, 2], [1]]
    made, _ = assign(packets, direction=[layout.DIRECTION_IN, layout.DIRECTION_OUT, layout.DIRECTION_OUT])
    assert groups(made["flow_uid"]) == [[0, 2], [1]]


def test_a_sender_in_the_vni_does_not_split_a_flow() -> None:
    """Weave and Cilium give each direction its own VNI."""
    a, b = (1, 40000), (2, 80)
    packets = [Packet(SECOND + n, TCP, *((a, b) if n % 2 == 0 else (b, a)), 0, ACK, 9) for n in range(4)]
    made, rows = assign(packets, vni=[11, 22, 11, 22])
    assert groups(made["flow_uid"]) == [[0, 1, 2, 3]]
    assert (rows[0]["orig_vni"], rows[0]["resp_vni"]) == (11, 22)


def fragments(script: list[tuple[int, int, bool]], protocol: int = UDP) -> np.ndarray:
    """PACKET[n] of (ts, datagram, whether it is the first one), as decoding leaves them."""
    datagrams = [Packet(ts, protocol, (1, 40000 + datagram), (2, 53), 8) for ts, datagram, _ in script]
    made = records(datagrams)
    is_first = np.array([first for _, _, first in script], bool)
    made["fragment"] = np.where(is_first, layout.FRAGMENT_FIRST, layout.FRAGMENT_LATER)
    made["ip_id"] = [datagram for _, datagram, _ in script]
    for name in ("src_port", "dst_port", "has_ports"):
        made[name][~is_first] = 0
    return made


def settled(made: np.ndarray, chunk: int) -> np.ndarray:
    """The same packets as their rows know them, in order of their frames."""
    flows, found = Flows(), []
    for begin in range(0, len(made), chunk):
        flows.assign(NO_DATA, made[begin : begin + chunk], np.array([POINT_NAMED]), np.array([7], np.uint64))
        found.append(flows.settled())
    flows.finish()
    packets = np.concatenate([*found, flows.settled()])
    return packets[np.argsort(packets["frame_number"], kind="stable")]


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_rows_of_fragments_name_the_flow_of_their_first_one_as_in_the_naive_twin(chunk: int) -> None:
    random_ = random.Random(chunk)
    for _ in range(CONVERSATIONS):
        now, script = 10**18, []
        for _ in range(random_.randrange(1, 12)):
            now += random_.choice((0, 1000, SECOND, 59 * SECOND, 60 * SECOND))
            script.append((now, random_.randrange(3), random_.random() < 0.3))
        packets = settled(fragments(script), chunk)
        assert packets["frame_number"].tolist() == list(range(1, len(script) + 1))
        for packet, (_, datagram, _), first in zip(
            packets, script, naive_flows.firsts_of_fragments(script), strict=True
        ):
            found = (packet["flow_uid"], packet["src_port"], packet["has_ports"])
            assert found == ((0, 0, 0) if first is None else (packets["flow_uid"][first], 40000 + datagram, 1)), script
            assert (packet["flow_uid"] != 0) == (first is not None)


def test_fragments_of_many_datagrams_may_come_mixed() -> None:
    many = range(500)
    packets = settled(fragments([(SECOND, n, True) for n in many] + [(SECOND, n, False) for n in many]), 100)
    first, later = np.split(packets, 2)
    assert len(set(first["flow_uid"].tolist()) - {0}) == len(many)
    assert first["flow_uid"].tolist() == later["flow_uid"].tolist()


def test_fragments_of_icmp_follow_their_first_one_too() -> None:
    made = fragments([(SECOND, 1, False), (SECOND, 1, True), (SECOND, 1, False)], layout.ICMP)
    made["icmp_type"], made["has_ports"] = [0, 8, 0], 0
    packets = settled(made, 1)
    assert len(set(packets["flow_uid"].tolist()) - {0}) == 1 and packets["icmp_type"].tolist() == [8, 8, 8]


@pytest.mark.parametrize("chunk", [100, 10_000])
def test_no_more_fragments_wait_than_there_are_places(chunk: int) -> None:
    """Every packet has a row, and as many as there are places wait for their flow."""
    count = EARLY_FRAGMENTS + 1000
    made = fragments([(SECOND, 1, False)] * count + [(SECOND, 1, True)])
    packets = settled(made, chunk)
    assert packets["frame_number"].tolist() == list(range(1, count + 2))
    assert np.count_nonzero(packets["flow_uid"]) == EARLY_FRAGMENTS + 1
