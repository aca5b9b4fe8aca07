"""The kernels of stitching equal their naive twins."""

from __future__ import annotations

import numpy as np
import pytest

from analysis import losses_kernels, sightings_kernels
from analysis.flow_facts import FLOW_FACTS
from analysis.layout import DIRECTION_IN, DIRECTION_OUT, DIRECTION_UNKNOWN
from analysis.losses import EVENT, EVENT_WAY, FLOW_CLOCK, SEND, events_of
from analysis.paths import SEEN, STEP, by_packet, paths
from analysis.sightings import CARRIED, SIGHTING
from tests import naive_stitch as naive

pytestmark = pytest.mark.kernel
SEEDS = range(12)
_MORE = ("orig_ttl", "resp_ttl", "ways", "numbered")


def near(choice: np.random.Generator, count: int) -> np.ndarray:
    """Sequence numbers around 0."""
    return ((2**32 - 6 + choice.integers(0, 12, count)) % 2**32).astype(np.uint32)


def flows_and_columns(choice: np.random.Generator) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A few flows, and packets of theirs and of none, whose numbers are often the same."""
    flows = np.zeros(int(choice.integers(1, 6)), FLOW_FACTS)
    flows["protocol"] = choice.choice([6, 17, 1], len(flows))
    flows["mask"] = choice.choice([-1, 0, 1, 7], len(flows))
    flows["orig_port"] = choice.integers(1, 3, len(flows))
    flows["resp_port"] = choice.integers(0, 3, len(flows))
    flows["resp"] = 1
    for name in ("orig_syn", "resp_syn", "orig_first", "resp_first", "orig_row", "resp_row"):
        flows[name] = -1
    count = 60
    columns = {
        "flow": choice.integers(-1, len(flows), count).astype(np.int32),
        "source": choice.integers(0, 2, count).astype(np.int32),
        "ts": np.sort(choice.integers(0, 1000, count)),
        "src_port": choice.integers(0, 3, count).astype(np.uint16),
        "flags": choice.choice([16, 24, 2, 18, 17, 4, 0], count).astype(np.uint16),
        "seq": near(choice, count),
        **{name: choice.integers(0, 3, count).astype(np.uint32) for name in ("ack", "tsval", "payload", "ip_id")},
        "ttl": choice.integers(60, 64, count).astype(np.uint8),
        "direction": choice.integers(-1, 2, count).astype(np.int32),
    }
    return flows, columns


@pytest.mark.parametrize("seed", SEEDS)
def test_packets_are_chosen(seed: int) -> None:
    choice = np.random.default_rng(seed)
    flows, columns = flows_and_columns(choice)
    resent = near(choice, 3)
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    packets = [dict(zip(columns, row, strict=True)) for row in rows]
    directions = np.array([DIRECTION_OUT, DIRECTION_IN, DIRECTION_UNKNOWN], np.uint8)
    for packet in packets:
        packet["direction"] = int(directions[packet["direction"]])
    expected, expected_carried, syns, datagrams = naive.sample(packets, 1000, flows, resent.tolist())
    buckets = np.zeros(1 << 16, np.bool_)
    buckets[resent >> 16] = True
    seen, carried = np.empty(60, SIGHTING), np.empty(60, CARRIED)
    with np.errstate(over="ignore"):
        counts = sightings_kernels.sample(*columns.values(), directions, 1000, flows, buckets, seen, carried)
    found = seen[: counts[0]][["key", "ts", "row", "flow", "sender", "decisive"]]
    assert [tuple(row.tolist()) for row in found] == expected
    told = carried[: counts[1]][["ts", "flow", "seq", "length", "sender"]].tolist()
    assert set(expected_carried) <= set(told)  # a bucket holds more than one number
    high = {number >> 16 for number in resent.tolist()}
    assert all(high & {(seq + k) % 2**32 >> 16 for k in range(length)} for _, _, seq, length, _ in told)
    assert flows[["orig_syn", "resp_syn"]].tolist() == [tuple(pair) for pair in syns]
    noted = flows[["orig_shape", "resp_shape", "orig_first", "resp_first", "orig_row", "resp_row", *_MORE]]
    assert noted.tolist() == [tuple(each) for each in datagrams]


@pytest.mark.parametrize("seed", SEEDS)
def test_questions_are_added_up(seed: int) -> None:
    choice = np.random.default_rng(seed)
    flows = np.zeros(3, FLOW_FACTS)
    asked = choice.integers(0, 3, (20, 4))
    with np.errstate(over="ignore"):
        sightings_kernels.ask(*(column.copy() for column in asked.T), flows)
    sums = [0] * len(flows)
    for flow, trans_id, name, type_ in asked.tolist():
        sums[flow] += naive.mixed(naive.mixed(trans_id, name), type_)
    assert flows["questions"].tolist() == [each & naive.MASK for each in sums]


@pytest.mark.parametrize("seed", SEEDS)
def test_flows_are_united(seed: int) -> None:
    choice = np.random.default_rng(seed)
    count = 12
    side = choice.integers(0, 2, count)  # so that no tie contradicts another
    pairs = choice.integers(0, count, (int(choice.integers(0, 14)), 2))
    opposite = (side[pairs[:, 0]] ^ side[pairs[:, 1]]).astype(np.uint8)
    parents, flips = np.arange(count), np.zeros(count, np.uint8)
    sightings_kernels.unite(parents, flips, pairs[:, 0].copy(), pairs[:, 1].copy(), opposite)
    ties = [(int(a), int(b), int(o)) for (a, b), o in zip(pairs, opposite, strict=True)]
    assert list(zip(parents.tolist(), flips.tolist(), strict=True)) == naive.unite(count, ties)


@pytest.mark.parametrize("seed", SEEDS)
def test_points_are_ordered(seed: int) -> None:
    choice = np.random.default_rng(seed)
    rows = []
    for packet in range(12):
        flows = choice.permutation(6)[: choice.integers(2, 6)]
        delays = np.sort(choice.integers(0, 50, len(flows)))
        rows += [
            (packet // 4, 0, 100 * packet + d, k, f, packet) for k, (f, d) in enumerate(zip(flows, delays, strict=True))
        ]
    seen = by_packet(
        np.array(rows, [(name, SEEN[name]) for name in ("way", "key", "ts", "row", "flow", "packet")]).astype(SEEN)
    )
    found = paths(seen)
    assert found[["way", "flow", "position"]].tolist() == naive.order(seen)


@pytest.mark.parametrize("seed", SEEDS)
def test_sends_are_found(seed: int) -> None:
    choice = np.random.default_rng(seed)
    number = 8
    sender_flow = np.zeros(4, np.int64)
    way, times = choice.integers(0, 2, number), np.arange(number)
    events, ways = events_of(way, times, np.full(number, 1), near(choice, number), times, sender_flow)
    carried = np.zeros(60, CARRIED)
    carried["flow"], carried["sender"] = choice.integers(0, 4, 60), choice.integers(0, 2, 60)
    carried["seq"], carried["length"], carried["ts"] = near(choice, 60), choice.integers(1, 4, 60), np.arange(60)
    flow_ways = choice.integers(-1, len(ways), (4, 2)).astype(np.int32)
    room = np.empty(2000, SEND)
    found = room[: losses_kernels.find(carried, flow_ways, ways, events, room)]
    assert sorted(found.tolist()) == sorted(naive.find(carried, flow_ways, events))
    if len(found):
        assert losses_kernels.find(carried, flow_ways, ways, events, room[: len(found) - 1]) == -1


@pytest.mark.parametrize("seed", range(40))
def test_losses_are_located(seed: int) -> None:
    """Three sends of one byte, each of which goes so far, and may arrive after the next was sent."""
    choice = np.random.default_rng(seed)
    path = choice.permutation(5)[: choice.integers(1, 6)].astype(np.int32)
    nearest = int(path[choice.integers(0, len(path))])
    ways = np.zeros(1, EVENT_WAY)
    ways["flow"], ways["last_point"] = nearest, len(path)
    points = np.zeros(len(path), STEP)
    points["flow"] = path
    times = [100, 200, 300]
    events = np.zeros(2, EVENT)
    events["ts"], events["previous_ts"] = times[1:], [100 if choice.random() < 0.8 else naive.NEVER, 200]
    sends = []
    for ts in times:
        for hop in range(int(choice.integers(0, len(path) + 1))):
            if choice.random() < 0.9 or path[hop] == nearest:
                sends.append((int(path[hop]), ts + hop * int(choice.integers(-30, 80))))
    sends = [each for each in sends if each[0] != nearest] + [(nearest, ts) for ts in times]
    sends.sort(key=lambda each: each[1])
    of_both = [(event, flow, ts) for event in (0, 1) for flow, ts in sends]
    clocks = np.zeros(5, FLOW_CLOCK)
    clocks["last_seen"], clocks["node"] = choice.integers(0, 500, 5), choice.integers(0, 2, 5)
    clocks["bound"] = choice.integers(0, 2, 2)[clocks["node"]] * 30
    found = np.empty((2, 4), np.int32)
    rows = np.zeros(len(of_both), SEND)
    rows[["event", "flow", "ts"]] = of_both
    starts = np.array([0, len(sends), 2 * len(sends)])
    times, came = np.full((3, len(sends) + 1), -1), np.full((2, len(sends) + 1), True)
    losses_kernels.locate(events, ways, points, clocks, rows, starts, found, times, came)
    assert found.tolist() == naive.locate(events, ways, [path.tolist()], clocks, of_both)


def test_what_is_still_under_way_when_its_byte_is_sent_again_is_no_loss_of_what_follows() -> None:
    """The first and the third send are lost behind the first point. The second passes the last two around the third."""
    points = np.zeros(4, STEP)
    points["flow"] = range(4)
    ways = np.zeros(1, EVENT_WAY)
    ways["last_point"] = 4
    events = np.zeros(1, EVENT)
    events["ts"], events["previous_ts"] = 300, 200
    rows = np.zeros(6, SEND)
    rows["flow"] = [0, 0, 1, 2, 0, 3]
    rows["ts"] = [100, 200, 210, 290, 300, 320]
    found = np.empty((1, 4), np.int32)
    clocks = np.zeros(4, FLOW_CLOCK)
    clocks["last_seen"] = 1000
    times, came = np.empty((3, 7), np.int64), np.empty((2, 7), np.bool_)
    losses_kernels.locate(events, ways, points, clocks, rows, np.array([0, 6]), found, times, came)
    assert found.tolist() == [[3, -1, 0, 1]]
