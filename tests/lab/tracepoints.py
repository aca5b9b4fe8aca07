"""Every packet that the kernel retransmits, as the kernel itself says it: the tracepoints tcp_retransmit_skb and
tcp_retransmit_synack, one event a packet.

As tracefs shows them they lack the sequence number and the network namespace, hence programs of our own there.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import struct
import time
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final

from tests.lab.bpf import Read, RingBuffer, Tracer
from tests.lab.btf import kernel_types
from tests.lab.namespaces import MOUNTED

RING_SIZE: Final = 1 << 22
_AF_INET: Final = 2
_FIN, _SYN, _ACK = 0x01, 0x02, 0x10
_LOSS_PROBE: Final = 5
"""ICSK_TIME_LOSS_PROBE: the timer that fires is that of tail loss probes."""
_REASONS: Final = ("open", "disorder", "cwr", "recovery", "loss")
"""enum tcp_ca_state: how the socket was in general when it resent something."""
_PACKET: Final = struct.Struct("<QIHHHII16s16sIIHHHBBi")
_SYNACK: Final = struct.Struct("<QIHHHII16s16sI")
_ERROR: Final = -1
"""Of the fields of a packet. The tracepoint also tells of attempts that failed, most of which count nowhere: the packet
is still in a queue of this host (EBUSY), memory is short."""


@dataclass(frozen=True, order=True)
class Retransmission:
    """One packet that was sent again."""

    time: int
    """When, in ns of the clock that captures use."""
    namespace: int
    """Inode of the sender's network namespace."""
    kind: str
    """syn, synack, fin or data; what carries data and a FIN is data."""
    local: tuple[str, int]
    remote: tuple[str, int]
    seq: int
    end_seq: int
    tcp_segments: int
    """What it adds to RetransSegs."""
    segment_size: int
    """Payload of each TCP segment but the last, if there are several."""
    reason: str
    """probe (tail loss probe), or the state of the socket: open, disorder, cwr, recovery, loss. Empty for a SYN-ACK."""

    def segments(self) -> list[Retransmission]:
        """What leaves where the device does no GSO: a packet for each TCP segment."""
        if self.tcp_segments == 1:
            return [self]
        last = self.tcp_segments - 1
        begins = [self.seq + k * self.segment_size & 0xFFFFFFFF for k in range(self.tcp_segments)]
        ends = [*begins[1:], self.end_seq]
        kinds = ["data"] * last + [self.kind]
        return [
            replace(self, seq=seq, end_seq=end, tcp_segments=1, segment_size=0, kind=kind)
            for seq, end, kind in zip(begins, ends, kinds, strict=True)
        ]

    @property
    def key(self) -> tuple[str, int, str, int, int]:
        """What tells it from other packets of the namespace: addresses, ports, sequence number."""
        return (*self.local, *self.remote, self.seq)


class Tracepoints:
    """`with Tracepoints() as tracepoints:` watches the whole machine; events() tells what came since it began."""

    def __enter__(self) -> Tracepoints:
        self._clock = _tai_offset()
        self._events: list[Retransmission] = []
        self._rings: list[RingBuffer] = []
        self._tracers: list[Tracer] = []
        try:
            for name, reads in (("tcp_retransmit_skb", _packet_reads()), ("tcp_retransmit_synack", _synack_reads())):
                ring = RingBuffer(RING_SIZE)
                self._rings.append(ring)
                self._tracers.append(Tracer(f"tcp/{name}", reads, ring))
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._close_tracers()
            self.events()
        finally:
            self._close()

    def events(self, namespace: int | None = None) -> list[Retransmission]:
        """All so far, or those of one namespace, in order of time."""
        if self._rings:
            packets, synacks = self._rings
            sent = [_PACKET.unpack(each) for each in packets.drain(_PACKET.size)]
            self._events += [_packet(fields, self._clock) for fields in sent if fields[_ERROR] == 0]
            self._events += [_synack(_SYNACK.unpack(each), self._clock) for each in synacks.drain(_SYNACK.size)]
            self._events.sort()
        return [event for event in self._events if namespace in (None, event.namespace)]

    def _close_tracers(self) -> None:
        with contextlib.ExitStack() as stack:
            while self._tracers:
                stack.callback(self._tracers.pop().close)

    def _close(self) -> None:
        self._close_tracers()
        for ring in self._rings:
            ring.close()
        self._rings.clear()


