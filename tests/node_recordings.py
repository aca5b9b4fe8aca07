"""Recordings as the agent and the journal write them, made by hand from capture/contract.py for tests."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import zstandard
from scapy.layers.inet import IP, TCP, UDP
from scapy.packet import Packet

from capture.contract import (
    JOURNAL,
    JOURNAL_SUFFIX,
    NANOSECONDS,
    Interface,
    JournalRecord,
    Ledger,
    Manifest,
    node_folder,
    safe_name,
    sha256,
    stem,
    to_json,
)

LINKTYPE_SLL2 = 276
LINKTYPE_RAW = 101
START = 1_772_373_780 * NANOSECONDS
"""2026-03-01T14:03:00Z."""
Record = tuple[int, int, Packet]
"""When, at which interface (its index), and what."""


def at(seconds: float) -> int:
    """Nanoseconds of so many seconds after START."""
    return START + round(seconds * NANOSECONDS)


def clock(time_ns: int) -> str:
    """As Kubernetes writes a time: in whole seconds, rounded down."""
    seconds = time_ns // NANOSECONDS
    days, rest = divmod(seconds - START // NANOSECONDS + 14 * 3600 + 3 * 60, 86_400)
    return f"2026-03-{1 + days:02}T{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}Z"


def pcap(records: Iterable[Record], link_type: int = LINKTYPE_SLL2) -> bytes:
    """Nanosecond pcap; of each packet an SLL2 header, incoming, and the IP packet, or (LINKTYPE_RAW) that alone."""
    parts = [struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262_144, link_type)]
    for time_ns, index, packet in records:
        ip = bytes(packet)
        protocol = 0x86DD if ip[0] >> 4 == 6 else 0x0800
        header = struct.pack(">HHIHBB8s", protocol, 0, index, 1, 0, 6, bytes(8))
        data = (header if link_type == LINKTYPE_SLL2 else b"") + ip
        seconds, nanoseconds = divmod(time_ns, NANOSECONDS)
        parts.append(struct.pack("<IIII", seconds, nanoseconds, len(data), len(data)) + data)
    return b"".join(parts)


def syn(src: str, dst: str, sport: int, dport: int) -> Packet:
    return IP(src=src, dst=dst) / TCP(sport=sport, dport=dport, flags="S")


def datagram(src: str, dst: str, sport: int, dport: int) -> Packet:
    return IP(src=src, dst=dst) / UDP(sport=sport, dport=dport) / b"hello"


@dataclass
class Node:
    """A node's folder in a root, that its agent fills segment by segment."""

    root: Path
    name: str
    cluster: str = "prod"
    interfaces: list[Interface] = field(default_factory=list)
    seq: int = 0
    last: str | None = None

    @property
    def folder(self) -> Path:
        return self.root / node_folder(self.cluster, self.name)

    def segment(
        self,
        since_ns: int,
        until_ns: int,
        records: Sequence[Record] = (),
        compressed: bool = False,
        link_type: int = LINKTYPE_SLL2,
        **more: Any,
    ) -> Path:
        """A sealed segment and its manifest, of which `more` may change anything; returns the segment's path."""
        self.seq += 1
        name, data = stem(since_ns, self.seq), pcap(records, link_type)
        times = [time_ns for time_ns, _, _ in records]
        manifest = Manifest(
            cluster=self.cluster,
            node=self.name,
            stem=name,
            opened_ns=since_ns,
            sealed_ns=until_ns,
            link_type=link_type,
            snaplen=262_144,
            packets=len(records),
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            first_packet_ns=min(times, default=None),
            last_packet_ns=max(times, default=None),
            previous_sha256=self.last,
            ledger=Ledger(accepted=len(records), written=len(records), interface=0),
            capture=["any"],
            boot_id="boot",
            run_id="run",
            interfaces=_during(self.interfaces, since_ns, until_ns),
        )
        content = to_json(replace(manifest, **more))
        self.last = sha256(content)
        path = self.folder / f"{name}.pcap{'.zst' * compressed}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(zstandard.compress(data) if compressed else data)
        (self.folder / f"{name}.json").write_bytes(content)
        return path

    def part(self, since_ns: int, records: Sequence[Record]) -> Path:
        """A segment that is being written."""
        self.seq += 1
        path = self.folder / f"{stem(since_ns, self.seq)}.pcap.part"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pcap(records))
        return path


def _during(interfaces: Iterable[Interface], since_ns: int, until_ns: int) -> list[Interface]:
    """As a manifest of that time has them."""
    there = [each for each in interfaces if (each.since_ns or 0) < until_ns and (each.until_ns or until_ns) > since_ns]
    return [
        replace(
            each,
            since_ns=each.since_ns if each.since_ns and each.since_ns > since_ns else None,
            until_ns=each.until_ns if each.until_ns and each.until_ns < until_ns else None,
        )
        for each in there
    ]


def write_journal(root: Path, records: Sequence[JournalRecord], writer: str = "journal-0", seq: int = 1) -> Path:
    """A sealed file of the journal."""
    path = root / JOURNAL / safe_name(writer) / f"{stem(records[0].observed_ns, seq)}{JOURNAL_SUFFIX}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zstandard.compress(b"".join(map(to_json, records))))
    return path
