"""The reflector's decisions, in a time of its own: what it asks and when, and whether its records tell the truth."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.connection import ApiError
from capture.contract import JournalRecord
from capture.prune import prune
from capture.reflector import ListPage, Moment, Probe, Reflector, Request, Watch
from capture.watch import Resource

BEGIN_NS = 1_772_373_780 * 10**9


class Clock:
    """Seconds since it was made, and the moments they are."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> Moment:
        return Moment(self.now, BEGIN_NS + int(self.now * 1e9))


def pod(uid: str, version: int, phase: str = "Running") -> dict[str, Any]:
    metadata = {"name": f"pod-{uid}", "namespace": "shop", "uid": uid, "resourceVersion": str(version)}
    return {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": metadata,
        "spec": {"nodeName": "a"},
        "status": {"phase": phase},
    }


def page(items: list[dict[str, Any]], version: int, token: str = "") -> dict[str, Any]:
    return {"kind": "PodList", "metadata": {"resourceVersion": str(version), "continue": token}, "items": items}


def line(kind: str, item: dict[str, Any]) -> bytes:
    return json.dumps({"type": kind, "object": item}).encode()


def bookmark(version: int) -> bytes:
    return line("BOOKMARK", {"kind": "Pod", "metadata": {"resourceVersion": str(version)}})


def error_line(code: int) -> bytes:
    return line("ERROR", {"kind": "Status", "code": code, "message": "the lab's", "metadata": {}})


def make(clock: Clock, random: Callable[[], float] = lambda: 0.5, optional: bool = False) -> Reflector:
    return Reflector("Pod", partial(prune, "Pod"), clock(), random, optional=optional)


def wait(reflector: Reflector, clock: Clock) -> Request:
    clock.now = max(clock.now, reflector.due)
    return reflector.start(clock())


def listed(clock: Clock, *items: dict[str, Any], version: int = 10) -> Reflector:
    """One that watches after a first listing."""
    reflector = make(clock)
    assert wait(reflector, clock) == ListPage()
    reflector.page(page(list(items), version), clock())
    assert wait(reflector, clock) == Watch(str(version))
    reflector.opened(clock())
    return reflector


def told(records: list[JournalRecord]) -> list[tuple[str, str]]:
    return [(record.type, record.uid) for record in records]


# What it says


# --- listing and watching --------------------------------------------------------------------------------------------


def test_a_listing_counts_when_it_is_whole() -> None:
    clock = Clock()
    reflector = make(clock)
    wait(reflector, clock)
    assert reflector.page(page([pod("a", 1)], 9, "next"), clock()) == []
    assert (reflector.is_blind, reflector.objects) == (True, {})
    assert wait(reflector, clock) == ListPage("next")
    records = reflector.page(page([pod("b", 2)], 9), clock())
    assert told(records) == [("listed", "a"), ("listed", "b"), ("list_complete", "")]
    assert records[-1].resource_version == "9"
    assert not reflector.is_blind
    assert wait(reflector, clock) == Watch("9")


def test_changes_are_told_with_their_state_and_what_is_not_kept_is_no_change() -> None:
    clock = Clock()
    reflector = listed(clock, pod("a", 1))
    assert told(reflector.line(line("ADDED", pod("b", 11)), clock())) == [("added", "b")]
    changed = pod("a", 12) | {"spec": {"nodeName": "a", "nodeSelector": {"x": "y"}}}
    assert reflector.line(line("MODIFIED", changed), clock()) == []
    [record] = reflector.line(line("MODIFIED", pod("a", 13, "Failed")), clock())
    assert (record.type, record.resource_version, record.object["status"]) == ("modified", "13", {"phase": "Failed"})  # type: ignore[index]
    [record] = reflector.line(line("DELETED", pod("a", 14, "Failed")), clock())
    assert (record.type, record.resource_version, record.unseen_since_ns) == ("deleted", "14", BEGIN_NS + 10**12)
    assert list(reflector.objects) == ["b"]
    reflector.ended(clock())
    assert wait(reflector, clock) == Watch("14")


