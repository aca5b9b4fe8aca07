"""Kubeconfigs that lead to the API server stand-in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.lab.api_server import ApiServer


def write_kubeconfig(folder: Path, server: ApiServer, authority: Path | None = None, **user: Any) -> Path:
    """`user`: as in a kubeconfig, with _ for -. JSON is YAML."""
    cluster = {"server": server.url} | ({"certificate-authority": str(authority)} if authority else {})
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": cluster}],
        "users": [{"name": "lab", "user": {key.replace("_", "-"): value for key, value in user.items()}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
    }
    path = folder / "kubeconfig"
    path.write_text(json.dumps(content))
    return path
