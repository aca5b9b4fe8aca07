"""podtap freeze, thaw and collect against the API server stand-in, whose pods run the real commands of a node."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import pytest
import zstandard
from click.testing import CliRunner

import podtap
from capture.bundle import WORK
from capture.contract import BUNDLE, Bundle, Freeze, JournalRecord, from_json
from tests.collecting import add_agent, add_journal, kubeconfig, node, podtap_pod
from tests.lab.api_certificate import make_certificate
from tests.lab.api_server import ApiServer
from tests.recordings import MINUTE, START, HandMade, journal, packet, pod_record

PODTAP = str(Path(sys.executable).parent / "podtap")
SINCE, UNTIL = "2025-11-27T14:00:00Z", "2025-11-27T14:04:00Z"
WINDOW = ("--since", SINCE, "--until", UNTIL)


class Done(NamedTuple):
    """What a command came to."""

    returncode: int
    stdout: str
    stderr: str


class World:
    """Two nodes with agents, a journal, and a person with a kubeconfig."""

    def __init__(self, folder: Path, server: ApiServer) -> None:
        self.folder, self.server = folder, server
        self.rings = {name: HandMade(folder / f"disk-of-{name}", name) for name in ("node-a", "node-b")}
        for name, ring in self.rings.items():
            for index in range(5):
                ring.segment(compress=index == 1)
            add_agent(server, name, ring.root)
        journal(folder / "disk-of-journal", [pod_record("listed", START, "web", "10.0.10.1", {"app": "web"})])
        add_journal(server, folder / "disk-of-journal")
        self.config = kubeconfig(folder, server, ("lab", "elsewhere"))
        self.bundle = folder / "bundle"

    def command(self, *arguments: str | Path) -> list[str]:
        way = [] if arguments[0] == "verify" else ["--kubeconfig", str(self.config)]
        return [PODTAP, *(str(each) for each in arguments), *way]

    def run(self, *arguments: str | Path) -> Done:
        result = CliRunner().invoke(podtap.main, self.command(*arguments)[1:])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Done(result.exit_code, result.stdout, result.stderr)

    def collect(self, *arguments: str | Path) -> Done:
        return self.run("collect", *WINDOW, "-o", self.bundle, *arguments)

    @property
    def head(self) -> Bundle:
        return from_json(Bundle, (self.bundle / BUNDLE).read_bytes())

    def verify(self) -> Done:
        return self.run("verify", self.bundle)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with ApiServer() as server:
        yield World(tmp_path, server)


def same_files(world: World) -> None:
    """All that a node's disk has of the window is in the bundle, byte for byte."""
    for name, ring in world.rings.items():
        for manifest in ring.manifests[:4]:
            for path in (ring.folder / manifest.stem).parent.glob(f"{Path(manifest.stem).name}.*"):
                assert (world.bundle / "lab" / name / path.relative_to(ring.folder)).read_bytes() == path.read_bytes()


# --- what comes ------------------------------------------------------------------------------------------------------


def test_a_window_comes_whole_and_verifies(world: World) -> None:
    done = world.collect()
    assert done.returncode == 0, done.stderr
    same_files(world)
    assert [each.node for each in world.head.nodes if each.complete] == ["node-a", "node-b"]
    assert world.head.journal_complete
    assert not (world.bundle / WORK).exists()
    assert world.verify().returncode == 0
    again = world.collect()
    assert (again.returncode, "nothing left to do" in again.stderr) == (0, True)


def test_what_the_journal_did_not_see_is_named_and_told_by_the_exit_code(world: World) -> None:
    """It comes with the second run, which is not refused as having nothing to do."""
    gap = JournalRecord("gap", START + 90 * 10**9, "Pod", since_ns=START + 60 * 10**9, reason="HTTP 500")
    path = journal(world.folder / "disk-of-journal", [gap])
    done = world.collect()
    assert done.returncode == 3
    assert "the journal is not complete: the journal saw no Pod from 2025-11-27T14:01:00Z to 2025-11-27T14:01:30Z" in (
        done.stderr
    )
    assert all(each.complete for each in world.head.nodes) and not world.head.journal_complete
    path.unlink()
    world.bundle = world.folder / "without"
    done = world.collect()
    assert (done.returncode, "the journal is not complete: there is no journal" in done.stderr) == (3, True)
    journal(world.folder / "disk-of-journal", [pod_record("listed", START, "web", "10.0.10.1", {"app": "web"})])
    done = world.collect()
    assert (done.returncode, world.head.journal_complete) == (0, True), done.stderr
    assert world.verify().returncode == 0
    alone = world.folder / "alone"
    done = world.run("collect", *WINDOW, "--from", world.rings["node-a"].root, "-o", alone)
    assert done.returncode == 0, "a recording without a cluster has no journal"


