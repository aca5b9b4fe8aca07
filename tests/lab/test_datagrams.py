"""Datagrams without an IP id through services: each connection knows its backend, and none a wrong one."""

from __future__ import annotations

import contextlib
import json
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dns.message import make_query

from analysis.lake_reader import Lake, open_lake
from analysis.pipeline import analyze
from tests.lab import dns
from tests.lab.captures import Capture
from tests.lab.conntrack import tracked_connections
from tests.lab.greeters import greeters, without_ids
from tests.lab.lab import Lab, RunningPod
from tests.lab.tools import needs
from tests.lab.topology import COREDNS, Pod, Service, Topology

pytestmark = [pytest.mark.usefixtures("root"), needs("iptables-restore", "nft", "conntrack", "unbound")]

PODS = (
    *(Pod(f"client-{number}", "node-a") for number in (1, 2)),
    Pod("web-1", "node-a", {"app": "web", "only": "a"}),
    Pod("web-2", "node-b", {"app": "web", "only": "b"}),
)
SERVICES = tuple(
    Service(name, selector, 80, 8080, protocols=("UDP",))
    for name, selector in (("web", {"app": "web"}), ("first", {"only": "a"}), ("second", {"only": "b"}))
)
SETUPS = [("flannel", "iptables"), ("flannel", "nftables"), ("calico", "ipvs-model"), ("calico-vxlan", "iptables")]
ROUNDS = 30


