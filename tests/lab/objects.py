"""The cluster's objects and their changes, in the order in which a real cluster makes them.

A pod is ADDED without a node, MODIFIED when it is scheduled, again when it runs and has its address; one that is
deleted is MODIFIED with a deletionTimestamp, with its end, with grace 0, and only then DELETED. What controllers derive
from pods (ReplicaSets, EndpointSlices) follows every change of a pod.
"""

from __future__ import annotations

import copy
import itertools
import json
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from tests.lab import object_shapes as shapes
from tests.lab.object_shapes import PLURALS, Object
from tests.lab.topology import Ingress, Node, Pod, Policy, Service, Topology

Key = tuple[str, str | None, str]
Callback = Callable[[str, Object], object]
GRACE_SECONDS: Final = 1
KILLED: Final = 128 + 15
"""The exit code of who does not catch SIGTERM."""


class Objects:
    """All objects; every change has a new resourceVersion and is told to who asked."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self._objects: dict[Key, Object] = {}
        self._callbacks: list[Callback] = []
        self._version = 0
        self._dumps = itertools.count(1)
        self._lock = threading.RLock()
        self._started: dict[Key, str] = {}

    def on_change(self, callback: Callback) -> None:
        """It is called in the thread that changes something, in the order of the changes."""
        self._callbacks.append(callback)

    def lists(self) -> dict[str, Object]:
        """A List of each kind, by its plural."""
        with self._lock:
            return {
                plural: _list([item for key, item in self._objects.items() if key[0] == kind], str(self._version))
                for kind, plural in PLURALS.items()
            }

    def write_dump(self, folder: Path) -> Path:
        """All objects in one file that is named after the time, and never written twice."""
        folder.mkdir(parents=True, exist_ok=True)
        with self._lock:
            dump = _list(list(self._objects.values()), "")
            path = folder / f"cluster-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{next(self._dumps)}.json"
        path.write_text(json.dumps(dump, indent=1) + "\n")
        return path

    def namespaces_created(self) -> None:
        """Namespaces and the service CIDR, which nothing else needs to know."""
        topology = self.topology
        named: list[Pod | Service | Policy | Ingress] = [*topology.all_pods, *topology.all_services]
        named += [*topology.policies, *topology.ingresses]
        for name in dict.fromkeys(["default", "kube-system", *(each.namespace for each in named)]):
            self._put(shapes.namespace(name))
        self._put(shapes.service_cidr(shapes.service_cidrs(topology.ipv6)))

    def node_joined(
        self, spec: Node, ips: Sequence[str], pod_cidrs: Sequence[str], annotations: Mapping[str, str]
    ) -> None:
        self._put(shapes.node(spec, ips, pod_cidrs, annotations, _now()))

    def service_created(
        self, spec: Service, ips: Sequence[str], node_port: int | None, balancer_ip: str | None
    ) -> None:
        self._put(shapes.service(spec, ips, node_port, balancer_ip, self.topology.ipv6))
        self._control()

    def policies_created(self) -> None:
        """NetworkPolicies and Ingresses."""
        for policy in self.topology.policies:
            self._put(shapes.network_policy(policy))
        for ingress in self.topology.ingresses:
            services = self.topology.all_services
            ports = {each.name: each.port for each in services if each.namespace == ingress.namespace}
            self._put(shapes.ingress(ingress, ports))

    def pod_created(self, spec: Pod) -> None:
        """Created and scheduled; the kubelet has seen it, its time starts."""
        with self._lock:
            if spec.deployment:
                self._deploy(spec, spec.deployment)
            owner = shapes.replica_set_name(spec.deployment) if spec.deployment else ""
            self._put(shapes.pod(spec, self._objects.get(("ReplicaSet", spec.namespace, owner))))
            self._started[_key(spec)] = _now()
            self._change(spec, lambda pod: shapes.pod_scheduled(pod, spec, _now()))

    def pod_running(self, spec: Pod, ips: Sequence[str], host_ips: Sequence[str]) -> None:
        started = self._started.pop(_key(spec))
        self._change(spec, lambda pod: shapes.pod_running(pod, started, _now(), ips, host_ips))

    def pod_terminating(self, spec: Pod) -> None:
        """No new connections are for it, but it lives."""
        self._change(spec, lambda pod: shapes.pod_terminating(pod, _now(GRACE_SECONDS), GRACE_SECONDS))

    def pod_finished(self, spec: Pod, phase: str, exit_code: int) -> None:
        self._change(spec, lambda pod: shapes.pod_finished(pod, phase, exit_code, _now()))

    def pod_deleted(self, spec: Pod) -> None:
        """DELETED shows the object as it was last, with its address."""
        self._change(spec, lambda pod: shapes.pod_terminating(pod, _now(), 0))
        with self._lock:
            item = self._objects.pop(_key(spec))
            self._tell("DELETED", item)
            self._control()

    def _deploy(self, spec: Pod, name: str) -> None:
        """What owns the pod, before there is the pod."""
        if ("Deployment", spec.namespace, name) not in self._objects:
            self._put(shapes.deployment(name, spec.namespace, spec.labels, 0))
            self._put(shapes.replica_set(self._objects["Deployment", spec.namespace, name], 0))

    def _change(self, spec: Pod, change: Callable[[Object], Object]) -> None:
        with self._lock:
            self._put(change(self._objects[_key(spec)]))
            self._control()

    def _control(self) -> None:
        """The controllers' work: whatever follows from the pods."""
        with self._lock:
            pods = self._of_kind("Pod")
            for owner in self._of_kind("Deployment"):
                metadata = owner["metadata"]
                name, space = metadata["name"], metadata["namespace"]
                owned = shapes.replica_set_name(name)
                replicas = sum(_is_owned(pod, space, owned) and pod["status"]["phase"] == "Running" for pod in pods)
                labels = owner["spec"]["selector"]["matchLabels"]
                self._put(shapes.deployment(name, space, labels, replicas))
                self._put(shapes.replica_set(owner, replicas))
            for service in self._of_kind("Service"):
                for family in service["spec"]["ipFamilies"]:
                    self._put(shapes.endpoint_slice(service, family, pods))

    def _of_kind(self, kind: str) -> list[Object]:
        return [item for key, item in self._objects.items() if key[0] == kind]

    def _put(self, item: Object) -> None:
        """Adds or changes an object, unless it says nothing new; identity and creation time are the first one's."""
        metadata = item["metadata"]
        key = item["kind"], metadata.get("namespace"), metadata["name"]
        with self._lock:
            before = self._objects.get(key)
            stamped = ("uid", "resourceVersion", "creationTimestamp")
            if before:
                kept = {name: before["metadata"][name] for name in stamped}
                item = item | {"metadata": metadata | kept}
                if item == before:
                    return
            else:
                seed = "/".join(str(part) for part in (*key, self._version))
                kept = {"uid": str(uuid.uuid5(uuid.NAMESPACE_OID, seed)), "creationTimestamp": _now()}
                item = item | {"metadata": metadata | kept}
            self._objects[key] = item
            self._tell("MODIFIED" if before else "ADDED", item)

    def _tell(self, event: str, item: Object) -> None:
        self._version += 1
        item["metadata"]["resourceVersion"] = str(self._version)
        for callback in self._callbacks:
            callback(event, copy.deepcopy(item))


def _list(items: Sequence[Object], version: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "List",
        "metadata": {"resourceVersion": version},
        "items": copy.deepcopy(list(items)),
    }


def _key(spec: Pod) -> Key:
    return "Pod", spec.namespace, spec.name


def _is_owned(pod: Object, namespace: str, owner: str) -> bool:
    references: list[dict[str, Any]] = pod["metadata"].get("ownerReferences", [])
    return pod["metadata"]["namespace"] == namespace and any(each["name"] == owner for each in references)


def _now(later_seconds: int = 0) -> str:
    return f"{datetime.now(UTC) + timedelta(seconds=later_seconds):%Y-%m-%dT%H:%M:%SZ}"
