"""Receives dnstap from a name server: every query and answer, with the times at which the server saw them.

A frame is a length and a protobuf message (https://dnstap.info, dnstap.proto); frames of length 0 are control frames
of the Frame Streams protocol, which a collector that never answers may pass over.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import dns.message
import dns.rcode
import dns.rdatatype

CLIENT_QUERY: Final = 5
CLIENT_RESPONSE: Final = 6
FORWARDER_QUERY: Final = 7
FORWARDER_RESPONSE: Final = 8
_TRANSPORTS: Final = {1: "udp", 2: "tcp"}
_MESSAGE: Final = 14


@dataclass(frozen=True)
class Message:
    """One query or answer that a server received or sent."""

    kind: int
    time_ns: int
    client_ip: str
    """Who asked: the server itself, where it forwards."""
    client_port: int
    server_ip: str
    transport: str
    trans_id: int
    name: str
    """Without the last dot, in the letters that were sent."""
    qtype: str
    rcode: str | None
    """None in queries."""


class Collector:
    """Listens on a Unix socket and keeps what comes in."""

    def __init__(self, path: Path) -> None:
        self.messages: list[Message] = []
        self.arrived = threading.Condition()
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        self._thread = threading.Thread(target=self._receive, name="dnstap", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """To be called when the server is gone: what it sent last is still read."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()

    def _receive(self) -> None:
        try:
            connection, _ = self._listening.accept()
        except OSError:  # closed before the server came
            return
        with connection, connection.makefile("rb") as stream:
            while len(header := stream.read(4)) == 4:
                (length,) = struct.unpack(">I", header)
                if length == 0:
                    (length,) = struct.unpack(">I", stream.read(4))
                    stream.read(length)
                    continue
                message = parse(stream.read(length))
                with self.arrived:
                    self.messages.append(message)
                    self.arrived.notify_all()


def parse(frame: bytes) -> Message:
    """One dnstap frame."""
    fields = dict(_fields(bytes(dict(_fields(frame))[_MESSAGE])))
    kind = int(fields[1])
    is_answer = kind % 2 == 0
    seconds, nanoseconds, wire = (fields[number] for number in ((12, 13, 14) if is_answer else (8, 9, 10)))
    message = dns.message.from_wire(bytes(wire), ignore_trailing=True)
    question = message.question[0]
    return Message(
        kind=kind,
        time_ns=int(seconds) * 10**9 + int(nanoseconds),
        client_ip=_ip(fields.get(4)),
        client_port=int(fields.get(6, 0)),
        server_ip=_ip(fields.get(5)),
        transport=_TRANSPORTS[int(fields[3])],
        trans_id=message.id,
        name=question.name.to_text(omit_final_dot=True),
        qtype=dns.rdatatype.to_text(question.rdtype),
        rcode=dns.rcode.to_text(message.rcode()) if is_answer else None,
    )


def _ip(raw: int | bytes | None) -> str:
    if not isinstance(raw, bytes):
        return ""
    return socket.inet_ntop(socket.AF_INET6 if len(raw) == 16 else socket.AF_INET, raw)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message: numbers and their values."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, position = _varint(data, position)
            yield number, value
        elif wire_type == 5:
            yield number, int.from_bytes(data[position : position + 4], "little")
            position += 4
        elif wire_type == 2:
            length, position = _varint(data, position)
            yield number, data[position : position + length]
            position += length
        else:
            raise ValueError(f"dnstap has no wire type {wire_type}")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position
