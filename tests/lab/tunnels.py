"""IPIP and Geneve in user space, for kernels that have neither.

A process on each node stands between its tunnel device and the wire. It needs the standard library only. Its device
shows to captures what the kernel's own would show: IPIP's is of the type "tunnel" and carries bare IP packets, Geneve's
carries frames. Lines on its standard input tell a Geneve tunnel the VNI of what a source address sends:
`10.244.1.2 300`.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import select
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.lab.namespaces import Namespace

GENEVE_PORT: Final = 6081
QUEUE_LENGTH: Final = 20_000
"""Of the devices: what the process has not read yet must not be lost."""
_SOCKET_BUFFER: Final = 64 << 20
_READY: Final = "ready\n"
_TUNSETIFF: Final = 0x400454CA
_TUNSETLINK: Final = 0x400454CD
_IFF_TUN, _IFF_TAP, _IFF_NO_PI = 0x0001, 0x0002, 0x1000
_ARPHRD_TUNNEL: Final = 768
_SO_NO_CHECK, _SO_RCVBUFFORCE, _SO_SNDBUFFORCE = 11, 33, 32
_IP_MTU_DISCOVER, _IP_PMTUDISC_DO = 10, 2
_LARGEST: Final = 1 << 16
_ETHERNET: Final = 14
_SENDERS: Final = 16
"""Geneve spreads flows over source ports; so many there are here."""
_BURST: Final = 64


class Tunnel:
    """One such process; it ends with its namespace."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def wait(self) -> None:
        """Until its device is there."""
        assert self._process.stdout
        if self._process.stdout.readline() != _READY:
            raise RuntimeError(f"a tunnel did not start: {self._process.stderr and self._process.stderr.read()}")

    def set_vni(self, source: str, vni: int) -> None:
        """For all that this address sends from now on."""
        assert self._process.stdin
        self._process.stdin.write(f"{source} {vni}\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """Ends it."""
        self._process.terminate()
        self._process.communicate(timeout=10)


def start(namespace: Namespace, kind: str, device: str, local: str, peers: Mapping[str, str]) -> Tunnel:
    """`kind` is ipip or geneve; `peers` are nodes' addresses by the range of their pods."""
    ranges = (f"{cidr}={peer}" for cidr, peer in peers.items())
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return Tunnel(namespace.start(sys.executable, "-I", __file__, kind, device, local, *ranges, **pipes))


class _Peers:
    """The node behind which an address is."""

    def __init__(self, arguments: list[str]) -> None:
        self._known: dict[bytes, str | None] = {}
        self._ranges = [
            (ipaddress.ip_network(cidr), peer) for cidr, _, peer in (each.partition("=") for each in arguments)
        ]

    def of(self, packet: bytes, at: int) -> str | None:
        """Of the destination of the IP packet that begins at `at`."""
        is_ipv6 = packet[at] >> 4 == 6
        destination = packet[at + 24 : at + 40] if is_ipv6 else packet[at + 16 : at + 20]
        if destination not in self._known:
            address = ipaddress.ip_address(destination)
            self._known[destination] = next((peer for cidr, peer in self._ranges if address in cidr), None)
        return self._known[destination]


def _open_device(name: str, mode: int) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), mode | _IFF_NO_PI))
    return device


def _enlarge(endpoint: socket.socket) -> None:
    for option in (_SO_RCVBUFFORCE, _SO_SNDBUFFORCE):
        endpoint.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER)
    endpoint.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DO)


def _ipip(device_name: str, local: str, peers: _Peers) -> None:
    device = _open_device(device_name, _IFF_TUN)
    fcntl.ioctl(device, _TUNSETLINK, _ARPHRD_TUNNEL)
    wire = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_IPIP)
    wire.bind((local, 0))
    wire.setblocking(False)
    _enlarge(wire)
    _say_ready()
    while True:
        ready = select.select([device, wire, sys.stdin], [], [])[0]
        if sys.stdin in ready and not os.read(sys.stdin.fileno(), 1):
            return  # whoever started it is gone
        if device in ready:
            for packet in _packets(device):
                peer = peers.of(packet, 0)
                if peer:
                    wire.sendto(packet, (peer, 0))
        if wire in ready:
            for packet in _datagrams(wire):
                os.write(device, packet[(packet[0] & 15) * 4 :])


def _geneve(device_name: str, local: str, peers: _Peers) -> None:
    device = _open_device(device_name, _IFF_TAP)
    senders = []
    for port in (GENEVE_PORT, *[0] * _SENDERS):
        endpoint = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        endpoint.bind((local, port))
        endpoint.setblocking(False)
        endpoint.setsockopt(socket.SOL_SOCKET, _SO_NO_CHECK, 1)
        _enlarge(endpoint)
        senders.append(endpoint)
    receiver = senders.pop(0)
    vnis: dict[bytes, int] = {}
    pending = b""
    _say_ready()
    while True:
        ready = select.select([device, receiver, sys.stdin], [], [])[0]
        if sys.stdin in ready:
            text = os.read(sys.stdin.fileno(), _LARGEST)
            if not text:
                return
            *lines, pending = (pending + text).split(b"\n")
            for line in lines:
                address, vni = line.decode().split()
                vnis[ipaddress.ip_address(address).packed] = int(vni)
        if device in ready:
            for frame in _packets(device):
                if frame[12:14] not in (b"\x08\x00", b"\x86\xdd"):
                    continue
                peer = peers.of(frame, _ETHERNET)
                if peer:
                    source = frame[26:30] if frame[12:14] == b"\x08\x00" else frame[22:38]
                    sender = senders[_flow_hash(frame) % _SENDERS]
                    header = struct.pack(">HHI", 0, 0x6558, vnis.get(source, 0) << 8)
                    sender.sendto(header + frame, (peer, GENEVE_PORT))
        if receiver in ready:
            for datagram in _datagrams(receiver):
                os.write(device, datagram[8 + (datagram[0] & 0x3F) * 4 :])


def _flow_hash(frame: bytes) -> int:
    """The same for all packets of a flow: of addresses and, where there are any, ports."""
    return zlib.crc32(frame[22:58] if frame[12:14] == b"\x86\xdd" else frame[26:38])


def _packets(device: int) -> list[bytes]:
    found = []
    for _ in range(_BURST):
        try:
            found.append(os.read(device, _LARGEST))
        except BlockingIOError:
            break
    return found


def _datagrams(endpoint: socket.socket) -> list[bytes]:
    found = []
    for _ in range(_BURST):
        try:
            found.append(endpoint.recv(_LARGEST))
        except BlockingIOError:
            break
    return found


def _say_ready() -> None:
    sys.stdout.write(_READY)
    sys.stdout.flush()


if __name__ == "__main__":
    _kind, _device, _local, *_ranges = sys.argv[1:]
    {"ipip": _ipip, "geneve": _geneve}[_kind](_device, _local, _Peers(_ranges))
