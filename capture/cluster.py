"""The pods of podtap in a cluster, and commands inside them: through the API server, over a WebSocket.

Nothing listens in the cluster: whoever may `get` and `create` pods/exec in podtap's namespace may do this, nobody else.
"""

from __future__ import annotations

import contextlib
import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlencode

from capture.connection import ApiError, Connection
from capture.errors import PodtapError

NAMESPACE: Final = "podtap"
AGENTS: Final = "app.kubernetes.io/name=podtap,app.kubernetes.io/component=agent"
JOURNALS: Final = "app.kubernetes.io/name=podtap,app.kubernetes.io/component=journal"
PROTOCOLS: Final = ("v5.channel.k8s.io", "v4.channel.k8s.io")
CONNECT_SECONDS: Final = 60.0
"""The API server itself tries for 30 s to reach a node."""
SILENCE_SECONDS: Final = 60.0
"""So long may a command say nothing before it is taken for dead."""
_STDOUT, _STDERR, _ERROR = 1, 2, 3
_STDERR_BYTES: Final = 8 << 10
_PAGE: Final = 500
_DEFAULT_CONTAINER: Final = "kubectl.kubernetes.io/default-container"


class ExecError(PodtapError):
    """A command in a pod did not come to a good end. `again`: another try may help. `gone`: there is no such pod."""

    def __init__(self, message: str, again: bool = False, exit_code: int | None = None, gone: bool = False) -> None:
        super().__init__(message)
        self.again, self.exit_code, self.gone = again, exit_code, gone


@dataclass(frozen=True)
class PodtapPod:
    """One of podtap's own pods."""

    namespace: str
    name: str
    node: str
    container: str
    problem: str = ""
    """Why no command can run in it; "" if one can."""


class Cluster:
    """What podtap runs in a cluster. Methods may be called from several threads; all raise PodtapError."""

    def __init__(self, connection: Connection, namespace: str = NAMESPACE) -> None:
        self.connection, self.namespace = connection, namespace

    def agents(self) -> list[PodtapPod]:
        """By node. Of two on one node (one is replacing the other) the one that runs."""
        found: dict[str, PodtapPod] = {}
        for pod in self._pods(AGENTS, "agent"):
            known = found.get(pod.node)
            if pod.node and (known is None or known.problem):
                found[pod.node] = pod
        return [found[node] for node in sorted(found)]

    def journals(self) -> list[PodtapPod]:
        return sorted(self._pods(JOURNALS, "journal"), key=lambda pod: pod.name)

    def agent_on(self, node: str) -> PodtapPod | None:
        return next((pod for pod in self.agents() if pod.node == node), None)

    def nodes(self) -> dict[str, bool]:
        """All nodes of the cluster: whether each is Ready."""
        return {item["metadata"]["name"]: _is_ready(item) for item in self.items("/api/v1/nodes")}

    def versions(self) -> dict[str, str]:
        """Kubernetes' own; nothing where it does not say."""
        try:
            return {"kubernetes": str(self._get("/version", {})["gitVersion"])}
        except (PodtapError, KeyError, TypeError):
            return {}

    def items(self, path: str, selector: str = "") -> Iterator[dict[str, Any]]:
        """All objects of a list, page by page."""
        query = {"limit": str(_PAGE)} | ({"labelSelector": selector} if selector else {})
        token: str | None = ""
        while token is not None:
            page = self._get(path, query | ({"continue": token} if token else {}))
            yield from page.get("items") or []
            token = (page.get("metadata") or {}).get("continue") or None

    def _get(self, path: str, query: dict[str, str]) -> Any:
        try:
            return self.connection.get(path, query)
        except ApiError as error:
            raise PodtapError(f"the API server {self.connection.host} can't be asked for {path}: {error}") from error

    def run(self, pod: PodtapPod, command: list[str]) -> bytes:
        """All of a command's output, for commands that say little."""
        return b"".join(self.stream(pod, command))

    def stream(self, pod: PodtapPod, command: list[str]) -> Iterator[bytes]:
        """A command's output as it comes; ends when the command has ended well. ExecError."""
        if pod.problem:
            raise ExecError(pod.problem, again=False)
        import websocket

        try:
            with contextlib.closing(self._open(pod, command)) as connection:
                yield from _output(connection)
        except websocket.WebSocketBadStatusException as error:
            if error.status_code == 401:  # whoever asks for JSON reads the credentials again
                self._get(f"/api/v1/namespaces/{quote(pod.namespace)}/pods", {"limit": "1"})
            raise _refused(pod, error.status_code, error.resp_body or b"") from error
        except websocket.WebSocketTimeoutException as error:
            raise ExecError(f"nothing was heard for {SILENCE_SECONDS:.0f} s", again=True) from error
        except (websocket.WebSocketException, OSError, ssl.SSLError) as error:
            raise ExecError(f"the connection broke: {error}", again=True) from error

    def _open(self, pod: PodtapPod, command: list[str]) -> Any:
        path = f"/api/v1/namespaces/{quote(pod.namespace)}/pods/{quote(pod.name)}/exec"
        query = [("container", pod.container), ("stdout", "true"), ("stderr", "true")]
        query += [("command", each) for each in command]
        return _websocket(self.connection, f"{path}?{urlencode(query)}")

    def _pods(self, selector: str, container: str) -> list[PodtapPod]:
        path = f"/api/v1/namespaces/{quote(self.namespace)}/pods"
        return [_podtap_pod(item, container) for item in self.items(path, selector)]


