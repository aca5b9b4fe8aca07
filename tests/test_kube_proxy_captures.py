"""Recorded requests through a real kube-proxy: each connection knows the backend that conntrack told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from analysis.lake_reader import open_lake
from analysis.pipeline import analyze
from tests.oracle import SHARED

RECORDED = SHARED / "k8s" / "kubeproxy"
pytestmark = pytest.mark.skipif(not RECORDED.exists(), reason="kube-proxy's recordings in ../shared are absent")
CAPTURES = ("client_pod.pcap", "node_any.pcap", "server_pod_w1.pcap")
TRACKED = re.compile(r"src=(\S+) dst=(\S+) sport=(\d+) dport=(\d+) src=(\S+) dst=\S+ sport=(\d+)")


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_backends_are_those_of_conntrack(mode: str, tmp_path: Path) -> None:
    tracked = TRACKED.findall((RECORDED / mode / "conntrack_L.txt").read_text())
    expected = {
        (client, int(port), service, int(service_port)): (backend, int(backend_port))
        for client, service, port, service_port, backend, backend_port in tracked
    }
    assert len(expected) == len(tracked) == 9
    analyze([str(RECORDED / mode / name) for name in CAPTURES], tmp_path)
    rows = open_lake(tmp_path).sql("FROM connections WHERE protocol = 'TCP'").to_dict("records")
    assert len(rows) == len(tracked)
    told = {
        (row["orig_ip"], row["orig_port"], row["resp_ip"], row["resp_port"]): (row["backend_ip"], row["backend_port"])
        for row in rows
    }
    assert told == expected
