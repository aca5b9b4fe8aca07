"""Copies in captures that do not name interfaces: the kernel against its naive twin, and against what was sent."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from analysis import layout, rooms
from analysis.copies import Copies
from analysis.layout import POINT_MIXED, POINT_NAMED, POINT_UNNAMED
from tests import naive_copies
from tests.naive_copies import ACK, FIN, MILLISECOND, SYN, TCP

pytestmark = pytest.mark.kernel

ROUNDS = 40 if os.environ.get("NUMBA_DISABLE_JIT", "0") != "1" else 8
MICROSECOND = 1000
SEGMENT = 1400
UDP = 17


@dataclass(frozen=True)
class Sent:
    """A packet as a point shows it."""

    ts: int
    seq: int = 0
    length: int = 0
    ip_id: int = -1
    look: int = 0
    flags: int = ACK
    ack: int = 5
    tsval: int = 1
    protocol: int = TCP
    payload: bytes = b""
    flow: int = 0
    is_cut: bool = False
    """Its options are missing."""


def records(packets: Sequence[Sent]) -> tuple[np.ndarray, np.ndarray]:
    """PACKET[n], all from orig, and the data of their chunk."""
    made = rooms.zeros(len(packets), layout.PACKET)
    made["ip_version"], made["tcp_analyzable"], made["from_orig"], made["vlan"] = 4, 1, 1, -1
    data = bytearray()
    started: set[int] = set()
    for record, p in zip(made, packets, strict=True):
        for name in ("ts", "ip_id", "protocol", "flow", "tsval"):
            record[name] = getattr(p, name)
        record["tcp_seq"], record["payload_length"] = p.seq % (1 << 32), p.length
        record["ttl"], record["tcp_flags"], record["tcp_ack"] = 64 - p.look, p.flags, p.ack
        if p.is_cut:
            record["tcp_analyzable"], record["tsval"] = layout.TCP_CUT, 0
        record["payload_offset"], record["payload_captured"] = len(data), len(p.payload)
        record["starts_flow"] = layout.STARTS_AFRESH if p.flow not in started else layout.STARTS_NOTHING
        started.add(p.flow)
        data += p.payload
    return made, np.frombuffer(bytes(data), np.uint8)


def marked(packets: Sequence[Sent], point: int = POINT_UNNAMED, chunk: int = 1000) -> list[bool]:
    made, data = records(packets)
    copies = Copies()
    slots = 1 + max(p.flow for p in packets)
    points = np.array([point], np.int64)
    count = sum(copies.mark(data, made[at : at + chunk], points, slots) for at in range(0, len(made), chunk))
    assert count == made["is_copy"].sum()
    return [bool(is_copy) for is_copy in made["is_copy"]]


def originals(packets: Sequence[Sent], point: int = POINT_UNNAMED) -> list[int]:
    return [place for place, is_copy in enumerate(marked(packets, point)) if not is_copy]


# --- a side of a connection, at points that are passed one after the other -----------------------------------


@dataclass
class Point:
    """What a packet looks like there, and of how many TCP segments it is at most."""

    look: int
    most: int
    delay: int
    is_cut: bool = False
    """The snap length leaves no TCP options there, as in a tunnel."""


def sender(random_: random.Random, has_ids: bool) -> list[tuple[Sent, bool]]:
    """Packets of one side in order, as they leave it, and whether each is a retransmission."""
    now, ip_id, seq = 10**18, random_.randrange(60000), random_.choice((0, (1 << 32) - 5000))
    packets = [(Sent(now, seq - 1, 0, ip_id if has_ids else 0, flags=SYN), False)]
    sizes = []
    for _ in range(random_.randrange(5, 60)):
        resent = len(sizes) > 0 and random_.random() < 0.2
        now += random_.choice((100, 700) if resent else (2, 20, 700)) * MICROSECOND
        ip_id = (ip_id + 1) % 60000 + 1
        tsval = now // MILLISECOND % (1 << 32)
        if resent:
            begin, size = random_.choice(sizes[-4:])
            length = random_.choice((min(size, SEGMENT), size))
            packets.append((Sent(now, begin, length, ip_id if has_ids else 0, tsval=tsval), True))
        elif random_.random() < 0.1:
            packets.append((Sent(now, seq, 0, ip_id if has_ids else 0, tsval=tsval, ack=7), False))
            length = 0
        else:
            length = random_.choice((10, SEGMENT, 3 * SEGMENT, 3 * SEGMENT + 70, 20 * SEGMENT))
            packets.append((Sent(now, seq, length, ip_id if has_ids else 0, tsval=tsval), False))
            sizes.append((seq, length))
            seq += length
        ip_id += length // SEGMENT
    return packets


def cut(p: Sent, most: int) -> list[Sent]:
    """As GSO does: ids go up by one for each TCP segment."""
    step = most * SEGMENT
    return [
        replace(p, seq=p.seq + at, length=min(step, p.length - at), ip_id=p.ip_id + at // SEGMENT if p.ip_id else 0)
        for at in range(0, max(p.length, 1), step)
    ]


def captured(random_: random.Random, packets: Sequence[tuple[Sent, bool]], points: Sequence[Point]) -> list[Sent]:
    """What a capture of all of these points shows."""
    shown: list[tuple[int, int, Sent]] = []
    for p, _ in packets:
        at = p.ts
        for place, point in enumerate(points):
            for piece in cut(p, point.most):
                shown.append((at, place, replace(piece, ts=at, look=point.look, is_cut=point.is_cut)))
            at += point.delay
    order = sorted(range(len(shown)), key=lambda k: (shown[k][0], shown[k][1], k))
    return [shown[k][2] for k in order]


@pytest.mark.parametrize("has_ids", [True, False], ids=["ids", "no-ids"])
@pytest.mark.parametrize(
    ("looks", "cut_at"),
    [
        ((0, 1, 2), ()),
        ((0, 0), ()),
        ((0, 0, 1, 2, 2), ()),
        ((0, 1, 1), ()),
        ((0, 0, 0), ()),
        ((0, 0, 1, 2), (2,)),
        ((0, 1, 1), (0,)),
    ],
    ids=["router", "mirror", "bridges", "bridge-last", "thrice", "to-tunnel", "from-tunnel"],
)
def test_what_was_sent_remains_however_often_it_passed(
    looks: tuple[int, ...], cut_at: tuple[int, ...], has_ids: bool
) -> None:
    """Retransmissions within the same millisecond, too; later points cut smaller."""
    for seed in range(ROUNDS):
        random_ = random.Random(seed)
        packets = sender(random_, has_ids)
        mosts = sorted((random_.choice((1, 3, 50)) for _ in looks), reverse=True)
        mosts[0] = 50
        delays = [random_.choice((0, 1, 10)) * MICROSECOND for _ in looks]
        points = [Point(*each, look in cut_at) for *each, look in zip(looks, mosts, delays, looks, strict=True)]
        shown = captured(random_, packets, points)
        left = [shown[place] for place in originals(shown)]
        expected = [(p.seq, p.length, p.tsval) for p, _ in packets]
        assert [(p.seq, p.length, p.tsval) for p in left] == expected, (seed, cut_at)


@pytest.mark.parametrize("point", [POINT_MIXED, POINT_UNNAMED], ids=["mixed", "unnamed"])
def test_copies_are_those_of_the_naive_twin(point: int) -> None:
    """Whatever comes: few ids, looks, sequence numbers and times, so that many agree by chance."""
    for seed in range(ROUNDS):
        random_ = random.Random(seed)
        now, packets = 10**18, []
        for _ in range(random_.randrange(2, 120)):
            now += random_.choice((0, 1000, 15 * MILLISECOND, 101 * MILLISECOND)) if random_.random() < 0.3 else 10
            packets.append(
                Sent(
                    now,
                    random_.choice((0, 500, 1000, 1500, 2000)),
                    random_.choice((0, 10, 500, 1000, 2000)),
                    random_.choice((-1, 0, 0, 7, 8, 9)),
                    random_.randrange(3),
                    random_.choice((ACK, ACK, ACK, SYN, ACK | FIN)),
                    random_.choice((5, 6)),
                    random_.choice((1, 1, 2)),
                    random_.choice((TCP, TCP, TCP, UDP, layout.SCTP)),
                    random_.choice((b"", b"x", b"x" * 70)),
                    random_.randrange(2),
                    random_.random() < 0.2,
                )
            )
        made, data = records(packets)
        assert marked(packets, point) == naive_copies.copies(made, data.tobytes(), point == POINT_MIXED), seed
        assert marked(packets, point) == marked(packets, point, chunk=3)


# --- cases -----------------------------------------------------------------------------------------------------------


def twice(p: Sent, look: int = 0) -> list[Sent]:
    return [p, replace(p, ts=p.ts + MICROSECOND, look=look)]


def test_a_point_with_a_name_has_no_copies() -> None:
    assert originals(twice(Sent(0, 1, 100, 7), look=1), POINT_NAMED) == [0, 1]


def test_segments_that_were_joined_again_are_copies() -> None:
    pieces = [Sent(k, k * SEGMENT, SEGMENT, 10 + k) for k in range(20)]
    assert originals([*pieces, Sent(50, 0, 20 * SEGMENT, 10, look=1)]) == list(range(20))
    no_ids = [replace(p, ip_id=0) for p in pieces]
    assert originals([*no_ids, Sent(50, 0, 20 * SEGMENT, 0, look=1)]) == list(range(20))


def test_what_was_joined_with_something_new_is_no_copy() -> None:
    assert originals([Sent(0, 0, SEGMENT, 10), Sent(1, 0, 2 * SEGMENT, 10, look=1)]) == [0, 1]


def test_a_retransmission_of_a_part_has_an_id_too_far_away() -> None:
    whole = Sent(0, 0, 20 * SEGMENT, 100)
    part = Sent(50, 5 * SEGMENT, SEGMENT, 105, look=1)
    assert originals([whole, part]) == [0]
    assert originals([whole, replace(part, ip_id=120)]) == [0, 1]
    assert originals([whole, replace(part, seq=14 * SEGMENT, ip_id=128)]) == [0, 1]  # as of cuts half as long
    last = Sent(50, 19 * SEGMENT, 300, 119, look=1)
    whole = replace(whole, length=19 * SEGMENT + 300)
    assert originals([whole, last]) == [0]
    assert originals([whole, replace(last, ip_id=123)]) == [0, 1]
    assert originals([whole, replace(last, ip_id=138)]) == [0, 1]


def test_duplicate_acks_are_as_many_as_were_sent() -> None:
    acks = [Sent(k * 10, 1, 0, 0, ack=9) for k in range(3)]
    assert originals([p for ack in acks for p in twice(ack, look=1)]) == [0, 2, 4]
    assert originals([*twice(Sent(-90, 1, 0, 0, flags=SYN)), *(p for ack in acks for p in twice(ack))]) == [0, 2, 4, 6]
    with_ids = [replace(ack, ip_id=50 + k) for k, ack in enumerate(acks)]
    assert originals([p for ack in with_ids for p in twice(ack, look=1)]) == [0, 2, 4]


def test_a_handshake_tells_that_each_packet_comes_twice() -> None:
    syn, first = Sent(0, 1, 0, 0, flags=SYN), Sent(10_000, 2, 100, 0)
    assert originals([*twice(syn), *twice(first), *twice(replace(first, ts=50_000))]) == [0, 2, 4]
    assert originals([syn, *twice(first)]) == [0, 1, 2]


def test_a_syn_that_is_sent_again_counts() -> None:
    again = Sent(1000 * MILLISECOND, 1, 0, 0, flags=SYN)
    assert originals([*twice(Sent(0, 1, 0, 0, flags=SYN)), *twice(again)]) == [0, 2]


def test_the_networks_own_duplicate_is_no_copy_where_such_are_rare() -> None:
    many = [Sent(k * 100, k * 100, 100, k + 1) for k in range(40)]
    duplicate = replace(many[30], ts=many[30].ts + 10)
    assert originals([*many[:31], duplicate, *many[31:]], POINT_UNNAMED) == list(range(41))
    assert originals([*many[:31], duplicate, *many[31:]], POINT_MIXED) == [k for k in range(41) if k != 31]


def test_datagrams_without_ids_are_compared_by_their_payload() -> None:
    question = Sent(0, 0, 30, 0, protocol=UDP, payload=b"A" * 30, ack=0)
    other = replace(question, ts=500, payload=b"B" * 30)
    assert originals([*twice(question), *twice(other)], POINT_MIXED) == [0, 2]
    assert originals([*twice(question, look=1), *twice(other, look=1)], POINT_UNNAMED) == [0, 2]
    # One interface, of which nothing says that it shows packets twice.
    syns = [Sent(0, k, 0, k + 1, flags=SYN, flow=k) for k in range(1, 9)]
    assert originals([*syns, *twice(question)], POINT_UNNAMED) == list(range(10))
    bare = replace(question, payload=b"")
    assert originals(twice(bare), POINT_MIXED) == [0, 1]
    assert originals(twice(bare, look=1), POINT_MIXED) == [0]


def test_datagrams_of_which_too_little_was_captured_are_not_compared() -> None:
    """As of a tunnel's, whose first bytes are all the same: two of them at once don't tell that each comes twice."""
    now, shown = 0, []
    for number in range(40):
        now += MICROSECOND if number % 2 else MILLISECOND
        shown.append(Sent(now, 0, 130, 0, protocol=UDP, payload=b"\x08\0"))
    assert originals(shown, POINT_MIXED) == list(range(40))


def test_what_is_alike_for_a_long_time_is_counted_on() -> None:
    """Many at once, then a few at a time: of either look as many. They can't be told apart but by that."""
    now, shown, many = 0, [], 70_000 if ROUNDS == 40 else 300
    for number in range(many):
        now += MICROSECOND if number < 50 or number > 200 else 9 * MILLISECOND
        shown += [Sent(now, 0, 30, 0, protocol=UDP), Sent(now + 300, 0, 30, 0, look=1, protocol=UDP)]
    assert originals(shown, POINT_MIXED) == list(range(0, 2 * many, 2))


