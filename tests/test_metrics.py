"""Metrics and their endpoint: judged by promtool, a plain HTTP client, and clients that misbehave."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from capture import metrics as names
from capture.endpoint import MOST_CONNECTIONS, Endpoint, serve, split_address
from capture.metrics import Metrics

ODD = 'a "quoted" \\ back\nslash'


@pytest.fixture
def metrics() -> Metrics:
    """Every metric has a value, and some odd ones."""
    filled = Metrics()
    for metric in names.ALL:
        if not metric.name.startswith("process_"):
            filled.set(metric, 1.5, *("x" for _ in metric.labels))
    filled.set(names.DROPPED_PACKETS, 12, ODD)
    filled.set(names.RING_OVERWRITTEN_IN, float("inf"))
    filled.set(names.CLOCK_MAX_ERROR, float("nan"))
    filled.set(names.WRITTEN_BYTES, 2**63 + 1)
    return filled


@pytest.fixture
def reasons() -> list[str]:
    return []


@pytest.fixture
def endpoint(metrics: Metrics, reasons: list[str]) -> Iterator[Endpoint]:
    running = serve("127.0.0.1:0", metrics, lambda: reasons)
    yield running
    running.close()


def get(endpoint: Endpoint, path: str, method: str = "GET") -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=5)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), dict(answer.getheaders())
    finally:
        connection.close()


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs the package prometheus")
def test_promtool_finds_nothing_to_say_about_them(endpoint: Endpoint) -> None:
    _, text, headers = get(endpoint, "/metrics")
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    broken = subprocess.run(["promtool", "check", "metrics"], input=text + "x{ 1\n", capture_output=True, text=True)
    assert broken.returncode != 0


def test_values_are_exposed_as_they_were_set(endpoint: Endpoint, metrics: Metrics) -> None:
    _, text, _ = get(endpoint, "/metrics")
    lines = text.splitlines()
    assert 'podtap_dropped_packets_total{reason="a \\"quoted\\" \\\\ back\\nslash"} 12' in lines
    assert "podtap_ring_overwritten_in_seconds +Inf" in lines
    assert "podtap_clock_max_error_seconds NaN" in lines
    assert f"podtap_written_bytes_total {2**63 + 1}" in lines
    metrics.set(names.RING_OVERWRITTEN_IN, None)
    metrics.add(names.SEALED_SEGMENTS, 2)
    _, text, _ = get(endpoint, "/metrics")
    assert "podtap_ring_overwritten_in_seconds" not in text
    assert "podtap_sealed_segments_total 3.5" in text.splitlines()


def test_the_process_is_told_of_as_the_system_does(endpoint: Endpoint) -> None:
    _, text, _ = get(endpoint, "/metrics")
    found = dict(re.findall(r"^(process_\w+) (\S+)$", text, re.MULTILINE))
    status = Path("/proc/self/status").read_text()
    resident = int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]
    assert abs(int(found["process_resident_memory_bytes"]) - resident) < 0.2 * resident
    assert 0 < float(found["process_cpu_seconds_total"]) <= time.process_time() + 0.1
    elapsed = float(subprocess.check_output(["ps", "-o", "etimes=", "-p", str(os.getpid())], text=True))
    assert abs(time.time() - float(found["process_start_time_seconds"]) - elapsed) < 2.5
    assert 3 < int(found["process_open_fds"]) < 500


def test_misuse_of_a_metric_is_an_error_where_it_happens() -> None:
    metrics = Metrics()
    with pytest.raises(ValueError, match="only grows"):
        metrics.add(names.WRITTEN_PACKETS, -1)
    with pytest.raises(ValueError, match="reason"):
        metrics.add(names.DROPPED_PACKETS, 1)
    with pytest.raises(ValueError, match="gauge"):
        metrics.add(names.RING_SEGMENTS, 1)


def test_names_are_unique() -> None:
    assert len({metric.name for metric in names.ALL}) == len(names.ALL)


def test_readiness_says_why_not(endpoint: Endpoint, reasons: list[str]) -> None:
    assert get(endpoint, "/readyz")[:2] == (200, "ok\n")
    assert "podtap_ready 1" in get(endpoint, "/metrics")[1]
    reasons += ["the reader stands still since 12 s", "the disk is full"]
    assert get(endpoint, "/readyz")[:2] == (503, "the reader stands still since 12 s\nthe disk is full\n")
    assert get(endpoint, "/healthz")[:2] == (200, "ok\n")
    assert "podtap_ready 0" in get(endpoint, "/metrics")[1]


def test_what_is_no_page_is_refused(endpoint: Endpoint) -> None:
    assert get(endpoint, "/")[0] == 404
    assert get(endpoint, "/metrics", "POST")[0] == 405
    status, text, headers = get(endpoint, "/healthz", "HEAD")
    assert (status, text, headers["Content-Length"]) == (200, "", "3")
    for request, code in ((b"nonsense\r\n\r\n", b" 400 "), (b"GET / HTTP/1.1\r\nX: " + b"x" * 9000, b" 431 ")):
        with socket.create_connection((endpoint.host, endpoint.port), timeout=5) as client:
            client.sendall(request)
            assert code in client.recv(100)


def test_a_check_that_fails_is_not_health(metrics: Metrics) -> None:
    def fails() -> list[str]:
        raise RuntimeError("boom")

    running = serve("127.0.0.1:0", metrics, fails)
    assert get(running, "/readyz")[0] == 500
    assert get(running, "/healthz")[0] == 200
    running.close()


def test_silent_and_deaf_clients_keep_nobody_waiting(endpoint: Endpoint) -> None:
    silent = [socket.create_connection((endpoint.host, endpoint.port)) for _ in range(3 * MOST_CONNECTIONS)]
    try:
        began = time.monotonic()
        assert get(endpoint, "/healthz")[0] == 200
        assert time.monotonic() - began < 1
    finally:
        for client in silent:
            client.close()


def test_a_request_may_come_in_pieces(endpoint: Endpoint) -> None:
    with socket.create_connection((endpoint.host, endpoint.port), timeout=5) as client:
        for piece in (b"GET /heal", b"thz HTTP/1.1\r\nHost", b": x\r\n\r", b"\n"):
            client.sendall(piece)
            time.sleep(0.02)
        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")


def test_close_frees_the_port_and_the_thread(metrics: Metrics) -> None:
    running = serve("127.0.0.1:0", metrics)
    idle = socket.create_connection((running.host, running.port))
    running.close()
    idle.close()
    assert "endpoint" not in {thread.name for thread in threading.enumerate()}
    again = serve(f"127.0.0.1:{running.port}", metrics)
    with pytest.raises(OSError, match="in use"):
        serve(f"127.0.0.1:{running.port}", metrics)
    again.close()


def test_addresses() -> None:
    assert split_address("127.0.0.1:9798") == ("127.0.0.1", 9798)
    assert split_address("[::1]:1") == ("::1", 1)
    assert split_address(":9798") == ("0.0.0.0", 9798)
    for text in ("127.0.0.1", "9798", "x:", "x:99999", "x:-1"):
        with pytest.raises(ValueError, match="is not an address and port"):
            split_address(text)


def test_every_metric_gets_a_value_somewhere() -> None:
    code = "".join(path.read_text() for path in Path(names.__file__).parent.glob("*.py"))
    words = Counter(re.findall(r"[A-Z_]+", code))
    metrics = [each for each, value in vars(names).items() if isinstance(value, names.Metric)]
    assert [each for each in metrics if words[each] < 2] == []  # it is named where it is defined