def inode(namespace: str) -> int:
    """What tells network namespaces apart inside the kernel, and lasts when the name is gone."""
    return os.stat(MOUNTED / namespace).st_ino


def _socket_reads(described: str, owner: str) -> list[Read]:
    """Namespace, family, ports and addresses; a connection request has them where a socket has, but no namespace."""
    members = ("family", "num", "dport", "rcv_saddr", "daddr", "v6_rcv_saddr", "v6_daddr", "net.net")
    offset = {name: kernel_types().member("sock_common", f"skc_{name}").offset for name in members}
    return [
        Read(owner, kernel_types().member("net", "ns.inum").offset, 4, through=(offset["net.net"],)),
        Read(described, offset["family"], 2),
        Read(described, offset["num"], 2),
        Read(described, offset["dport"], 2),
        Read(described, offset["rcv_saddr"], 4),
        Read(described, offset["daddr"], 4),
        Read(described, offset["v6_rcv_saddr"], 16),
        Read(described, offset["v6_daddr"], 16),
    ]


def _packet_reads() -> list[Read]:
    types = kernel_types()
    control = types.member("sk_buff", "cb").offset

    def read(name: str, size: int) -> Read:
        return Read("skbaddr", control + types.member("tcp_skb_cb", name).offset, size)

    return [
        *_socket_reads("skaddr", "skaddr"),
        read("seq", 4),
        read("end_seq", 4),
        read("tcp_gso_segs", 2),
        read("tcp_gso_size", 2),
        read("tcp_flags", 2),
        Read("skaddr", types.member("inet_connection_sock", "icsk_ca_state").offset, 1),
        Read("skaddr", types.member("inet_connection_sock", "icsk_pending").offset, 1),
        Read("err"),
    ]


def _synack_reads() -> list[Read]:
    isn = kernel_types().member("tcp_request_sock", "snt_isn").offset
    return [*_socket_reads("req", "skaddr"), Read("req", isn, 4)]


def _packet(fields: tuple[int, ...], clock: int) -> Retransmission:
    *socket, seq, end_seq, segments, size, flags, state, timer, _ = fields
    moment, namespace, local, remote = _socket(socket, clock)
    state &= 0x1F  # the bits above it belong to other members
    reason = "probe" if timer == _LOSS_PROBE and state <= _REASONS.index("disorder") else _REASONS[state]
    has_data = end_seq - seq & 0xFFFFFFFF > bool(flags & _SYN) + bool(flags & _FIN)
    kind = "syn" if flags & _SYN else "fin" if flags & _FIN and not has_data else "data"
    if flags & _SYN and flags & _ACK:
        kind = "synack"  # of a simultaneous open
    return Retransmission(moment, namespace, kind, local, remote, seq, end_seq, segments, size, reason)


def _synack(fields: tuple[int, ...], clock: int) -> Retransmission:
    *socket, seq = fields
    moment, namespace, local, remote = _socket(socket, clock)
    return Retransmission(moment, namespace, "synack", local, remote, seq, seq + 1 & 0xFFFFFFFF, 1, 0, "")


def _socket(fields: list[int], clock: int) -> tuple[int, int, tuple[str, int], tuple[str, int]]:
    moment, namespace, family, local_port, remote_port, local, remote, local6, remote6 = fields
    port = int.from_bytes(remote_port.to_bytes(2, "little"), "big")
    if family == _AF_INET:
        ends = [str(ipaddress.IPv4Address(each.to_bytes(4, "little"))) for each in (local, remote)]
    else:
        ends = [_address6(each) for each in (local6, remote6)]  # type: ignore[arg-type]
    return moment - clock, namespace, (ends[0], local_port), (ends[1], port)


def _address6(data: bytes) -> str:
    address = ipaddress.IPv6Address(data)
    return str(address.ipv4_mapped or address)


def _tai_offset() -> int:
    """CLOCK_TAI is ahead of CLOCK_REALTIME, which captures use, by whole seconds, and steps with it."""
    ahead = time.clock_gettime_ns(time.CLOCK_TAI) - time.time_ns()
    return round(ahead / 1e9) * 1_000_000_000
