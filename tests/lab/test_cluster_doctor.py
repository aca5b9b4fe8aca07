"""`podtap doctor` over a cluster: real agents in network namespaces, asked through the API server stand-in."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.collecting import add_agent, kubeconfig, node, podtap_pod
from tests.lab.api_server import ApiServer
from tests.lab.namespaces import Namespace, new_prefix

SECONDS = 15.0
NODES = ("node-a", "node-b")


@dataclass
class World:
    """A cluster of two nodes with agents, one without, and a journal's pod."""

    server: ApiServer
    folder: Path
    agents: dict[str, subprocess.Popen[str]]

    def command(self, *arguments: str, program: str = "podtap") -> subprocess.CompletedProcess[str]:
        executable = str(Path(sys.executable).with_name(program))
        environment = os.environ | {"KUBECONFIG": str(self.folder / "kubeconfig")}
        command = [executable, "doctor", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)

    def ask(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        done = self.command("--context", "lab", "-o", "json", *arguments)
        assert done.stderr == ""
        said: dict[str, Any] = json.loads(done.stdout)
        return done.returncode, said


@pytest.fixture(scope="module")
def world(root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("cluster")
    namespaces = {name: Namespace(new_prefix() + name) for name in NODES}
    agents = {}
    try:
        with ApiServer() as server:
            for name, namespace in namespaces.items():
                add_agent(server, name, folder / name)
                server.containers["podtap", f"podtap-agent-{name}"].namespace = namespace
                options = ["--root", str(folder / name), "--cluster", "lab", "--node", name, "-G", "1"]
                agents[name] = namespace.start(sys.executable, "-m", "podtap", "agent", *options)
            server.apply(podtap_pod("podtap-journal-0", "journal", "node-a"))
            kubeconfig(folder, server)
            running = World(server, folder, agents)
            until_sealed(running, namespaces)
            yield running
    finally:
        for agent in agents.values():
            agent.send_signal(signal.SIGCONT)
            agent.terminate()
            agent.wait(timeout=10)
        for namespace in namespaces.values():
            namespace.close()


def until_sealed(world: World, namespaces: dict[str, Namespace]) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        for namespace in namespaces.values():
            with namespace.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"x" * 100, ("127.0.0.1", 9))
        if all(list((world.folder / name).glob("*/*/*/*.json")) for name in NODES):
            return
        time.sleep(0.1)
    raise AssertionError("no segments were sealed")


def test_every_node_tells_of_itself(world: World) -> None:
    code, said = world.ask()
    assert code == 0
    assert [each["node"] for each in said["nodes"]] == list(NODES)
    for each in said["nodes"]:
        assert each["report"]["node"] == each["node"]
        assert each["report"]["agent"]["root"] == str(world.folder / each["node"])
        assert each["report"]["ring"]["segments"] >= 1
        assert each["level"] in ("ok", "warn")
    assert [(each["level"], each["subject"]) for each in said["findings"]] == [("ok", "journal")]


def test_the_table_is_for_people(world: World) -> None:
    done = world.command("--context", "lab")
    title, _, header, *rows = done.stdout.splitlines()
    assert title.startswith("lab at ")
    assert title.endswith(": 2 nodes")
    assert header.split() == ["node", "reaches", "back", "to", "for", "overwritten", "in", "drops", "clock"]
    assert [row.split()[1] for row in rows[:2]] == list(NODES)
    assert rows[-1].startswith("all nodes reach back to ")
    assert max(len(line) for line in rows) <= 100


def test_as_a_plugin_of_kubectl_it_asks_the_cluster(world: World) -> None:
    done = world.command("-o", "json", "--node", "node-b", program="kubectl-podtap")
    assert done.stderr == ""
    assert [each["node"] for each in json.loads(done.stdout)["nodes"]] == ["node-b"]


def test_what_is_wrong_is_told_and_the_rest_as_well(world: World) -> None:
    world.server.apply(node("node-c"))
    broken = podtap_pod("podtap-agent-d", "agent", "node-d")
    broken["status"]["containerStatuses"] = [{"name": "agent", "state": {"waiting": {"reason": "ImagePullBackOff"}}}]
    world.server.apply(broken)
    world.server.apply(node("node-d"))
    world.server.delete(podtap_pod("podtap-journal-0", "journal", "node-a"))
    world.agents["node-b"].send_signal(signal.SIGSTOP)
    try:
        code, said = world.ask()
    finally:
        world.agents["node-b"].send_signal(signal.SIGCONT)
    assert code == 1
    bad = {
        each["node"]: [finding["text"] for finding in each["findings"] if finding["level"] == "bad"]
        for each in said["nodes"]
    }
    assert bad["node-a"] == []
    assert "does not answer" in bad["node-b"][0]
    assert bad["node-c"] == ["Nothing is recorded: no agent runs on it."]
    assert "ImagePullBackOff" in bad["node-d"][0]
    assert [(each["level"], each["subject"]) for each in said["findings"]] == [("bad", "journal")]


def test_a_cluster_that_can_not_be_asked(world: World, tmp_path: Path) -> None:
    done = world.command("--context", "lab", "--podtap-namespace", "elsewhere")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no agent of podtap runs in namespace elsewhere" in done.stderr
    done = world.command("--context", "lab", "--metrics", "127.0.0.1:1")
    assert done.returncode == 2
