"""Which flows of datagrams without an IP id are the two sides of a NAT, and which might be but are not told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from analysis.connections import connections_of
from analysis.flow_facts import FLOW_FACTS
from analysis.sightings import SIGHTING

CLIENT, OTHER, VIP, VIP2, POD, POD2, NODE, OUTSIDE, GATEWAY = range(9)
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
    ttls: tuple[int, int] = (64, 64),
    numbered: int = 0,
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
        "orig_ttl": ttls[0],
        "resp_ttl": ttls[1],
        "numbered": numbered,
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


def joined(*flows: dict[str, Any], seen: tuple[tuple[int, int], ...] = ()) -> list[list[int]]:
    """The flows of each connection, as they were given, of those with several flows; `seen`: flows and keys."""
    facts = np.zeros(len(flows), FLOW_FACTS)
    facts["orig_syn"] = facts["resp_syn"] = -1
    for number, each in enumerate(flows):
        for name, value in each.items():
            facts[name][number] = value
    order = np.argsort(facts["first_seen"], kind="stable")
    sightings = np.zeros(len(seen), SIGHTING)
    for sighting, (number, key) in zip(sightings, sorted(seen, key=lambda each: each[::-1]), strict=True):
        sighting["flow"], sighting["key"], sighting["sender"] = order.tolist().index(number), key, 1
    connection, _ = connections_of(facts[order], [sightings])
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
    """They all waited at once. Where each had its answer before the next, they are told apart."""
    at_once = [each for k in range(9) for each in sent_by(10 + k, 61000 + k, 20 * k)]
    assert joined(*at_once) == []
    in_turn = [each for k in range(9) for each in sent_by(10 + k, 61000 + k, 400 * k)]
    assert len(joined(*in_turn)) == 9


# --- Both ends turned ------------------------------------------------------------------------------------------------


def sent_to_node_port(
    at: int, client: int = OUTSIDE, port: int = 61000, ttls: tuple[int, int] = (62, 63), **more: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both sides: the client's TTL is 63 when it comes, the pod's 63; `ttls` are those behind the NAT and before it."""
    return (
        flow(UPLINK, client, NODE, at, CAME_IN, ttls=(63, ttls[1] - 1), **more),
        flow(
            VETH, GATEWAY, POD, at + 10, LEFT, answer=ANSWER - 20 * MICROSECOND, port=port, ttls=(ttls[0], 63), **more
        ),
    )


def test_packets_under_way_whose_ends_were_both_turned_are_one_connection() -> None:
    assert joined(*sent_to_node_port(0)) == [[0, 1]]
    assert joined(*sent_to_node_port(0), *sent_to_node_port(400, OTHER, 61001)) == [[0, 1], [2, 3]]


def test_what_a_process_asks_others_is_another_connection() -> None:
    """Its packets begin their way. IP ids that are the same can't be a process'."""
    assert joined(*sent_to_node_port(0, ttls=(64, 65))) == []
    assert joined(*sent_to_node_port(0, ttls=(64, 65), numbered=3)) == [[0, 1]]
    assert joined(*sent_to_node_port(0, ttls=(64, 65), numbered=1)) == [], "answers have none"


@pytest.mark.parametrize(
    "other",
    [{"orig_shape": 31}, {"resp_shape": 61}, {"questions": 7}, {"node": 1}, {"orig_ttl": 61}, {"resp_shape": 0}],
    ids=lambda other: "-".join(other),
)
def test_what_differs_and_has_other_ends_is_another_connection(other: dict[str, int]) -> None:
    before, behind = sent_to_node_port(0)
    assert joined(before, behind | other) == []


def test_no_answer_is_too_little_where_both_ends_were_turned() -> None:
    before, behind = sent_to_node_port(0)
    nothing = {"resp_shape": 0, "resp_first": -1}
    assert joined(before | nothing | {"ways": CAME_IN}, behind | nothing | {"ways": LEFT}) == []


def test_an_address_that_came_in_is_not_the_nodes() -> None:
    other = flow(OTHER_VETH, GATEWAY, OTHER, 5_000, CAME_IN, port=7)
    assert joined(*sent_to_node_port(0), other) == []


def test_two_at_one_moment_are_told_apart_by_their_order_or_not_at_all() -> None:
    assert joined(*sent_to_node_port(0), *sent_to_node_port(12, OTHER, 61001)) == [[0, 1], [2, 3]]
    assert joined(*sent_to_node_port(0), *sent_to_node_port(1, OTHER, 61001)) == []


def test_what_has_an_end_in_common_goes_before() -> None:
    """A client of a service and one of a node port at one moment, alike."""
    assert joined(*sent_to(VIP, POD2, 1), *sent_to_node_port(0)) == [[0, 1], [2, 3]]


