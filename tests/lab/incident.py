"""An incident in a shop, recorded: what sample_pcaps/incident/ holds is what this wrote.

    sudo python -m tests.lab.incident sample_pcaps/incident

Two nodes' packets (tcpdump), the cluster's objects before and after (kubectl), and truth.json: what the kernel, the
name servers, the lossy cable and the load tool counted themselves. README.md there tells the story.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tests.lab import dns, load_tool
from tests.lab.captures import Capture
from tests.lab.cni_plumbing import set_offloads
from tests.lab.faults import Loss, seeded
from tests.lab.lab import Lab, RunningPod
from tests.lab.object_shapes import replica_set_name
from tests.lab.topology import Pod, Port, Service, Topology
from tests.lab.truth import Truth
from tests.lab.workloads import PORT, HttpServer

SNAPLEN: Final = 256
"""A DNS message stays whole, also inside VXLAN."""
LOST: Final = seeded(seed=20, rate=0.1)
LOSABLE: Final = "udp dport 8472 meta length > 1000"
"""A bad cable damages long frames: of what crosses it, the VXLAN packets that are full."""
UPSTREAM_SECONDS: Final = 1.7
RESOLV_CONF: Final = """nameserver 10.96.0.10
search shop.svc.cluster.local svc.cluster.local cluster.local
options ndots:5 timeout:1
"""
"""As checkout's dnsConfig has it: asks again after 1 s."""
PAYMENTS, FRAUD, RATES = "api.payments.example.com", "fraud.payments.example.com", "rates.exchange.example.org"
OUTSIDE: Final = {PAYMENTS: ("203.0.113.81",), FRAUD: ("203.0.113.82",), RATES: ("203.0.113.83",)}


def _pod(workload: str, suffix: str, node: str) -> Pod:
    name = f"{replica_set_name(workload)}-{suffix}"
    return Pod(name, node, {"app": workload}, (Port(PORT),), namespace="shop", deployment=workload)


FRONTEND, CATALOG, ORDERS = (
    _pod("frontend", "x7k2p", "node-a"),
    _pod("catalog", "m4tzs", "node-a"),
    _pod("orders", "q9vwc", "node-a"),
)
CHECKOUT, CART, REPORT = (
    _pod("checkout", "8hd5n", "node-b"),
    _pod("cart", "b6gjr", "node-b"),
    _pod("report", "z2lfx", "node-b"),
)
SHOP: Final = Topology(
    pods=(FRONTEND, CATALOG, ORDERS, CHECKOUT, CART),
    services=tuple(
        Service(pod.labels["app"], {"app": pod.labels["app"]}, 80, PORT, namespace="shop")
        for pod in (CATALOG, ORDERS, CHECKOUT)
    ),
)


@dataclass(frozen=True)
class Timetable:
    """When what happens, in seconds after the start."""

    loss: float = 10
    dump: float = 22
    """Shows who had the IP first."""
    repaired: float = 24
    slow_dns: float = 27
    quick_dns: float = 37
    kill: float = 41.5
    end: float = 48

    def load(self, pod: Pod) -> list[dict[str, Any]]:
        """What a pod asks for: name, bytes, how often, from when to when."""
        kill, slow = self.kill, self.slow_dns
        asked = {
            FRONTEND.name: [("checkout", 30_000, 0.5, 0.0, self.end), ("catalog", 12_000, 1.0, 0.2, self.end)],
            CHECKOUT.name: [
                (PAYMENTS, 400, 3.0, 1.0, self.end),
                (FRAUD, 300, 4.0, slow + 0.5, self.end),
                (RATES, 900, 4.0, slow + 2.2, self.end),
            ],
            CART.name: [("orders", 2_000, 0.7, 0.4, self.end)],
            REPORT.name: [("orders", 6_000, 0.9, kill, self.end)],
        }[pod.name]
        return [dict(zip(("name", "size", "every", "first", "last"), each, strict=True)) for each in asked]


QUICK: Final = Timetable(loss=0.5, dump=2, repaired=2.5, slow_dns=2.6, quick_dns=6, kill=6.5, end=8)
"""The same, for a test."""


