"""What a backend was to its service, by the journal and by dumps. Expected are the stories that they tell of."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from analysis.endpoint_checks import add_endpoints
from analysis.endpoints import Endpoints
from analysis.enrich import known_identities
from analysis.identities import load_identities
from analysis.lake_reader import open_lake
from analysis.pipeline import analyze, enrich
from tests.node_recordings import at, clock, write_journal
from tests.test_enrich import rows
from tests.test_journals import Journal

IP, OTHER = "10.1.0.5", "10.1.0.6"
SECOND = 10**9
DERIVED = ("endpoint", "endpoint_of", "endpoint_pod", "endpoint_removed_ns")
Object = dict[str, Any]


def entry(ip: str = IP, pod: str = "web-1", **conditions: bool | None) -> Object:
    target = {"kind": "Pod", "namespace": "shop", "name": pod, "uid": f"uid-{pod}"}
    return {"addresses": [ip], "conditions": conditions, "nodeName": "node-b", "targetRef": target}


LEAVING = {"ready": False, "serving": True, "terminating": True}


def slice_of(*entries: Object, service: str = "web", name: str = "", port: int = 8080) -> Object:
    name = name or f"{service}-x"
    labels = {"kubernetes.io/service-name": service}
    return {
        "metadata": {"name": name, "namespace": "shop", "uid": f"uid-{name}", "labels": labels},
        "addressType": "IPv4",
        "endpoints": list(entries),
        "ports": [{"name": "", "protocol": protocol, "port": port} for protocol in ("TCP", "UDP")],
    }


class Slices(Journal):
    """It knows all from -60 s on, when there was nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.tell("list_complete", -60)

    def tell(
        self, type_: str, seconds: float, item: Object | None = None, kind: str = "EndpointSlice", **more: Any
    ) -> None:
        super().tell(type_, seconds, item, kind, **more)

    def endpoints(self, folder: Path) -> Endpoints:
        return self.identities(folder).endpoints


@pytest.fixture
def journal() -> Slices:
    return Slices()


def asked(moments: Sequence[float], **columns: Any) -> pa.Table:
    """Connections of a pod to the service web, which its proxy sent to IP; and what else is known of them."""
    row = {
        "protocol": "TCP",
        "orig_identity": "pod",
        "resp_ip": "10.96.0.7",
        "resp_port": 80,
        "resp_identity": "service",
        "resp_namespace": "shop",
        "resp_service": "web",
        "backend_ip": IP,
        "backend_port": 8080,
        "backend_identity": "unknown",
    }
    table = rows("connections", *(row | columns | {"first_seen": at(moment)} for moment in moments))
    return table.drop_columns(list(DERIVED))


DIRECT = {"resp_ip": IP, "resp_port": 8080, "resp_namespace": None, "resp_service": None, "resp_identity": "unknown"}
"""To the pod itself."""


def answers(endpoints: Endpoints, moments: Sequence[float], **columns: Any) -> list[Object]:
    return add_endpoints(endpoints, asked(moments, **columns)).select(list(DERIVED)).to_pylist()


def verdicts(endpoints: Endpoints, moments: Sequence[float], **columns: Any) -> list[Any]:
    """With the seconds since its removal where they are known."""
    return [
        row["endpoint"] if row["endpoint_removed_ns"] is None else row["endpoint_removed_ns"] / SECOND
        for row in answers(endpoints, moments, **columns)
    ]


# --- the journal -----------------------------------------------------------------------------------------------------


