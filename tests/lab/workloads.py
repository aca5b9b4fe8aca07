"""What pods do in a lab: HTTP over TCP in its many ways. Each call returns what the client itself knows of it.

All of it runs in threads of this process. Their sockets are made inside the pod's namespace and stay there.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Final, TypeVar

from tests.lab.namespaces import Namespace

PORT: Final = 8080
PATIENCE: Final = 60.0
_CHUNK: Final = 1 << 18
_BODY: Final = bytes(range(256)) * (_CHUNK // 256)
_RTT_IN_TCP_INFO: Final = 68
T = TypeVar("T")


@dataclass(frozen=True)
class Exchange:
    """One connection, as its client saw it."""

    local: tuple[str, int]
    remote: tuple[str, int]
    """Whom the client meant; behind a service somebody else answers."""
    begun: int
    """In ns, CLOCK_REALTIME as captures use it."""
    ended: int = 0
    connect_ns: int = 0
    handshake_rtt_ns: int = 0
    """The kernel's first measure of it, from its SYN to the SYN-ACK (TCP_INFO, to the microsecond)."""
    sent: int = 0
    received: int = 0
    latencies_ns: tuple[int, ...] = ()
    """Of each request, to the last byte of its response."""
    error: str = ""


@dataclass
class HttpServer:
    """`with HttpServer(namespace) as server:` answers GET /<n> with n bytes, and POST with how many it got."""

    namespace: Namespace
    port: int = PORT
    congestion: str = ""
    """Congestion control; empty is the kernel's choice."""
    received: int = 0
    """Bytes of requests, headers included."""
    sent: int = 0
    accepted: list[tuple[str, int]] = field(default_factory=list)
    """From where connections came."""

    def __enter__(self) -> HttpServer:
        with self.namespace.entered():
            self._listener = _dual_stack_listener(self.port)
        if self.congestion:
            self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, self.congestion.encode())
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listener.close()
        with self._lock:
            for each in self._open:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, peer = self._listener.accept()
            except OSError:
                return
            connection.settimeout(PATIENCE)
            with self._lock:
                self.accepted.append((peer[0].removeprefix("::ffff:"), peer[1]))
                self._open.add(connection)
            self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, EOFError):
            reader = _Reader(connection)
            try:
                while self._answer(connection, reader):
                    pass
            finally:
                with self._lock:
                    self.received += reader.received
                    self._open.discard(connection)

    def _answer(self, connection: socket.socket, reader: _Reader) -> bool:
        first, headers = reader.head()
        if not first:
            return False
        method, path, _ = first.split(" ", 2)
        size = int(path[1:]) if method == "GET" else 0
        uploaded = reader.skip(int(headers.get("content-length", "0")))
        body = b"" if method == "GET" else f"{uploaded}\n".encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {size or len(body)}\r\n\r\n".encode()
        sent = _send(connection, head + body, size)
        with self._lock:
            self.sent += sent
        return headers.get("connection") != "close"


def download(namespace: Namespace, host: str, size: int, port: int = PORT) -> Exchange:
    """GET, on a connection of its own."""
    return _exchange(namespace, host, port, [_request("GET", host, f"/{size}", closes=True)])


def upload(namespace: Namespace, host: str, size: int, port: int = PORT, congestion: str = "") -> Exchange:
    """POST, on a connection of its own."""
    request = _request("POST", host, "/", f"Content-Length: {size}\r\n", closes=True)
    return _exchange(namespace, host, port, [request], size=size, congestion=congestion)


def stream(namespace: Namespace, host: str, pieces: int, size: int, pause: float = 0.002, port: int = PORT) -> Exchange:
    """POST, piece by piece with pauses, as programs write that produce what they send."""
    request = _request("POST", host, "/", f"Content-Length: {pieces * size}\r\n", closes=True)
    return _exchange(namespace, host, port, [request], size=pieces * size, piece=size, piece_pause=pause)


def long_lived(
    namespace: Namespace, host: str, requests: int, size: int = 1000, pause: float = 0.0, port: int = PORT
) -> Exchange:
    """Many requests on one connection, with pauses between them."""
    messages = [_request("GET", host, f"/{size}", closes=k == requests - 1) for k in range(requests)]
    return _exchange(namespace, host, port, messages, pause=pause)


def short_ones(namespace: Namespace, host: str, count: int, size: int = 100, port: int = PORT) -> list[Exchange]:
    """Many connections, one after the other."""
    return [download(namespace, host, size, port) for _ in range(count)]


