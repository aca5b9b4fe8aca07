"""Who is who in the samples: a small shop on a two-node cluster. metadata.py tells it as kubectl would."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Pod:
    """One pod. `owner` is its controller, as (kind, name); the workload is the top of the owner chain."""

    namespace: str
    name: str
    ip: str
    node: str
    owner: tuple[str, str]
    workload: tuple[str, str]
    mac: str
    ip6: str | None = None
    port: int | None = None
    host_network: bool = False
    phase: str = "Running"
    started: str = "2026-03-14T09:12:41Z"


@dataclass(frozen=True)
class Service:
    """One service; `port` is its own, `target` that of its pods."""

    namespace: str
    name: str
    ip: str
    port: int
    target: int
    ip6: str | None = None
    load_balancer: str | None = None
    node_port: int | None = None


@dataclass(frozen=True)
class Node:
    """One node and the addresses of its bridge and its overlay device."""

    name: str
    ip: str
    mac: str
    pod_cidr: str
    pod_cidr6: str
    bridge_mac: str
    overlay_mac: str


NODE_1 = Node(
    "node-1",
    "192.168.10.11",
    "02:42:c0:a8:0a:0b",
    "10.244.1.0/24",
    "fd00:10:244:1::/64",
    "02:42:0a:f4:01:01",
    "02:42:0a:f4:01:00",
)
NODE_2 = Node(
    "node-2",
    "192.168.10.12",
    "02:42:c0:a8:0a:0c",
    "10.244.2.0/24",
    "fd00:10:244:2::/64",
    "02:42:0a:f4:02:01",
    "02:42:0a:f4:02:00",
)
NODES = (NODE_1, NODE_2)


def _deployed(
    namespace: str, workload: str, replica_set: str, suffix: str, ip: str, node: str, mac: str, **more: Any
) -> Pod:
    owner = f"{workload}-{replica_set}"
    return Pod(namespace, f"{owner}-{suffix}", ip, node, ("ReplicaSet", owner), ("Deployment", workload), mac, **more)


FRONTEND = _deployed(
    "shop",
    "frontend",
    "6d5f7c9b8d",
    "x7k2p",
    "10.244.1.10",
    "node-1",
    "0a:58:0a:f4:01:0a",
    ip6="fd00:10:244:1::a",
    port=8080,
)
FRONTEND_2 = _deployed(
    "shop", "frontend", "6d5f7c9b8d", "m4q9z", "10.244.2.10", "node-2", "0a:58:0a:f4:02:0a", port=8080
)
CHECKOUT = _deployed(
    "shop",
    "checkout",
    "7f9c6b5d44",
    "9wz8r",
    "10.244.2.20",
    "node-2",
    "0a:58:0a:f4:02:14",
    ip6="fd00:10:244:2::14",
    port=8080,
)
CHECKOUT_2 = _deployed(
    "shop", "checkout", "7f9c6b5d44", "h2l6v", "10.244.1.20", "node-1", "0a:58:0a:f4:01:14", port=8080
)
IMAGES = _deployed("shop", "images", "5c8d7f6b99", "t5n4j", "10.244.2.30", "node-2", "0a:58:0a:f4:02:1e", port=8080)
CART = _deployed(
    "shop",
    "cart",
    "84c9d7b6f5",
    "kq2ws",
    "10.244.1.30",
    "node-1",
    "0a:58:0a:f4:01:1e",
    port=6379,
    started="2026-03-14T13:58:07Z",
)
REPORT = Pod(
    "shop",
    "report-29558880-b5xtd",
    CART.ip,
    "node-1",
    ("Job", "report-29558880"),
    ("CronJob", "report"),
    CART.mac,
    phase="Succeeded",
    started="2026-03-14T12:00:01Z",
)
DATABASE = Pod(
    "shop",
    "database-0",
    "10.244.2.40",
    "node-2",
    ("StatefulSet", "database"),
    ("StatefulSet", "database"),
    "0a:58:0a:f4:02:28",
    port=5432,
)
COREDNS = _deployed(
    "kube-system",
    "coredns",
    "5dd5756b68",
    "q8r2s",
    "10.244.1.2",
    "node-1",
    "0a:58:0a:f4:01:02",
    ip6="fd00:10:244:1::2",
    port=53,
)
COREDNS_2 = _deployed(
    "kube-system", "coredns", "5dd5756b68", "zt6lp", "10.244.2.2", "node-2", "0a:58:0a:f4:02:02", port=53
)
EXPORTER = Pod(
    "monitoring",
    "node-exporter-4hv7c",
    NODE_1.ip,
    "node-1",
    ("DaemonSet", "node-exporter"),
    ("DaemonSet", "node-exporter"),
    NODE_1.mac,
    port=9100,
    host_network=True,
)
PROMETHEUS = Pod(
    "monitoring",
    "prometheus-0",
    "10.244.2.50",
    "node-2",
    ("StatefulSet", "prometheus"),
    ("StatefulSet", "prometheus"),
    "0a:58:0a:f4:02:32",
    port=9090,
)
PODS = (
    FRONTEND,
    FRONTEND_2,
    CHECKOUT,
    CHECKOUT_2,
    IMAGES,
    CART,
    REPORT,
    DATABASE,
    COREDNS,
    COREDNS_2,
    EXPORTER,
    PROMETHEUS,
)

KUBERNETES = Service("default", "kubernetes", "10.96.0.1", 443, 6443)
KUBE_DNS = Service("kube-system", "kube-dns", "10.96.0.10", 53, 53, ip6="fd00:10:96::a")
FRONTEND_SERVICE = Service("shop", "frontend", "10.96.20.10", 80, 8080, load_balancer="203.0.113.80", node_port=30080)
CHECKOUT_SERVICE = Service("shop", "checkout", "10.96.20.20", 80, 8080, ip6="fd00:10:96::14")
IMAGES_SERVICE = Service("shop", "images", "10.96.20.30", 80, 8080)
CART_SERVICE = Service("shop", "cart", "10.96.20.40", 6379, 6379)
SERVICES = (KUBERNETES, KUBE_DNS, FRONTEND_SERVICE, CHECKOUT_SERVICE, IMAGES_SERVICE, CART_SERVICE)

ROUTER_MAC = "02:42:c0:a8:0a:01"
CUSTOMER = "203.0.113.50"
UPSTREAM_DNS = "203.0.113.53"