def test_an_endpoint_is_what_the_journal_last_heard_of_it(tmp_path: Path, journal: Slices) -> None:
    journal.tell("added", 0, slice_of(entry()))
    journal.tell("modified", 10, slice_of(entry(ready=False)))
    journal.tell("modified", 20, slice_of(entry(**LEAVING)))
    journal.tell("modified", 30, slice_of())
    journal.tell("bookmark", 100)
    endpoints = journal.endpoints(tmp_path)
    assert verdicts(endpoints, [-61, -1, 0, 9.9, 10, 20, 29.9]) == [
        *("unknown", "not_yet", "ready", "ready", "not_ready", "terminating", "terminating"),
    ]
    assert verdicts(endpoints, [30, 31.8, 99, 100, 200]) == [0, 1.8, 69, "unknown", "unknown"]
    assert verdicts(endpoints, [5], backend_ip=OTHER) == verdicts(endpoints, [5], backend_port=81) == ["never"]
    assert verdicts(endpoints, [5], resp_service="api") == verdicts(endpoints, [5], resp_namespace="x") == ["never"]
    assert verdicts(endpoints, [5, 31.8], protocol="UDP") == ["ready", 1.8]
    assert verdicts(endpoints, [5], protocol="SCTP") == ["never"]
    assert verdicts(endpoints, [5], protocol="ICMP") == [None]


def test_the_service_and_the_pod_are_named(tmp_path: Path, journal: Slices) -> None:
    journal.tell("added", 0, slice_of(entry()))
    journal.tell("deleted", 10, slice_of(entry()))
    journal.tell("bookmark", 60)
    gone, never = answers(journal.endpoints(tmp_path), [12]), answers(journal.endpoints(tmp_path), [12], backend_port=9)
    assert gone == [dict(zip(DERIVED, ("removed", "shop/web", "web-1", 2 * SECOND), strict=True))]
    assert never == [dict(zip(DERIVED, ("never", "shop/web", None, None), strict=True))]


def test_one_that_comes_back_is_one_again(tmp_path: Path, journal: Slices) -> None:
    """With the address of the pod before."""
    journal.tell("added", 0, slice_of(entry()))
    journal.tell("modified", 10, slice_of())
    journal.tell("modified", 20, slice_of(entry(pod="web-2")))
    journal.tell("bookmark", 60)
    endpoints = journal.endpoints(tmp_path)
    assert verdicts(endpoints, [5, 12, 20]) == ["ready", 2, "ready"]
    assert [row["endpoint_pod"] for row in answers(endpoints, [5, 12, 20])] == ["web-1", "web-1", "web-2"]


def test_what_has_no_conditions_is_ready(tmp_path: Path, journal: Slices) -> None:
    journal.tell("added", 0, slice_of(entry(), entry(OTHER, "web-2", ready=None)))
    journal.tell("bookmark", 60)
    endpoints = journal.endpoints(tmp_path)
    assert verdicts(endpoints, [5]) == verdicts(endpoints, [5], backend_ip=OTHER) == ["ready"]
    assert set(endpoints.table["serving"].to_pylist()) == {True}


def test_of_two_slices_that_name_one_endpoint_the_better_counts(tmp_path: Path, journal: Slices) -> None:
    """It moves from the first to the second."""
    journal.tell("added", 0, slice_of(entry(), name="web-a"))
    journal.tell("added", 10, slice_of(entry(ready=False), name="web-b"))
    journal.tell("modified", 20, slice_of(name="web-a"))
    journal.tell("modified", 30, slice_of(entry(), name="web-b"))
    journal.tell("deleted", 40, slice_of(entry(), name="web-b"))
    journal.tell("bookmark", 60)
    assert verdicts(journal.endpoints(tmp_path), [5, 15, 25, 35, 41]) == ["ready", "ready", "not_ready", "ready", 1]


# --- gaps ------------------------------------------------------------------------------------------------------------


def relisted(journal: Slices, since: float, until: float, *slices: Object, gone: Sequence[Object] = ()) -> None:
    journal.tell("gap", until, since_ns=at(since), reason="the API server was down")
    for each in gone:
        journal.tell("deleted", until, each, unseen_since_ns=at(since))
    for each in slices:
        journal.tell("listed", until, each)
    journal.tell("list_complete", until)
    journal.tell("bookmark", until + 60)


def test_nothing_is_said_of_a_gap_and_of_what_was_on_its_way_before(tmp_path: Path, journal: Slices) -> None:
    journal.tell("added", 0, slice_of(entry()))
    relisted(journal, 20, 50, slice_of(entry()))
    assert verdicts(journal.endpoints(tmp_path), [14.9, 15, 30, 49, 50]) == ["ready", *["unknown"] * 3, "ready"]