class Shop:
    """The running lab, with its load."""

    def __init__(self, lab: Lab, folder: Path, timetable: Timetable, stack: contextlib.ExitStack) -> None:
        self.lab = lab
        self.timetable = timetable
        self._folder = folder
        self._loads: dict[str, subprocess.Popen[str]] = {}
        for node in lab.nodes.values():  # as network cards do, the kernel cuts GSO packets before the cable
            set_offloads(node.namespace, [node.uplink], on=False)
        for ips in OUTSIDE.values():
            lab.outside.namespace.ip(*[f"addr add {ip}/24 dev eth0" for ip in ips])
        dns.upstream(lab).names.update(OUTSIDE)
        lab.pod(CHECKOUT.name).namespace.files(**{"resolv.conf": RESOLV_CONF})
        for pod in (CATALOG, ORDERS, CHECKOUT):
            stack.enter_context(HttpServer(lab.pod(pod.name).namespace))
        stack.enter_context(HttpServer(lab.outside.namespace, 80))

    def begin(self, start: float) -> None:
        self._start = start
        for pod in (FRONTEND, CHECKOUT, CART):
            self.put_load_on(pod)

    def wait_until(self, seconds: float) -> int:
        """Returns the time then, in ns."""
        time.sleep(max(self._start + seconds - time.time(), 0))
        return time.time_ns()

    def put_load_on(self, pod: Pod) -> None:
        plan = json.dumps([each | {"start": self._start} for each in self.timetable.load(pod)])
        with (self._folder / pod.name).open("w") as log:
            namespace = self.lab.pod(pod.name).namespace
            self._loads[pod.name] = namespace.start(sys.executable, load_tool.__file__, plan, stdout=log, stderr=None)

    def finish(self) -> None:
        for load in self._loads.values():
            load.wait(30)

    def requests(self) -> list[dict[str, Any]]:
        """All that the load tools wrote, with the pod that they ran in."""
        rows = [
            {"pod": name} | json.loads(line)
            for name in self._loads
            for line in (self._folder / name).read_text().splitlines()
        ]
        return sorted(rows, key=lambda row: int(row["begun"]))

    def interfaces(self) -> dict[str, dict[str, str]]:
        """For each node the names of its interfaces by if<index>, as captures call them; of a pod's veth the pod."""
        pods = {pod.interface: pod.name for pod in self.lab.pods.values()}
        return {
            node.name: {
                f"if{link['ifindex']}": pods.get(link["ifname"], link["ifname"])
                for link in json.loads(node.namespace.run("ip", "-j", "link"))
            }
            for node in self.lab.nodes.values()
        }


def record(folder: Path, timetable: Timetable) -> dict[str, Any]:
    """Lets it happen, writes the captures and the metadata, and returns the truth."""
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="podtap-incident-")))
        lab = stack.enter_context(Lab(SHOP))
        shop = Shop(lab, scratch, timetable, stack)
        with contextlib.ExitStack() as watch:
            captures = {
                name: watch.enter_context(Capture(node.namespace, scratch / f"{name}.pcap", snaplen=SNAPLEN))
                for name, node in lab.nodes.items()
            }
            truth = watch.enter_context(Truth(lab))
            told = _happen(shop, truth, folder / "metadata")
            truth.settle()
            time.sleep(0.2)  # the last ACKs, everywhere
        lab.write_dumps(folder / "metadata")
        for name in captures:
            _compress(scratch / f"{name}.pcap", folder / f"{name}.pcap.gz")
        kernel = {name: _kernel(truth, name) for name in [*lab.pods, *lab.nodes, "outside"]}
        queries = dns.queries(lab)
        return {
            "recorded_with": {
                "kernel": platform.release().partition("-")[0],
                "tcpdump": _tcpdump_version(),
                "snaplen": SNAPLEN,
            },
            "captured_packets": {name: capture.packets for name, capture in captures.items()},
            **told,
            "kernel": told["kernel"] | kernel,
            "dns_queries_by_name": Counter(query.name for query in queries),
            "dns_queries": [asdict(query) for query in queries if query.name in OUTSIDE],
            "dns_forwarded": [asdict(query) for query in dns.forwarded(lab)],
            "dns_upstream": [asdict(asked) for asked in dns.upstream(lab).log if "invalid" not in asked.name],
            "requests": shop.requests(),
        }


