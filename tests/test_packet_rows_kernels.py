"""Rows of the packets table against a naive twin that looks at one packet at a time; and reads in network order."""

from __future__ import annotations

import ipaddress
import random
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.layout import (
    ENCAPSULATION_NAMES,
    MALFORMED_NAMES,
    NETWORK_ARP,
    NETWORK_IP,
    PACKET,
)
from analysis.loads import be16, be32, be64
from analysis.packet_rows import PacketRows
from analysis.parquet import ParquetWriter
from analysis.schemas import PACKETS

pytestmark = pytest.mark.kernel

SEGMENTS = ["a.pcap", "b.pcap"]
INTERFACES = ["eth0", None, "cni0", None, "eth0", "veth1"]
QUOTED = [name for name in PACKETS.schema.names if name.startswith("quoted_")]
V4_MAPPED = 0xFFFF << 32
DAY = 86_400_000_000_000
NOON = 1_700_000_000_000_000_000 // DAY * DAY + DAY // 2
PROTOCOLS = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 99: "ip-99"}


def address(high: int, low: int) -> str:
    if high == 0 and low >> 32 == 0xFFFF:
        return str(ipaddress.IPv4Address(low & 0xFFFFFFFF))
    return str(ipaddress.IPv6Address(high << 64 | low))


def packets(count: int, choose: random.Random, midnight: bool) -> np.ndarray[Any, Any]:
    """Packets of a few flows that end and whose slots are used again, of no flow, and of no IP."""
    made = np.zeros(count, PACKET)
    flows = {slot: (1 + slot, choose.random() < 0.5) for slot in range(6)}
    next_uid = 100
    for number, p in enumerate(made):
        p["ts"] = NOON + number * 1000 + choose.choice([0] * 20 + [DAY, -DAY]) * midnight
        p["file_offset"], p["frame_number"], p["length"] = number * 100, number + 1, choose.randrange(1 << 32)
        p["segment"], p["interface"] = choose.randrange(2), choose.randrange(-1, len(INTERFACES))
        p["direction"], p["is_copy"] = choose.randrange(3), choose.random() < 0.1
        p["malformed"] = choose.choice([0, 0, 3, 12])
        p["encapsulation"] = choose.choice([0, 0, 1, 1 | 4 << 4])
        p["vni"], p["vlan"] = choose.choice([-1, 0, 77, (1 << 24) - 1]), choose.choice([-1, 0, 4095])
        p["quote_offset"], p["flow"] = -1, -1
        p["ip_id"] = -1
        p["network"] = NETWORK_ARP if choose.random() < 0.1 else NETWORK_IP
        if choose.random() < 0.2:
            continue
        p["network"] = NETWORK_IP
        p["ip_version"], p["protocol"] = 4, choose.choice(list(PROTOCOLS))
        p["src_lo"], p["dst_lo"] = V4_MAPPED | choose.randrange(5), V4_MAPPED | choose.randrange(5)
        if choose.random() < 0.8:
            slot = choose.randrange(6)
            if choose.random() < 0.1:
                flows[slot] = (next_uid, choose.random() < 0.5)
                next_uid += 1
            uid, is_v6 = flows[slot]
            p["flow"], p["flow_uid"], p["protocol"] = slot, uid, 6
            ends = [(1 << 63, uid), (1 << 62, 7)] if is_v6 else [(0, V4_MAPPED | 1000 + uid), (0, V4_MAPPED | 5)]
            choose.shuffle(ends)
            (p["src_hi"], p["src_lo"]), (p["dst_hi"], p["dst_lo"]) = ends
        if p["encapsulation"]:
            p["outer_src_lo"], p["outer_dst_lo"] = V4_MAPPED | 9, V4_MAPPED | choose.randrange(3)
        p["ip_id"], p["ttl"] = choose.choice([-1, 0, 65535, (1 << 32) - 1]), choose.randrange(256)
        p["payload_length"], p["payload_offset"] = choose.randrange(1 << 17), choose.choice([0, 54])
        p["has_ports"], p["src_port"], p["dst_port"] = choose.randrange(2), choose.randrange(1 << 16), 53
        p["tcp_analyzable"], p["has_timestamps"] = choose.randrange(2), choose.randrange(2)
        p["tcp_seq"], p["tcp_ack"], p["tsval"] = (choose.randrange(1 << 32) for _ in range(3))
        p["tcp_flags"], p["tcp_window"] = choose.randrange(1 << 12), choose.randrange(1 << 16)
        p["icmp_type"], p["icmp_code"] = choose.randrange(256), choose.randrange(256)
    return made


