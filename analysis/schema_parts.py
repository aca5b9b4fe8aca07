"""What a table and a column are, and the columns that several tables have in common; schemas.py is made of these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pyarrow as pa

TIME: Final = pa.timestamp("ns", tz="UTC")
NAME: Final = pa.dictionary(pa.int32(), pa.string())
"""A string that repeats: dictionary-encoded, so that pandas makes it categorical."""
TEXT: Final = pa.string()


@dataclass(frozen=True)
class Column:
    """One column: `unit` is empty for names and flags; `null` says what a missing value means, empty if never null."""

    name: str
    type: pa.DataType
    doc: str
    unit: str = ""
    null: str = ""


@dataclass(frozen=True)
class Table:
    """One table: what a row is, how it is partitioned, and its columns in order."""

    name: str
    row: str
    columns: tuple[Column, ...]
    time: str | None
    """The column whose UTC day is the `date=` partition; None: the table is not partitioned."""

    @property
    def schema(self) -> pa.Schema:
        return pa.schema(
            [pa.field(c.name, c.type, nullable=bool(c.null)) for c in self.columns]
        )


def identity_columns(side: str, who: str) -> tuple[Column, ...]:
    """The columns that say what the address of one side was in the cluster at the flow's first packet."""
    return (
        Column(f"{side}_identity", NAME, f"what {who} was: pod, service, node, external, ambiguous or unknown"),
        Column(f"{side}_namespace", NAME, f"namespace of {who}", null="not a pod or service, or not known"),
        Column(f"{side}_pod", NAME, f"pod behind {who}", null="not a pod, or not known"),
        Column(f"{side}_pod_uid", NAME, f"UID of the pod behind {who}", null="not a pod, or not known"),
        Column(f"{side}_workload", NAME, "workload of the pod, at the top of its owner chain", null="not a pod, or no owner known"),
        Column(f"{side}_workload_kind", NAME, "kind of the workload (Deployment, StatefulSet, ...)", null="as workload"),
        Column(f"{side}_service", NAME, f"service whose address {who} used", null="not a service address, or not known"),
        Column(f"{side}_node", NAME, f"node that {who} is, or on which its pod ran", null="no node, or not known"),
    )


def point_columns(prefix: str, what: str, null: str = "") -> tuple[Column, ...]:
    """The columns that name an observation point."""
    return (
        Column(f"{prefix}_node", NAME, f"{what}: the node", null=null),
        Column(f"{prefix}_interface", NAME, "its interface", null=null or "the capture does not name interfaces"),
        Column(f"{prefix}_kind", NAME, "what that is: veth, bridge, vxlan, geneve, ipip, uplink (hardware, or a node's way out) ...", null="no manifest tells of it"),
        Column(f"{prefix}_pod", NAME, "the pod behind it, as namespace/name", null="none, or not known"),
        Column(f"{prefix}_encapsulation", NAME, "the tunnel that the packets were in there", null="not tunnelled"),
    )