def _happen(shop: Shop, truth: Truth, metadata: Path) -> dict[str, Any]:
    """The story. Returns what is known only while it happens."""
    lab, timetable = shop.lab, shop.timetable
    shop.begin(math.ceil(time.time()) + 0.1)  # so that the kill falls into a second in which the killed pod spoke
    times = {"start": shop.wait_until(0)}
    times["loss"] = shop.wait_until(timetable.loss)
    with Loss(lab.wire, "to-node-b", LOST, LOSABLE) as loss:
        shop.wait_until(timetable.dump)
        lab.write_dumps(metadata)
        times["repaired"] = shop.wait_until(timetable.repaired)
    times["slow_dns"] = shop.wait_until(timetable.slow_dns)
    dns.upstream(lab).delay_seconds = UPSTREAM_SECONDS
    times["quick_dns"] = shop.wait_until(timetable.quick_dns)
    dns.upstream(lab).delay_seconds = 0.0
    times["kill"] = shop.wait_until(timetable.kill)
    interfaces, ip = shop.interfaces(), lab.pod(CART.name).ip
    kernel = {CART.name: _kernel(truth, CART.name)}
    lab.kill_pod(CART.name)
    times["killed"] = time.time_ns()
    report = lab.start_pod(REPORT, ip)
    times["reused"] = time.time_ns()
    shop.put_load_on(REPORT)
    times["end"] = shop.wait_until(timetable.end)
    shop.finish()
    return {
        "times": times,
        "interfaces": {node: names | shop.interfaces()[node] for node, names in interfaces.items()},
        "pods": {pod.name: {"ip": pod.ip, "workload": _workload(pod), "node": pod.node} for pod in lab.pods.values()},
        "reused_ip": {"ip": ip, "before": CART.name, "after": report.name},
        "uplink": {"node": "node-b", "crossed": loss.matched, "lost": loss.lost},
        "kernel": kernel,
    }


def _workload(pod: RunningPod) -> str:
    return f"{pod.spec.namespace}/{pod.spec.deployment}"


def _kernel(truth: Truth, name: str) -> dict[str, int]:
    """RetransSegs of a namespace, and the tracepoints' events and TCP segments, which must be the same."""
    events = truth.retransmissions(name)
    return {
        "retransmitted_segments": truth.retransmitted_segments(name),
        "events": len(events),
        "segments_of_events": sum(event.tcp_segments for event in events),
    }


def _compress(pcap: Path, to: Path) -> None:
    to.write_bytes(gzip.compress(pcap.read_bytes(), mtime=0))


def _tcpdump_version() -> str:
    """Its first line, and libpcap's."""
    done = subprocess.run(["tcpdump", "--version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return ", ".join(done.stdout.splitlines()[:2])


def as_text(truth: Mapping[str, Any]) -> str:
    """JSON with an item of each list on a line of its own."""
    return "{\n" + ",\n".join(f" {json.dumps(key)}: {_value(value)}" for key, value in truth.items()) + "\n}\n"


def _value(value: Any) -> str:
    if isinstance(value, list) and value:
        return _lines("[", map(json.dumps, value), "]")
    if isinstance(value, dict) and any(isinstance(each, dict) for each in value.values()):
        return _lines("{", (f"{json.dumps(key)}: {json.dumps(each)}" for key, each in value.items()), "}")
    return json.dumps(value)


def _lines(opening: str, items: Iterable[str], closing: str) -> str:
    return opening + "\n  " + ",\n  ".join(items) + "\n " + closing


def main(folder: Path, timetable: Timetable | None = None) -> None:
    """Replaces all of an earlier recording in the folder."""
    shutil.rmtree(folder / "metadata", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "truth.json").write_text(as_text(record(folder, timetable or Timetable())))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
