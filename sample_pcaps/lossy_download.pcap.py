"""A customer downloads 200 kB over a lossy path. Seen at the sender's veth: GSO packets carry several TCP segments.

The sender is a small model of Linux with SACK: three SACKed TCP segments above a hole send it again (`fast`). In the
middle the path goes dead during a recovery, so that only the timeout (`rto`) helps, and what it finds lost follows it.
"""

from __future__ import annotations

import heapq
import itertools
import random
from pathlib import Path

from _capture import MS, US, Capture, ethernet, utc
from _conversation import Story
from _shop import CUSTOMER, IMAGES, NODE_2
from _tcp import Connection, Sent

DATA = 1398
SEGMENTS = 150
RTT = 20 * MS
RTO = 224 * MS
OUTAGE_AT_RESEND = 3  # the path goes dead with this retransmission ...
OUTAGE = 100 * MS  # ... for so long


class Download:
    """The sender's view: `parts` are the TCP segments sent so far, `sacked`, `lost` and `resent` index them."""

    def __init__(self, connection: Connection, seed: int) -> None:
        self.connection = connection
        self.dice = random.Random(seed)
        self.parts: list[Sent] = []
        self.base = connection.resp.end
        self.acked = 0
        self.sacked: set[int] = set()
        self.lost: set[int] = set()
        self.resent: set[int] = set()
        self.window = 10
        self.recovery_end = 0
        self.after_timeout = False
        self.resends = 0
        self.dead_until = 0
        self.deadline = 0
        self.link_free = 0
        self.events: list[tuple[int, int, str, object]] = []
        self.ticket = itertools.count()
        self.unacknowledged_arrivals = 0

    def run(self, at: int) -> int:
        self.fill_window(at)
        while self.events:
            at, _, what, item = heapq.heappop(self.events)
            if what == "arrival":
                self.arrival(at, item)
            elif what == "ack":
                self.ack(at, *item)
            elif at >= self.deadline and self.acked < len(self.parts):
                self.timeout(at)
        return at

    def later(self, at: int, what: str, item: object) -> None:
        heapq.heappush(self.events, (at, next(self.ticket), what, item))

    def arm(self, at: int) -> None:
        self.deadline = at + RTO
        self.later(self.deadline, "timer", None)

    def fill_window(self, at: int) -> None:
        """Send what the window allows: first what is lost, then new data in GSO packets."""
        while True:
            pipe = {
                i
                for i in range(self.acked, len(self.parts))
                if i not in self.sacked and i not in self.lost - self.resent
            }
            room = self.window - len(pipe)
            waiting = sorted(self.lost - self.resent)
            if room <= 0 or (not waiting and len(self.parts) == SEGMENTS):
                return
            at = max(at, self.link_free)
            self.link_free = at + 12 * US
            if waiting:
                self.resend(at, waiting[0])
            else:
                self.send_new(at, min(room, 8, SEGMENTS - len(self.parts)))

    def send_new(self, at: int, count: int) -> None:
        packet = self.connection.send("resp", at, count * DATA, segments=count, lost=True)
        if self.acked == len(self.parts):
            self.arm(at)
        for place, part in enumerate(packet.parts(DATA)):
            self.parts.append(part)
            random_loss = self.dice.random() < 0.04 and len(self.parts) < SEGMENTS - 20
            if not random_loss and at >= self.dead_until:
                self.later(at + RTT // 2 + place * US, "arrival", part)

    def resend(self, at: int, index: int) -> None:
        if self.after_timeout:
            kind, evidence = ("rto", ("timer",)) if at == self.deadline else ("rto_recovery", ())
        else:
            kind, evidence = "fast", ("sack",)
        self.resends += 1
        if self.resends == OUTAGE_AT_RESEND:
            self.dead_until = at + OUTAGE
        self.parts[index] = self.connection.resend(self.parts[index], at, kind, evidence, lost=True)
        self.resent.add(index)
        if index == self.acked:
            self.arm(at)
        if at >= self.dead_until:
            self.later(at + RTT // 2, "arrival", self.parts[index])

    def arrival(self, at: int, part: Sent) -> None:
        """At the customer: every second TCP segment in order, and anything out of order, is acknowledged."""
        customer = self.connection.orig
        holes_before = bool(customer.received)
        self.connection.arrive(part)
        self.unacknowledged_arrivals += 1
        last = customer.expected == self.base + SEGMENTS * DATA
        if holes_before or customer.received or self.unacknowledged_arrivals == 2 or last:
            self.unacknowledged_arrivals = 0
            ack = self.connection.ack("orig", at + RTT // 2, lost=True)
            self.later(at + RTT // 2, "ack", (ack, customer.expected, list(customer.received)))

    def ack(self, at: int, ack: Sent, expected: int, ranges: list[tuple[int, int]]) -> None:
        self.connection.arrive(ack)
        acked = (expected - self.base) // DATA
        if acked > self.acked:
            if not self.lost:
                self.window = min(self.window + acked - self.acked, 32)
            elif self.after_timeout:
                self.window += acked - self.acked
            self.acked = acked
            self.arm(at)
        for start, end in ranges:
            self.sacked |= set(range((start - self.base) // DATA, (end - self.base) // DATA))
        self.lost -= set(range(acked)) | self.sacked
        self.resent &= self.lost
        if acked >= self.recovery_end:
            self.after_timeout = False
        if not self.after_timeout:
            self.find_lost()
        self.fill_window(at + 3 * US)

    def find_lost(self) -> None:
        """Three SACKed TCP segments above a hole: it is lost, and the window halves once an episode."""
        found = {
            i for i in range(self.acked, len(self.parts))
            if i not in self.sacked and i not in self.lost and sum(j > i for j in self.sacked) >= 3
        }  # fmt: skip
        if found and self.acked >= self.recovery_end:
            self.window = max(self.window // 2, 4)
            self.recovery_end = len(self.parts)
        self.lost |= found

    def timeout(self, at: int) -> None:
        self.lost = {i for i in range(self.acked, len(self.parts)) if i not in self.sacked}
        self.resent = set()
        self.window = 1
        self.recovery_end = len(self.parts)
        self.after_timeout = True
        self.fill_window(at)


STORY = Story(Capture(utc("2026-03-14T14:01:00"), snaplen=128))
CONNECTION = Connection(
    STORY, (CUSTOMER, 53124), (IMAGES.ip, 8080), (ethernet(NODE_2.bridge_mac, IMAGES.mac),),
    rtt=60 * US, orig_ttl=51, resp_ttl=64,
)  # fmt: skip


def story() -> None:
    c = CONNECTION
    syn = c.syn("orig", 100 * MS)
    c.syn("resp", 100 * MS + 60 * US)
    at = c.established(100 * MS + RTT, syn)
    c.send("orig", at + 90 * US, b"GET /teapot.jpg HTTP/1.1\r\nHost: images.shop.example\r\n\r\n")
    c.ack("resp", at + 120 * US)
    at = Download(c, seed=4).run(at + 2 * MS)
    c.close(at + 5 * MS)


story()
TRUTH = STORY.truth()

if __name__ == "__main__":
    STORY.capture.write(Path(__file__).with_suffix(""))
