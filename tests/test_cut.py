"""Parts of segments: the packets that tshark picks with the same selection, and a manifest that tells of the rest."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import time
import tracemalloc
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.contrib.geneve import GENEVE
from scapy.contrib.mpls import MPLS
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, GRE, Dot1AD, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw
from scapy.utils import RawPcapNgReader, RawPcapReader

from capture.address_match import AddressMatch
from capture.contract import Manifest, from_json, sha256, to_json
from capture.cut import Cut, Selection
from capture.errors import PodtapError, UsageError
from capture.ring import Ring
from tests.rings import ETHERNET, NANOSECONDS, SLL2, SMALL, START_NS, facts, pcap

RAW = 101
INCIDENT = Path(__file__).resolve().parents[1] / "sample_pcaps" / "incident"
POD, POD6, OTHER, OTHER6 = "10.244.1.7", "fd00::1:7", "10.244.2.9", "fd00::2:9"
NODES = {"src": "192.168.0.1", "dst": "192.168.0.2"}
NODES6 = {"src": "fc00::1", "dst": "fc00::2"}


def ether(**fields: int) -> Packet:
    return Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02", **fields)


def inner() -> list[Packet]:
    """From the pod, to it, and two of others: one with the pod's address in its payload."""
    mention = ip_address(POD).packed + ip_address(POD6).packed
    return [
        IP(src=POD, dst=OTHER) / UDP(sport=1, dport=2) / b"from",
        IP(src=OTHER, dst=POD) / TCP(sport=1, dport=2) / b"to",
        IP(src=OTHER, dst="10.244.2.10") / UDP(sport=1, dport=2) / Raw(mention),
        IPv6(src=POD6, dst=OTHER6) / UDP(sport=1, dport=2) / b"from",
        IPv6(src=OTHER6, dst=POD6) / TCP(sport=1, dport=2) / b"to",
        IPv6(src=OTHER6, dst="fd00::2:a") / UDP(sport=1, dport=2) / Raw(mention),
    ]


def frames() -> list[Packet]:
    """All kinds of wrapping around the same six packets."""
    wrapped: list[Packet] = []
    for packet in inner():
        number = 0x0800 if IP in packet else 0x86DD
        within = ether() / packet
        wrapped += [
            ether() / packet,
            ether() / Dot1Q(vlan=5) / packet,
            ether() / Dot1AD(vlan=5) / Dot1Q(vlan=6) / packet,
            ether() / MPLS(label=16, s=0) / MPLS(label=17, s=1) / packet,
            ether() / IP(**NODES) / UDP(sport=50000, dport=4789) / VXLAN(vni=1) / within,
            ether() / IP(**NODES) / UDP(sport=50000, dport=8472) / VXLAN(vni=1) / within,
            ether() / IPv6(**NODES6) / UDP(sport=50000, dport=4789) / VXLAN(vni=1) / within,
            ether() / IPv6(**NODES6) / IPv6ExtHdrDestOpt() / UDP(sport=50000, dport=4789) / VXLAN(vni=1) / within,
            ether()
            / IP(**NODES, options=b"\1\1\1\0")
            / UDP(sport=50000, dport=4789)
            / VXLAN(vni=1)
            / ether()
            / Dot1Q()
            / packet,
            ether() / IP(**NODES) / UDP(sport=50000, dport=6081) / GENEVE(proto=0x6558, vni=1) / within,
            ether()
            / IP(**NODES)
            / UDP(sport=50000, dport=6081)
            / GENEVE(proto=number, optionlen=2, options=bytes(8))
            / packet,
            ether() / IP(**NODES, proto=4 if IP in packet else 41) / packet,
            ether() / IP(**NODES) / GRE(proto=number) / packet,
            ether() / IP(**NODES) / GRE(proto=0x6558, key_present=1, key=7, seqnum_present=1) / within,
            ether() / IP(**NODES) / UDP(sport=50000, dport=9999) / VXLAN(vni=1) / within,
        ]
    return [
        *wrapped,
        ether() / ARP(psrc=OTHER, pdst=POD),
        ether() / ARP(psrc=POD, pdst=OTHER),
        ether() / ARP(psrc=OTHER, pdst="10.244.2.1"),
        ether() / IP(src=POD, dst=OTHER, frag=100, proto=17) / bytes(50),
        ether() / IPv6(src=POD6, dst=OTHER6) / IPv6ExtHdrFragment(offset=100, nh=17) / bytes(50),
        ether() / IP(**NODES, frag=100, proto=17) / bytes(8) / bytes(8) / bytes(ether() / inner()[0]),
        ether(type=0x88CC) / bytes(60),
    ]


