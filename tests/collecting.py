"""A cluster to collect from: the API server stand-in, and a root for each agent and journal pod."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.lab.api_exec import Container
from tests.lab.api_resources import Object
from tests.lab.api_server import ApiServer

_BIN = str(Path(sys.executable).parent)


def podtap_pod(name: str, component: str, node: str, namespace: str = "podtap") -> Object:
    """One of podtap's own pods, as the API shows it."""
    labels = {"app.kubernetes.io/name": "podtap", "app.kubernetes.io/component": component}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"nodeName": node, "containers": [{"name": component}]},
        "status": {"phase": "Running", "hostIP": "192.0.2.7"},
    }


def node(name: str, is_ready: bool = True) -> Object:
    conditions = [{"type": "Ready", "status": str(is_ready)}]
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "status": {"conditions": conditions}}


def container(root: Path, **environment: str) -> Container:
    """What commands in a pod see: podtap on the path, and the root of its volume."""
    path = os.pathsep.join([_BIN, os.environ["PATH"]])
    return Container(environment={"PATH": path, "PODTAP_ROOT": str(root)} | environment)


def add_agent(server: ApiServer, name: str, root: Path) -> None:
    server.apply(node(name))
    server.apply(podtap_pod(f"podtap-agent-{name}", "agent", name))
    server.containers["podtap", f"podtap-agent-{name}"] = container(root)


def add_journal(server: ApiServer, root: Path) -> None:
    server.apply(podtap_pod("podtap-journal-0", "journal", "node-a"))
    server.containers["podtap", "podtap-journal-0"] = container(root)


def kubeconfig(folder: Path, server: ApiServer, contexts: Sequence[str] = ("lab",), **cluster: Any) -> Path:
    """A file that leads to a server, by the first of some contexts; the others lead nowhere."""
    servers = {name: server.url if name == contexts[0] else "http://127.0.0.1:9" for name in contexts}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": contexts[0],
        "clusters": [{"name": name, "cluster": {"server": url, **cluster}} for name, url in servers.items()],
        "users": [{"name": "ops", "user": {"token": "secret"}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": "ops"}} for name in servers],
    }
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path
