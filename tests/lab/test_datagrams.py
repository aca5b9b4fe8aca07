"""Datagrams through services: each connection knows its backend, and none a wrong one."""

from __future__ import annotations

import contextlib
import json
import socket
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from dns.message import make_query

from analysis.lake_reader import Lake, open_lake
from analysis.pipeline import analyze
from tests.lab import dns
from tests.lab.captures import Capture
from tests.lab.conntrack import Tracked, tracked_connections
from tests.lab.greeters import greeters, without_ids
from tests.lab.lab import Host, Lab, RunningPod
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
    return open_lake(folder / "lake")


def without_numbers(lab: Lab, lake: Lake) -> Lake:
    numbered: Any = lake.sql("SELECT DISTINCT src_ip FROM packets WHERE protocol = 'UDP' AND ip_id > 0")
    assert not set(numbered["src_ip"]) & {lab.pod(pod.name).ip for pod in PODS}
    return lake


@contextlib.contextmanager
def asking(
    host: RunningPod | Host, ip6: bool = False, *, port: int = 0, numbered: bool = False
) -> Iterator[socket.socket]:
    """A socket whose datagrams have no IP id, or do if they are IPv4 and `numbered`."""
    own = host.ip6 if ip6 else host.ip
    with host.namespace.entered():
        made = socket.socket(socket.AF_INET6 if ip6 else socket.AF_INET, socket.SOCK_DGRAM)
    with made:
        made.settimeout(5)
        if not ip6 and not numbered:
            without_ids(made)
        made.bind((own, port))
        yield made