def test_a_watch_goes_on_from_the_last_bookmark_without_a_gap() -> None:
    clock = Clock()
    reflector = listed(clock, pod("a", 1))
    clock.now += 15
    reflector.line(bookmark(50), clock())
    clock.now += 5
    reflector.failed(ApiError("the connection broke"), clock())
    assert reflector.is_blind
    blind_since = clock().time_ns
    clock.now += 3
    assert wait(reflector, clock) == Watch("50")
    reflector.opened(clock())
    assert not reflector.is_blind
    [record] = reflector.line(line("MODIFIED", pod("a", 59, "Failed")), clock())
    assert (record.type, record.unseen_since_ns) == ("modified", blind_since)
    [record] = reflector.line(line("DELETED", pod("a", 60)), clock())
    assert (record.type, record.unseen_since_ns) == ("deleted", blind_since)
    reflector.line(bookmark(61), clock())
    [record] = reflector.line(line("ADDED", pod("b", 62)), clock())
    assert record.unseen_since_ns is None
    [record] = reflector.line(line("DELETED", pod("b", 63)), clock())
    assert record.unseen_since_ns is None


def test_after_a_410_all_is_listed_and_who_is_missing_was_deleted_unseen() -> None:
    clock = Clock()
    reflector = listed(clock, pod("a", 1), pod("b", 2))
    clock.now += 20
    reflector.line(bookmark(50), clock())
    known_ns = clock().time_ns
    clock.now += 5
    with pytest.raises(ApiError) as error:
        reflector.line(error_line(410), clock())
    reflector.failed(error.value, clock())
    assert wait(reflector, clock) == ListPage()
    records = reflector.page(page([pod("b", 2), pod("c", 70)], 70), clock())
    assert told(records) == [
        ("gap", ""),
        ("deleted", "a"),
        ("listed", "b"),
        ("listed", "c"),
        ("list_complete", ""),
    ]
    assert records[0].since_ns == records[1].unseen_since_ns == known_ns
    assert "the lab's" in records[0].reason
    assert records[1].object == prune("Pod", pod("a", 1))


def test_a_pod_that_was_made_again_under_its_name_is_another() -> None:
    clock = Clock()
    reflector = listed(clock, pod("a", 1))
    reflector.failed(ApiError("gone", 410), clock())
    wait(reflector, clock)
    again = pod("b", 60)
    again["metadata"]["name"] = "pod-a"
    records = reflector.page(page([again], 70), clock())
    assert told(records)[1:3] == [("deleted", "a"), ("listed", "b")]


def test_nobody_knows_since_when_a_silent_watch_told_nothing() -> None:
    clock = Clock()
    reflector = listed(clock)
    clock.now += 3
    reflector.line(line("ADDED", pod("a", 11)), clock())
    heard_ns = clock().time_ns
    clock.now += 28
    reflector.failed(ApiError("no answer for 28 s", silent=True), clock())
    assert reflector.blind_since_ns == heard_ns
    assert reflector.due - clock.now < 1


def test_a_server_that_went_back_in_time_is_noticed() -> None:
    """Restored from a backup: it does not know our version yet, and is silent."""
    clock = Clock()
    reflector = listed(clock, pod("a", 900), version=900)
    clock.now += 25
    reflector.ended(clock())
    assert wait(reflector, clock) == Probe()
    reflector.page(page([], 300, "more"), clock())
    assert reflector.is_blind
    assert wait(reflector, clock) == ListPage()
    records = reflector.page(page([pod("b", 200)], 301), clock())
    assert told(records) == [("gap", ""), ("deleted", "a"), ("listed", "b"), ("list_complete", "")]
    assert "went back from version 900 to 300" in records[0].reason


def test_a_quiet_cluster_is_not_listed_again() -> None:
    clock = Clock()
    reflector = listed(clock, pod("a", 900), version=900)
    clock.now += 25
    reflector.ended(clock())
    assert wait(reflector, clock) == Probe()
    reflector.page(page([], 900), clock())
    assert wait(reflector, clock) == Watch("900")
    assert not reflector.is_blind


def test_a_bookmark_is_kept_once_a_minute() -> None:
    clock = Clock()
    reflector = listed(clock)
    kept = []
    for version in range(11, 41):
        clock.now += 10
        kept += reflector.line(bookmark(version), clock())
    assert [(record.type, record.resource_version) for record in kept] == [
        ("bookmark", str(version)) for version in (16, 22, 28, 34, 40)
    ]


def test_what_follows_a_version_is_given_up_after_three_answers_without_sense() -> None:
    clock = Clock()
    reflector = listed(clock, pod("a", 1))
    asked = []
    for _ in range(3):
        with pytest.raises(ApiError) as error:
            reflector.line(b'{"type":"ADDED","object":{"met', clock())
        reflector.failed(error.value, clock())
        asked.append(wait(reflector, clock))
        if isinstance(asked[-1], Watch):
            reflector.opened(clock())
    assert asked == [Watch("10"), Watch("10"), ListPage()]


