"""Captures of link types that are decoded, and of others: those are said by name."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from click.testing import CliRunner
from scapy.layers.inet import IP, UDP

from podtap import main
from tests.tables import analysed

DATAGRAM = bytes(IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=4000, dport=5000) / b"hello")


def capture(folder: Path, link_type: int, *frames: bytes) -> Path:
    path = folder / f"{link_type}.pcap"
    records = b"".join(struct.pack("<IIII", 1, 0, len(frame), len(frame)) + frame for frame in frames)
    path.write_bytes(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, link_type) + records)
    return path


@pytest.mark.parametrize("link_type", [50, 104])
def test_ip_behind_ciscos_hdlc_is_read(link_type: int, tmp_path: Path) -> None:
    keep_alive = b"\x8f\x00\x80\x35" + bytes(18)
    result = analysed(capture(tmp_path, link_type, keep_alive, b"\x0f\x00\x08\x00" + DATAGRAM))
    assert [(flow["orig_ip"], flow["orig_bytes"]) for flow in result.rows("flows")] == [("10.0.0.1", 5)]
    assert not result.problems


@pytest.mark.parametrize(("others", "is_said"), [(0, False), (1, False), (2, True)])
def test_many_packets_that_are_neither_ip_nor_arp_are_said(others: int, is_said: bool, tmp_path: Path) -> None:
    frames = [bytes(12) + b"\x88\xcc" + bytes(46)] * others + [bytes(12) + b"\x08\x00" + DATAGRAM] * 22
    run = CliRunner().invoke(main, ["analyze", str(capture(tmp_path, 1, *frames)), "--lake", str(tmp_path / "lake")])
    assert run.exit_code == 0
    assert ("neither IP nor ARP, so in no flow: 2 of these packets" in run.stderr) == is_said


@pytest.mark.parametrize(
    ("link_type", "frames", "message"),
    [
        (105, 1, "1 packet of link type IEEE802_11 (105) can't be decoded"),
        (107, 2, "2 packets of link type FRELAY (107) can't be decoded"),
        (4321, 2, "2 packets of link type 4321 can't be decoded"),
    ],
)
def test_others_are_a_problem_that_names_them(link_type: int, frames: int, message: str, tmp_path: Path) -> None:
    path = capture(tmp_path, link_type, *[DATAGRAM] * frames)
    run = CliRunner().invoke(main, ["analyze", str(path), "--lake", str(tmp_path / "lake")])
    assert run.exit_code == 3
    assert message in run.stderr
