"""HTTP of the API server stand-in: its connections, and how answers, streams and faults look on the wire."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import ssl
import struct
import threading
import time
import uuid
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.lab.api_faults import Fault
from tests.lab.api_resources import Object
from tests.lab.api_status import ApiError
from tests.lab.api_watches import Watch

if TYPE_CHECKING:
    from tests.lab.api_server import ApiServer

BUFFERED: Final = 2048
"""Go's HTTP server counts answers up to this size; longer ones are chunked."""
PIECE: Final = 4096
"""Of a slow answer."""
TICK: Final = 0.1
"""Seconds at most until time passed, or a client that left, is noticed."""


class ConnectionReset(Exception):  # noqa: N818
    """This connection shall end with a TCP reset."""


class Connections(ThreadingHTTPServer):
    """Knows its open connections, to be able to end them all."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, api: ApiServer, address: tuple[str, int]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.api = api
        self._open: set[socket.socket] = set()
        self._gone = threading.Condition()
        super().__init__(address, Handler)

    def server_bind(self) -> None:
        """Without a look-up of the own name, which may ask a DNS server."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._gone:
            self._open.add(request)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        connection = request
        try:
            if self.api.tls:
                connection = self.api.tls.wrap_socket(request, server_side=True)
                with self._gone:
                    self._open.add(connection)
            self.finish_request(connection, client_address)
        except ConnectionReset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
        except (OSError, ssl.SSLError):
            pass  # the client left, or we ended the connection
        except Exception as error:
            self.api.errors.append(error)
        finally:
            self.shutdown_request(connection)
            request.close()
            with self._gone:
                self._open -= {request, connection}
                self._gone.notify_all()

    def end(self) -> None:
        """Nothing of it is left when this returns."""
        self.shutdown()
        self.socket.close()
        with self._gone:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)
            if not self._gone.wait_for(lambda: not self._open, 10):
                raise RuntimeError(f"connections do not end: {self._open}")
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """Sends what the API server decides."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Connections

    def answer(self) -> None:
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        self.entry = self.server.api.log(self.command, unquote(url.path), query)
        self.server.api.answer(self, self.entry)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815

    def log_message(self, format: str, *arguments: Any) -> None:
        """The API server has a log of its own."""

    def send(self, code: int, body: bytes, headers: dict[str, str], slow: Fault | None = None) -> None:
        """A whole answer."""
        chunked = len(body) > BUFFERED or slow is not None
        framing = {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(len(body))}
        self.send_head(code, headers | framing)
        if not chunked:
            self.wfile.write(body)
            return
        for start in range(0, len(body), PIECE if slow else len(body)):
            self.chunk(body[start : start + (PIECE if slow else len(body))])
            if slow:
                self._delay(slow.delay)
        self.chunk(b"")

    def send_head(self, code: int, headers: dict[str, str]) -> None:
        self.entry.status = code
        self.send_response_only(code, HTTPStatus(code).phrase)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Date", self.date_time_string())
        if self.command != "GET":
            self.close_connection = True  # a body may be there that nobody reads
            self.send_header("Connection", "close")
        self.end_headers()

    def chunk(self, content: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(content), content))

    def send_json(self, code: int, content: Object, headers: dict[str, str], plural: str | None, verb: str) -> None:
        """The answer to a request that is not a watch, with what disturbs it."""
        api = self.server.api
        body = encoded(content)
        common = self.common_headers("application/json") | headers
        if fault := api.strike(("silence",), verb, plural):
            self.be_silent(fault)
        elif api.strike(("reset",), verb, plural):
            self.send_head(code, common | {"Transfer-Encoding": "chunked"})
            self.chunk(body[: len(body) // 2])
            raise ConnectionReset
        else:
            if api.strike(("bad-json",), verb, plural):
                body = body[: len(body) // 2]
            self.send(code, body, common, api.strike(("slow",), verb, plural))

    def send_error_status(self, error: ApiError) -> None:
        headers = self.common_headers("application/json", is_queued=error.code != 401)
        self.send(error.code, encoded(error.status), headers | error.headers)

    def send_text(self, code: int, text: str) -> None:
        headers = self.common_headers("text/plain; charset=utf-8") | {"X-Content-Type-Options": "nosniff"}
        self.send(code, text.encode(), headers)

    def common_headers(self, content_type: str, is_queued: bool = True) -> dict[str, str]:
        """Requests of strangers are refused before they queue."""
        headers = {
            "Audit-Id": str(uuid.uuid4()),
            "Cache-Control": "no-cache, private",
            "Content-Type": content_type,
        }
        names = ("X-Kubernetes-Pf-Flowschema-Uid", "X-Kubernetes-Pf-Prioritylevel-Uid") if is_queued else ()
        return headers | {name: str(uuid.uuid5(uuid.NAMESPACE_DNS, name)) for name in names}

    def stream(self, watch: Watch, headers: dict[str, str], plural: str) -> None:
        """A watch from its first line to its end."""
        api = self.server.api
        if fault := api.strike(("silence",), "watch", plural):
            self.be_silent(fault)
            return
        self.send_head(200, self.common_headers("application/json") | headers | {"Transfer-Encoding": "chunked"})
        for lines in self._due(watch):
            if error := api.refuse_watch(watch.selection.resource):
                self.chunk(encoded(watch.error(error)))
                break
            if fault := api.strike(("silence",), "watch", plural):
                self.be_silent(fault)
                return
            if api.strike(("reset",), "watch", plural):
                line = encoded(lines[0] if lines else watch.bookmark())
                self.chunk(line[: len(line) // 2])
                raise ConnectionReset
            if api.strike(("eof",), "watch", plural):
                break
            for line in map(encoded, lines):
                if slow := api.strike(("slow",), "watch", plural):
                    self._delay(slow.delay)
                is_bad = api.strike(("bad-json",), "watch", plural)
                self.chunk(line[: len(line) // 2] + b"\n" if is_bad else line)
        self.chunk(b"")

    def _due(self, watch: Watch) -> Iterator[list[Object]]:
        """Batches of lines, an empty one whenever a fault may have come; ends with the watch or the connection."""
        api, changed = self.server.api, self.server.api.store.changed
        while True:
            with changed:
                lines = watch.take(api.clock())
            yield lines
            if watch.ended:
                return
            with changed:
                if watch.seen >= api.store.revision:
                    changed.wait(TICK)
            self._check_connected()

    def be_silent(self, fault: Fault) -> None:
        """Until the fault is taken away or the client leaves."""
        self.close_connection = True
        while fault.is_on:
            self._check_connected()
            with self.server.api.store.changed:
                self.server.api.store.changed.wait(TICK)
        raise BrokenPipeError

    def reset(self) -> ConnectionReset:
        """To be raised: ends the connection with a TCP reset."""
        return ConnectionReset()

    def _delay(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._check_connected()
            time.sleep(min(left, TICK))

    def _check_connected(self) -> None:
        """Nobody sends anything while an answer is under way: what can be read is the end."""
        poll = select.poll()
        poll.register(self.connection, select.POLLIN | select.POLLRDHUP)
        if poll.poll(0):
            raise BrokenPipeError


def encoded(content: Object) -> bytes:
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
