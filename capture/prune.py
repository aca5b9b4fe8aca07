"""What is kept of an API object: KEEP says it, and nothing else leaves the API server's answer.

What analysis needs to say who an address was, and a person to see what happened to a pod. Left out is what may hold
secrets (environments, arguments, annotations but those of network plug-ins, messages), and what changes all the time
and tells nothing (managedFields, heartbeats).
"""

from __future__ import annotations

from typing import Any, Final

Object = dict[str, Any]

WHOLE: Final = True
"""In a template: keep the value as it is. A dictionary keeps its keys only, of each element where there is a list."""

CNI_ANNOTATIONS: Final = (
    "projectcalico.org/",
    "cni.projectcalico.org/",
    "flannel.alpha.coreos.com/",
    "network.cilium.io/",
    "io.cilium.network.",
    "k8s.v1.cni.cncf.io/network",
    "k8s.ovn.org/",
)
"""What the annotations that are kept begin with: addresses that network plug-ins announce."""

_METADATA: Final = {
    "name": WHOLE,
    "namespace": WHOLE,
    "uid": WHOLE,
    "labels": WHOLE,
    "creationTimestamp": WHOLE,
    "deletionTimestamp": WHOLE,
    "ownerReferences": dict.fromkeys(("apiVersion", "kind", "name", "uid", "controller"), WHOLE),
}
_CONDITIONS: Final = dict.fromkeys(("type", "status", "reason", "lastTransitionTime"), WHOLE)
_CONTAINERS: Final = {"name": WHOLE, "ports": WHOLE, "restartPolicy": WHOLE}
_STATE: Final = {
    "running": {"startedAt": WHOLE},
    "terminated": dict.fromkeys(("exitCode", "signal", "reason", "startedAt", "finishedAt"), WHOLE),
    "waiting": {"reason": WHOLE},
}
_CONTAINER_STATUSES: Final = {
    **dict.fromkeys(("name", "ready", "started", "restartCount"), WHOLE),
    "state": _STATE,
    "lastState": _STATE,
}

KEEP: Final[dict[str, dict[str, Any]]] = {
    "Pod": {
        "spec": {
            "nodeName": WHOLE,
            "hostNetwork": WHOLE,
            "containers": _CONTAINERS,
            "initContainers": _CONTAINERS,
        },
        "status": {
            **dict.fromkeys(("phase", "reason", "startTime", "podIP", "podIPs", "hostIP", "hostIPs"), WHOLE),
            "conditions": _CONDITIONS,
            "containerStatuses": _CONTAINER_STATUSES,
            "initContainerStatuses": _CONTAINER_STATUSES,
            "ephemeralContainerStatuses": _CONTAINER_STATUSES,
        },
    },
    "Service": {"spec": WHOLE, "status": {"loadBalancer": WHOLE}},
    "EndpointSlice": {
        "addressType": WHOLE,
        "endpoints": dict.fromkeys(
            ("addresses", "conditions", "hostname", "nodeName", "zone", "targetRef", "hints"), WHOLE
        ),
        "ports": WHOLE,
    },
    "Node": {
        "spec": dict.fromkeys(("podCIDR", "podCIDRs", "unschedulable"), WHOLE),
        "status": {"addresses": WHOLE, "conditions": _CONDITIONS},
    },
    "Namespace": {"status": {"phase": WHOLE}},
    "NetworkPolicy": {"spec": WHOLE},
    "Ingress": {
        "spec": {"ingressClassName": WHOLE, "defaultBackend": WHOLE, "rules": WHOLE, "tls": {"hosts": WHOLE}},
        "status": {"loadBalancer": WHOLE},
    },
    "ReplicaSet": {},
    "Job": {"status": {"startTime": WHOLE, "completionTime": WHOLE, "conditions": _CONDITIONS}},
    "Event": {
        "involvedObject": dict.fromkeys(("apiVersion", "kind", "namespace", "name", "uid", "fieldPath"), WHOLE),
        **dict.fromkeys(("type", "reason", "count", "firstTimestamp", "lastTimestamp", "eventTime"), WHOLE),
        "series": WHOLE,
        "source": WHOLE,
        "reportingComponent": WHOLE,
    },
    "ServiceCIDR": {"spec": WHOLE},
}
"""By kind, next to metadata."""


def prune(kind: str, item: Object) -> Object:
    """The parts of an object of this kind that KEEP names, with its kind.

    Without apiVersion, which items of lists lack and objects of watches have. Parts of another shape than Kubernetes
    writes are left out, null stays: readers know both.
    """
    metadata = item.get("metadata")
    kept = _kept(item, {"metadata": _METADATA, **KEEP[kind]})
    annotations = metadata.get("annotations") if isinstance(metadata, dict) else None
    if isinstance(annotations, dict) and kind in ("Node", "Pod"):
        announced = {key: value for key, value in annotations.items() if key.startswith(CNI_ANNOTATIONS)}
        if announced:
            kept["metadata"]["annotations"] = announced
    return {"kind": kind, **kept}


def _kept(item: Object, template: dict[str, Any]) -> Object:
    kept = {}
    for key, inner in template.items():
        if key not in item:
            continue
        value = item[key]
        if inner is WHOLE or value is None:
            kept[key] = value
        elif isinstance(value, dict):
            kept[key] = _kept(value, inner)
        elif isinstance(value, list):
            kept[key] = [_kept(each, inner) for each in value if isinstance(each, dict)]
    return kept