def test_an_expired_listing_begins_anew_and_then_comes_in_one_page() -> None:
    clock = Clock()
    reflector = make(clock)
    asked = []
    for _ in range(2):
        asked.append(wait(reflector, clock))
        reflector.page(page([pod("a", 1)], 9, "next"), clock())
        asked.append(wait(reflector, clock))
        reflector.failed(ApiError("expired", 410), clock())
    asked.append(wait(reflector, clock))
    assert asked == [ListPage(), ListPage("next"), ListPage(), ListPage("next"), ListPage("", 0)]


def test_a_page_that_failed_is_asked_for_again_and_the_listing_goes_on() -> None:
    clock = Clock()
    reflector = make(clock)
    wait(reflector, clock)
    reflector.page(page([pod("a", 1)], 9, "next"), clock())
    wait(reflector, clock)
    reflector.failed(ApiError("HTTP 500", 500), clock())
    assert wait(reflector, clock) == ListPage("next")
    assert told(reflector.page(page([pod("b", 1)], 9), clock()))[-3:] == [
        ("listed", "a"),
        ("listed", "b"),
        ("list_complete", ""),
    ]


@pytest.mark.parametrize("kind", ["Pod", "Ingress"])
def test_a_kind_that_is_not_served_is_absent_if_it_may_be(kind: str) -> None:
    reflector = Resource.of(kind).reflector()
    clock = Clock()
    reflector.failed(ApiError("HTTP 404: 404 page not found", 404), clock())
    assert reflector.is_blind is (kind == "Pod")
    assert reflector.is_absent is (kind == "Ingress")
    reflector.failed(ApiError("HTTP 403: no", 403), clock())
    assert reflector.is_blind


def test_a_listing_from_memory_says_when_it_was_true() -> None:
    clock = Clock()
    reflector = listed(clock, pod("a", 1))
    clock.now += 5
    assert {record.observed_ns for record in reflector.listing(clock())} == {clock().time_ns}
    reflector.failed(ApiError("the connection broke"), clock())
    blind_ns = clock().time_ns
    clock.now += 100
    assert {record.observed_ns for record in reflector.listing(clock())} == {blind_ns}


# --- answers that make no sense --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"\xff",
        b'{"type":"ADDED"}',
        b'{"type":"ADDED","object":null}',
        b'{"type":"ADDED","object":{"metadata":null}}',
        b'{"type":"ADDED","object":{"metadata":{"resourceVersion":"1"}}}',
        b'{"type":"ADDED","object":{"metadata":{"resourceVersion":1,"uid":"a"}}}',
        b'{"type":"RENAMED","object":{"metadata":{"resourceVersion":"1","uid":"a"}}}',
        b'{"type":"ERROR","object":null}',
        b'{"type":"ERROR","object":{"code":"410"}}',
        b"[" * 100_000,
    ],
)
def test_lines_that_are_no_events(text: bytes) -> None:
    clock = Clock()
    reflector = listed(clock, pod("a", 1))
    with pytest.raises(ApiError):
        reflector.line(text, clock())
    assert (reflector.resource_version, list(reflector.objects)) == ("10", ["a"])


@pytest.mark.parametrize(
    "answer", [None, [], {}, {"items": []}, {"metadata": {}, "items": []}, page([], 1) | {"items": {}}, page([{}], 1)]
)
def test_pages_that_are_no_lists(answer: Any) -> None:
    clock = Clock()
    reflector = make(clock)
    wait(reflector, clock)
    with pytest.raises(ApiError):
        reflector.page(answer, clock())
    assert not reflector.was_listed


# --- faults, and the pace of requests --------------------------------------------------------------------------------

Server = Callable[[Reflector, Request, Clock], None]


def refusing(status: int | None, cost_s: float = 0.01, **options: Any) -> Server:
    def serve(reflector: Reflector, request: Request, clock: Clock) -> None:
        clock.now += cost_s
        raise ApiError("refused", status, **options)

    return serve


def watching(lines: Callable[[], list[bytes]], lasts_s: float, error: ApiError | None = None) -> Server:
    """Lists well, of three pages; each watch is as told."""

    def serve(reflector: Reflector, request: Request, clock: Clock) -> None:
        clock.now += 0.01
        if not isinstance(request, Watch):
            token = request.token if isinstance(request, ListPage) else ""
            reflector.page(page([], 10, {"": "2", "2": "3", "3": ""}[token]), clock())
            return
        reflector.opened(clock())
        for each in lines():
            reflector.line(each, clock())
        clock.now += lasts_s
        if error:
            raise error
        reflector.ended(clock())

    return serve


