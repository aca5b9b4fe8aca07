"""The journal against an API server that fails in every way it can: what is replayed is what is there."""

from __future__ import annotations

import random
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from capture import journal, journal_files, metrics
from capture.journal import JournalLimits
from tests.journal_rig import HEALED_S, PODS, Rig, churn, make_pod, make_server, running, truth
from tests.journals import Record, files_of, read, replay
from tests.lab.api_server import ApiServer


def of_type(records: list[Record], *types: str) -> list[Record]:
    return [record for record in records if record["type"] in types]


def test_a_journal_that_begins_is_replayed_to_what_is_there(tmp_path: Path) -> None:
    with make_server() as server:
        for number in range(600):
            server.apply(make_pod(f"p{number}", f"10.244.{number // 250}.{number % 250 + 1}"))
        service = {"name": "web", "namespace": "shop", "uid": "s"}
        server.apply({"kind": "Service", "apiVersion": "v1", "metadata": service, "spec": {"clusterIP": "10.96.0.1"}})
        with running(tmp_path, server) as rig:
            rig.until_true()
            assert len(of_type(rig.records(), "listed")) == 601
            assert len(of_type(rig.records(), "list_complete")) == 10
            assert of_type(rig.records(), "gap") == []
            server.apply(make_pod("late", "10.244.9.9"))
            server.delete(make_pod("p5"))
            rig.until_true()
        assert [record["uid"] for record in of_type(rig.records(), "added", "deleted")] == ["uid-late", "uid-p5"]
        assert rig.records()[-1]["type"] == "stopped"
        assert [path.suffix for path in files_of(rig.root)] == [".zst"]


FAULTS: list[tuple[str, dict[str, Any]]] = [
    ("500", {}),
    ("429", {"retry_after": 1}),
    ("401", {}),
    ("403", {}),
    ("410", {"verb": "watch"}),
    ("eof", {}),
    ("reset", {}),
    ("silence", {}),
    ("bad-json", {}),
    ("slow", {"delay": 0.2}),
]


def test_after_a_fault_what_is_known_is_what_is_there(tmp_path: Path) -> None:
    """A minute is three seconds here. All at once, each with a server of its own, for they take a while."""
    with ThreadPoolExecutor(len(FAULTS)) as pool:
        tests = {fault: pool.submit(_survive, tmp_path / fault, fault, options) for fault, options in FAULTS}
    assert {fault: str(error) for fault, test in tests.items() if (error := test.exception())} == {}


def _survive(folder: Path, fault: str, options: dict[str, Any]) -> None:
    folder.mkdir()
    with make_server() as server:
        churn(server, 0)
        with running(folder, server, kinds=PODS) as rig:
            rig.until_true()
            injected = server.inject(fault, "pods", **options)
            begun = time.time()
            for number in range(1, 16):
                churn(server, number)
                time.sleep(0.1)
            server.heal(injected)
            rig.until_true(HEALED_S)
            assert injected.count
            assert len([request for request in server.requests if request.time > begun]) <= 12
            churn(server, 99)
            rig.until_true()


def test_a_server_that_is_killed_and_forgets(tmp_path: Path) -> None:
    """The deletions that went unseen are told, and since when."""
    with make_server() as server:
        server.apply(make_pod("a", "10.244.0.1"))
        server.apply(make_pod("b", "10.244.0.2"))
        with running(tmp_path, server, kinds=PODS) as rig:
            rig.until_true()
            before = time.time_ns()
            server.stop()
            server.delete(make_pod("a"))
            rig.until(lambda: bool(rig.journal.ready()))
            server.compact()
            server.store.restart()
            server.start()
            rig.until_true()
            [gap] = of_type(rig.records(), "gap")
            [deleted] = of_type(rig.records(), "deleted")
            assert (deleted["uid"], deleted["unseen_since_ns"]) == ("uid-a", gap["since_ns"])
            assert before - 2 * 10**9 < gap["since_ns"] < gap["observed_ns"]
            assert rig.counts.get(metrics.JOURNAL_GAPS, "Pod") == 1


def test_a_server_that_comes_back_and_remembers_leaves_no_gap(tmp_path: Path) -> None:
    with make_server() as server:
        server.apply(make_pod("a", "10.244.0.1"))
        with running(tmp_path, server, kinds=PODS) as rig:
            rig.until_true()
            server.stop()
            server.delete(make_pod("a"))
            server.apply(make_pod("b", "10.244.0.1"))
            rig.until(lambda: rig.journal.ready() == ["Pod: Connection refused"])
            server.start()
            rig.until_true()
            assert of_type(rig.records(), "gap") == []
            [deleted] = of_type(rig.records(), "deleted")
            assert deleted["unseen_since_ns"] < deleted["observed_ns"]


