"""Whom a row is about: the label of one side of a flow at the level that `--by` asks for.

Where a side has no name at that level, the next best one stands for it, down to its address: a report never hides
traffic because nobody could name it. `kind` says what the name is: pod, service, node, namespace, name, the kind of a
workload (Deployment ...), or, of an address without a name, external, unknown or ambiguous.
"""

from __future__ import annotations

from typing import Final

LEVELS: Final = {
    "pod": ("pod", "service", "node", "ip"),
    "workload": ("workload", "pod", "service", "node", "ip"),
    "namespace": ("namespace", "identity"),
    "service": ("service", "workload", "pod", "node", "ip"),
    "node": ("any_node", "identity"),
    "name": ("server_name", "pod", "service", "node", "ip"),
}
"""For each `--by`, which names are tried in turn. `name` is of resp only: what orig called it, by TLS or HTTP."""

PARTS: Final = ("kind", "namespace", "name")


def side_parts(side: str, by: str) -> str:
    """SQL: `<side>_kind`, `<side>_namespace`, `<side>_name` of a table with the side's identity columns and address.

    The columns themselves are read as t.*, so the table's alias must be t.
    """
    levels = LEVELS["pod" if by == "name" and side == "orig" else by]
    rungs = [_rung(side, level) for level in levels]
    return ", ".join(
        f"CASE {' '.join(f'WHEN {rung[0]} THEN {rung[part]}' for rung in rungs)} END AS {side}_{name}"
        for part, name in enumerate(PARTS, start=1)
    )


def _rung(side: str, level: str) -> tuple[str, str, str, str]:
    """When a name of this level is there, and then its kind, namespace and name, in SQL."""
    column = f"t.{side}_"
    identity, namespace = f"{column}identity", f"{column}namespace"
    match level:
        case "pod":
            return f"{column}pod IS NOT NULL", "'pod'", namespace, f"{column}pod"
        case "workload":
            kind = f"coalesce({column}workload_kind, 'workload')"
            return f"{column}workload IS NOT NULL", kind, namespace, f"{column}workload"
        case "service":
            return f"{column}service IS NOT NULL", "'service'", namespace, f"{column}service"
        case "node":
            return f"{identity} = 'node' AND {column}node IS NOT NULL", "'node'", "NULL", f"{column}node"
        case "any_node":
            return f"{column}node IS NOT NULL", "'node'", "NULL", f"{column}node"
        case "namespace":
            return f"{namespace} IS NOT NULL", "'namespace'", namespace, "NULL"
        case "server_name":
            return "t.server_name IS NOT NULL", "'name'", "NULL", "t.server_name"
        case "identity":
            return "true", identity, "NULL", "NULL"
    return "true", identity, "NULL", f"{column}ip"


def side_label(side: str) -> str:
    """SQL: a side as one text, `<side>`: shop/web-1, shop/svc/web, node/worker-1, 192.0.2.7, (external)."""
    kind, namespace, name = (f"{side}_{part}" for part in PARTS)
    return f"""CASE
        WHEN {namespace} IS NULL AND {name} IS NULL THEN '(' || {kind} || ')'
        WHEN {kind} = 'service' THEN concat_ws('/svc/', {namespace}, {name})
        WHEN {kind} = 'node' THEN 'node/' || {name}
        WHEN {kind} = 'ambiguous' THEN {name} || ' (ambiguous)'
        ELSE concat_ws('/', {namespace}, {name}) END AS {side}"""
