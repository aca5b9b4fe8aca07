"""A freeze that is made on a node: of its segments, and of the journal where both are below one root."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from capture.freezes import read_freezes
from tests.recordings import START, HandMade, journal

PODTAP = Path(sys.executable).with_name("podtap")
WINDOW = ("--since", str(START // 10**9), "--until", str(START // 10**9 + 60))


def podtap(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PODTAP, *arguments], capture_output=True, text=True, check=False)


def recorded(root: Path) -> tuple[Path, Path]:
    """Folders of a node and of a writer of the journal below a root."""
    ring = HandMade(root, "node-a")
    ring.segment()
    journal(root, [])
    [writer] = (root / "_journal").iterdir()
    return ring.folder, writer


def test_segments_and_journal_are_frozen_and_thawed_together(tmp_path: Path) -> None:
    node, writer = recorded(tmp_path)
    done = podtap("agent", "freeze", "--root", tmp_path, *WINDOW, "--reason", "slow", "--by", "me")
    assert (done.returncode, done.stderr) == (0, "")
    (freeze,), _ = read_freezes(node)
    (kept,), _ = read_freezes(writer)
    assert (kept.id, kept.since_ns, kept.until_ns, kept.reason, kept.by) == (
        freeze.id,
        START,
        START + 60 * 10**9,
        "slow",
        "me",
    )
    assert done.stdout.count(freeze.id) == 2
    assert podtap("agent", "thaw", "--root", tmp_path, freeze.id).returncode == 0
    assert read_freezes(node) == read_freezes(writer) == ([], [])


def test_a_journal_that_can_not_be_written_does_not_keep_the_segments_from_it(tmp_path: Path) -> None:
    node, writer = recorded(tmp_path)
    (writer / "freezes").write_text("in the way")
    done = podtap("agent", "freeze", "--root", tmp_path, *WINDOW)
    assert done.returncode == 0
    assert "is not frozen" in done.stderr and str(writer) in done.stderr
    (freeze,), _ = read_freezes(node)
    done = podtap("agent", "thaw", "--root", tmp_path, freeze.id)
    assert done.returncode == 0 and "podtap journal thaw" in done.stderr
    assert read_freezes(node) == ([], [])


def test_of_a_freeze_of_many_nodes_the_journal_is_somebody_elses_business(tmp_path: Path) -> None:
    _, writer = recorded(tmp_path)
    assert podtap("agent", "freeze", "--root", tmp_path, *WINDOW, "--id", "shared").returncode == 0
    assert read_freezes(writer) == ([], [])
