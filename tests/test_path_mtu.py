"""A GSO packet that is sent again over a narrower path carries more TCP segments than it did."""

from __future__ import annotations

from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import wrpcap

from analysis import open_lake
from analysis.pipeline import analyze

TIMESTAMPS = [("NOP", None), ("NOP", None), ("Timestamp", (1, 1))]
MTU = 1300


def conversation(v6: bool, too_big: bool) -> list[Packet]:
    """8 TCP segments of what the narrower path lets through, sent as one packet: 7 by the SYNs' MSS."""
    there = IPv6(src="fd00::1", dst="fd00::2") if v6 else IP(src="10.0.0.1", dst="10.0.0.2", flags="DF")
    back = IPv6(src="fd00::2", dst="fd00::1") if v6 else IP(src="10.0.0.2", dst="10.0.0.1")
    header, mss = (40, 1440) if v6 else (20, 1460)
    syn = [("MSS", mss), *TIMESTAMPS]
    length = 8 * (MTU - header - 20 - 12)
    data = there / TCP(sport=4000, dport=80, flags="A", seq=1, ack=1, options=TIMESTAMPS) / Raw(bytes(length))
    quote = bytes(data)[: header + 20]
    if v6:
        report = IPv6(src="fd00::99", dst="fd00::1") / ICMPv6PacketTooBig(mtu=MTU) / Raw(quote)
    else:
        report = IP(src="10.0.0.99", dst="10.0.0.1") / ICMP(type=3, code=4, nexthopmtu=MTU) / Raw(quote)
    again = data.copy()
    if not v6:
        again.id = 100  # with the same, it would be a copy that the network made
    return [
        there / TCP(sport=4000, dport=80, flags="S", seq=0, options=syn),
        back / TCP(sport=80, dport=4000, flags="SA", seq=0, ack=1, options=syn),
        there / TCP(sport=4000, dport=80, flags="A", seq=1, ack=1, options=TIMESTAMPS),
        data,
        *([report] if too_big else []),
        again,
    ]


def write(path: Path, packets: list[Packet], first: int = 0) -> None:
    frames = [Ether() / packet for packet in packets]
    for number, frame in enumerate(frames):
        frame.time = 1_700_000_000 + (first + number) / 1000
    wrpcap(str(path), frames)


@pytest.mark.parametrize("v6", [False, True], ids=["v4", "v6"])
@pytest.mark.parametrize(("too_big", "expected"), [(False, 7), (True, 8)])
def test_tcp_segments_are_counted_by_the_mss_of_the_path(
    tmp_path: Path, v6: bool, too_big: bool, expected: int
) -> None:
    write(tmp_path / "a.pcap", conversation(v6, too_big))
    analyze([str(tmp_path / "a.pcap")], tmp_path / "lake", jobs=1)
    assert open_lake(tmp_path / "lake").retransmits()["tcp_segments"].tolist() == [expected]


def test_what_a_router_said_holds_over_file_borders(tmp_path: Path) -> None:
    for number, packet in enumerate(conversation(v6=False, too_big=True)):
        write(tmp_path / f"{number}.pcap", [packet], number)
    analyze([str(tmp_path)], tmp_path / "lake", jobs=1)
    assert open_lake(tmp_path / "lake").retransmits()["tcp_segments"].tolist() == [8]
