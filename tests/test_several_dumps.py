"""What several dumps of a cluster say together."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from analysis.identities import Identities, load_identities
from tests.kubernetes_dumps import (
    Object,
    ask_all,
    completed,
    listed,
    ns,
    pod,
    time,
    told,
    who,
    write_dump,
)
from tests.naive_identities import Lookup


def two_dumps(folder: Path, first: Sequence[Object], second: Sequence[Object]) -> Identities:
    """The same cluster at 12:00 and at 13:00."""
    paths = [write_dump(folder, "12:00:00", *first), write_dump(folder, "13:00:00", *second)]
    identities, problems = load_identities(paths)
    assert problems == []
    return identities


def test_a_pod_that_is_gone_from_the_next_dump_ends_there(tmp_path: Path) -> None:
    stays = pod("stays", ["10.1.0.6"], "11:00:00")
    identities = two_dumps(tmp_path, [pod("gone", ["10.1.0.5"], "11:00:00"), stays], [stays])
    assert who(identities, "10.1.0.5", "12:59:59") == "pod gone"
    assert who(identities, "10.1.0.5", "13:00:00") == "unknown"
    assert who(identities, "10.1.0.6", "13:30:00") == "pod stays"


def test_a_pod_ends_where_the_next_owner_starts(tmp_path: Path) -> None:
    identities = two_dumps(tmp_path, [pod("old", ["10.1.0.5"], "11:00:00")], [pod("new", ["10.1.0.5"], "12:30:00")])
    assert who(identities, "10.1.0.5", "12:29:59") == "pod old"
    assert who(identities, "10.1.0.5", "12:30:00") == "pod new"


@pytest.mark.parametrize(
    ("status", "held"),
    [
        ({"containerStatuses": [{"state": {"running": {"startedAt": time("12:30:02")}}}]}, "12:30:03"),
        (
            {
                "containerStatuses": [
                    {
                        "state": {"running": {"startedAt": time("12:40:00")}},
                        "lastState": {"terminated": {"startedAt": time("12:30:01")}},
                    }
                ]
            },
            "12:30:02",
        ),
        (
            {
                "containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}],
                "conditions": [
                    {"type": "PodReadyToStartContainers", "status": "True", "lastTransitionTime": time("12:30:04")}
                ],
            },
            "12:30:05",
        ),
        ({"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]}, "13:00:00"),
    ],
    ids=["running", "restarted", "sandbox", "dump"],
)
def test_until_the_next_owner_has_the_address_for_certain_it_may_be_either(
    tmp_path: Path, status: Object, held: str
) -> None:
    """A pod starts, by the second, before it gets its address."""
    new = pod("new", ["10.1.0.5"], "12:30:00", status=status)
    identities = two_dumps(tmp_path, [pod("old", ["10.1.0.5"], "11:00:00")], [new])
    assert who(identities, "10.1.0.5", "12:29:59+999999999") == "pod old"
    assert who(identities, "10.1.0.5", "12:30:00") == "ambiguous"
    assert who(identities, "10.1.0.5", f"12:30:00+{ns(held) - 1 - ns('12:30:00')}") == "ambiguous"
    assert who(identities, "10.1.0.5", held) == "pod new"


def test_a_pod_whose_sandbox_was_made_again_has_its_new_address_since_then(tmp_path: Path) -> None:
    """After a node's reboot: the pod and its containers are older than the address."""
    container = {
        "state": {"running": {"startedAt": time("12:40:01")}},
        "lastState": {"terminated": {"startedAt": time("09:00:01")}},
    }
    sandbox = {"type": "PodReadyToStartContainers", "status": "True", "lastTransitionTime": time("12:40:00")}
    moved = pod("moved", ["10.1.0.5"], "09:00:00", status={"containerStatuses": [container], "conditions": [sandbox]})
    identities = two_dumps(tmp_path, [pod("old", ["10.1.0.5"], "11:00:00")], [moved])
    assert who(identities, "10.1.0.5", "12:00:00") == "ambiguous"
    assert who(identities, "10.1.0.5", "12:40:00+999999999") == "ambiguous"
    assert who(identities, "10.1.0.5", "12:40:01") == "pod moved"