FRAMES = [Ether(bytes(frame)) for frame in frames()]


def as_link_type(frame: Packet, link_type: int) -> bytes | None:
    data = bytes(frame)
    if link_type == SLL2:
        return data[12:14] + bytes(2) + b"\0\0\0\2\0\1\0\6" + bytes(8) + data[14:]
    if link_type == RAW:
        return data[14:] if data[12:14] in (b"\x08\0", b"\x86\xdd") else None
    return data


def sealed(folder: Path, data: bytes) -> tuple[Path, Manifest, str]:
    """A ring with one segment of these bytes: its folder, the manifest, and the manifest's hash."""
    ring = Ring(folder, "lab", "node-a", replace(SMALL, quota_bytes=1 << 30))
    part = ring.open(START_NS)
    os.write(part.fd, data)
    packets = [(time_ns, b"") for time_ns, _ in read_records(part.path)]
    manifest = ring.seal(part, facts(data, packets))
    ring.close()
    return ring.folder, manifest, sha256((ring.folder / f"{manifest.stem}.json").read_bytes())


def read_records(path: Path) -> list[tuple[int, bytes]]:
    """By scapy."""
    with RawPcapReader(str(path)) as reader:
        assert not isinstance(reader, RawPcapNgReader)
        unit = 1 if reader.nano else 1000
        return [(meta.sec * NANOSECONDS + meta.usec * unit, data) for data, meta in reader]


def tshark_picks(path: Path, display_filter: str) -> list[int]:
    command = ["tshark", "-r", str(path), "-d", "udp.port==8472,vxlan", "-o", "ip.defragment:FALSE"]
    command += ["-Y", display_filter, "-T", "fields", "-e", "frame.number"]
    return [
        int(line) - 1 for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    ]


def display_filter(address: str) -> str:
    if ":" in address:
        return f"ipv6.addr == {address}"
    return f"ip.addr == {address} || arp.src.proto_ipv4 == {address} || arp.dst.proto_ipv4 == {address}"


def cut(folder: Path, manifest: Manifest, digest: str, selection: Selection) -> tuple[Cut, bytes]:
    part = Cut(folder, manifest, digest, selection)
    data = b"".join(part.pieces())
    assert (len(data), hashlib.sha256(data).hexdigest()) == (part.manifest.size_bytes, part.manifest.sha256)
    return part, data


@pytest.mark.parametrize("link_type", [ETHERNET, SLL2, RAW], ids=["Ethernet", "SLL2", "raw"])
@pytest.mark.parametrize("addresses", [[POD], [POD6], [POD, POD6], [OTHER6, "10.9.9.9"]], ids=",".join)
def test_addresses_are_found_also_inside_tunnels(tmp_path: Path, link_type: int, addresses: list[str]) -> None:
    some = [data for frame in FRAMES if (data := as_link_type(frame, link_type)) is not None]
    folder, manifest, digest = sealed(
        tmp_path, pcap([(START_NS + at, each) for at, each in enumerate(some)], link_type)
    )
    source = folder / f"{manifest.stem}.pcap"
    expected = tshark_picks(source, " || ".join(map(display_filter, addresses)))
    part, data = cut(folder, manifest, digest, Selection(addresses=addresses))
    target = tmp_path / "cut.pcap"
    target.write_bytes(data)
    records = read_records(source)
    assert read_records(target) == [records[at] for at in expected]
    assert part.manifest.packets == len(expected) > 20
    assert part.damage == ""


