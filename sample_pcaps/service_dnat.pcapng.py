"""What node-1 sees of a service: the client talks to the ClusterIP, behind kube-proxy's DNAT it is a pod.

Four interfaces: the client's veth, the bridge, the local backends' veths, and eth0 towards node-2 (routed, no overlay).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from _capture import IN, MS, OUT, US, Capture, Interface, Point, ethernet, translated, utc
from _conversation import Story
from _dns import Resolver
from _shop import (
    CHECKOUT,
    CHECKOUT_2,
    CHECKOUT_SERVICE,
    COREDNS,
    FRONTEND,
    IMAGES,
    IMAGES_SERVICE,
    KUBE_DNS,
    NODE_1,
    NODE_2,
    Pod,
)
from _tcp import Connection

NAMES = ("veth6e1a0b2c", "cni0", "vethb41d7f90", "veth0c9d3e55", "eth0")
FRONTEND_VETH, BRIDGE, CHECKOUT_VETH, COREDNS_VETH, ETH0 = range(5)
STORY = Story(Capture(utc("2026-03-14T14:04:00"), tuple(Interface(name) for name in NAMES), snaplen=300))
RESOLVER = Resolver(STORY, 99)

CLIENT_SIDE = (
    ethernet(FRONTEND.mac, NODE_1.bridge_mac, interface=FRONTEND_VETH, orig_direction=IN, resp_direction=OUT),
    ethernet(
        FRONTEND.mac, NODE_1.bridge_mac, interface=BRIDGE, orig_direction=IN, resp_direction=OUT,
        orig_delay=3 * US, resp_delay=-3 * US,
    ),
)  # fmt: skip


def local(backend: Pod, port: int, veth: int) -> tuple[Point, ...]:
    """To a pod of the same node: once more over the bridge, and out of the pod's veth."""
    link = ethernet(NODE_1.bridge_mac, backend.mac, orig_direction=OUT, resp_direction=IN)
    behind = (
        replace(link, interface=BRIDGE, orig_delay=9 * US, resp_delay=-9 * US),
        replace(link, interface=veth, orig_delay=12 * US, resp_delay=-12 * US),
    )
    return CLIENT_SIDE + tuple(translated(point, (backend.ip, port)) for point in behind)


def remote(backend: Pod, port: int) -> tuple[Point, ...]:
    """To a pod of node-2, over eth0."""
    link = ethernet(
        NODE_1.mac,
        NODE_2.mac,
        interface=ETH0,
        orig_direction=OUT,
        resp_direction=IN,
        orig_delay=11 * US,
        resp_delay=-11 * US,
    )
    return (*CLIENT_SIDE, translated(link, (backend.ip, port)))


def to_node_2(at: int) -> None:
    """A request is lost on the way to node-2: the timeout of 0.2 s sends it again, past three observation points."""
    c = Connection(STORY, (FRONTEND.ip, 43001), (CHECKOUT_SERVICE.ip, 80), remote(CHECKOUT, 8080), sack=False)
    at = c.handshake(at) + 50 * US
    request = c.send("orig", at, b"POST /pay HTTP/1.1\r\nHost: checkout\r\n\r\n", lost=True)
    c.resend(request, at + 204 * MS, "rto", ("timer",))
    at += 204 * MS + c.rtt
    c.ack("resp", at)
    c.send("resp", at + 3 * MS, 640)
    c.ack("orig", at + 3 * MS + 40 * US)
    c.close(at + 10 * MS)


def to_the_same_node(at: int) -> None:
    name = RESOLVER.on(
        RESOLVER.socket((FRONTEND.ip, 43002), (KUBE_DNS.ip, 53), local(COREDNS, 53, COREDNS_VETH)),
        "checkout.shop.svc.cluster.local",
    )
    name.ask(at).answer(at + 300 * US, "NOERROR", ("A", CHECKOUT_SERVICE.ip))
    points = local(CHECKOUT_2, 8080, CHECKOUT_VETH)
    c = Connection(STORY, (FRONTEND.ip, 43003), (CHECKOUT_SERVICE.ip, 80), points, rtt=90 * US, resp_ttl=63)
    c.close(c.exchange(c.handshake(at + MS) + 50 * US, b"GET /health HTTP/1.1\r\nHost: checkout\r\n\r\n", 120) + MS)


def dead_backend(at: int) -> None:
    """The backend is gone, but the service still sends there: two SYNs, and no answer."""
    c = Connection(STORY, (FRONTEND.ip, 43004), (IMAGES_SERVICE.ip, 80), remote(IMAGES, 8080))
    c.resend(c.syn("orig", at, lost=True), at + 1_009 * MS, "syn", ("timer",), lost=True)


to_node_2(100 * MS)
to_the_same_node(500 * MS)
dead_backend(800 * MS)
RESOLVER.finish()
TRUTH = STORY.truth()

if __name__ == "__main__":
    STORY.capture.write(Path(__file__).with_suffix(""))
