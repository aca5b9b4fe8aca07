"""`pods/exec` of the API server stand-in: commands in the containers of pods, over a WebSocket.

As a real server has it since 1.30: who speaks v5.channel.k8s.io is answered by the API server itself, which asks the
kubelet afterwards; whoever speaks v4.channel.k8s.io is handed to the kubelet, whose refusals are then HTTP's. A command
goes on when its client leaves, and learns of it when it writes.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Final, cast
from urllib.parse import parse_qs, urlsplit

from tests.lab.api_lists import get_object
from tests.lab.api_resources import Object
from tests.lab.api_status import ApiError, bad_request, forbidden, internal_error
from tests.lab.api_watches import is_true
from tests.lab.api_websocket import WebSocket, handshake, is_upgrade, offered
from tests.lab.namespaces import Namespace

if TYPE_CHECKING:
    from tests.lab.api_connections import Handler
    from tests.lab.api_server import ApiServer, Target

EXEC: Final = "pods/exec"
"""The name of the resource for faults."""
V4: Final = "v4.channel.k8s.io"
V5: Final = "v5.channel.k8s.io"
STDIN, STDOUT, STDERR, ERROR, RESIZE = range(5)
CHANNEL_CLOSE: Final = 255
PIECE: Final = 32 << 10
"""Go's io.Copy reads so much at once; each read is a message."""
PATIENCE: Final = 15.0
"""Seconds in which a client of v5 has to close the connection once the command has ended; a real server's are 900."""


@dataclass
class Container:
    """Where the commands of a pod run: in a network namespace, with the container's environment."""

    namespace: Namespace | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, command: list[str], **pipes: Any) -> subprocess.Popen[bytes]:
        prefix = ["ip", "netns", "exec", self.namespace.name] if self.namespace else []
        return subprocess.Popen([*prefix, *command], env=os.environ | self.environment, **pipes)


@dataclass(frozen=True)
class Options:
    """What a request asks for."""

    command: list[str]
    container: str
    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool

    @classmethod
    def of(cls, path: str) -> Options:
        query = parse_qs(urlsplit(path).query, keep_blank_values=True)
        flags = {name: is_true(query.get(name, ["false"])[0]) for name in ("stdin", "stdout", "stderr", "tty")}
        flags["stderr"] &= not flags["tty"]
        return cls(query.get("command", []), query.get("container", [""])[0], **flags)


def serve(api: ApiServer, connection: Handler, target: Target, user: str | None) -> None:
    """One request, from its authorization to the end of its command. Raises ApiError for what is refused with HTTP."""
    verb = "get" if connection.command == "GET" else "create"
    _authorize(api, target, user, verb)
    options = Options.of(connection.path)
    with api.store.changed:
        pod = get_object(api.store, target.resource, target.namespace, target.name, False)
    _choose_container(options, pod)
    node = pod["spec"].get("nodeName", "")
    if not node:
        raise bad_request(f"pod {target.name} does not have a host assigned")
    headers = {name.lower(): value for name, value in connection.headers.items()}
    if not is_upgrade(headers):
        raise bad_request("Upgrade request required")
    is_v5 = V5 in offered(headers)
    problem = _kubelet_refuses(api, target, pod, options)
    if problem and not is_v5:
        raise problem
    answer, protocol = handshake(headers, [V5] if is_v5 else ["", "channel.k8s.io", V4])
    connection.close_connection = True
    connection.entry.status = 101 if protocol is not None else 403
    connection.wfile.write(answer)
    if protocol is not None:
        channel = WebSocket(cast(BinaryIO, connection.rfile), cast(BinaryIO, connection.wfile))
        Session(api, connection, channel, options, protocol == V5).run(_container(api, target), problem)