def test_what_is_sent_again_much_later_is_told_by_its_time_where_a_tunnel_shows_none() -> None:
    """However much came in between: twice at the bridge, once in the tunnel."""

    def passes(p: Sent) -> list[Sent]:
        looks = ((0, False), (0, False), (1, False), (2, True))
        return [replace(p, ts=p.ts + at, look=look, is_cut=is_cut) for at, (look, is_cut) in enumerate(looks)]

    flight = [Sent(k * 20 * MICROSECOND, k * SEGMENT, SEGMENT, 0, tsval=1 + k // 50) for k in range(800)]
    again = [replace(flight[0], ts=flight[k].ts + 10, tsval=flight[k].tsval) for k in (100, 200, 799)]
    sent = sorted([*flight, *again], key=lambda p: p.ts)
    left = [passed for p in sent for passed in passes(p)]
    assert originals(left) == list(range(0, 4 * len(sent), 4))


def test_what_comes_later_is_no_copy() -> None:
    assert originals([Sent(0, 1, 100, 7), Sent(100 * MILLISECOND, 1, 100, 7, look=1)]) == [0, 1]


def test_the_ports_next_connection_knows_nothing_of_the_one_before() -> None:
    made, data = records(twice(Sent(0, 1, 0, 7, flags=SYN)))
    made["starts_flow"] = layout.STARTS_AFRESH
    assert Copies().mark(data, made, np.array([POINT_MIXED]), 1) == 0