def hairpin(at: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A pod reaches itself through its service, over its port of a bridge: no TTL changes."""
    return (
        flow(VETH, CLIENT, VIP, at, CAME_IN),
        flow(VETH, GATEWAY, CLIENT, at + 10, LEFT, answer=ANSWER - 20 * MICROSECOND, port=61000),
    )


def test_a_pod_that_reaches_itself_is_told_by_its_port_of_a_bridge() -> None:
    """What a process on the node sends would pass the bridge, too, as other packets show."""
    assert joined(*hairpin(0)) == []
    others = flow(VETH, OTHER, POD, 5_000, CAME_IN, port=9), flow(BRIDGE, OTHER, POD, 5_001, CAME_IN, port=9)
    assert joined(*hairpin(0), *others) == [[0, 1], [2, 3]]
    at_bridge = flow(BRIDGE, GATEWAY, CLIENT, 10, LEFT, answer=ANSWER - 20 * MICROSECOND, port=61000)
    assert joined(*hairpin(0), *others, at_bridge) == [[1, 4], [2, 3]]


def test_a_bridge_shows_packets_between_both_turns() -> None:
    between = flow(BRIDGE, CLIENT, CLIENT, 5, LEFT, answer=ANSWER - 10 * MICROSECOND)
    assert joined(*hairpin(0), between) == [[0, 1, 2]]
    answers = flow(BRIDGE, OUTSIDE, POD, 0, LEFT, question=False, answer=ANSWER - 5 * MICROSECOND)
    before, behind = sent_to_node_port(0, ttls=(64, 65))
    questions = flow(BRIDGE, GATEWAY, POD, 9, LEFT, answer=None, port=61000)
    assert joined(before, behind, questions, answers) == [[0, 1, 2, 3]]
    late = answers | {"resp_first": ANSWER + 5 * MICROSECOND}
    assert joined(before, behind, questions, late) == [[1, 2]]


# --- Unanswered over a bridge ----------------------------------------------------------------------------------------


def test_a_question_without_answer_that_a_bridge_turned() -> None:
    before, behind = sent_to(VIP, POD, 0, answer=None)
    assert joined(before, behind, flow(BRIDGE, CLIENT, POD, 5, CAME_IN, answer=None)) == [[0, 1, 2]]
    own = flow(VETH, CLIENT, POD, 5, CAME_IN, answer=None)
    assert joined(before, behind, own) == [[1, 2]], "the client itself sent there"


# --- Datagrams with IP ids, of which some were not seen everywhere ---------------------------------------------------


def seen_by(*flows: int, keys: range) -> tuple[tuple[int, int], ...]:
    return tuple((number, key) for key in keys for number in flows)


def other_shape(pair: tuple[dict[str, Any], dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A packet of the second one was not seen."""
    return pair[0], pair[1] | {"orig_shape": 99}


def test_half_of_the_datagrams_tell_a_connection() -> None:
    flows = other_shape(sent_to(VIP, POD, 0))
    assert joined(*flows, seen=seen_by(0, 1, keys=range(1))) == [[0, 1]]
    assert joined(*flows, seen=(*seen_by(0, 1, keys=range(2)), *seen_by(0, keys=range(2, 9)))) == [[0, 1]]
    differ = (*seen_by(0, keys=range(2, 9)), *seen_by(1, keys=range(9, 16)))
    assert joined(*flows, seen=(*seen_by(0, 1, keys=range(2)), *differ)) == [], "2 of 9 are chance"
    assert joined(*other_shape(sent_by(CLIENT, 61000, 0)), seen=seen_by(0, 1, keys=range(1))) == []
    assert joined(*other_shape(sent_by(CLIENT, 61000, 0)), seen=seen_by(0, 1, keys=range(2))) == [[0, 1]]


def test_four_datagrams_tell_a_connection_whatever_its_ends() -> None:
    flows = other_shape(sent_to_node_port(0))
    assert joined(*flows, seen=seen_by(0, 1, keys=range(3))) == []
    assert joined(*flows, seen=seen_by(0, 1, keys=range(4))) == [[0, 1]]


def test_what_passed_unchanged_is_not_joined_by_one_id() -> None:
    """Two servers are asked by one socket; by chance with the same id."""
    flows = [
        flow(VETH, CLIENT, VIP, 0, CAME_IN),
        flow(UPLINK, CLIENT, VIP, 1, LEFT),
        flow(VETH, CLIENT, POD, 2, CAME_IN) | {"orig_shape": 99},
        flow(UPLINK, CLIENT, POD, 3, LEFT) | {"orig_shape": 99},
    ]
    assert joined(*flows, seen=seen_by(0, 1, 3, 2, keys=range(1))) == [[0, 1], [2, 3]]
