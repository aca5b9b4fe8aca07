"""podtap's retransmissions against the kernel's own: the same packets, the same TCP segments, at the same time.

A run is one pod that sends to another and loses something on the way; what podtap says is from a capture at the
sender's own eth0. Each lab does two runs at once, over IPv4 and over IPv6.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from analysis.lake_reader import open_lake
from analysis.pipeline import analyze
from tests.lab import faults
from tests.lab.captures import Capture
from tests.lab.faults import Loss, SmallMtu
from tests.lab.lab import Lab, RunningPod
from tests.lab.namespaces import Namespace
from tests.lab.relay import Mischief, Relay
from tests.lab.topology import CNIS, Pod, Topology
from tests.lab.tracepoints import Retransmission
from tests.lab.truth import Truth
from tests.lab.workloads import (
    Exchange,
    HttpServer,
    at_once,
    download,
    long_lived,
    short_ones,
    slow_download,
    stream,
    upload,
)

MILLISECOND = 1_000_000
SLACK_NS = 20 * MILLISECOND
"""The tracepoint comes when the packet was sent, the capture sees it on its way; somebody else may run in between."""

pytestmark = pytest.mark.usefixtures("root")


@dataclass(frozen=True)
class Sent:
    """One retransmitted packet, as both sides tell it."""

    local: tuple[str, int]
    remote: tuple[str, int]
    seq: int
    tcp_segments: int


@dataclass(frozen=True)
class Run:
    """What happens to one pair of pods, as its seed chooses."""

    name: str
    seed: int
    ipv6: bool

    @property
    def choice(self) -> random.Random:
        return random.Random(self.seed)

    @property
    def congestion(self) -> str:
        return ("bbr", "cubic", "reno")[self.seed % 3]

    @property
    def uploads(self) -> bool:
        return self.seed % 4 == 3

    def losses(self, lab: Lab, sender: RunningPod, receiver: RunningPod, gso: bool) -> list[Loss]:
        """Data at a seeded rate or a burst of it; a SYN or a SYN-ACK; one in fifty ACKs; the FIN."""
        choice = self.choice
        beyond, behind = ((lab.node(pod.node).namespace, pod.interface) for pod in (sender, receiver))
        client, server = (beyond, behind) if self.uploads else (behind, beyond)
        start = choice.randrange(10, 30 if gso else 300)
        # A burst that outlasts the window in flight would wait for one timer a packet.
        burst = range(start, start + choice.randrange(2, 5 if gso else 14))
        data = faults.seeded(self.seed, choice.choice((0.05, 0.1) if gso else (0.01, 0.02, 0.05))) | {start}
        opening = (*client, faults.first(1), faults.SYN) if self.seed % 2 else (*server, faults.first(1), faults.SYNACK)
        return [
            Loss(*beyond, data if choice.random() < 0.7 else burst, faults.DATA),
            Loss(*opening),
            Loss(*behind, faults.seeded(self.seed + 1, 0.02), faults.ANY_TCP),
            *([Loss(*beyond, faults.first(1), faults.FIN)] if choice.random() < 0.3 else []),
        ]

    def work(self, client: RunningPod, server: RunningPod) -> Exchange:
        host = server.ip6 if self.ipv6 else server.ip
        assert host
        if self.uploads:
            return upload(client.namespace, host, 3 << 20, congestion=self.congestion)
        return download(client.namespace, host, 3 << 20)


class TruthError(Exception):
    """The kernel's own counter and its own events differ: nothing can be compared with them."""


def with_a_truth(test: Callable[..., None]) -> Callable[..., None]:
    """Runs a test again where the truth disagrees with itself; under load an event is missed once in a hundred runs."""

    @functools.wraps(test)
    def run(*, tmp_path: Path, **arguments: Any) -> None:
        for attempt in range(3):
            folder = tmp_path / str(attempt)
            folder.mkdir()
            try:
                test(tmp_path=folder, **arguments)
                return
            except TruthError as disagreement:
                last = disagreement
        raise last

    return run


