"""Requests to an API server: configuration and authentication by the `kubernetes` package, raw JSON through its pool.

Its generated client is left aside: it makes an object of every field, has no time limits of its own, and its watch can
hang for ever. Importing the package takes 0.2 s and 20 MB, so nothing imports it before a connection is made.
"""

from __future__ import annotations

import json
import math
import os
import platform
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

from capture.errors import PodtapError

if TYPE_CHECKING:
    from kubernetes.client import Configuration
    from urllib3 import BaseHTTPResponse, PoolManager

CONNECT_S: Final = 5.0
"""Longest wait for TCP and TLS."""
READ_S: Final = 15.0
"""Longest wait for the next byte of an answer."""
RELOAD_EVERY_S: Final = 30.0
"""A configuration whose token is refused is read again, but not more often than that: a plug-in may run for it."""
LONGEST_LINE: Final = 16 << 20
"""etcd takes no objects over 1.5 MB."""
_ERROR_BYTES: Final = 1 << 16
_PIECE: Final = 1 << 16

# A peer that vanished is noticed within 25 s, also with data under way; one whose process hangs is not: time limits do.
_KEEPALIVE: Final = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 25_000),
]


class ApiError(PodtapError):
    """A request that got no good answer; its text says why, in a few words."""

    def __init__(self, text: str, status: int | None = None, *, retry_after_s: float = 0, silent: bool = False) -> None:
        super().__init__(text)
        self.status = status
        """Of HTTP, or of a Status in its place; None: there was no answer, or no sound one."""
        self.retry_after_s = retry_after_s
        """What the server asked for; 0: nothing."""
        self.silent = silent
        """Nothing came any more: since when nothing would have come, nobody knows."""

    @property
    def label(self) -> str:
        """For metrics: the status, or what kind of failure it was."""
        return str(self.status or ("silence" if self.silent else "broken"))


class Connection:
    """To one API server; all methods may be called from any thread."""

    def __init__(
        self, kubeconfig: Path | None = None, context: str | None = None, *, component: str = "podtap"
    ) -> None:
        """By a kubeconfig ($KUBECONFIG and ~/.kube/config are looked at), else as the pod's own account.

        `component` names the sender in the server's audit log. Raises PodtapError where nothing tells the way.
        """
        self._kubeconfig, self._context = kubeconfig, context
        self._agent = f"{component}/{metadata.version('podtap')} ({platform.system().lower()}/{platform.machine()})"
        self._lock = threading.Lock()
        self._generation = 0
        self._loaded_at = -math.inf
        self.configuration, self._pool = self._load()

    @property
    def host(self) -> str:
        """The server's URL."""
        return str(self.configuration.host)

    def headers(self) -> dict[str, str]:
        """Of every request: who we are. Reads the token again where it has expired or is a pod's (each minute)."""
        with self._lock:
            settings: Any = self.configuration.auth_settings().values()
        authorization = {each["key"]: each["value"] for each in settings if each["value"]}
        return {"User-Agent": self._agent, "Accept": "application/json", **authorization}

    def get(self, path: str, query: Mapping[str, str] | None = None, read_s: float = READ_S) -> Any:
        """The JSON at a path. Raises ApiError."""
        with self._answer(path, query, read_s, {"Accept-Encoding": "gzip"}) as response, _failures(read_s):
            body = response.read()
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ApiError(f"the answer is no JSON: {error}") from None

    @contextmanager
    def stream(self, path: str, query: Mapping[str, str], limit_s: float) -> Iterator[Iterator[bytes]]:
        """Opens a watch: the lines of its body, each whole. Both raise ApiError, also once `limit_s` is over."""
        with self._answer(path, query, limit_s, {}) as response:
            yield _lines(response, limit_s)

    @contextmanager
    def _answer(
        self, path: str, query: Mapping[str, str] | None, read_s: float, headers: dict[str, str]
    ) -> Iterator[BaseHTTPResponse]:
        url = path + (f"?{urlencode(query)}" if query else "")
        generation, sent = self._generation, self.headers()
        response = self._send(url, sent | headers, read_s)
        try:
            if response.status == 401 and self._renewed(generation, sent):
                response.close()
                response = self._send(url, self.headers() | headers, read_s)
            if response.status != 200:
                raise _refusal(response, read_s)
            yield response
        finally:
            # Of an answer that was read to its end, the connection went back to the pool already.
            response.close()

    def _send(self, url: str, headers: dict[str, str], read_s: float) -> BaseHTTPResponse:
        from urllib3 import Timeout

        with _failures(read_s):
            return self._pool.request(
                "GET",
                self.host + url,
                headers=headers,
                timeout=Timeout(connect=CONNECT_S, read=read_s),
                preload_content=False,
                retries=False,
                redirect=False,
            )

    def _renewed(self, generation: int, sent: Mapping[str, str]) -> bool:
        """Whether there are other credentials than those that were refused: somebody read them, or we do now."""
        with self._lock:
            if generation == self._generation and time.monotonic() - self._loaded_at >= RELOAD_EVERY_S:
                self._loaded_at = time.monotonic()
                before = self.configuration.cert_file
                try:
                    self.configuration, self._pool = self._load()
                except PodtapError:
                    return False
                self._generation += 1
                if self.configuration.cert_file != before:
                    return True
        return self.headers() != sent

    def _load(self) -> tuple[Configuration, PoolManager]:
        import kubernetes.config
        from kubernetes.client import Configuration
        from kubernetes.client.rest import RESTClientObject

        config: Any = kubernetes.config  # without types
        configuration = Configuration()
        is_pod = not (self._kubeconfig or self._context or _has_kubeconfig())
        try:
            if not is_pod:
                file = str(self._kubeconfig) if self._kubeconfig else None
                config.load_kube_config(file, self._context, configuration)
            else:
                config.load_incluster_config(configuration)
        except Exception as error:  # of whatever kind, where a file is no kubeconfig
            known = isinstance(error, (config.ConfigException, OSError))
            why = _no_way(self._kubeconfig, is_pod, str(error).rstrip(".") if known else "it is no kubeconfig")
            raise PodtapError(
                f"no way to an API server: {why}; give --kubeconfig and --context, or run as a pod"
            ) from error
        configuration.socket_options = _KEEPALIVE
        configuration.connection_pool_maxsize = 16
        return configuration, RESTClientObject(configuration).pool_manager


