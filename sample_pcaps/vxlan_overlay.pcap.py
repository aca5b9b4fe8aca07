"""Tunnels between the pods of two nodes: VXLAN of Flannel and of Weave (the sender is in the VNI), Geneve. At eth0."""

from __future__ import annotations

from pathlib import Path

from _capture import MS, US, Capture, Point, ethernet, tunnelled, utc
from _conversation import Story
from _dns import Resolver
from _shop import COREDNS_2, DATABASE, FRONTEND, IMAGES, NODE_1, NODE_2
from _tcp import Connection
from scapy.contrib.geneve import GENEVE
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet

STORY = Story(Capture(utc("2026-03-14T14:03:00"), snaplen=400))
RESOLVER = Resolver(STORY, 777)
INNER = ethernet(NODE_1.overlay_mac, NODE_2.overlay_mac)


def overlay(port: int, orig: Packet, resp: Packet) -> tuple[Point]:
    return (tunnelled(INNER, ethernet(NODE_1.mac, NODE_2.mac), (NODE_1.ip, NODE_2.ip), port, (orig, resp)),)


FLANNEL = overlay(8472, VXLAN(vni=1, flags=8), VXLAN(vni=1, flags=8))
WEAVE = overlay(6784, VXLAN(vni=0x3A51C7, flags=8), VXLAN(vni=0x9E07B2, flags=8))
GENEVE_POINT = overlay(6081, GENEVE(vni=101, proto=0x6558), GENEVE(vni=101, proto=0x6558))


def flannel_upload(at: int) -> None:
    """A name is looked up, an upload of five packets loses the second."""
    at += 500 * US
    ask = RESOLVER.on(
        RESOLVER.socket((FRONTEND.ip, 42001), (COREDNS_2.ip, 53), FLANNEL, client_ttl=63),
        "images.shop.svc.cluster.local",
    )
    ask.ask(at - 400 * US).answer(at - 30 * US, "NOERROR", ("A", "10.96.20.30"))
    c = Connection(STORY, (FRONTEND.ip, 42002), (IMAGES.ip, 8080), FLANNEL, orig_ttl=63, resp_ttl=63)
    at = c.handshake(at) + 50 * US
    sent = [c.send("orig", at + i * 12 * US, 1_398, lost=True) for i in range(5)]
    for i in (0, 2, 3, 4):
        c.arrive(sent[i])
        c.ack("resp", at + c.rtt + i * 12 * US)
    at += c.rtt + 60 * US
    c.resend(sent[1], at, "fast", ("sack", "dup_ack"))
    c.ack("resp", at + c.rtt)
    c.send("resp", at + c.rtt + MS, b"HTTP/1.1 201 Created\r\n\r\n")
    c.ack("orig", at + c.rtt + MS + 20 * US)
    c.close(at + 5 * MS)


def plain_exchange(at: int, port: int, server: tuple[str, int], points: tuple[Point]) -> None:
    c = Connection(STORY, (FRONTEND.ip, port), server, points, orig_ttl=63, resp_ttl=63)
    c.close(c.exchange(c.handshake(at) + 50 * US, b"GET /teapot HTTP/1.1\r\nHost: images\r\n\r\n", 900) + MS)


flannel_upload(100 * MS)
plain_exchange(300 * MS, 42003, (IMAGES.ip, 8080), WEAVE)
plain_exchange(500 * MS, 42004, (DATABASE.ip, 5432), GENEVE_POINT)
RESOLVER.finish()
TRUTH = STORY.truth()

if __name__ == "__main__":
    STORY.capture.write(Path(__file__).with_suffix(""))
