"""Kinds of retransmissions: the kernel against its naive twin, on random conversations with all sorts of trouble."""

from __future__ import annotations

import os
import random
import struct
from collections import Counter

import numpy as np
import pytest

from analysis import layout
from analysis.flows_kernels import SLOT
from analysis.retransmits import Retransmits
from tests import naive_retransmits
from tests.naive_retransmits import ACK, FIN, MILLISECOND, RST, SECOND, SYN, Packet

pytestmark = pytest.mark.kernel

CONVERSATIONS = 2000 if os.environ.get("NUMBA_DISABLE_JIT", "0") != "1" else 100
WRAP = 1 << 32
TIMES = (
    1000, MILLISECOND, 4 * MILLISECOND, 10 * MILLISECOND, 21 * MILLISECOND, 190 * MILLISECOND, 230 * MILLISECOND,
    450 * MILLISECOND, SECOND, 3 * SECOND,
)  # fmt: skip


def verdicts(packets: list[Packet], bases: tuple[int, int], chunk: int) -> list[tuple[object, ...]]:
    """(kind, evidence, delay, attempt, new bytes, missed bytes) of each packet."""
    made = np.zeros(len(packets), layout.PACKET)
    data = bytearray(1)
    for record, p in zip(made, packets, strict=True):
        mine, yours = bases if p.from_orig else bases[::-1]
        record["protocol"], record["tcp_analyzable"], record["has_ports"], record["ip_version"] = layout.TCP, 1, 1, 4
        record["ts"], record["from_orig"], record["from_a"] = p.ts, p.from_orig, p.from_orig
        record["tcp_seq"], record["tcp_ack"] = (p.seq + mine) % WRAP, (p.ack + yours) % WRAP
        record["payload_length"], record["tcp_flags"], record["tcp_window"] = p.length, p.flags, p.window
        record["ip_id"], record["tcp_window_scale"], record["ip_length"] = p.ip_id, 255, 40 + p.length
        record["has_timestamps"], record["tsval"] = p.tsval is not None, p.tsval or 0
        record["ip_header_length"] = 20
        record["sack_offset"], record["sack_blocks"] = len(data), len(p.sack)
        for left, right in p.sack:
            data += struct.pack("!II", (left + yours) % WRAP, (right + yours) % WRAP)
    made["frame_number"] = np.arange(1, len(made) + 1)
    made["starts_flow"][0] = layout.STARTS_AFRESH
    retransmits, found = Retransmits(), np.zeros(len(made), layout.VERDICT)
    for begin in range(0, len(made), chunk):
        part = slice(begin, begin + chunk)
        found[part] = retransmits.feed(np.frombuffer(bytes(data), np.uint8).copy(), made[part], np.zeros(1, SLOT))
    result: list[tuple[object, ...]] = [
        ("", 0, None, None, *row) for row in found[["new_bytes", "missed_bytes"]].tolist()
    ]
    for event in retransmits.rows():
        kind, number = int(event["kind"]), int(event["frame_number"]) - 1
        if kind and kind != layout.KIND_CAPTURE_GAP:
            evidence = int(event["evidence"]) & ~layout.EVIDENCE_DSACK  # a later packet may add that
            known = event["original_segment"] >= 0
            delay, attempt = (int(event["delay"]), int(event["attempt"])) if known else (None, None)
            result[number] = (layout.KIND_NAMES[kind], evidence, delay, attempt, *result[number][4:])
    return result


def twins(packets: list[Packet]) -> list[tuple[object, ...]]:
    bits = {name: 1 << bit for bit, name in enumerate(layout.EVIDENCE_NAMES)}
    probes = {"keep_alive": bits["timer"], "zero_window_probe": bits["peer_window"]}
    return [
        (
            v.kind, probes.get(v.kind, sum(bits[name] for name in v.evidence)), v.delay, v.attempt, v.new_bytes,
            v.missed_bytes,
        )
        for v in naive_retransmits.judge(packets)
    ]  # fmt: skip


def conversation(random_: random.Random) -> list[Packet]:
    """One side mostly sends, the other mostly acknowledges; what comes is old, new, lost, late, doubled."""
    now, sent, acked, stamp, ip_id = SECOND, [0, 0], [0, 0], 100, 1000
    stamps, ids, packets = random_.random() < 0.5, random_.random() < 0.5, []
    if random_.random() < 0.7:
        syns = [Packet(now + again * SECOND, True, 0, 0, 0, SYN) for again in range(random_.choice((1, 1, 2, 3)))]
        now = syns[-1].ts + MILLISECOND
        packets += [*syns, Packet(now, False, 0, 1, 0, SYN | ACK)]
        sent = [1, 1]
    for _ in range(random_.randrange(3, 50)):
        now += random_.choice(TIMES)
        stamp, ip_id = stamp + random_.choice((0, 1, 5)), (ip_id + 1) % (1 << 16)
        from_orig = random_.random() < 0.6
        me, you = int(not from_orig), int(from_orig)
        length = random_.choice((1, 10, 100, 300)) if random_.random() < (0.8 if from_orig else 0.1) else 0
        back = random_.choice((0, 0, 0, 0, 0, 1, 10, 100, 100, 110, 300)) if length or random_.random() < 0.3 else 0
        jump = random_.choice((0, 0, 0, 0, 0, 0, 10, 100)) if length else 0
        seq = max(sent[me] - back, 0) + jump
        acked[you] = max(acked[you], sent[you] - random_.choice((0, 0, 10, 100, 300)), 0)
        ack = acked[you] + (random_.choice((1, 50)) if random_.random() < 0.03 else 0)
        flags = ACK | (random_.choice((FIN, RST, SYN)) if random_.random() < 0.05 else 0)
        sack = ((ack + 10, ack + 20),) if random_.random() < 0.1 else ()
        if sack and random_.random() < 0.4:
            sack = ((max(ack - 10, 0), ack), (ack + 10, ack + 30))
        packet = Packet(
            now, from_orig, seq, ack, length, flags, random_.choice((0, 500, 500, 500, 500, 500)),
            stamp - random_.choice((0, 0, 3)) if stamps else None, ip_id if ids else 0, sack,
        )  # fmt: skip
        sent[me] = max(sent[me], packet.end)
        packets += [packet] * random_.choice((1, 1, 1, 1, 1, 1, 1, 1, 2))
    return packets


def test_random_trouble_is_judged_as_by_the_naive_twin() -> None:
    random_ = random.Random(1)
    seen: Counter[object] = Counter()
    for _ in range(CONVERSATIONS):
        packets = conversation(random_)
        bases = (random_.choice((0, WRAP - 50, WRAP // 2)), random_.randrange(WRAP))
        ours, expected = verdicts(packets, bases, random_.choice((1, 7, 1000))), twins(packets)
        for place, (mine, twin) in enumerate(zip(ours, expected, strict=True)):
            assert mine == twin, f"packet {place} of {packets[: place + 1]}"
        seen.update(verdict[0] for verdict in expected)
    if CONVERSATIONS > 1000:
        assert seen.keys() == set(layout.KIND_NAMES) - {"capture_gap"}