def _websocket(connection: Connection, url: str) -> Any:
    """An open WebSocket, with the authentication, TLS and proxy of the connection's configuration."""
    import websocket
    from kubernetes.stream import ws_client

    package: Any = ws_client  # without types
    configuration: Any = connection.configuration
    options = {
        "header": [f"{name}: {value}" for name, value in connection.headers().items()],
        "subprotocols": list(PROTOCOLS),
        "timeout": CONNECT_SECONDS,
        "sslopt": _tls(configuration),
        "sockopt": configuration.socket_options,
        "skip_utf8_validation": True,
    }
    if configuration.proxy or configuration.proxy_headers:
        options = package.websocket_proxycare(options, configuration, url, {})
    else:
        options["http_no_proxy"] = ["*"]  # urllib3, which all other requests go through, looks at no environment
    opened = websocket.create_connection(connection.host.replace("http", "ws", 1) + url, **options)
    opened.settimeout(SILENCE_SECONDS)
    return opened


def _tls(configuration: Any) -> dict[str, Any]:
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif configuration.assert_hostname is False:
        context.check_hostname = False
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    options: dict[str, Any] = {"context": context}
    if configuration.tls_server_name:
        options["server_hostname"] = configuration.tls_server_name
    return options


def _output(connection: Any) -> Iterator[bytes]:
    """Standard output of one exec; ExecError unless the command ended well."""
    import websocket

    errors, status = bytearray(), None
    while True:
        opcode, data = connection.recv_data()
        if opcode == websocket.ABNF.OPCODE_CLOSE or not data:
            break
        channel, payload = data[0], data[1:]
        if channel == _STDOUT and payload:
            yield payload
        elif channel == _STDERR:
            errors += payload
            del errors[:-_STDERR_BYTES]
        elif channel == _ERROR and payload:
            status = payload
            break  # a real server's last words; it waits for us to close
    if status is None:
        raise ExecError("the connection ended before the command did", again=True)
    _check_status(status, errors.decode(errors="replace").strip())


def _check_status(content: bytes, errors: str) -> None:
    try:
        status = json.loads(content)
    except ValueError:
        raise ExecError(f"the API server said: {content[:200].decode(errors='replace')}", again=True) from None
    if status.get("status") == "Success":
        return
    message = str(status.get("message", "unknown"))
    causes = (status.get("details") or {}).get("causes") or []
    codes = [each.get("message", "") for each in causes if each.get("reason") == "ExitCode"]
    if status.get("reason") != "NonZeroExitCode" or not codes or not codes[0].isdigit():
        raise ExecError(message, again=True)
    code = int(codes[0])
    said = "".join(each if each.isprintable() else " " for each in errors.rpartition("Error: ")[2])
    words = said.strip() or f"the command ended with exit code {code}"
    raise ExecError(words, again=code > 128, exit_code=code)  # killed: by the memory limit, or with its pod


def _refused(pod: PodtapPod, code: int, body: bytes) -> ExecError:
    """An answer of HTTP instead of a WebSocket."""
    try:
        message = str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        message = body[:200].decode(errors="replace").strip() or f"HTTP status {code}"
    if code == 403:
        message += f"; podtap needs the verbs get and create on pods/exec in namespace {pod.namespace}"
    return ExecError(message, again=code in (401, 429) or code >= 500, gone=code == 404)


def _podtap_pod(item: dict[str, Any], container: str) -> PodtapPod:
    metadata, spec, status = item["metadata"], item.get("spec") or {}, item.get("status") or {}
    names = [each["name"] for each in spec.get("containers") or []]
    wanted = (container, (metadata.get("annotations") or {}).get(_DEFAULT_CONTAINER), *names)
    chosen = next((name for name in wanted if name in names), container)
    return PodtapPod(
        metadata["namespace"], metadata["name"], spec.get("nodeName", ""), chosen, _problem(metadata, status, chosen)
    )


def _problem(metadata: dict[str, Any], status: dict[str, Any], container: str) -> str:
    """Why nothing can be run in a pod's container."""
    name = metadata["name"]
    states = {each.get("name"): each.get("state") or {} for each in status.get("containerStatuses") or []}
    waiting = states.get(container, {}).get("waiting")
    if waiting:
        return f"its pod {name} does not run: {waiting.get('reason', 'waiting')}"
    if "terminated" in states.get(container, {}):
        return f"its pod {name} does not run: the container has ended"
    phase = status.get("phase", "Running")
    return "" if phase == "Running" else f"its pod {name} does not run: it is {phase}"


def _is_ready(node: dict[str, Any]) -> bool:
    conditions = (node.get("status") or {}).get("conditions") or []
    return any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions)
