"""Rows that manifests tell of a node: its interfaces over time, and what its kernel counted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import pyarrow as pa

from analysis import columns
from analysis.schemas import INTERFACES, NODE_COUNTERS
from capture.contract import Interface, Manifest

_TOLD: Final = ("name", "kind", "role", "cni", "mac", "master", "peer", "vni", "addresses", "reaches")
"""What of an interface makes it another one."""


def interfaces_table(manifests: Sequence[Manifest]) -> pa.Table:
    """Rows of schemas.INTERFACES, of one node's manifests in order: each interface from change to change."""
    rows: list[dict[str, Any]] = []
    last: dict[int, dict[str, Any]] = {}
    boot_id = None
    for manifest in manifests:
        if manifest.boot_id != boot_id:
            last.clear()
        boot_id = manifest.boot_id
        for interface in sorted(manifest.interfaces, key=lambda each: (each.since_ns or 0, each.index)):
            row = _row(interface, manifest)
            before = last.get(interface.index)
            if before and _goes_on(before, row):
                before |= {"end": row["end"], "seen_until": row["seen_until"]}
            else:
                rows.append(row)
                last[interface.index] = row
    return columns.table_of(INTERFACES, rows)


def _row(interface: Interface, manifest: Manifest) -> dict[str, Any]:
    told = {name: getattr(interface, name) for name in _TOLD}
    return told | {
        "cluster": manifest.cluster,
        "index": interface.index,
        "kind": interface.kind or None,
        "role": interface.role or None,
        "cni": interface.cni or None,
        "mac": interface.mac or None,
        "start": interface.since_ns,
        "end": interface.until_ns,
        "seen_from": manifest.opened_ns if interface.since_ns is None else interface.since_ns,
        "seen_until": manifest.sealed_ns if interface.until_ns is None else interface.until_ns,
    }


def _goes_on(before: dict[str, Any], row: dict[str, Any]) -> bool:
    """The next manifest tells of the same interface, or this one of a change that no column shows."""
    return all(before[name] == row[name] for name in _TOLD) and before["end"] == row["start"]


def counters_table(manifests: Iterable[Manifest]) -> pa.Table:
    """Rows of schemas.NODE_COUNTERS, of one node's manifests in order; a time that two of them tell counts once."""
    samples = {
        (each.time_ns, name): (value, manifest)
        for manifest in manifests
        for each in manifest.counters
        for name, value in each.values.items()
    }
    rows: list[dict[str, Any]] = []
    last: dict[tuple[str, str], int] = {}
    for (time_ns, name), (value, manifest) in sorted(samples.items(), key=lambda sample: sample[0]):
        before = last.get((manifest.boot_id, name))
        delta = None if before is None else value - before
        rows.append({"cluster": manifest.cluster, "ts": time_ns, "name": name, "value": value, "delta": delta})
        last[manifest.boot_id, name] = value
    return columns.table_of(NODE_COUNTERS, rows)
