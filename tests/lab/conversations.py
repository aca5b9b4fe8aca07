"""One TCP connection between two namespaces, made by the test's own process."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass, field

from tests.lab.namespaces import Namespace

PORT = 8080
TIMEOUT_SECONDS = 5


@dataclass
class Conversation:
    """What each side knew of it."""

    client: tuple[str, int] = ("", 0)
    seen_client: tuple[str, int] = ("", 0)
    """The client as the server saw it: another one, if its address was translated."""
    received: int = 0
    errors: list[Exception] = field(default_factory=list)


def listen(namespace: Namespace, address: str, port: int = PORT) -> socket.socket:
    """A server socket inside; address "" is all of IPv4, "::" all of IPv6."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with namespace.entered():
        server = socket.socket(family, socket.SOCK_STREAM)
    server.settimeout(TIMEOUT_SECONDS)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((address, port))
    server.listen()
    return server


def connect(namespace: Namespace, address: str, port: int = PORT, timeout: float = TIMEOUT_SECONDS) -> socket.socket:
    """A connection from inside."""
    with namespace.entered():
        client = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    client.settimeout(timeout)
    try:
        client.connect((address, port))
    except OSError:
        client.close()
        raise
    return client


def converse(
    client: Namespace,
    server: Namespace,
    address: str,
    size: int = 1000,
    port: int = PORT,
    to: tuple[str, int] = ("", 0),
) -> Conversation:
    """The client sends `size` bytes to `address`, or to `to` if that is another way there; the server says "ok"."""
    found = Conversation()
    with listen(server, address, port) as listener:
        thread = threading.Thread(target=_serve, args=(listener, found))
        thread.start()
        try:
            with connect(client, to[0] or address, to[1] or port) as connection:
                found.client = connection.getsockname()[:2]
                connection.sendall(bytes(size))
                connection.shutdown(socket.SHUT_WR)
                assert connection.recv(10) == b"ok"
        finally:
            thread.join()
    if found.errors:
        raise found.errors[0]
    return found


def _serve(listener: socket.socket, found: Conversation) -> None:
    try:
        connection, peer = listener.accept()
        with connection:
            connection.settimeout(TIMEOUT_SECONDS)
            found.seen_client = peer[:2]
            while piece := connection.recv(1 << 20):
                found.received += len(piece)
            connection.sendall(b"ok")
    except OSError as error:
        found.errors.append(error)
