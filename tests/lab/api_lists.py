"""Lists of the API server stand-in: which version of the objects is shown, and pages."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from tests.lab.api_resources import Object, Resource
from tests.lab.api_selectors import Selection, select
from tests.lab.api_status import (
    CONTINUE_TOO_OLD,
    ApiError,
    bad_request,
    expired,
    invalid_options,
    not_found,
    version_not_a_number,
    version_too_large,
)
from tests.lab.api_store import Store

PATIENCE: Final = 3.0
"""Seconds that a list waits for a version that is still to come."""
_PARTIAL: Final = "PartialObjectMetadata"
_NEEDS_VERSION: Final = "Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided"
_NO_CONTINUE: Final = "Forbidden: resourceVersionMatch is forbidden when continue is provided"
_NOT_EXACT_0: Final = 'Forbidden: resourceVersionMatch "exact" is forbidden for resourceVersion "0"'


def wants_metadata_only(accept: str) -> bool:
    return f"as={_PARTIAL}" in accept


def rendered(resource: Resource, item: Object, metadata_only: bool) -> Object:
    if not metadata_only:
        return item
    return {"kind": _PARTIAL, "apiVersion": "meta.k8s.io/v1", "metadata": item["metadata"]}


def get_object(store: Store, resource: Resource, namespace: str, name: str, metadata_only: bool) -> Object:
    found = dict(store.items(resource)).get(f"{namespace}/{name}" if namespace else name)
    if found is None:
        raise not_found(resource, name)
    return rendered(resource, found, metadata_only)


def list_objects(
    store: Store,
    resource: Resource,
    namespace: str,
    query: Mapping[str, str],
    metadata_only: bool,
    wait: Callable[[Callable[[], bool], float], bool],
) -> Object:
    """`wait` holds until something is true, at most so many seconds, and says whether it is."""
    _check_options(query)
    selection = select(resource, namespace, query.get("labelSelector", ""), query.get("fieldSelector", ""))
    limit = _number(query.get("limit", "0"), "limit")
    version = query.get("resourceVersion", "")
    match = query.get("resourceVersionMatch", "")
    start, token = "", query.get("continue", "")
    exact: int | None = None
    if token:
        if version not in ("", "0"):
            raise bad_request("specifying resource version is not allowed when using continue")
        wanted, start = _read_token(token, namespace)
        exact = wanted if wanted > 0 else None
    elif version:
        if not re.fullmatch(r"\d+", version):
            raise bad_request(f"invalid resource version: {version_not_a_number(version)}")
        if not wait(lambda: store.revision >= int(version), PATIENCE):
            raise version_too_large(int(version), store.revision)
        is_legacy_exact = limit and not match and version != "0"
        exact = int(version) if match == "Exact" or is_legacy_exact else None
    if version == "0":
        limit = 0  # served by the watch cache, which has no pages then
    try:
        items = store.items(resource, exact)
    except ApiError:
        if token:
            raise expired(CONTINUE_TOO_OLD, _token(-1, start.removeprefix(_prefix(namespace)))) from None
        raise
    chosen = [(key, item) for key, item in items if key >= start and selection.matches(item)]
    revision = exact or store.revision
    return _list(selection, chosen, limit, revision, metadata_only)


def _list(
    selection: Selection, chosen: list[tuple[str, Object]], limit: int, revision: int, metadata_only: bool
) -> Object:
    resource = selection.resource
    metadata: Object = {"resourceVersion": str(revision)}
    page = chosen[:limit] if limit else chosen
    if len(page) < len(chosen):
        first = page[-1][0].removeprefix(_prefix(selection.namespace)) + "\0"
        metadata["continue"] = _token(revision, f"/{first}")
        if not selection.has_selectors:
            metadata["remainingItemCount"] = len(chosen) - len(page)
    if metadata_only:
        items = [rendered(resource, item, True) for _, item in page]
        return {
            "kind": f"{_PARTIAL}List",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": metadata,
            "items": items,
        }
    bare = [{name: value for name, value in item.items() if name not in ("kind", "apiVersion")} for _, item in page]
    return {"kind": f"{resource.kind}List", "apiVersion": resource.api_version, "metadata": metadata, "items": bare}


def _check_options(query: Mapping[str, str]) -> None:
    match, version = query.get("resourceVersionMatch", ""), query.get("resourceVersion", "")
    problem = ""
    if match and not version:
        problem = _NEEDS_VERSION
    elif match and query.get("continue"):
        problem = _NO_CONTINUE
    elif match not in ("", "Exact", "NotOlderThan"):
        problem = f'Unsupported value: "{match}": supported values: "Exact", "NotOlderThan", ""'
    elif match == "Exact" and version == "0":
        problem = _NOT_EXACT_0
    if problem:
        raise invalid_options(f"resourceVersionMatch: {problem}")
    if "sendInitialEvents" in query:
        raise invalid_options("sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list")


def _number(text: str, name: str) -> int:
    if not re.fullmatch(r"\d+", text):
        raise bad_request(f'strconv.ParseInt: parsing "{text}": invalid syntax ({name})')
    return int(text)


def _token(revision: int, start: str) -> str:
    """For the keys from `start` on, which is what follows the list's prefix; revision -1 is whatever is there now."""
    content = {"v": "meta.k8s.io/v1", "rv": revision, "start": start}
    return base64.urlsafe_b64encode(json.dumps(content, separators=(",", ":")).encode()).decode().rstrip("=")


def _read_token(token: str, namespace: str) -> tuple[int, str]:
    """Revision and first key."""
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise bad_request("invalid continue token: continue key is not valid: illegal base64 data") from None
    try:
        content: Any = json.loads(raw)
        revision, start = int(content["rv"]), str(content["start"]).lstrip("/")
    except (ValueError, KeyError, TypeError):
        message = f"invalid character '{chr(raw[0])}' looking for beginning of value" if raw else "unexpected end"
        raise bad_request(f"invalid continue token: continue key is not valid: {message}") from None
    return revision, _prefix(namespace) + start


def _prefix(namespace: str) -> str:
    """Of the keys that a list is about."""
    return f"{namespace}/" if namespace else ""
