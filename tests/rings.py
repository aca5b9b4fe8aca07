"""A node's folder for tests: packets to put into it, and a look at it that uses nothing of capture's own."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

from capture.contract import Manifest
from capture.retention import Limits
from capture.ring import Ring, SegmentFacts

NANOSECONDS = 10**9
SNAPLEN = 262_144
SLL2 = 276
ETHERNET = 1
START_NS = 1_795_000_000 * NANOSECONDS
SMALL = Limits(quota_bytes=1 << 20, frozen_quota_bytes=1 << 20, segment_bytes=64 << 10)


def record(time_ns: int, data: bytes, length: int | None = None) -> bytes:
    seconds, nanoseconds = divmod(time_ns, NANOSECONDS)
    return struct.pack("<IIII", seconds, nanoseconds, len(data), length or len(data)) + data


def pcap(records: list[tuple[int, bytes]], link_type: int = SLL2) -> bytes:
    """Nanoseconds, as libpcap writes it on this machine."""
    header = struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, SNAPLEN, link_type)
    return header + b"".join(record(time_ns, data) for time_ns, data in records)


def sll2_packets(count: int, since_ns: int, size_bytes: int = 100) -> list[tuple[int, bytes]]:
    """UDP from 10.0.0.1 to 10.0.0.2, a millisecond apart."""
    payload = size_bytes - 20 - 28
    ip = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 28 + payload, 0, 0, 64, 17, 0, bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
    )
    udp = struct.pack(">HHHH", 1111, 2222, 8 + payload, 0)
    sll2 = struct.pack(">HHIHBB8s", 0x0800, 0, 2, 1, 0, 6, bytes(8))
    return [
        (since_ns + at * 10**6, sll2 + ip + udp + at.to_bytes(4, "big") + os.urandom(payload - 4))
        for at in range(count)
    ]


def facts(data: bytes, packets: list[tuple[int, bytes]], **more: Any) -> SegmentFacts:
    times = [time_ns for time_ns, _ in packets]
    return SegmentFacts(
        SLL2, SNAPLEN, len(packets), len(data), min(times, default=None), max(times, default=None), **more
    )


def record_segment(ring: Ring, packets: int = 100, since_ns: int | None = None, size_bytes: int = 100) -> Manifest:
    """One whole life of a segment."""
    now_ns = time.time_ns()
    some = sll2_packets(packets, now_ns if since_ns is None else since_ns, size_bytes)
    data = pcap(some)
    part = ring.open(now_ns)
    os.write(part.fd, data)
    return ring.seal(part, facts(data, some))


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def disk_bytes(folder: Path) -> int:
    """What du counts, while files come and go."""
    total = 0
    for directory, _, names in os.walk(folder):
        for path in (directory, *(os.path.join(directory, name) for name in names)):
            try:
                status = os.lstat(path)
            except FileNotFoundError:
                continue
            total += max(status.st_blocks * 512, status.st_size)
    return total


def tombstones(folder: Path) -> list[dict[str, Any]]:
    path = folder / "tombstones.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def manifests(folder: Path) -> list[dict[str, Any]]:
    """In the order of their names."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("[0-9]*/*.json"))]


def walk(folder: Path) -> list[str]:
    """The stems of a node's chain, from its end back to its beginning; every manifest and tombstone is on the way."""
    links: dict[str, tuple[str | None, str]] = {}
    for path in folder.glob("[0-9]*/*.json"):
        data = path.read_bytes()
        values = json.loads(data)
        links[hashlib.sha256(data).hexdigest()] = (values["previous_sha256"], values["stem"])
    for each in tombstones(folder):
        assert each["manifest_sha256"] not in links, "a segment is there, and has a tombstone"
        links[each["manifest_sha256"]] = (each.get("previous_sha256"), each["stem"])
    ends = set(links) - {previous for previous, _ in links.values()}
    assert len(ends) == 1 or not links, "the chain has one end"
    at: str | None = next(iter(ends), None)
    stems = []
    while at is not None:
        at, name = links[at]
        stems.append(name)
    assert len(stems) == len(links), "the chain has one beginning"
    return stems


def assert_sealed(folder: Path) -> None:
    """Every manifest tells the truth about its segment, and Wireshark's reader reads each whole."""
    assert_hashes(folder)
    sealed = manifests(folder)
    paths = [str(folder / f"{manifest['stem']}.pcap") for manifest in sealed]
    command = ["capinfos", "-M", "-c", "-T", "-r", *paths]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    counts = [int(line.split("\t")[1]) for line in run.stdout.splitlines()]
    assert counts == [manifest["packets"] for manifest in sealed]


def assert_hashes(folder: Path) -> None:
    for manifest in manifests(folder):
        data = (folder / f"{manifest['stem']}.pcap").read_bytes()
        assert len(data) == manifest["size_bytes"]
        assert hashlib.sha256(data).hexdigest() == manifest["sha256"]


def tshark_packets(path: Path) -> int:
    """tshark fails on a file that ends within a record."""
    run = subprocess.run(
        ["tshark", "-r", str(path), "-T", "fields", "-e", "frame.number"], capture_output=True, text=True, check=True
    )
    return len(run.stdout.splitlines())
