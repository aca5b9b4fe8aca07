"""IPv6 between two dual-stack pods: TCP with a loss, DNS, extension headers, a fragmented datagram. At the veth."""

from __future__ import annotations

from pathlib import Path

from _capture import MS, US, Capture, ethernet, utc
from _conversation import Datagrams, Side, Story
from _dns import Resolver
from _shop import CHECKOUT, CHECKOUT_SERVICE, FRONTEND, KUBE_DNS, NODE_1
from _tcp import Connection
from scapy.layers.inet6 import IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop, PadN, RouterAlert

STORY = Story(Capture(utc("2026-03-14T14:05:00")))
RESOLVER = Resolver(STORY, 6)
VETH = ethernet(FRONTEND.mac, NODE_1.bridge_mac)
CLIENT, SERVER = str(FRONTEND.ip6), str(CHECKOUT.ip6)
MSS = 1_390  # MTU 1450 less 60


def lookup(at: int) -> None:
    one = RESOLVER.on(
        RESOLVER.socket((CLIENT, 46001), (str(KUBE_DNS.ip6), 53), (VETH,)), "checkout.shop.svc.cluster.local", "AAAA"
    )
    one.ask(at).answer(at + 300 * US, "NOERROR", ("AAAA", str(CHECKOUT_SERVICE.ip6)))


def upload(at: int) -> None:
    """A pod ships its log; the second of five packets is lost. There is no IP id to tell the sends apart."""
    c = Connection(STORY, (CLIENT, 46002), (SERVER, 24_224), (VETH,), mss=MSS)
    at = c.handshake(at) + 50 * US
    body = b"<14>one line of a log; " * 60
    sent = [c.send("orig", at + i * 12 * US, body[: MSS - 12], lost=True) for i in range(5)]
    for i in (0, 2, 3, 4):
        c.arrive(sent[i])
        c.ack("resp", at + c.rtt + i * 12 * US)
    at += c.rtt + 60 * US
    c.resend(sent[1], at, "fast", ("sack", "dup_ack"))
    c.ack("resp", at + c.rtt)
    c.close(at + 3 * MS)


def extension_headers(at: int) -> None:
    """Hop-by-hop and destination options between the IPv6 header and UDP."""
    talk = Datagrams(STORY.capture, Side(CLIENT, 46003), Side(SERVER, 5140), (VETH,))
    STORY.conversations.append(talk)
    options = IPv6ExtHdrHopByHop(options=[RouterAlert(), PadN(optdata=b"")]) / IPv6ExtHdrDestOpt(
        options=[PadN(optdata=bytes(4))]
    )
    talk.send("orig", at, b"<14>hop-by-hop and destination options", extension=options)
    talk.send("orig", at + MS, b"<14>no extension header")


def fragmented(at: int) -> None:
    talk = Datagrams(STORY.capture, Side(CLIENT, 46004), Side(SERVER, 5140), (VETH,))
    STORY.conversations.append(talk)
    talk.send_fragments("orig", at, b"<14>a long line; " * 150)
    talk.send("resp", at + MS, b"taken")


lookup(100 * MS)
upload(200 * MS)
extension_headers(300 * MS)
fragmented(400 * MS)
RESOLVER.finish()
TRUTH = STORY.truth()

if __name__ == "__main__":
    STORY.capture.write(Path(__file__).with_suffix(""))
