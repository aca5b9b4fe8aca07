"""The flows' accounts against plain sums over the packets that went in."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from analysis.flows import Flows
from analysis.flows_kernels import POINT_NAMED
from analysis.layout import PACKET, TCP, UDP, VERDICT

pytestmark = pytest.mark.kernel

MINUTE_NS = 60_000_000_000
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
    for name in ("new_bytes", "gap_bytes", "missed_bytes", "tcp_segments", "retransmitted"):
        made[name] = choose.integers(0, 50, count)
    return made


def sums(all_packets: np.ndarray, all_verdicts: np.ndarray) -> dict[tuple[Any, ...], dict[str, int]]:
    """By flow and minute, in plain Python."""
    total: dict[tuple[Any, ...], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for p, verdict in zip(all_packets, all_verdicts, strict=True):
        is_tcp = p["protocol"] == TCP
        from_client = p["dst_port"] == 53
        row = total[int(p["flow_uid"]), int(p["ts"]) // MINUTE_NS * MINUTE_NS]
        me, you = ("orig", "resp") if from_client else ("resp", "orig")
        row[f"{me}_packets"] += 1
        row[f"{me}_bytes"] += int(verdict["new_bytes"] if is_tcp else p["payload_length"])
        row[f"{you}_bytes"] += int(verdict["gap_bytes"])
        row[f"{me}_tcp_segments"] += int(verdict["tcp_segments"])
        row[f"{me}_retransmits"] += int(verdict["retransmitted"])
    return {key: {name: value for name, value in row.items() if value} for key, row in total.items()}


@pytest.mark.parametrize("cut", [1, 7, 300])
def test_minutes_add_up_to_the_packets_wherever_chunks_end(cut: int) -> None:
    count = 300
    given, judged = packets(5, count), verdicts(6, count)
    flows = Flows()
    points, hashes = np.array([POINT_NAMED], np.int64), np.array([7], np.uint64)
    for begin in range(0, count, cut):
        part = given[begin : begin + cut]
        flows.assign(part, points, hashes)
        flows.account(np.zeros(1, np.uint8), part, judged[begin : begin + cut])
    flows.finish()
    accounts, sides, _, _, minutes = flows.rows()
    got = {
        (int(m["flow_uid"]), int(m["minute"])): {
            name: int(m[name]) for name in m.dtype.names if name.startswith(("orig", "resp")) and m[name]
        }
        for m in minutes
    }
    assert got == sums(given, judged)
    assert len(accounts) == len({uid for uid, _ in got}) == 12
    assert sides["packets"].sum() == count
    assert accounts["missed_bytes"].sum() == judged["missed_bytes"].sum()
