"""What capture/deploy makes, as kubectl renders it: read by tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "capture" / "deploy"
KUBECTL = Path(sys.executable).with_name("kubectl")
COMPONENTS = sorted(path.name for path in (DEPLOY / "components").iterdir())

Object = dict[str, Any]


def rendered(folder: Path) -> list[Object]:
    done = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, check=True)
    assert done.stderr == ""  # warnings of what is deprecated
    return list(yaml.safe_load_all(done.stdout))


def overlay(folder: Path, components: list[str]) -> Path:
    """As docs/deploy.md says that one is written; kustomize wants relative paths."""
    bases = {"resources": ["base"], "components": [f"components/{each}" for each in components]}
    paths = {field: [os.path.relpath(DEPLOY / path, folder) for path in these] for field, these in bases.items()}
    kind = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "namespace": "podtap"}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kind | paths))
    return folder


def workloads(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """Name and pod spec of each."""
    for each in objects:
        if each["kind"] in ("DaemonSet", "Deployment", "StatefulSet"):
            yield each["metadata"]["name"], each["spec"]["template"]["spec"]


def containers(objects: list[Object]) -> Iterator[tuple[str, Object, Object]]:
    for workload, spec in workloads(objects):
        for container in spec["containers"] + spec.get("initContainers", []):
            yield f"{workload}/{container['name']}", spec, container


def filled_in(argument: str, variables: dict[str, str]) -> str:
    return re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], argument)
