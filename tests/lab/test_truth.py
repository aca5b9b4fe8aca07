"""The truth agrees with itself, and podtap's figures of connections, bytes, handshakes and DNS agree with it."""

from __future__ import annotations

import functools
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from analysis.lake_reader import Lake, open_lake
from analysis.pipeline import analyze
from tests.lab import dns, faults
from tests.lab.captures import Capture
from tests.lab.faults import Loss
from tests.lab.lab import Lab
from tests.lab.probes import look_up
from tests.lab.relay import Mischief, Relay
from tests.lab.topology import Pod, Service, Topology
from tests.lab.tracepoints import Retransmission
from tests.lab.truth import Truth
from tests.lab.workloads import HttpServer, at_once, download, long_lived, short_ones, try_to_connect, upload

pytestmark = pytest.mark.usefixtures("root")
MILLISECOND = 1_000_000
PODS = (Pod("client", "node-a"), Pod("web", "node-b", labels={"app": "web"}))
SERVICE = Service("web", {"app": "web"}, port=80, target_port=8080)


def analyzed(capture: Path, lake: Path) -> Lake:
    analyze([str(capture)], lake, jobs=1)
    return open_lake(lake)


def test_a_retransmission_in_segments() -> None:
    event = Retransmission(5, 1, "fin", ("a", 1), ("b", 2), 0xFFFFFFF0, 0x10, 3, 12, "loss")
    first, second, last = event.segments()
    assert (first.seq, first.end_seq, first.kind) == (0xFFFFFFF0, 0xFFFFFFFC, "data")
    assert (second.seq, second.end_seq) == (0xFFFFFFFC, 8)
    assert (last.seq, last.end_seq, last.kind, last.tcp_segments) == (8, 0x10, "fin", 1)


def test_labs_side_by_side_do_not_mix() -> None:
    """They have the same addresses; only one loses anything, though on a busy machine the other's probes send again."""
    topology = Topology(pods=PODS, dns=False, proxy="none", gso=False)
    with Lab(topology) as one, Lab(topology) as other, Truth(one) as truth, Truth(other) as undisturbed:
        web = one.pod("web")
        assert web.ip == other.pod("web").ip
        with Loss(one.node("node-b").namespace, web.interface, faults.every(50), faults.DATA) as loss:
            for lab in (one, other):
                with HttpServer(lab.pod("web").namespace):
                    assert not download(lab.pod("client").namespace, web.ip, 500_000).error
        for each in (truth, undisturbed):
            each.settle()
    again, others = truth.retransmissions("web"), undisturbed.retransmissions("web")
    assert len(again) > 0 and loss.lost > 0
    assert truth.retransmitted_segments("web") == sum(each.tcp_segments for each in again) >= loss.lost
    assert {each.reason for each in again} & {"recovery", "loss", "probe"}
    assert undisturbed.retransmitted_segments("web") == sum(each.tcp_segments for each in others)
    assert set(again) & set(others) == set()


