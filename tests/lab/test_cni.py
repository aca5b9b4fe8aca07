"""Each CNI style: who reaches whom, what its packets look like on the wire, and that podtap sees through them."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from scapy.config import conf
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.utils import PcapReader

from analysis.pipeline import analyze
from tests.lab import cni_cilium, cni_flannel, cni_weave
from tests.lab.captures import Capture
from tests.lab.conversations import Conversation, converse
from tests.lab.lab import Lab
from tests.lab.topology import CNIS, Node, Pod, Port, Service, Topology

PORT = 8080
BULK = 300_000
"""Enough for packets larger than the MTU."""


@dataclass(frozen=True)
class Style:
    """What is to be seen of a CNI style."""

    interface: str
    mtu: int
    protocol: int = 0
    """IP protocol of the tunnel; 0 is none."""
    port: int = 0
    protocol6: int | None = None
    """Of what carries IPv6, where that is something else."""
    encapsulation: str | None = None
    devices: tuple[str, ...] = ()
    has_ipv6: bool = True


STYLES = {
    "flannel": Style(r"veth[0-9a-f]{8}", 1430, 17, 8472, encapsulation="vxlan", devices=("cni0", "flannel.1")),
    "flannel-host-gw": Style(r"veth[0-9a-f]{8}", 1500, devices=("cni0",)),
    "calico": Style(r"cali[0-9a-f]{11}", 1500),
    "calico-vxlan": Style(
        r"cali[0-9a-f]{11}", 1430, 17, 4789, encapsulation="vxlan", devices=("vxlan.calico", "vxlan-v6.calico")
    ),
    "calico-ipip": Style(r"cali[0-9a-f]{11}", 1480, 4, protocol6=0, encapsulation="ipip", devices=("tunl0",)),
    "cilium": Style(
        r"lxc[0-9a-f]{12}", 1450, 17, 8472, encapsulation="vxlan", devices=("cilium_vxlan", "cilium_host", "cilium_net")
    ),
    "cilium-geneve": Style(
        r"lxc[0-9a-f]{12}", 1450, 17, 6081, encapsulation="geneve", devices=("cilium_geneve", "cilium_host")
    ),
    "weave": Style(
        r"vethwepl[0-9a-f]{7}",
        1376,
        17,
        6784,
        encapsulation="vxlan",
        devices=("weave", "datapath", "vethwe-bridge", "vethwe-datapath", "vxlan-6784"),
        has_ipv6=False,
    ),
}


@dataclass(frozen=True)
class Carried:
    """A packet on a node's uplink: the outer one, and what it carries of a pod."""

    protocol: int
    port: int
    vni: int | None
    outer: tuple[str, str]
    inner: tuple[str, str]
    fragment_flags: str
    length: int


@pytest.fixture(scope="module", params=CNIS)
def lab(request: pytest.FixtureRequest, root: None) -> Iterator[Lab]:
    topology = Topology(
        nodes=(Node("node-a"), Node("node-b")),
        pods=(
            Pod("client", "node-a", {"app": "client"}, deployment="client"),
            Pod("near", "node-a", {"app": "near"}),
            Pod("far", "node-b", {"app": "web"}, (Port(PORT),), deployment="web"),
            Pod("agent", "node-b", host_network=True, ports=(Port(9100),)),
        ),
        services=(Service("web", {"app": "web"}, 80, PORT),),
        cni=request.param,
        ipv6=STYLES[request.param].has_ipv6,
        dns=False,
    )
    with Lab(topology) as running:
        yield running


@pytest.fixture
def style(lab: Lab) -> Style:
    return STYLES[lab.topology.cni]


@pytest.fixture(params=[4, 6])
def version(request: pytest.FixtureRequest, style: Style) -> int:
    number: int = request.param
    return number if style.has_ipv6 else 4  # Weave Net has no IPv6: its tests are the same ones twice


@dataclass(frozen=True)
class Recording:
    """A conversation of client and far with IPv4, then IPv6: directly, and through the service."""

    wire: Path
    """node-a's uplink."""
    pod: Path
    """The client's own interface."""
    direct: dict[int, Conversation]
    flows: pd.DataFrame
    """What podtap makes of everything on node-a."""


