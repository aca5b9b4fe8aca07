"""Whose addresses a selection of pods had during a window: from the journal, or from what the API server says now."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from capture.cluster import Cluster
from capture.journal_records import read_records
from capture.recording import Window, journal_files
from capture.selectors import Requirement, parse


@dataclass(frozen=True)
class PodSelection:
    """-n and -l; namespace "" is all."""

    namespace: str
    selector: str

    @property
    def is_all(self) -> bool:
        return not self.namespace and not self.selector.strip()


@dataclass
class Found:
    """What a selection came to."""

    addresses: set[str] = field(default_factory=set)
    pods: set[str] = field(default_factory=set)
    """namespace/name"""
    on_host: set[str] = field(default_factory=set)
    """Pods that use their node's network: no address tells their packets."""


def from_journal(root: Path, window: Window, selection: PodSelection) -> Found | None:
    """Of all pods that were there at some time of the window; None: no journal tells of it."""
    found, requirements, files = Found(), parse(selection.selector), journal_files(root, window)
    if not files:
        return None
    for path in files:
        gone = set()
        records = [record for record in read_records(path, "Pod") if record.kind == "Pod"]
        for record in records:
            if record.type == "deleted" and record.observed_ns < window.since_ns:
                gone.add(record.uid)
        for record in records:
            if record.object and record.observed_ns < window.until_ns and record.uid not in gone:
                _add(found, record.object, selection.namespace, requirements)
    return found


def from_cluster(cluster: Cluster, selection: PodSelection) -> Found:
    """Of the pods that are there now: those that went since the window are not known."""
    found = Found()
    path = f"/api/v1/namespaces/{selection.namespace}/pods" if selection.namespace else "/api/v1/pods"
    for item in cluster.items(path, selection.selector):
        _add(found, item, selection.namespace, [])
    return found


def _add(found: Found, pod: dict[str, Any], namespace: str, requirements: Iterable[Requirement]) -> None:
    metadata, spec, status = (pod.get(each) or {} for each in ("metadata", "spec", "status"))
    if namespace and metadata.get("namespace") != namespace:
        return
    if not all(each.matches(metadata.get("labels") or {}) for each in requirements):
        return
    name = f"{metadata.get('namespace')}/{metadata.get('name')}"
    if spec.get("hostNetwork"):
        found.on_host.add(name)
        return
    found.pods.add(name)
    addresses = {each.get("ip") for each in status.get("podIPs") or []} | {status.get("podIP")}
    found.addresses |= {each for each in addresses if each}
