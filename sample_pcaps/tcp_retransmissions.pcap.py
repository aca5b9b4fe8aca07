"""One connection for each reason why TCP sends something again, or seems to. Seen at the client's veth on node-1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from _capture import MS, US, Capture, ethernet, utc
from _conversation import Story
from _shop import CART, CHECKOUT, DATABASE, FRONTEND, NODE_1
from _tcp import Connection

DATA = 1398  # MSS 1410 less 12 bytes of timestamps
STORY = Story(Capture(utc("2026-03-14T14:00:00"), snaplen=256))
VETH = ethernet(FRONTEND.mac, NODE_1.bridge_mac)


def connection(port: int, server: str = CHECKOUT.ip, server_port: int = 8080, **more: Any) -> Connection:
    return Connection(STORY, (FRONTEND.ip, port), (server, server_port), (VETH,), **more)


def syn(at: int) -> None:
    """Two SYNs are lost: Linux tries again after 1 s and after 2 more."""
    c = connection(40001)
    first = c.syn("orig", at, lost=True)
    second = c.resend(first, at + 1_003 * MS, "syn", ("timer",), lost=True)
    third = c.resend(second, at + 3_019 * MS, "syn", ("timer", "backoff"))
    c.syn("resp", at + 3_019 * MS + c.rtt)
    at = c.established(at + 3_019 * MS + c.rtt + 20 * US, third)
    c.close(c.exchange(at + MS, b"GET /health HTTP/1.1\r\nHost: checkout\r\n\r\n", 120) + MS)


def synack(at: int) -> None:
    """The client's ACK is lost, and the server speaks first: the server repeats its SYN-ACK after 1 s."""
    c = connection(40002, DATABASE.ip, DATABASE.port)
    syn = c.syn("orig", at)
    answer = c.syn("resp", at + c.rtt)
    c.established(at + c.rtt + 20 * US, syn, lost=True)
    c.resend(answer, at + 1_012 * MS, "synack", ("timer",))
    at = at + 1_012 * MS + 30 * US
    c.ack("orig", at)
    c.send("resp", at + 2 * MS, b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I")
    c.ack("orig", at + 2 * MS + 40 * US)
    c.close(at + 5 * MS)


def fin(at: int) -> None:
    """The client's FIN is lost twice."""
    c = connection(40003)
    at = c.exchange(c.handshake(at) + 50 * US, 300, 800)
    first = c.fin("orig", at + 10 * MS, lost=True)
    second = c.resend(first, at + 214 * MS, "fin", ("timer",), lost=True)
    c.resend(second, at + 630 * MS, "fin", ("timer", "backoff"))
    c.fin("resp", at + 630 * MS + c.rtt)
    c.ack("orig", at + 630 * MS + c.rtt + 30 * US)
    c.state("SF")


def fast(at: int) -> None:
    """The third of ten packets is lost; three duplicate ACKs with SACK bring it again. The sequence wraps at 2^32."""
    c = connection(40004, orig_isn=0xFFFFFFFF - 5_000)
    at = c.handshake(at) + 50 * US
    sent = [c.send("orig", at + i * 12 * US, DATA, lost=True) for i in range(10)]
    for i, one in enumerate(sent):
        if i != 2:
            c.arrive(one)
            c.ack("resp", at + c.rtt + i * 12 * US)
    at += c.rtt + 5 * 12 * US + 8 * US  # after the SACK of the sixth, the third duplicate
    c.resend(sent[2], at, "fast", ("sack", "dup_ack"))
    c.ack("resp", at + c.rtt)
    c.close(at + 2 * c.rtt)


def rack(at: int) -> None:
    """The second of three packets is lost: one SACK is enough for RACK, a quarter of an RTT later."""
    c = connection(40005, rtt=900 * US)
    at = c.handshake(at) + 50 * US
    sent = [c.send("orig", at + i * 12 * US, DATA, lost=True) for i in range(3)]
    c.arrive(sent[0])
    c.ack("resp", at + 500 * US)
    c.arrive(sent[2])
    c.ack("resp", at + 530 * US)
    c.resend(sent[1], at + 660 * US, "fast", ("sack", "rack"))
    c.ack("resp", at + 1_170 * US)
    c.close(at + 3 * MS)


def rto(at: int) -> None:
    """A path is dead for 1.4 s: no SACK, so no tail-loss probe, only timeouts of 0.2, 0.4 and 0.8 s."""
    c = connection(40006, sack=False)
    at = c.exchange(c.handshake(at) + 50 * US, 300, 500) + 5 * MS
    sent = [c.send("orig", at + i * 12 * US, DATA, lost=True) for i in range(4)]
    first = c.resend(sent[0], at + 204 * MS, "rto", ("timer",), lost=True)
    second = c.resend(first, at + 612 * MS, "rto", ("timer", "backoff"), lost=True)
    at = at + 1_428 * MS
    c.resend(second, at, "rto", ("timer", "backoff"))
    c.ack("resp", at + c.rtt)
    c.resend(sent[1], at + c.rtt + 30 * US, "rto_recovery")
    c.resend(sent[2], at + c.rtt + 45 * US, "rto_recovery")
    c.ack("resp", at + 2 * c.rtt + 50 * US)
    c.resend(sent[3], at + 2 * c.rtt + 80 * US, "rto_recovery")
    c.ack("resp", at + 3 * c.rtt + 90 * US)
    c.send("orig", at + 3 * c.rtt + 120 * US, DATA)
    c.ack("resp", at + 4 * c.rtt + 140 * US)
    c.close(at + 10 * MS)


def tlp(at: int) -> None:
    """A flight of two packets is lost: the tail-loss probe sends the last after 2 SRTT + 2 ms, its SACK the other."""
    c = connection(40007)
    at = c.exchange(c.handshake(at) + 50 * US, 300, 500) + 5 * MS
    sent = [c.send("orig", at + i * 12 * US, DATA, lost=True) for i in range(2)]
    probe = at + 12 * US + 3_200 * US
    c.resend(sent[1], probe, "tlp", ("timer",))
    c.ack("resp", probe + c.rtt)
    c.resend(sent[0], probe + c.rtt + 20 * US, "fast", ("sack", "rack"))
    c.ack("resp", probe + 2 * c.rtt + 30 * US)
    c.close(probe + 5 * MS)


def spurious(at: int) -> None:
    """The client's ACK is lost behind the tap, so the server repeats what the client has: a DSACK tells it."""
    c = connection(40008)
    at = c.handshake(at) + 50 * US
    c.send("orig", at, b"GET /cart HTTP/1.1\r\nHost: checkout\r\n\r\n")
    response = c.send("resp", at + 2 * MS, 700)
    c.ack("orig", at + 2 * MS + 40 * US, lost=True)
    c.resend(response, at + 207 * MS, "spurious", ("acked",))
    c.ack("orig", at + 207 * MS + 30 * US, dsack=response)
    c.close(at + 220 * MS)


def out_of_order(at: int) -> None:
    """Two packets of the server are overtaken: one sent a millisecond before, one in the same millisecond."""
    c = connection(40009)
    at = c.handshake(at) + 50 * US
    c.send("orig", at, b"GET /catalogue HTTP/1.1\r\nHost: checkout\r\n\r\n")
    c.ack("resp", at + c.rtt)
    for earlier, evidence in ((1_100 * US, ("tsval",)), (60 * US, ())):
        at += 6 * MS
        c.send("resp", at - 2 * MS, DATA)
        c.ack("orig", at - 2 * MS + 30 * US)
        late = c.send("resp", at - earlier, DATA, captured=False, lost=True)
        c.send("resp", at, DATA)
        c.ack("orig", at + 20 * US)
        c.arrive_late(late, at + 110 * US, evidence)
        c.ack("orig", at + 130 * US)
    c.close(at + 5 * MS)


def unseen_original(at: int) -> None:
    """The server's second packet is lost before the tap: what fills the hole 5 ms later is a retransmission."""
    c = connection(40010, rtt=5 * MS)
    at = c.handshake(at) + 50 * US
    c.send("orig", at, b"GET /history HTTP/1.1\r\nHost: checkout\r\n\r\n")
    at = at + 8 * MS
    sent = [c.send("resp", at, DATA)]
    c.ack("orig", at + 20 * US)
    sent.append(c.send("resp", at + 12 * US, DATA, captured=False, lost=True))
    for i in range(2, 6):
        c.send("resp", at + i * 40 * US, DATA)
        c.ack("orig", at + i * 40 * US + 20 * US)
    c.resend(sent[1], at + 5_240 * US, "unseen_original", ("tsval",))
    c.ack("orig", at + 5_260 * US)
    c.close(at + 20 * MS)


def network_duplicate(at: int) -> None:
    """A switch delivers one packet of the server twice: same IP id, same TSval."""
    c = connection(40011)
    at = c.handshake(at) + 50 * US
    c.send("orig", at, b"GET /stock HTTP/1.1\r\nHost: checkout\r\n\r\n")
    once = c.send("resp", at + 3 * MS, 900)
    c.duplicate(once, at + 3 * MS + 9 * US)
    c.ack("orig", at + 3 * MS + 40 * US)
    c.ack("orig", at + 3 * MS + 45 * US, dsack=once)
    c.close(at + 10 * MS)


def keep_alive(at: int) -> None:
    """An idle connection with Go's keep-alive of 15 s, to a pod whose address was a finished Job's before."""
    c = connection(40012, CART.ip, CART.port)
    at = c.exchange(c.handshake(at) + 50 * US, b"*1\r\n$4\r\nPING\r\n", b"+PONG\r\n")
    for _ in range(2):
        at += 15_104 * MS
        c.probe("orig", at, "keep_alive")
        c.ack("resp", at + c.rtt)
    c.close(at + 5_000 * MS)


def zero_window_probe(at: int) -> None:
    """The server stops reading. Linux probes with the byte before the next one, ever more seldom."""
    c = connection(40013)
    at = c.handshake(at) + 50 * US
    c.send("orig", at, DATA)
    c.ack("resp", at + c.rtt)
    c.send("orig", at + MS, DATA)
    c.ack("resp", at + MS + c.rtt, window=0)
    at = at + MS
    for wait in (204, 408, 816, 1_632):
        at += wait * MS
        c.probe("orig", at, "zero_window_probe", evidence=("peer_window",))
        c.ack("resp", at + c.rtt, window=0)
    c.ack("resp", at + 100 * MS)
    c.send("orig", at + 100 * MS + 30 * US, DATA)
    c.ack("resp", at + 100 * MS + 30 * US + c.rtt)
    c.close(at + 200 * MS)


def zero_window_probe_of_one_byte(at: int) -> None:
    """The same as BSD and Windows do it: with one byte of new data, which the server does not take."""
    c = connection(40014)
    at = c.handshake(at) + 50 * US
    c.send("orig", at, DATA)
    c.ack("resp", at + c.rtt, window=0)
    for wait in (300, 600):
        at += wait * MS
        c.probe("orig", at, "zero_window_probe", 1, evidence=("peer_window",))
        c.ack("resp", at + c.rtt, window=0)
    at += 50 * MS
    c.ack("resp", at)
    c.send("orig", at + 30 * US, DATA)
    c.ack("resp", at + 30 * US + c.rtt)
    c.close(at + 100 * MS)


def capture_gap(at: int) -> None:
    """The capture drops the third of five packets; the server acknowledges all five."""
    c = connection(40015)
    at = c.handshake(at) + 50 * US
    sent = [c.send("orig", at + i * 12 * US, DATA, captured=i != 2) for i in range(5)]
    c.capture_gap(sent[2], c.ack("resp", at + c.rtt))
    c.close(at + 2 * MS)


for second, story in enumerate(
    (syn, synack, fin, fast, rack, rto, tlp, spurious, out_of_order, unseen_original, network_duplicate, keep_alive,
     zero_window_probe, zero_window_probe_of_one_byte, capture_gap)
):  # fmt: skip
    story(100 * MS + second * 1_500 * MS + 300 * US)
TRUTH = STORY.truth()

if __name__ == "__main__":
    STORY.capture.write(Path(__file__).with_suffix(""))