@pytest.mark.parametrize("is_slice_there", [True, False])
def test_what_was_removed_in_a_gap_was_removed_at_a_time_that_nobody_knows(
    tmp_path: Path, journal: Slices, is_slice_there: bool
) -> None:
    journal.tell("added", 0, slice_of(entry()))
    relisted(journal, 20, 50, *[slice_of()] * is_slice_there, gone=[slice_of(entry())] * (not is_slice_there))
    endpoints = journal.endpoints(tmp_path)
    assert verdicts(endpoints, [10, 30, 51]) == ["ready", "unknown", "removed"]
    (row,) = {each["kept"].value: each for each in endpoints.table.to_pylist() if each["protocol"] == "TCP"}.values()
    assert [row[name].value for name in ("start", "held", "kept", "end")] == [at(0), at(0), at(15), at(50)]


def test_what_came_late_happened_at_a_time_that_nobody_knows(tmp_path: Path, journal: Slices) -> None:
    """Its watch had broken off, and went on where it was."""
    journal.tell("added", 0, slice_of(entry()))
    journal.tell("modified", 50, slice_of(), unseen_since_ns=at(20))
    journal.tell("bookmark", 60)
    assert verdicts(journal.endpoints(tmp_path), [14.9, 15, 49, 51]) == ["ready", "unknown", "unknown", "removed"]


def test_what_came_and_went_late_may_have_been_there(tmp_path: Path, journal: Slices) -> None:
    journal.tell("added", 0, slice_of())
    journal.tell("modified", 50, slice_of(entry()), unseen_since_ns=at(20))
    journal.tell("modified", 51, slice_of(), unseen_since_ns=at(20))
    journal.tell("bookmark", 60)
    assert verdicts(journal.endpoints(tmp_path), [14.9, 15, 50.5, 52]) == ["not_yet", "unknown", "unknown", "removed"]


def test_a_journal_without_slices_says_nothing(tmp_path: Path) -> None:
    journal = Journal()
    journal.tell("list_complete", -60)
    journal.tell("bookmark", 60)
    write_journal(tmp_path, journal.records)
    assert verdicts(Endpoints(), [0]) == ["unknown"]
    assert verdicts(Endpoints(), [0], **DIRECT) == [None]


def test_another_writer_that_saw_all_fills_the_gap(tmp_path: Path, journal: Slices) -> None:
    cut = Slices()
    for each in (journal, cut):
        each.tell("added", 0, slice_of(entry()))
    journal.tell("modified", 30, slice_of())
    journal.tell("bookmark", 90)
    cut.version += 1
    relisted(cut, 20, 50, slice_of())
    write_journal(tmp_path, cut.records, "cut")
    write_journal(tmp_path, journal.records, "whole")
    endpoints = load_identities([str(tmp_path)])[0].endpoints
    assert verdicts(endpoints, [25, 32]) == ["ready", 2]


def test_of_two_writers_the_later_tells_nothing_new(tmp_path: Path, journal: Slices) -> None:
    late = Slices()
    for each, seconds in ((journal, 0), (late, 0.5)):
        each.tell("added", seconds, slice_of(entry()))
        each.tell("modified", 0.2 + seconds, slice_of())
        each.tell("bookmark", 60)
    write_journal(tmp_path / "a", journal.records, "soon")
    write_journal(tmp_path / "a", late.records, "late")
    endpoints = load_identities([str(tmp_path / "a")])[0].endpoints
    assert verdicts(endpoints, [0.1, 0.6, 0.9]) == ["ready", pytest.approx(0.4), pytest.approx(0.7)]
    soon, later = (each.endpoints(tmp_path / name) for each, name in ((journal, "b"), (late, "c")))
    assert verdicts(soon.united_with(later), [0.6]) == [pytest.approx(0.4)], "what is known goes before"
    assert verdicts(later.united_with(soon), [0.6]) == ["ready"]