def test_pods_of_a_real_capture(tmp_path: Path) -> None:
    data = gzip.decompress((INCIDENT / "node-a.pcap.gz").read_bytes())
    folder, manifest, digest = sealed(tmp_path, data)
    source = folder / f"{manifest.stem}.pcap"
    records = read_records(source)
    run = subprocess.run(
        ["tshark", "-r", str(source), "-q", "-z", "endpoints,ip"], capture_output=True, text=True, check=True
    )
    pods = [line.split()[0] for line in run.stdout.splitlines() if line.startswith("10.")][:3]
    assert len(pods) == 3
    for addresses in (pods[:2],):
        terms = " || ".join(
            f"ip.addr == {each} || arp.src.proto_ipv4 == {each} || arp.dst.proto_ipv4 == {each}" for each in addresses
        )
        # What an ICMP error quotes is no address of the packet.
        expected = tshark_picks(source, f"({terms}) && !(icmp.type == 3 || icmp.type == 11)")
        quoting = tshark_picks(source, "icmp.type == 3 || icmp.type == 11")
        _, part = cut(folder, manifest, digest, Selection(addresses=addresses))
        (tmp_path / "cut.pcap").write_bytes(part)
        picked = read_records(tmp_path / "cut.pcap")
        errors = [records[at] for at in quoting]
        assert [each for each in picked if each not in errors] == [records[at] for at in expected]
        assert 0 < len(picked) < len(records)


def test_a_window_is_half_open_and_compares_nanoseconds(tmp_path: Path) -> None:
    times = [START_NS + at for at in (0, 5, 999, 1000, 1001, 10**9, 3, 2 * 10**9)]
    data = pcap([(time_ns, bytes([at]) * 40) for at, time_ns in enumerate(times)])
    folder, manifest, digest = sealed(tmp_path, data)
    part, cut_data = cut(folder, manifest, digest, Selection(START_NS + 3, START_NS + 1001))
    (tmp_path / "cut.pcap").write_bytes(cut_data)
    assert [data[0] for _, data in read_records(tmp_path / "cut.pcap")] == [1, 2, 3, 6]
    assert (part.manifest.first_packet_ns, part.manifest.last_packet_ns) == (START_NS + 3, START_NS + 1000)
    derived = part.manifest.derived_from
    assert derived is not None
    assert (derived.manifest_sha256, derived.sha256, derived.packets) == (digest, manifest.sha256, 8)
    assert (derived.since_ns, derived.until_ns, derived.addresses) == (START_NS + 3, START_NS + 1001, None)
    assert part.manifest.previous_sha256 == manifest.previous_sha256


def test_a_part_of_nothing_is_a_capture_without_packets(tmp_path: Path) -> None:
    folder, manifest, digest = sealed(tmp_path, pcap([(START_NS, bytes(40))]))
    part, data = cut(folder, manifest, digest, Selection(until_ns=START_NS))
    assert (part.manifest.packets, part.manifest.first_packet_ns, len(data)) == (0, None, 24)
    (tmp_path / "cut.pcap").write_bytes(data)
    assert tshark_picks(tmp_path / "cut.pcap", "frame") == []


def test_a_segment_inside_the_selection_needs_no_cut(tmp_path: Path) -> None:
    _, manifest, _ = sealed(tmp_path, pcap([(START_NS, bytes(40)), (START_NS + 9, bytes(40))]))
    assert Selection().takes_all_of(manifest)
    assert Selection(START_NS, START_NS + 10).takes_all_of(manifest)
    assert not Selection(START_NS, START_NS + 9).takes_all_of(manifest)
    assert not Selection(START_NS + 1).takes_all_of(manifest)
    assert not Selection(addresses=[POD]).takes_all_of(manifest)


def test_a_part_of_a_part_knows_what_it_comes_from_in_the_end(tmp_path: Path) -> None:
    folder, manifest, digest = sealed(tmp_path, pcap([(START_NS + at, bytes(40)) for at in range(10)]))
    part, data = cut(folder, manifest, digest, Selection(START_NS + 2, START_NS + 8, ["10.0.0.1", "10.0.0.2"]))
    again = sealed(tmp_path / "bundle", data)
    middle = replace(part.manifest, stem=again[1].stem)
    last, _ = cut(again[0], middle, "0" * 64, Selection(START_NS, START_NS + 5, ["10.0.0.2", "10.0.0.3"]))
    derived = last.manifest.derived_from
    assert derived is not None
    assert (derived.manifest_sha256, derived.since_ns, derived.until_ns) == (digest, START_NS + 2, START_NS + 5)
    assert derived.addresses == ["10.0.0.2"]


