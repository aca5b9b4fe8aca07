"""The shapes of Kubernetes objects, as `kubectl get -o json` shows them: pure functions of what the lab knows.

Of the fields that an API server fills in, those are here that tools read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from tests.lab import addresses
from tests.lab.topology import Ingress, Node, Pod, Policy, Service

Object = dict[str, Any]
PLURALS: Final = {
    "Namespace": "namespaces",
    "Node": "nodes",
    "ServiceCIDR": "servicecidrs",
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
    "ServiceCIDR": "networking.k8s.io/v1",
}
_HASH_LETTERS: Final = "bcdfghjklmnpqrstvwxz2456789"
"""Kubernetes makes no words by chance."""


def make(kind: str, name: str, namespace: str | None, **rest: Any) -> Object:
    """The frame of any object; `metadata` is added to it."""
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {}) | rest.pop("metadata", {})
    return {"apiVersion": _API_VERSIONS.get(kind, "v1"), "kind": kind, "metadata": metadata, **rest}


def namespace(name: str) -> Object:
    return make(
        "Namespace",
        name,
        None,
        metadata={"labels": {"kubernetes.io/metadata.name": name}},
        spec={"finalizers": ["kubernetes"]},
        status={"phase": "Active"},
    )


def node(spec: Node, ips: Sequence[str], pod_cidrs: Sequence[str], annotations: Mapping[str, str], now: str) -> Object:
    labels = {"kubernetes.io/arch": "amd64", "kubernetes.io/hostname": spec.name, "kubernetes.io/os": "linux"}
    return make(
        "Node",
        spec.name,
        None,
        metadata={"labels": labels | dict(spec.labels), "annotations": dict(annotations)},
        spec={"podCIDR": pod_cidrs[0], "podCIDRs": list(pod_cidrs)},
        status={
            "addresses": [
                *({"type": "InternalIP", "address": ip} for ip in ips),
                {"type": "Hostname", "address": spec.name},
            ],
            "conditions": [_condition("Ready", True, now)],
        },
    )


def service_cidr(cidrs: Sequence[str]) -> Object:
    return make("ServiceCIDR", "kubernetes", None, spec={"cidrs": list(cidrs)})


def template_hash(deployment: str) -> str:
    """What the deployment controller puts into the names of ReplicaSets."""
    digest = hashlib.sha256(deployment.encode()).digest()
    return "".join(_HASH_LETTERS[byte % len(_HASH_LETTERS)] for byte in digest[:10])


def replica_set_name(deployment: str) -> str:
    return f"{deployment}-{template_hash(deployment)}"


def deployment(name: str, space: str, labels: Mapping[str, str], replicas: int) -> Object:
    return make(
        "Deployment",
        name,
        space,
        spec={
            "replicas": replicas,
            "selector": {"matchLabels": dict(labels)},
            "template": {"metadata": {"labels": dict(labels)}, "spec": {"containers": []}},
        },
        status={"replicas": replicas, "readyReplicas": replicas, "availableReplicas": replicas},
    )


def replica_set(owner: Object, replicas: int) -> Object:
    name, space = owner["metadata"]["name"], owner["metadata"]["namespace"]
    labels = owner["spec"]["selector"]["matchLabels"] | {"pod-template-hash": template_hash(name)}
    return make(
        "ReplicaSet",
        replica_set_name(name),
        space,
        metadata={"labels": labels, "ownerReferences": [_owned_by(owner)]},
        spec={
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": []}},
        },
        status={"replicas": replicas, "readyReplicas": replicas, "availableReplicas": replicas},
    )


def pod(spec: Pod, owner: Object | None) -> Object:
    """As it is created: on no node yet, without an address."""
    labels = dict(spec.labels)
    metadata: Object = {"labels": labels, "generation": 1}
    if owner and spec.deployment:
        labels["pod-template-hash"] = template_hash(spec.deployment)
        metadata |= {"generateName": f"{owner['metadata']['name']}-", "ownerReferences": [_owned_by(owner)]}
    container = {"name": _container_name(spec), "image": f"registry.example/{_container_name(spec)}:1"}
    return make(
        "Pod",
        spec.name,
        spec.namespace,
        metadata=metadata,
        spec={
            "containers": [container | {"ports": [_port(spec, port) for port in spec.ports]}],
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 30,
            "dnsPolicy": "ClusterFirst",
            "serviceAccountName": "default",
            "schedulerName": "default-scheduler",
            **({"hostNetwork": True} if spec.host_network else {}),
        },
        status={"phase": "Pending", "qosClass": "BestEffort"},
    )


def pod_scheduled(item: Object, spec: Pod, now: str) -> Object:
    return item | {
        "spec": item["spec"] | {"nodeName": spec.node},
        "status": item["status"] | {"conditions": [_condition("PodScheduled", True, now)]},
    }


def pod_running(item: Object, started: str, now: str, ips: Sequence[str], host_ips: Sequence[str]) -> Object:
    running = {"ready": True, "started": True, "restartCount": 0, "state": {"running": {"startedAt": now}}}
    conditions = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
    return item | {
        "status": item["status"]
        | {
            "phase": "Running",
            "conditions": [_condition(kind, True, now) for kind in conditions],
            "hostIP": host_ips[0],
            "hostIPs": [{"ip": ip} for ip in host_ips],
            "podIP": ips[0],
            "podIPs": [{"ip": ip} for ip in ips],
            "startTime": started,
            "containerStatuses": [{"name": item["spec"]["containers"][0]["name"], **running}],
        }
    }


def pod_terminating(item: Object, deadline: str, grace_seconds: int) -> Object:
    metadata = item["metadata"] | {"deletionTimestamp": deadline, "deletionGracePeriodSeconds": grace_seconds}
    return item | {"metadata": metadata | {"generation": 2}}


def pod_finished(item: Object, phase: str, exit_code: int, now: str) -> Object:
    """It keeps its addresses in its status."""
    status = item["status"]
    container = status["containerStatuses"][0]
    terminated = {
        "exitCode": exit_code,
        "reason": "Completed" if exit_code == 0 else "Error",
        "startedAt": container["state"]["running"]["startedAt"],
        "finishedAt": now,
    }
    still_true = ("Initialized", "PodScheduled")
    return item | {
        "status": status
        | {
            "phase": phase,
            "conditions": [
                each if each["type"] in still_true else _condition(each["type"], False, now)
                for each in status["conditions"]
            ],
            "containerStatuses": [container | {"ready": False, "started": False, "state": {"terminated": terminated}}],
        }
    }


def service(spec: Service, ips: Sequence[str], node_port: int | None, balancer_ip: str | None, ipv6: bool) -> Object:
    families = ["IPv4", "IPv6"] if ipv6 else ["IPv4"]
    cluster_ips = list(ips) or ["None"]
    body: Object = {
        "type": "ClusterIP" if spec.kind == "Headless" else spec.kind,
        "clusterIP": cluster_ips[0],
        "clusterIPs": cluster_ips,
        "ipFamilies": families,
        "ipFamilyPolicy": "PreferDualStack" if ipv6 else "SingleStack",
        "internalTrafficPolicy": "Cluster",
        "sessionAffinity": spec.session_affinity,
        "selector": dict(spec.selector),
        "ports": [
            {
                **({"name": f"port-{protocol.lower()}"} if len(spec.protocols) > 1 else {}),
                "protocol": protocol,
                "port": spec.port,
                "targetPort": spec.backend_port,
                **({"nodePort": node_port} if node_port else {}),
            }
            for protocol in spec.protocols
        ],
    }
    if node_port:
        body["externalTrafficPolicy"] = spec.external_traffic_policy
    balancer = {"ingress": [{"ip": balancer_ip, "ipMode": "VIP"}]} if balancer_ip else {}
    return make("Service", spec.name, spec.namespace, spec=body, status={"loadBalancer": balancer})


def endpoint_slice(owner: Object, family: str, pods: Iterable[Object]) -> Object:
    """The pods that a service finds, with those that are on their way out."""
    metadata = owner["metadata"]
    ports = [
        {"name": port.get("name", ""), "protocol": port["protocol"], "port": port["targetPort"]}
        for port in owner["spec"]["ports"]
    ]
    found = [
        endpoint
        for each in pods
        if _is_found(each, metadata["namespace"], owner["spec"]["selector"])
        for endpoint in _endpoints(each, family)
    ]
    return make(
        "EndpointSlice",
        f"{metadata['name']}-{family.lower()}",
        metadata["namespace"],
        metadata={
            "labels": {
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": metadata["name"],
            },
            "ownerReferences": [_owned_by(owner)],
        },
        addressType=family,
        endpoints=found or None,
        ports=ports if found else None,
    )


def _is_found(item: Object, space: str, selector: Mapping[str, str]) -> bool:
    labels = item["metadata"]["labels"]
    return bool(selector) and item["metadata"]["namespace"] == space and selector.items() <= labels.items()


def _endpoints(item: Object, family: str) -> list[Object]:
    status = item["status"]
    if status["phase"] != "Running":
        return []
    ips = [entry["ip"] for entry in status["podIPs"] if (":" in entry["ip"]) == (family == "IPv6")]
    leaves = "deletionTimestamp" in item["metadata"]
    target = {"kind": "Pod", **{key: item["metadata"][key] for key in ("namespace", "name", "uid")}}
    return [
        {
            "addresses": [ip],
            "conditions": {"ready": not leaves, "serving": True, "terminating": leaves},
            "nodeName": item["spec"]["nodeName"],
            "targetRef": target,
        }
        for ip in ips
    ]


def network_policy(spec: Policy) -> Object:
    return make("NetworkPolicy", spec.name, spec.namespace, spec=dict(spec.spec))


def ingress(spec: Ingress, ports: Mapping[str, int]) -> Object:
    """`ports` are those of the services that it names."""
    paths = [
        {
            "path": path,
            "pathType": "Prefix",
            "backend": {"service": {"name": backend, "port": {"number": ports[backend]}}},
        }
        for path, backend in spec.paths.items()
    ]
    rules = [{"host": spec.host, "http": {"paths": paths}}]
    body = {"ingressClassName": "nginx", "rules": rules}
    return make("Ingress", spec.name, spec.namespace, spec=body, status={"loadBalancer": {}})


def service_cidrs(ipv6: bool) -> list[str]:
    return [str(addresses.SERVICE_NETWORK), *([str(addresses.SERVICE_NETWORK6)] if ipv6 else [])]


def _container_name(spec: Pod) -> str:
    return spec.deployment or spec.name


def _port(spec: Pod, port: Any) -> Object:
    host_port = port.number if spec.host_network else port.host_port
    return {
        **({"name": port.name} if port.name else {}),
        **({"hostPort": host_port} if host_port else {}),
        "containerPort": port.number,
        "protocol": port.protocol,
    }


def _owned_by(owner: Object) -> Object:
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _condition(kind: str, is_true: bool, now: str) -> Object:
    return {"type": kind, "status": str(is_true), "lastTransitionTime": now}
