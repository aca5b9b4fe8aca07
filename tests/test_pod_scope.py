"""Who is in a recording's scope, and until when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from capture.contract import JournalRecord
from capture.pod_scope import GRACE_NS, PodScope, ScopeFile, addresses
from capture.scope_file import parse
from tests.journal_rig import make_pod

NOW = 1_772_373_780 * 10**9


def learn(scope: PodScope, kind: str, pod: dict[str, Any], now_ns: int = NOW) -> None:
    scope.learn(JournalRecord(kind, now_ns, "Pod", pod["metadata"]["uid"], "1", pod))


def in_scope(scope: PodScope, now_ns: int) -> list[str]:
    scope.forget(now_ns)
    return addresses(scope.pods())


def test_a_pod_that_goes_leaves_after_its_last_packets() -> None:
    scope = PodScope()
    learn(scope, "listed", make_pod("a", "10.244.0.1"))
    learn(scope, "added", make_pod("b"))
    assert in_scope(scope, NOW) == ["10.244.0.1"]
    learn(scope, "modified", make_pod("b", "10.244.0.2"))
    assert in_scope(scope, NOW) == ["10.244.0.1", "10.244.0.2"]
    learn(scope, "deleted", make_pod("a", "10.244.0.1"), NOW + 5)
    assert in_scope(scope, NOW + 5 + GRACE_NS - 1) == ["10.244.0.1", "10.244.0.2"]
    assert in_scope(scope, NOW + 5 + GRACE_NS) == ["10.244.0.2"]


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_ended_leaves_though_the_server_shows_it(phase: str) -> None:
    """Its address may be another pod's, which nobody asked for."""
    scope = PodScope()
    learn(scope, "listed", make_pod("never-seen-alive", "10.244.0.9", phase=phase))
    learn(scope, "added", make_pod("a", "10.244.0.1"))
    learn(scope, "modified", make_pod("a", "10.244.0.1", phase=phase), NOW)
    learn(scope, "modified", make_pod("a", "10.244.0.1", phase=phase), NOW + GRACE_NS - 1)
    assert in_scope(scope, NOW + GRACE_NS - 1) == ["10.244.0.1"]
    assert in_scope(scope, NOW + GRACE_NS) == []


def test_a_pod_that_comes_back_into_the_selection_stays() -> None:
    scope = PodScope()
    learn(scope, "added", make_pod("a", "10.244.0.1"))
    learn(scope, "deleted", make_pod("a", "10.244.0.1"))
    learn(scope, "added", make_pod("a", "10.244.0.1"))
    assert in_scope(scope, NOW + 10 * GRACE_NS) == ["10.244.0.1"]


def test_an_address_that_went_to_the_next_pod_in_scope_stays() -> None:
    scope = PodScope()
    learn(scope, "added", make_pod("a", "10.244.0.1"))
    learn(scope, "deleted", make_pod("a", "10.244.0.1"))
    learn(scope, "added", make_pod("b", "10.244.0.1"))
    assert in_scope(scope, NOW + 10 * GRACE_NS) == ["10.244.0.1"]


def test_both_addresses_of_a_pod_with_two() -> None:
    scope = PodScope()
    learn(scope, "added", make_pod("a", "10.244.0.1", podIPs=[{"ip": "10.244.0.1"}, {"ip": "fd00::1"}]))
    assert in_scope(scope, NOW) == ["10.244.0.1", "fd00::1"]


def test_the_file_is_what_the_agent_reads_and_changes_only_with_the_pods(tmp_path: Path) -> None:
    path = tmp_path / "scope.json"
    scope = PodScope()
    learn(scope, "added", make_pod("a", "10.244.0.1"))
    file = ScopeFile(path)
    assert file.update(scope.pods(), NOW, [])
    assert not file.update(scope.pods(), NOW + 1, [])
    read = parse(path.read_bytes())
    assert (read.generation, read.addresses, read.text) == (1, ("10.244.0.1",), "pods shop/a")
    learn(scope, "added", make_pod("b", "10.244.0.2"))
    assert file.update(scope.pods(), NOW + 2, [])
    assert ScopeFile(path).update([], NOW + 3, [])
    assert (parse(path.read_bytes()).generation, parse(path.read_bytes()).addresses) == (3, ())
