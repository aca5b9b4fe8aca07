"""`podtap doctor` beside a real agent, in a network namespace of their own."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from capture import metrics
from tests.lab import bpf
from tests.lab.namespaces import Namespace, new_prefix

PODTAP = (sys.executable, "-m", "podtap")
SECONDS = 10.0
NOT_ALWAYS = {"podtap_write_errors_total", "podtap_filter_swaps_total", "podtap_ring_overwritten_in_seconds"}
"""Metrics of what did not happen yet."""


@pytest.fixture
def node(root: None) -> Iterator[Namespace]:
    made = Namespace(new_prefix() + "doctor")
    made.ip("link add cali0123456789a type veth peer name peer", "link set cali0123456789a up", "link set peer up")
    made.ip("addr add 10.0.0.1/24 dev cali0123456789a", "route add 10.9.9.9/32 dev cali0123456789a")
    yield made
    made.close()


@pytest.fixture
def agent(node: Namespace, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    options = ["--root", str(tmp_path), "--cluster", "prod", "--node", "node-a", "-G", "1"]
    with node.start(*PODTAP, "agent", *options) as running:
        yield running
        running.send_signal(signal.SIGCONT)
        running.terminate()


def ask(node: Namespace, *options: str, before: tuple[str, ...] = ()) -> tuple[int, dict[str, Any]]:
    """Exit code, and what it says of the only agent."""
    command = ["ip", "netns", "exec", node.name, *before, *PODTAP, "doctor", "-o", "json", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    (said,) = json.loads(done.stdout)
    return done.returncode, said


def levels(said: dict[str, Any]) -> dict[str, str]:
    return {each["subject"]: each["level"] for each in said["findings"]}


def until_sealed(node: Namespace, root: Path) -> dict[str, Any]:
    """Some packets a while, until a segment with them is complete; what is said then."""
    end = time.monotonic() + SECONDS
    with node.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        while not list(root.glob("prod/node-a/*/*.json")):
            assert time.monotonic() < end, "no segment was sealed"
            sender.sendto(b"x" * 100, ("127.0.0.1", 9))
            time.sleep(0.05)
    code, said = ask(node)
    assert code == 0
    return said


def test_a_node_that_is_recorded_and_then_not(node: Namespace, agent: subprocess.Popen[str], tmp_path: Path) -> None:
    said = until_sealed(node, tmp_path)
    found = levels(said)
    assert {subject: found[subject] for subject in ("recording", "readiness", "reach", "drops", "content", "pods")} == (
        dict.fromkeys(("recording", "readiness", "reach", "drops", "content", "pods"), "ok")
    )
    assert said["folder"] == str(tmp_path / "prod/node-a")
    assert said["agent"]["metrics"] == "127.0.0.1:9798"
    assert abs(said["ring"]["oldest_ns"] - time.time_ns()) < 60 * 10**9
    assert said["metrics"]["podtap_accepted_packets_total"][""] > 0
    told = {metric.name for metric in metrics.ALL} - set(said["metrics"])
    assert {name for name in told if "journal" not in name} <= NOT_ALWAYS

    # No capability is needed to look. But whose namespace another agent is in, only its equals may know.
    drop = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")
    code, again = ask(node, "--root", str(tmp_path), before=drop)
    assert (code, again["agent"]["pid"]) == (0, said["agent"]["pid"])

    os.kill(said["agent"]["pid"], signal.SIGTERM)
    agent.wait(timeout=SECONDS)
    code, gone = ask(node, "--root", str(tmp_path))
    assert code == 1
    assert levels(gone)["recording"] == "bad"
    # The only recording that is there is the one that is meant.
    assert (gone["cluster"], gone["node"], gone["agent"]) == ("prod", "node-a", None)
    assert gone["ring"]["segments"] >= 1


def test_an_agent_that_stands_still(node: Namespace, agent: subprocess.Popen[str], tmp_path: Path) -> None:
    pid = until_sealed(node, tmp_path)["agent"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        code, said = ask(node)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (code, levels(said)["recording"], levels(said)["readiness"]) == (1, "ok", "bad")


def test_a_program_before_all_sockets_is_seen(node: Namespace) -> None:
    index = json.loads(node.run("ip", "-j", "link", "show", "peer"))[0]["ifindex"]
    assert not [each for each in ask(node)[1]["findings"] if "XDP" in each["text"]]
    program = load_xdp()
    with node.entered():
        attach_xdp(index, program)
    os.close(program)
    assert "xdp" in node.run("ip", "-d", "link", "show", "peer")
    found = [each for each in ask(node)[1]["findings"] if "XDP" in each["text"]]
    assert [(each["level"], each["text"].partition(":")[0]) for each in found] == [("warn", "peer")]


def load_xdp() -> int:
    """A program that lets everything pass: r0 = XDP_PASS; exit."""
    code = ctypes.create_string_buffer(bytes.fromhex("b7000000020000009500000000000000"))
    name = ctypes.create_string_buffer(b"GPL")
    load = struct.pack("<IIQQIIQ", 6, 2, ctypes.addressof(code), ctypes.addressof(name), 0, 0, 0)
    return bpf._bpf(5, load)


def attach_xdp(index: int, program: int) -> None:
    """RTM_SETLINK with IFLA_XDP { IFLA_XDP_FD, IFLA_XDP_FLAGS: in the kernel, not in a driver }."""
    nested = struct.pack("=HHi", 8, 1, program) + struct.pack("=HHI", 8, 3, 2)
    body = struct.pack("=BxHiII", 0, 0, index, 0, 0) + struct.pack("=HH", 4 + len(nested), 43 | 0x8000) + nested
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.send(struct.pack("=IHHII", 16 + len(body), 19, 0x5, 1, 0) + body)
        assert struct.unpack_from("=i", netlink.recv(4096), 16)[0] == 0