def row(p: Any) -> dict[str, Any]:
    """One packet as schemas.PACKETS describes it."""
    is_ip = p["ip_version"] != 0
    is_tcp = is_ip and p["protocol"] == 6 and p["tcp_analyzable"]
    is_icmp = is_ip and p["protocol"] in (1, 58) and p["payload_offset"] > 0
    is_tunnelled = p["outer_src_hi"] or p["outer_src_lo"] or p["outer_dst_lo"]
    kind = int(p["encapsulation"])
    layers = [ENCAPSULATION_NAMES[kind >> shift & 15] for shift in range(0, 32, 4) if kind >> shift & 15]
    expected = {
        "ts": int(p["ts"]),
        "interface": INTERFACES[p["interface"]] if p["interface"] >= 0 else None,
        "direction": [None, "in", "out"][p["direction"]],
        "segment": SEGMENTS[p["segment"]],
        "file_offset": int(p["file_offset"]),
        "frame_number": int(p["frame_number"]),
        "flow_uid": f"{p['flow_uid']:016x}" if p["flow_uid"] else None,
        "is_copy": bool(p["is_copy"]),
        "src_ip": address(int(p["src_hi"]), int(p["src_lo"])) if is_ip else None,
        "dst_ip": address(int(p["dst_hi"]), int(p["dst_lo"])) if is_ip else None,
        "src_port": int(p["src_port"]) if is_ip and p["has_ports"] else None,
        "dst_port": int(p["dst_port"]) if is_ip and p["has_ports"] else None,
        "protocol": PROTOCOLS[p["protocol"]] if is_ip else "ARP" if p["network"] == NETWORK_ARP else None,
        "ip_id": int(p["ip_id"]) if p["ip_id"] >= 0 else None,
        "ttl": int(p["ttl"]) if is_ip else None,
        "length": int(p["length"]),
        "payload_length": int(p["payload_length"]) if is_ip else None,
        "tcp_tsval": int(p["tsval"]) if is_tcp and p["has_timestamps"] else None,
        "encapsulation": "+".join(layers) or None,
        "vni": int(p["vni"]) if p["vni"] >= 0 else None,
        "outer_src_ip": address(int(p["outer_src_hi"]), int(p["outer_src_lo"])) if is_tunnelled else None,
        "outer_dst_ip": address(int(p["outer_dst_hi"]), int(p["outer_dst_lo"])) if is_tunnelled else None,
        "vlan": int(p["vlan"]) if p["vlan"] >= 0 else None,
        "icmp_type": int(p["icmp_type"]) if is_icmp else None,
        "icmp_code": int(p["icmp_code"]) if is_icmp else None,
        "malformed": MALFORMED_NAMES[p["malformed"]] or None,
    }
    for name in ("tcp_flags", "tcp_seq", "tcp_ack", "tcp_window"):
        expected[name] = int(p[name]) if is_tcp else None
    return expected | dict.fromkeys(QUOTED)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows, times as nanoseconds."""
    table = pq.read_table(path)
    assert table.schema.equals(PACKETS.schema)
    at = table.schema.get_field_index("ts")
    return table.set_column(at, "ts", table["ts"].cast(pa.int64())).to_pylist()


@pytest.mark.parametrize("seed", range(6))
def test_rows_are_those_of_the_naive_twin_wherever_pages_row_groups_and_chunks_end(seed: int, tmp_path: Path) -> None:
    choose = random.Random(seed)
    made = packets(700, choose, midnight=seed > 3)
    rows = PacketRows(rows=choose.choice([63, 64, 100, 1000]), page_rows=choose.choice([1, 31, 64, 333]))
    files: dict[int, ParquetWriter] = {}
    at = 0
    while at < len(made):
        at += rows.take(np.zeros(0, np.uint8), made[at : at + choose.randrange(1, 300)], 6, INTERFACES)
        if rows.is_full or at == len(made):
            for day, row_group in rows.row_groups(SEGMENTS, INTERFACES):
                if day not in files:
                    files[day] = ParquetWriter(tmp_path / f"{day}.parquet", PACKETS.schema)
                files[day].write_row_group(row_group.chunks, row_group.rows)
            rows.clear()
    expected = [row(p) for p in made]
    assert len(files) == (3 if seed > 3 else 1)
    for day, file in files.items():
        file.close()
        assert read(tmp_path / f"{day}.parquet") == [row for row in expected if row["ts"] // DAY == day]


@numba.njit(boundscheck=True)
def read_all(data: Any, at: int) -> tuple[int, int, int]:
    return be16(data, at), be32(data, at), be64(data, at)


def test_numbers_are_read_in_network_order() -> None:
    data = np.arange(0x81, 0x8B, dtype=np.uint8)
    assert read_all(data, 2) == (0x8384, 0x83848586, 0x838485868788898A)


@pytest.mark.parametrize("at", [-1, 3, 10, 1 << 40])
def test_a_read_beyond_the_end_is_an_error(at: int) -> None:
    with pytest.raises(IndexError):
        read_all(np.zeros(10, np.uint8), at)
