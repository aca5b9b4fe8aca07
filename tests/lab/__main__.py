"""`make lab`: opens a lab for a person to play in, prints its map, and stays until Ctrl-C."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Final

from tests.lab.lab import Lab
from tests.lab.topology import CNIS, PROXIES, Node, Pod, Port, Service, Topology

WEB: Final = {"app": "web"}
WEB_PORT: Final = 8080


def playground(cni: str, proxy: str, ipv6: bool) -> Topology:
    """A client and a web service on two nodes."""
    return Topology(
        nodes=(Node("node-a"), Node("node-b")),
        pods=(
            Pod("client", "node-a"),
            Pod("web-1", "node-a", WEB, (Port(WEB_PORT, name="http"),), deployment="web"),
            Pod("web-2", "node-b", WEB, (Port(WEB_PORT, name="http"),), deployment="web"),
            Pod("agent", "node-b", ports=(Port(9100),), host_network=True),
        ),
        services=(Service("web", WEB, 80, WEB_PORT, kind="NodePort"),),
        cni=cni,
        proxy=proxy,
        ipv6=ipv6,
    )


def lab_map(lab: Lab) -> Iterator[str]:
    """Where everything is, a line each."""
    yield f"{'node':12} {'address':40} network namespace (uplink)"
    for node in lab.nodes.values():
        yield f"{node.name:12} {_both(node.ip, node.ip6):40} {node.namespace.name} ({node.uplink})"
    yield f"{'outside':12} {_both(lab.outside.ip, lab.outside.ip6):40} {lab.outside.namespace.name}"
    yield ""
    yield f"{'pod':12} {'address':40} network namespace (interface on its node)"
    for pod in lab.pods.values():
        where = "its node's" if pod.spec.host_network else pod.namespace.name
        yield f"{pod.name:12} {_both(pod.ip, pod.ip6):40} {where} ({pod.interface} on {pod.node})"
    yield ""
    yield f"{'service':12} {'address':40} port -> pods' port"
    for service in lab.services.values():
        spec = service.spec
        node_port = f", on nodes {service.node_port}" if service.node_port else ""
        ports = f"{spec.port} -> {spec.backend_port}{node_port}"
        yield f"{spec.name:12} {_both(service.ip, service.ip6):40} {ports}"


def how_to(lab: Lab) -> Iterator[str]:
    """What to type."""
    node = lab.nodes["node-a"]
    client = lab.pods["client"].namespace.name
    yield "enter a pod:  ip netns exec " + client + " bash"
    yield f"ask the web:  ip netns exec {client} curl -s http://{lab.service('web').ip}/"
    yield f"record:       ip netns exec {node.namespace.name} tcpdump -i any -s 256 -w node-a.pcap"
    yield "analyse:      podtap analyze node-a.pcap --metadata DUMPS --lake lake; podtap report flows --lake lake"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    parser.add_argument("--cni", choices=CNIS, default="flannel")
    parser.add_argument("--proxy", choices=PROXIES, default="iptables")
    parser.add_argument("--ipv6", action="store_true", help="dual stack")
    parser.add_argument("--dumps", default="build/lab", help="where the cluster's objects are written to")
    options = parser.parse_args(arguments)
    if os.geteuid() != 0:
        print("the lab needs root: it builds network namespaces; try: sudo make lab", file=sys.stderr)
        return 1
    try:
        topology = playground(options.cni, options.proxy, options.ipv6)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Lab(topology) as lab:
            for pod in lab.backends(lab.service("web").spec):
                pod.namespace.start(sys.executable, "-m", "http.server", str(WEB_PORT), "--directory", "docs")
            dump = lab.write_dumps(options.dumps)
            print(*lab_map(lab), "", sep="\n")
            print(*(line.replace("DUMPS", str(dump)) for line in how_to(lab)), sep="\n")
            print("\nCtrl-C ends it.", flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        pass
    return 0


def _both(ip: str | None, ip6: str | None) -> str:
    return "  ".join(each for each in (ip, ip6) if each) or "headless"


if __name__ == "__main__":
    sys.exit(main())