@pytest.mark.parametrize("is_sure", [True, False])
def test_what_was_there_but_in_a_state_that_nobody_knows_was_removed(
    tmp_path: Path, journal: Slices, is_sure: bool
) -> None:
    """One slice said that it terminates; whether another one said something better came too late to be told."""
    late = {"unseen_since_ns": at(5)}
    journal.tell("added", 0 if is_sure else 10, slice_of(entry(**LEAVING), name="web-a"), **({} if is_sure else late))
    journal.tell("modified", 10, slice_of(entry(), name="web-b"), **late)
    journal.tell("modified", 10, slice_of(name="web-b"), **late)
    journal.tell("modified", 10, slice_of(name="web-a"), **({} if is_sure else late))
    journal.tell("bookmark", 60)
    last = 2 if is_sure else "removed"
    assert verdicts(journal.endpoints(tmp_path), [-1, 5, 12]) == ["not_yet", "unknown", last]


def test_of_two_clusters_both_must_be_known(tmp_path: Path, journal: Slices) -> None:
    """Of a connection nobody tells in which it is."""
    journal.tell("added", 0, slice_of(entry()))
    journal.tell("bookmark", 60)
    other = Slices()
    other.tell("bookmark", 30)
    clusters = {"east": journal, "west": other}
    for name, each in clusters.items():
        write_journal(tmp_path / name, each.records)
    east, west = (load_identities([], [str(tmp_path / name)], name)[0].endpoints for name in clusters)
    assert verdicts(east, [20, 40]) == ["ready", "ready"]
    assert verdicts(east.united_with(west), [20, 40]) == ["ready", "unknown"]


# --- dumps -----------------------------------------------------------------------------------------------------------


def dump(folder: Path, seconds: float, *items: Object) -> str:
    path = folder / f"cluster-{clock(at(seconds)).replace('-', '').replace(':', '')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"kind": "List", "items": [{"kind": "EndpointSlice", **item} for item in items]}))
    return str(path)


def test_a_dump_proves_its_own_moment_only(tmp_path: Path) -> None:
    paths = [dump(tmp_path, 0, slice_of(entry())), dump(tmp_path, 60, slice_of(entry(), port=1))]
    endpoints = load_identities(paths)[0].endpoints
    assert verdicts(endpoints, [-1, 0, 30, 61]) == ["unknown"] * 4
    times = [
        tuple(row[name] and row[name].value for name in ("start", "held", "kept", "end"))
        for row in endpoints.table.to_pylist()
        if row["protocol"] == "TCP"
    ]
    assert times == [(at(0), at(60), at(60), None), (None, at(0), at(0), at(60))]


def test_who_was_an_endpoint_before_the_journal_began_was_removed(tmp_path: Path, journal: Slices) -> None:
    journal.tell("bookmark", 60)
    path = dump(tmp_path / "dumps", -120, slice_of(entry()))
    write_journal(tmp_path, journal.records)
    endpoints = load_identities([path, str(tmp_path)])[0].endpoints
    assert verdicts(endpoints, [-90, 0]) == ["unknown", "removed"]


def test_the_journal_knows_better_than_a_dump(tmp_path: Path, journal: Slices) -> None:
    """Which tells its time in whole seconds, rounded down."""
    journal.tell("added", 0.5, slice_of(entry()))
    journal.tell("bookmark", 60)
    path = dump(tmp_path / "dumps", 0, slice_of(entry()))
    write_journal(tmp_path, journal.records)
    endpoints = load_identities([path, str(tmp_path)])[0].endpoints
    assert verdicts(endpoints, [0, 0.2, 0.6]) == ["not_yet", "not_yet", "ready"]


def test_a_slice_of_the_wrong_shape_costs_itself_only(tmp_path: Path) -> None:
    broken = slice_of(entry(), name="broken") | {"ports": [{"port": "http"}]}
    worse = slice_of(entry(ready=False), name="web-y")
    identities, (problem,) = load_identities([dump(tmp_path, 0, broken, slice_of(entry()), worse)])
    assert "EndpointSlice broken is left out" in str(problem)
    assert identities.endpoints.table["ready"].to_pylist() == [True, True]


