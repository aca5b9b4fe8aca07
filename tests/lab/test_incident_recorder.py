"""The recorder of sample_pcaps/incident still runs; here in seconds. tests/test_incident.py tests what it recorded."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tests.lab import incident
from tests.lab.tools import needs

pytestmark = [pytest.mark.usefixtures("root"), needs("unbound", "iptables-restore", "nft")]
SLOW_NS = 1_500_000_000


def test_a_short_incident_has_all_that_the_story_tells(tmp_path: Path) -> None:
    incident.main(tmp_path, incident.QUICK)
    truth = json.loads((tmp_path / "truth.json").read_text())
    retransmitted = {name: each["retransmitted_segments"] for name, each in truth["kernel"].items()}
    assert retransmitted == {name: each["segments_of_events"] for name, each in truth["kernel"].items()}
    assert retransmitted[incident.CHECKOUT.name] >= truth["uplink"]["lost"] > 0  # more, where the machine is busy
    slow = [row for row in truth["requests"] if row["lookup_ns"] > SLOW_NS]
    assert {row["pod"] for row in slow} == {incident.CHECKOUT.name}
    assert not any("error" in row for row in truth["requests"])
    talked = {row["pod"] for row in truth["requests"] if row["local"][0] == truth["reused_ip"]["ip"]}
    assert talked == {incident.CART.name, incident.REPORT.name}
    assert len(list((tmp_path / "metadata").iterdir())) == 2
    for node, packets in truth["captured_packets"].items():
        pcap = gzip.decompress((tmp_path / f"{node}.pcap.gz").read_bytes())
        assert len(pcap) > 16 * packets > 0
