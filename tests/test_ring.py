"""A node's folder: segments are sealed in a chain, the oldest go, and nothing is forgotten."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from capture.errors import PodtapError, UsageError
from capture.freezes import add_freeze, thaw
from capture.ring import Limits, Ring
from tests.rings import (
    NANOSECONDS,
    SMALL,
    START_NS,
    assert_hashes,
    assert_sealed,
    disk_bytes,
    facts,
    files,
    manifests,
    pcap,
    record_segment,
    sll2_packets,
    tombstones,
    walk,
)


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[Ring]:
    ring = Ring(tmp_path, "lab", "node-a", SMALL)
    ring.salvage()
    yield ring
    ring.close()


def again(ring: Ring, limits: Limits = SMALL) -> Ring:
    """As after a restart of the agent."""
    ring.close()
    ring = Ring(ring.folder.parents[1], "lab", "node-a", limits)
    ring.salvage()
    return ring


# --- A segment's life ------------------------------------------------------------------------------------------------


def test_a_segment_is_hidden_until_it_is_sealed(ring: Ring) -> None:
    packets = sll2_packets(10, START_NS)
    data = pcap(packets)
    part = ring.open(START_NS)
    assert files(ring.folder) == {f"{part.stem}.pcap.part", "ring.json"}
    os.write(part.fd, data)
    manifest = ring.seal(part, facts(data, packets))
    assert files(ring.folder) == {f"{part.stem}.pcap", f"{part.stem}.json", "ring.json"}
    assert (manifest.packets, manifest.first_packet_ns, manifest.last_packet_ns) == (10, START_NS, START_NS + 9 * 10**6)
    assert (manifest.cluster, manifest.node, manifest.opened_ns) == ("lab", "node-a", START_NS)
    assert manifest.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert_sealed(ring.folder)


def test_what_is_behind_the_last_whole_record_is_cut_off(ring: Ring) -> None:
    packets = sll2_packets(10, START_NS)
    data = pcap(packets)
    part = ring.open(START_NS)
    os.write(part.fd, data + data[24:60])
    ring.seal(part, facts(data, packets))
    assert_sealed(ring.folder)


def test_a_file_shorter_than_what_was_written_is_not_sealed(ring: Ring) -> None:
    packets = sll2_packets(10, START_NS)
    data = pcap(packets)
    part = ring.open(START_NS)
    os.write(part.fd, data[:-1])
    with pytest.raises(OSError, match="bytes of"):
        ring.seal(part, facts(data, packets))
    assert manifests(ring.folder) == []


def test_an_open_file_is_never_opened_twice(ring: Ring) -> None:
    part = ring.open(START_NS)
    with pytest.raises(FileExistsError):
        os.open(part.path, os.O_CREAT | os.O_EXCL)
    other = ring.open(START_NS)
    assert other.path != part.path


def test_nothing_is_left_of_what_is_discarded(ring: Ring) -> None:
    ring.discard(ring.open(START_NS))
    assert files(ring.folder) == {"ring.json"}
    assert record_segment(ring).stem.endswith("-000001")


def test_names_are_in_order_where_the_clock_jumps_back_and_over_restarts(ring: Ring) -> None:
    stems = []
    for now_ns in (START_NS, START_NS - 86_400 * 10**9, START_NS + 5, 0):
        part = ring.open(now_ns)
        stems.append(ring.seal(part, facts(b"", [])).stem)
    ring = again(ring)
    stems.append(ring.seal(ring.open(17), facts(b"", [])).stem)
    ring.close()
    assert stems == sorted(stems)
    assert [int(stem[-6:]) for stem in stems] == [1, 2, 3, 4, 5]
    assert walk(ring.folder) == stems[::-1]


def test_the_number_counts_on_when_all_has_been_evicted(ring: Ring) -> None:
    record_segment(ring)
    record_segment(ring)
    ring = again(ring, replace(SMALL, max_age_ns=1))
    assert manifests(ring.folder) == []
    assert record_segment(ring).stem.endswith("-000003")
    assert len(walk(ring.folder)) == 3
    ring.close()


def test_a_folder_belongs_to_one_agent(ring: Ring, tmp_path: Path) -> None:
    other = Ring(tmp_path, "lab", "node-a", SMALL)
    with pytest.raises(PodtapError, match="another agent records into this folder"):
        other.salvage()
    neighbour = Ring(tmp_path, "lab", "node-b", SMALL)
    neighbour.salvage()
    neighbour.close()


@pytest.mark.parametrize("name", ["../../etc", "a/b", "", ".hidden", "_journal", "x" * 300, "näme", "a\0b"])
def test_names_from_outside_stay_inside(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    ring = Ring(root, name, name, SMALL)
    ring.salvage()
    record_segment(ring)
    ring.close()
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
    assert len(list(root.glob("[!_.]*/[!_.]*/[0-9]*/*.pcap"))) == 1


# --- Quotas ----------------------------------------------------------------------------------------------------------


def test_the_oldest_go_first_and_the_folder_never_exceeds_its_quota(ring: Ring) -> None:
    largest = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal largest
        while not done.wait(0.001):
            largest = max(largest, disk_bytes(ring.folder))

    watcher = threading.Thread(target=watch)
    watcher.start()
    stems = [record_segment(ring, packets=500).stem for _ in range(60)]
    done.set()
    watcher.join()
    left = [manifest["stem"] for manifest in manifests(ring.folder)]
    assert 0.7 * SMALL.quota_bytes < largest <= SMALL.quota_bytes
    assert left == stems[-len(left) :]
    assert {each["reason"] for each in tombstones(ring.folder)} == {"quota"}
    assert_hashes(ring.folder)


def test_the_chain_can_be_walked_after_a_thousand_evictions(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # it takes a minute else
    ring = again(ring, replace(SMALL, segments=8))
    for at in range(1100):
        ring.seal(ring.open(START_NS + at), facts(b"", []))
        if at % 300 == 123:
            ring = again(ring, replace(SMALL, segments=8))
    ring.close()
    stones = tombstones(ring.folder)
    walk(ring.folder)
    assert len(stones) < 100
    assert sum(each["segments"] for each in stones) + len(manifests(ring.folder)) == 1100


def test_what_is_too_old_goes(ring: Ring) -> None:
    ring = again(ring, replace(SMALL, max_age_ns=NANOSECONDS // 4))
    old = record_segment(ring).stem
    time.sleep(0.3)
    new = record_segment(ring).stem
    ring.close()
    assert [manifest["stem"] for manifest in manifests(ring.folder)] == [new]
    assert [(each["stem"], each["reason"]) for each in tombstones(ring.folder)] == [(old, "age")]


@pytest.mark.parametrize("years", [10, -10])
def test_a_jump_of_the_clock_makes_nothing_old(ring: Ring, years: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = again(ring, replace(SMALL, max_age_ns=3600 * NANOSECONDS))
    stems = [record_segment(ring).stem]
    jumped_ns = time.time_ns() + years * 365 * 86_400 * NANOSECONDS
    monkeypatch.setattr(time, "time_ns", lambda: jumped_ns)
    stems.append(record_segment(ring).stem)
    monkeypatch.undo()
    stems.append(record_segment(ring).stem)
    ring.close()
    assert [manifest["stem"] for manifest in manifests(ring.folder)] == stems == sorted(stems)
    walk(ring.folder)


def test_a_segment_that_grows_takes_room_from_the_oldest(ring: Ring) -> None:
    for _ in range(12):
        record_segment(ring, packets=500)
    part = ring.open(START_NS)
    for _ in range(80):
        ring.make_room(8192)
        os.write(part.fd, bytes(8192))
        assert disk_bytes(ring.folder) <= SMALL.quota_bytes
    assert 0 < len(manifests(ring.folder)) < 6


def test_there_is_room_for_a_segment_without_waiting_for_the_sealing_thread(ring: Ring) -> None:
    """Which may hold the lock while it waits for the disk."""
    ring.open(START_NS)
    with ring._lock:
        thread = threading.Thread(target=ring.make_room, args=(SMALL.segment_bytes,), daemon=True)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()


def test_what_could_never_fit_evicts_nothing(ring: Ring) -> None:
    for _ in range(4):
        record_segment(ring, packets=500)
    ring.open(START_NS)
    with pytest.raises(OSError, match="quota"):
        ring.make_room(SMALL.quota_bytes)
    assert len(manifests(ring.folder)) == 4


def test_a_quota_without_room_for_a_few_segments_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="too small for segments"):
        Ring(tmp_path, "lab", "node-a", Limits(quota_bytes=100 << 20, segment_bytes=64 << 20))


# --- Freezes ---------------------------------------------------------------------------------------------------------


def test_a_frozen_window_stays_also_what_is_still_to_come(ring: Ring) -> None:
    minute = 60 * NANOSECONDS
    add_freeze(ring.folder, START_NS + 2 * minute, START_NS + 5 * minute, "incident 17", "alice")
    stems = [record_segment(ring, 500, START_NS + at * minute).stem for at in range(40)]
    left = [manifest["stem"] for manifest in manifests(ring.folder)]
    assert left[:3] == stems[2:5]
    assert left[3:] == stems[-len(left[3:]) :]
    walk(ring.folder)
    state = ring.state(0)
    assert (state.frozen_segments, state.oldest_ns) == (3, START_NS + 2 * minute)
    assert state.oldest_frozen_ns == START_NS + 2 * minute
    assert state.oldest_unfrozen_ns == START_NS + stems.index(left[3]) * minute


def test_a_freeze_outlives_a_restart_and_a_thaw_ends_it(ring: Ring) -> None:
    freeze = add_freeze(ring.folder, START_NS, START_NS + 1)
    first = record_segment(ring, 500, START_NS).stem
    ring = again(ring)
    for _ in range(30):
        record_segment(ring, 500)
    assert manifests(ring.folder)[0]["stem"] == first
    assert thaw(ring.folder, freeze.id)
    assert not thaw(ring.folder, freeze.id)
    record_segment(ring, 500)
    assert manifests(ring.folder)[0]["stem"] != first
    walk(ring.folder)
    ring.close()


def test_where_the_frozen_quota_is_full_no_more_is_pinned_and_it_is_said(ring: Ring) -> None:
    ring = again(ring, replace(SMALL, frozen_quota_bytes=200 << 10))
    add_freeze(ring.folder, 0, 2 * START_NS)
    stems = [record_segment(ring, 500, START_NS).stem for _ in range(40)]
    state = ring.state(0)
    assert [manifest["stem"] for manifest in manifests(ring.folder)][:3] == stems[:3]
    assert state.frozen_segments == 3
    assert state.frozen_bytes <= 200 << 10
    assert state.refused_segments == state.segments - 3
    assert ["frozen" in problem for problem in state.problems] == [True]
    assert {each["reason"] for each in tombstones(ring.folder)} == {"frozen_quota"}
    ring = again(ring, replace(SMALL, frozen_quota_bytes=0))
    record_segment(ring, 500)
    assert [manifest["stem"] for manifest in manifests(ring.folder)][:3] == stems[:3], "what is pinned stays pinned"
    ring.close()


def test_an_earlier_freeze_never_displaces_what_is_pinned(ring: Ring) -> None:
    ring = again(ring, replace(SMALL, frozen_quota_bytes=130 << 10))
    add_freeze(ring.folder, START_NS, START_NS + 10 * NANOSECONDS)
    add_freeze(ring.folder, START_NS + 100 * NANOSECONDS, START_NS + 200 * NANOSECONDS)
    second = [record_segment(ring, 500, START_NS + 100 * NANOSECONDS).stem for _ in range(2)]
    record_segment(ring, 500, START_NS)
    ring = again(ring, replace(SMALL, frozen_quota_bytes=130 << 10))
    for _ in range(30):
        record_segment(ring, 500, START_NS + 300 * NANOSECONDS)
    assert [manifest["stem"] for manifest in manifests(ring.folder)][:2] == second
    ring.close()


def test_nothing_is_evicted_while_freezes_cannot_be_read(ring: Ring) -> None:
    record_segment(ring, 500)
    (ring.folder / "freezes").write_text("not a folder")
    with pytest.raises(OSError, match="freezes"):
        for _ in range(40):
            record_segment(ring, 500)
    assert tombstones(ring.folder) == []
    assert "freezes" in ring.state(0).problems[0]
    (ring.folder / "freezes").unlink()
    record_segment(ring, 500)
    assert ring.state(0).problems == []


def test_a_freeze_that_turns_unreadable_still_holds(ring: Ring) -> None:
    freeze = add_freeze(ring.folder, START_NS, START_NS + 1)
    first = record_segment(ring, 500, START_NS).stem
    (ring.folder / "freezes" / f"{freeze.id}.json").write_text("{")
    (ring.folder / "freezes" / "other.json").symlink_to("/etc/passwd")
    os.mkfifo(ring.folder / "freezes" / "fifo.json")
    for _ in range(30):
        record_segment(ring, 500)
    assert manifests(ring.folder)[0]["stem"] == first
    assert len(ring.state(0).problems) == 3


# --- What others do to the folder ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffixes", [[".pcap"], [".json"], [".pcap", ".json"]], ids="".join)
@pytest.mark.parametrize("restart", [False, True], ids=["running", "stopped"])
@pytest.mark.parametrize("which", [0, 2, 4], ids=["oldest", "middle", "newest"])
def test_what_somebody_removes_leaves_a_tombstone(ring: Ring, suffixes: list[str], restart: bool, which: int) -> None:
    stems = [record_segment(ring).stem for _ in range(5)]
    if restart:
        ring.close()
    for suffix in suffixes:
        (ring.folder / f"{stems[which]}{suffix}").unlink()
    if restart:
        ring = again(ring)
    record_segment(ring)
    ring.close()
    (lost,) = tombstones(ring.folder)
    assert (lost["reason"], lost.get("segments")) == ("lost", 1)
    walk(ring.folder)
    assert ring.state(0).lost_segments == 1
    if not restart or suffixes == [".pcap"]:
        assert (lost["stem"], lost["packets"]) == (stems[which], 100)
    kept = [manifest["stem"] for manifest in manifests(ring.folder)]
    assert [stem for stem in stems if stem in kept] == [stem for stem in stems if stem != stems[which]]
    if restart and suffixes == [".json"]:
        (salvaged,) = [manifest for manifest in manifests(ring.folder) if manifest["salvaged"]]
        assert salvaged["packets"] == 100
    assert_hashes(ring.folder)


def test_tombstones_that_somebody_removed_are_one(ring: Ring) -> None:
    for _ in range(30):
        record_segment(ring, 500)
    (ring.folder / "tombstones.jsonl").unlink()
    ring = again(ring)
    ring.close()
    assert [each["reason"] for each in tombstones(ring.folder)] == ["lost"]
    walk(ring.folder)


def test_a_torn_tombstone_is_cut_off(ring: Ring) -> None:
    for _ in range(30):
        record_segment(ring, 500)
    before = tombstones(ring.folder)
    with open(ring.folder / "tombstones.jsonl", "a") as file:
        file.write('{"stem":"2026')
    ring = again(ring)
    ring.close()
    assert tombstones(ring.folder) == before


def test_files_of_others_are_left_alone(ring: Ring, tmp_path: Path) -> None:
    day = record_segment(ring).stem[:8]
    (tmp_path / "target").write_bytes(b"precious")
    others = [ring.folder / day / "notes.txt", ring.folder / "README", ring.folder / day / "1.pcap"]
    for path in others:
        path.write_bytes(b"theirs")
    link = ring.folder / day / "1795000000000000000-000009.pcap.part"
    link.symlink_to(tmp_path / "target")
    ring = again(ring)
    for _ in range(30):
        record_segment(ring, 500)
    ring.close()
    assert all(path.read_bytes() == b"theirs" for path in others)
    assert (tmp_path / "target").read_bytes() == b"precious"
    assert link.is_symlink()


@pytest.mark.parametrize(
    "text", ["", "[]", "17", '{"time_ns": 1, "last_stem": 5, "last_manifest_sha256": 6}', "[" * 9999]
)
def test_a_state_that_somebody_wrote_stops_no_start(ring: Ring, text: str) -> None:
    record_segment(ring)
    (ring.folder / "ring.json").write_text(text)
    ring = again(ring)
    record_segment(ring)
    ring.close()
    assert len(walk(ring.folder)) == 2


def test_a_name_that_somebody_wrote_takes_no_names_away(ring: Ring) -> None:
    (ring.folder / "22860101").mkdir()
    (ring.folder / "22860101" / "9999999999999999999-999999.pcap").write_bytes(pcap(sll2_packets(3, START_NS)))
    for _ in range(2):
        ring = again(ring)
        record_segment(ring)
    ring.close()
    assert sorted(walk(ring.folder)) == [manifest["stem"] for manifest in manifests(ring.folder)]
    assert len(manifests(ring.folder)) == 3


@pytest.mark.parametrize("which", [1, 2], ids=["middle", "newest"])
def test_an_edited_manifest_is_not_healed(ring: Ring, which: int) -> None:
    """What follows names the true one: whoever verifies sees it."""
    stems = [record_segment(ring).stem for _ in range(3)]
    path = ring.folder / f"{stems[which]}.json"
    path.write_text(path.read_text().replace('"packets": 100', '"packets": 99'))
    ring = again(ring)
    record_segment(ring)
    ring.close()
    assert path.exists()
    assert tombstones(ring.folder) == []
    with pytest.raises(AssertionError, match="one end"):
        walk(ring.folder)


def test_a_manifest_of_a_later_version_keeps_its_place(ring: Ring) -> None:
    first = record_segment(ring)
    ring.close()
    path = ring.folder / f"{first.stem}.json"
    path.write_text(path.read_text().replace('"contract": 1', '"contract": 2, "new": []'))
    (ring.folder / "ring.json").unlink()
    ring = again(ring)
    record_segment(ring)
    ring.close()
    assert len(walk(ring.folder)) == 2
    assert tombstones(ring.folder) == []


# --- State -----------------------------------------------------------------------------------------------------------


def test_the_state_tells_how_far_back_a_node_reaches_and_when_that_ends(ring: Ring) -> None:
    assert ring.state(5).oldest_ns is None
    for at in range(4):
        record_segment(ring, 500, START_NS + at * NANOSECONDS)
        time.sleep(0.05)
    now_ns = time.time_ns()
    state = ring.state(now_ns)
    assert (state.segments, state.oldest_ns) == (4, START_NS)
    assert state.newest_ns == START_NS + 3 * NANOSECONDS + 499 * 10**6
    assert state.bytes <= disk_bytes(ring.folder) + 5 * 8192
    # About 68 KB each 50 ms, and some 750 KB left.
    assert state.overwritten_ns is not None
    assert 0.1 < (state.overwritten_ns - now_ns) / NANOSECONDS < 2
