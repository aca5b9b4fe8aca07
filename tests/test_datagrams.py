"""Which flows of datagrams without an IP id are the two sides of a NAT, and which might be but are not told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from analysis.connections import connections_of
from analysis.sightings import FLOW_FACTS, SIGHTING

CLIENT, OTHER, VIP, VIP2, POD, POD2, NODE, OUTSIDE = range(8)
VETH, BRIDGE, UPLINK, OTHER_VETH = range(4)
CAME_IN, LEFT = 1, 2
MICROSECOND = 1_000
ANSWER = 300 * MICROSECOND


def flow(
    point: int,
    orig: int,
    resp: int,
    at: int,
    way: int,
    *,
    answer: int | None = ANSWER,
    question: bool = True,
    port: int = 5000,
) -> dict[str, Any]:
    """Question and answer at one point, `at` and `at + answer` microseconds; the answer goes the other way."""
    found: dict[str, Any] = {
        "point": point,
        "orig": orig,
        "resp": resp,
        "orig_port": port,
        "resp_port": 53,
        "protocol": 17,
        "community": hash((frozenset((orig, resp)), port)) & 0xFFFFFF,
        "orig_first": -1,
        "resp_first": -1,
    }
    if question:
        found |= {"orig_shape": 30, "orig_first": at * MICROSECOND, "ways": way}
    if answer is not None:
        found |= {"resp_shape": 60, "resp_first": at * MICROSECOND + answer}
        found["ways"] = found.get("ways", 0) | (3 - way) << 2
    times = [found[name] for name in ("orig_first", "resp_first") if found[name] >= 0]
    return found | {"first_seen": min(times), "last_seen": max(times)}


def joined(*flows: dict[str, Any]) -> list[list[int]]:
    """The flows of each connection, as they were given, of those with several ends."""
    facts = np.zeros(len(flows), FLOW_FACTS)
    facts["orig_syn"] = facts["resp_syn"] = -1
    for number, each in enumerate(flows):
        for name, value in each.items():
            facts[name][number] = value
    order = np.argsort(facts["first_seen"], kind="stable")
    connection, _ = connections_of(facts[order], np.zeros(0, SIGHTING))
    sets: dict[int, list[int]] = {}
    for place, root in enumerate(connection.tolist()):
        sets.setdefault(root, []).append(int(order[place]))
    return sorted(sorted(found) for found in sets.values() if len(found) > 1)


def sent_to(service: int, pod: int, at: int, answer: int | None = ANSWER) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both sides of DNAT, 10 microseconds each way."""
    behind = answer - 20 * MICROSECOND if answer else answer
    return (
        flow(VETH, CLIENT, service, at, CAME_IN, answer=answer),
        flow(UPLINK, CLIENT, pod, at + 10, LEFT, answer=behind),
    )


def sent_by(client: int, port: int, at: int, answer: int | None = ANSWER) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both sides of SNAT."""
    veth = VETH if client == CLIENT else OTHER_VETH
    behind = answer - 20 * MICROSECOND if answer else answer
    return (
        flow(veth, client, OUTSIDE, at, CAME_IN, answer=answer),
        flow(UPLINK, NODE, OUTSIDE, at + 10, LEFT, answer=behind, port=port),
    )


def test_both_sides_of_a_nat_are_one_connection() -> None:
    assert joined(*sent_to(VIP, POD, 0)) == [[0, 1]]
    assert joined(*sent_to(VIP, POD, 0, answer=None)) == [[0, 1]]
    assert joined(*sent_by(CLIENT, 61000, 0)) == [[0, 1]]


def test_a_bridge_that_turns_packets_shows_either_side() -> None:
    before, behind = sent_to(VIP, POD, 0)
    entry = flow(BRIDGE, CLIENT, POD, 5, CAME_IN, answer=None)
    exit_ = flow(BRIDGE, CLIENT, VIP, 0, CAME_IN, answer=ANSWER - 5 * MICROSECOND, question=False)
    assert joined(before, behind, entry, exit_) == [[0, 1, 2, 3]]
    assert joined(before, behind, entry) == [[1, 2]], "answers don't have the first addresses there"
    assert joined(before, behind, exit_) == [[0, 2]], "they do, but questions don't have the others"


@pytest.mark.parametrize(
    "other",
    [
        {"orig_shape": 31},
        {"resp_shape": 61},
        {"questions": 7},
        {"node": 1},
        {"ways": CAME_IN | LEFT << 2},
        {"unnamed": 1},
        {"protocol": 6},
        {"orig_first": -5 * MICROSECOND},
        {"orig_first": 30_000 * MICROSECOND},
        {"resp_first": ANSWER + 5 * MICROSECOND},
        {"last_seen": 30_000 * MICROSECOND},
        {"orig_port": 5001},
    ],
    ids=lambda other: "-".join(other),
)
def test_what_differs_is_another_connection(other: dict[str, int]) -> None:
    before, behind = sent_to(VIP, POD, 0)
    assert joined(before, behind | other) == []


def test_what_passes_unchanged_is_no_image() -> None:
    """Two servers are asked at once; neither is behind a service."""
    flows = [flow(VETH, CLIENT, POD, 0, CAME_IN), flow(UPLINK, CLIENT, POD, 10, LEFT, answer=ANSWER - 20 * MICROSECOND)]
    flows += [flow(VETH, CLIENT, POD2, 5, CAME_IN), flow(UPLINK, CLIENT, POD2, 15, LEFT)]
    assert joined(*flows) == [[0, 1], [2, 3]]
    assert joined(*flows, *sent_to(VIP, OUTSIDE, 2)) == [[0, 1], [2, 3], [4, 5]]


def test_two_servers_asked_at_once_are_told_apart_by_their_order_or_not_at_all() -> None:
    apart = [*sent_to(VIP, POD, 0), *sent_to(VIP2, POD2, 12)]
    assert joined(*apart) == [[0, 1], [2, 3]]
    at_once = [*sent_to(VIP, POD, 0), *sent_to(VIP2, POD2, 1)]
    assert joined(*at_once) == []
    assert joined(*sent_to(VIP, POD, 0, answer=None), *sent_to(VIP2, POD2, 1, answer=None)) == []


def test_two_clients_behind_one_address_are_told_apart_by_their_order_or_not_at_all() -> None:
    assert joined(*sent_by(CLIENT, 61000, 0), *sent_by(OTHER, 61001, 12)) == [[0, 1], [2, 3]]
    assert joined(*sent_by(CLIENT, 61000, 0), *sent_by(OTHER, 61001, 1)) == []
    assert joined(*sent_by(CLIENT, 61000, 0, None)) == [], "one packet is too little"


def test_one_that_was_lost_before_the_nat_takes_nobody_elses_image() -> None:
    lost, *_ = sent_to(VIP2, POD2, 1, answer=None)
    assert joined(*sent_to(VIP, POD, 0, answer=None), lost) == []


def test_of_many_that_are_alike_none_is_joined() -> None:
    many = [each for k in range(9) for each in sent_by(10 + k, 61000 + k, 100 * k)]
    assert joined(*many) == []
    assert len(joined(*(many[:8]))) == 4
