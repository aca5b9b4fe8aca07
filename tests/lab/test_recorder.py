"""The recorder as a whole: agents, journal, an incident, freeze, collect, and the analysis of the bundle.

Two nodes are recorded while a pod is killed and another one gets its address at once. Who spoke is known from the
ports of their connections.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from analysis.lake_reader import Lake, open_lake
from analysis.pipeline import analyze
from analysis.reports.completeness import completeness
from analysis.reports.window import Window
from tests.collecting import container, kubeconfig
from tests.lab.api_server import ApiServer
from tests.lab.lab import Lab
from tests.lab.test_collect_agents import PODTAP, call, podtap_pod, wait_for
from tests.lab.topology import Node, Pod, Port, Topology
from tests.lab.workloads import HttpServer, download

pytestmark = pytest.mark.usefixtures("root")
NODES = ("node-a", "node-b")
WEB = Pod("web", "node-a", {"app": "web"}, (Port(8080),), namespace="shop", deployment="web")
CART = Pod("cart", "node-b", {"app": "cart"}, namespace="shop", deployment="cart")
REPORT = Pod("report", "node-b", {"app": "report"}, namespace="shop", deployment="report")
TALKS = 30
A_KUBELET_TAKES = 0.3


def talk(lab: Lab, pod: Pod) -> set[int]:
    """Connections to web, one after the other; their ports."""
    own = lab.pod(pod.name).namespace
    done = [download(own, lab.pod(WEB.name).ip, 2000) for _ in range(TALKS)]
    assert [each.error for each in done] == [""] * TALKS
    return {each.local[1] for each in done}


def wait_until_recorded(server: ApiServer, since: float) -> None:
    """The journal knows all of what was until then, by the server's clock; the agents have written what they read."""
    server.wait_until(lambda: server.is_settled(since), 30)
    time.sleep(2)


class Incident:
    """What happened, and the folder of the bundle."""

    def __init__(self, folder: Path) -> None:
        self.bundle = folder / "bundle"
        self.ports: dict[str, set[int]] = {}
        self.ip = ""
        self.since = self.until = 0.0
        self.kinds: dict[str, str] = {}
        """By node/interface, what ip says of it."""
        pods = [WEB, CART, *(podtap_pod("agent", node) for node in NODES), podtap_pod("journal", "node-a")]
        with Lab(Topology([Node(each) for each in NODES], pods)) as lab, ApiServer() as server:
            server.follow(lab)
            config = kubeconfig(folder, server)
            running = self._start(lab, server, folder, config)
            try:
                with HttpServer(lab.pod(WEB.name).namespace):
                    self._happen(lab, server)
                self.until = time.time()
                frozen = call("freeze", "--since", self.since, "--until", self.until, "--kubeconfig", config)
                assert frozen.exit_code == 0, frozen.output
                done = call("collect", "--since", self.since, "-o", self.bundle, "-y", "--kubeconfig", config)
                assert done.exit_code in (0, 3), done.output
            finally:
                for process in running:
                    process.send_signal(signal.SIGTERM)
                assert [process.wait(20) for process in running] == [0, 0, 0]

    def _start(self, lab: Lab, server: ApiServer, folder: Path, config: Path) -> list[subprocess.Popen[str]]:
        running = []
        for node in NODES:
            root = folder / f"disk-of-{node}"
            box = container(root)
            box.namespace = lab.node(node).namespace
            server.containers["podtap", f"agent-{node[-1]}"] = box
            command = [PODTAP, "agent", "--root", str(root), "--node", node, "-G", "3", "--metrics", ""]
            running.append(lab.node(node).namespace.start(*command))
        disk = folder / "disk-of-journal"
        server.containers["podtap", "journal-a"] = container(disk)
        watching = [PODTAP, "journal", "--root", str(disk), "--kubeconfig", str(config), "--metrics", ""]
        running.append(subprocess.Popen(watching, stderr=subprocess.DEVNULL, text=True))
        server.wait_until(lambda: server.open_watches > 8, 60)
        wait_for(lambda: all(list(folder.glob(f"disk-of-{node}/*/*/*/*.part")) for node in NODES))
        wait_for(lambda: bool(list(disk.glob("_journal/*/*/*"))))
        return running

    def _happen(self, lab: Lab, server: ApiServer) -> None:
        self.since = time.time()
        time.sleep(1.5)  # Kubernetes' times are whole seconds: what began and ended within one tells little
        self.ip = lab.pod(CART.name).ip
        self.ports[CART.name] = talk(lab, CART)
        time.sleep(A_KUBELET_TAKES)  # until the network of a pod whose containers it stopped is gone
        lab.kill_pod(CART.name)
        lab.start_pod(REPORT, self.ip)
        time.sleep(A_KUBELET_TAKES)  # until the containers of a pod that has its network run
        self.ports[REPORT.name] = talk(lab, REPORT)
        for node in NODES:
            for link in json.loads(lab.node(node).namespace.run("ip", "-j", "-d", "link")):
                self.kinds[f"{node}/{link['ifname']}"] = link.get("linkinfo", {}).get("info_kind", "")
        wait_until_recorded(server, server.clock())