@pytest.fixture(scope="module")
def recording(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """All in one go, as captures take a second to end."""
    folder = tmp_path_factory.mktemp("recording")
    node, client, far, service = lab.node("node-a"), lab.pod("client"), lab.pod("far"), lab.service("web")
    direct = {}
    with (
        Capture(node.namespace, folder / "any.pcap"),
        Capture(node.namespace, folder / "wire.pcap", node.uplink),
        Capture(client.namespace, folder / "pod.pcap", "eth0"),
    ):
        for version in (4, 6) if STYLES[lab.topology.cni].has_ipv6 else (4,):
            ip = address(far, version)
            direct[version] = converse(client.namespace, far.namespace, ip, BULK)
            found = converse(client.namespace, far.namespace, ip, to=(address(service, version), 80))
            assert found.seen_client[0] == address(client, version)
    dump = lab.write_dumps(folder / "dumps")
    summary = analyze([str(folder / "any.pcap")], folder / "lake", [str(dump)], jobs=1)
    assert not summary.problems
    flows = pd.read_parquet(folder / "lake" / "flows")
    return Recording(folder / "wire.pcap", folder / "pod.pcap", direct, flows)


def address(thing: object, version: int) -> str:
    found: str | None = getattr(thing, "ip" if version == 4 else "ip6")
    assert found
    return found


@pytest.mark.parametrize("to", ["near", "far", "agent"])
def test_pods_reach_pods_and_keep_their_address(lab: Lab, version: int, to: str) -> None:
    client, server = lab.pod("client"), lab.pod(to)
    found = converse(client.namespace, server.namespace, address(server, version), BULK)
    assert found.received == BULK
    seen = address(lab.node("node-a") if to == "agent" else client, version)
    assert found.seen_client[0] == seen


def test_a_pod_leaves_the_cluster_with_its_nodes_address(lab: Lab, version: int) -> None:
    client = lab.pod("client")
    found = converse(client.namespace, lab.outside.namespace, address(lab.outside, version), BULK)
    assert found.client[0] == address(client, version)
    assert found.seen_client[0] == address(lab.node("node-a"), version)


def test_nodes_reach_pods_of_both_nodes(lab: Lab, version: int) -> None:
    for name in ("near", "far"):
        server = lab.pod(name)
        found = converse(lab.node("node-a").namespace, server.namespace, address(server, version))
        assert found.received == 1000


def test_interfaces_are_called_and_sized_as_the_plugin_does(lab: Lab, style: Style) -> None:
    client = lab.pod("client")
    assert re.fullmatch(style.interface, client.interface)
    links = lab.node("node-a").namespace.run("ip", "-o", "link")
    names = set(re.findall(r"^\d+: ([^:@]+)", links, re.MULTILINE))
    assert {client.interface, *style.devices} <= names
    assert f" mtu {style.mtu} " in client.namespace.run("ip", "link", "show", "eth0")
    assert f" mtu {style.mtu} " in lab.node("node-a").namespace.run("ip", "link", "show", client.interface)


def test_the_wire_shows_the_tunnel(lab: Lab, style: Style, version: int, recording: Recording) -> None:
    node, client, far = lab.node("node-a"), lab.pod("client"), lab.pod("far")
    there = (address(client, version), address(far, version))
    found = [packet for packet in carried(recording.wire, style) if set(packet.inner) == set(there)]
    assert len(found) > 5
    protocol = style.protocol6 if version == 6 and style.protocol6 is not None else style.protocol
    assert {(packet.protocol, packet.port) for packet in found} == {(protocol, style.port if protocol == 17 else 0)}
    outer_version = 6 if version == 6 and lab.topology.cni in ("flannel", "calico-vxlan") else 4
    nodes = (address(node, outer_version), address(lab.node("node-b"), outer_version))
    for packet in found:
        is_there = packet.inner == there
        if protocol:
            assert packet.outer == (nodes if is_there else nodes[::-1])
            assert packet.vni == vni(lab, is_there)
        if lab.topology.cni in ("calico-ipip", "cilium-geneve", "weave") and protocol:
            assert packet.fragment_flags == "DF"


def vni(lab: Lab, from_client: bool) -> int | None:
    match lab.topology.cni:
        case "flannel":
            return cni_flannel.VNI
        case "calico-vxlan":
            return 4096
        case "cilium" | "cilium-geneve":
            return cni_cilium.identity(lab.pod("client" if from_client else "far").spec)
        case "weave":
            a, b = (cni_weave.short_id(lab.node(name).number) for name in ("node-a", "node-b"))
            return cni_weave.vni(a, b) if from_client else cni_weave.vni(b, a)
    return None


def test_weaves_vni_has_the_sender_in_its_low_bits() -> None:
    assert cni_weave.vni(0xABC, 0x123) == 0x123ABC


def test_cilium_identities_belong_to_labels() -> None:
    one = Pod("one", "node-a", {"app": "web"})
    assert cni_cilium.identity(one) == cni_cilium.identity(Pod("two", "node-b", {"app": "web"}))
    assert cni_cilium.identity(one) != cni_cilium.identity(Pod("one", "node-a", {"app": "db"}))
    assert cni_cilium.identity(one) != cni_cilium.identity(Pod("one", "node-a", {"app": "web"}, namespace="shop"))


def test_no_service_address_on_ciliums_wire(lab: Lab, version: int, recording: Recording) -> None:
    ip = address(lab.service("web"), version)
    seen = {ip for packet in carried(recording.pod, Style("", 0)) for ip in packet.inner}
    assert address(lab.pod("far"), version) in seen
    assert (ip in seen) == (not lab.topology.cni.startswith("cilium"))


def test_podtap_sees_through_the_tunnel_and_names_everybody(
    lab: Lab, style: Style, version: int, recording: Recording
) -> None:
    client, far = lab.pod("client"), lab.pod("far")
    talk = recording.direct[version]
    ips = (recording.flows.orig_ip == address(client, version)) & (recording.flows.resp_ip == address(far, version))
    between = recording.flows[ips & (recording.flows.orig_port == talk.client[1])]
    assert len(between) > 1  # at each point that it passed
    assert set(between.orig_pod) == {"client"}
    assert set(between.orig_workload) == {"client"}
    assert set(between.resp_pod) == {"far"}
    assert set(between.resp_workload) == {"web"}
    assert (between.orig_bytes == BULK).all()
    assert (between.resp_bytes == 2).all()
    protocol = style.protocol6 if version == 6 and style.protocol6 is not None else style.protocol
    wrapped = between[between.encapsulation.notna()]
    assert set(wrapped.encapsulation) == ({style.encapsulation} if protocol else set())
    if protocol == 17:
        assert set(wrapped.orig_vni) == {vni(lab, True)}
        assert set(wrapped.resp_vni) == {vni(lab, False)}


def carried(path: Path, style: Style) -> Iterator[Carried]:
    """The IP packets of a capture, out of their tunnels."""
    conf.l2types.register(1, Ether)
    with PcapReader(str(path)) as packets:
        for packet in packets:
            outer = packet.getlayer(IP) or packet.getlayer(IPv6)
            if outer is None:
                continue
            ends = (outer.src, outer.dst)
            flags = str(outer.flags) if isinstance(outer, IP) else ""
            protocol = outer.proto if isinstance(outer, IP) else outer.nh
            if protocol == 4:
                inner = outer.payload
                yield Carried(4, 0, None, ends, (inner.src, inner.dst), flags, len(packet))
            elif protocol == 17 and style.port and UDP in outer and outer[UDP].dport == style.port:
                payload = bytes(outer[UDP].payload)
                number = struct.unpack(">I", payload[4:8])[0] >> 8
                frame = Ether(payload[8:])
                inner = frame.getlayer(IP) or frame.getlayer(IPv6)
                if inner is not None:
                    yield Carried(17, style.port, number, ends, (inner.src, inner.dst), flags, len(packet))
            else:
                yield Carried(0, 0, None, ends, ends, flags, len(packet))
