"""What a command says where it can't do what was asked: what happened, where, what to do next; and its exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.recordings import START, HandMade, journal

PODTAP = [sys.executable, "-c", "import podtap; podtap.main()"]
NET_RAW_ONLY = ("setpriv", "--bounding-set", "-all,+net_raw", "--inh-caps", "-all,+net_raw", "--no-new-privs")
AGENT = ("agent", "-i", "lo", "--metrics", "")
WINDOW = ("--since", str(START // 10**9), "--until", str(START // 10**9 + 600))
NOWHERE = """
apiVersion: v1
kind: Config
clusters: [{name: lab, cluster: {server: "http://127.0.0.1:9"}}]
users: [{name: me, user: {}}]
contexts: [{name: lab, context: {cluster: lab, user: me}}]
current-context: lab
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with a recording, an empty one, a file, a kubeconfig that leads to nobody, and one that is none."""
    HandMade(tmp_path / "root", "node-a").segment()
    journal(tmp_path / "root", [])
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("words")
    (tmp_path / "nowhere").write_text(NOWHERE)
    return tmp_path


def said(here: Path, *arguments: str, prefix: tuple[str, ...] = ()) -> tuple[int, str]:
    environment = {"HOME": str(here), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [*prefix, *PODTAP, *arguments], cwd=here, env=environment, capture_output=True, text=True, timeout=60
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((*AGENT, "--root", "file/x"), 1, ("file/x", "Not a directory", "--root")),
        ((*AGENT, "--root", "/proc/x"), 1, ("/proc/x", "--root")),
        (("agent", "-i", "nosuch", "--root", "new"), 2, ("nosuch", "No such device", "there are: any, lo")),
        ((*AGENT, "--root", "new", "--", "tcp prot 80"), 2, ("'tcp prot 80'", "syntax error", "man pcap-filter")),
        (("agent", "list", "--root", "empty"), 1, ("below empty", "does the agent run")),
        (("agent", "list", "--root", "absent"), 1, ("at absent, which is no folder", "--root")),
        (("agent", "thaw", "x", "--root", "root"), 1, ("no such freeze: x", "nothing is frozen here")),
        (("journal", "freeze", *WINDOW, "--root", "file"), 1, ("at file, which is no folder", "--root")),
        (("journal", "adopt", "{}", "--root", "root"), 2, ("this is no freeze",)),
        (("journal", "--root", "new", "--kubeconfig", "absent"), 1, ("there is no file absent", "--kubeconfig")),
        (("snapshot", "-o", "x", "--kubeconfig", "file"), 1, ("file can't be used: it is no kubeconfig",)),
        (("thaw", "--all"), 1, ("there is no kubeconfig", "--kubeconfig")),
        (("freeze", "--since", "9m", "--kubeconfig", "nowhere"), 1, ("127.0.0.1:9", "refused", "podtap agent freeze")),
        (("snapshot", "-o", "x", "--kubeconfig", "nowhere"), 1, ("127.0.0.1:9: Connection refused",)),
        (("doctor", "--kubeconfig", "nowhere"), 1, ("127.0.0.1:9", "Connection refused")),
        (
            ("collect", *WINDOW, "--from", "empty", "-o", "bundle"),
            1,
            ("no recording is below empty", "<cluster>/<node>"),
        ),
        (("collect", *WINDOW, "--from", "root", "-o", "file"), 1, ("file can't be made", "another -o")),
        (("verify", "empty"), 1, ("empty is not as it was written: 1 problem",)),
        (("verify", "file"), 2, ("'file' is a file",)),
    ],
)
def test_it_is_said_what_where_and_what_next(
    here: Path, arguments: tuple[str, ...], code: int, words: tuple[str, ...]
) -> None:
    returned, text = said(here, *arguments)
    assert returned == code, text
    assert [each for each in words if each not in text] == [], text
    assert not (here / "new").exists(), "nothing was written"


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ((*AGENT, "--root", "root", "--cluster", "lab", "--node", "node-a"), "root/lab/node-a"),
        (("agent", "list", "--root", "root"), "root/lab/node-a"),
        (("agent", "freeze", *WINDOW, "--root", "root"), "root/lab/node-a"),
        (("agent", "thaw", "--all", "--root", "root"), "root/lab/node-a"),
        (("agent", "send", "--root", "root"), "root/lab/node-a"),
        (("journal", "freeze", *WINDOW, "--root", "root"), "root/_journal/journal-0"),
        (("journal", "thaw", "--all", "--root", "root"), "root/_journal/journal-0"),
        (("journal", "send", "--root", "root"), "root/_journal/journal-0"),
        (("collect", *WINDOW, "--from", "root", "-o", "new", "-y"), "root/lab/node-a"),
    ],
)
def test_a_folder_that_is_not_to_be_touched_is_named(here: Path, arguments: tuple[str, ...], where: str) -> None:
    for folder in ("root/lab/node-a", "root/_journal/journal-0"):
        (here / folder).chmod(0)
    returned, text = said(here, *arguments, prefix=NET_RAW_ONLY)
    assert (returned, where in text, "Permission denied" in text) == (1, True, True), text


def test_a_segment_that_is_cut_off_is_named_by_whoever_reads_it(here: Path) -> None:
    segment = next((here / "root").rglob("*.pcap"))
    segment.write_bytes(segment.read_bytes()[:-5])
    returned, text = said(here, "collect", *WINDOW, "--from", "root", "-o", "bundle", "-y")
    assert (returned, "not complete: node-a" in text) == (3, True)
    returned, text = said(here, "verify", "bundle")
    assert (returned, "bundle is not as it was written: 1 problem" in text) == (1, True)


def test_two_agents_do_not_share_a_folder(here: Path) -> None:
    first = subprocess.Popen(
        [*PODTAP, *AGENT, "--root", "shared", "--node", "n"], cwd=here, stderr=subprocess.PIPE, text=True
    )
    try:
        assert first.stderr and '"recording"' in first.stderr.readline()
        returned, text = said(here, *AGENT, "--root", "shared", "--node", "n")
        assert returned == 1
        assert "shared/cluster/n: another agent records into this folder" in text and "--node" in text
    finally:
        first.terminate()
        first.communicate(timeout=10)
