"""Recordings as an agent leaves them, made by hand: real pcap files, manifests and tombstones in a chain, a journal."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

import zstandard

from capture.contract import (
    JOURNAL,
    NANOSECONDS,
    TOMBSTONES,
    JournalRecord,
    Ledger,
    Manifest,
    Tombstone,
    node_folder,
    sha256,
    stem,
    to_json,
)

START = 1_764_252_000 * NANOSECONDS
"""2025-11-27T14:00:00Z"""
MINUTE = 60 * NANOSECONDS
ETHERNET = 1


def packet(source: str, destination: str, size: int = 40) -> bytes:
    """A UDP packet in an Ethernet frame."""
    data = (bytes(range(251)) * (size // 251 + 1))[:size]
    addresses = [bytes(int(part) for part in address.split(".")) for address in (source, destination)]
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 28 + size, 1, 0, 64, 17, 0) + b"".join(addresses)
    return bytes(12) + b"\x08\x00" + ip + struct.pack(">HHHH", 1111, 2222, 8 + size, 0) + data


def pcap(packets: list[tuple[int, bytes]]) -> bytes:
    """A classic file with nanoseconds."""
    head = struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262_144, ETHERNET)
    records = [
        struct.pack("<IIII", time_ns // NANOSECONDS, time_ns % NANOSECONDS, len(data), len(data)) + data
        for time_ns, data in packets
    ]
    return head + b"".join(records)


@dataclass
class HandMade:
    """One node's folder. `segment` adds one of a minute, after those before it."""

    root: Path
    node: str = "node-a"
    cluster: str = "lab"
    previous: str | None = None
    seq: int = 0
    next_ns: int = START
    manifests: list[Manifest] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.root / node_folder(self.cluster, self.node)

    def segment(
        self, packets: list[tuple[int, bytes]] | None = None, compress: bool = False, write: bool = True
    ) -> Manifest:
        """By default ten packets, one each six seconds."""
        opened = self.next_ns
        self.next_ns += MINUTE
        self.seq += 1
        if packets is None:
            every = MINUTE // 10
            number = int(self.node[-1], 36)
            packets = [
                (opened + index * every, packet(f"10.0.{number}.{index}", "10.0.9.9", 40 + index))
                for index in range(10)
            ]
        data = pcap(packets)
        name = stem(opened, self.seq)
        manifest = Manifest(
            cluster=self.cluster,
            node=self.node,
            stem=name,
            opened_ns=opened,
            sealed_ns=self.next_ns + 1_000_000,
            link_type=ETHERNET,
            snaplen=262_144,
            packets=len(packets),
            size_bytes=len(data),
            sha256=sha256(data),
            first_packet_ns=packets[0][0] if packets else None,
            last_packet_ns=packets[-1][0] if packets else None,
            previous_sha256=self.previous,
            ledger=Ledger(accepted=len(packets), written=len(packets)),
            capture=["any"],
        )
        content = to_json(manifest)
        self.previous = sha256(content)
        self.manifests.append(manifest)
        if write:
            path = self.folder / f"{name}.pcap"
            path.parent.mkdir(parents=True, exist_ok=True)
            if compress:
                path.with_suffix(".pcap.zst").write_bytes(zstandard.compress(data))
            else:
                path.write_bytes(data)
            path.with_suffix(".json").write_bytes(content)
        return manifest

    def evict(self, manifest: Manifest, reason: str = "quota") -> None:
        """As the ring does: the files go, a tombstone stays."""
        content = to_json(manifest)
        tombstone = Tombstone(
            stem=manifest.stem,
            manifest_sha256=sha256(content),
            evicted_ns=self.next_ns,
            reason=reason,
            previous_sha256=manifest.previous_sha256,
            first_packet_ns=manifest.first_packet_ns,
            last_packet_ns=manifest.last_packet_ns,
            packets=manifest.packets,
            size_bytes=manifest.size_bytes,
            sha256=manifest.sha256,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / TOMBSTONES, "ab") as file:
            file.write(to_json(tombstone))
        for suffix in (".json", ".pcap", ".pcap.zst"):
            (self.folder / f"{manifest.stem}{suffix}").unlink(missing_ok=True)


def journal(root: Path, records: list[JournalRecord], writer: str = "journal-0", start_ns: int = START) -> Path:
    """One sealed file of the journal."""
    path = root / JOURNAL / writer / f"{stem(start_ns, 1)}.jsonl.zst"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zstandard.compress(b"".join(to_json(record) for record in records)))
    return path


def pod_record(
    kind: str, observed_ns: int, name: str, ip: str, labels: dict[str, str], host_network: bool = False
) -> JournalRecord:
    pod = {
        "metadata": {"name": name, "namespace": "shop", "labels": labels},
        "spec": {"hostNetwork": True} if host_network else {},
        "status": {"podIP": ip, "podIPs": [{"ip": ip}]},
    }
    return JournalRecord(kind, observed_ns, "Pod", name, "1", pod)
