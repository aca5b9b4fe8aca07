"""Workloads know what they did, and do what their names say."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from analysis.lake_reader import open_lake
from analysis.pipeline import analyze
from tests.lab.captures import Capture
from tests.lab.lab import Lab
from tests.lab.probes import look_up, path_mtu, ping, traceroute
from tests.lab.topology import Pod, Topology
from tests.lab.workloads import (
    HttpServer,
    at_once,
    download,
    in_parallel,
    long_lived,
    short_ones,
    slow_download,
    try_to_connect,
    upload,
)

pytestmark = pytest.mark.usefixtures("root")
POD_MTU = 1430
"""1500 less what VXLAN over IPv6 needs."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    pods = (Pod("client", "node-a"), Pod("web", "node-b"))
    with Lab(Topology(pods=pods, ipv6=True)) as running:
        yield running


@pytest.fixture
def server(lab: Lab) -> Iterator[HttpServer]:
    with HttpServer(lab.pod("web").namespace) as running:
        yield running


@pytest.mark.parametrize("family", ["ip", "ip6"])
def test_downloads_and_uploads_move_the_bytes_they_say(lab: Lab, server: HttpServer, family: str) -> None:
    client, host = lab.pod("client").namespace, getattr(lab.pod("web"), family)
    done = at_once(
        functools.partial(download, client, host, 1_000_000), functools.partial(upload, client, host, 500_000)
    )
    assert [each.error for each in done] == ["", ""]
    assert done[0].received > 1_000_000 and done[1].sent > 500_000
    server.__exit__(None, None, None)
    try:
        assert server.sent == sum(each.received for each in done)
        assert server.received == sum(each.sent for each in done)
        assert sorted(server.accepted) == sorted(each.local for each in done)
    finally:
        server.__enter__()


def test_connections_long_and_short(lab: Lab, server: HttpServer) -> None:
    client, host = lab.pod("client").namespace, lab.pod("web").ip
    kept = long_lived(client, host, requests=5, size=300, pause=0.02)
    assert len(kept.latencies_ns) == 5 and kept.ended - kept.begun > 80e6
    assert server.accepted == [kept.local]
    several = [each for batch in in_parallel(4, short_ones, client, host, 10) for each in batch]
    assert len({each.local for each in several}) == 40 == len(server.accepted) - 1
    assert not any(each.error for each in several)


def test_where_nobody_listens_or_is(lab: Lab) -> None:
    client, web = lab.pod("client"), lab.pod("web")
    assert try_to_connect(client.namespace, web.ip, port=81).error.startswith("ConnectionRefusedError")
    nobody = web.ip.rpartition(".")[0] + ".200"
    assert "Error" in try_to_connect(client.namespace, nobody, timeout=0.3).error


def test_a_slow_reader_closes_its_window(lab: Lab, server: HttpServer, tmp_path: Path) -> None:
    client = lab.pod("client")
    with Capture(client.namespace, tmp_path / "client.pcap", "eth0", snaplen=128):
        assert slow_download(client.namespace, lab.pod("web").ip, 200_000).error == ""
    analyze([str(tmp_path / "client.pcap")], tmp_path / "lake", jobs=1)
    assert open_lake(tmp_path / "lake").flows()["zero_windows"].max() > 0


@pytest.mark.parametrize("family", ["ip", "ip6"])
def test_ping_and_traceroute(lab: Lab, family: str) -> None:
    client, web = lab.pod("client"), lab.pod("web")
    pings = ping(client.namespace, getattr(web, family), count=3)
    assert pings.sent == 3 == len(pings.rtts_ns) and 0 < max(pings.rtts_ns) < 1e9
    hops = traceroute(client.namespace, getattr(web, family))
    assert len(hops) == 3 and hops[-1] == getattr(web, family)


def test_the_path_mtu_is_the_pods(lab: Lab) -> None:
    assert path_mtu(lab.pod("client").namespace, lab.pod("web").ip) == POD_MTU


def test_names_through_the_c_library(lab: Lab) -> None:
    found, missing = look_up(lab.pod("client").namespace, "kube-dns.kube-system", "no-such-name.invalid")
    assert found.addresses == (lab.service("kube-dns").ip,) and not found.error and found.took_ns > 0
    assert missing.error and not missing.addresses