def test_the_next_owner_can_not_begin_while_the_last_one_is_proven(tmp_path: Path) -> None:
    identities = two_dumps(tmp_path, [pod("old", ["10.1.0.5"], "11:00:00")], [pod("new", ["10.1.0.5"], "11:59:50")])
    assert who(identities, "10.1.0.5", "11:59:59") == "pod old"
    assert who(identities, "10.1.0.5", "12:00:00") == "pod new"


def test_a_dump_of_another_namespace_ends_nothing(tmp_path: Path) -> None:
    other = pod("other", ["10.1.0.6"], "11:00:00", metadata={"namespace": "billing"})
    identities = two_dumps(tmp_path, [pod("web", ["10.1.0.5"], "11:00:00")], [other])
    assert who(identities, "10.1.0.5", "13:30:00") == "pod web"


def test_a_dump_of_all_namespaces_ends_a_namespace_that_is_gone(tmp_path: Path) -> None:
    others = [pod(name, [f"10.1.0.{name}"], "11:00:00", metadata={"namespace": f"n{name}"}) for name in ("6", "7")]
    identities = two_dumps(tmp_path, [pod("web", ["10.1.0.5"], "11:00:00"), *others], others)
    assert who(identities, "10.1.0.5", "13:30:00") == "unknown"


@pytest.mark.parametrize(
    "part",
    [
        pod("other", ["10.1.0.6"], "12:59:00"),
        listed(pod("other", ["10.1.0.6"], "12:59:00")) | {"metadata": {"continue": "token"}},
    ],
    ids=["one object", "a page"],
)
def test_a_part_of_a_list_ends_nothing(tmp_path: Path, part: Object) -> None:
    (tmp_path / "part-20260301T130000Z.json").write_text(json.dumps(part))
    write_dump(tmp_path, "12:00:00", pod("web", ["10.1.0.5"], "11:00:00"))
    identities, _ = load_identities([str(tmp_path)])
    assert who(identities, "10.1.0.5", "13:30:00") == "pod web"
    assert who(identities, "10.1.0.6", "13:30:00") == "pod other"
    assert identities.united_with(Identities.empty()).table.equals(identities.table)


def test_the_newest_dump_says_when_a_pod_completed(tmp_path: Path) -> None:
    running = pod("job", ["10.1.0.5"], "11:00:00")
    identities = two_dumps(tmp_path, [running], [pod("job", ["10.1.0.5"], "11:00:00", status=completed("12:20:00"))])
    assert who(identities, "10.1.0.5", "12:19:59") == "pod job"
    assert who(identities, "10.1.0.5", "12:20:01") == "unknown"


def test_what_dumps_show_at_once_stays_ambiguous_whatever_is_learnt_first(tmp_path: Path) -> None:
    """Each in a namespace of its own, so that no dump ends the other by not showing it."""
    a = pod("a", ["10.1.0.5"], "10:00:00")
    b = pod("b", ["10.1.0.5"], "10:30:00", metadata={"namespace": "billing"})
    both, only_a, only_b = (
        load_identities([write_dump(tmp_path, taken, *items)])[0]
        for taken, items in (("11:00:00", [a, b]), ("12:00:00", [a]), ("13:00:00", [b]))
    )
    assert who(only_a.united_with(only_b), "10.1.0.5", "10:45:00") == "pod a"
    for identities in (only_a.united_with(only_b).united_with(both), both.united_with(only_b).united_with(only_a)):
        assert who(identities, "10.1.0.5", "10:45:00") == "ambiguous"
        assert who(identities, "10.1.0.5", "10:15:00") == "pod a"