# --- without a service's address -------------------------------------------------------------------------------------


def test_to_a_pods_own_address_any_service_counts_of_which_that_pod_is_an_endpoint(
    tmp_path: Path, journal: Slices
) -> None:
    journal.tell("added", 0, slice_of(entry()))
    journal.tell("added", 1, slice_of(entry(), service="all"))
    journal.tell("modified", 10, slice_of())
    journal.tell("modified", 20, slice_of(service="all"))
    journal.tell("bookmark", 60)
    endpoints = journal.endpoints(tmp_path)
    known = DIRECT | {"backend_identity": "pod", "backend_pod_uid": "uid-web-1"}
    for who in (known, DIRECT):
        assert verdicts(endpoints, [5, 12, 22], **who) == ["ready", "ready", 2]
        assert [row["endpoint_of"] for row in answers(endpoints, [5, 12, 22], **who)] == ["shop/all"] * 3
    assert verdicts(endpoints, [5, 22], **(known | {"backend_pod_uid": "uid-cart"})) == [None, None]
    assert verdicts(endpoints, [5], **(DIRECT | {"backend_identity": "ambiguous"})) == ["unknown"]
    assert verdicts(endpoints, [5], **(DIRECT | {"orig_identity": "node"})) == [None], "a kubelet's probe"
    assert verdicts(endpoints, [5], **(DIRECT | {"backend_ip": OTHER, "resp_ip": OTHER})) == [None]


def test_without_a_backend_nothing_is_said(tmp_path: Path, journal: Slices) -> None:
    journal.tell("bookmark", 60)
    assert verdicts(journal.endpoints(tmp_path), [5], backend_ip="10.96.0.7", backend_port=80) == [None]


# --- what a lake knows already ---------------------------------------------------------------------------------------


def story(chance: random.Random) -> tuple[Slices, list[tuple[float, str]]]:
    """A journal with gaps and late news of an endpoint that two slices name by turns; what it became, and when."""
    journal = Slices()
    states = {"a": "", "b": ""}
    truth = [(-1e9, "")]
    time = 0.0
    items = {"": (), "ready": (entry(),), "terminating": (entry(**LEAVING),), "not_ready": (entry(ready=False),)}
    order = ("ready", "terminating", "not_ready", "")
    for name in states:
        journal.tell("added", 0, slice_of(name=name))
    for _ in range(40):
        time += chance.uniform(0.5, 20)
        what = chance.random()
        if what < 0.1:
            since, time = time, time + 30
            states["a"] = chance.choice(list(items))
            truth.append((since + chance.uniform(0, 30), min(states.values(), key=order.index)))
            relisted(journal, since, time, *(slice_of(*items[state], name=name) for name, state in states.items()))
            journal.records.pop()  # the bookmark
            continue
        name = chance.choice(list(states))
        states[name] = chance.choice(list(items))
        truth.append((time, min(states.values(), key=order.index)))
        late = chance.uniform(0, 3) if what < 0.3 else 0
        is_late_since = at(time - chance.uniform(0, 3)) if late else None
        time += late
        journal.tell("modified", time, slice_of(*items[states[name]], name=name), unseen_since_ns=is_late_since)
    journal.tell("bookmark", time + 30)
    return journal, truth