def test_compressed_salvaged_and_plain_segments_give_the_same_part(tmp_path: Path) -> None:
    data = pcap([(START_NS + at, os.urandom(200)) for at in range(2500)])
    plain = sealed(tmp_path / "plain", data)
    compressing = Ring(tmp_path / "zstd", "lab", "node-a", replace(SMALL, quota_bytes=1 << 26, compress=True))
    part = compressing.open(START_NS)
    os.write(part.fd, data + data[24:99])
    compressing.close()
    compressing = Ring(tmp_path / "zstd", "lab", "node-a", replace(SMALL, quota_bytes=1 << 26, compress=True))
    (salvaged,) = compressing.salvage()
    path = compressing.folder / f"{salvaged.stem}.pcap.zst"
    for _ in range(200):
        if path.exists() and not path.with_suffix("").exists():
            break
        time.sleep(0.02)
    compressing.close()
    assert path.exists()
    selection = Selection(START_NS + 100, START_NS + 300)
    digest = sha256((compressing.folder / f"{salvaged.stem}.json").read_bytes())
    assert cut(*plain, selection)[1] == cut(compressing.folder, salvaged, digest, selection)[1]
    path.write_bytes(path.read_bytes()[:-9])
    part_of, _ = cut(compressing.folder, salvaged, digest, selection)
    assert part_of.damage
    path.write_bytes(bytes(100))
    with pytest.raises(PodtapError, match="can't be decompressed"):
        cut(compressing.folder, salvaged, digest, selection)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="gone"):
        cut(compressing.folder, salvaged, digest, selection)


def test_damage_is_told_and_what_is_whole_is_kept(tmp_path: Path) -> None:
    data = pcap([(START_NS + at, bytes(40)) for at in range(10)])
    folder, manifest, digest = sealed(tmp_path, data)
    path = folder / f"{manifest.stem}.pcap"
    path.write_bytes(data[:-1])
    part, kept = cut(folder, manifest, digest, Selection())
    assert part.manifest.packets == 9
    assert part.damage == f"offset {len(kept)}: a record is cut off"
    path.write_bytes(data[:-1] + b"x")
    part, _ = cut(folder, manifest, digest, Selection())
    assert part.damage == "its data is not what its manifest says"
    path.write_bytes(b"no pcap" * 9)
    with pytest.raises(PodtapError, match="no pcap"):
        cut(folder, manifest, digest, Selection())


def test_memory_is_bounded(tmp_path: Path) -> None:
    frame = as_link_type(FRAMES[0], SLL2)
    assert frame is not None
    data = pcap([(START_NS + at, frame + bytes(1000)) for at in range(16_000)])
    folder, manifest, digest = sealed(tmp_path, data)
    tracemalloc.start()
    size = sum(map(len, Cut(folder, manifest, digest, Selection(addresses=[POD])).pieces()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size == len(data) > 15 << 20
    assert peak < 10 << 20


@pytest.mark.parametrize("address", ["", "10.0.0", "10.0.0.0/8", "pod-a"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="not an IP address"):
        AddressMatch([address], SLL2)


def test_a_link_type_without_addresses_is_refused() -> None:
    with pytest.raises(UsageError, match="link type 147"):
        AddressMatch([POD], 147)


def test_an_ipv4_address_written_as_ipv6_is_the_same() -> None:
    frame = bytes(FRAMES[0])
    assert AddressMatch([f"::ffff:{POD}"], ETHERNET).matches(frame, 0, len(frame))


@given(st.integers(0, 92), st.integers(0, 200), st.binary(max_size=12), st.integers(0, 200))
def test_hostile_frames_never_raise(which: int, at: int, garbage: bytes, end: int) -> None:
    whole = bytes(FRAMES[which % len(FRAMES)])
    frame = (whole[:at] + garbage + whole[at + len(garbage) :])[:end]
    for link_type in (ETHERNET, SLL2, RAW, 113):
        AddressMatch([POD, POD6], link_type).matches(frame, 0, len(frame))


def test_a_manifest_of_a_part_is_read_back(tmp_path: Path) -> None:
    folder, manifest, digest = sealed(tmp_path, pcap([(START_NS, bytes(40))]))
    part, _ = cut(folder, manifest, digest, Selection(START_NS))
    assert from_json(Manifest, to_json(part.manifest)) == part.manifest
    assert json.loads(to_json(part.manifest))["derived_from"]["since_ns"] == START_NS