def said_by_podtap(capture: Path, lake: Path, pod: RunningPod) -> list[tuple[int, Sent, str]]:
    """Time, packet and kind of each of the pod's retransmissions, in order."""
    analyze([str(capture)], lake, jobs=1)
    rows: Any = open_lake(lake).retransmits().sort_values(["ts", "frame_number"]).to_dict("records")
    found = []
    for row in rows:
        ends = [(row["orig_ip"], row["orig_port"]), (row["resp_ip"], row["resp_port"])]
        local, remote = ends if row["sender"] == "orig" else ends[::-1]
        if row["tcp_segments"] and local[0] in (pod.ip, pod.ip6):
            found.append((row["ts"].value, Sent(local, remote, row["seq"], row["tcp_segments"]), row["kind"]))
    return found


def said_by_kernel(events: list[Retransmission], gso: bool) -> list[tuple[int, Sent]]:
    """The tracepoint's events; without GSO one is several packets, of a TCP segment each."""
    packets = events if gso else [packet for event in events for packet in event.segments()]
    return [(each.time, Sent(each.local, each.remote, each.seq, each.tcp_segments)) for each in packets]


def by_connection(sent: list[Any]) -> dict[Any, list[Any]]:
    connections: dict[Any, list[Any]] = {}
    for each in sent:
        connections.setdefault((each[1].local, each[1].remote), []).append(each)
    return connections


def assert_equal(truth: Truth, pod: RunningPod, capture: Path, lake: Path, gso: bool) -> int:
    """Returns how many TCP segments podtap and the kernel agree on."""
    counted = truth.retransmitted_segments(pod.name)
    podtap = said_by_podtap(capture, lake, pod)
    assert sum(each[1].tcp_segments for each in podtap) == counted  # before the truth may ask for another try
    events = truth.retransmissions(pod.name)
    traced = sum(event.tcp_segments for event in events)
    if traced != counted:
        raise TruthError(f"{pod.name}: {traced} TCP segments by the tracepoints, {counted} by RetransSegs")
    kernel = said_by_kernel(events, gso)
    mine, theirs = by_connection(podtap), by_connection(kernel)
    assert mine.keys() == theirs.keys()
    for connection, packets in theirs.items():
        assert [each[1] for each in mine[connection]] == [each[1] for each in packets]
        late = [abs(a[0] - b[0]) for a, b in zip(mine[connection], packets, strict=True)]
        assert max(late) < SLACK_NS
    return counted


RUNS = [(cni, gso, 2 * number) for number, (cni, gso) in enumerate(itertools.product(CNIS, (True, False)))]


@pytest.mark.parametrize(("cni", "gso", "seed"), RUNS, ids=[f"{c}-{'gso' if g else 'no-gso'}-{s}" for c, g, s in RUNS])
@with_a_truth
def test_each_retransmission_is_the_kernels(
    cni: str, gso: bool, seed: int, tmp_path: Path, record_property: Any
) -> None:
    ipv6 = cni != "weave"  # has none
    runs = (Run("a", seed, ipv6=False), Run("b", seed + 1, ipv6=ipv6))
    pods = [pod for run in runs for pod in (Pod(f"client-{run.name}", "node-a"), Pod(f"web-{run.name}", "node-b"))]
    topology = Topology(pods=tuple(pods), cni=cni, ipv6=ipv6, dns=False, proxy="none", gso=gso)
    with Lab(topology) as lab, contextlib.ExitStack() as stack:
        captures = {}
        losses: dict[Run, list[Loss]] = {}
        for run in runs:
            client, web = lab.pod(f"client-{run.name}"), lab.pod(f"web-{run.name}")
            stack.enter_context(HttpServer(web.namespace, congestion=run.congestion))
            sender, receiver = (client, web) if run.uploads else (web, client)
            losses[run] = [stack.enter_context(loss) for loss in run.losses(lab, sender, receiver, gso)]
        truth = Truth(lab)
        with contextlib.ExitStack() as watch:
            for pod in [lab.pods[each.name] for each in pods]:
                captures[pod.name] = tmp_path / f"{pod.name}.pcap"
                watch.enter_context(Capture(pod.namespace, captures[pod.name], "eth0", snaplen=128))
            watch.enter_context(truth)
            done = at_once(
                *[lambda run=run: run.work(lab.pod(f"client-{run.name}"), lab.pod(f"web-{run.name}")) for run in runs]
            )
            truth.settle()
            assert not any(each.error for each in done)
        for run in runs:
            assert all(loss.lost for loss in losses[run][:2]), "nothing was lost"
            agreed = [
                assert_equal(truth, lab.pods[name], captures[name], tmp_path / f"lake-{name}", gso)
                for name in (f"client-{run.name}", f"web-{run.name}")
            ]
            record_property(f"run {run.seed}", agreed)
            print(
                f"{cni} gso={gso} IPv{6 if run.ipv6 else 4} seed={run.seed} {run.congestion} "
                f"{'upload' if run.uploads else 'download'}: client {agreed[0]}, web {agreed[1]} TCP segments"
            )
            assert agreed[0 if run.uploads else 1] > 1


