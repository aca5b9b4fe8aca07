"""The agent on a wire: what it records is what was sent, whatever happens to it, its disk or its interface.

Truth is what the sending socket counted; captures are read by tshark, or by a reader of a few lines in tests/wire.py.
"""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from capture.filtering import Wanted, in_scope, program
from capture.libpcap import MOST_SNAPLEN
from capture.scope_file import Scope
from tests.agents import REASONS, Agent, assert_hashed, balance, blast, number_of, numbered, start, wire
from tests.wire import Wire, read_all, records


@pytest.mark.parametrize("device", ["any", "wire"])
def test_all_that_is_sent_is_recorded(wire: Wire, start: Callable[..., Agent], device: str) -> None:
    agent = start("-i", device, "-s", "0", "-C", "3")
    frames = [numbered(number) for number in range(20_000)] + [numbered(20_000, 60_000)]
    began_ns = time.time_ns()
    wire.send(frames)
    assert agent.stop() == 0
    manifests = agent.manifests()
    assert balance(manifests) == dict.fromkeys(REASONS, 0) | {"accepted": len(frames), "written": len(frames)}
    found = agent.records()
    link_header = 20 if device == "any" else 14
    assert [number_of(record, link_header) for record in found] == list(range(len(frames)))
    assert [record.length - link_header for record in found] == [len(frame) - 14 for frame in frames]
    assert found[-1].captured == found[-1].length
    assert all(began_ns <= record.time_ns <= time.time_ns() for record in found)
    assert {manifest["link_type"] for manifest in manifests} == {276 if device == "any" else 1}
    assert len(manifests) == 1
    assert (manifests[0]["first_packet_ns"], manifests[0]["last_packet_ns"]) == (
        min(record.time_ns for record in found),
        max(record.time_ns for record in found),
    )
    assert manifests[0]["payload"] == "all"


def test_segments_follow_each_other_by_size_without_a_gap(wire: Wire, start: Callable[..., Agent]) -> None:
    agent = start("-i", "wire", "-C", "1")
    sent = blast(wire, 100_000, 100_000)
    assert agent.stop() == 0
    manifests = agent.manifests()
    assert len(manifests) > 5
    assert balance(manifests) == dict.fromkeys(REASONS, 0) | {"accepted": sent, "written": sent}
    assert len(agent.records()) == sent
    assert_hashed(manifests)
    for manifest in manifests:
        times = [record.time_ns for record in records(manifest["path"].with_suffix(".pcap"))]
        ends = (manifest["first_packet_ns"], manifest["last_packet_ns"])
        assert ends == ((min(times), max(times)) if times else (None, None))
    assert all(1_000_000 <= manifest["size_bytes"] < 3_000_000 for manifest in manifests[:-1])


def test_a_quiet_link_rotates_too_and_what_comes_is_in_the_file_within_a_second(
    wire: Wire, start: Callable[..., Agent]
) -> None:
    agent = start("-i", "wire", "-G", "1")
    wire.send([numbered(1)])
    time.sleep(1)
    assert len([record for path in agent.root.rglob("*.pcap*") for record in records(path)]) == 1
    time.sleep(2)
    assert agent.stop() == 0
    assert [manifest["packets"] for manifest in agent.manifests()][:3] == [1, 0, 0]


def test_while_it_is_stopped_the_ring_overflows_and_the_ledger_still_adds_up(
    wire: Wire, start: Callable[..., Agent]
) -> None:
    agent = start("-i", "wire", "-s", "0", "-B", "1024")
    agent.process.send_signal(signal.SIGSTOP)
    sent = blast(wire, 100_000, 50_000)
    agent.process.send_signal(signal.SIGCONT)
    sent += blast(wire, 1000, 10_000)
    assert agent.stop() == 0
    sums = balance(agent.manifests())
    assert sums["accepted"] == sent
    assert sums["kernel"] > 50_000
    assert sums["written"] == len(agent.records()) == sent - sums["kernel"]
    assert sums["libpcap"] == sums["disk"] == sums["policy"] == 0


@pytest.mark.parametrize(("device", "flaps"), [("any", 50), ("wire", 20)])
def test_an_interface_that_flaps_is_recorded_whenever_it_is_there(
    wire: Wire, start: Callable[..., Agent], device: str, flaps: int
) -> None:
    agent = start("-i", device, "-s", "0")
    sent = 0
    for number in range(flaps):
        wire.right.ip("link set wire down")
        if number % 10 == 9:
            wire.right.ip("link delete wire")
            wire.connect()
        else:
            wire.right.ip("link set wire up")
        if device == "wire":
            wait_until_captured(agent, wire, number)
        else:
            wait_until_up(wire)
        wire.send([numbered(number * 10 + each) for each in range(10)])
        sent += 10
    assert agent.stop() == 0
    sums = balance(agent.manifests())
    found = [number_of(record, 20 if device == "any" else 14) for record in agent.records()]
    assert [number for number in found if number < PROBE] == list(range(sent))
    assert sums["written"] == sums["accepted"] == len(found)


