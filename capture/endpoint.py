"""The agent's HTTP endpoint: /metrics, /healthz, /readyz. One thread, which waits for nobody.

Written on sockets since http.server takes 9 MB of an agent's 64, and one silent client would keep it busy. Requests are
small and answered at once; a client that says nothing or reads nothing is left after SECONDS.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from capture import log
from capture.metrics import CONTENT_TYPE, READY, Metrics

SECONDS: Final = 5.0
"""For a whole connection."""
MOST_CONNECTIONS: Final = 32
_MOST_REQUEST_BYTES: Final = 8192
_PLAIN: Final = "text/plain; charset=utf-8"
_REASONS: Final = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed"} | {
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}

Ready = Callable[[], list[str]]
"""Why it is not ready, a sentence each; none: it is. Called in the endpoint's thread; must be quick."""


@dataclass
class _Connection:
    deadline: float
    received: bytes = b""
    to_send: bytes = b""


@dataclass
class Endpoint:
    """A server that runs. `port` is the one it got, where 0 was asked for."""

    host: str
    port: int
    _stop: Callable[[], None] = field(repr=False, default=lambda: None)

    def close(self) -> None:
        """Ends it and waits for its thread."""
        self._stop()


def serve(address: str, metrics: Metrics, ready: Ready = list) -> Endpoint:
    """Answers at `address` ("127.0.0.1:9798", "[::1]:9798", ":9798" for all) until close().

    ValueError: no address and port. OSError: it can't be had.
    """
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(MOST_CONNECTIONS)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    server = _Server(listener, metrics, ready)
    thread = threading.Thread(target=server.run, name="endpoint", daemon=True)
    thread.start()

    def stop() -> None:
        server.stop()
        thread.join()

    return Endpoint(host, listener.getsockname()[1], stop)


def split_address(address: str) -> tuple[str, int]:
    """Host and port; ValueError if it is none."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"'{address}' is not an address and port: write 127.0.0.1:9798, [::1]:9798, or :9798 for all")
    return host or "0.0.0.0", int(port)


class _Server:
    """Non-blocking, with one selector."""

    def __init__(self, listener: socket.socket, metrics: Metrics, ready: Ready) -> None:
        self._listener = listener
        self._metrics = metrics
        self._ready = ready
        self._connections: dict[socket.socket, _Connection] = {}
        self._selector = selectors.DefaultSelector()
        self._wake_reader, self._wake_writer = os.pipe2(os.O_CLOEXEC)

    def stop(self) -> None:
        os.close(self._wake_writer)

    def run(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select(1.0 if self._connections else None):
                if key.fileobj == self._wake_reader:
                    self._close_all()
                    return
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._connections:
                    self._continue(key.fileobj)
            now = time.monotonic()
            for late in [each for each, connection in self._connections.items() if connection.deadline < now]:
                self._close(late)

    def _accept(self) -> None:
        try:
            accepted, _ = self._listener.accept()
        except OSError:
            time.sleep(0.01)  # no descriptor is left, say: do not spin
            return
        if len(self._connections) >= MOST_CONNECTIONS:
            self._close(next(iter(self._connections)))  # the oldest
        accepted.setblocking(False)
        self._connections[accepted] = _Connection(time.monotonic() + SECONDS)
        self._selector.register(accepted, selectors.EVENT_READ)

    def _continue(self, client: socket.socket) -> None:
        connection = self._connections[client]
        try:
            if not connection.to_send:
                data = client.recv(_MOST_REQUEST_BYTES)
                connection.received += data
                is_whole = b"\r\n\r\n" in connection.received or b"\n\n" in connection.received
                if not data:
                    self._close(client)
                    return
                if not is_whole and len(connection.received) < _MOST_REQUEST_BYTES:
                    return
                connection.to_send = self._answer(connection.received, is_whole)
                self._selector.modify(client, selectors.EVENT_WRITE)
            connection.to_send = connection.to_send[client.send(connection.to_send) :]
            if not connection.to_send:
                self._close(client)
        except BlockingIOError:
            return
        except OSError:
            self._close(client)

    def _answer(self, request: bytes, is_whole: bool) -> bytes:
        words = request.partition(b"\n")[0].decode("latin-1").split()
        if len(words) != 3 or not words[2].startswith("HTTP/"):
            return _response(400, "this is no HTTP request\n")
        if not is_whole:
            return _response(431, "too long\n")
        method, target, _ = words
        if method not in ("GET", "HEAD"):
            return _response(405, "only GET and HEAD\n", extra="Allow: GET, HEAD\r\n")
        try:
            code, text, kind = self._page(target.partition("?")[0])
        except Exception as error:
            # Whatever it is, the recording goes on; and a probe must not take it for health.
            log.error("a metrics page could not be made", page=target, error=repr(error))
            code, text, kind = 500, f"{error!r}\n", _PLAIN
        return _response(code, text, kind, is_head=method == "HEAD")

    def _page(self, path: str) -> tuple[int, str, str]:
        if path == "/healthz":
            return 200, "ok\n", _PLAIN
        if path == "/readyz":
            reasons = self._ready()
            return (503, "".join(f"{reason}\n" for reason in reasons), _PLAIN) if reasons else (200, "ok\n", _PLAIN)
        if path == "/metrics":
            self._metrics.set(READY, int(not self._ready()))
            return 200, self._metrics.exposition(), CONTENT_TYPE
        return 404, "there are /metrics, /healthz and /readyz\n", _PLAIN

    def _close(self, client: socket.socket) -> None:
        self._selector.unregister(client)
        del self._connections[client]
        client.close()

    def _close_all(self) -> None:
        for client in list(self._connections):
            self._close(client)
        self._selector.close()
        self._listener.close()
        os.close(self._wake_reader)


def _response(code: int, text: str, kind: str = _PLAIN, *, extra: str = "", is_head: bool = False) -> bytes:
    body = text.encode(errors="backslashreplace")
    head = f"HTTP/1.1 {code} {_REASONS[code]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{extra}"
    return f"{head}Connection: close\r\n\r\n".encode() + (b"" if is_head else body)
