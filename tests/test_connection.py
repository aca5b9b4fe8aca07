"""Connections to an API server: every way to be known to it, and what becomes of bad answers. Real HTTP on loopback."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from capture.connection import ApiError, Connection
from capture.errors import PodtapError
from tests.kubeconfigs import write_kubeconfig
from tests.lab.api_certificate import make_certificate
from tests.lab.api_server import ApiServer

PODS = "/api/v1/pods"


@contextmanager
def answering(answer: bytes, close: Callable[[socket.socket], None] = socket.socket.close) -> Iterator[str]:
    """A server that says `answer` to whatever it is asked."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        try:
            while True:
                client, _ = listener.accept()
                client.recv(1 << 16)
                client.sendall(answer)
                close(client)
        except OSError:
            pass  # the test is over

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()


@pytest.fixture
def connect(tmp_path: Path) -> Callable[[str], Connection]:
    def connected(url: str) -> Connection:
        server = ApiServer()
        server.port = int(url.rpartition(":")[2])
        return Connection(write_kubeconfig(tmp_path, server))

    return connected


def pod(name: str) -> dict[str, object]:
    return {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": name, "namespace": "shop", "uid": f"uid-{name}"}}


def names(answer: dict[str, list[dict[str, dict[str, str]]]]) -> list[str]:
    return [item["metadata"]["name"] for item in answer["items"]]


def test_a_token_in_a_kubeconfig_over_tls(tmp_path: Path) -> None:
    tls, authority = make_certificate(tmp_path, "127.0.0.1")
    with ApiServer(tls=tls, tokens={"secret": "journal"}) as server:
        server.apply(pod("a"))
        connection = Connection(write_kubeconfig(tmp_path, server, authority, token="secret"))
        assert names(connection.get(PODS, {"limit": "1"})) == ["a"]
        assert server.requests[-1].query == {"limit": "1"}


def test_a_certificate_of_another_authority_is_refused(tmp_path: Path) -> None:
    tls, _ = make_certificate(tmp_path, "127.0.0.1")
    (tmp_path / "other").mkdir()
    _, other = make_certificate(tmp_path / "other", "127.0.0.1")
    with ApiServer(tls=tls) as server, pytest.raises(ApiError, match=r"TLS failed.*certificate verify failed"):
        Connection(write_kubeconfig(tmp_path, server, other)).get(PODS)


def test_a_rotated_token_file_is_read_again_when_it_is_refused(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    with ApiServer(tokens={"first": "journal"}) as server:
        connection = Connection(write_kubeconfig(tmp_path, server, tokenFile=str(token)))
        connection.get(PODS)
        server.tokens = {"second": "journal"}
        token.write_text("second")
        connection.get(PODS)
        assert [request.status for request in server.requests] == [200, 401, 200]


def test_credentials_that_stay_wrong_cost_one_request_each(tmp_path: Path) -> None:
    with ApiServer(tokens={"right": "journal"}) as server:
        connection = Connection(write_kubeconfig(tmp_path, server, token="wrong"))
        for _ in range(3):
            with pytest.raises(ApiError, match="HTTP 401: Unauthorized") as failure:
                connection.get(PODS)
            assert failure.value.status == 401
        assert len(server.requests) == 3


def test_an_exec_plugin_runs_again_when_its_token_is_refused_but_not_at_every_request(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin"
    credential = {"kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1"}
    plugin.write_text(
        f"#!{sys.executable}\n"
        "import json, pathlib\n"
        f"runs = pathlib.Path({str(tmp_path / 'runs')!r})\n"
        "number = len(runs.read_text()) if runs.exists() else 0\n"
        "runs.write_text('x' * (number + 1))\n"
        f"print(json.dumps({credential!r} | {{'status': {{'token': f'token-{{number}}'}}}}))\n"
    )
    plugin.chmod(0o755)
    spec = {"apiVersion": credential["apiVersion"], "command": str(plugin), "interactiveMode": "Never"}
    with ApiServer(tokens={"token-0": "journal"}) as server:
        connection = Connection(write_kubeconfig(tmp_path, server, exec=spec))
        connection.get(PODS)
        server.tokens = {"token-1": "journal"}
        connection.get(PODS)
        server.tokens = {"token-2": "journal"}
        with pytest.raises(ApiError, match="401"):
            connection.get(PODS)
        assert (tmp_path / "runs").read_text() == "xx"


def test_inside_a_pod_its_own_account_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kubernetes.config import incluster_config

    tls, authority = make_certificate(tmp_path, "127.0.0.1")
    token = tmp_path / "token"
    token.write_text("first")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(authority))
    with ApiServer(tls=tls, tokens={"first": "journal"}) as server:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
        connection = Connection()
        connection.get(PODS)
        token.write_text("second")
        server.tokens = {"second": "journal"}
        connection.get(PODS)


def test_nothing_tells_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(PodtapError, match=r"no way to an API server.*--kubeconfig"):
        Connection()
    with pytest.raises(PodtapError, match="no way to an API server"):
        Connection(tmp_path / "absent")


def test_refusals_say_what_the_server_says(tmp_path: Path) -> None:
    with ApiServer(tokens={"secret": "journal"}) as server:
        connection = Connection(write_kubeconfig(tmp_path, server, token="secret"))
        with server.faulty("429", retry_after=7), pytest.raises(ApiError) as failure:
            connection.get(PODS)
        assert (failure.value.status, failure.value.retry_after_s) == (429, 7)
        server.forbidden = {"journal"}
        with pytest.raises(ApiError, match='HTTP 403: pods is forbidden: User "journal" cannot list'):
            connection.get(PODS)
        server.forbidden = set()
        with pytest.raises(ApiError, match="HTTP 404: 404 page not found") as failure:
            connection.get("/apis/example.org/v1/things")
        assert failure.value.status == 404


def test_a_server_that_is_not_there(connect: Callable[[str], Connection]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ApiError, match="Connection refused"):
        connect(f"http://127.0.0.1:{port}").get(PODS)


def test_silence_ends_after_the_time_that_was_given(tmp_path: Path) -> None:
    with ApiServer() as server, server.faulty("silence"):
        connection = Connection(write_kubeconfig(tmp_path, server))
        begun = time.monotonic()
        with pytest.raises(ApiError, match=r"no answer for 0.3 s") as failure:
            connection.get(PODS, read_s=0.3)
        assert failure.value.silent
        with (
            pytest.raises(ApiError, match=r"no answer for 0.3 s"),
            connection.stream(PODS, {"watch": "1"}, limit_s=0.3) as lines,
        ):
            list(lines)
        assert time.monotonic() - begun < 3


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "the connection broke"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "the connection broke"),
        (HEAD + b"5\r\n{}\n{", "the connection broke"),
        (HEAD + b"4\r\n{}\n{\r\n0\r\n\r\n", "ends amid a line"),
        (HEAD + b"zz\r\n", "the connection broke"),
        (HEAD, "the connection broke"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n", "HTTP 302"),
    ],
)
def test_a_watch_that_is_no_sound_answer(connect: Callable[[str], Connection], answer: bytes, message: str) -> None:
    with (
        answering(answer) as url,
        pytest.raises(ApiError, match=message) as failure,
        connect(url).stream(PODS, {}, limit_s=2) as lines,
    ):
        list(lines)
    assert not failure.value.silent


