"""Two interfaces of node-1 in one pcapng: eth0 counts nanoseconds, eth1 microseconds, both say what they dropped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from _capture import IN, MS, OUT, US, Capture, Interface, ethernet, utc
from _conversation import Story
from _dns import Resolver
from _shop import CUSTOMER, EXPORTER, NODE_1, NODE_2, PROMETHEUS, ROUTER_MAC, UPSTREAM_DNS
from _tcp import Connection

INTERFACES = (
    Interface("eth0", 9, dropped_interface=2, dropped_kernel=5),
    Interface("eth1", 6, dropped_interface=0, dropped_kernel=1),
)
STORY = Story(Capture(utc("2026-03-14T14:08:00"), INTERFACES))
RESOLVER = Resolver(STORY, 15)
CLUSTER = ethernet(NODE_2.mac, NODE_1.mac, interface=0, orig_direction=IN, resp_direction=OUT)
WORLD = ethernet(ROUTER_MAC, "02:42:c0:a8:0b:0b", interface=1, orig_direction=IN, resp_direction=OUT)


def scrape(at: int) -> None:
    """Prometheus reads a hostNetwork pod: the address is the node's, the declared port says which pod."""
    c = Connection(STORY, (PROMETHEUS.ip, 44001), (EXPORTER.ip, 9100), (CLUSTER,), orig_ttl=63, resp_ttl=64)
    c.close(
        c.exchange(c.handshake(at + 123) + 50_377, b"GET /metrics HTTP/1.1\r\nHost: node-exporter:9100\r\n\r\n", 1_200)
        + MS
    )


def node_port(at: int) -> None:
    """A customer comes in through the node port."""
    c = Connection(STORY, (CUSTOMER, 44002), (NODE_1.ip, 30080), (WORLD,), orig_ttl=51, resp_ttl=64, rtt=60 * US)
    at = c.exchange(c.handshake(at + 777) + 21 * MS, b"GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n", 1_100) + MS
    c.reset("orig", at + MS)
    c.state("RSTO")


def refused(at: int) -> None:
    """Nobody listens on that port."""
    c = Connection(STORY, (CUSTOMER, 44003), (NODE_1.ip, 30081), (WORLD,), orig_ttl=51, resp_ttl=64)
    c.syn("orig", at)
    c.reset("resp", at + 45 * US)
    c.state("REJ")


def upstream_lookup(at: int) -> None:
    """The node asks the provider's resolver, out of eth1."""
    out = replace(WORLD, orig=WORLD.resp, resp=WORLD.orig, orig_direction=OUT, resp_direction=IN)
    one = RESOLVER.on(
        RESOLVER.socket((NODE_1.ip, 44004), (UPSTREAM_DNS, 53), (out,), server_ttl=58), "edge.payments.example"
    )
    one.ask(at + 300).answer(at + 19 * MS + 950, "NOERROR", ("A", "203.0.113.91"))


scrape(100 * MS)
node_port(200 * MS)
refused(300 * MS)
upstream_lookup(400 * MS)
RESOLVER.finish()
TRUTH = STORY.truth()

if __name__ == "__main__":
    STORY.capture.write(Path(__file__).with_suffix(""))