def slowly(lab: Lab) -> list[Loss | Relay | SmallMtu]:
    """Packets overtake each other, arrive twice, and some not at all."""
    mischief = Mischief(lose=0.01, duplicate=0.02, reorder=0.03, delay=0.002)
    return [Relay(lab.node("node-a").namespace, lab.pod("client").interface, mischief, seed=7)]


def narrow(lab: Lab) -> list[Loss | Relay | SmallMtu]:
    """A hop is narrower than the sender believes: what was too large for it is sent again in smaller pieces."""
    return [SmallMtu(lab.node("node-b").namespace, "flannel.1", 1300)]


def tail(lab: Lab) -> list[Loss | Relay | SmallMtu]:
    """The last packet of each response, and the FIN: nothing follows that could tell the sender."""
    web = (lab.node("node-b").namespace, lab.pod("web").interface)
    return [Loss(*web, faults.every(2), "tcp flags & psh == psh"), Loss(*web, faults.first(2), faults.FIN)]


def silence(lab: Lab) -> list[Loss | Relay | SmallMtu]:
    """Nothing comes through for a while: timers, with backoff."""
    return [Loss(lab.node("node-b").namespace, lab.pod("web").interface, range(3, 6), faults.DATA)]


def pieces(lab: Lab) -> list[Loss | Relay | SmallMtu]:
    """Packets whose last TCP segment is not full are lost, and others follow."""
    return [Loss(lab.node("node-a").namespace, lab.pod("client").interface, faults.every(4), faults.DATA)]


Work = Callable[[Namespace, str], list[Exchange]]
CASES: dict[str, tuple[Callable[[Lab], list[Loss | Relay | SmallMtu]], Work]] = {
    "mischief": (slowly, lambda client, host: [download(client, host, 2 << 20)]),
    "smaller path MTU": (narrow, lambda client, host: [download(client, host, 1 << 20)]),
    "tail loss": (tail, lambda client, host: [long_lived(client, host, 6, 3000, pause=0.01)]),
    "pieces": (pieces, lambda client, host: [stream(client, host, 60, 3000)]),
    "timeouts": (silence, lambda client, host: [download(client, host, 300_000)]),
    "slow reader": (silence, lambda client, host: [slow_download(client, host, 300_000)]),
    "short ones": (tail, lambda client, host: short_ones(client, host, 8)),
}


@pytest.mark.parametrize("gso", [True, False])
@pytest.mark.parametrize("case", CASES)
@with_a_truth
def test_trouble_of_many_kinds(case: str, gso: bool, tmp_path: Path) -> None:
    troubles, work = CASES[case]
    pods = (Pod("client", "node-a"), Pod("web", "node-b"))
    with Lab(Topology(pods=pods, ipv6=True, dns=False, proxy="none", gso=gso)) as lab, contextlib.ExitStack() as stack:
        client, web = lab.pod("client"), lab.pod("web")
        stack.enter_context(HttpServer(web.namespace))
        for trouble in troubles(lab):
            stack.enter_context(trouble)
        with (
            Capture(client.namespace, tmp_path / "client.pcap", "eth0", snaplen=128),
            Capture(web.namespace, tmp_path / "web.pcap", "eth0", snaplen=128),
            Truth(lab) as truth,
        ):
            assert not any(each.error for each in work(client.namespace, web.ip))
            truth.settle()
        for pod in (client, web):
            agreed = assert_equal(truth, pod, tmp_path / f"{pod.name}.pcap", tmp_path / f"lake-{pod.name}", gso)
            print(f"{case} gso={gso}: {pod.name} {agreed} TCP segments")
            assert agreed or pod is (web if case == "pieces" else client)