@pytest.mark.parametrize(
    "name", ["d-20260301T130000Z.json", "2026-03-01T13:00:00Z.json", "2026-03-01_13-00-00.json", "d-1772370000.json"]
)
def test_a_time_in_a_files_name_says_when_the_dump_was_taken(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(json.dumps(listed(pod("web", ["10.1.0.5"], "11:00:00"))))
    identities, _ = load_identities([str(tmp_path)])
    assert identities.table["source"].to_pylist() == [f"{name} @ {time('13:00:00')}"]


def test_without_a_time_in_its_name_the_newest_time_in_a_dump_dates_it(tmp_path: Path) -> None:
    (tmp_path / "dump.json").write_text(
        json.dumps(listed(pod("web", ["10.1.0.5"], "11:00:00"), pod("new", ["10.1.0.6"], "11:40:07")), indent=4)
    )
    identities, _ = load_identities([str(tmp_path)])
    assert set(identities.table["source"].to_pylist()) == {f"dump.json @ {time('11:40:07')}"}


class Story:
    """A random cluster's true history, and dumps of it. Addresses are few, lives are short, some pods complete."""

    def __init__(self, seed: int) -> None:
        chance = random.Random(seed)
        self.lives: list[tuple[str, str, int, int]] = []  # pod, address, start minute, end minute
        for ip in (f"10.1.0.{number}" for number in range(2, 6)):
            minute = chance.randrange(10)
            while minute < 100:
                end = minute + chance.randrange(1, 30)
                self.lives.append((f"p{len(self.lives)}", ip, minute, end))
                minute = end + chance.randrange(3)
        self.completing = {name for name, *_ in self.lives if chance.random() < 0.3}
        self.dumped = sorted(chance.sample(range(1, 130), chance.randrange(1, 6)))

    @staticmethod
    def clock(minute: int) -> str:
        return f"{10 + minute // 60:02}:{minute % 60:02}:00"

    def seen(self, life: tuple[str, str, int, int], minute: int) -> bool:
        name, _, start, end = life
        return start <= minute and (minute < end or name in self.completing)

    def dump(self, folder: Path, minute: int) -> str:
        items = []
        for life in self.lives:
            name, ip, start, end = life
            if self.seen(life, minute):
                status = completed(self.clock(end)) if minute >= end else {}
                items.append(pod(name, [ip], self.clock(start), status=status))
        idle = pod("idle", ["10.1.9.9"], "09:00:00")
        return write_dump(folder, self.clock(minute), idle, *items)

    def owner(self, ip: str, minute: int) -> tuple[str, str, int, int] | None:
        return next((life for life in self.lives if life[1] == ip and life[2] <= minute < life[3]), None)


@pytest.mark.parametrize("seed", range(40))
def test_dumps_of_a_known_history_name_no_wrong_owner_and_dodge_nothing_they_prove(tmp_path: Path, seed: int) -> None:
    story = Story(seed)
    identities, _ = load_identities([story.dump(tmp_path, minute) for minute in story.dumped])
    moments = [(ip, minute) for ip in {life[1] for life in story.lives} for minute in range(130)]
    after_rounding = [Lookup(ip, None, "TCP", ns(story.clock(minute)) + 10**9) for ip, minute in moments]
    answers = ask_all(identities, after_rounding)
    for (ip, minute), answer in zip(moments, map(told, answers), strict=True):
        truth = story.owner(ip, minute)
        if truth and any(story.seen(truth, dump) for dump in story.dumped):
            assert answer == f"pod {truth[0]}", (ip, minute, story.dumped)
        elif truth is None and minute in story.dumped:
            assert answer == "unknown", (ip, minute, story.dumped)
        elif answer != "unknown":  # between dumps: the last owner shown, as long as no dump shows that it was over
            (life,) = (life for life in story.lives if life[0] == answer.removeprefix("pod "))
            assert life[2] <= minute, (ip, minute)
            assert not any(life[3] <= dump <= minute for dump in story.dumped), (ip, minute, story.dumped)


@pytest.mark.parametrize("seed", range(20))
def test_dumps_unite_in_any_order_to_the_same_table(tmp_path: Path, seed: int) -> None:
    story = Story(seed)
    paths = [story.dump(tmp_path, minute) for minute in story.dumped]
    at_once, _ = load_identities(paths)
    random.Random(seed).shuffle(paths)
    one_by_one = Identities.empty()
    for path in (*paths, paths[0]):
        one_by_one = one_by_one.united_with(load_identities([path])[0])
    assert one_by_one.table.equals(at_once.table)
