"""The resources that the API server stand-in serves, and its discovery documents."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

Object = dict[str, Any]
_VERBS: Final = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
_TEMPLATE: Final[Object] = {"metadata": {}, "spec": {"containers": None}}
_NODE_INFO: Final = dict.fromkeys(
    (
        "machineID",
        "systemUUID",
        "bootID",
        "kernelVersion",
        "osImage",
        "containerRuntimeVersion",
        "kubeletVersion",
        "kubeProxyVersion",
        "operatingSystem",
        "architecture",
    ),
    "",
)


@dataclass(frozen=True)
class Resource:
    """A kind of object and where it is served."""

    plural: str
    kind: str
    group: str = ""
    version: str = "v1"
    namespaced: bool = True
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Field labels besides metadata's, with their value where an object lacks the field."""
    empty: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """What an object without content has besides its metadata: a bookmark is one."""
    warning: str = ""
    """Sent as a header with every answer."""

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """As error messages call it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def described(self) -> Object:
        """Its entry in the discovery document of its group."""
        entry: Object = {
            "name": self.plural,
            "singularName": self.kind.lower(),
            "namespaced": self.namespaced,
            "kind": self.kind,
            "verbs": [verb for verb in _VERBS if (self.plural, verb) != ("namespaces", "deletecollection")],
        }
        if self.short_names:
            entry["shortNames"] = list(self.short_names)
        if self.categories:
            entry["categories"] = list(self.categories)
        digest = hashlib.sha256(f"{self.group}/{self.version}/{self.kind}".encode()).digest()
        return entry | {"storageVersionHash": base64.b64encode(digest[:8]).decode()}


_POD_FIELDS: Final = dict.fromkeys(
    (
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ),
    "",
) | {"spec.hostNetwork": "false"}

RESOURCES: Final = (
    Resource(
        "endpoints",
        "Endpoints",
        short_names=("ep",),
        warning="v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice",
    ),
    Resource(
        "namespaces",
        "Namespace",
        namespaced=False,
        short_names=("ns",),
        fields={"status.phase": ""},
        empty={"spec": {}, "status": {}},
    ),
    Resource(
        "nodes",
        "Node",
        namespaced=False,
        short_names=("no",),
        fields={"spec.unschedulable": "false"},
        empty={"spec": {}, "status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": 0}}, "nodeInfo": _NODE_INFO}},
    ),
    Resource(
        "pods",
        "Pod",
        short_names=("po",),
        categories=("all",),
        fields=_POD_FIELDS,
        empty={"spec": {"containers": None}, "status": {}},
    ),
    Resource(
        "services",
        "Service",
        short_names=("svc",),
        categories=("all",),
        fields={"spec.clusterIP": "", "spec.type": ""},
        empty={"spec": {}, "status": {"loadBalancer": {}}},
    ),
    Resource("daemonsets", "DaemonSet", "apps", short_names=("ds",), categories=("all",)),
    Resource(
        "deployments",
        "Deployment",
        "apps",
        short_names=("deploy",),
        categories=("all",),
        empty={"spec": {"replicas": 0, "selector": None, "template": _TEMPLATE, "strategy": {}}, "status": {}},
    ),
    Resource(
        "replicasets",
        "ReplicaSet",
        "apps",
        short_names=("rs",),
        categories=("all",),
        fields={"status.replicas": "0"},
        empty={"spec": {"replicas": 0, "selector": None, "template": _TEMPLATE}, "status": {"replicas": 0}},
    ),
    Resource(
        "statefulsets",
        "StatefulSet",
        "apps",
        short_names=("sts",),
        categories=("all",),
        empty={
            "spec": {"replicas": 0, "selector": None, "template": _TEMPLATE, "serviceName": "", "updateStrategy": {}},
            "status": {"replicas": 0, "availableReplicas": 0},
        },
    ),
    Resource(
        "jobs",
        "Job",
        "batch",
        categories=("all",),
        fields={"status.successful": "0"},
        empty={"spec": {"template": _TEMPLATE}, "status": {}},
    ),
    Resource(
        "ingresses",
        "Ingress",
        "networking.k8s.io",
        short_names=("ing",),
        empty={"spec": {}, "status": {"loadBalancer": {}}},
    ),
    Resource("ipaddresses", "IPAddress", "networking.k8s.io", namespaced=False, short_names=("ip",)),
    Resource(
        "networkpolicies",
        "NetworkPolicy",
        "networking.k8s.io",
        short_names=("netpol",),
        empty={"spec": {"podSelector": {}}},
    ),
    Resource("servicecidrs", "ServiceCIDR", "networking.k8s.io", namespaced=False),
    Resource("leases", "Lease", "coordination.k8s.io"),
    Resource(
        "endpointslices",
        "EndpointSlice",
        "discovery.k8s.io",
        empty={"addressType": "", "endpoints": None, "ports": None},
    ),
)
"""What was recorded of a real server. Bookmarks of resources that were never watched there hold metadata alone."""

EVENTS: Final = Resource(
    "events",
    "Event",
    short_names=("ev",),
    fields={"involvedObject.name": "", "reason": "", "type": ""},
)
"""A real server has them too; what was recorded does not show it."""

_VERSION: Final = {
    "major": "1",
    "minor": "36",
    "emulationMajor": "1",
    "emulationMinor": "36",
    "minCompatibilityMajor": "1",
    "minCompatibilityMinor": "35",
    "gitVersion": "v1.36.2",
    "gitCommit": "podtap-lab",
    "gitTreeState": "archive",
    "buildDate": "2026-11-24T00:00:00Z",
    "goVersion": "go1.26.6",
    "compiler": "gc",
    "platform": "linux/amd64",
}


def discovery(path: str, resources: Iterable[Resource], address: str) -> Object | None:
    """The document at a path. It promises writes, as a real server does; they are answered with 405."""
    groups: dict[str, list[Resource]] = {}
    for resource in resources:
        groups.setdefault(resource.group, []).append(resource)
    parts = path.strip("/").split("/")
    if path == "/version":
        return dict(_VERSION)
    if path == "/api":
        addresses = [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}]
        return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": addresses}
    if path == "/apis":
        named = [_group(name, members) for name, members in groups.items() if name]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": named}
    if parts == ["api", "v1"]:
        entries = [resource.described() for resource in groups.get("", [])]
        return {"kind": "APIResourceList", "groupVersion": "v1", "resources": entries}
    if parts[0] != "apis" or len(parts) not in (2, 3) or parts[1] not in groups:
        return None
    if len(parts) == 2:
        return {"kind": "APIGroup", "apiVersion": "v1"} | _group(parts[1], groups[parts[1]])
    entries = [resource.described() for resource in groups[parts[1]] if resource.version == parts[2]]
    group_version = {"groupVersion": f"{parts[1]}/{parts[2]}", "resources": entries}
    return {"kind": "APIResourceList", "apiVersion": "v1"} | group_version if entries else None


def _group(name: str, members: list[Resource]) -> Object:
    versions = [{"groupVersion": f"{name}/{each}", "version": each} for each in {m.version: None for m in members}]
    return {"name": name, "versions": versions, "preferredVersion": versions[0]}
