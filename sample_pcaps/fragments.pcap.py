"""UDP datagrams too large for one packet, IPv4 and IPv6: fragments in order, and with the last one first."""

from __future__ import annotations

from pathlib import Path

from _capture import MS, US, Capture, ethernet, utc
from _conversation import Datagrams, Side, Story
from _shop import CHECKOUT, FRONTEND, NODE_1

STORY = Story(Capture(utc("2026-03-14T14:06:00")))
VETH = ethernet(FRONTEND.mac, NODE_1.bridge_mac)
LINE = b"<14>one line of a very long log message; "


def talk(client: str, port: int, server: str) -> Datagrams:
    one = Datagrams(STORY.capture, Side(client, port, ip_id=port), Side(server, 5140, ttl=62, ip_id=port + 1), (VETH,))
    STORY.conversations.append(one)
    return one


def in_order(at: int) -> None:
    """Three fragments there, two back."""
    one = talk(FRONTEND.ip, 47001, CHECKOUT.ip)
    one.send_fragments("orig", at, LINE * 80)
    one.send_fragments("resp", at + MS, LINE * 50)


def two_at_once(at: int) -> None:
    """The fragments of two datagrams of one pair of hosts interleave: only the IP id tells them apart."""
    one, other = talk(FRONTEND.ip, 47002, CHECKOUT.ip), talk(FRONTEND.ip, 47003, CHECKOUT.ip)
    one.send_fragments("orig", at, LINE * 80)
    other.send_fragments("orig", at + 4 * US, LINE * 80)


def last_first(at: int) -> None:
    """The last fragment overtakes the others: its ports are known once the first one came."""
    talk(FRONTEND.ip, 47004, CHECKOUT.ip).send_fragments("orig", at, LINE * 80, order=(2, 0, 1))


def ipv6(at: int) -> None:
    talk(str(FRONTEND.ip6), 47005, str(CHECKOUT.ip6)).send_fragments("orig", at, LINE * 80)
    talk(str(FRONTEND.ip6), 47006, str(CHECKOUT.ip6)).send_fragments("orig", at + MS, LINE * 80, order=(2, 0, 1))


in_order(100 * MS)
two_at_once(200 * MS)
last_first(300 * MS)
ipv6(400 * MS)
TRUTH = STORY.truth()

if __name__ == "__main__":
    STORY.capture.write(Path(__file__).with_suffix(""))