@contextlib.contextmanager
def captured(lab: Lab, folder: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name, node in lab.nodes.items():
            stack.enter_context(Capture(node.namespace, folder / f"{name}.pcap"))
        yield


def analysed(lab: Lab, folder: Path) -> Lake:
    analyze([str(folder / f"{name}.pcap") for name in lab.nodes], folder / "lake")
    lake = open_lake(folder / "lake")
    numbered: Any = lake.sql("SELECT DISTINCT src_ip FROM packets WHERE protocol = 'UDP' AND ip_id > 0")
    assert not set(numbered["src_ip"]) & {lab.pod(pod.name).ip for pod in PODS}
    return lake


@contextlib.contextmanager
def asking(pod: RunningPod, ip6: bool = False) -> Iterator[socket.socket]:
    """A socket of the pod whose datagrams have no IP id."""
    own = pod.ip6 if ip6 else pod.ip
    with pod.namespace.entered():
        made = socket.socket(socket.AF_INET6 if ip6 else socket.AF_INET, socket.SOCK_DGRAM)
    with made:
        made.settimeout(5)
        if not ip6:
            without_ids(made)
        made.bind((own, 0))
        yield made


def connections(lake: Lake) -> list[dict[str, Any]]:
    rows: Any = lake.sql(
        "SELECT orig_ip, orig_port, resp_ip, resp_port, backend_ip, snat_ip, snat_port FROM connections"
        " WHERE protocol = 'UDP'"
    ).to_dict("records")
    return list(rows)


@pytest.mark.parametrize(("cni", "proxy"), SETUPS)
def test_every_connection_knows_its_backend(cni: str, proxy: str, tmp_path: Path) -> None:
    """Of both families, by services of pods and by the cluster's name server; as servers and conntrack say."""
    topology = Topology(pods=PODS, services=SERVICES, cni=cni, proxy=proxy, ipv6=True)
    with Lab(topology) as lab, greeters(lab, "web-1", "web-2", numbered=False):
        client, web, names = lab.pod("client-1"), lab.service("web"), lab.service("kube-dns", "kube-system")
        expected: set[tuple[Any, ...]] = set()  # from a port that was used before, it is the same connection
        with captured(lab, tmp_path):
            for number in range(2 * ROUNDS):
                ip6 = number % 2 == 1
                with asking(client, ip6) as own:
                    own.sendto(b"?", (web.ip6 if ip6 else web.ip, 80))
                    answer, sender = own.recvfrom(1024)
                    backend = lab.pod(json.loads(answer)[0])
                    expected.add((*own.getsockname()[:2], *sender[:2], backend.ip6 if ip6 else backend.ip))
                with asking(client, ip6) as own:
                    query = make_query("web.default.svc.cluster.local", "A", id=7)
                    own.sendto(query.to_wire(), (names.ip6 if ip6 else names.ip, 53))
                    backend, sender = lab.pod(COREDNS), own.recvfrom(1024)[1]
                    expected.add((*own.getsockname()[:2], *sender[:2], backend.ip6 if ip6 else backend.ip))
        tracked = [each for node in lab.nodes.values() for each in tracked_connections(node.namespace)]
        lake = analysed(lab, tmp_path)
        own_ips = {client.ip, client.ip6}
    found = Counter(tuple(row.values())[:5] for row in connections(lake) if row["orig_ip"] in own_ips)
    assert found == Counter(expected)
    services = {key[2] for key in expected}
    told = {(*each.original, each.reply[0]) for each in tracked if each.original[2] in services}
    print(f"{cni} {proxy}: {len(expected)} connections, {len(told)} of them in conntrack -L")
    assert told == expected


def test_one_socket_that_asks_two_servers_at_once_has_two_connections(tmp_path: Path) -> None:
    """With the same words, and ids; one server's node and the other's may answer in any order."""
    with Lab(Topology(pods=PODS, services=SERVICES, ipv6=True)) as lab, greeters(lab, "web-1", "web-2", numbered=False):
        client = lab.pod("client-1")
        outside, names = lab.outside.ip6, lab.service("kube-dns", "kube-system").ip6
        first, second = lab.service("first").ip6, lab.service("second").ip6
        backends = {
            first: {lab.pod("web-1").ip6},
            second: {lab.pod("web-2").ip6},
            names: {lab.pod(COREDNS).ip6},
            outside: {outside},
        }
        expected: set[tuple[Any, ...]] = set()
        with captured(lab, tmp_path):
            for number in range(ROUNDS):
                query = make_query("example.com", "A", id=number).to_wire()
                for servers, port, words in (((first, second), 80, b"?"), ((names, outside), 53, query)):
                    with asking(client, ip6=True) as own:
                        for server in servers:
                            own.sendto(words, (server, port))
                        for _ in servers:
                            own.recv(1024)
                        expected.update((own.getsockname()[1], server) for server in servers)
        lake = analysed(lab, tmp_path)
    rows = [row for row in connections(lake) if row["orig_ip"] == client.ip6]
    of_servers = [row for row in rows if row["resp_ip"] in backends]
    assert Counter((row["orig_port"], row["resp_ip"]) for row in of_servers) == Counter(expected)
    known = [row for row in of_servers if row["backend_ip"] in backends[row["resp_ip"]]]
    print(f"{len(known)} of {len(of_servers)} know their backend; {len(rows) - len(of_servers)} alone behind the NAT")
    assert {row["backend_ip"] for row in of_servers if row not in known} <= {first, second, names}


def test_two_clients_behind_one_address_are_not_taken_for_each_other(tmp_path: Path) -> None:
    """They ask the same by the same id at the same moment, and get the same answer."""
    with Lab(Topology(pods=PODS, ipv6=True)) as lab:
        clients = [lab.pod(f"client-{number}") for number in (1, 2)]
        upstream = dns.upstream(lab)
        with captured(lab, tmp_path):
            for number in range(ROUNDS):
                upstream.delay_seconds = 0.005 * (number % 2)
                query = make_query("example.com", "A", id=number).to_wire()
                with asking(clients[0], ip6=True) as one, asking(clients[1], ip6=True) as other:
                    for own in (one, other):
                        own.sendto(query, (lab.outside.ip6, 53))
                    for own in (one, other):
                        own.recv(1024)
        tracked = tracked_connections(lab.node("node-a").namespace)
        lake = analysed(lab, tmp_path)
    truth = {each.original[:2]: each.reply[2:] for each in tracked if each.original[2] == lab.outside.ip6}
    own_ips = {client.ip6 for client in clients}
    rows = [row for row in connections(lake) if row["orig_ip"] in own_ips]
    assert len(rows) == len(truth)
    known = [row for row in rows if isinstance(row["snat_ip"], str)]
    print(f"{len(known)} of {len(rows)} know their address behind the NAT")
    for row in known:
        assert (row["snat_ip"], row["snat_port"]) == truth[row["orig_ip"], row["orig_port"]]
