"""Agents and a journal that run in the lab, frozen and collected through the API server: the packets come home."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner, Result

import podtap
from capture.contract import BUNDLE, Bundle, from_json
from tests.collecting import container, kubeconfig
from tests.lab.api_server import ApiServer
from tests.lab.lab import Lab
from tests.lab.topology import Node, Pod, Topology

PODTAP = str(Path(sys.executable).parent / "podtap")
PINGS = 5


def podtap_pod(component: str, node: str) -> Pod:
    labels = {"app.kubernetes.io/name": "podtap", "app.kubernetes.io/component": component}
    return Pod(f"{component}-{node[-1]}", node, labels=labels, namespace="podtap", host_network=True)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(podtap.main, [str(each) for each in arguments])


def test_what_agents_and_journal_recorded_comes_home_and_is_named(tmp_path: Path) -> None:
    nodes = ("node-a", "node-b")
    pods = [
        Pod("web", "node-a", {"app": "web"}, namespace="shop"),
        Pod("db", "node-b", {"app": "db"}, namespace="shop"),
    ]
    pods += [*(podtap_pod("agent", node) for node in nodes), podtap_pod("journal", "node-a")]
    with Lab(Topology([Node(each) for each in nodes], pods)) as lab, ApiServer() as server:
        server.follow(lab)
        config = kubeconfig(tmp_path, server)
        running = []
        for node in nodes:
            root = tmp_path / f"disk-of-{node}"
            box = container(root)
            box.namespace = lab.node(node).namespace
            server.containers["podtap", f"agent-{node[-1]}"] = box
            command = [PODTAP, "agent", "--root", str(root), "--node", node, "-G", "2", "--metrics", ""]
            running.append(lab.node(node).namespace.start(*command))
        server.containers["podtap", "journal-a"] = container(tmp_path / "disk-of-journal")
        watching = [PODTAP, "journal", "--root", str(tmp_path / "disk-of-journal"), "--kubeconfig", str(config)]
        running.append(subprocess.Popen([*watching, "--metrics", ""], stderr=subprocess.DEVNULL, text=True))
        server.wait_until(lambda: server.open_watches > 0, 30)
        wait_for(lambda: all(list(tmp_path.glob(f"disk-of-{node}/*/*/*/*.part")) for node in nodes))
        since = time.time()
        lab.pod("web").namespace.run("ping", "-c", str(PINGS), "-i", "0.2", lab.pod("db").ip)
        frozen = call("freeze", "--since", since, "--until", "+1s", "--kubeconfig", config)
        assert frozen.exit_code == 0, frozen.output
        bundle = tmp_path / "bundle"
        done = call("collect", "--since", since, "-n", "shop", "-l", "app=web", "-o", bundle, "--kubeconfig", config)
        for process in running:
            process.send_signal(signal.SIGTERM)
        assert [process.wait(20) for process in running] == [0, 0, 0]
    assert done.exit_code in (0, 3), done.output  # the journal may have begun after the window did
    head = from_json(Bundle, (bundle / BUNDLE).read_bytes())
    assert [(each.node, each.complete) for each in head.nodes] == [("node-a", True), ("node-b", True)], done.output
    for node in nodes:
        assert set(sequence_numbers(bundle, node)) == set(range(1, PINGS + 1))
    verified = call("verify", bundle)
    assert verified.exit_code == 0, verified.output
    assert list(bundle.glob("_journal/*/*/*"))


def sequence_numbers(bundle: Path, node: str) -> list[int]:
    fields = ["-Y", "icmp.type == 8", "-T", "fields", "-e", "icmp.seq"]
    found = []
    for path in bundle.glob(f"cluster/{node}/*/*.pcap"):
        lines = subprocess.run(["tshark", "-r", str(path), *fields], capture_output=True, text=True, check=True).stdout
        found += [int(line) for line in lines.split()]
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
