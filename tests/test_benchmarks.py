"""The captures that benchmarks run on hold what their generator says, as scapy reads them."""

import sys
from pathlib import Path

import pytest
from scapy.layers.dns import DNS
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import CookedLinuxV2
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet
from scapy.utils import rdpcap

from benchmarks import generate
from benchmarks.measure import run

PACKETS = 2000


def innermost(frame: Packet) -> Packet:
    """The last IP header of the frame, and all after it."""
    wrapped = frame.getlayer(VXLAN)
    inside = frame if wrapped is None else wrapped
    found: Packet = inside[IPv6] if IPv6 in inside else inside[IP]
    return found


def five_tuple(packet: Packet) -> tuple[str, str, int, int]:
    return packet.src, packet.dst, packet.payload.sport, packet.payload.dport


def payload_length(packet: Packet) -> int:
    """By what the headers say, not by what follows them."""
    if IPv6 in packet:
        return int(packet.plen - packet[TCP].dataofs * 4)
    return int(packet.len - packet.ihl * 4 - packet[TCP].dataofs * 4)


def sent_again(packets: list[Packet]) -> int:
    """Packets with data or SYN whose whole range of sequence numbers their sender had sent before."""
    seen: set[tuple[object, ...]] = set()
    again = 0
    for packet in packets:
        if payload_length(packet) or packet[TCP].flags.S:
            sent = (*five_tuple(packet), packet[TCP].seq, payload_length(packet), packet[TCP].flags.A)
            again += sent in seen
            seen.add(sent)
    return again


@pytest.fixture(scope="module")
def ethernet(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, int], list[Packet]]:
    path = tmp_path_factory.mktemp("benchmarks") / "ethernet.pcap"
    known = generate.write(path, "ethernet", PACKETS, seed=7)
    return known, list(rdpcap(str(path)))


def test_the_capture_is_in_order_and_as_long_as_asked(ethernet: tuple[dict[str, int], list[Packet]]) -> None:
    known, frames = ethernet
    times = [frame.time for frame in frames]
    assert known["packets"] == len(frames) == PACKETS
    assert times == sorted(times)


def test_scapy_finds_the_connections_and_retransmissions_that_the_generator_meant(
    ethernet: tuple[dict[str, int], list[Packet]],
) -> None:
    known, frames = ethernet
    tcp = [frame[IP] for frame in frames if TCP in frame]
    flows = {frozenset([(ip.src, ip[TCP].sport), (ip.dst, ip[TCP].dport)]) for ip in tcp}
    assert len(flows) == known["tcp_flows"] > 10
    assert known["fast_retransmits"] > 0
    assert known["timeout_retransmits"] > 0
    assert sent_again(tcp) == known["fast_retransmits"] + known["timeout_retransmits"]


def test_scapy_finds_the_dns_that_the_generator_meant(ethernet: tuple[dict[str, int], list[Packet]]) -> None:
    known, frames = ethernet
    messages = [frame[IP] for frame in frames if UDP in frame]
    questions = [(*five_tuple(each), each[DNS].id) for each in messages if not each[DNS].qr]
    replies = [each[DNS] for each in messages if each[DNS].qr]
    assert all(each[DNS].qd[0].qname.endswith(b".svc.cluster.local.") for each in messages)
    assert len(set(questions)) == known["dns_queries"] > 10
    assert len(questions) - len(set(questions)) == known["dns_repeats"]
    assert len(replies) == known["dns_replies"]
    assert sum(reply.rcode == 3 for reply in replies) == known["dns_nxdomain"] > 0


@pytest.mark.parametrize("kind", generate.KINDS)
def test_every_length_and_checksum_is_the_one_that_scapy_computes(kind: str, tmp_path: Path) -> None:
    generate.write(tmp_path / "capture.pcap", kind, 400, seed=3)
    for frame in rdpcap(str(tmp_path / "capture.pcap")):
        packet = innermost(frame)
        rebuilt = packet.copy()
        for layer, name in (
            (IP, "len"),
            (IP, "chksum"),
            (IPv6, "plen"),
            (TCP, "chksum"),
            (UDP, "len"),
            (UDP, "chksum"),
        ):
            if layer in rebuilt:
                delattr(rebuilt[layer], name)
        assert bytes(rebuilt) == bytes(packet)


def test_a_node_sees_a_packet_at_each_interface_that_it_crosses(tmp_path: Path) -> None:
    generate.write(tmp_path / "node.pcap", "node", PACKETS, seed=7)
    frames = list(rdpcap(str(tmp_path / "node.pcap")))
    assert all(CookedLinuxV2 in frame for frame in frames)
    wrapped = [innermost(frame) for frame in frames if VXLAN in frame]
    plain = [innermost(frame) for frame in frames if VXLAN not in frame]
    assert {IPv6 in packet for packet in wrapped} == {True, False}
    seen = {(five_tuple(packet), bytes(packet.payload)) for packet in plain}
    assert wrapped
    assert all((five_tuple(packet), bytes(packet.payload)) in seen for packet in wrapped)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        generate.write(tmp_path / name, "node", 500, seed)
    first, second, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == second
    assert first != other


def test_memory_is_that_of_all_processes_of_the_command_and_not_of_the_one_who_measures(tmp_path: Path) -> None:
    hold = "import time; data = b'x' * (60 << 20); time.sleep(0.3)"
    alone = run([sys.executable, "-c", hold], 1, tmp_path, tmp_path)
    start = f"subprocess.Popen([sys.executable, '-c', {hold!r}])"
    pair = f"import subprocess, sys; [each.wait() for each in [{start}, {start}]]"
    both = run([sys.executable, "-c", pair], 2, tmp_path, tmp_path)
    assert 60 < alone.peak_mib < 100
    assert 120 < both.peak_mib < 200
    assert alone.wall_seconds > alone.cpu_seconds + 0.29  # asleep, it takes no time of a processor
