"""A wire between two network namespaces, for what captures on it: frames in, packets of a pcap file out."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from capture.libpcap import Dumper, Handle, Instruction
from capture.sniffer import Sniffer, Source
from tests.lab.namespaces import Namespace, new_prefix, remove, remove_abandoned


class Record(NamedTuple):
    time_ns: int
    captured: int
    length: int
    data: bytes


def records(path: Path) -> list[Record]:
    """Of a pcap file in nanoseconds; a torn one fails."""
    return records_of(path.read_bytes())


def records_of(data: bytes) -> list[Record]:
    assert data[:4] == struct.pack("=I", 0xA1B23C4D), data[:4]
    found = []
    at = 24
    while at < len(data):
        seconds, nanoseconds, captured, length = struct.unpack_from("=IIII", data, at)
        at += 16
        assert at + captured <= len(data), f"torn record at {at - 16} of {len(data)}"
        found.append(Record(seconds * 10**9 + nanoseconds, captured, length, data[at : at + captured]))
        at += captured
    return found


class Wire:
    """`left` sends, `right` captures; the ends are called `wire`. No packet crosses it that a test did not send."""

    def __init__(self) -> None:
        remove_abandoned()
        prefix = new_prefix()
        self.left, self.right = Namespace(f"{prefix}l"), Namespace(f"{prefix}r")
        for each in (self.left, self.right):
            each.run("sh", "-c", "echo 1 | tee /proc/sys/net/ipv6/conf/*/disable_ipv6")
        self.connect()

    def connect(self) -> None:
        self.left.ip(
            f"link add wire type veth peer name wire netns {self.right.name}", "link set wire mtu 65535 up arp off"
        )
        self.right.ip("link set wire mtu 65535 up arp off")

    def send(self, frames: Sequence[bytes]) -> None:
        """From the left to the right."""
        with self.left.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
            out.bind(("wire", 0))
            for frame in frames:
                out.send(frame)

    @contextlib.contextmanager
    def sniffing(
        self, program: Callable[[Handle], Sequence[Instruction]], device: str = "any", **source: Any
    ) -> Iterator[Sniffer]:
        """A sniffer on the right."""
        with self.right.entered():
            sniffer = Sniffer(Source(device, **source), program)
        try:
            yield sniffer
        finally:
            sniffer.close()

    def close(self) -> None:
        remove([self.left.name, self.right.name])


def read_all(sniffer: Sniffer, path: Path) -> list[Record]:
    """What was captured until now. The sniffer accepts nothing more."""
    sniffer.finish()
    model = Handle.dead(sniffer.link_type, sniffer.source.snaplen)
    with path.open("wb") as file:
        dumper = Dumper(model, file.write, 1 << 20)
        deadline = time.monotonic() + 1
        while sniffer.read(dumper)[0] or not (sniffer.is_empty() or time.monotonic() > deadline):
            time.sleep(0.002)
        dumper.flush()
        dumper.close()
    model.close()
    return records(path)