def captured(world: World) -> list[tuple[float, str]]:
    """Time and source of all packets in the bundle, as tshark reads them."""
    found = []
    for path in sorted(world.bundle.glob("lab/*/*/*.pcap*")):
        fields = ["-T", "fields", "-e", "frame.time_epoch", "-e", "ip.src"]
        lines = subprocess.run(["tshark", "-r", str(path), *fields], capture_output=True, text=True, check=True).stdout
        found += [(float(line.split()[0]), line.split()[1]) for line in lines.splitlines()]
    return sorted(found)


def test_segments_at_the_ends_of_the_window_are_cut_to_it(world: World) -> None:
    since, until = START + 90 * 10**9, START + 160 * 10**9
    done = world.run("collect", "--since", str(since // 10**9), "--until", str(until // 10**9), "-o", world.bundle)
    assert done.returncode == 0, done.stderr
    every = [START / 1e9 + 6 * index for index in range(50)]
    expected = sorted(2 * [time for time in every if since / 1e9 <= time < until / 1e9])
    assert [time for time, _ in captured(world)] == pytest.approx(expected)
    assert len(list(world.bundle.glob("lab/*/*/*.chain.json"))) == 4, "both ends, on both nodes"
    verified = world.verify()
    assert verified.returncode == 0, verified.stdout
    assert [each.segments for each in world.head.nodes] == [2, 2]


def test_only_the_packets_of_chosen_pods_come_also_of_those_that_are_gone(world: World) -> None:
    records = [
        pod_record("listed", START, "web", "10.0.10.1", {"app": "web"}),
        pod_record("listed", START, "db", "10.0.10.2", {"app": "db"}),
        pod_record("listed", START, "agent", "10.0.11.7", {"app": "web"}, host_network=True),
        pod_record("deleted", START + MINUTE, "web", "10.0.10.1", {"app": "web"}),
        pod_record("added", START + 2 * MINUTE, "web-2", "10.0.11.3", {"app": "web"}),
        pod_record("added", START + 9 * MINUTE, "web-3", "10.0.11.4", {"app": "web"}),
    ]
    journal(world.folder / "disk-of-journal", records)
    done = world.collect("-n", "shop", "-l", "app=web")
    assert done.returncode == 0, done.stderr
    assert {source for _, source in captured(world)} == {"10.0.10.1", "10.0.11.3"}
    assert "left out, since they use their node's network: shop/agent" in done.stderr
    verified = world.verify()
    assert verified.returncode == 0, verified.stdout
    assert world.head.selection["selector"] == "app=web"


def test_of_a_window_that_nobody_recorded_no_folder_stays(world: World) -> None:
    for made in (False, True):
        if made:
            world.bundle.mkdir()  # by who calls: it is theirs
        window = ("--since", "2024-01-01T00:00:00Z", "--until", "2024-01-02T00:00:00Z")
        done = world.run("collect", *window, "-o", world.bundle)
        assert (done.returncode, "no node has anything of" in done.stderr) == (1, True), done.stderr
        assert world.bundle.exists() == made


def test_a_selector_of_no_pod_leaves_the_folder_for_the_right_one(world: World) -> None:
    journal(world.folder / "disk-of-journal", [pod_record("listed", START, "web", "10.0.10.1", {"app": "web"})])
    done = world.collect("-n", "shop", "-l", "app=wbe")
    assert (done.returncode, "no pod of this namespace and selector" in done.stderr) == (1, True), done.stderr
    assert not world.bundle.exists()
    world.bundle.mkdir()
    assert world.collect("-n", "shop", "-l", "app=wbe").returncode == 1
    assert list(world.bundle.iterdir()) == []
    assert world.collect("-n", "shop", "-l", "app=web").returncode == 0


def test_without_a_journal_the_pods_of_now_are_taken_and_that_is_said(world: World) -> None:
    world.server.delete(podtap_pod("podtap-journal-0", "journal", "node-a"))
    world.server.apply(
        pod_record("listed", 0, "web", "10.0.11.5", {"app": "web"}).object | {"apiVersion": "v1", "kind": "Pod"}
    )
    done = world.collect("-A", "-l", "app in (web, shop)")
    assert done.returncode == 3, done.stderr
    assert "the journal is not complete: journal: none is here" in done.stderr
    assert "no journal: the addresses are those of the pods that are there now" in done.stderr
    assert {source for _, source in captured(world)} == {"10.0.11.5"}
    world.bundle = world.folder / "none"
    done = world.collect("-n", "shop", "-l", "app=nothing")
    assert (done.returncode, "no pod of this namespace and selector" in done.stderr) == (1, True)


def test_a_segment_that_is_damaged_on_the_node_does_not_hide_the_others(world: World) -> None:
    ring = world.rings["node-a"]
    first = ring.folder / f"{ring.manifests[0].stem}.pcap"
    first.write_bytes(first.read_bytes()[:-1] + b"!")
    second = ring.folder / f"{ring.manifests[1].stem}.pcap.zst"
    second.write_bytes(second.read_bytes()[:-9])
    done = world.collect()
    assert done.returncode == 3
    assert done.stdout.count("is damaged on the node's disk") == 2
    assert [each.complete for each in world.head.nodes] == [False, True]
    verified = world.verify()
    assert verified.returncode == 1 and "is not what its manifest says" in verified.stdout


# --- nodes and connections that fail ---------------------------------------------------------------------------------


def test_over_tls_with_a_token(tmp_path: Path) -> None:
    context, certificate = make_certificate(tmp_path, "127.0.0.1")
    with ApiServer(tls=context, tokens={"secret": "ops"}) as server:
        world = World(tmp_path, server)
        world.config = kubeconfig(tmp_path, server, **{"certificate-authority": str(certificate)})
        done = world.collect()
        assert done.returncode == 0, done.stderr
        same_files(world)


def test_a_node_that_is_down_and_one_without_an_agent_are_said_and_come_later(world: World) -> None:
    world.server.unreachable.add("node-b")
    world.server.apply(node("node-c"))
    sealed = next(world.folder.glob("disk-of-journal/_journal/*/*/*.zst"))
    content = sealed.read_bytes()
    sealed.unlink()
    written = sealed.with_name(sealed.name.removesuffix(".zst") + ".part")
    written.write_bytes(zstandard.decompress(content) + b'{"torn')
    done = world.collect()
    assert done.returncode == 3
    kept = next(world.bundle.glob("_journal/*/*/*"))
    assert (kept.name, kept.read_bytes()) == (written.name, zstandard.decompress(content))
    written.rename(sealed)
    sealed.write_bytes(content)
    assert "node-b can't be asked: error dialing backend" in done.stderr
    assert "node-b  MISSING" in done.stdout and "node-c  MISSING" in done.stdout
    assert "no agent runs on it" in done.stdout
    assert world.verify().returncode == 0
    world.server.unreachable.clear()
    world.server.delete(node("node-c"))
    done = world.collect()
    assert done.returncode == 0, done.stderr
    assert [path.name for path in world.bundle.glob("_journal/*/*/*")] == [sealed.name]
    same_files(world)
    assert world.verify().returncode == 0


def large(world: World, size: int = 3_000_000) -> None:
    """Segments that take a while."""
    for ring in world.rings.values():
        ring.next_ns = START
        for manifest in ring.manifests:
            for path in ring.folder.glob(f"{manifest.stem}.*"):
                path.unlink()
        ring.manifests.clear()
        ring.previous, ring.seq = None, 0
        for _ in range(4):
            packets = [
                (ring.next_ns + index * 10_000, packet("10.0.1.1", "10.0.2.2", 50_000))
                for index in range(size // 50_000)
            ]
            ring.segment(packets)


def test_connections_that_break_are_taken_up_where_they_broke(world: World) -> None:
    large(world)
    with world.server.faulty("cut", "pods/exec", after=5_000_000, times=20) as fault:
        done = world.collect()
    assert done.returncode == 0, done.stderr
    assert fault.count >= 4, "each node has 12 MB"
    same_files(world)
    assert world.verify().returncode == 0


def test_a_node_that_never_gets_further_is_given_up_and_goes_on_next_time(world: World) -> None:
    large(world)
    with world.server.faulty("cut", "pods/exec", after=100):
        done = world.collect()
    assert done.returncode == 1 and "no node could be asked" in done.stderr
    assert world.collect().returncode == 0


def test_ctrl_c_and_the_same_command_again(world: World) -> None:
    large(world)
    command = world.command("collect", *WINDOW, "-o", world.bundle, "--bandwidth", "2M")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while time.monotonic() < end and not any(world.bundle.glob("lab/*/*/*.json")):
        time.sleep(0.05)
    assert "another podtap collect is at work" in world.collect("--bandwidth", "2M").stderr
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.count("interrupted") == 1 and "run the same command again" in errors
    assert not (world.bundle / BUNDLE).exists()
    there = {path: path.stat().st_mtime_ns for path in world.bundle.glob("lab/*/*/*.json")}
    assert "did not come to its end" in world.verify().stdout
    done = world.collect("--bandwidth", "100M")
    assert done.returncode == 0, done.stderr
    assert "going on with" in done.stderr
    kept = sum(path.stat().st_mtime_ns == before for path, before in there.items())
    assert kept >= len(there) - 2, "at most one of each node came twice"
    same_files(world)
    assert world.verify().returncode == 0


def test_bandwidth_is_kept_by_all_nodes_together(world: World) -> None:
    large(world)
    start = time.monotonic()
    assert world.collect("--bandwidth", "16M").returncode == 0
    assert time.monotonic() - start > 24 / 16 * 0.9, "24 MB in all"


def test_a_full_disk_says_what_to_do_and_the_same_command_goes_on(world: World) -> None:
    large(world)
    disk = world.folder / "small"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=10m", "none", str(disk)], check=True)
    try:
        world.bundle = disk / "bundle"
        done = world.collect()
        assert done.returncode == 1
        assert "are needed and" in done.stderr, "the estimate is known beforehand"
        filler = disk / "filler"
        subprocess.run(["mount", "-o", "remount,size=30m", str(disk)], check=True)
        ring = world.rings["node-b"]
        filler.write_bytes(bytes(1_000_000))
        process = subprocess.Popen(
            world.command("collect", *WINDOW, "-o", world.bundle, "--bandwidth", "4M"),
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        while not any(world.bundle.glob("lab/*/*/*.json")):
            time.sleep(0.05)
        with open(filler, "ab") as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(100_000))
                file.flush()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "no space is left" in errors and "run the same command again" in errors
        filler.unlink()
        assert world.collect().returncode == 0
        assert ring.folder.exists()
        same_files(world)
        assert world.verify().returncode == 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# --- windows and folders ---------------------------------------------------------------------------------------------


def test_the_wrong_context_and_a_cluster_without_podtap_are_told_apart(world: World) -> None:
    done = world.collect("--context", "elsewhere")
    assert (done.returncode, "Connection refused" in done.stderr) == (1, True)
    done = world.collect("--context", "nowhere")
    assert done.returncode == 1 and "nowhere" in done.stderr
    done = world.collect("--podtap-namespace", "monitoring")
    assert done.returncode == 1
    assert "no agent of podtap runs in namespace monitoring" in done.stderr


def test_a_window_that_no_ring_reaches_says_how_far_they_reach(world: World) -> None:
    done = world.run("collect", "--since", "15m", "-o", world.bundle)
    assert done.returncode == 1
    assert "node-a has 2025-11-27T14:00:00Z to 2025-11-27T14:05:00Z" in done.stderr


def test_a_folder_of_something_else_is_left_alone(world: World) -> None:
    assert world.collect().returncode == 0
    done = world.run("collect", "--since", "2025-11-27T14:02:00Z", "--until", UNTIL, "-o", world.bundle)
    assert done.returncode == 2 and "holds another collection" in done.stderr
    (world.folder / "full").mkdir()
    (world.folder / "full" / "diary").write_text("mine")
    done = world.run("collect", *WINDOW, "-o", world.folder / "full")
    assert done.returncode == 2 and "is not empty" in done.stderr


def test_what_was_evicted_before_is_said(world: World) -> None:
    ring = world.rings["node-a"]
    ring.evict(ring.manifests[0])
    done = world.collect()
    assert done.returncode == 3
    assert "2025-11-27T14:00:00Z to 2025-11-27T14:01:00Z was evicted" in done.stdout
    assert world.verify().returncode == 0


def test_the_segment_that_is_being_written_is_waited_for(world: World) -> None:
    ring = world.rings["node-a"]
    last = ring.manifests[3]
    data = ring.folder / f"{last.stem}.pcap"
    manifest = data.with_suffix(".json")
    for late in ring.manifests[4:]:
        for path in ring.folder.glob(f"{late.stem}.*"):
            path.unlink()
    sealed = manifest.read_bytes()
    manifest.unlink()
    data.rename(f"{data}.part")
    process = subprocess.Popen(
        world.command("collect", *WINDOW, "-o", world.bundle), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stderr
    for line in process.stderr:
        if "waiting for segments that are being written on 1 nodes" in line:
            break
    Path(f"{data}.part").rename(data)
    manifest.write_bytes(sealed)
    process.communicate(timeout=30)
    assert process.returncode == 0
    same_files(world)


# --- freezes ---------------------------------------------------------------------------------------------------------


def test_a_freeze_reaches_who_can_be_reached_and_is_thawed(world: World) -> None:
    world.server.unreachable.add("node-b")
    done = world.run("freeze", *WINDOW, "--reason", "checkout is slow")
    assert done.returncode == 3
    assert re.search("node-a +frozen", done.stdout) and re.search("node-b +NOT FROZEN", done.stdout)
    assert len(list(world.rings["node-a"].folder.glob("freezes/*.json"))) == 1
    assert "podtap-journal-0  frozen" in done.stdout
    [kept] = (world.folder / "disk-of-journal").glob("_journal/*/freezes/*.json")
    assert from_json(Freeze, kept.read_bytes()).until_ns == START + 4 * MINUTE
    world.server.unreachable.clear()
    listed = world.run("freeze", "--list")
    assert listed.returncode == 0
    assert "1 of 2" in listed.stdout and "checkout is slow" in listed.stdout
    assert re.search(r"node-a +0 +0 B", listed.stdout), "no agent runs that could have pinned it"
    freeze_id = done.stdout.split()[1]
    thawed = world.run("thaw", freeze_id)
    assert "node-a: thawed" in thawed.stdout
    assert thawed.returncode == 3, "node-b has no such freeze"
    assert not list(world.rings["node-a"].folder.glob("freezes/*.json"))
    assert "podtap-journal-0: thawed" in thawed.stdout and not kept.exists()


def test_a_journal_that_can_not_be_frozen_is_told_by_the_exit_code(world: World) -> None:
    shutil.rmtree(world.folder / "disk-of-journal" / "_journal")
    done = world.run("freeze", *WINDOW)
    assert (done.returncode, "the journal is not frozen: podtap-journal-0" in done.stderr) == (3, True)
    assert "no journal is below" in done.stdout
    assert re.search("node-b +frozen", done.stdout)


def agent_freeze(world: World) -> str:
    """On node-a, without an API server; returns its id."""
    root = world.rings["node-a"].root
    words = subprocess.run(
        [PODTAP, "agent", "freeze", "--root", root, *WINDOW, "--reason", "by hand"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"no journal is below {root}" in words.stderr and "podtap collect" in words.stderr
    return words.stdout.split()[1]


def kept_by_journal(world: World) -> set[str]:
    paths = (world.folder / "disk-of-journal").glob("_journal/*/freezes/*.json")
    return {from_json(Freeze, path.read_bytes()).id for path in paths}


def test_what_a_node_froze_by_itself_is_kept_by_the_journal_from_the_next_freeze_on(world: World) -> None:
    by_hand = agent_freeze(world)
    assert kept_by_journal(world) == set()
    done = world.run("freeze", *WINDOW)
    assert kept_by_journal(world) == {by_hand, done.stdout.split()[1]}
    assert done.returncode == 0
    assert "now kept by the journal" in done.stderr and by_hand in done.stderr
    assert world.run("thaw", "--all").returncode == 0
    assert kept_by_journal(world) == set()


def test_what_a_node_froze_by_itself_is_kept_by_the_journal_from_the_next_collection_on(world: World) -> None:
    by_hand = agent_freeze(world)
    done = world.collect()
    assert done.returncode == 0 and by_hand in done.stderr
    assert kept_by_journal(world) == {by_hand}
    assert "now kept" not in world.run("freeze", *WINDOW).stderr, "it is known already"


def test_a_journal_that_can_not_be_told_of_a_nodes_freeze_is_named(world: World) -> None:
    by_hand = agent_freeze(world)
    writer = next((world.folder / "disk-of-journal").glob("_journal/*"))
    (writer / "freezes").write_text("in the way")
    done = world.collect()
    assert done.returncode == 0
    assert "podtap-journal-0 can't be told of the freezes" in done.stderr
    (writer / "freezes").unlink()
    assert by_hand in world.run("freeze", *WINDOW).stderr


# --- rights, hostile nodes, other ways to call it --------------------------------------------------------------------


def test_who_may_not_exec_is_told_what_is_needed(tmp_path: Path) -> None:
    with ApiServer(tokens={"secret": "ops"}) as server:
        world = World(tmp_path, server)
        server.denied.add(("ops", "pods/exec", "create"))
        done = world.collect()
    assert done.returncode == 1
    assert "get and create on pods/exec in namespace podtap" in done.stderr


def test_a_node_can_not_write_outside_the_bundle_or_for_another(world: World) -> None:
    evil = world.folder / "evil"
    evil.mkdir()
    (evil / "podtap").write_text(
        "#!/bin/sh\n"
        'if [ "$2" = list ]; then exit 0; fi\n'
        'printf \'{"path":"../../escaped","offset":0}\\n\\0\\0\\0\\0{"size_bytes":0,"sha256":""}\\n\'\n'
    )
    (evil / "podtap").chmod(0o755)
    box = world.server.containers["podtap", "podtap-agent-node-b"]
    box.environment["PATH"] = f"{evil}:{os.environ['PATH']}"
    done = world.collect()
    assert done.returncode == 3
    assert not list(world.folder.glob("**/escaped"))
    box.environment["PATH"] = world.server.containers["podtap", "podtap-agent-node-a"].environment["PATH"]
    box.environment["PODTAP_ROOT"] = str(world.rings["node-a"].root)
    world.bundle = world.folder / "second"
    assert "two nodes say that they are lab/node-a" in world.collect().stdout


def test_a_clock_that_is_off_and_words_that_steer_the_terminal(world: World) -> None:
    odd = world.folder / "odd"
    odd.mkdir()
    (odd / "podtap").write_text(
        f"#!/bin/sh\n[ $2 = list ] && exec {PODTAP} \"$@\"\nprintf 'Error: \\033[2Jgone' >&2\nexit 1\n"
    )
    (odd / "podtap").chmod(0o755)
    box = world.server.containers["podtap", "podtap-agent-node-b"]
    box.environment["PATH"] = f"{odd}:{os.environ['PATH']}"
    with patch("capture.collect.time.time_ns", lambda: START + 60 * MINUTE):
        done = world.collect()
    assert done.returncode == 3
    assert "the clock of node-a is" in done.stderr and "ahead of this machine's" in done.stderr
    assert "not all came: [2Jgone" in done.stdout
    assert "\033" not in done.stdout


def test_kubectl_finds_the_plugin(world: World) -> None:
    environment = os.environ | {"PATH": f"{Path(PODTAP).parent}:{os.environ['PATH']}"}
    command = ["kubectl", "podtap", "freeze", "--list", "--kubeconfig", str(world.config), "--context", "lab"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (0, "nothing is frozen\n"), done.stderr


def test_another_folder_can_be_the_source(world: World) -> None:
    assert world.collect().returncode == 0
    second = world.folder / "second"
    done = world.run("collect", *WINDOW, "--from", world.bundle, "--node", "node-b", "-o", second)
    assert done.returncode == 0, done.stderr
    assert world.run("verify", second).returncode == 0
    assert [path.name for path in second.glob("lab/*")] == ["node-b"]
    done = world.run("collect", *WINDOW, "--from", world.folder / "empty", "-o", world.folder / "third")
    assert done.returncode == 2, "there is no such folder"
