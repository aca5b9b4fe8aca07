"""WebSockets of the API server stand-in (RFC 6455), as the library of a real one speaks them.

Go's x/net/websocket answers a subprotocol that it does not know with an empty 403, takes each frame for a message, and
sends no fragments.
"""

from __future__ import annotations

import base64
import hashlib
import struct
import threading
from collections.abc import Iterator
from http import HTTPStatus
from typing import BinaryIO, Final

CONTINUATION: Final = 0
TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10
NORMAL: Final = struct.pack(">H", 1000)
PROTOCOL_ERROR: Final = struct.pack(">H", 1002)
_GUID: Final = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class WebSocket:
    """The server's end of an open connection. One thread reads, any may write."""

    def __init__(self, reader: BinaryIO, writer: BinaryIO) -> None:
        self._reader, self._writer = reader, writer
        self._lock = threading.Lock()
        self.is_closing = False

    def send(self, payload: bytes, opcode: int = BINARY) -> None:
        length = len(payload)
        if length < 126:
            head = struct.pack(">BB", 0x80 | opcode, length)
        elif length < 1 << 16:
            head = struct.pack(">BBH", 0x80 | opcode, 126, length)
        else:
            head = struct.pack(">BBQ", 0x80 | opcode, 127, length)
        with self._lock:
            self._writer.write(head + payload)

    def close(self, status: bytes = NORMAL) -> None:
        if not self.is_closing:
            self.is_closing = True
            self.send(status, CLOSE)

    def messages(self) -> Iterator[bytes]:
        """What the client sends, until it closes or leaves."""
        while frame := self._frame():
            opcode, payload = frame
            if opcode == CLOSE:
                return
            if opcode == PING:
                self.send(payload, PONG)
            elif opcode in (CONTINUATION, TEXT, BINARY):
                yield payload

    def _frame(self) -> tuple[int, bytes] | None:
        """None at the end, and after a frame that breaks the protocol: a client's are masked."""
        head = self._reader.read(2)
        if len(head) < 2:
            return None
        opcode, length = head[0] & 0xF, head[1] & 0x7F
        if not head[1] & 0x80 or head[0] & 0x70:
            self.close(PROTOCOL_ERROR)
            return None
        if length > 125:
            size = 2 if length == 126 else 8
            length = int.from_bytes(self._reader.read(size), "big")
        mask = self._reader.read(4)
        payload = self._reader.read(length)
        if len(payload) < length:
            return None
        repeated = (mask * (length // 4 + 1))[:length]
        return opcode, (int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")).to_bytes(length, "big")


def is_upgrade(headers: dict[str, str]) -> bool:
    """Whether a request, its headers in lower case, asks for a WebSocket."""
    tokens = [token.strip() for token in headers.get("connection", "").lower().split(",")]
    return headers.get("upgrade", "").lower() == "websocket" and "upgrade" in tokens


def offered(headers: dict[str, str]) -> list[str]:
    """The subprotocols that a client speaks, the one that it prefers first."""
    return [each.strip() for each in headers.get("sec-websocket-protocol", "").split(",") if each.strip()]


def handshake(headers: dict[str, str], supported: list[str]) -> tuple[bytes, str | None]:
    """The answer to a request, and the subprotocol of the connection; None where there is no connection."""
    if headers.get("sec-websocket-version") != "13":
        return _refusal(HTTPStatus.BAD_REQUEST, "Sec-WebSocket-Version: 13\r\n"), None
    chosen = next((each for each in offered(headers) or [""] if each in supported), None)
    if chosen is None or "sec-websocket-key" not in headers:
        return _refusal(HTTPStatus.FORBIDDEN), None
    key = hashlib.sha1((headers["sec-websocket-key"] + _GUID).encode(), usedforsecurity=False).digest()
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {base64.b64encode(key).decode()}",
        *([f"Sec-WebSocket-Protocol: {chosen}"] if chosen else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode(), chosen


def _refusal(status: HTTPStatus, headers: str = "") -> bytes:
    return f"HTTP/1.1 {status.value} {status.phrase}\r\n{headers}\r\n".encode()