class Session:
    """One command and the connection that it talks through."""

    def __init__(self, api: ApiServer, connection: Handler, channel: WebSocket, options: Options, is_v5: bool) -> None:
        self.api, self.connection, self.options, self.is_v5 = api, connection, options, is_v5
        self.socket = channel
        self._cut = api.strike(("cut",), "get", EXEC)
        self._written = 0
        self._lock = threading.Lock()
        self._changed = threading.Condition()
        self._open_outputs = 0
        self._broken: Exception | None = None
        self._closed = threading.Event()
        """The client has closed the connection, or left."""

    def run(self, container: Container | None, problem: ApiError | None) -> None:
        first = STDOUT if self.options.stdout else STDERR if self.options.stderr else ERROR
        self.socket.send(bytes([first]))
        process = None
        if problem is None and container is not None:
            process, problem = self._start(container)
        reader = threading.Thread(target=self._read, args=(process,), daemon=True)
        reader.start()
        try:
            if process is None:
                self._finish((problem or internal_error("no such container")).status)
            else:
                self._pump(process)
                self._finish(_status_of(process.wait()))
        finally:
            with contextlib.suppress(OSError):  # wakes the reader; nothing is sent
                socket.socket.shutdown(self.connection.connection, socket.SHUT_RD)
            reader.join()

    def _start(self, container: Container) -> tuple[subprocess.Popen[bytes] | None, ApiError | None]:
        options = self.options
        void = subprocess.DEVNULL
        merged = subprocess.STDOUT if options.tty else void
        try:
            process = container.start(
                options.command,
                stdin=subprocess.PIPE if options.stdin else void,
                stdout=subprocess.PIPE if options.stdout else void,
                stderr=subprocess.PIPE if options.stderr else merged,
            )
        except (OSError, IndexError) as error:
            return None, internal_error(f"error executing command in container: {error}")
        self.api.processes.append(process)
        return process, None

    def _pump(self, process: subprocess.Popen[bytes]) -> None:
        """Both outputs to their end. Raises what ended the connection meanwhile."""
        outputs = [(STDOUT, process.stdout), (STDERR, process.stderr)]
        given = [(channel, pipe) for channel, pipe in outputs if pipe is not None]
        self._open_outputs = len(given)
        for channel, pipe in given:
            threading.Thread(target=self._forward, args=(channel, pipe), daemon=True).start()
        with self._changed:
            self._changed.wait_for(lambda: self._broken or not self._open_outputs)
        if self._broken:
            raise self._broken

    def _forward(self, channel: int, pipe: IO[bytes]) -> None:
        with pipe:
            try:
                while piece := os.read(pipe.fileno(), PIECE):
                    self._send(channel, piece)
            except Exception as error:  # the connection's thread raises it again
                self._broken = self._broken or error
            finally:
                with self._changed:
                    self._open_outputs -= 1
                    self._changed.notify()

    def _send(self, channel: int, piece: bytes) -> None:
        if slow := self.api.strike(("slow",), "get", EXEC):
            time.sleep(slow.delay)
        if fault := self.api.strike(("silence",), "get", EXEC):
            while fault.is_on and not self._closed.is_set():
                time.sleep(0.02)
            raise BrokenPipeError
        with self._lock:
            if self._cut and self._written + len(piece) > self._cut.after:
                self.socket.send(bytes([channel]) + piece[: self._cut.after - self._written])
                raise self.connection.reset()
            self._written += len(piece)
        self.socket.send(bytes([channel]) + piece)

    def _read(self, process: subprocess.Popen[bytes] | None) -> None:
        """What the client sends: standard input, and the end of it."""
        pipe = process.stdin if process else None
        try:
            for message in self.socket.messages():
                if message[:1] == bytes([STDIN]) and pipe:
                    with contextlib.suppress(OSError):  # the command closed it
                        pipe.write(message[1:])
                        pipe.flush()
                elif message == bytes([CHANNEL_CLOSE, STDIN]) and self.is_v5 and pipe:
                    pipe.close()
                    pipe = None
        except (OSError, ValueError):
            pass
        finally:
            self._closed.set()
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _finish(self, status: Object) -> None:
        self.socket.send(bytes([ERROR]) + json.dumps(status, separators=(",", ":")).encode())
        self.socket.close()
        if self.is_v5:
            self._closed.wait(PATIENCE)


def _authorize(api: ApiServer, target: Target, user: str | None, verb: str) -> None:
    """Who upgrades with GET needs `create` as well, since 1.35."""
    for needed in dict.fromkeys((verb, "create")):
        is_refused = user is not None and (user in api.forbidden or (user, EXEC, needed) in api.denied)
        if is_refused or api.strike(("403",), needed, EXEC):
            raise forbidden(user or "nobody", needed, target.resource, target.namespace, target.name, "exec")
    for kind in ("500", "429", "401", "410"):
        if fault := api.strike((kind,), verb, EXEC):
            raise fault.refusal(verb, target.resource, target.namespace, target.name, 0)


def _choose_container(options: Options, pod: Object) -> None:
    names = [each["name"] for each in pod["spec"].get("initContainers", []) + pod["spec"].get("containers", [])]
    if options.container and options.container not in names:
        raise bad_request(f"container {options.container} is not valid for pod {pod['metadata']['name']}")
    if not options.container and len(names) != 1:
        choice = f", choose one of: [{' '.join(names)}]" if names else ""
        raise bad_request(f"a container name must be specified for pod {pod['metadata']['name']}{choice}")


def _kubelet_refuses(api: ApiServer, target: Target, pod: Object, options: Options) -> ApiError | None:
    """What the API server learns when it asks the kubelet."""
    if pod["spec"]["nodeName"] in api.unreachable:
        host = pod.get("status", {}).get("hostIP", "192.0.2.1")
        return ApiError(500, f"error dialing backend: dial tcp {host}:10250: connect: no route to host")
    if _container(api, target) is None:
        name = options.container or pod["spec"]["containers"][0]["name"]
        return ApiError(500, f'container not found ("{name}")')
    if not (options.stdin or options.stdout or options.stderr):
        return bad_request("you must specify at least 1 of stdin, stdout, stderr")
    return None


def _container(api: ApiServer, target: Target) -> Container | None:
    if container := api.containers.get((target.namespace, target.name)):
        return container
    pod = api.lab.pods.get(target.name) if api.lab else None
    if pod is None or pod.spec.namespace != target.namespace:
        return None
    return Container(pod.namespace)


def _status_of(exit_code: int) -> Object:
    if exit_code == 0:
        return {"metadata": {}, "status": "Success"}
    code = exit_code if exit_code > 0 else 128 - exit_code
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: exit status {code}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }
