"""Where a capture is cut into files must not show in the tables."""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path

import pytest

from tests import oracle
from tests.tables import analysed, analysed_once, assert_same_tables

pytestmark = oracle.needs_captures

CUT_AT_EVERY_PACKET = (
    "tcp/wireshark__tcp-badsegments.pcap",
    "tcp/zeek__missing-syn.pcap",
    "tcp/arkime__wireshark-retrans.pcap",
    "tcp/zeek__get.pcap",
    "tcp/arkime__tcpseq_synthetic.pcap",
    "dns/zeek__dns53.pcap",
    "dns/arkime__dns-tcp.pcap",
    "dns/zeek__dns-two-responses.pcap",
    "ip_frag/zeek__ipv6-fragmented-dns.pcap",
    "ip_frag/nfstream__dns_fragmented.pcap",
    "ip_frag/pcpp__ip4_fragments.pcap",
    "ip_frag/pcpp__ipv6-frag.pcap",
    "ip_frag/suricata__defrag-bug-6887-defrag-ipv4-tcp-syn__frag-ip-tcp-syn.pcap",
    "pcapng/arkime__bigendian.pcap",
    "tunnels/zeek__vxlan.pcap",
    "tunnels/zeek__geneve.pcap",
    "sctp/zeek__sctp.pcap",
)


def records(capture: Path) -> tuple[bytes, list[bytes]]:
    """The file header of a classic pcap, and its records."""
    content = capture.read_bytes()
    order = "<" if content[0] in (0xD4, 0x4D) else ">"
    found, at = [], 24
    while at + 16 <= len(content):
        size = 16 + struct.unpack_from(order + "I", content, at + 8)[0]
        found.append(content[at : at + size])
        at += size
    return content[:24], found


def write_parts(folder: Path, capture: Path, borders: list[int]) -> None:
    header, packets = records(capture)
    edges = [0, *borders, len(packets)]
    for part, (begin, end) in enumerate(pairwise(edges)):
        (folder / f"part-{part:04}.pcap").write_bytes(header + b"".join(packets[begin:end]))


@pytest.mark.parametrize("capture", CUT_AT_EVERY_PACKET)
def test_a_file_for_every_packet_gives_the_tables_of_one_file(capture: str, tmp_path: Path) -> None:
    path = oracle.CAPTURES / capture
    write_parts(tmp_path, path, list(range(1, len(records(path)[1]))))
    assert_same_tables(analysed(tmp_path), analysed_once(path))


@pytest.mark.parametrize("capture", CUT_AT_EVERY_PACKET[:4])
def test_two_files_give_the_tables_of_one_wherever_they_meet(capture: str, tmp_path: Path) -> None:
    path = oracle.CAPTURES / capture
    for border in range(1, min(len(records(path)[1]), 40)):
        folder = tmp_path / str(border)
        folder.mkdir()
        write_parts(folder, path, [border])
        assert_same_tables(analysed(folder), analysed_once(path))


@pytest.mark.parametrize("recording", ["parts", "parts-one-by-one"])
@pytest.mark.parametrize("name", sorted(path.parent.name for path in oracle.CAPTURES.glob("rotation/*/whole.pcap")))
def test_rotated_files_give_the_tables_of_the_whole_capture(name: str, recording: str, tmp_path: Path) -> None:
    folder = oracle.CAPTURES / "rotation" / name
    parts = sorted(path for path in folder.iterdir() if path.name != "whole.pcap")
    if recording == "parts":
        for part in parts:
            (tmp_path / part.name).symlink_to(part)
        parts = [tmp_path]
    assert_same_tables(analysed(*parts), analysed_once(folder / "whole.pcap"))