def _no_way(kubeconfig: Path | None, is_pod: bool, error: str) -> str:
    """Why nothing tells of one."""
    if is_pod:
        return f"there is no kubeconfig ($KUBECONFIG, ~/.kube/config), and as a pod: {error}"
    if kubeconfig and not kubeconfig.exists():
        return f"there is no file {kubeconfig}"
    return f"{kubeconfig or 'the kubeconfig'} can't be used: {error}"


def _has_kubeconfig() -> bool:
    paths = os.environ.get("KUBECONFIG") or "~/.kube/config"
    # os.path's leaves ~ where the user has no home: in a container.
    return any(Path(os.path.expanduser(path)).is_file() for path in paths.split(os.pathsep) if path)


@contextmanager
def _failures(read_s: float) -> Iterator[None]:
    """What urllib3 raises, in words."""
    from urllib3 import exceptions as errors

    try:
        yield
    except errors.ReadTimeoutError:
        raise ApiError(f"no answer for {read_s:g} s", silent=True) from None
    except errors.NewConnectionError as error:  # a kind of ConnectTimeoutError
        cause = error.__cause__
        raise ApiError((isinstance(cause, OSError) and cause.strerror) or str(cause or error)) from None
    except errors.ConnectTimeoutError:
        raise ApiError(f"no connection within {CONNECT_S:g} s", silent=True) from None
    except errors.SSLError as error:
        raise ApiError(f"TLS failed: {error}") from None
    except (errors.HTTPError, OSError) as error:
        raise ApiError(f"the connection broke: {error.args[0] if error.args else error}") from None


def _refusal(response: BaseHTTPResponse, read_s: float) -> ApiError:
    """What an answer other than 200 says: mostly a Status, sometimes plain text."""
    with _failures(read_s):
        body = response.read(_ERROR_BYTES)
    try:
        message = str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        message = body.decode(errors="replace").strip()[:200] or str(response.reason)
    after = response.headers.get("Retry-After", "")
    seconds = float(after) if after.isascii() and after.isdigit() else 0
    return ApiError(f"HTTP {response.status}: {message}", response.status, retry_after_s=seconds)


def _lines(response: BaseHTTPResponse, limit_s: float) -> Iterator[bytes]:
    """Whole lines, as they come. An end amid a line, or amid a chunk, is a failure."""
    end = time.monotonic() + limit_s
    begun = b""
    while True:
        with _failures(limit_s):
            piece = response.read1(_PIECE)
        if not piece:
            break
        *whole, begun = (begun + piece).split(b"\n")
        yield from whole
        if len(begun) > LONGEST_LINE:
            raise ApiError(f"a line of over {LONGEST_LINE >> 20} MB")
        if time.monotonic() > end:
            raise ApiError(f"no end after {limit_s:g} s")
    if begun:
        raise ApiError("the answer ends amid a line")
