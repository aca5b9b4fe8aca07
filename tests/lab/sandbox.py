"""A container as Kubernetes would make it of what is deployed: user, capabilities, read-only root, volumes.

Its root is a small file system of its own, in which what podtap needs of this machine is mounted read-only. What it has
not: a seccomp filter, cgroups and a process namespace.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.deployments import ROOT, Object, containers, filled_in
from tests.lab.namespaces import Namespace

UMASK: Final = 0o022
_PROGRAMS: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc")
_PYTHON: Final = (sys.base_prefix, sys.prefix, str(ROOT))
_SYSTEM: Final = ("/proc", "/sys", "/dev/null", "/dev/zero", "/dev/urandom")


@dataclass
class Sandbox:
    """One container of a workload, in a node's network."""

    namespace: Namespace
    folder: Path
    """Empty: its root is mounted there, where nobody else sees it."""
    spec: Object
    """Of the pod."""
    container: Object
    variables: dict[str, str]
    """What the manifest takes from elsewhere: names of nodes, configuration."""
    volumes: dict[str, Path] = field(default_factory=dict)
    """Name -> the folder that is mounted."""
    umask: int = UMASK

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """Its own arguments, unless others are given; the process is podtap's."""
        return self.namespace.start(*self.command(*words), **options)

    def run(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        """What kubectl exec does."""
        command = ["ip", "netns", "exec", self.namespace.name, *self.command(*words)]
        return subprocess.run(command, capture_output=True, timeout=60)

    def command(self, *words: str) -> list[str]:
        known = self.variables | {
            each["name"]: each["value"] for each in self.container.get("env", []) if "value" in each
        }
        given = words or tuple(filled_in(each, known) for each in self.container["args"])
        named = {each["name"] for each in self.container.get("env", [])}
        environment = {name: value for name, value in self.variables.items() if name in named or is_given_to_all(name)}
        podtap = [sys.executable, "-m", "podtap", *given]
        return ["unshare", "--mount", "--propagation", "private", "sh", "-ec", self._script(podtap, environment)]

    def _script(self, podtap: list[str], environment: Mapping[str, str]) -> str:
        root = str(self.folder)
        lines = [f"mount -t tmpfs -o mode=755 tmpfs {root}"]
        for path in dict.fromkeys([*_PROGRAMS, *_PYTHON, *_SYSTEM]):
            if os.path.islink(path):
                lines.append(f"ln -s {os.readlink(path)} {root}{path}")
            elif os.path.exists(path):
                lines += _bind(path, root + path, read_only=True)
        for mount in self.container.get("volumeMounts", []):
            path = mount["mountPath"].replace("/var/run/", "/run/")
            lines += _bind(self.volumes[mount["name"]], root + path, read_only=mount.get("readOnly", False))
        lines.append(f"mkdir -p {root}/var && ln -sfn /run {root}/var/run")
        context = self.spec.get("securityContext", {}) | self.container["securityContext"]
        if context["readOnlyRootFilesystem"]:
            lines.append(f"mount -o remount,ro {root}")
        lines.append(f"umask {self.umask:03o}")
        environment = {"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1", **environment}
        words = ["chroot", root, *_setpriv(context), "env", "-i", f"-C{ROOT}"]
        words += [*(f"{name}={value}" for name, value in environment.items()), *podtap]
        lines.append(f"exec {shlex.join(words)}")
        return "\n".join(lines)


def sandbox(objects: list[Object], name: str, **others: Any) -> Sandbox:
    """Of "podtap-agent/scope" in what was rendered."""
    spec, container = next((spec, container) for each, spec, container in containers(objects) if each == name)
    return Sandbox(spec=spec, container=container, **others)


def empty_dir(path: Path, spec: Object) -> Path:
    """As kubelet makes an emptyDir: everybody may write, and what is written belongs to the pod's group."""
    path.mkdir()
    group = spec.get("securityContext", {}).get("fsGroup")
    os.chown(path, 0, group or 0)
    path.chmod(0o2777 if group else 0o777)
    return path


def is_given_to_all(name: str) -> bool:
    """Kubernetes tells every container where its API server is."""
    return name.startswith("KUBERNETES_SERVICE_")


def _bind(source: str | Path, target: str, read_only: bool) -> list[str]:
    made = f"mkdir -p {target}" if os.path.isdir(source) else f"mkdir -p {os.path.dirname(target)} && touch {target}"
    return [made, f"mount --bind {source} {target}", *([f"mount -o remount,bind,ro {target}"] if read_only else [])]


def _setpriv(context: Object) -> list[str]:
    added = [f"+{each.lower()}" for each in context["capabilities"].get("add", [])]
    assert context["capabilities"]["drop"] == ["ALL"]
    words = ["setpriv", f"--reuid={context['runAsUser']}", f"--regid={context['runAsGroup']}", "--clear-groups"]
    words += [f"--bounding-set={','.join(['-all', *added])}", "--inh-caps=-all"]
    return [*words, *([] if context["allowPrivilegeEscalation"] else ["--no-new-privs"])]
