"""Ping, a UDP traceroute, and the ICMP errors of a port nobody listens on and of a packet too big. Seen at the veth."""

from __future__ import annotations

from pathlib import Path

from _capture import MS, US, Capture, Seen, ethernet, utc
from _conversation import Conversation, Datagrams, Side, Story
from _shop import CHECKOUT, CUSTOMER, FRONTEND, NODE_1
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest
from scapy.packet import Packet, Raw

STORY = Story(Capture(utc("2026-03-14T14:07:00")))
VETH = ethernet(FRONTEND.mac, NODE_1.bridge_mac)
TARGET = "203.0.113.99"
BODY = bytes(range(56))


class Icmp(Conversation):
    """ICMP messages; Zeek's ports: the type of orig's messages, and that of their answers (else the code)."""

    def __init__(self, orig: str, resp: str, types: tuple[int, int], protocol: str = "ICMP", ttl: int = 64) -> None:
        self.protocol = protocol
        super().__init__(STORY.capture, Side(orig, types[0], ttl=ttl), Side(resp, types[1], ttl=62, ip_id=500), (VETH,))
        STORY.conversations.append(self)
        self.state("OTH")

    def send(self, who: str, at: int, message: Packet, body: int, quoted: Seen | None = None) -> None:
        """`quoted`: the packet that this error is about."""
        me, peer = (self.sides[who], self.sides["resp" if who == "orig" else "orig"])
        self.add(f"{who}_bytes", body)
        [seen] = self.pass_by(who, at, me.header(peer) / message)
        seen.known |= {"icmp_type": message.type, "icmp_code": message.code}
        for name in ("protocol", "src_ip", "src_port", "dst_ip", "dst_port"):
            seen.known[f"quoted_{name}"] = quoted.known[name] if quoted else None


def ping(at: int) -> None:
    """Four echo requests, the third without a reply."""
    v4 = Icmp(FRONTEND.ip, CHECKOUT.ip, (8, 0))
    v6 = Icmp(str(FRONTEND.ip6), str(CHECKOUT.ip6), (128, 129), "ICMPv6")
    for seq in range(1, 5):
        v4.send("orig", at, ICMP(type=8, id=77, seq=seq) / Raw(BODY), len(BODY))
        v6.send("orig", at + MS, ICMPv6EchoRequest(id=78, seq=seq, data=BODY), len(BODY))
        if seq != 3:
            v4.send("resp", at + 480 * US, ICMP(type=0, id=77, seq=seq) / Raw(BODY), len(BODY))
            v6.send("resp", at + MS + 510 * US, ICMPv6EchoReply(id=78, seq=seq, data=BODY), len(BODY))
        at += 1_000 * MS


def probe(at: int, target: str, port: int, payload: bytes, ttl: int = 64) -> tuple[Seen, bytes]:
    """One datagram towards `target`; returns it, and as a router on the way would quote it, its TTL used up."""
    talk = Datagrams(STORY.capture, Side(FRONTEND.ip, 50_123, ip_id=port), Side(target, port), (VETH,))
    STORY.conversations.append(talk)
    seen = talk.send("orig", at, payload, ttl=ttl)[0]
    packet = IP(seen.frame[14:])
    packet.ttl, packet.chksum = 1, None
    return seen, bytes(packet)


def traceroute(at: int) -> None:
    """Two probes a hop: the bridge, the router, the provider, the target; one router stays silent once."""
    routers = {
        hop: Icmp(hop, FRONTEND.ip, (11, 0), ttl=65 - ttl)
        for ttl, hop in enumerate(("10.244.1.1", "192.168.10.1", "203.0.113.1"), 1)
    }
    target = Icmp(TARGET, FRONTEND.ip, (3, 3), ttl=61)
    port = 33_434
    for ttl, hop in enumerate([*routers, TARGET], start=1):
        for _ in range(2):
            seen, quote = probe(at, TARGET, port, bytes(32), ttl)
            if hop == TARGET:
                target.send("orig", at + ttl * 900 * US, ICMP(type=3, code=3) / Raw(quote), len(quote), seen)
            elif port != 33_437:
                routers[hop].send("orig", at + ttl * 900 * US, ICMP(type=11, code=0) / Raw(quote[:28]), 28, seen)
            port += 1
            at += 60 * MS


def too_big(at: int) -> None:
    """A datagram that may not be fragmented does not fit a link with an MTU of 1400."""
    seen, quote = probe(at, CUSTOMER, 4_433, bytes(1_420))
    router = Icmp("192.168.10.1", FRONTEND.ip, (3, 4), ttl=63)
    router.send("orig", at + 700 * US, ICMP(type=3, code=4, nexthopmtu=1_400) / Raw(quote[:548]), 548, seen)


ping(100 * MS)
traceroute(5_000 * MS)
too_big(6_000 * MS)
TRUTH = STORY.truth()

if __name__ == "__main__":
    STORY.capture.write(Path(__file__).with_suffix(""))
