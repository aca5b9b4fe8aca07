"""Objects as kubectl lists them, and what identities say of dumps of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from analysis import schemas
from analysis.dumps import parse_time
from analysis.identities import Identities, load_identities
from tests.naive_identities import Lookup

Object = dict[str, Any]


def time(clock: str) -> str:
    return f"2026-03-01T{clock}Z"


def ns(clock: str) -> int:
    """Nanoseconds of a clock time, or of a whole one, on the day of the stories; 'clock+nanoseconds' adds some."""
    moment, _, more = clock.partition("+")
    return parse_time(moment if "T" in moment else time(moment)) + int(more or 0)


def pod(name: str, ips: Sequence[str], start: str, **more: Any) -> Object:
    """A running pod of namespace shop on node-a; `status`, `spec` and `metadata` add to it."""
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "uid": f"uid-{name}", "creationTimestamp": time(start)}
        | more.get("metadata", {}),
        "spec": {"nodeName": "node-a", "containers": []} | more.get("spec", {}),
        "status": {"phase": "Running", "startTime": time(start), "podIPs": [{"ip": ip} for ip in ips]}
        | more.get("status", {}),
    }


def completed(finished: str, phase: str = "Succeeded") -> Object:
    terminated = {"state": {"terminated": {"startedAt": time("00:00:01"), "finishedAt": time(finished)}}}
    return {"phase": phase, "containerStatuses": [terminated]}


def service(name: str, cluster_ips: Sequence[str], **more: Any) -> Object:
    return {
        "kind": "Service",
        "metadata": {"name": name, "namespace": "shop", "uid": f"uid-{name}", "creationTimestamp": time("10:00:00")}
        | more.get("metadata", {}),
        "spec": {"clusterIPs": list(cluster_ips)} | more.get("spec", {}),
        "status": more.get("status", {"loadBalancer": {}}),
    }


def node(name: str, ips: Sequence[str], **more: Any) -> Object:
    return {
        "kind": "Node",
        "metadata": {"name": name, "uid": f"uid-{name}", "creationTimestamp": time("09:00:00")}
        | more.get("metadata", {}),
        "spec": more.get("spec", {}),
        "status": {"addresses": [{"type": "InternalIP", "address": ip} for ip in ips]},
    }


def owned_by(kind: str, name: str) -> Object:
    return {"ownerReferences": [{"kind": kind, "name": name, "uid": f"uid-{name}", "controller": True}]}


def listed(*items: Object) -> Object:
    return {"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": ""}, "items": list(items)}


def write_dump(folder: Path, taken: str, *items: Object) -> str:
    path = folder / f"cluster-20260301T{taken.replace(':', '')}Z.json"
    path.write_text(json.dumps(listed(*items)))
    return str(path)


def identities_of(folder: Path, *items: Object, taken: str = "12:00:00") -> Identities:
    identities, problems = load_identities([write_dump(folder, taken, *items)])
    assert problems == []
    return identities


def ask_all(identities: Identities, lookups: Sequence[Lookup]) -> list[Object]:
    answers = identities.identify(
        pa.array([each.ip for each in lookups], schemas.NAME),
        pa.array([each.port for each in lookups], pa.uint16()),
        pa.array([each.protocol for each in lookups], schemas.NAME),
        pa.array([each.ts for each in lookups], schemas.TIME),
    )
    assert {answer.type for answer in answers.values()} == {schemas.NAME}
    return pa.table(answers).to_pylist()


def ask(identities: Identities, ip: str | None, at: str, port: int | None = None, protocol: str = "TCP") -> Object:
    return ask_all(identities, [Lookup(ip, port, protocol, ns(at))])[0]


def told(answer: Object) -> str:
    """'pod web', 'service api', 'node node-a', or the identity alone."""
    kind = answer["identity"]
    return f"{kind} {answer.get(kind)}" if answer.get(kind) else kind


def who(identities: Identities, ip: str | None, at: str, port: int | None = None, protocol: str = "TCP") -> str:
    return told(ask(identities, ip, at, port, protocol))