def test_a_kind_that_is_not_served_stops_nobody(tmp_path: Path) -> None:
    with ApiServer() as server:
        served = tuple(each for each in server.resources if each.kind != "Ingress")
    with ApiServer(resources=served) as server, running(tmp_path, server, kinds=("Pod", "Ingress")) as rig:
        rig.until_true()
        time.sleep(0.2)
        assert rig.journal.ready() == []


def test_a_kind_that_may_not_be_read_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    with make_server() as server, server.faulty("403", "events"), running(tmp_path, server) as rig:
        server.apply(make_pod("a", "10.244.0.1"))
        rig.until(lambda: rig.state() == truth(server))
        rig.until(lambda: len(rig.journal.ready()) == 1)
        assert rig.journal.ready()[0].startswith("Event: HTTP 403: events is forbidden")


def test_after_a_crash_the_time_since_then_is_a_gap(tmp_path: Path) -> None:
    with make_server() as server, running(tmp_path, server, kinds=("Pod", "Node")) as rig:
        server.apply(make_pod("a", "10.244.0.1"))
        rig.until_true()
        killed_ns = time.time_ns()
        rig.kill()
        server.delete(make_pod("a"))
        server.apply(make_pod("b", "10.244.0.1"))
        started_ns = time.time_ns()
        rig.start()
        rig.until_true()
        old, new = files_of(rig.root)
        assert (old.suffix, new.suffix) == (".zst", ".part")
        assert [record["uid"] for record in of_type(read(old), "listed", "added")] == ["uid-a"]
        gaps = of_type(read(new), "gap")
        assert sorted(gap["kind"] for gap in gaps) == ["Node", "Pod"]
        for gap in gaps:
            assert killed_ns - 10**9 < gap["since_ns"] <= killed_ns
            assert gap["observed_ns"] >= started_ns
            assert gap["reason"] == "podtap journal was not running"


def test_after_a_blind_end_the_gap_begins_where_it_went_blind(tmp_path: Path) -> None:
    with make_server() as server, running(tmp_path, server, kinds=PODS) as rig:
        server.apply(make_pod("a", "10.244.0.1"))
        rig.until_true()
        with server.faulty("500"):
            server.stop()
            server.start()
            rig.until(lambda: bool(rig.journal.ready()))
            blind_ns = rig.reflectors[0].blind_since_ns
            time.sleep(0.5)
            rig.kill()
        rig.start()
        rig.until_true()
        [gap] = of_type(rig.records(), "gap")
        assert gap["since_ns"] == blind_ns


def test_every_file_stands_alone(tmp_path: Path) -> None:
    """Of those that were ended while pods came and went, each one's end is what the next one begins with."""
    limits = JournalLimits(file_bytes=600)
    with make_server() as server, running(tmp_path, server, kinds=PODS, limits=limits) as rig:
        for number in range(40):
            churn(server, number)
            time.sleep(0.03)
        rig.until_true()
    files = files_of(rig.root)
    assert len(files) > 2
    for before, after in pairwise(files):
        records = read(after)
        first = next(index for index, record in enumerate(records) if record["type"] == "list_complete")
        assert {record["type"] for record in records[:first]} <= {"listed"}
        assert replay(records[: first + 1]) == replay(read(before))


def test_a_listing_that_is_larger_than_a_file_does_not_end_one_after_the_other(tmp_path: Path) -> None:
    limits = JournalLimits(file_bytes=600)
    with make_server() as server, running(tmp_path, server, kinds=PODS, limits=limits) as rig:
        for number in range(30):
            server.apply(make_pod(f"p{number}", f"10.244.0.{number + 1}"))
        rig.until_true()
        before = len(files_of(rig.root))
        time.sleep(0.5)
        assert len(files_of(rig.root)) <= before + 1


