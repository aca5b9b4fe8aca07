"""`tcpdump -i any` on node-1: what a pod uploads to node-2 shows at four interfaces, the last time inside VXLAN."""

from __future__ import annotations

from pathlib import Path

from _capture import IN, MS, OUT, SLL2, US, Capture, Interface, Point, ethernet, sll2, tunnelled, utc
from _conversation import Story
from _shop import FRONTEND, IMAGES, NODE_1, NODE_2
from _tcp import Connection
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet

IFINDEXES = {"veth6e1a0b2c": 7, "cni0": 5, "flannel.1": 4, "eth0": 2}
"""SLL2 names no interface, only its number: so does podtap."""
STORY = Story(
    Capture(
        utc("2026-03-14T14:09:00"),
        tuple(Interface(f"if{ifindex}") for ifindex in IFINDEXES.values()),
        SLL2,
        snaplen=200,
    )
)


def cooked(point: Point, name: str, orig_direction: str, delay: int) -> Point:
    """`point` as the any device shows it; `delay` after the pod's veth (before it, on the way back)."""
    resp_direction = OUT if orig_direction == IN else IN
    ifindex = IFINDEXES[name]

    def orig(packet: Packet) -> bytes:
        return sll2(bytes(point.orig(packet)), ifindex, orig_direction)

    def resp(packet: Packet) -> bytes:
        return sll2(bytes(point.resp(packet)), ifindex, resp_direction)

    return Point(
        orig, resp, list(IFINDEXES).index(name), orig_direction, resp_direction, delay, -delay,
        encapsulation=point.encapsulation, orig_vni=point.orig_vni, resp_vni=point.resp_vni, outer_ips=point.outer_ips,
    )  # fmt: skip


BRIDGED = ethernet(FRONTEND.mac, NODE_1.bridge_mac)
ROUTED = ethernet(NODE_1.overlay_mac, NODE_2.overlay_mac)
WRAPPED = tunnelled(
    ROUTED,
    ethernet(NODE_1.mac, NODE_2.mac),
    (NODE_1.ip, NODE_2.ip),
    8472,
    (VXLAN(vni=1, flags=8), VXLAN(vni=1, flags=8)),
)
POINTS = (
    cooked(BRIDGED, "veth6e1a0b2c", IN, 0),
    cooked(BRIDGED, "cni0", IN, 2 * US),
    cooked(ROUTED, "flannel.1", OUT, 5 * US),
    cooked(WRAPPED, "eth0", OUT, 8 * US),
)


def upload(at: int) -> None:
    """The third of six packets is lost on the way to node-2."""
    c = Connection(STORY, (FRONTEND.ip, 45001), (IMAGES.ip, 8080), POINTS)
    at = c.handshake(at) + 50 * US
    sent = [c.send("orig", at + i * 12 * US, 1_398, lost=True) for i in range(6)]
    for i in (0, 1, 3, 4, 5):
        c.arrive(sent[i])
        c.ack("resp", at + c.rtt + i * 12 * US)
    at += c.rtt + 70 * US
    c.resend(sent[2], at, "fast", ("sack", "dup_ack"))
    c.ack("resp", at + c.rtt)
    c.send("resp", at + c.rtt + MS, b"HTTP/1.1 201 Created\r\n\r\n")
    c.ack("orig", at + c.rtt + MS + 30 * US)
    c.close(at + 5 * MS)


upload(100 * MS)
TRUTH = STORY.truth()

if __name__ == "__main__":
    STORY.capture.write(Path(__file__).with_suffix(""))
