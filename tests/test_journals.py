"""Who an address was by the journal. Expected names come from the stories that the journals tell of."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard

from analysis import schemas
from analysis.identities import Identities, load_identities
from analysis.node_rows import interfaces_table
from analysis.recordings import rows_of
from analysis.sandboxes import sandboxes
from capture.contract import JournalRecord, Manifest, to_json
from tests.cluster_story import (
    NODE,
    Life,
    interfaces_of,
    journal_of,
    lives_on,
    owners_at,
    seen_with_gap,
)
from tests.node_recordings import at, clock, write_journal

IP = "10.1.0.5"
Object = dict[str, Any]


def who(identities: Identities, moments: Sequence[float], ip: str = IP, port: int | None = None) -> list[str]:
    """Names of pods, services and nodes, and identities without a name."""
    count = len(moments)
    answers = identities.identify(
        pa.array([ip] * count, schemas.NAME),
        pa.array([port] * count, pa.uint16()),
        pa.array(["TCP"] * count, schemas.NAME),
        pa.array([at(moment) for moment in moments], schemas.TIME),
    )
    rows = pa.table(answers).to_pylist()
    return [
        row["pod"] or row["service"] or (row["identity"] == "node" and row["node"]) or row["identity"] for row in rows
    ]


def pod(name: str = "web", ip: str = IP, start: float = 0, **status: Any) -> Object:
    running = [{"state": {"running": {"startedAt": clock(at(start + 1))}}}]
    return {
        "metadata": {"name": name, "namespace": "shop", "uid": f"uid-{name}", "labels": {"app": name}},
        "spec": {"nodeName": NODE, "containers": []},
        "status": {
            "phase": "Running",
            "startTime": clock(at(start)),
            "podIPs": [{"ip": ip}],
            "containerStatuses": running,
        }
        | status,
    }


def finished(at_seconds: float) -> Object:
    return {"containerStatuses": [{"state": {"terminated": {"finishedAt": clock(at(at_seconds))}}}]}


class Journal:
    """Records, in order; each version is a new one."""

    def __init__(self) -> None:
        self.records: list[JournalRecord] = []
        self.version = 0

    def tell(self, type_: str, seconds: float, item: Object | None = None, kind: str = "Pod", **more: Any) -> None:
        self.version += 1
        uid = item["metadata"]["uid"] if item else ""
        self.records.append(JournalRecord(type_, at(seconds), kind, uid, str(self.version), item, **more))

    def identities(self, folder: Path) -> Identities:
        identities, problems = load_identities([str(write_journal(folder, self.records))])
        assert problems == []
        return identities


@pytest.fixture
def journal() -> Journal:
    """It knows all from -60 s on, when there was nothing."""
    journal = Journal()
    for kind in ("Pod", "Service", "Node"):
        journal.tell("list_complete", -60, kind=kind)
    return journal


# --- one pod ---------------------------------------------------------------------------------------------------------


def test_a_pod_owns_its_address_from_its_start_until_it_was_seen_deleted(tmp_path: Path, journal: Journal) -> None:
    journal.tell("added", 5, pod(start=0))
    journal.tell("deleted", 60.5, pod(start=0))
    names = who(journal.identities(tmp_path), [-0.1, 0, 3, 60.4, 60.6])
    assert names == ["unknown", "web", "web", "web", "unknown"]


def test_a_completed_pod_owns_nothing_from_its_end(tmp_path: Path, journal: Journal) -> None:
    journal.tell("added", 5, pod(start=0))
    journal.tell("modified", 40, pod(start=0, phase="Succeeded", **finished(30)))
    assert who(journal.identities(tmp_path), [29, 30.9, 31]) == ["web", "web", "unknown"]


def test_a_pod_that_failed_without_saying_when_owns_nothing_once_that_was_seen(
    tmp_path: Path, journal: Journal
) -> None:
    journal.tell("added", 5, pod(start=0))
    journal.tell("modified", 40, pod(start=0, phase="Failed", containerStatuses=[]))
    assert who(journal.identities(tmp_path), [39, 40]) == ["web", "unknown"]


def test_a_pod_whose_deadline_passed_has_its_address_until_it_is_gone(tmp_path: Path, journal: Journal) -> None:
    doomed = pod(start=0)
    doomed["metadata"] |= {"deletionTimestamp": clock(at(30))}
    journal.tell("added", 5, pod(start=0))
    journal.tell("modified", 10, doomed)
    journal.tell("deleted", 50, doomed)
    assert who(journal.identities(tmp_path), [49, 50]) == ["web", "unknown"]


def test_an_address_that_a_pod_has_no_more_is_not_its_own(tmp_path: Path, journal: Journal) -> None:
    """Its node was booted, its sandbox made again."""
    journal.tell("added", 5, pod(start=0))
    sandbox = {"type": "PodReadyToStartContainers", "status": "True", "lastTransitionTime": clock(at(50))}
    journal.tell("modified", 52, pod(start=0, podIPs=[{"ip": "10.1.0.9"}], conditions=[sandbox]))
    identities = journal.identities(tmp_path)
    assert who(identities, [51, 53]) == ["web", "unknown"]
    assert who(identities, [53], "10.1.0.9") == ["web"]


def test_the_workload_is_known_although_its_owners_are_listed_later(tmp_path: Path, journal: Journal) -> None:
    owned = pod()
    owned["metadata"] |= {"ownerReferences": [{"kind": "Job", "name": "tidy-1", "uid": "uid-tidy", "controller": True}]}
    job = {"metadata": {"name": "tidy-1", "uid": "uid-tidy"}}
    job["metadata"] |= {"ownerReferences": [{"kind": "CronJob", "name": "tidy", "uid": "u", "controller": True}]}  # type: ignore[dict-item]
    journal.tell("added", 5, owned)
    journal.tell("listed", 6, job, "Job")
    (row,) = journal.identities(tmp_path).table.to_pylist()
    assert (row["workload"], row["workload_kind"], row["labels"]) == ("tidy", "CronJob", ["app=web"])


# --- others ----------------------------------------------------------------------------------------------------------


def service(ips: Sequence[str], created: float, **spec: Any) -> Object:
    metadata = {"name": "api", "namespace": "shop", "uid": "uid-api", "creationTimestamp": clock(at(created))}
    return {"metadata": metadata, "spec": {"clusterIPs": list(ips)} | spec, "status": {}}


def test_services_nodes_and_their_ports_are_known_from_change_to_change(tmp_path: Path, journal: Journal) -> None:
    node = {"metadata": {"name": NODE, "uid": "uid-n"}, "spec": {}}
    node["status"] = {"addresses": [{"type": "InternalIP", "address": "192.168.0.1"}]}
    journal.tell("added", 0, node, "Node")
    journal.tell("added", 0, service(["10.96.0.7"], 0, ports=[{"port": 80, "nodePort": 30080}]), "Service")
    journal.tell("modified", 20, service(["10.96.0.7"], 0, ports=[{"port": 80, "nodePort": 30081}]), "Service")
    journal.tell("deleted", 40, service(["10.96.0.7"], 0, ports=[{"port": 80, "nodePort": 30081}]), "Service")
    identities = journal.identities(tmp_path)
    assert who(identities, [10, 39, 40], "10.96.0.7") == ["api", "api", "unknown"]
    assert who(identities, [10, 30], "192.168.0.1", 30080) == ["api", NODE]
    assert who(identities, [10, 30, 50], "192.168.0.1", 30081) == [NODE, "api", NODE]


def test_a_host_network_pod_owns_its_ports_as_long_as_it_lives(tmp_path: Path, journal: Journal) -> None:
    node = {"metadata": {"name": NODE, "uid": "uid-n"}, "spec": {}}
    node["status"] = {"addresses": [{"type": "InternalIP", "address": "192.168.0.1"}]}
    journal.tell("added", 0, node, "Node")
    agent = pod("agent", "192.168.0.1")
    agent["spec"] = {"nodeName": NODE, "hostNetwork": True, "containers": [{"ports": [{"containerPort": 9100}]}]}
    journal.tell("added", 5, agent)
    journal.tell("deleted", 30, agent)
    identities = journal.identities(tmp_path)
    assert who(identities, [10, 31], "192.168.0.1", 9100) == ["agent", NODE]
    assert who(identities, [10], "192.168.0.1", 22) == [NODE]


# --- gaps ------------------------------------------------------------------------------------------------------------


def relisted(journal: Journal, since: float, until: float, *pods: Object, gone: Sequence[Object] = ()) -> None:
    journal.tell("gap", until, since_ns=at(since), reason="the API server was down")
    for each in gone:
        journal.tell("deleted", until, each, unseen_since_ns=at(since))
    for each in pods:
        journal.tell("listed", until, each)
    journal.tell("list_complete", until)


def test_who_was_there_before_and_after_a_gap_was_there_in_between(tmp_path: Path, journal: Journal) -> None:
    journal.tell("added", 5, pod(start=0))
    relisted(journal, 20, 50, pod(start=0))
    identities = journal.identities(tmp_path)
    assert who(identities, [19, 35, 51]) == ["web", "web", "web"]
    assert identities.blind == [(at(20), at(50))]


def test_who_is_gone_after_a_gap_is_not_named_in_it(tmp_path: Path, journal: Journal) -> None:
    journal.tell("added", 5, pod(start=0))
    relisted(journal, 20, 50, gone=[pod(start=0)])
    assert who(journal.identities(tmp_path), [14.9, 16, 49, 51]) == ["web", "unknown", "unknown", "unknown"]


def test_who_began_in_a_gap_is_named_once_it_had_the_address_for_certain(tmp_path: Path, journal: Journal) -> None:
    """Somebody unseen may have had it until then."""
    journal.tell("added", 5, pod("old"))
    relisted(journal, 20, 50, pod("new", start=40), gone=[pod("old")])
    assert who(journal.identities(tmp_path), [14, 39, 41.9, 42, 60]) == ["old", "unknown", "ambiguous", "new", "new"]


def test_another_writer_that_saw_all_fills_the_gap(tmp_path: Path, journal: Journal) -> None:
    cut = Journal()
    cut.records, cut.version = list(journal.records), journal.version
    for each in (journal, cut):
        each.tell("added", 5, pod("old"))
    journal.tell("deleted", 30, pod("old"))
    journal.tell("added", 45, pod("new", start=40))
    journal.tell("bookmark", 90)
    relisted(cut, 20, 50, pod("new", start=40), gone=[pod("old")])
    write_journal(tmp_path, cut.records, "cut")
    write_journal(tmp_path, journal.records, "whole")
    identities, _ = load_identities([str(tmp_path)])
    assert who(identities, [29, 31, 40, 60]) == ["old", "unknown", "new", "new"]
    assert identities.blind == []


def test_files_follow_each_other_unless_one_between_them_is_missing(tmp_path: Path, journal: Journal) -> None:
    journal.tell("added", 5, pod(start=0))
    journal.tell("bookmark", 20)
    later = Journal()
    later.version = 100
    later.tell("listed", 60, pod("other", "10.1.0.9"))
    later.tell("list_complete", 60)
    write_journal(tmp_path / "lost", journal.records, seq=1)
    write_journal(tmp_path / "lost", later.records, seq=3)
    identities, _ = load_identities([str(tmp_path / "lost")])
    assert identities.blind == [(at(20), at(60))]
    assert who(identities, [14, 40]) == ["web", "unknown"]
    write_journal(tmp_path / "next", journal.records, seq=1)
    write_journal(tmp_path / "next", later.records, seq=2)
    assert load_identities([str(tmp_path / "next")])[0].blind == []


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_file_that_was_cut_is_read_to_its_last_whole_record(tmp_path: Path, journal: Journal) -> None:
    for number in range(200):
        journal.tell("added", 5 + number, pod(f"web-{number}", f"10.1.1.{number}"))
    lines = [to_json(record) for record in journal.records]
    file = tmp_path / "_journal" / "w" / "20260301" / f"{at(0)}-000001.jsonl.part"
    file.parent.mkdir(parents=True)
    compressor = zstandard.ZstdCompressor().compressobj()
    content = b""
    for line in lines[:-1]:
        content += compressor.compress(line) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    file.write_bytes(content + (compressor.compress(lines[-1]) + compressor.flush())[:-9])
    identities, problems = load_identities([str(tmp_path)])
    assert (len(identities.table), problems) == (199, [])
    sealed = file.with_name(file.name.replace(".part", ".zst"))
    file.rename(sealed)
    identities, problems = load_identities([str(tmp_path)])
    assert (len(identities.table), [problem.path for problem in problems]) == (199, [str(sealed)])


def test_what_is_no_record_or_no_object_costs_itself_only(tmp_path: Path, journal: Journal) -> None:
    journal.tell("added", 5, pod("broken", podIPs="yes"))
    journal.tell("added", 6, pod())
    path = write_journal(tmp_path, journal.records)
    path.write_bytes(path.read_bytes() + zstandard.compress(b'{"type": 3}\nno json\n'))
    identities, problems = load_identities([str(tmp_path)])
    assert identities.table["name"].to_pylist() == ["web"]
    assert [problem.path for problem in problems] == [str(path)] * 3


def test_a_dump_from_before_the_journal_ends_where_the_journal_does_not_know_its_pod(
    tmp_path: Path, journal: Journal
) -> None:
    (tmp_path / "d-20260301T140000Z.json").write_text(
        '{"kind": "List", "items": [{"kind": "Pod", "metadata": {"name": "old", "namespace": "shop", "uid": "u"}, '
        f'"status": {{"phase": "Running", "startTime": "{clock(at(-900))}", "podIP": "{IP}"}}}}]}}'
    )
    journal.tell("added", 5, pod(start=0))
    write_journal(tmp_path, journal.records)
    identities, _ = load_identities([str(tmp_path)])
    assert who(identities, [-300, -30, 10]) == ["old", "unknown", "web"]


def test_what_was_learnt_twice_is_what_was_learnt_once(tmp_path: Path) -> None:
    chance = random.Random(1)
    lives = lives_on(IP, chance, 120, (2, 9), 1)
    write_journal(tmp_path, journal_of(lives, chance, 3))
    identities, _ = load_identities([str(tmp_path)])
    networks = sandboxes(told_by_the_kernel(lives, chance))
    for known in (networks, None):
        once = Identities.empty().united_with(identities, known)
        assert once.united_with(identities, known).table.equals(once.table)
        assert once.united_with(Identities.empty(), known).table.equals(once.table)


# --- stories ---------------------------------------------------------------------------------------------------------

STEP = 0.03


def told_by_the_kernel(lives: list[Life], chance: random.Random) -> list[dict[str, Any]]:
    times = {"opened_ns": at(-60), "sealed_ns": at(10_000)}
    manifest = Manifest("prod", NODE, "x", **times, link_type=276, snaplen=0, packets=0, size_bytes=0, sha256="")
    manifest.interfaces = interfaces_of(lives, chance)
    return list(rows_of(interfaces_table([manifest]), NODE))


def judged(identities: Identities, lives: list[Life], ip: str, until: float) -> tuple[list[Any], int, int]:
    """What is wrong; how often somebody ran, and how often that one was named."""
    moments = [STEP * number for number in range(round(until / STEP))]
    wrong, running, named = [], 0, 0
    for moment, name in zip(moments, who(identities, moments, ip), strict=True):
        truth = owners_at(lives, moment)
        is_running = any(life.run <= moment < life.finish for life in lives)
        running += is_running
        named += is_running and name in truth
        if name not in truth | {"ambiguous", "unknown"}:
            wrong.append((moment, name, truth))
    return wrong, running, named


@pytest.mark.parametrize("clock_s", [0, -0.9, 0.9])
@pytest.mark.parametrize("seed", range(15))
def test_no_name_is_wrong_however_late_the_journal_hears_of_it(tmp_path: Path, seed: int, clock_s: float) -> None:
    chance = random.Random(seed)
    lives = lives_on(IP, chance, 300, (0.1, 60), 1)
    write_journal(tmp_path, journal_of(lives, chance, 10, clock_s))
    identities, _ = load_identities([str(tmp_path)])
    wrong, running, named = judged(identities, lives, IP, 300)
    assert wrong == []
    assert named / running > 0.8


def test_of_pods_that_live_for_minutes_all_but_a_hundredth_is_named(tmp_path: Path) -> None:
    chance = random.Random(4)
    lives = lives_on(IP, chance, 3600, (120, 600), 1)
    write_journal(tmp_path, journal_of(lives, chance, 10))
    wrong, running, named = judged(load_identities([str(tmp_path)])[0], lives, IP, 3600)
    assert (wrong, len(lives) > 5, named / running > 0.99) == ([], True, True)


def test_three_pods_on_one_address_in_ten_seconds_are_told_apart_by_their_interfaces(tmp_path: Path) -> None:
    running = named = 0
    for seed in range(60):
        chance = random.Random(seed)
        lives = lives_on(IP, chance, 10, (1.5, 3), 1)
        write_journal(tmp_path / str(seed), journal_of(lives, chance, 10, chance.uniform(-0.9, 0.9)))
        networks = sandboxes(told_by_the_kernel(lives, chance))
        found, _ = load_identities([str(tmp_path / str(seed))])
        wrong, of_seed, named_of_seed = judged(Identities.empty().united_with(found, networks), lives, IP, 20)
        assert wrong == [], seed
        running += of_seed
        named += named_of_seed
    assert named / running > 0.99


@pytest.mark.parametrize("seed", range(30))
def test_in_a_gap_no_name_is_wrong(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    lives = lives_on(IP, chance, 200, (1, 40), 1)
    records = seen_with_gap(journal_of(lives, chance, 1), 60, 120)
    write_journal(tmp_path, records)
    found, _ = load_identities([str(tmp_path)])
    for networks in (None, sandboxes(told_by_the_kernel(lives, chance))):
        wrong, running, named = judged(Identities.empty().united_with(found, networks), lives, IP, 200)
        assert wrong == []
        assert named / running > 0.4


def test_two_writers_that_were_both_cut_off_make_one_journal(tmp_path: Path) -> None:
    chance = random.Random(3)
    lives = lives_on(IP, chance, 200, (5, 40), 1)
    records = journal_of(lives, chance, 1)
    one_late = [replace(each, observed_ns=each.observed_ns + 400_000_000) for each in records]
    write_journal(tmp_path, seen_with_gap(records, 60, 90), "journal-0")
    write_journal(tmp_path, seen_with_gap(one_late, 100, 120), "journal-1")
    both, _ = load_identities([str(tmp_path)])
    write_journal(tmp_path / "whole", records)
    whole, _ = load_identities([str(tmp_path / "whole")])
    moments = [STEP * number for number in range(6000)]
    assert both.blind == []
    same = [one == other for one, other in zip(who(both, moments), who(whole, moments), strict=True)]
    assert sum(same) / len(same) > 0.97
    assert judged(both, lives, IP, 200)[0] == []