def test_connections_bytes_and_handshakes(tmp_path: Path) -> None:
    """Bytes and counts are exact; a handshake is what TCP itself measured, within 5 ms."""
    topology = Topology(pods=PODS, services=(SERVICE,), dns=False, ipv6=True)
    with Lab(topology) as lab, HttpServer(lab.pod("web").namespace) as server:
        client, web, service = lab.pod("client"), lab.pod("web"), lab.service("web")
        assert web.ip6 and service.ip
        slow = Relay(lab.node("node-a").namespace, client.interface, Mischief(delay=0.02), seed=1)
        with Capture(client.namespace, tmp_path / "client.pcap", "eth0", snaplen=128), Truth(lab) as truth:
            done = [
                download(client.namespace, web.ip, 300_000),
                upload(client.namespace, web.ip6, 200_000),
                download(client.namespace, service.ip, 100_000, port=80),
                *short_ones(client.namespace, web.ip, 20),
            ]
            with slow:
                done += [download(client.namespace, web.ip, 1000), download(client.namespace, web.ip6, 1000)]
            refused = try_to_connect(client.namespace, web.ip, port=81)
            truth.settle()
            tracked = truth.tracked_connections("node-a")
    rows: Any = analyzed(tmp_path / "client.pcap", tmp_path / "lake").flows()
    flows = {(row.orig_ip, row.orig_port): row for row in rows[rows.protocol == "TCP"].itertuples()}
    assert len(flows) == truth.connections_opened("client") == len(done) + 1
    assert truth.connections_accepted("web") == len(done) == len(server.accepted)
    assert [row.conn_state for row in flows.values()].count("REJ") == 1 and refused.error
    for exchange in done:
        flow = flows[exchange.local]
        assert (flow.resp_ip, flow.resp_port) == exchange.remote
        assert (flow.orig_bytes, flow.resp_bytes) == (exchange.sent, exchange.received)
        assert flow.conn_state == "SF"
        assert abs(flow.handshake_rtt_ns - exchange.handshake_rtt_ns) < 5 * MILLISECOND
        assert flow.handshake_rtt_ns <= exchange.connect_ns + MILLISECOND
    assert all(flows[each.local].handshake_rtt_ns > 20 * MILLISECOND for each in done[-2:])
    assert server.sent == sum(each.received for each in done)
    behind = [each.reply[:2] for each in tracked if each.original[2:] == (service.ip, 80)]
    assert behind == [(web.ip, 8080)]


def test_sockets_while_they_live() -> None:
    with Lab(Topology(pods=PODS, dns=False, proxy="none")) as lab, HttpServer(lab.pod("web").namespace):
        client, web = lab.pod("client"), lab.pod("web")
        call = functools.partial(long_lived, client.namespace, web.ip, requests=2, size=5000, pause=0.5)
        with Truth(lab) as truth:
            work = threading.Thread(target=call)
            work.start()
            patience = time.monotonic() + 30
            while not (mine := truth.sockets("client")) or mine[0].bytes_received <= 5000:
                assert time.monotonic() < patience
                time.sleep(0.01)
            ((mine,), (theirs,)) = truth.sockets("client"), truth.sockets("web")
            work.join()
    assert (mine.state, mine.local, mine.remote) == ("ESTAB", theirs.remote, theirs.local)
    assert mine.bytes_received == theirs.bytes_sent > 5000
    assert theirs.bytes_received == mine.bytes_sent
    assert 0 < mine.min_rtt_ns <= mine.rtt_ns < 100 * MILLISECOND and mine.retransmitted_segments == 0


def test_dns_look_ups(tmp_path: Path) -> None:
    """Each query that the server logged is one row; together they take what the client waited, less 50 ms at most.

    On a busy machine one of the three may have to wait for the processor, up to a second.
    """
    with Lab(Topology(pods=PODS, services=(SERVICE,))) as lab:
        client, service = lab.pod("client"), lab.service("web")
        with Capture(client.namespace, tmp_path / "client.pcap", "eth0"):
            before = len(dns.queries(lab))
            found = look_up(client.namespace, "web", "web.default.svc.cluster.local", "absent.default")
            logged = dns.queries(lab)[before:]
    rows: Any = analyzed(tmp_path / "client.pcap", tmp_path / "lake").dns().sort_values("ts")
    assert [each.addresses for each in found] == [(service.ip,), (service.ip,), ()]
    assert len(rows) == len(logged) and set(rows.status) == {"answered"}
    waited = []
    for each in found:
        mine = rows[
            (rows.query_ts.astype("int64") >= each.begun) & (rows.query_ts.astype("int64") < each.begun + each.took_ns)
        ]
        assert len(mine)
        waited.append(each.took_ns - int(mine.latency_ns.sum()))
    _, second, longest = sorted(waited)
    assert min(waited) >= 0 and second < 50 * MILLISECOND and longest < 1000 * MILLISECOND


def test_several_at_once() -> None:
    with Lab(Topology(pods=PODS, dns=False, proxy="none")) as lab, HttpServer(lab.pod("web").namespace):
        client, web = lab.pod("client"), lab.pod("web")
        with Truth(lab) as truth:
            done = at_once(*[functools.partial(download, client.namespace, web.ip, 10_000)] * 30)
            truth.settle()
        assert not any(each.error for each in done)
        assert truth.connections_opened("client") == truth.connections_accepted("web") == 30