@pytest.mark.parametrize("body", [b"<html>", b"\xff", b"[" * 100_000, b""])
def test_a_page_that_is_no_json(connect: Callable[[str], Connection], body: bytes) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    with answering(answer) as url, pytest.raises(ApiError, match="no JSON"):
        connect(url).get(PODS)


def test_a_line_without_an_end_is_given_up(connect: Callable[[str], Connection]) -> None:
    flood = HEAD + b"".join(b"%x\r\n%b\r\n" % (1 << 20, b"x" * (1 << 20)) for _ in range(18))
    with (
        answering(flood) as url,
        pytest.raises(ApiError, match="a line of over 16 MB"),
        connect(url).stream(PODS, {}, limit_s=60) as lines,
    ):
        list(lines)


def test_lines_come_whole_and_at_once(tmp_path: Path) -> None:
    with ApiServer() as server:
        connection = Connection(write_kubeconfig(tmp_path, server))
        with connection.stream(PODS, {"watch": "1", "timeoutSeconds": "5"}, limit_s=6) as lines:
            for name in ("a", "b"):
                server.apply(pod(name))
                begun = time.monotonic()
                assert json.loads(next(lines))["object"]["metadata"]["name"] == name
                assert time.monotonic() - begun < 1


def test_nothing_is_imported_before_it_is_needed() -> None:
    code = "import capture.connection, sys; print('kubernetes' in sys.modules, 'urllib3' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]