def slow_download(
    namespace: Namespace, host: str, size: int, stall: float = 0.5, buffer: int = 8192, port: int = PORT
) -> Exchange:
    """The client's buffer is small, and it does not read for a while: it closes its receive window."""
    request = _request("GET", host, f"/{size}", closes=True)
    return _exchange(namespace, host, port, [request], stall=stall, buffer=buffer)


def try_to_connect(namespace: Namespace, host: str, port: int = PORT, timeout: float = 1.5) -> Exchange:
    """Where nobody listens, or nobody is: `error` says what came of it."""
    return _exchange(namespace, host, port, [], timeout=timeout)


def at_once(*calls: Callable[[], T]) -> list[T]:
    """What the calls return; all run side by side."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [each.result() for each in [pool.submit(call) for call in calls]]


def in_parallel(count: int, call: Callable[..., T], *arguments: object, **options: object) -> list[T]:
    """The same call several times, side by side."""
    return at_once(*[functools.partial(call, *arguments, **options)] * count)


class _Reader:
    """HTTP messages out of a stream."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._rest = b""
        self.received = 0

    def head(self) -> tuple[str, dict[str, str]]:
        """First line, and headers by lower-case name; the line is empty where the peer has closed."""
        while b"\r\n\r\n" not in self._rest:
            if not (data := self._receive()):
                return "", {}
            self._rest += data
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        return first, {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def skip(self, size: int) -> int:
        """A body. Raises EOFError where it ends early."""
        missing = size - len(self._rest)
        self._rest = self._rest[size:]
        while missing > 0:
            data = self._receive(min(missing, _CHUNK))
            if not data:
                raise EOFError(f"{missing} bytes of a body are missing")
            missing -= len(data)
        return size

    def _receive(self, size: int = _CHUNK) -> bytes:
        data = self._connection.recv(size)
        self.received += len(data)
        return data


def _exchange(
    namespace: Namespace,
    host: str,
    port: int,
    requests: Sequence[bytes],
    *,
    size: int = 0,
    piece: int = _CHUNK,
    piece_pause: float = 0.0,
    pause: float = 0.0,
    stall: float = 0.0,
    buffer: int = 0,
    timeout: float = PATIENCE,
    congestion: str = "",
) -> Exchange:
    """Connects, and sends the requests one by one; an error ends it, and is in the result."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with namespace.entered():
        connection = socket.socket(family, socket.SOCK_STREAM)
    connection.settimeout(timeout)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as HTTP clients do
    if buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    if congestion:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
    result = Exchange(("", 0), (host, port), time.time_ns())
    reader = _Reader(connection)
    sent = 0
    latencies: list[int] = []
    with connection:
        try:
            connection.connect((host, port))
            rtt = _first_rtt(connection)
            connect_ns = time.time_ns() - result.begun
            result = replace(result, connect_ns=connect_ns, handshake_rtt_ns=rtt)
            result = replace(result, local=connection.getsockname()[:2])
            for number, request in enumerate(requests):
                time.sleep(pause if number else 0)
                asked = time.monotonic_ns()
                sent += _send(connection, request, size, piece, piece_pause)
                time.sleep(stall)
                _, headers = reader.head()
                reader.skip(int(headers["content-length"]))
                latencies.append(time.monotonic_ns() - asked)
        except (OSError, EOFError, KeyError) as error:
            result = replace(result, error=f"{type(error).__name__}: {error}")
    return replace(result, ended=time.time_ns(), sent=sent, received=reader.received, latencies_ns=tuple(latencies))


def _request(method: str, host: str, path: str, headers: str = "", closes: bool = False) -> bytes:
    name = f"[{host}]" if ":" in host else host
    last = "Connection: close\r\n" if closes else ""
    return f"{method} {path} HTTP/1.1\r\nHost: {name}\r\n{headers}{last}\r\n".encode()


def _send(connection: socket.socket, head: bytes, size: int, piece: int = _CHUNK, pause: float = 0.0) -> int:
    """The head, and a body of this size behind it."""
    connection.sendall(head)
    for begin in range(0, size, piece):
        connection.sendall(memoryview(_BODY)[: min(piece, size - begin)])
        time.sleep(pause)
    return len(head) + size


def _first_rtt(connection: socket.socket) -> int:
    information = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    (microseconds,) = struct.unpack_from("=I", information, _RTT_IN_TCP_INFO)
    return int(microseconds) * 1000


def _dual_stack_listener(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind(("::", port))
    listener.listen(256)
    return listener
