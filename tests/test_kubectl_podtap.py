"""`kubectl podtap`, as a real kubectl runs it, against the API server stand-in."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from capture.contract import BUNDLE, Bundle, from_json
from tests.collecting import add_agent, kubeconfig
from tests.deployments import KUBECTL
from tests.lab.api_server import ApiServer
from tests.recordings import HandMade

WINDOW = ("--since", "2025-11-27T14:00:00Z", "--until", "2025-11-27T14:04:00Z")


class Person:
    """Has kubectl and the plugin on the path, and a kubeconfig in a folder of their own."""

    def __init__(self, folder: Path, server: ApiServer) -> None:
        ring = HandMade(folder / "disk", "node-a")
        for _ in range(5):
            ring.segment()
        add_agent(server, "node-a", ring.root)
        self.config = kubeconfig(folder, server, ("lab", "elsewhere"))
        self.folder = folder

    def kubectl(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(KUBECTL.parent), "/usr/bin", "/bin"])
        environment = {"PATH": path, "HOME": str(self.folder), "KUBECONFIG": str(self.config)}
        return subprocess.run([KUBECTL, *words], env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def person(tmp_path: Path) -> Iterator[Person]:
    with ApiServer() as server:
        yield Person(tmp_path, server)


def test_kubectl_finds_the_plugin(person: Person) -> None:
    listed = person.kubectl("plugin", "list")
    assert (listed.returncode, str(KUBECTL.with_name("kubectl-podtap")) in listed.stdout.split()) == (0, True)
    assert "warning" not in (listed.stdout + listed.stderr).lower()


@pytest.mark.parametrize("command", ["doctor", "freeze", "thaw", "collect", "verify", "snapshot"])
def test_help_names_the_command_as_it_was_typed(person: Person, command: str) -> None:
    done = person.kubectl("podtap", command, "--help")
    assert (done.returncode, done.stdout.startswith(f"Usage: kubectl podtap {command} ")) == (0, True), done.stderr


def test_freeze_collect_and_thaw_through_kubectl(person: Person) -> None:
    frozen = person.kubectl("podtap", "freeze", *WINDOW, "--reason", "slow")
    assert frozen.returncode == 0, frozen.stderr
    listed = person.kubectl("podtap", "freeze", "--list", "--context", "lab", "--kubeconfig", person.config)
    assert "slow" in listed.stdout, listed.stderr
    bundle = person.folder / "bundle"
    collected = person.kubectl("podtap", "collect", *WINDOW, "-o", bundle, "-y")
    assert (collected.returncode, "the journal is not complete" in collected.stderr) == (3, True), "none runs here"
    assert [each.node for each in from_json(Bundle, (bundle / BUNDLE).read_bytes()).nodes if each.complete] == [
        "node-a"
    ]
    assert person.kubectl("podtap", "thaw", "--all").returncode == 0
    assert "slow" not in person.kubectl("podtap", "freeze", "--list").stdout


def test_the_wrong_context_is_an_error_and_not_silence(person: Person) -> None:
    done = person.kubectl("podtap", "freeze", "--list", "--context", "elsewhere")
    assert (done.returncode, "elsewhere" in done.stderr or "127.0.0.1:9" in done.stderr) == (1, True), done.stderr


def test_a_cluster_is_examined_through_kubectl(person: Person) -> None:
    """No agent runs in the pod of this test: that is what is to be said, of the node."""
    done = person.kubectl("podtap", "doctor")
    assert done.returncode == 1
    assert "node-a" in done.stdout, done.stderr