PROBE = 1 << 30


def wait_until_captured(agent: Agent, wire: Wire, attempt: int) -> None:
    """Send probes until one is in a file: the agent has its interface back."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        wire.send([numbered(PROBE + attempt)])
        for path in agent.root.rglob("*.pcap*"):
            if any(number_of(record, 14) == PROBE + attempt for record in records(path)):
                return
        time.sleep(0.05)
    raise AssertionError(agent.log.read_text())


def wait_until_up(wire: Wire) -> None:
    deadline = time.monotonic() + 10
    while "LOWER_UP" not in wire.left.run("ip", "link", "show", "wire"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("device", ["any", "wire"])
@pytest.mark.parametrize("pods", [8, 100])
def test_a_filter_that_is_exchanged_loses_nothing(wire: Wire, device: str, pods: int, tmp_path: Path) -> None:
    """Other pods come and go, a hundred times, around one whose packets go on. The kernel gives filters as little room
    as Linux before 6.9 does: with so many pods there is none for two at once."""
    # Where the file is missing, all namespaces share it.
    wire.right.run("sh", "-c", "echo 20480 > /proc/sys/net/core/optmem_max", check=False)
    scope = Scope(1, ("10.0.0.2",))
    wanted = Wanted(snaplen=MOST_SNAPLEN)
    frames = [numbered(number) for number in range(50_000)]
    swaps = 0

    def send() -> None:
        """In tenths, so that filters are exchanged however fast the wire is."""
        for tenth in range(10):
            wire.send(frames[tenth * 5000 : (tenth + 1) * 5000])
            while swaps < 2 * tenth:
                time.sleep(0.001)

    with wire.sniffing(lambda handle: program(handle, wanted, scope=scope), device) as sniffer:
        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        path = tmp_path / "x.pcap"
        while sender.is_alive():
            swaps += 1
            scope = Scope(1, ("10.0.0.2", *(f"10.0.9.{(swaps + each) % 250}" for each in range(1, pods))))
            keep = in_scope(scope.addresses, sniffer.link_type)
            sniffer.refilter(keep, lambda handle: program(handle, Wanted(headers_only=False, snaplen=128)))
        found = read_all(sniffer, path)
    assert [number_of(record, 20 if device == "any" else 14) for record in found] == list(range(len(frames)))
    totals = sniffer.totals()
    assert (totals.received, totals.read, totals.kernel, totals.libpcap, totals.policy) == (50_000, 50_000, 0, 0, 0)


def test_what_waits_of_a_pod_that_left_is_policys(wire: Wire, tmp_path: Path) -> None:
    scope = Scope(1, ("10.0.0.1",))
    with wire.sniffing(lambda handle: program(handle, Wanted(), scope=scope)) as sniffer:
        wire.send([numbered(number) for number in range(1000)])
        scope = Scope(2, ("10.0.0.3",))
        sniffer.refilter(in_scope(scope.addresses, sniffer.link_type))
        wire.send(
            [numbered(number).replace(bytes([10, 0, 0, 2]), bytes([10, 0, 0, 3])) for number in range(1000, 1010)]
        )
        wire.send([numbered(number) for number in range(2000, 2010)])
        found = read_all(sniffer, tmp_path / "x.pcap")
    assert [number_of(record, 20) for record in found] == list(range(1000, 1010))
    totals = sniffer.totals()
    assert (totals.received, totals.read, totals.policy, totals.waiting) == (1010, 1010, 1000, 0)


def test_the_scope_file_is_followed(wire: Wire, start: Callable[..., Agent], tmp_path: Path) -> None:
    scope = tmp_path / "scope.json"

    def say(generation: int, *addresses: str) -> None:
        pods = [{"namespace": "shop", "name": f"pod-{each}"} for each in addresses]
        part = tmp_path / "part"
        part.write_text(json.dumps({"generation": generation, "addresses": addresses, "pods": pods}))
        part.rename(scope)

    def wait_for(generation: int) -> None:
        deadline = time.monotonic() + 5
        while not any(line.get("generation") == generation for line in agent.lines()):
            assert time.monotonic() < deadline, agent.lines()
            time.sleep(0.02)

    agent = start("--scope-file", str(scope))
    wire.send([numbered(number) for number in range(10)])
    say(1, "10.0.0.2")
    wait_for(1)
    wire.send([numbered(number) for number in range(10, 20)])
    say(2, "10.0.0.3", "fd00::1")
    wait_for(2)
    wire.send([numbered(number) for number in range(20, 30)])
    scope.write_text("{")
    agent.wait_for("the scope can't be read, the former one stays")
    wire.send([numbered(number) for number in range(30, 40)])
    say(3, "10.0.0.1")
    wait_for(3)
    wire.send([numbered(number) for number in range(40, 50)])
    assert agent.stop() == 0
    assert [number_of(record, 20) for record in agent.records()] == [*range(10, 20), *range(40, 50)]
    assert agent.manifests()[-1]["scope"] == "pods shop/pod-10.0.0.1"


def test_of_several_interfaces_others_are_left_out_also_when_they_come_late(
    wire: Wire, start: Callable[..., Agent]
) -> None:
    agent = start("-i", "later", "-i", "wire", "--", "udp or arp")
    wire.send([numbered(1)])
    for name in ("other", "later"):
        wire.right.ip(
            f"link add {name} type veth peer name {name}-end", f"link set {name} up", f"link set {name}-end up"
        )
    agent.wait_for("the filter was exchanged")
    with wire.right.entered():
        for name, number in (("other", 2), ("later", 3)):
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
                out.bind((name, 0))
                out.send(numbered(number))
    wire.right.ip("link delete other", "link delete later")
    assert agent.stop() == 0
    assert [number_of(record, 20) for record in agent.records()] == [1, 3]
    assert agent.manifests()[0]["capture"] == ["later", "wire"]


def test_the_loopback_is_seen_once_and_the_agents_own_endpoint_not_at_all(
    wire: Wire, start: Callable[..., Agent]
) -> None:
    agent = start("--metrics", "127.0.0.1:9798")
    metrics = wire.right.run("curl", "-sf", "http://127.0.0.1:9798/metrics")
    assert "podtap_ready 1" in metrics
    assert wire.right.run("curl", "-sf", "http://127.0.0.1:9798/readyz") == "ok\n"
    wire.right.run("ping", "-q", "-c", "5", "-i", "0.01", "127.0.0.1")
    time.sleep(0.7)
    metrics = wire.right.run("curl", "-sf", "http://127.0.0.1:9798/metrics")
    assert "podtap_accepted_packets_total 10\n" in metrics
    assert "podtap_written_packets_total 10\n" in metrics
    assert agent.stop() == 0
    assert balance(agent.manifests())["accepted"] == 10


def test_own_traffic_is_recorded_where_it_is_asked_for(wire: Wire, start: Callable[..., Agent]) -> None:
    agent = start("--metrics", "127.0.0.1:9798", "--include-own-traffic")
    wire.right.run("curl", "-sf", "http://127.0.0.1:9798/metrics")
    assert agent.stop() == 0
    assert balance(agent.manifests())["accepted"] >= 8


def test_a_snaplen_is_of_the_record_as_tcpdump_has_it(wire: Wire, start: Callable[..., Agent], tmp_path: Path) -> None:
    for device in ("any", "wire"):
        agent = start("-i", device, "-s", "50", root=tmp_path / device)
        wire.send([numbered(1, 1000)])
        assert agent.stop() == 0
        assert [(record.captured, record.length) for record in agent.records()] == [
            (50, 1006 if device == "any" else 1000)
        ]
        assert (agent.manifests()[0]["payload"], agent.manifests()[0]["snaplen"]) == ("snaplen", 50)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--", "port", "foo"], "unknown port 'foo'"),
        (["--", "ether host 02:00:00:00:00:01"], "ethernet addresses supported only on ethernet"),
        (["-i", "nope"], "No such device"),
        (["--metrics", "here"], "is not an address and port"),
        (["--quota", "1M"], "too small"),
        (["-s", "-1"], "not in the range"),
    ],
)
def test_what_was_called_wrongly_is_said_before_anything_is_written(
    wire: Wire, start: Callable[..., Agent], arguments: list[str], words: str
) -> None:
    agent = start(*arguments, ready=False)
    assert agent.process.wait(20) == 2
    assert words in agent.log.read_text()
    assert not agent.root.exists()


def test_without_the_capability_it_says_what_is_missing(wire: Wire, start: Callable[..., Agent]) -> None:
    agent = start(ready=False, prefix=("setpriv", "--bounding-set", "-all", "--inh-caps", "-all"))
    assert agent.process.wait(20) == 1
    assert "CAP_NET_RAW" in agent.log.read_text()
