"""One listing of a cluster: as `kubectl get ... -o json` gives, but pruned and with the time at which it was taken."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from capture.connection import ApiError, Connection
from capture.contract import KINDS
from capture.errors import PodtapError
from capture.reflector import GONE, NOT_FOUND, Reflector
from capture.watch import Resource, list_query, moment

SNAPSHOT_KINDS: Final = (*KINDS, "ServiceCIDR")
_ATTEMPTS: Final = 3


def take_snapshot(connection: Connection, namespace: str = "") -> tuple[dict[str, Any], list[str]]:
    """A List of all objects, or of one namespace's and those of none; and what could not be listed, a sentence each.

    Kinds that the server does not serve are left out silently. Raises PodtapError if it can't list pods.
    """
    taken_s = int(time.time())
    items: list[Any] = []
    problems = []
    for kind in SNAPSHOT_KINDS:
        resource = Resource.of(kind, namespace)
        try:
            items += _listed(resource, connection)
        except ApiError as error:
            if kind == "Pod":
                raise PodtapError(f"pods can't be listed at {connection.host}: {error}") from error
            if not (resource.is_optional and error.status == NOT_FOUND):
                problems.append(f"{kind} is missing: {error}")
    created = f"{datetime.fromtimestamp(taken_s, UTC):%Y-%m-%dT%H:%M:%SZ}"
    metadata = {"resourceVersion": "", "creationTimestamp": created}
    return {"apiVersion": "v1", "kind": "List", "metadata": metadata, "items": items}, problems


def write_snapshot(snapshot: dict[str, Any], output: Path) -> Path:
    """Whole or not at all. In a folder, the name says when it was taken. Raises PodtapError."""
    if output.is_dir():
        taken = snapshot["metadata"]["creationTimestamp"].replace("-", "").replace(":", "")
        output /= f"cluster-{taken}.json"
    part = output.with_name(output.name + ".part")
    try:
        with part.open("w") as file:
            json.dump(snapshot, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        part.rename(output)
    except OSError as error:
        raise PodtapError(f"{output} can't be written: {error.strerror}") from error
    return output


def _listed(resource: Resource, connection: Connection) -> Sequence[Any]:
    reflector: Reflector = resource.reflector()
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            while not reflector.was_listed:
                request = reflector.start(moment())
                reflector.page(connection.get(resource.path, list_query(resource, request)), moment())
        except ApiError as error:
            # A listing can take longer than the server remembers what it was like when it began.
            if error.status != GONE or attempt == _ATTEMPTS:
                raise
            reflector.failed(error, moment())
    version = {"apiVersion": resource.api_version}
    return [version | json.loads(known.content) for known in reflector.objects.values()]
