"""What `podtap doctor` concludes from what it sees, and how it says so. With a real agent: tests/lab/test_doctor.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from capture.blind_spots import blind_spots
from capture.contract import Clock, Counters, Freeze, Interface, Ledger, Manifest
from capture.doctor import report, text
from capture.endpoint import serve
from capture.findings import Finding, duration_text, lines, share_text, summary, worst
from capture.metrics import DROPPED_PACKETS, RING_SEGMENTS, Metrics
from capture.node_checks import check
from capture.node_facts import Device, Disk, Endpoint, NodeFacts, ask, gather
from capture.ring_state import RingState
from capture.running_agents import RunningAgent, agent_arguments

SECOND = 10**9
MINUTE = 60 * SECOND
GIB = 1 << 30
NOW = 1_772_373_781 * SECOND  # 2026-03-01 14:03:01 UTC
FOLDER = Path("/var/lib/podtap/prod/node-a")
AGENT = RunningAgent(4242, NOW - 130 * MINUTE, FOLDER.parents[1], "prod", "node-a", "127.0.0.1:9798", 1 << 13, 58 << 20)


def manifest(**values: object) -> Manifest:
    """One minute that ended just now."""
    known = {"cluster": "prod", "node": "node-a", "stem": "20260301/1-000001", "link_type": 276, "snaplen": 262144}
    known |= {"opened_ns": NOW - MINUTE, "sealed_ns": NOW, "packets": 1000, "size_bytes": 100_000, "sha256": ""}
    known |= {"ledger": Ledger(1000, 1000), "capture": ["any"], "payload": "headers"}
    return Manifest(**(known | values))  # type: ignore[arg-type]


def healthy() -> NodeFacts:
    ring = RingState(
        NOW, 64, NOW - 130 * MINUTE, NOW - 2 * SECOND, 39 * GIB // 10, 4 * GIB, overwritten_ns=NOW + 48 * SECOND
    )
    return NodeFacts(
        now_ns=NOW,
        cluster="prod",
        node="node-a",
        folder=FOLDER,
        agent=AGENT,
        endpoint=Endpoint(
            "127.0.0.1:9798",
            values={
                "podtap_accepted_packets_total": {"": 2_100_000},
                "podtap_dropped_packets_total": {"kernel": 0, "libpcap": 0, "disk": 0, "policy": 900_000},
            },
        ),
        ring=ring,
        manifests=[manifest()],
        has_folder=True,
        disk=Disk(100 * GIB, 60 * GIB, 1_000_000, False),
        clock=Clock(True, 2_000_000, 5000),
        counters=Counters(NOW, {"conntrack_count": 100, "conntrack_max": 1000, "softnet_dropped": 0}),
        libpcap="libpcap version 1.10.3",
    )


def test_a_healthy_node() -> None:
    findings = check(healthy())
    assert {each.level for each in findings} == {"ok"}
    assert not any(each.advice for each in findings)
    said = {each.subject: each.text for each in findings}
    assert said["recording"] == "Process 4242, for 2 h 10 min, into /var/lib/podtap/prod/node-a; 58.0 MB resident."
    assert said["reach"] == (
        "Back to 2026-03-01T11:53:01Z (2 h 10 min), 3.9 GB of 4.0 GB."
        " The oldest segment that is not frozen will be overwritten in 48 s."
    )
    assert said["drops"] == "None of 2,100,000 packets since the agent began."
    assert said["content"] == "Of each packet: headers, and DNS whole. All packets of the node."


def broken(**values: object) -> Callable[[NodeFacts], NodeFacts]:
    return lambda facts: replace(facts, **values)  # type: ignore[arg-type]


def dropping(**reasons: int) -> Callable[[NodeFacts], NodeFacts]:
    def change(facts: NodeFacts) -> NodeFacts:
        assert facts.endpoint
        facts.endpoint.values["podtap_dropped_packets_total"] |= reasons
        return facts

    return change


def ring(**values: object) -> Callable[[NodeFacts], NodeFacts]:
    return lambda facts: replace(facts, ring=replace(facts.ring, **values))  # type: ignore[type-var]


FREEZES = [Freeze("x", NOW - 30 * MINUTE, NOW - 10 * MINUTE, "checkout is slow")]
THEN = [manifest(counters=[Counters(NOW - MINUTE, {"softnet_dropped": 5, "conntrack_drop": 1})])]


@pytest.mark.parametrize(
    ("change", "level", "subject", "words"),
    [
        (broken(agent=None), "bad", "recording", "No agent runs here"),
        (broken(agent=replace(AGENT, capabilities=0)), "bad", "capabilities", "no CAP_NET_RAW"),
        (broken(endpoint=Endpoint("127.0.0.1:9798", "timed out")), "bad", "readiness", "does not answer (timed out)"),
        (
            broken(endpoint=Endpoint("127.0.0.1:9798", not_ready=["the disk is full"])),
            "bad",
            "readiness",
            "The agent says: the disk is full.",
        ),
        (broken(libpcap_problem="libpcap.so.1: cannot open"), "bad", "libpcap", "can't be loaded"),
        (ring(oldest_ns=NOW - 4 * MINUTE), "warn", "reach", "Back to 2026-03-01T13:59:01Z (4 min)"),
        (ring(oldest_unfrozen_ns=NOW - 4 * MINUTE), "warn", "reach", "(2 h 10 min)"),
        (ring(newest_ns=NOW - 20 * MINUTE), "warn", "reach", "20 min old"),
        (ring(problems=["3 segments are lost"]), "warn", "ring", "3 segments are lost."),
        (ring(waiting_segments=2), "bad", "ring", "2 segments could not be sealed"),
        (broken(ring=None), "warn", "reach", "No segment is complete yet: nothing was captured"),
        (broken(problems=["freezes/x.json can't be read"]), "warn", "folder", "freezes/x.json can't be read"),
        (
            lambda facts: ring(refused_segments=7)(replace(facts, freezes=FREEZES)),
            "bad",
            "frozen",
            "7 segments of a frozen window will be overwritten",
        ),
        (broken(disk=Disk(GIB, GIB, None, True)), "bad", "disk", "is read-only"),
        (broken(disk=Disk(GIB, GIB, 3, False)), "bad", "disk", "Only 3 inodes"),
        (broken(disk=Disk(100 * GIB, 100 << 20, None, False)), "bad", "disk", "100 MB of 100 GB are free"),
        (
            lambda facts: ring(bytes=GIB)(replace(facts, disk=Disk(100 * GIB, GIB, None, False))),
            "warn",
            "disk",
            "the quotas allow 3.0 GB more",
        ),
        (broken(disk=Disk(100 * GIB, 9 * GIB, None, False)), "warn", "disk", "a kubelet evicts pods"),
        (dropping(kernel=1204), "warn", "drops", "1,204 of 2,100,000 packets (0.057 %)"),
        (
            lambda facts: dropping(kernel=400_000)(replace(facts, manifests=[])),
            "bad",
            "drops",
            "(19 %) since the agent began: the kernel's ring was full",
        ),
        (dropping(kernel=400_000), "warn", "drops", "None of them since 2026-03-01T14:02:01Z"),
        (
            lambda facts: dropping(disk=1)(replace(facts, manifests=[manifest(ledger=Ledger(10, 9, disk=1))])),
            "bad",
            "drops",
            "the disk was full",
        ),
        (broken(manifests=[manifest(salvaged=True)]), "warn", "restarts", "1 of the newest 1 segments"),
        (
            broken(manifests=THEN, counters=Counters(NOW, {"softnet_dropped": 25})),
            "warn",
            "node drops",
            "20 packets since 2026-03-01T14:02:01Z",
        ),
        (
            broken(counters=Counters(NOW, {"conntrack_count": 950, "conntrack_max": 1000})),
            "warn",
            "conntrack",
            "950 of 1,000 connections (95 %)",
        ),
        (
            broken(
                manifests=THEN, counters=Counters(NOW, {"conntrack_count": 1, "conntrack_max": 9, "conntrack_drop": 4})
            ),
            "warn",
            "conntrack",
            "3 packets were dropped since the table was full",
        ),
        (broken(clock=Clock()), "warn", "clock", "does not say"),
        (broken(clock=Clock(False, 16 * SECOND)), "warn", "clock", "nothing synchronises"),
        (broken(clock=Clock(True, 450_000_000)), "warn", "clock", "as much as 450 ms"),
        (broken(manifests=[manifest(clock=Clock(True, 1, 1, True))]), "warn", "clock", "The clock was set"),
    ],
)
def test_what_is_wrong_is_told(change: Callable[[NodeFacts], NodeFacts], level: str, subject: str, words: str) -> None:
    findings = check(change(healthy()))
    found = [each for each in findings if each.subject == subject and words in each.text]
    assert [each.level for each in found] == [level]
    assert worst(findings) == level


def test_what_is_left_out_on_purpose_is_told() -> None:
    newest = manifest(capture=["eth0", "cni0"], filter="port 53", scope="shop/app=web", payload="snaplen", snaplen=96)
    found = [each for each in check(replace(healthy(), manifests=[newest])) if each.subject == "content"]
    assert [(each.level, each.text) for each in found] == [
        (
            "ok",
            "Of each packet: 96 bytes of each packet. Only what passes eth0, cni0. Only what fits the filter 'port 53'."
            " Only the pods of shop/app=web.",
        )
    ]


def test_drops_without_an_endpoint_are_those_of_the_newest_segments() -> None:
    lossy = manifest(ledger=Ledger(accepted=1000, written=880, kernel=120))
    findings = check(replace(healthy(), endpoint=None, manifests=[lossy, manifest()]))
    assert [each.text for each in findings if each.subject == "drops"] == [
        "120 of 2,000 packets (6 %) since 2026-03-01T14:02:01Z: the kernel's ring was full."
        " Lately in the segment that ended at 2026-03-01T14:03:01Z: 120."
    ]


def interface(index: int, name: str, kind: str = "veth", **values: object) -> Interface:
    return Interface(index, name, kind, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("interfaces", "devices", "level", "words"),
    [
        ([interface(1, "eth0", "")], [Device("eth0")], "ok", "No way past the recorder"),
        ([interface(1, "lxc12ab", cni="cilium", role="pod")], [], "warn", "Cilium forwards with eBPF"),
        ([interface(1, "nk0", "netkit", role="pod")], [], "warn", "nk0: packets to a pod may skip"),
        ([interface(1, "mv0", "macvlan")], [], "warn", "macvlan of one interface"),
        ([], [Device("eth0", has_xdp=True)], "warn", "an XDP program"),
        ([], [Device("eth0", virtual_functions=4), Device("eth1")], "warn", "eth0 (4): pods with an SR-IOV"),
        ([], [Device("eth0", offloads_flows=True)], "warn", "hw-tc-offload is on"),
        ([interface(1, "wg0", "wireguard")], [], "ok", "wg0: a tunnel is encrypted"),
        (
            [interface(n, f"veth{n}", role="pod", reaches=["10.0.0.1"] if n == 1 else []) for n in range(1, 7)],
            [],
            "ok",
            "6 interfaces lead to pods; behind 1 of them an address is known, not behind veth2, veth3, veth4 and 2",
        ),
    ],
)
def test_ways_past_the_recorder(interfaces: list[Interface], devices: list[Device], level: str, words: str) -> None:
    found = blind_spots(interfaces, devices)
    assert [each.level for each in found if words in each.text] == [level]


def test_text_fits_the_terminal_and_does_not_move_its_cursor() -> None:
    facts = replace(healthy(), node="node\x1b[2J")
    findings = [*check(facts), Finding("bad", "x", "long " * 60 + "\x1b[31m", "much " * 60)]
    for width in (60, 100):
        found = text(facts, findings, width, False)
        assert max(len(line) for line in found) <= width
        assert not any(character < " " for line in found for character in line)
    assert found[-1] == "node?[2J: bad: x"
    assert "\x1b[31;1mbad " in "\n".join(lines(findings, 80, colours=True))


def test_the_last_line_says_it_all() -> None:
    found = [Finding("ok", "a", ""), Finding("warn", "b", ""), Finding("bad", "c", ""), Finding("bad", "c", "")]
    assert summary(found) == "bad: c; to look at: b"
    assert summary(found[:1]) == "all is well"
    assert summary([Finding("warn", "not seen", "")]) == "all is well; not all packets can be seen here"
    assert worst([]) == "ok"


def test_the_report_is_json() -> None:
    facts = healthy()
    said = json.loads(json.dumps(report(facts, check(facts))))
    assert (said["cluster"], said["node"], said["level"], said["ring"]["segments"]) == ("prod", "node-a", "ok", 64)
    assert said["agent"]["pid"] == 4242


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0204, "20 ms"),
        (3, "3 s"),
        (4.25, "4.2 s"),
        (48, "48 s"),
        (125, "2 min 5 s"),
        (7800, "2 h 10 min"),
        (3600, "1 h"),
        (90_000, "1 d 1 h"),
        (-5, "0 ms"),
    ],
)
def test_durations(seconds: float, expected: str) -> None:
    assert duration_text(seconds * SECOND) == expected


def test_shares() -> None:
    assert [share_text(part, 1000) for part in (0, 1, 57, 999)] == ["0 %", "0.1 %", "5.7 %", "100 %"]
    assert share_text(1, 0) == "0 %"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("/usr/bin/python3 /usr/bin/podtap agent --root /r", ["--root", "/r"]),
        ("podtap agent", []),
        ("python -m podtap agent -i eth0 -- port 53", ["-i", "eth0", "--", "port", "53"]),
        ("python podtap agent --help", None),
        ("grep podtap agent", None),
        ("ip netns exec x podtap agent", None),
        ("podtap doctor", None),
        ("podtap", None),
        ("", None),
    ],
)
def test_an_agent_is_known_by_its_command_line(command: str, expected: list[str] | None) -> None:
    assert agent_arguments(command.split()) == expected


def test_what_an_endpoint_says_is_understood() -> None:
    metrics = Metrics()
    metrics.set(RING_SEGMENTS, 3)
    metrics.set(DROPPED_PACKETS, 12, 'a "b" c')
    running = serve("127.0.0.1:0", metrics, lambda: ["the disk is full"])
    found = ask(f"127.0.0.1:{running.port}")
    running.close()
    assert found.not_ready == ["the disk is full"]
    assert found.value("podtap_ring_segments") == 3
    assert found.values["podtap_dropped_packets_total"] == {'a \\"b\\" c': 12}
    assert ask(f"127.0.0.1:{running.port}").problem == "[Errno 111] Connection refused"


def test_damaged_files_are_told_of_and_harm_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "prod/node-a"
    day = folder / "20260301"
    day.mkdir(parents=True)
    (folder / "ring.json").write_text("{")
    (day / "1772373781000000000-000001.json").write_text("[]")
    (folder / "freezes").mkdir()
    (folder / "freezes/x.json").write_text("nonsense")
    facts = gather(tmp_path, "prod", "node-a", "", None)
    assert facts.ring is None
    assert len(facts.problems) == 2
    assert worst(check(facts)) == "bad"  # nobody records
