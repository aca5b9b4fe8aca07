"""Writes metadata/: the shop's cluster as `kubectl get ... -A -o json` printed it at 14:12, after the captures."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

from _shop import NODES, PODS, SERVICES, Node, Pod, Service

CREATED = "2026-03-01T08:00:00Z"


def uid(kind: str, name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{kind}/{name}"))


def item(kind: str, version: str, metadata: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **rest}


def metadata_of(kind: str, name: str, namespace: str | None = None, **more: Any) -> dict[str, Any]:
    place = {"namespace": namespace} if namespace else {}
    identity = {"name": name, **place, "uid": uid(kind, f"{namespace}/{name}"), "resourceVersion": "48213"}
    return {"creationTimestamp": CREATED, **identity, **more}


def owned_by(kind: str, name: str, namespace: str) -> list[dict[str, Any]]:
    version = {"Job": "batch/v1", "CronJob": "batch/v1"}.get(kind, "apps/v1")
    owner = {"apiVersion": version, "kind": kind, "name": name, "uid": uid(kind, f"{namespace}/{name}")}
    return [{**owner, "controller": True, "blockOwnerDeletion": True}]


def app(pod: Pod) -> str:
    return "kube-dns" if pod.workload[1] == "coredns" else pod.workload[1]


def pod_item(pod: Pod) -> dict[str, Any]:
    node = next(node for node in NODES if node.name == pod.node)
    addresses = [{"ip": ip} for ip in (pod.ip, pod.ip6) if ip]
    protocols = ("UDP", "TCP") if pod.port == 53 else ("TCP",)
    ports = [
        {"containerPort": pod.port, "protocol": protocol, **({"hostPort": pod.port} if pod.host_network else {})}
        for protocol in protocols
        if pod.port
    ]
    container: dict[str, Any] = {"name": pod.workload[1], "image": f"registry.example/{pod.workload[1]}:1.4.2"}
    if ports:
        container["ports"] = ports
    spec: dict[str, Any] = {"containers": [container], "nodeName": pod.node, "restartPolicy": "Always"}
    if pod.host_network:
        spec["hostNetwork"] = True
    status: dict[str, Any] = {
        "phase": pod.phase, "hostIP": node.ip, "hostIPs": [{"ip": node.ip}], "podIP": pod.ip, "podIPs": addresses,
        "startTime": pod.started,
    }  # fmt: skip
    if pod.phase == "Succeeded":
        spec["restartPolicy"] = "Never"
        ended = {"exitCode": 0, "reason": "Completed", "startedAt": pod.started, "finishedAt": "2026-03-14T12:03:19Z"}
        status["containerStatuses"] = [{"name": pod.workload[1], "ready": False, "state": {"terminated": ended}}]
    owners = owned_by(*pod.owner, pod.namespace)
    labels = {"k8s-app" if pod.namespace == "kube-system" else "app": app(pod)}
    metadata = metadata_of("Pod", pod.name, pod.namespace, labels=labels, ownerReferences=owners)
    return item("Pod", "v1", metadata | {"creationTimestamp": pod.started}, spec=spec, status=status)


def service_item(service: Service) -> dict[str, Any]:
    ips = [ip for ip in (service.ip, service.ip6) if ip]
    protocols = ("UDP", "TCP") if service.port == 53 else ("TCP",)
    ports = [
        {"name": f"port-{p.lower()}", "port": service.port, "protocol": p, "targetPort": service.target}
        for p in protocols
    ]
    kind = "ClusterIP"
    status: dict[str, Any] = {}
    if service.load_balancer and service.node_port:
        kind, status = "LoadBalancer", {"ingress": [{"ip": service.load_balancer, "ipMode": "VIP"}]}
        ports[0]["nodePort"] = service.node_port
    families = ["IPv6" if ":" in ip else "IPv4" for ip in ips]
    spec: dict[str, Any] = {
        "type": kind,
        "clusterIP": ips[0],
        "clusterIPs": ips,
        "ipFamilies": families,
        "ports": ports,
    }
    if service.name != "kubernetes":
        spec["selector"] = {"k8s-app" if service.namespace == "kube-system" else "app": service.name}
    return item(
        "Service",
        "v1",
        metadata_of("Service", service.name, service.namespace),
        spec=spec,
        status={"loadBalancer": status},
    )


def backends(service: Service) -> list[Pod]:
    return [
        pod for pod in PODS
        if pod.namespace == service.namespace and app(pod) == service.name and pod.phase == "Running"
    ]  # fmt: skip


def slice_item(service: Service) -> dict[str, Any]:
    endpoints = [
        {
            "addresses": [pod.ip],
            "conditions": {"ready": True, "serving": True, "terminating": False},
            "nodeName": pod.node,
            "targetRef": {
                "kind": "Pod",
                "name": pod.name,
                "namespace": pod.namespace,
                "uid": uid("Pod", f"{pod.namespace}/{pod.name}"),
            },
        }
        for pod in backends(service)
    ]
    metadata = metadata_of(
        "EndpointSlice", f"{service.name}-x8v5p", service.namespace, labels={"kubernetes.io/service-name": service.name}
    )
    ports = [{"name": "port-tcp", "port": service.target, "protocol": "TCP"}]
    return item(
        "EndpointSlice", "discovery.k8s.io/v1", metadata, addressType="IPv4", endpoints=endpoints or None, ports=ports
    )


def node_item(node: Node) -> dict[str, Any]:
    spec = {"podCIDR": node.pod_cidr, "podCIDRs": [node.pod_cidr, node.pod_cidr6]}
    addresses = [{"type": "InternalIP", "address": node.ip}, {"type": "Hostname", "address": node.name}]
    return item("Node", "v1", metadata_of("Node", node.name), spec=spec, status={"addresses": addresses})


def owner_items() -> dict[str, list[dict[str, Any]]]:
    """ReplicaSets and Jobs, each owned by its workload."""
    lists: dict[str, list[dict[str, Any]]] = {"replicasets": [], "jobs": []}
    versions = {"ReplicaSet": ("replicasets", "apps/v1"), "Job": ("jobs", "batch/v1")}
    for namespace, (kind, name), workload in dict.fromkeys((pod.namespace, pod.owner, pod.workload) for pod in PODS):
        if kind in versions:
            plural, version = versions[kind]
            owners = owned_by(*workload, namespace)
            lists[plural].append(item(kind, version, metadata_of(kind, name, namespace, ownerReferences=owners)))
    return lists


def lists() -> dict[str, list[dict[str, Any]]]:
    """Items by resource, as kubectl names it."""
    namespaces = sorted({pod.namespace for pod in PODS} | {"default"})
    return {
        "pods": [pod_item(pod) for pod in PODS],
        "services": [service_item(service) for service in SERVICES],
        "endpointslices": [slice_item(service) for service in SERVICES if service.name != "kubernetes"],
        "nodes": [node_item(node) for node in NODES],
        "namespaces": [item("Namespace", "v1", metadata_of("Namespace", name)) for name in namespaces],
        **owner_items(),
    }


def files() -> dict[str, str]:
    """File name -> text, as kubectl writes it."""
    return {
        f"{resource}.json": json.dumps(
            {"apiVersion": "v1", "items": items, "kind": "List", "metadata": {"resourceVersion": ""}}, indent=4
        )
        + "\n"
        for resource, items in lists().items()
    }


if __name__ == "__main__":
    folder = Path(__file__).parent / "metadata"
    folder.mkdir(exist_ok=True)
    for name, text in files().items():
        (folder / name).write_text(text)