def torn_listing(status: int | None) -> Server:
    def serve(reflector: Reflector, request: Request, clock: Clock) -> None:
        clock.now += 0.01
        if request == ListPage():
            reflector.page(page([], 10, "2"), clock())
        else:
            raise ApiError("torn", status)

    return serve


FAULTY = {
    "connection refused": refusing(None),
    "401": refusing(401),
    "403": refusing(403),
    "500": refusing(500),
    "429, asked to wait a second": refusing(429, retry_after_s=1),
    "429, asked to wait ten minutes": refusing(429, retry_after_s=600),
    "listing hangs": refusing(None, cost_s=15, silent=True),
    "watch hangs": watching(list, 28, ApiError("silence", silent=True)),
    "watch is empty": watching(list, 0.0),
    "watch ends after five seconds": watching(lambda: [bookmark(11)], 5.0),
    "watch tells of 410 at once": watching(lambda: [error_line(410)], 0.0),
    "watch tells of 500 at once": watching(lambda: [error_line(500)], 0.0),
    "garbage": watching(lambda: [b"<html>"], 0.0),
    "an event, then a reset": watching(lambda: [line("ADDED", pod("a", 11))], 0.0, ApiError("reset")),
    "well for ten seconds, then 410": watching(list, 10.0, ApiError("gone", 410)),
    "second page fails": torn_listing(None),
    "second page expires": torn_listing(410),
}


def drive(reflector: Reflector, serve: Server, clock: Clock, until: float) -> list[float]:
    """When it asked, a followed page not counted."""
    asked = []
    while reflector.due < until:
        request = wait(reflector, clock)
        if not (isinstance(request, ListPage) and request.token in ("2", "3") and serve not in TORN):
            asked.append(clock.now)
        try:
            serve(reflector, request, clock)
        except ApiError as error:
            reflector.failed(error, clock())
    return asked


TORN = (FAULTY["second page fails"], FAULTY["second page expires"])


@pytest.mark.parametrize("luck", [0.0, 0.999], ids=["long", "short"])
@pytest.mark.parametrize("fault", FAULTY)
def test_at_most_twelve_requests_a_minute_and_thirty_seconds_until_the_next(fault: str, luck: float) -> None:
    clock = Clock()
    reflector = make(clock, lambda: luck)
    asked = drive(reflector, watching(lambda: [bookmark(11)], 25.0), clock, 1200.0)
    asked += drive(reflector, FAULTY[fault], clock, 3000.0)
    assert max(sum(begin <= each < begin + 60 for each in asked) for begin in asked) <= 12
    late = [each for each in asked if each > 1300]
    assert max(after - before for before, after in pairwise(late)) <= 30.6


def forgetful() -> Server:
    """Well, but it has forgotten all versions and pages from before."""
    well, known = watching(lambda: [bookmark(11)], 25.0), False

    def serve(reflector: Reflector, request: Request, clock: Clock) -> None:
        nonlocal known
        known = known or (isinstance(request, ListPage) and not request.token)
        if not known:
            clock.now += 0.01
            raise ApiError("gone", 410)
        well(reflector, request, clock)

    return serve


@pytest.mark.parametrize("forgets", [False, True], ids=["remembers", "forgets"])
@pytest.mark.parametrize("luck", [0.0, 0.999], ids=["long", "short"])
@pytest.mark.parametrize("fault", FAULTY)
def test_all_is_known_35_seconds_after_the_server_is_well_again(fault: str, luck: float, forgets: bool) -> None:
    """However long it was not, up to five minutes; whatever hangs then, hangs on."""
    for seconds in range(1, 300, 7):
        clock = Clock()
        reflector = make(clock, lambda: luck)
        drive(reflector, watching(lambda: [bookmark(11)], 25.0), clock, 1100.0)
        sick_until = clock.now + seconds
        drive(reflector, FAULTY[fault], clock, sick_until)
        serve = forgetful() if forgets else watching(lambda: [bookmark(11)], 25.0)
        healed = False

        def answer(reflector: Reflector, request: Request, clock: Clock) -> None:
            nonlocal healed
            begun = clock.now
            serve(reflector, request, clock)  # noqa: B023
            healed = healed or isinstance(request, Watch)
            if healed:
                clock.now = begun

        while not healed:
            drive(reflector, answer, clock, reflector.due + 0.001)
            assert clock.now - sick_until < 35
        assert not reflector.is_blind


