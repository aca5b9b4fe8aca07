"""podtap journal, snapshot and scope as they are run: processes, signals, exit codes, files."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from analysis.dumps import read_dumps
from analysis.kubernetes_objects import ownerships
from capture.contract import KINDS
from tests.journal_rig import make_pod, make_server, truth
from tests.journals import files_of, read, replay
from tests.kubeconfigs import write_kubeconfig
from tests.lab.api_certificate import make_certificate
from tests.lab.api_server import ApiServer

PODTAP = Path(sys.executable).with_name("podtap")


@contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([PODTAP, *map(str, arguments)], stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def until(condition: Callable[[], bool], seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def fetch(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def state(root: Path) -> dict[str, Any]:
    files = files_of(root)
    return replay(read(files[-1])) if files else {}


def test_a_journal_from_its_start_to_its_end(tmp_path: Path) -> None:
    tls, authority = make_certificate(tmp_path, "127.0.0.1")
    port = free_port()
    with make_server(tls=tls, tokens={"secret": "journal"}) as server:
        server.apply(make_pod("a", "10.244.0.1"))
        kubeconfig = write_kubeconfig(tmp_path, server, authority, token="secret")
        options = ["--root", tmp_path, "--name", "one", "--kubeconfig", kubeconfig, "--metrics", f"127.0.0.1:{port}"]
        with started("journal", *options) as process:
            until(lambda: fetch(port, "readyz") == (200, "ok\n"))
            server.apply(make_pod("b", "10.244.0.2"))
            until(lambda: state(tmp_path) == truth(server, KINDS))
            assert 'podtap_journal_records_total{kind="Pod",type="added"} 1' in fetch(port, "metrics")[1].splitlines()
            server.forbidden = {"journal"}
            server.stop()
            server.start()
            until(lambda: "Pod: HTTP 403: pods is forbidden" in fetch(port, "readyz")[1])
            assert fetch(port, "healthz")[0] == 200
            begun = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
            assert time.monotonic() - begun < 3
            assert process.stderr is not None
            lines = [json.loads(line) for line in process.stderr.read().splitlines()]
            assert lines[-1]["message"] == "the journal ends"
        [file] = files_of(tmp_path)
        records = read(file)
        assert (file.suffix, records[-1]["type"]) == (".zst", "stopped")
        assert {record["kind"] for record in records if record["type"] == "gap"} == set(KINDS)
        agents = {request.path for request in server.requests}
        assert len(agents) == len(KINDS)


def test_a_killed_journal_is_made_whole_by_the_next(tmp_path: Path) -> None:
    with make_server() as server:
        options = ["--root", tmp_path, "--name", "one", "--metrics", ""]
        options += ["--kubeconfig", write_kubeconfig(tmp_path, server)]
        with started("journal", *options) as process:
            server.apply(make_pod("a", "10.244.0.1"))
            until(lambda: state(tmp_path) == truth(server, KINDS) != {})
            with started("journal", *options) as second:
                assert second.wait(10) == 1
                assert second.stderr is not None
                assert b"another podtap journal writes" in second.stderr.read()
            process.kill()
        killed_ns = time.time_ns()
        with started("journal", *options) as process:
            until(lambda: len(files_of(tmp_path)) == 2 and state(tmp_path) == truth(server, KINDS))
            process.terminate()
            assert process.wait(10) == 0
        first, last = files_of(tmp_path)
        assert replay(read(first)) == replay(read(last))
        gap = next(record for record in read(last) if record["type"] == "gap" and record["kind"] == "Pod")
        assert killed_ns - 3 * 10**9 < gap["since_ns"] < killed_ns + 10**8
        assert gap["reason"] == "podtap journal was not running"


def test_a_journal_begins_without_its_server(tmp_path: Path) -> None:
    with make_server() as server:
        kubeconfig = write_kubeconfig(tmp_path, server)
        port = server.port
    server = make_server(port=port)
    with started("journal", "--root", tmp_path, "--metrics", "", "--kubeconfig", kubeconfig):
        until(lambda: bool(files_of(tmp_path)))
        with server:
            server.apply(make_pod("a", "10.244.0.1"))
            until(lambda: state(tmp_path) == truth(server, KINDS))
            reasons = {record["reason"] for record in read(files_of(tmp_path)[0]) if record["type"] == "gap"}
            assert reasons <= {"Connection refused"}


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--kubeconfig", "/absent"], 1, "no way to an API server"),
        (["--quota", "many"], 2, "not a size"),
        (["--metrics", "here"], 2, "is not an address and port"),
        (["--root", "/proc"], 1, "can't be written"),
    ],
)
def test_a_journal_that_is_called_wrongly(tmp_path: Path, options: list[str], code: int, message: str) -> None:
    with make_server() as server:
        kubeconfig = write_kubeconfig(tmp_path, server)
        command = [PODTAP, "journal", "--kubeconfig", kubeconfig, "--root", tmp_path, *options]
        run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, message in run.stderr) == (code, True), run.stderr


def snapshot(server: ApiServer, folder: Path, *options: object) -> subprocess.CompletedProcess[str]:
    kubeconfig = write_kubeconfig(folder, server)
    command = [PODTAP, "snapshot", "--kubeconfig", kubeconfig, *options]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def test_a_snapshot_is_a_dump_with_a_time(tmp_path: Path) -> None:
    with make_server() as server:
        for number in range(300):
            server.apply(make_pod(f"p{number}", f"10.244.{number // 250}.{number % 250 + 1}"))
        service = {"name": "web", "namespace": "shop", "uid": "s"}
        server.apply({"kind": "Service", "apiVersion": "v1", "metadata": service, "spec": {"clusterIP": "10.96.0.1"}})
        before = int(time.time())
        run = snapshot(server, tmp_path, "-o", tmp_path / "cluster.json")
        assert (run.returncode, run.stdout, "301 objects" in run.stderr) == (0, "", True)
        (tmp_path / "dumps").mkdir()
        assert snapshot(server, tmp_path, "-o", tmp_path / "dumps").returncode == 0
        printed = snapshot(server, tmp_path, "-o", "-")
        assert len(json.loads(printed.stdout)["items"]) == 301
    [dump], problems = read_dumps([str(tmp_path / "cluster.json")])
    assert problems == []
    assert before <= dump.taken_ns / 10**9 <= time.time()
    assert not dump.is_part
    [named], _ = read_dumps([str(tmp_path / "dumps")])
    assert named.taken_ns >= dump.taken_ns
    found, problems = ownerships([dump])
    assert problems == []
    assert {owner.ip for owner in found if owner.identity == "pod"} >= {"10.244.0.1", "10.244.1.50"}


def test_a_snapshot_without_all_rights_says_what_is_missing(tmp_path: Path) -> None:
    with make_server() as server, server.faulty("403", "nodes"):
        server.apply(make_pod("a", "10.244.0.1"))
        run = snapshot(server, tmp_path, "-o", tmp_path / "cluster.json")
        assert (run.returncode, "Node is missing: HTTP 403: nodes is forbidden" in run.stderr) == (3, True)
        assert len(json.loads((tmp_path / "cluster.json").read_text())["items"]) == 1


def test_a_snapshot_of_one_namespace(tmp_path: Path) -> None:
    with make_server() as server:
        server.apply(make_pod("a", "10.244.0.1"))
        other = make_pod("b", "10.244.0.2")
        other["metadata"]["namespace"] = "other"
        server.apply(other)
        assert snapshot(server, tmp_path, "-n", "shop", "-o", tmp_path / "cluster.json").returncode == 0
        asked = {request.path for request in server.requests}
    [item] = json.loads((tmp_path / "cluster.json").read_text())["items"]
    assert (item["metadata"]["name"], item["kind"], item["apiVersion"]) == ("a", "Pod", "v1")
    assert "/api/v1/namespaces/shop/pods" in asked
    assert "/api/v1/nodes" in asked


@pytest.mark.parametrize("kind", ["refused", "403"])
def test_no_snapshot_is_half_written(tmp_path: Path, kind: str) -> None:
    with make_server() as server:
        if kind == "403":
            server.inject("403")
        else:
            server.stop()
        run = snapshot(server, tmp_path, "-o", tmp_path / "cluster.json")
    assert (run.returncode, "pods can't be listed at" in run.stderr) == (1, True), run.stderr
    assert not (tmp_path / "cluster.json").exists()


def test_a_scope_follows_the_pods_of_its_node(tmp_path: Path) -> None:
    with make_server() as server:
        server.apply(make_pod("a", "10.244.0.1"))
        server.apply(make_pod("elsewhere", "10.244.1.1", node="node-b"))
        output = tmp_path / "scope.json"
        kubeconfig = write_kubeconfig(tmp_path, server)
        options = ["-n", "shop", "-l", "app=web", "--node", "node-a", "--output", output, "--kubeconfig", kubeconfig]

        def scope() -> dict[str, Any]:
            return json.loads(output.read_text()) if output.exists() else {}

        with started("scope", *options) as process:
            until(lambda: scope().get("addresses") == ["10.244.0.1"])
            host = make_pod("host", "192.168.0.1")
            host["spec"]["hostNetwork"] = True
            server.apply(host)
            server.apply(make_pod("b", "10.244.0.2"))
            until(lambda: scope()["addresses"] == ["10.244.0.1", "10.244.0.2"])
            until(lambda: [pod["name"] for pod in scope()["pods"]] == ["a", "b", "host"])
            written = scope()
            assert written["pods"][0] == {"namespace": "shop", "name": "a", "uid": "uid-a", "ips": ["10.244.0.1"]}
            assert written["pods"][2]["ips"] == []
            until(lambda: scope()["own_connections"] == connections_of(process.pid) != [])
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
            assert process.stderr is not None
            assert b"shares its node's addresses" in process.stderr.read()
        with started("scope", *options):
            until(lambda: scope()["generation"] > written["generation"])
        assert scope()["addresses"] == written["addresses"]
        assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []
    assert all(request.query["fieldSelector"] == "spec.nodeName=node-a" for request in server.requests)


def connections_of(pid: int) -> list[str]:
    """A process's ends of its TCP connections, as ss tells them."""
    lines = subprocess.run(["ss", "-Htnp"], capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted(line.split()[3] for line in lines if f"pid={pid}," in line)


def test_a_scope_without_its_folder_says_so(tmp_path: Path) -> None:
    with make_server() as server:
        kubeconfig = write_kubeconfig(tmp_path, server)
        command = [PODTAP, "scope", "--node", "a", "--output", tmp_path / "absent" / "f", "--kubeconfig", kubeconfig]
        run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "KUBECONFIG": ""})
    assert (run.returncode, "can't be written" in run.stderr) == (1, True)
