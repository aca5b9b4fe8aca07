"""Socket filters against libpcap: what the kernel accepts of the user's filter is what libpcap finds in the file."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from capture.bpf import JEQ, LD_LENGTH, RET, Assembly, FilterError
from capture.filtering import Wanted, program
from capture.libpcap import ETHERNET, LINUX_SLL2, Handle, Instruction
from tests.test_bpf_layers import KEPT
from tests.wire import Wire, read_all, records

FILTERS = [
    "",
    "udp",
    "tcp port 80 or icmp",
    "not arp",
    "ip6",
    "host 10.0.0.1 and not udp",
    "net 10.0.0.0/8 and dst port 53",
    "len > 100",
    "greater 200 and less 390",
    "ip[8] = 64 and ip[2:2] > 100",
    "tcp[tcpflags] & tcp-syn != 0",
    "ip6[6] = 58",
    "udp[8] & 8 != 0",
    "ip proto 4",
]
ONLY = {
    "wire": ["ether src 02:00:00:00:00:01", "ether[12:2] = 0x88b5", "vlan"],
    "any": ["ifindex 1", "not ifindex 1", "inbound", "outbound"],
}


# Of two VLAN tags the kernel strips one for SLL2, and says of the rest that it is IP: no filter does it right.
FRAMES = [frame for name, (frame, _) in KEPT.items() if name != "qinq"]


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    made = Wire()
    yield made
    made.close()


@pytest.fixture(scope="module")
def whole(wire: Wire, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All packets, by device."""
    files = {}
    for device in ("wire", "any"):
        files[device] = tmp_path_factory.mktemp("whole") / f"{device}.pcap"
        with wire.sniffing(lambda handle: program(handle, Wanted(headers_only=False)), device) as sniffer:
            wire.send(FRAMES)
            assert len(read_all(sniffer, files[device])) == len(FRAMES)
    return files


@pytest.mark.parametrize(
    ("device", "text"), [(device, text) for device in ("wire", "any") for text in (*FILTERS, *ONLY[device])]
)
def test_the_kernel_accepts_what_tcpdump_finds_in_the_file(
    wire: Wire, whole: dict[str, Path], device: str, text: str, tmp_path: Path
) -> None:
    settings = Wanted(text, headers_only=False)
    with wire.sniffing(lambda handle: program(handle, settings), device) as sniffer:
        wire.send(FRAMES)
        found = read_all(sniffer, tmp_path / "filtered.pcap")
    expected = tmp_path / "expected.pcap"
    done = subprocess.run(
        ["tcpdump", "-Z", "root", "-n", "--nano", "-r", whole[device], "-w", expected, *([text] if text else [])],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert [record.data for record in found] == [record.data for record in records(expected)]


@pytest.mark.parametrize("text", ["link[6] = 1", "sll2"])
def test_what_the_kernel_does_not_have_of_sll2_is_refused(text: str) -> None:
    with pytest.raises(FilterError):
        program(Handle.dead(LINUX_SLL2), Wanted(text))


def test_jumps_reach_over_thousands_of_instructions() -> None:
    """A chain in which every test goes to the very end: run by a machine of a few lines."""
    assembly = Assembly()
    assembly.add(LD_LENGTH)
    for number in range(3000):
        assembly.jump(JEQ, number, yes="odd" if number % 2 else "even")
    assembly.add(RET, 0)
    for label, returned in (("odd", 1), ("even", 2)):
        assembly.label(label)
        assembly.add(RET, returned)
    made = assembly.assemble()
    assert len(made) < 3000 * 1.05
    assert [run(made, length) for length in (0, 1, 2, 700, 1501, 2998, 2999, 3000)] == [2, 1, 2, 2, 1, 2, 1, 0]


def run(instructions: list[Instruction], length: int) -> int:
    at = accumulator = 0
    while True:
        code, jt, jf, k = instructions[at]
        at += 1
        if code == LD_LENGTH:
            accumulator = length
        elif code == JEQ:
            at += jt if accumulator == k else jf
        elif code == RET:
            return k
        else:
            at += k


def test_a_program_that_is_too_long_is_refused() -> None:
    assembly = Assembly()
    for _ in range(5000):
        assembly.add(LD_LENGTH)
    with pytest.raises(FilterError, match="5000 instructions"):
        assembly.assemble()


def test_a_filter_for_ethernet_is_used_as_it_is() -> None:
    handle = Handle.dead(ETHERNET)
    assert handle.compile("tcp port 80")[-2:] == [Instruction(RET, 0, 0, 262_144), Instruction(RET, 0, 0, 0)]
