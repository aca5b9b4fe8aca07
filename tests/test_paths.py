"""Which packets tell a path, and the hops that they take: by hand, of two packets or three."""

from __future__ import annotations

from typing import Any

import numpy as np

from analysis.paths import SEEN, hops, paths, seen_packets
from analysis.sightings import SIGHTING

NEVER_FLIPPED = np.zeros(3, np.bool_)
ONE_CONNECTION = np.zeros(3, np.int64)


def sightings(*rows: tuple[int, int, int]) -> Any:
    """Of (key, ts, flow), sent by orig, sorted by key and ts."""
    made = np.zeros(len(rows), SIGHTING)
    for place, (key, ts, flow) in enumerate(sorted(rows)):
        made[place] = (key, ts, place, flow, 1, 1)
    return made


def told(seen: Any) -> list[tuple[int, ...]]:
    return [(int(row["key"]), int(row["ts"]), int(row["flow"]), int(row["packet"])) for row in seen]


def test_packets_that_several_points_saw_once_each_tell_a_path() -> None:
    rows = sightings((7, 10, 0), (7, 20, 1), (8, 30, 0), (9, 40, 1), (9, 50, 2))
    assert told(seen_packets(rows, ONE_CONNECTION, NEVER_FLIPPED)) == [
        (7, 10, 0, 0),
        (7, 20, 1, 0),
        (9, 40, 1, 1),
        (9, 50, 2, 1),
    ]


def test_what_a_flow_saw_twice_tells_nothing_there() -> None:
    rows = sightings((7, 10, 0), (7, 15, 0), (7, 20, 1), (8, 30, 0), (8, 31, 0), (8, 40, 1), (8, 50, 2))
    assert told(seen_packets(rows, ONE_CONNECTION, NEVER_FLIPPED)) == [(8, 40, 1, 0), (8, 50, 2, 0)]


def test_a_packet_takes_its_hops_in_the_order_of_the_path_whatever_the_clocks_say() -> None:
    seen = np.zeros(4, SEEN)
    seen["way"] = 1
    seen["flow"], seen["ts"], seen["packet"] = [0, 1, 1, 0], [10, 13, 20, 21], [0, 0, 1, 1]
    position = np.array([[1 << 20, 0], [1 << 20, 1], [1 << 20, 1 << 20]])
    assert hops(seen, position)[["flow", "next_flow", "latency_ns"]].tolist() == [(0, 1, 3), (0, 1, -1)]


def test_points_that_saw_none_of_the_same_packets_follow_each_other_by_their_first_ones() -> None:
    seen = np.zeros(4, SEEN)
    seen["flow"], seen["ts"], seen["packet"] = [2, 3, 0, 1], [100, 110, 50, 60], [0, 0, 1, 1]
    assert [step["flow"] for step in paths(seen)] == [0, 1, 2, 3]
