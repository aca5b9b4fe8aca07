"""Faults do what they say, and their counters are right: checked against captures on both sides of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from analysis.lake_reader import open_lake
from analysis.pipeline import analyze
from tests.lab import faults
from tests.lab.captures import Capture
from tests.lab.faults import Bandwidth, Loss, SmallMtu
from tests.lab.lab import Lab
from tests.lab.probes import path_mtu, ping
from tests.lab.relay import Mischief, Relay
from tests.lab.topology import Pod, Topology
from tests.lab.workloads import HttpServer, download, try_to_connect, upload

pytestmark = pytest.mark.usefixtures("root")
ECHO = "icmp type echo-request"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    pods = (Pod("client", "node-a"), Pod("web", "node-b"))
    with (
        Lab(Topology(pods=pods, dns=False, proxy="none", gso=False)) as running,
        HttpServer(running.pod("web").namespace),
    ):
        yield running


def packets(capture: Path, lake: Path, condition: str) -> int:
    analyze([str(capture)], lake, jobs=1)
    ((count,),) = open_lake(lake).sql(f"SELECT count(*) FROM packets WHERE {condition}").itertuples(index=False)
    return int(count)


def test_a_seed_means_the_same_each_time() -> None:
    assert faults.seeded(3, 0.02) == faults.seeded(3, 0.02) != faults.seeded(4, 0.02)
    assert 0.015 < len(faults.seeded(3, 0.02)) / faults.PERIOD < 0.025
    assert sorted(faults.every(5))[:3] == [4, 9, 14]
    assert faults.first(2) == {0, 1}


def test_what_a_loss_counts_is_what_is_missing_behind_it(lab: Lab, tmp_path: Path) -> None:
    client, web = lab.pod("client"), lab.pod("web")
    host = lab.node("node-b").namespace
    with (
        Capture(web.namespace, tmp_path / "before.pcap", "eth0", snaplen=128),
        Capture(host, tmp_path / "behind.pcap", "eth0", snaplen=192),
        Loss(host, web.interface, faults.seeded(5, 0.03), faults.DATA) as loss,
    ):
        download(client.namespace, web.ip, 500_000)
    sent = "payload_length > 148 AND src_port = 8080"  # DATA, less 52 bytes of headers
    before = packets(tmp_path / "before.pcap", tmp_path / "1", sent)
    behind = packets(tmp_path / "behind.pcap", tmp_path / "2", sent)
    assert loss.lost == before - behind > 0
    assert loss.matched == before


def test_only_the_chosen_packets_are_lost(lab: Lab) -> None:
    client, web = lab.pod("client"), lab.pod("web")
    with Loss(lab.node("node-a").namespace, client.interface, {1, 2, 4}, ECHO) as loss:
        pings = ping(client.namespace, web.ip, count=6)
    assert (pings.sent, len(pings.rtts_ns), loss.matched, loss.lost) == (6, 3, 6, 3)
    assert len(ping(client.namespace, web.ip).rtts_ns) == 3  # and none when it is over


@pytest.mark.parametrize(("hook", "match", "seen"), [("ingress", faults.SYN, 2), ("egress", faults.SYNACK, 3)])
def test_syn_and_synack_alone_can_be_lost(lab: Lab, hook: str, match: str, seen: int) -> None:
    """Of the SYN-ACK there are three: the server's own timer sends one more, the client's second SYN another."""
    client, web = lab.pod("client"), lab.pod("web")
    with Loss(lab.node("node-a").namespace, client.interface, faults.first(1), match, hook) as loss:
        done = download(client.namespace, web.ip, 100)
    assert (done.error, loss.lost) == ("", 1)
    assert 2 <= loss.matched <= seen
    assert 0.9e9 < done.connect_ns < 1.5e9  # the timer of the first SYN


def test_a_relay_does_all_that_it_counts(lab: Lab, tmp_path: Path) -> None:
    client, web = lab.pod("client"), lab.pod("web")
    mischief = Mischief(lose=0.1, duplicate=0.1, reorder=0.1, delay=0.01)
    relay = Relay(lab.node("node-a").namespace, client.interface, mischief, seed=2, match="icmp type echo-reply")
    with Capture(client.namespace, tmp_path / "client.pcap", "eth0") as capture, relay:
        pings = ping(client.namespace, web.ip, count=50, interval=0.002)
    assert relay.seen == 50
    assert 0 < relay.lost < 15 and 0 < relay.duplicated < 15 and 0 < relay.reordered < 15
    assert capture.packets >= 50 + 50 - relay.lost + relay.duplicated
    assert len(pings.rtts_ns) == 50 - relay.lost + relay.duplicated  # ping shows a time for duplicates, too
    assert min(pings.rtts_ns) > 10e6
    replies = packets(tmp_path / "client.pcap", tmp_path / "lake", "icmp_type = 0")
    assert replies == 50 - relay.lost + relay.duplicated


def test_bandwidth_is_limited(lab: Lab) -> None:
    client, web = lab.pod("client"), lab.pod("web")
    with Bandwidth(lab.node("node-a").namespace, client.interface, "20mbit") as shaped:
        done = download(client.namespace, web.ip, 1_000_000)
    rate = 8 * done.received / (done.ended - done.begun) * 1e9
    assert 10e6 < rate < 21e6 * 1.05
    assert shaped.sent > 600


def test_a_narrow_hop_tells_the_sender(lab: Lab) -> None:
    client, web = lab.pod("client"), lab.pod("web")
    with SmallMtu(lab.node("node-a").namespace, "flannel.1", 1300):
        assert path_mtu(client.namespace, web.ip) == 1300
        assert upload(client.namespace, web.ip, 100_000).error == ""


def test_a_black_hole(lab: Lab) -> None:
    client, web = lab.pod("client"), lab.pod("web")
    with Loss(lab.node("node-a").namespace, client.interface, range(faults.PERIOD)) as loss:
        assert try_to_connect(client.namespace, web.ip, timeout=0.3).error.startswith("TimeoutError")
    assert loss.lost == loss.matched == 1
