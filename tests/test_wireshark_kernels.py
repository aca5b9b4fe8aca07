"""The kernel behind wireshark_kind against its naive twin, on random and on nasty TCP conversations.

The twin itself is held against tshark's answers in test_oracle_tshark.py.
"""

from __future__ import annotations

import os
import random
from collections import Counter

import numpy as np
import pytest

from analysis import layout
from analysis.flows_kernels import SLOT
from analysis.wireshark_kernels import STREAM_SIDE, judge
from tests import naive_wireshark, oracle
from tests.naive_wireshark import ACK, FIN, RST, SYN, TcpPacket

pytestmark = pytest.mark.kernel

CONVERSATIONS = 400 if os.environ.get("NUMBA_DISABLE_JIT", "0") != "1" else 40


def kernel_kinds(packets: list[TcpPacket]) -> list[str | None]:
    records = np.zeros(len(packets), layout.PACKET)
    streams = {packet.stream: number for number, packet in enumerate(packets)}
    numbers = {stream: place for place, stream in enumerate(streams)}
    slots = np.zeros(len(numbers), SLOT)
    slots["head"] = np.arange(len(slots))
    for record, packet in zip(records, packets, strict=True):
        record["protocol"], record["tcp_analyzable"] = layout.TCP, 1
        record["flow"], record["from_a"] = numbers[packet.stream], packet.forward
        record["ts"], record["tcp_seq"], record["tcp_ack"] = packet.ts, packet.seq, packet.ack
        record["payload_length"], record["tcp_flags"], record["tcp_window"] = packet.length, packet.flags, packet.window
    kinds = np.full(len(packets), 99, np.uint8)
    judge(records, slots, np.zeros(2 * len(slots), STREAM_SIDE), kinds)
    return [layout.WIRESHARK_KIND_NAMES[kind] or None for kind in kinds]


def naive_kinds(packets: list[TcpPacket]) -> list[str | None]:
    return [naive_wireshark.kind(flags) for flags in naive_wireshark.analyze(packets)]


def conversation(random_: random.Random, stream: int) -> list[TcpPacket]:
    """Packets around a few sequence numbers, so that every rule is met; often near the wrap at 2^32 or 2^31 apart."""
    bases = [random_.choice((0, 1, 1000, (1 << 31) - 5, (1 << 32) - 5, random_.randrange(1 << 32))) for _ in range(2)]
    sent = [0, 0]
    now = random_.choice((0, 10**18))
    packets = []
    for _ in range(random_.randrange(2, 60)):
        forward = random_.random() < 0.6
        me, you = int(forward), int(not forward)
        now += random_.choice((0, 1000, 10**6, 4 * 10**6, 19 * 10**6, 20 * 10**6, 10**9, -(10**6)))
        length = random_.choice((0, 0, 0, 1, 1, 10, 100))
        flags = random_.choice((ACK, ACK, ACK, ACK, ACK, ACK | FIN, SYN, SYN | ACK, RST, RST | ACK, 0))
        step = random_.choice((0, 0, 0, 0, -1, -1, -10, -100, 10, 1 << 31, -length))
        ack = sent[you] + random_.choice((0, 0, 0, -10, 10))
        packets.append(
            TcpPacket(
                stream,
                forward,
                max(now, 0),
                (bases[me] + sent[me] + step) % (1 << 32),
                (bases[you] + ack) % (1 << 32) if random_.random() < 0.97 else 0,
                length,
                flags,
                random_.choice((0, 100, 100, 100, 200)),
                random_.choice((None, 0, 7)),
            )
        )
        if step >= 0:
            sent[me] += length + bool(flags & (SYN | FIN))
    return packets


def test_random_conversations_are_judged_as_by_the_naive_twin() -> None:
    random_ = random.Random(1)
    seen: Counter[str | None] = Counter()
    for number in range(CONVERSATIONS):
        packets = conversation(random_, number)
        expected = naive_kinds(packets)
        seen.update(expected)
        for place, (ours, twin) in enumerate(zip(kernel_kinds(packets), expected, strict=True)):
            assert ours == twin, f"packet {place} of {packets[: place + 1]}"
    assert seen.keys() == {None, *naive_wireshark.KINDS}


def test_streams_do_not_disturb_each_other() -> None:
    random_ = random.Random(2)
    packets = [packet for number in range(10) for packet in conversation(random_, number)]
    random_.shuffle(packets)
    assert kernel_kinds(packets) == naive_kinds(packets)


@oracle.needs_captures
@pytest.mark.parametrize("capture", ["tcp/wireshark__tcp-badsegments.pcap", "corrupt/zeek__fuzz-72.pcap"])
def test_the_naive_twin_says_what_tshark_says(capture: str) -> None:
    """Enough here to trust the twin by itself: window scaling, which the captures' fields lack, decides no kind."""
    frames = [frame for frame in oracle.frames(capture) if oracle.is_plain(frame, "tcp")]
    packets = [
        TcpPacket(
            frame["tcp.stream"],
            frame["tcp.srcport"] == frames[0]["tcp.srcport"],
            oracle.nanoseconds(frame["frame.time_epoch"]),
            int(frame["tcp.seq_raw"]),
            int(frame["tcp.ack_raw"]),
            int(frame["tcp.len"]),
            int(frame["tcp.flags"], 16),
            int(frame["tcp.window_size_value"]),
        )
        for frame in frames
    ]
    expected = [next((k for k in naive_wireshark.KINDS if f[f"tcp.analysis.{k}"]), None) for f in frames]
    assert naive_kinds(packets) == expected
