"""The stand-in's `pods/exec`, held to what the `kubernetes` package's own client and raw WebSockets expect of it."""

from __future__ import annotations

import base64
import gc
import json
import os
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import websocket
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import stream

from tests.lab.api_certificate import make_certificate
from tests.lab.api_exec import Container
from tests.lab.api_resources import Object
from tests.lab.api_server import ApiServer
from tests.lab.lab import Lab
from tests.lab.topology import Node, Pod, Topology

pytestmark = [
    # The package's stream client leaves a socket to the garbage collector where it was refused, or asked to preload.
    pytest.mark.filterwarnings("ignore:.*unclosed.*:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
PATH = "/api/v1/namespaces/podtap/pods/agent-a/exec"


def pod(name: str, node: str = "node-a", containers: tuple[str, ...] = ("agent",)) -> Object:
    metadata = {"name": name, "namespace": "podtap"}
    spec = {"nodeName": node, "containers": [{"name": each} for each in containers]}
    return {"kind": "Pod", "apiVersion": "v1", "metadata": metadata, "spec": spec, "status": {"hostIP": "10.0.0.1"}}


@pytest.fixture(autouse=True)
def _collect_garbage() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as running:
        running.apply(pod("agent-a"))
        running.containers["podtap", "agent-a"] = Container(environment={"NODE_NAME": "node-a"})
        yield running


def api(server: ApiServer, **settings: Any) -> client.CoreV1Api:
    configuration = client.Configuration()
    configuration.host = server.url
    for name, value in settings.items():
        setattr(configuration, name, value)
    return client.CoreV1Api(client.ApiClient(configuration))


def run(core: client.CoreV1Api, *command: str, name: str = "agent-a", **options: Any) -> Any:
    call = core.connect_get_namespaced_pod_exec
    settings = {"stdout": True, "stderr": True, "stdin": False, "tty": False} | options
    return stream(call, name, "podtap", command=list(command), **settings)


def opened(server: ApiServer, query: str, protocol: str, path: str = PATH) -> websocket.WebSocket:
    url = server.url.replace("http", "ws") + path + "?" + query
    return websocket.create_connection(url, subprotocols=[protocol], timeout=10)


def messages(connection: websocket.WebSocket) -> list[bytes]:
    """All data messages to the close frame; the connection is closed then."""
    found = []
    while True:
        opcode, data = connection.recv_data()
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            assert data == b"\x03\xe8"
            connection.close()
            return found
        found.append(data)


def test_python_client_reads_both_outputs_and_the_exit_code(server: ApiServer) -> None:
    answer = run(api(server), "sh", "-c", "echo out; echo $NODE_NAME; echo err >&2; exit 3", _preload_content=False)
    answer.run_forever(timeout=10)
    answer.close()
    assert (answer.read_stdout(), answer.read_stderr(), answer.returncode) == ("out\nnode-a\n", "err\n", 3)


def test_python_client_writes_standard_input(server: ApiServer) -> None:
    answer = run(api(server), "head", "-n", "1", stdin=True, _preload_content=False)
    answer.write_stdin("hello\n")
    answer.run_forever(timeout=10)
    answer.close()
    assert (answer.read_stdout(), answer.returncode) == ("hello\n", 0)


def test_python_client_gets_every_byte_of_a_large_binary_output(server: ApiServer, tmp_path: Path) -> None:
    content = os.urandom(1_000_000)
    (tmp_path / "large").write_bytes(content)
    answer = run(api(server), "cat", str(tmp_path / "large"), _preload_content=False, binary=True)
    answer.run_forever(timeout=30)
    answer.close()
    assert answer.read_stdout() == content


def test_python_client_over_tls_with_a_token(tmp_path: Path) -> None:
    context, certificate = make_certificate(tmp_path, "127.0.0.1")
    with ApiServer(tls=context, tokens={"secret": "ops"}) as server:
        server.apply(pod("agent-a"))
        server.containers["podtap", "agent-a"] = Container()
        keys = {"authorization": "Bearer secret"}
        assert run(api(server, ssl_ca_cert=str(certificate), api_key=keys), "echo", "hi") == "hi\n"
        with pytest.raises(ApiException, match="401"):
            wrong = {"authorization": "Bearer wrong"}
            run(api(server, ssl_ca_cert=str(certificate), api_key=wrong), "echo", "hi")


@pytest.mark.parametrize(
    ("name", "options", "code", "message"),
    [
        ("nobody", {}, 404, 'pods "nobody" not found'),
        ("agent-a", {"container": "other"}, 400, "container other is not valid for pod agent-a"),
        ("two", {}, 400, "a container name must be specified for pod two, choose one of: [agent scope]"),
        ("pending", {}, 400, "pod pending does not have a host assigned"),
    ],
)
def test_python_client_is_refused(server: ApiServer, name: str, options: Any, code: int, message: str) -> None:
    server.apply(pod("two", containers=("agent", "scope")))
    server.apply(pod("pending", node=""))
    with pytest.raises(ApiException) as error:
        run(api(server), "true", name=name, **options)
    assert str(code) in error.value.reason
    assert message in error.value.reason.replace('\\\\"', '"').replace('\\"', '"')


def test_who_may_get_but_not_create_is_forbidden(tmp_path: Path) -> None:
    with ApiServer(tokens={"secret": "ops"}) as server:
        server.apply(pod("agent-a"))
        server.denied.add(("ops", "pods/exec", "create"))
        with pytest.raises(ApiException) as error:
            run(api(server, api_key={"authorization": "Bearer secret"}), "true")
    assert "403" in error.value.reason and "ops" in error.value.reason and "pods/exec" in error.value.reason


@pytest.mark.parametrize("protocol", ["v4.channel.k8s.io", "v5.channel.k8s.io"])
def test_the_first_message_is_empty_and_the_last_a_status(server: ApiServer, protocol: str) -> None:
    with_output = opened(server, "command=echo&command=hi&stdout=true&stderr=true", protocol)
    assert with_output.getsubprotocol() == protocol
    first, output, status = messages(with_output)
    assert (first, output, status[:1]) == (b"\x01", b"\x01hi\n", b"\x03")
    assert json.loads(status[1:]) == {"metadata": {}, "status": "Success"}
    without = opened(server, "command=true&stdin=1", protocol)
    assert messages(without)[0] == b"\x03"


def test_v5_closes_standard_input(server: ApiServer) -> None:
    connection = opened(server, "command=wc&command=-c&stdin=1&stdout=1", "v5.channel.k8s.io")
    connection.send_binary(b"\x00" + b"x" * 70_000)
    connection.send_binary(b"\xff\x00")
    assert b"".join(each[1:] for each in messages(connection) if each[:1] == b"\x01") == b"70000\n"


def test_v4_is_refused_by_the_kubelet_with_http(server: ApiServer) -> None:
    server.apply(pod("gone"))
    server.apply(pod("down", node="node-b"))
    server.unreachable.add("node-b")
    for name, words in (("gone", b"container not found"), ("down", b"10.0.0.1:10250: connect: no route to host")):
        with pytest.raises(websocket.WebSocketBadStatusException) as error:
            opened(server, "command=true&stdout=1", "v4.channel.k8s.io", PATH.replace("agent-a", name))
        assert error.value.status_code == 500
        assert words in error.value.resp_body


def test_v5_is_told_of_an_unreachable_node_after_the_upgrade(server: ApiServer) -> None:
    server.unreachable.add("node-a")
    connection = opened(server, "command=true&stdout=1", "v5.channel.k8s.io")
    status = json.loads(messages(connection)[-1][1:])
    assert status["code"] == 500 and "no route to host" in status["message"]


def test_a_command_that_cannot_start_is_an_error_of_the_server(server: ApiServer) -> None:
    connection = opened(server, "command=no-such-command&stdout=1", "v4.channel.k8s.io")
    status = json.loads(messages(connection)[-1][1:])
    assert status["reason"] == "InternalError" and "no-such-command" in status["message"]


@pytest.mark.parametrize(
    ("headers", "answer"),
    [
        ({}, b"HTTP/1.1 400 Bad Request"),
        ({"Sec-WebSocket-Protocol": "v9.channel.k8s.io", "Sec-WebSocket-Version": "13"}, b"HTTP/1.1 403 Forbidden"),
        ({"Sec-WebSocket-Protocol": "v4.channel.k8s.io", "Sec-WebSocket-Version": "8"}, b"HTTP/1.1 400 Bad Request"),
    ],
    ids=["no upgrade", "unknown subprotocol", "old version"],
)
def test_raw_requests_that_are_refused(server: ApiServer, headers: dict[str, str], answer: bytes) -> None:
    upgrade = {"Upgrade": "websocket", "Connection": "keep-alive, Upgrade"} if headers else {}
    upgrade |= {"Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode()} if headers else {}
    lines = [f"GET {PATH}?command=true&stdout=1 HTTP/1.1", "Host: x"]
    lines += [f"{name}: {value}" for name, value in (upgrade | headers).items()]
    with socket.create_connection((server.host, server.port), timeout=5) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        assert connection.recv(200).startswith(answer)


def test_faults_cut_slow_and_silence(server: ApiServer) -> None:
    query = "command=head&command=-c&command=100000&command=/dev/zero&stdout=1"
    with server.faulty("cut", "pods/exec", after=50_000, times=1):
        connection = opened(server, query, "v4.channel.k8s.io")
        received = 0
        with pytest.raises((ConnectionError, ssl.SSLError, websocket.WebSocketException)):
            while True:
                received += len(connection.recv()) - 1
        connection.shutdown()
        assert received == 50_000
    start = time.monotonic()
    with server.faulty("slow", "pods/exec", delay=0.1):
        connection = opened(server, query, "v4.channel.k8s.io")
        assert sum(len(each) - 1 for each in messages(connection) if each[0] == 1) == 100_000
    assert time.monotonic() - start > 0.3
    with server.faulty("silence", "pods/exec"):
        connection = opened(server, query, "v4.channel.k8s.io")
        connection.settimeout(0.3)
        assert connection.recv() == b"\x01"
        with pytest.raises(websocket.WebSocketTimeoutException):
            connection.recv()
        connection.shutdown()


def test_commands_run_in_the_network_namespace_of_their_pod() -> None:
    labels = {"app.kubernetes.io/name": "podtap"}
    pods = [
        Pod("agent-a", "node-a", namespace="podtap", labels=labels, host_network=True),
        Pod("web", "node-a", namespace="podtap", labels={}),
    ]
    with Lab(Topology([Node("node-a")], pods)) as lab, ApiServer() as server:
        server.follow(lab)
        core = api(server)
        assert lab.node("node-a").ip in run(core, "ip", "-4", "-o", "addr", name="agent-a")
        inside = run(core, "ip", "-4", "-o", "addr", name="web")
        assert lab.pod("web").ip in inside and lab.node("node-a").ip not in inside
