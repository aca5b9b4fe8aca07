"""Hops name the kind of each interface, and the pod behind it, as of the time of the flow."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet

from analysis.identities import load_identities
from analysis.interfaces_seen import with_interfaces
from analysis.lake_reader import Lake, open_lake
from analysis.node_rows import interfaces_table
from analysis.pipeline import analyze
from capture.contract import Interface, JournalRecord, Manifest
from tests.node_recordings import Node, Record, at, write_journal

CLIENT, SERVER = "10.1.0.5", "10.1.1.9"


def conversation(port: int) -> Iterator[tuple[bool, Packet]]:
    """Whether the client sends it, and the packet; 100 bytes each way."""
    there = dict(src=CLIENT, dst=SERVER), dict(sport=port, dport=8080)
    back = dict(src=SERVER, dst=CLIENT), dict(sport=8080, dport=port)
    steps = (
        (True, "S", 100, 0, 0),
        (False, "SA", 500, 101, 0),
        (True, "A", 101, 501, 0),
        (True, "PA", 101, 501, 100),
        (False, "PA", 501, 201, 100),
        (True, "A", 201, 601, 0),
    )
    for is_sent, flags, seq, ack, length in steps:
        ip, tcp = there if is_sent else back
        yield is_sent, IP(**ip, id=seq) / TCP(**tcp, flags=flags, seq=seq, ack=ack) / bytes(length)


def passing(since: float, port: int, *points: tuple[str, int, bool]) -> dict[str, list[Record]]:
    """A conversation past points (node, interface, in VXLAN there) of the client's way, a millisecond each."""
    found: dict[str, list[Record]] = {node: [] for node, _, _ in points}
    for number, (is_sent, packet) in enumerate(conversation(port)):
        way = points if is_sent else points[::-1]
        for place, (node, index, is_wrapped) in enumerate(way):
            outer = IP(src="192.168.0.1", dst="192.168.0.2") / UDP(sport=50000, dport=4789) / VXLAN(vni=1) / Ether()
            found[node].append(
                (at(since + number / 10 + place / 1000), index, outer / packet if is_wrapped else packet)
            )
    return found


def interfaces(pod: str, address: str, uplink: str = "") -> list[Interface]:
    return [
        Interface(2, "eth0", kind=uplink, role="uplink"),
        Interface(3, "cni0", kind="bridge", role="bridge"),
        Interface(4, "flannel.1", kind="vxlan", role="overlay"),
        Interface(7, pod, kind="veth", role="pod", reaches=[address], mac=f"{pod}'s"),
    ]


def listed(*pods: tuple[str, str]) -> list[JournalRecord]:
    """Names and addresses."""
    records = []
    for number, (name, ip) in enumerate(pods, start=1):
        pod = {
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "shop", "uid": f"uid-{name}"},
            "spec": {"nodeName": "node"},
            "status": {"phase": "Running", "startTime": "2026-03-01T14:00:00Z", "podIPs": [{"ip": ip}]},
        }
        records.append(JournalRecord("listed", at(0), "Pod", f"uid-{name}", str(number), pod))
    return [*records, JournalRecord("list_complete", at(0), "Pod", resource_version="9")]


def lake_of(tmp_path: Path) -> Lake:
    analyze([str(tmp_path / "root")], tmp_path / "lake", jobs=1)
    return open_lake(tmp_path / "lake")


def rows(lake: Lake, query: str) -> list[dict[str, Any]]:
    return lake.arrow(query).to_pylist()


def test_a_path_is_told_by_kinds_from_pod_to_pod(tmp_path: Path) -> None:
    one = Node(tmp_path / "root", "a", interfaces=interfaces("veth1", CLIENT))
    other = Node(tmp_path / "root", "b", interfaces=interfaces("veth9", SERVER, "veth"))
    points = (("a", 7, False), ("a", 3, False), ("a", 4, False), ("a", 2, True))
    points += (("b", 2, True), ("b", 4, False), ("b", 7, False))
    found = passing(1, 40001, *points)
    for node in (one, other):
        node.segment(at(0), at(60), found[node.name])
    write_journal(tmp_path / "root", listed(("web", CLIENT), ("api", SERVER)))
    lake = lake_of(tmp_path)
    (connection,) = rows(lake, "SELECT path, path_kinds, return_path_kinds FROM connections WHERE protocol = 'TCP'")
    kinds = ["veth", "bridge", "vxlan", "uplink", "uplink", "vxlan", "veth"]
    assert connection["path"][:4] == ["a/veth1", "a/cni0", "a/flannel.1", "a/eth0/vxlan"]
    assert (connection["path_kinds"], connection["return_path_kinds"]) == (kinds, kinds[::-1])
    hops = rows(lake, "SELECT from_kind, to_kind, from_pod, to_pod FROM hops WHERE sender = 'orig' ORDER BY position")
    assert [(hop["from_kind"], hop["to_kind"]) for hop in hops] == list(itertools.pairwise(kinds))
    assert [(hop["from_pod"], hop["to_pod"]) for hop in (hops[0], hops[1], hops[-1])] == [
        ("shop/web", None),
        (None, None),
        (None, "shop/api"),
    ]
    report = lake.report("paths")
    assert set(report["from"]) >= {"a/veth1 (veth of shop/web)", "a/cni0 (bridge)", "b/eth0+vxlan (uplink)"}
    by_kind = report.groupby(["from_kind", "to_kind"])["connections"].sum()
    assert by_kind["uplink", "uplink"] == 2 and by_kind["veth", "bridge"] == 1


