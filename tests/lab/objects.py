"""The cluster's objects as its API server would show them, and their changes."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.lab.topology import Pod, Service, Topology

if TYPE_CHECKING:
    from tests.lab.lab import RunningNode

Object = dict[str, Any]
PLURALS: Final = {
    "Namespace": "namespaces",
    "Node": "nodes",
    "Deployment": "deployments",
    "ReplicaSet": "replicasets",
    "Pod": "pods",
    "Service": "services",
    "EndpointSlice": "endpointslices",
    "NetworkPolicy": "networkpolicies",
    "Ingress": "ingresses",
}
_API_VERSIONS: Final = {
    "Deployment": "apps/v1",
    "ReplicaSet": "apps/v1",
    "EndpointSlice": "discovery.k8s.io/v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "Ingress": "networking.k8s.io/v1",
}


class Objects:
    """All objects; every change has a new resourceVersion."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self._objects: dict[tuple[str, str | None, str], Object] = {}
        self._callbacks: list[Callable[[str, Object], object]] = []
        self._version = 1
        self._dumps = itertools.count(1)

    def on_change(self, callback: Callable[[str, Object], object]) -> None:
        self._callbacks.append(callback)

    def lists(self) -> dict[str, Object]:
        return {
            plural: {
                "apiVersion": "v1",
                "kind": "List",
                "metadata": {"resourceVersion": str(self._version)},
                "items": copy.deepcopy([item for key, item in self._objects.items() if key[0] == kind]),
            }
            for kind, plural in PLURALS.items()
        }

    def write_dump(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        items = [item for each in self.lists().values() for item in each["items"]]
        path = folder / f"cluster-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{next(self._dumps)}.json"
        dump = {"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": items}
        path.write_text(json.dumps(dump, indent=1) + "\n")
        return path

    def cluster_started(self, nodes: Mapping[str, RunningNode]) -> None:
        pass

    def service_created(self, spec: Service, ip: str | None, ip6: str | None, node_port: int | None) -> None:
        pass

    def pod_scheduled(self, spec: Pod) -> None:
        pass

    def pod_started(self, spec: Pod, ip: str, ip6: str | None, host_ip: str, host_ip6: str | None) -> None:
        pass

    def pod_terminating(self, spec: Pod) -> None:
        pass

    def pod_deleted(self, spec: Pod) -> None:
        pass

    def pod_finished(self, spec: Pod, phase: str) -> None:
        pass
