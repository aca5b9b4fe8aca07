"""The cluster's name server answers as CoreDNS does; what it saw, and what the one beyond it did, is known exactly."""

from __future__ import annotations

import itertools
import json
import re
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from dns.message import make_query

from tests.lab import dns
from tests.lab.cluster_zone import records
from tests.lab.lab import Lab
from tests.lab.namespaces import Namespace, new_prefix
from tests.lab.tools import needs
from tests.lab.topology import Pod, Service, Topology
from tests.oracle import SHARED

K8S = SHARED / "k8s"
pytestmark = [pytest.mark.usefixtures("root"), needs("unbound", "dig", "iptables-restore")]
PODS = (
    Pod("client", "node-b"),
    Pod("web-1", "node-a", labels={"app": "web"}),
    Pod("web-2", "node-b", labels={"app": "web"}),
)
SERVICES = (
    Service("web", {"app": "web"}, 80, 8080),
    Service("direct", {"app": "web"}, 80, 8080, kind="Headless"),
    Service("cart", {"app": "web"}, 80, 8080, namespace="shop"),
)
WALK = ("default.svc.cluster.local", "svc.cluster.local", "cluster.local")
RESOLVE = """
import json, socket, sys
try:
    found = sorted({each[4][0] for each in socket.getaddrinfo(sys.argv[1], 80)})
except OSError as error:
    found = str(error)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def lab(root: None) -> Iterator[Lab]:
    with Lab(Topology(pods=PODS, services=SERVICES)) as lab:
        yield lab


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest) -> Iterator[None]:
    """The name server outside is as it was, whatever a test did to it."""
    yield
    if "lab" in request.fixturenames:
        upstream = dns.upstream(request.getfixturevalue("lab"))
        upstream.delay_seconds = upstream.loss = 0.0


def resolve(lab: Lab, name: str, pod: str = "client") -> list[str] | str:
    """Through the C library, with the pod's search list."""
    found: list[str] | str = json.loads(lab.pod(pod).namespace.run("python3", "-c", RESOLVE, name))
    return found


def dig(namespace: Namespace, *question: str) -> str:
    return namespace.run("dig", "+tries=1", "+time=3", *question)


def answers(text: str) -> list[str]:
    """The ANSWER section, sorted."""
    lines = text.partition(";; ANSWER SECTION:\n")[2].partition("\n\n")[0].splitlines()
    return sorted(" ".join(line.split()) for line in lines)


def status(text: str) -> str:
    found = re.search(r"status: (\w+)", text)
    assert found
    return found[1]


def test_names_of_services_resolve_by_the_search_list(lab: Lab) -> None:
    assert resolve(lab, "web") == [lab.service("web").ip]
    assert resolve(lab, "cart.shop") == [lab.service("cart").ip]
    assert resolve(lab, "direct") == sorted([lab.pod("web-1").ip, lab.pod("web-2").ip])
    assert resolve(lab, "kubernetes.default") == ["10.96.0.1"]
    assert "not known" in resolve(lab, "cart")


def test_a_name_from_outside_walks_the_search_list_first(lab: Lab) -> None:
    before = len(dns.queries(lab))
    assert "203.0.113.81" in resolve(lab, "api.example.org")
    own = [query for query in dns.queries(lab)[before:] if query.client_ip == lab.pod("client").ip]
    asked = [(query.name, query.rcode) for query in own if query.qtype == "A"]
    walked = [(f"api.example.org.{domain}", "NXDOMAIN") for domain in WALK]
    assert asked == [*walked, ("api.example.org", "NOERROR")]
    assert [query.name for query in own if query.qtype == "AAAA"] == [name for name, _ in asked]
    assert all(query.answered_ns and query.answered_ns >= query.time_ns for query in own)


def test_a_name_without_such_addresses_is_no_error(lab: Lab) -> None:
    text = dig(lab.pod("client").namespace, "web.default.svc.cluster.local", "AAAA")
    assert (status(text), answers(text)) == ("NOERROR", [])
    assert re.search(r"AUTHORITY SECTION:\ncluster\.local\.\s+30\s+IN\s+SOA\s", text)
    assert status(dig(lab.pod("client").namespace, "nope.default.svc.cluster.local")) == "NXDOMAIN"