def connections(lake: Lake) -> list[dict[str, Any]]:
    rows: Any = lake.sql(
        "SELECT orig_ip, orig_port, resp_ip, resp_port, backend_ip, backend_port, "
        "coalesce(snat_ip, orig_ip) AS seen_ip,"
        " coalesce(snat_port, orig_port) AS seen_port, snat_ip, snat_port"
        " FROM connections WHERE protocol = 'UDP'"
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
        lake = without_numbers(lab, analysed(lab, tmp_path))
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
        lake = without_numbers(lab, analysed(lab, tmp_path))
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
        lake = without_numbers(lab, analysed(lab, tmp_path))
    truth = {each.original[:2]: each.reply[2:] for each in tracked if each.original[2] == lab.outside.ip6}
    own_ips = {client.ip6 for client in clients}
    rows = [row for row in connections(lake) if row["orig_ip"] in own_ips]
    assert len(rows) == len(truth)
    known = [row for row in rows if isinstance(row["snat_ip"], str)]
    print(f"{len(known)} of {len(rows)} know their address behind the NAT")
    for row in known:
        assert (row["snat_ip"], row["snat_port"]) == truth[row["orig_ip"], row["orig_port"]]


# --- Both ends turned ------------------------------------------------------------------------------------------------

TURNED = (
    Service("open", {"app": "web"}, 80, 8080, kind="NodePort", protocols=("UDP",)),
    Service("names", {"k8s-app": "kube-dns"}, 53, 53, kind="NodePort", namespace="kube-system", protocols=("UDP",)),
    Service("self", {"only": "b"}, 80, 8080, protocols=("UDP",)),
)


def as_tracked(tracked: Sequence[Tracked], ports: Container[int | None]) -> Counter[tuple[Any, ...]]:
    """Rows as of connections(), of what was sent to these ports."""
    return Counter(
        (*each.original, *each.reply) for each in tracked if each.protocol == "udp" and each.original[3] in ports
    )


def assert_known(found: Counter[tuple[Any, ...]], told: Counter[tuple[Any, ...]]) -> None:
    """Nothing is wrong, and all is known, but for packets that a busy machine held up in a node for too long."""
    to_backend = {key[:6] for key in told}
    turned = [key for key in found if key[2:4] != key[4:6] or key[:2] != key[6:]]
    assert [key for key in turned if key not in told and (key[:2] != key[6:] or key[:6] not in to_backend)] == []
    assert (found & told).total() >= 0.97 * told.total()


@pytest.mark.parametrize("numbered", [True, False], ids=["ids", "no-ids"])
@pytest.mark.parametrize(("cni", "proxy"), [*SETUPS, ("flannel-host-gw", "nftables"), ("cilium", "iptables")])
def test_what_was_turned_at_both_ends_is_one_connection(cni: str, proxy: str, numbered: bool, tmp_path: Path) -> None:
    """Node ports from outside, whose backend may be on the other node, and a pod that reaches itself."""
    with (
        Lab(Topology(pods=PODS, services=TURNED, cni=cni, proxy=proxy, ipv6=True)) as lab,
        greeters(lab, "web-1", "web-2", numbered=numbered),
    ):
        outside, itself, own = lab.outside, lab.pod("web-2"), lab.service("self")
        query = make_query("web.default.svc.cluster.local", "A", id=7).to_wire()
        with captured(lab, tmp_path):
            for number in range(2 * ROUNDS):
                ip6 = number % 2 == 1
                node = lab.node(("node-a", "node-b")[number // 2 % 2])
                ways = [
                    (outside, node.ip6 if ip6 else node.ip, lab.service("open").node_port, b"?"),
                    (outside, node.ip6 if ip6 else node.ip, lab.service("names", "kube-system").node_port, query),
                ]
                if cni != "cilium":  # there, a pod's word to itself never leaves it
                    ways.append((itself, own.ip6 if ip6 else own.ip, 80, b"?"))
                for host, ip, port, words in ways:
                    with asking(host, ip6, numbered=numbered) as made:
                        made.sendto(words, (ip, port))
                        made.recv(1024)
        tracked = [each for node in lab.nodes.values() for each in tracked_connections(node.namespace)]
        lake = analysed(lab, tmp_path)
    ports = {service.node_port for service in lab.services.values()} | {80}
    told = as_tracked(tracked, ports)
    found = Counter(tuple(row.values())[:8] for row in connections(lake))
    print(f"{cni} {proxy}: {found.total()} connections, {told.total()} in conntrack -L")
    assert_known(found, told)
    assert len({key[4] for key in told}) >= 4 + 2 * (cni != "cilium")


@pytest.mark.parametrize("cni", ["flannel", "calico"])
def test_many_at_once_by_one_node_port_have_no_wrong_backend(cni: str, tmp_path: Path) -> None:
    """Datagrams without IDs, all of one length; in the same moment, answers of other clients in between."""
    with (
        Lab(Topology(pods=PODS, services=TURNED, cni=cni, dns=False)) as lab,
        greeters(lab, "web-1", "web-2", numbered=False),
        contextlib.ExitStack() as stack,
    ):
        port, ip = lab.service("open").node_port, lab.node("node-a").ip
        with captured(lab, tmp_path):
            for _ in range(ROUNDS):
                asked = [stack.enter_context(asking(lab.outside)) for _ in range(4)]
                for made in asked:
                    made.sendto(b"?", (ip, port))
                for made in asked:
                    made.recv(1024)
        told = as_tracked(tracked_connections(lab.node("node-a").namespace), {port})
        lake = analysed(lab, tmp_path)
    found = Counter(tuple(row.values())[:8] for row in connections(lake) if row["orig_ip"] == lab.outside.ip)
    known = Counter({key[:6]: count for key, count in found.items() if key[2] != key[4]})
    print(f"{cni}: {known.total()} of {found.total()} know their backend")
    assert known <= Counter({key[:6]: count for key, count in told.items()})
    assert {key for key in found if key[6] != lab.outside.ip} <= set(told)
    assert {key[:4] for key in found} == {key[:4] for key in told}


def test_what_a_relay_on_the_node_asks_is_another_connection(tmp_path: Path) -> None:
    """It asks the same words, without IP ids, of a pod: only the TTL tells it from a node port."""
    with (
        Lab(Topology(pods=PODS, services=TURNED, cni="calico", ipv6=True, dns=False)) as lab,
        greeters(lab, "web-1", "web-2", numbered=False),
    ):
        node, client, web = lab.node("node-a"), lab.pod("client-1"), lab.pod("web-2")
        at_node = Host(node.namespace, node.ip, node.ip6)
        with captured(lab, tmp_path):
            for number in range(ROUNDS):
                ip6, host = number % 2 == 1, (lab.outside, client)[number // 2 % 2]
                with asking(at_node, ip6) as front, asking(at_node, ip6) as back, asking(host, ip6) as own:
                    own.sendto(b"?", front.getsockname()[:2])
                    words, sender = front.recvfrom(1024)
                    back.sendto(words, (web.ip6 if ip6 else web.ip, 8080))
                    front.sendto(back.recv(1024), sender)
                    own.recv(1024)
        rows = connections(analysed(lab, tmp_path))
    assert {row["resp_ip"] for row in rows} == {node.ip, node.ip6, web.ip, web.ip6}
    assert [row for row in rows if row["resp_ip"] != row["backend_ip"]] == []


# --- Ports that are equal, and no answer -----------------------------------------------------------------------------

SAME = Service("same", {"app": "web"}, 8080, 8080, protocols=("UDP",))
SILENT = Service("silent", {"app": "web"}, 99, 9999, protocols=("UDP",))


@pytest.mark.parametrize("numbered", [True, False], ids=["ids", "no-ids"])
@pytest.mark.parametrize(("cni", "proxy"), [("flannel", "iptables"), ("flannel", "nftables"), ("calico", "ipvs-model")])
def test_neither_equal_ports_nor_silence_hide_the_backend(cni: str, proxy: str, numbered: bool, tmp_path: Path) -> None:
    with (
        Lab(Topology(pods=PODS, services=(SAME, SILENT), cni=cni, proxy=proxy, ipv6=True, dns=False)) as lab,
        greeters(lab, "web-1", "web-2", numbered=numbered),
    ):
        client, same, silent = lab.pod("client-1"), lab.service("same"), lab.service("silent")
        with captured(lab, tmp_path):
            for number in range(ROUNDS):
                ip6 = number % 2 == 1
                if number < 2:  # from one port it is one connection
                    with asking(client, ip6, port=8080, numbered=numbered) as made:
                        made.sendto(b"?", (same.ip6 if ip6 else same.ip, 8080))
                        made.recv(1024)
                with asking(client, ip6, numbered=numbered) as made:
                    made.sendto(b"?", (silent.ip6 if ip6 else silent.ip, 99))
        tracked = [each for node in lab.nodes.values() for each in tracked_connections(node.namespace)]
        lake = analysed(lab, tmp_path)
        told = as_tracked([each for each in tracked if each.original[2] in services_ips(lab)], {99, 8080})
    assert_known(Counter(tuple(row.values())[:8] for row in connections(lake)), told)
    paths: Any = lake.sql("SELECT path, return_path FROM connections WHERE orig_port = 8080 AND protocol = 'UDP'")
    for path, back in paths.itertuples(index=False):
        assert len(path) >= 2
        assert path[0] == back[-1]
    assert len(paths) >= 2


def services_ips(lab: Lab) -> set[str | None]:
    return {ip for service in lab.services.values() for ip in (service.ip, service.ip6)}