@pytest.fixture(scope="module")
def incident(tmp_path_factory: pytest.TempPathFactory) -> Incident:
    return Incident(tmp_path_factory.mktemp("incident"))


@pytest.fixture(scope="module")
def lake(incident: Incident, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    root = tmp_path_factory.mktemp("lake")
    summary = analyze([str(incident.bundle)], root, jobs=1)
    assert summary.problems == []
    return open_lake(root)


def flows_of(lake: Lake, incident: Incident) -> list[dict[str, Any]]:
    """All flows of both owners of the address, at all observation points."""
    query = f"SELECT * FROM flows WHERE orig_ip = '{incident.ip}' AND protocol = 'TCP' ORDER BY first_seen"
    return lake.sql(query).to_dict("records")


def test_every_pod_is_named_rightly_also_the_dead_one_whose_address_was_used_again(
    incident: Incident, lake: Lake
) -> None:
    flows = flows_of(lake, incident)
    truth = [next(name for name, ports in incident.ports.items() if flow["orig_port"] in ports) for flow in flows]
    assert {name: truth.count(name) >= 2 * TALKS for name in incident.ports} == dict.fromkeys(incident.ports, True)
    named = [flow["orig_pod"] if flow["orig_identity"] == "pod" else None for flow in flows]
    wrong = [(one, other) for one, other in zip(named, truth, strict=True) if one not in (other, None)]
    assert wrong == []
    told = [flow["orig_identity"] for flow in flows]
    assert sum(one == other for one, other in zip(named, truth, strict=True)) >= 0.99 * len(flows), told
    assert {(flow["resp_pod"], flow["resp_workload"], flow["cluster"]) for flow in flows} == {("web", "web", "cluster")}


def test_interfaces_are_named_at_both_nodes(incident: Incident, lake: Lake) -> None:
    seen = {(flow["node"], flow["interface"]) for flow in flows_of(lake, incident)}
    assert {node for node, _ in seen} == set(NODES)
    assert not any(name is None or name.startswith("if") for _, name in seen)


def test_paths_lead_from_pod_to_pod_and_say_what_each_interface_is(incident: Incident, lake: Lake) -> None:
    """The interface of the pod that was killed is gone by the time ip was asked."""
    connections = lake.arrow(
        f"SELECT orig_port, path, path_kinds FROM connections WHERE orig_ip = '{incident.ip}' AND protocol = 'TCP'"
    ).to_pylist()
    assert len(connections) == 2 * TALKS
    for each in connections:
        points = ["/".join(point.split("/")[:2]) for point in each["path"]]
        expected = ["uplink" if point.endswith("/eth0") else incident.kinds.get(point, "veth") for point in points]
        assert each["path_kinds"] == expected
        assert {expected[0], expected[-1]} == {"veth"} and expected.count("uplink") == 2, each
    ends = lake.arrow(
        f"""SELECT orig_port, from_pod, from_interface FROM hops JOIN connections USING (connection_uid)
        WHERE orig_ip = '{incident.ip}' AND protocol = 'TCP' AND sender = 'orig' AND position = 0"""
    ).to_pylist()
    truth = {port: f"shop/{name}" for name, ports in incident.ports.items() for port in ports}
    named = [(each["from_pod"], truth[each["orig_port"]]) for each in ends]
    assert [pair for pair in named if pair[0] not in (None, pair[1])] == []
    assert sum(one == other for one, other in named) >= 0.99 * len(ends)


def test_the_window_is_complete_on_both_nodes(incident: Incident, lake: Lake) -> None:
    window = Window(int((incident.since + 0.5) * 1e9), int((incident.until - 1.5) * 1e9))
    notes = completeness(lake, window).notes()
    assert "complete on 2 of 2 nodes" in notes[0], notes


def test_counters_of_both_nodes_are_in_the_lake(lake: Lake) -> None:
    nodes = lake.sql("SELECT DISTINCT node FROM node_counters WHERE name = 'tcp_out_segs'")
    assert set(nodes["node"]) == set(NODES)