def test_upstream_delay_is_seen_at_every_leg(lab: Lab) -> None:
    upstream = dns.upstream(lab)
    upstream.names["slow.example.net"] = ("203.0.113.90",)
    upstream.delay_seconds = 0.3
    started = time.time_ns()
    assert answers(dig(lab.pod("client").namespace, "slow.example.net")) == ["slow.example.net. 30 IN A 203.0.113.90"]
    ended = time.time_ns()
    (outer,) = [query for query in dns.queries(lab) if query.name == "slow.example.net"]
    (inner,) = [query for query in dns.forwarded(lab) if query.name == "slow.example.net"]
    (asked,) = [query for query in upstream.log if query.name == "slow.example.net"]
    assert outer.answered_ns and inner.answered_ns and asked.answered_ns
    times = [started, outer.time_ns, asked.time_ns, asked.answered_ns, inner.answered_ns, outer.answered_ns, ended]
    assert all(b - a > -2_000 for a, b in itertools.pairwise(times)), times  # dnstap has microseconds
    assert 300_000_000 <= asked.answered_ns - asked.time_ns < 500_000_000
    assert (asked.trans_id, asked.client_ip) == (inner.trans_id, lab.node("node-a").ip)


def test_the_seed_decides_which_queries_are_lost(lab: Lab) -> None:
    upstream = dns.upstream(lab)
    upstream.loss = 0.5
    lost = []
    for _ in range(2):
        upstream.reseed(7)
        first = len(upstream.log)
        with lab.outside.namespace.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.connect((lab.outside.ip, 53))
            for number in range(20):
                asking.send(make_query(f"{number}.example.net", "A").to_wire())
            wait_for(lambda wanted=first + 20: len(upstream.log) == wanted)  # type: ignore[misc]
        lost.append([query.is_lost for query in upstream.log[first:]])
    assert lost[0] == lost[1]
    assert set(lost[0]) == {True, False}
    wait_for(lambda: all((query.rcode is None) is query.is_lost for query in upstream.log))


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 2
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_an_unanswered_query_is_retried_by_the_server_after_two_seconds(lab: Lab) -> None:
    upstream = dns.upstream(lab)
    upstream.loss = 1.0
    lab.pod("client").namespace.run("dig", "+tries=1", "+time=3", "dead.example.net", check=False)
    first, second = [query.time_ns for query in upstream.log if query.name == "dead.example.net"][:2]
    assert 1.8e9 < second - first < 2.5e9
    (asked,) = [query for query in dns.queries(lab) if query.name == "dead.example.net"]
    assert asked.rcode is None


def test_a_large_answer_goes_over_tcp(lab: Lab) -> None:
    many = tuple(f"198.18.{number // 256}.{number % 256}" for number in range(300))
    dns.upstream(lab).names["many.example.net"] = many
    assert len(answers(dig(lab.pod("client").namespace, "many.example.net"))) == 300
    transports = [query.transport for query in dns.queries(lab) if query.name == "many.example.net"]
    assert transports == ["udp", "tcp"]


def test_the_zone_follows_pods_that_come_and_go(lab: Lab) -> None:
    pod = lab.start_pod(Pod("web-3", "node-a", labels={"app": "web"}))
    dashed = f"{pod.ip.replace('.', '-')}.default.pod.cluster.local"
    assert pod.ip in resolve(lab, "direct")
    assert resolve(lab, dashed) == [pod.ip]
    lab.kill_pod("web-3")
    assert pod.ip not in resolve(lab, "direct")
    assert status(dig(lab.pod("client").namespace, dashed)) == "NXDOMAIN"


def test_a_name_server_that_died_can_be_started_again(root: None) -> None:
    with Lab(Topology(pods=PODS, services=SERVICES)) as lab:
        spec = lab.pod("coredns").spec
        lab.kill_pod("coredns")
        assert "name resolution" in resolve(lab, "web.") or "not known" in resolve(lab, "web.")
        lab.start_pod(spec)
        assert resolve(lab, "web") == [lab.service("web").ip]


@pytest.mark.skipif(not K8S.exists(), reason="CoreDNS' recordings in ../shared are absent")
def test_answers_are_those_of_a_real_coredns(root: None) -> None:
    items = json.loads((K8S / "kubeproxy/iptables/cluster_objects_at_capture.json").read_text())["items"]
    by_kind = {kind: [each for each in items if each["kind"] == kind] for kind in ("Service", "EndpointSlice", "Pod")}
    zone = records(by_kind["Service"], by_kind["EndpointSlice"], by_kind["Pod"])
    recorded = (K8S / "coredns/dig.txt").read_text().split("; <<>> DiG ")[1:]
    namespace = Namespace(new_prefix() + "dns")
    try:
        server = dns.ClusterDns(namespace, zone, "127.0.0.9")
        try:
            for each in recorded:
                question = each.partition("@127.0.0.1 ")[2].partition("\n")[0].split()
                own = dig(namespace, "@127.0.0.1", *question)
                assert (status(own), answers(own)) == (status(each), answers(each)), question
        finally:
            server.close()
    finally:
        namespace.close()
    assert len(recorded) >= 13