@pytest.mark.parametrize("seed", range(20))
def test_no_answer_is_wrong_and_few_are_unknown(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    journal, truth = story(chance)
    end = truth[-1][0] + 20
    moments = sorted(chance.uniform(-5, end) for _ in range(500))
    found = answers(journal.endpoints(tmp_path), moments)
    unknown = 0
    for moment, row in zip(moments, found, strict=True):
        at_last = max(number for number, (since, _) in enumerate(truth) if since <= moment)
        state = truth[at_last][1]
        unknown += row["endpoint"] == "unknown"
        if row["endpoint"] == "unknown":
            continue
        assert row["endpoint"] in ((state,) if state else ("removed", "not_yet", "never")), (moment, truth)
        if row["endpoint_removed_ns"] is not None:
            removed = at_last
            while not truth[removed - 1][1]:
                removed -= 1
            assert row["endpoint_removed_ns"] == pytest.approx((moment - truth[removed][0]) * SECOND, abs=1000)
    assert unknown < 0.6 * len(moments)


@pytest.mark.parametrize("seed", range(5))
def test_parts_tell_what_the_whole_tells_and_what_is_learnt_twice_changes_nothing(tmp_path: Path, seed: int) -> None:
    journal, _ = story(random.Random(seed))
    shown = dump(tmp_path / "dumps", -120, slice_of(entry()))
    write_journal(tmp_path / "whole", journal.records)
    whole = load_identities([shown, str(tmp_path / "whole")])[0].endpoints
    cut = len(journal.records) // 2
    state = [each for each in journal.records[:cut] if each.object]
    newest = {each.uid: each for each in state}
    now = journal.records[cut - 1].observed_ns
    listing = [type(each)(**(vars(each) | {"type": "listed", "observed_ns": now})) for each in newest.values()]
    listing.append(type(listing[0])("list_complete", now, "EndpointSlice"))
    write_journal(tmp_path / "one", journal.records[:cut])
    write_journal(tmp_path / "two", [*listing, *journal.records[cut:]])
    parts = [load_identities([each])[0].endpoints for each in (shown, str(tmp_path / "one"), str(tmp_path / "two"))]
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        united = Endpoints()
        for part in order:
            united = united.united_with(parts[part])
        moments = [number / 2 for number in range(-10, 800)]
        assert answers(united, moments) == answers(whole, moments)
        for each in (*parts, united, whole):
            assert united.united_with(each).table.equals(united.table)
        stored = Endpoints.of_tables(united.table, united.known_table)
        assert (stored.intervals, stored.known) == (united.intervals, united.known)


# --- in a lake -------------------------------------------------------------------------------------------------------

INCIDENT = Path(__file__).resolve().parents[1] / "sample_pcaps" / "incident"


def test_a_lake_learns_endpoints_and_its_facts_stay(tmp_path: Path) -> None:
    """By the dumps nothing is sure; a journal that begins with the older of them knows more."""
    root = tmp_path / "lake"
    dumps = sorted((INCIDENT / "metadata").iterdir())
    analyze([str(INCIDENT)], root, metadata=[str(dumps[0])], jobs=1)
    was = known_identities(root)
    assert len(was.endpoints.table) > 0
    first = open_lake(root).sql("FROM connections WHERE resp_service IS NOT NULL AND backend_pod IS NOT NULL")
    assert set(first["endpoint"]) == {"unknown"}
    journal = Slices()
    journal.records.clear()
    slices = [item for item in json.loads(dumps[0].read_text())["items"] if item["kind"] == "EndpointSlice"]
    begin = first["first_seen"].min().value
    for item in slices:
        journal.tell("listed", 0, item)
    journal.tell("list_complete", 0)
    journal.tell("bookmark", 3600)
    for record in journal.records:
        record.observed_ns += begin - at(0) - 10
    write_journal(tmp_path, journal.records)
    files = {path: path.stat().st_ino for path in root.glob("flows/*/*/*")}
    enrich(root, [str(tmp_path / "_journal")])
    assert files == {path: path.stat().st_ino for path in root.glob("flows/*/*/*")}
    second = open_lake(root).sql("FROM connections WHERE resp_service IS NOT NULL AND backend_pod IS NOT NULL")
    assert len(second) == len(first)
    assert set(second["endpoint"]) == {"ready"}
    assert all(second["endpoint_pod"] == second["backend_pod"])
    before = sorted(root.rglob("*.parquet"))
    enrich(root, [str(tmp_path / "_journal")])
    assert sorted(root.rglob("*.parquet")) == before
