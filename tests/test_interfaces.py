"""What names of interfaces mean, and how their history is kept."""

from __future__ import annotations

import pytest

from capture.contract import Interface
from capture.interface_names import meaning
from capture.interfaces import MOST_ENTRIES, MOST_NAMED, History, InterfaceTable, State
from capture.netlink import Address, Forwarding, Link, Neighbour, Route

# Names and kinds as `ip -d link` shows them on nodes with these plug-ins.
KNOWN = [
    ("lo", "loopback", "", False, "loopback", ""),
    ("eth0", "", "", False, "uplink", ""),
    ("ens5", "", "", False, "uplink", ""),
    ("enp1s0f0np0", "", "", False, "uplink", ""),
    ("bond0", "bond", "", False, "uplink", ""),
    ("bond0.100", "vlan", "", False, "uplink", ""),
    ("eth0", "veth", "", True, "uplink", ""),  # of kind, the cluster in containers
    ("eth0_1", "", "", False, "", ""),
    ("pf0vf3", "", "", False, "", ""),
    ("cali0ef24ba2b09", "veth", "", True, "pod", "calico"),
    ("vxlan.calico", "vxlan", "", False, "overlay", "calico"),
    ("vxlan-v6.calico", "vxlan", "", False, "overlay", "calico"),
    ("wireguard.cali", "wireguard", "", False, "overlay", "calico"),
    ("tunl0", "ipip", "", False, "overlay", "calico"),
    ("lxc0d3ce9a45ae5", "veth", "", True, "pod", "cilium"),
    ("lxc_health", "veth", "", True, "pod", "cilium"),
    ("cilium_vxlan", "vxlan", "", False, "overlay", "cilium"),
    ("cilium_geneve", "geneve", "", False, "overlay", "cilium"),
    ("cilium_wg0", "wireguard", "", False, "overlay", "cilium"),
    ("cilium_host", "veth", "", False, "bridge", "cilium"),
    ("cilium_net", "veth", "", False, "bridge", "cilium"),
    ("flannel.1", "vxlan", "", False, "overlay", "flannel"),
    ("flannel-v6.1", "vxlan", "", False, "overlay", "flannel"),
    ("flannel-wg", "wireguard", "", False, "overlay", "flannel"),
    ("cni0", "bridge", "", False, "bridge", "flannel"),
    ("veth4f1c9a2b", "veth", "cni0", True, "pod", "flannel"),
    ("weave", "bridge", "", False, "bridge", "weave"),
    ("datapath", "openvswitch", "", False, "overlay", "weave"),
    ("vxlan-6784", "vxlan", "datapath", False, "overlay", "weave"),
    ("vethwe-bridge", "veth", "weave", False, "overlay", "weave"),
    ("vethwe-datapath", "veth", "datapath", False, "overlay", "weave"),
    ("vethwepl1a2b3c4", "veth", "weave", True, "pod", "weave"),
    ("veth9f3c21aa", "veth", "", True, "pod", ""),  # kindnet, GKE
    ("gke52b1a0e5d21", "veth", "", True, "pod", ""),
    ("eni1a2b3c4d5e6", "veth", "", True, "pod", ""),
    ("azv3f1a9c2b", "veth", "", True, "pod", ""),
    ("kube-ipvs0", "dummy", "", False, "", ""),
    ("nodelocaldns", "dummy", "", False, "", ""),
    ("docker0", "bridge", "", False, "", ""),
    ("br-0a1b2c3d4e5f", "bridge", "", False, "", ""),
    ("veth12ab34c", "veth", "docker0", True, "", ""),
    ("veth12ab34c", "veth", "br-0a1b2c3d4e5f", True, "", ""),
    ("wg0", "wireguard", "", False, "tunnel", ""),
    ("sit0", "sit", "", False, "tunnel", ""),
    ("ifb0", "ifb", "", False, "", ""),
]


@pytest.mark.parametrize(("name", "kind", "master", "elsewhere", "role", "cni"), KNOWN)
def test_what_a_name_means(name: str, kind: str, master: str, elsewhere: bool, role: str, cni: str) -> None:
    assert meaning(name, kind, master, elsewhere) == (role, cni)


def interface(index: int, **values: object) -> Interface:
    return Interface(index=index, name=f"veth{index}", **values)  # type: ignore[arg-type]