def test_kind_and_pod_are_those_of_the_time_of_the_flow(tmp_path: Path) -> None:
    """veth1 goes, and comes again as a tunnel; the pod's address is another one's, behind another interface."""
    node = Node(tmp_path / "root", "a")
    node.interfaces = [
        Interface(2, "eth0", role="uplink"),
        Interface(7, "veth1", kind="veth", role="pod", reaches=[CLIENT], mac="1", until_ns=at(50)),
        Interface(8, "veth1", kind="geneve", role="overlay", mac="2", since_ns=at(60)),
    ]
    for since, port, index in ((10, 40001, 7), (70, 40002, 8), (130, 40003, 8)):
        found = passing(since, port, ("a", index, False), ("a", 2, False))
        node.segment(at(since - 10), at(since + 50), found["a"])
    write_journal(tmp_path / "root", listed(("web", CLIENT)))
    hops = rows(
        lake_of(tmp_path),
        """SELECT orig_port, from_interface, from_kind, from_pod FROM hops JOIN connections USING (connection_uid)
        WHERE sender = 'orig' ORDER BY orig_port""",
    )
    assert [tuple(hop.values()) for hop in hops] == [
        (40001, "veth1", "veth", "shop/web"),
        (40002, "veth1", "geneve", None),
        (40003, "veth1", "geneve", None),
    ]


def test_an_interface_whose_pod_is_learnt_after_its_first_packet_is_that_pods(tmp_path: Path) -> None:
    """It is told late that the interface came, and a bridge learns who is behind it from what comes."""
    node = Node(tmp_path / "root", "a")
    pods = dict(kind="veth", role="pod", mac="1")
    node.interfaces = [
        Interface(2, "eth0", role="uplink"),
        Interface(7, "veth1", **pods, since_ns=at(10.05), until_ns=at(10.6)),  # type: ignore[arg-type]
        Interface(7, "veth1", **pods, reaches=[CLIENT], since_ns=at(10.6)),  # type: ignore[arg-type]
    ]
    node.segment(at(0), at(60), passing(10, 40001, ("a", 7, False), ("a", 2, False))["a"])
    node.part(at(60), passing(70, 40002, ("a", 7, False), ("a", 2, False))["a"])
    write_journal(tmp_path / "root", listed(("web", CLIENT)))
    hops = rows(lake_of(tmp_path), "SELECT from_kind, from_pod FROM hops WHERE sender = 'orig'")
    assert hops == [{"from_kind": "veth", "from_pod": "shop/web"}] * 2


def test_without_a_manifest_there_is_the_index_and_no_kind(tmp_path: Path) -> None:
    node = Node(tmp_path / "root", "a")
    node.part(at(0), passing(1, 40001, ("a", 7, False), ("a", 2, False))["a"])
    lake = lake_of(tmp_path)
    (row,) = lake.report("paths").query("`from` == 'a/if7'").to_dict("records")
    assert (row["to"], pd.isna(row["from_kind"]), pd.isna(row["from_pod"])) == ("a/if2", True, True)
    assert rows(lake, "SELECT path_kinds FROM connections") == [{"path_kinds": [None, None]}]


def test_a_pod_that_another_clock_would_not_tell_is_not_told(tmp_path: Path) -> None:
    for clock, name in (("13:00:00", "old"), ("14:00:00", "new")):
        pod = {
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "shop", "uid": name},
            "spec": {"nodeName": "a"},
            "status": {"phase": "Running", "startTime": f"2026-03-01T{clock}Z", "podIPs": [{"ip": CLIENT}]},
        }
        path = tmp_path / f"cluster-20260301T{clock.replace(':', '')}Z.json"
        path.write_text(json.dumps({"kind": "List", "apiVersion": "v1", "items": [pod]}))
    identities, _ = load_identities([str(tmp_path)])
    (row,) = interfaces_table(
        [Manifest("prod", "a", "x", at(-9000), at(60), 276, 0, 0, 0, "", interfaces=interfaces("veth1", CLIENT)[3:])]
    ).to_pylist()
    row |= {"node": "a", "start": None, "end": None, "seen_from": at(-9000), "seen_until": at(60)}
    words = {name: pa.array([word]).dictionary_encode() for name, word in (("node", "a"), ("interface", "veth1"))}
    flows = pa.table({**words, "first_seen": pa.array([at(30)], pa.timestamp("ns", tz="UTC"))})
    for by_reference, pod_name in ((at(29), "shop/new"), (at(-5000), None)):
        found = with_interfaces(flows, [row], identities, np.array([by_reference]))
        assert found["pod"].to_pylist() == [pod_name]