def test_a_full_disk_is_a_gap_and_then_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "RETRY_S", 0.2)
    broken = threading.Event()
    put = journal_files.Part._put

    def refuse(self: journal_files.Part) -> None:
        if broken.is_set() and self._waiting:
            raise OSError(28, "No space left on device")
        put(self)

    monkeypatch.setattr(journal_files.Part, "_put", refuse)
    with make_server() as server, running(tmp_path, server, kinds=PODS) as rig:
        server.apply(make_pod("a", "10.244.0.1"))
        server.apply(make_pod("b", "10.244.0.2"))
        rig.until_true()
        broken.set()
        server.delete(make_pod("a"))
        rig.until(lambda: rig.journal.ready() == ["nothing can be written: No space left on device"])
        server.apply(make_pod("c", "10.244.0.3"))
        broken.clear()
        rig.until_true()
        old, new = files_of(rig.root)
        assert (old.suffix, new.suffix) == (".zst", ".part")
        [gap, *listing] = read(new)
        assert (gap["type"], gap["reason"]) == ("gap", "No space left on device")
        assert [record.get("uid") for record in listing] == ["uid-b", "uid-c", None]
        assert rig.counts.get(metrics.WRITE_ERRORS, "No space left on device")


def test_a_folder_that_vanishes_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "RETRY_S", 0.2)
    with make_server() as server, running(tmp_path, server, kinds=PODS) as rig:
        server.apply(make_pod("a", "10.244.0.1"))
        rig.until_true()
        shutil.rmtree(tmp_path / "root")
        rig.until(lambda: rig.journal.ready() == ["nothing can be written: the file is gone"])
        server.apply(make_pod("b", "10.244.0.2"))
        rig.until(lambda: bool(files_of(rig.root)))
        rig.until_true()
        assert of_type(rig.records(), "gap")[0]["reason"] == "the file is gone"


def test_what_it_counts(tmp_path: Path) -> None:
    with make_server() as server, running(tmp_path, server, kinds=PODS) as rig:
        rig.until_true()
        server.apply(make_pod("a", "10.244.0.1"))
        rig.until_true()
        server.stop()
        rig.until(lambda: "podtap_journal_blind{" in rig.counts.exposition() and bool(rig.journal.ready()))
        time.sleep(0.2)
        exposed = dict(line.rsplit(" ", 1) for line in rig.counts.exposition().splitlines() if line[0] != "#")
        assert exposed['podtap_journal_blind{kind="Pod"}'] == "1"
        assert exposed['podtap_journal_objects{kind="Pod"}'] == "1"
        assert exposed['podtap_journal_records_total{kind="Pod",type="added"}'] == "1"
        assert float(exposed['podtap_journal_blind_seconds_total{kind="Pod"}']) > 0.1
        assert float(exposed['podtap_journal_failures_total{kind="Pod",reason="broken"}']) >= 1
        lists = [request for request in server.requests if not request.is_watch]
        assert exposed['podtap_journal_requests_total{kind="Pod",verb="list"}'] == str(len(lists))
        assert abs(float(exposed['podtap_journal_last_event_timestamp_seconds{kind="Pod"}']) - time.time()) < 30
        taken = sum(path.stat().st_size for path in files_of(rig.root))
        assert exposed["podtap_journal_bytes"] == str(taken)
        server.start()


def test_two_journals_make_one_truth(tmp_path: Path) -> None:
    with make_server() as server, running(tmp_path, server, kinds=PODS) as rig:
        (tmp_path / "second").mkdir()
        with running(tmp_path / "second", server, kinds=PODS, writer="journal-1") as other:
            churn(server, 1)
            rig.until_true()
            other.until_true()
            assert rig.state() == other.state()
            assert {path.parts[-3] for path in [*files_of(rig.root), *files_of(other.root)]} == {
                "journal-0",
                "journal-1",
            }


def test_faults_by_chance_do_not_change_the_truth(tmp_path: Path) -> None:
    chance = random.Random(7)
    with make_server() as server, running(tmp_path, server, kinds=PODS) as rig:
        for number in range(60):
            churn(server, number)
            if chance.random() < 0.3:
                fault, options = chance.choice(FAULTS)
                server.inject(fault, "pods", times=chance.randrange(1, 3), **options)
            if chance.random() < 0.05:
                server.compact()
                server.restart()
            time.sleep(0.05)
        server.heal()
        rig.until_true(HEALED_S)


def test_rig_is_of_use(tmp_path: Path) -> None:
    """If the journal lost one change, until_true() would wait in vain."""
    with make_server() as server, running(tmp_path, server, kinds=PODS) as rig:
        rig.until_true()
        rig.journal.write = lambda records: None  # type: ignore[method-assign]
        server.apply(make_pod("a", "10.244.0.1"))
        with pytest.raises(AssertionError, match="waited in vain"):
            Rig.until_true(rig, 0.5)