def test_a_server_that_is_well_is_asked_five_times_in_two_minutes() -> None:
    clock = Clock()
    reflector = make(clock, lambda: 0.0)
    asked = drive(reflector, watching(lambda: [bookmark(11)], 25.0), clock, 1000.0 + 3600)
    assert len(asked) <= 3600 / 25 + 2


# Whether it tells the truth


# --- replay ----------------------------------------------------------------------------------------------------------


@dataclass
class Cluster:
    """What is there, and what happened; a watch can be told all of it."""

    version: int = 10
    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    events: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)

    def change(self, uid: str, phase: str) -> None:
        self.version += 1
        kind = "MODIFIED" if uid in self.objects else "ADDED"
        if phase:
            self.objects[uid] = pod(uid, self.version, phase)
            self.events.append((self.version, kind, self.objects[uid]))
        elif uid in self.objects:
            self.events.append((self.version, "DELETED", self.objects.pop(uid) | pod(uid, self.version, "Gone")))

    def lines(self, since: str) -> Iterator[bytes]:
        return (line(kind, item) for version, kind, item in self.events if version > int(since))

    def pages(self, size: int) -> list[dict[str, Any]]:
        items = list(self.objects.values())
        parts = [items[at : at + size] for at in range(0, len(items), size)] or [[]]
        return [page(part, self.version, str(at) if at < len(parts) else "") for at, part in enumerate(parts, 1)]


def replay(state: dict[str, Any], records: list[JournalRecord]) -> None:
    """As a reader of the journal does it, with all that the contract promises checked."""
    listing: set[str] = set()
    for record in records:
        if record.type in ("listed", "added", "modified"):
            assert (record.uid in state) is (record.type == "modified") or record.type == "listed"
            state[record.uid] = record.object
            listing.add(record.uid)
        elif record.type == "deleted":
            state.pop(record.uid, None)
        elif record.type == "list_complete":
            assert state.keys() == listing
        else:
            assert record.type in ("gap", "bookmark")


UIDS = st.sampled_from("abcdefg")
FAULTS = st.sampled_from(["", "refused", "silent", "410", "garbage", "cut", "error"])
STEPS = st.one_of(
    st.tuples(st.just("change"), UIDS, st.sampled_from(["Pending", "Running", "Failed", ""])),
    st.tuples(
        st.just("ask"), st.sampled_from(["", "refused", "silent", "410", "garbage", "cut", "error"]), st.integers(0, 5)
    ),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(STEPS, max_size=60), st.integers(1, 4))
def test_what_is_replayed_is_what_is_there(steps: list[tuple[str, str, Any]], page_size: int) -> None:
    clock = Clock()
    cluster = Cluster()
    reflector = make(clock)
    state: dict[str, Any] = {}
    pages: list[dict[str, Any]] = []

    def ask(fault: str, many: int) -> None:
        nonlocal pages
        request = wait(reflector, clock)
        if fault in ("refused", "silent"):
            raise ApiError(fault, silent=fault == "silent")
        if not isinstance(request, Watch):
            if not (isinstance(request, ListPage) and request.token):
                pages = cluster.pages(page_size)
            elif fault == "410":
                raise ApiError("expired", 410)
            at = int(request.token) if isinstance(request, ListPage) and request.token else 0
            replay(state, reflector.page(pages[at], clock()))
            return
        reflector.opened(clock())
        clock.now += 0.5
        for number, each in enumerate(cluster.lines(request.resource_version)):
            if fault == "cut" and number == many:
                raise ApiError("the connection broke")
            if fault == "garbage" and number == many:
                each = each[: len(each) // 2]
            replay(state, reflector.line(each, clock()))
        if fault in ("410", "error"):
            replay(state, reflector.line(error_line(410 if fault == "410" else 500), clock()))
        replay(state, reflector.line(bookmark(cluster.version), clock()))
        reflector.ended(clock())

    def try_ask(fault: str, many: int) -> None:
        try:
            ask(fault, many)
        except ApiError as error:
            reflector.failed(error, clock())
        known = {uid: json.loads(each.content) for uid, each in reflector.objects.items()}
        assert state == known

    for step, what, how in steps:
        if step == "change":
            cluster.change(what, how)
        else:
            try_ask(what, how)
    while not (reflector.was_listed and not reflector.is_blind):
        try_ask("", 0)
    try_ask("", 0)
    assert state == {uid: prune("Pod", item) for uid, item in cluster.objects.items()}
