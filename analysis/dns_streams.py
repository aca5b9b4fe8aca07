"""DNS over TCP: byte streams put together again, and cut into messages at their two-byte lengths (RFC 1035, 4.2.2).

Each direction of a flow is a stream. Bytes are taken in order of their sequence numbers: what came before is dropped,
what comes early waits. A message belongs to the packet that completed it.

A stream is *in step* when the next byte is known to begin a message. It is after a SYN; elsewhere a packet that begins
with a sound length and DNS header puts it in step. A gap that nothing fills (the peer acknowledged it, or too much
waits behind it) and bytes that the snaplen cut put it out of step: what was read of a message is then lost, but
for one whose cut packet still shows its header.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from analysis.dns_message_kernels import HEADER
from analysis.layout import SYN, TCP

STREAMS_LIMIT: Final = 2048
"""Streams kept; the one not heard of for longest goes first."""
EARLY_LIMIT: Final = 64
EARLY_LIMIT_BYTES: Final = 1 << 16
"""Packets, and bytes of them, that wait behind a gap before it is given up."""
PREFIX: Final = 2

Messages = npt.NDArray[np.void]
Completed = list[tuple[Any, bytes, int]]
"""Messages, each as the record of the packet that completed it, the bytes there, and its length on the wire."""


def distance(seq: int, other: int) -> int:
    """From `other` to `seq`, modulo 2^32 (RFC 9293, 3.4)."""
    return (seq - other + 0x80000000) % 0x100000000 - 0x80000000


def begins_message(data: bytes | bytearray) -> bool:
    """Whether a sound length, and as much of a header as there is, stand at the start."""
    if len(data) < PREFIX or int.from_bytes(data[:PREFIX], "big") < HEADER:
        return False
    if len(data) < PREFIX + HEADER:
        return len(data) == PREFIX  # some send the length alone
    opcode = data[4] >> 3 & 15
    questions = int.from_bytes(data[6:8], "big")
    return opcode in (0, 1, 2, 4, 5, 6) and questions <= 1


class Stream:
    """One direction of a flow. `expected` is the next sequence number, None when out of step."""

    def __init__(self) -> None:
        self.expected: int | None = None
        self.waiting = bytearray()
        self.early: dict[int, tuple[Any, bytes]] = {}

    def take(self, packet: Any, payload: bytes) -> Completed:
        """The messages that a packet completes."""
        seq = int(packet["tcp_seq"])
        if packet["tcp_flags"] & SYN:
            seq = (seq + 1) % 0x100000000
            self.expected = seq if self.expected is None else self.expected  # a SYN may be sent again
        if not payload:
            return []
        if self.expected is None:
            if not begins_message(payload):
                return []
            self.expected = seq
        ahead = distance(seq, self.expected)
        if ahead > 0:
            self.early.setdefault(seq, (packet, payload))
            full = (
                len(self.early) > EARLY_LIMIT or sum(len(data) for _, data in self.early.values()) > EARLY_LIMIT_BYTES
            )
            return self.skip_gap() if full else []
        messages = self._append(packet, payload, -ahead)
        while self.early and self.expected is not None:
            seq = min(self.early, key=lambda seq: distance(seq, self.expected or 0))
            if distance(seq, self.expected) > 0:
                break
            packet, payload = self.early.pop(seq)
            messages += self._append(packet, payload, distance(self.expected, seq))
        return messages

    def skip_gap(self) -> Completed:
        """Go on behind bytes that will not come."""
        base = self.expected or 0
        early = sorted(self.early.items(), key=lambda item: distance(item[0], base))
        self.early, self.expected = {}, None
        self.waiting.clear()
        return [message for _, (packet, payload) in early for message in self.take(packet, payload)]

    def _append(self, packet: Any, payload: bytes, old: int) -> Completed:
        """Read on, but for the first `old` bytes of the payload, which were there before."""
        if old >= int(packet["length"]):
            return []
        self.waiting += payload[old:]
        self.expected = (int(self.expected or 0) + int(packet["length"]) - old) % 0x100000000
        messages: Completed = []
        while len(self.waiting) >= PREFIX:
            length = int.from_bytes(self.waiting[:PREFIX], "big")
            if len(self.waiting) < PREFIX + length and len(payload) == packet["length"]:
                break
            if not begins_message(self.waiting):
                return messages + self.skip_gap()
            if len(self.waiting) >= PREFIX + HEADER:
                messages.append((packet, bytes(self.waiting[PREFIX : PREFIX + length]), length))
            del self.waiting[: PREFIX + length]
        return messages if len(payload) == packet["length"] else messages + self.skip_gap()


class Streams:
    """The DNS streams of a recording; carries their state over chunks and file borders."""

    def __init__(self) -> None:
        self._streams: dict[tuple[int, int, int], Stream] = {}

    def feed(self, data: npt.NDArray[np.uint8], candidates: Messages) -> tuple[Messages, npt.NDArray[np.uint8]]:
        """Put the messages of TCP in place of the TCP packets among the candidates.

        Returns all messages in order, and the bytes into which `offset` of those over TCP points.
        """
        is_tcp = candidates["transport"] == TCP
        if not is_tcp.any():
            return candidates, np.zeros(1, np.uint8)
        messages: Completed = []
        places: list[np.int64] = []
        for place in np.flatnonzero(is_tcp):
            found = self._take(data, candidates[place])
            messages += found
            places += [place] * len(found)
        over_tcp, streams = self._records(messages, candidates.dtype)
        order = np.argsort(np.concatenate([np.flatnonzero(~is_tcp), np.array(places, np.int64)]), kind="stable")
        return np.concatenate([candidates[~is_tcp], over_tcp])[order], streams

    def finish(self, dtype: np.dtype[np.void]) -> tuple[Messages, npt.NDArray[np.uint8]]:
        """What still waits behind a gap; the streams are forgotten."""
        messages: Completed = []
        for stream in self._streams.values():
            while stream.early:
                messages += stream.skip_gap()
        self._streams.clear()
        return self._records(messages, dtype)

    def _take(self, data: npt.NDArray[np.uint8], packet: Any) -> Completed:
        flow = int(packet["flow_uid"])
        key = (flow, int(packet["src_lo"]), int(packet["src_port"]))
        stream = self._streams.pop(key, None) or Stream()
        self._streams[key] = stream
        if len(self._streams) > STREAMS_LIMIT:
            del self._streams[next(iter(self._streams))]
        payload = data[packet["offset"] : packet["offset"] + packet["captured"]].tobytes()
        peer = self._streams.get((flow, int(packet["dst_lo"]), int(packet["dst_port"])))
        messages: Completed = []
        if peer and peer.early and peer.expected is not None and distance(int(packet["tcp_ack"]), peer.expected) > 0:
            messages = peer.skip_gap()  # the receiver has what the capture missed
        return messages + stream.take(packet.copy(), payload)

    @staticmethod
    def _records(messages: Completed, dtype: np.dtype[np.void]) -> tuple[Messages, Any]:
        records = np.zeros(len(messages), dtype)
        streams = bytearray(1)
        for i, (packet, message, length) in enumerate(messages):
            records[i] = packet
            records["offset"][i] = len(streams)
            records["captured"][i] = len(message)
            records["length"][i] = length
            records["is_reassembled"][i] = 1
            streams += message
        return records, np.frombuffer(streams, np.uint8)