def test_a_window_shows_what_was_there_clipped_to_it() -> None:
    history = History()
    assert history.update({1: interface(1), 2: interface(2)}, 100)
    assert not history.update({1: interface(1), 2: interface(2)}, 150)
    assert history.update({1: interface(1, up=False)}, 200)
    assert history.update({1: interface(1), 3: interface(3)}, 300)

    def seen(since: int, until: int) -> list[tuple[int, bool, int | None, int | None]]:
        return [(each.index, each.up, each.since_ns, each.until_ns) for each in history.during(since, until)]

    assert seen(0, 100) == []
    assert seen(100, 200) == [(1, True, None, None), (2, True, None, None)]
    assert seen(0, 1000) == [
        (1, True, 100, 200),
        (1, False, 200, 300),
        (1, True, 300, None),
        (2, True, 100, 200),
        (3, True, 300, None),
    ]
    assert seen(200, 300) == [(1, False, None, None)]
    assert seen(250, 260) == [(1, False, None, None)]
    assert seen(299, 301) == [(1, False, None, 300), (1, True, 300, None), (3, True, 300, None)]


def test_what_was_forgotten_is_known() -> None:
    history = History(most=3)
    for time_ns in range(10):
        history.update({1: interface(1, mtu=time_ns)}, time_ns)
    assert [each.mtu for each in history.during(0, 100)] == [6, 7, 8, 9]
    assert history.forgotten_ns == 6


def link(index: int, name: str, kind: str = "veth", **values: object) -> Link:
    known = {"mac": "", "mtu": 1500, "is_enabled": True, "is_running": True, "master": None, "link": None}
    known |= {"link_netns": 0, "vni": None, "has_xdp": False}
    return Link(index=index, name=name, kind=kind, **(known | values))  # type: ignore[arg-type]


def test_tables_are_bounded() -> None:
    """Whatever a pod makes up."""
    state = State()
    for message in (link(1, "cni0", "bridge"), link(2, "veth2", master=1)):
        state.apply(message)
    for number in range(MOST_ENTRIES + 10):
        mac = f"02:00:{number >> 24:02x}:{number >> 16 & 255:02x}:{number >> 8 & 255:02x}:{number & 255:02x}"
        ip = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        for message in (
            Forwarding(2, 1, mac),
            Neighbour(1, ip, mac),
            Route(2, ip, 254, 0, False),
            Address(2, ip + "/8"),
        ):
            state.apply(message)
    assert len(state.forwarding) == len(state.neighbours) == len(state.routes) == MOST_ENTRIES
    found = state.interfaces()[2]
    assert len(found.reaches) == len(found.reaches_macs) == len(found.addresses) == MOST_NAMED


def test_who_was_behind_a_port_leaves_the_bridge_with_it() -> None:
    state = State()
    mac = "02:00:00:00:00:09"
    for message in (link(1, "cni0", "bridge"), link(2, "veth2", master=1), Forwarding(2, 1, mac)):
        state.apply(message)
    state.apply(Neighbour(1, "10.244.1.2", mac))
    assert state.interfaces()[2].reaches == ["10.244.1.2"]
    state.apply(Forwarding(2, 1, mac, is_gone=True))  # silent for some minutes
    assert state.interfaces()[2].reaches == ["10.244.1.2"]
    state.apply(link(2, "veth2"))
    found = state.interfaces()
    assert (found[1].reaches, found[2].reaches, found[2].reaches_macs) == ([], [], [])


def test_tunnels_and_uplinks_reach_no_pods() -> None:
    state = State()
    for message in (
        link(1, "eth0", "", link_netns=None),
        link(2, "flannel.1", "vxlan", link_netns=None),
        Neighbour(1, "10.0.0.7", "02:00:00:00:00:07"),
        Neighbour(2, "10.244.2.0", "02:00:00:00:00:08"),
        Route(1, "10.0.0.9", 254, 0, False),
    ):
        state.apply(message)
    assert not any(each.reaches or each.reaches_macs for each in state.interfaces().values())


def test_without_netlink_there_is_a_recording_without_names(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refused() -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("capture.interfaces.Netlink", refused)
    table = InterfaceTable()
    table.start()
    assert (table.now(), table.during(0, 2**62), table.indices(["eth0"])) == ([], [], {})
    table.stop()
    assert "the kernel does not tell of interfaces: they stay without names" in capfd.readouterr().err
