"""Rows of the table segments: what each input file held, what was lost of it, and what its manifest says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from analysis import columns
from analysis.errors import Problem
from analysis.layout import (
    COUNTED_ARP,
    COUNTED_COPIES,
    COUNTED_CUT,
    COUNTED_FIRST_TS,
    COUNTED_LAST_TS,
    COUNTED_MALFORMED,
    COUNTED_NOT_IP,
    COUNTED_OPAQUE,
    COUNTED_PACKETS,
    COUNTED_SKIPPED,
    DECODED_LINK_TYPES,
)
from analysis.link_types import link_type_name
from analysis.schemas import SEGMENTS
from analysis.segments import Segment, printable
from capture.contract import Manifest


def segments_table(rows: Sequence[tuple[Segment, npt.NDArray[np.int64]]], now: int) -> pa.Table:
    """Rows of schemas.SEGMENTS: each segment that was read, and what decoding counted of it (layout.COUNTED_*)."""
    found: dict[str, list[object]] = {column.name: [] for column in SEGMENTS.columns}
    for segment, counts in rows:
        values = _values(segment, counts, now)
        for name, column in found.items():
            column.append(values.get(name))
    return columns.to_table("segments", {c.name: columns.values(found[c.name], c.type) for c in SEGMENTS.columns})


def _values(s: Segment, counts: npt.NDArray[np.int64], now: int) -> dict[str, Any]:
    has_packets = bool(counts[COUNTED_PACKETS])
    if not has_packets and s.manifest:
        now = s.manifest.opened_ns
    return {
        "cluster": s.cluster,
        "segment": s.name,
        "path": printable(s.path),
        "content_hash": s.content_hash,
        "first_ts": int(counts[COUNTED_FIRST_TS]) if has_packets else now,
        "last_ts": int(counts[COUNTED_LAST_TS]) if has_packets else now,
        "format": s.format,
        "compression": s.compression,
        "link_types": ",".join(dict.fromkeys(str(i.link_type) for i in s.interfaces)),
        "interfaces": ",".join(dict.fromkeys(i.name for i in s.interfaces if i.name)) or None,
        "bytes": s.bytes_read,
        "packets": int(counts[COUNTED_PACKETS]),
        "arp_packets": int(counts[COUNTED_ARP]),
        "not_ip_packets": int(counts[COUNTED_NOT_IP]),
        "malformed_packets": int(counts[COUNTED_MALFORMED]),
        "cut_packets": int(counts[COUNTED_CUT]),
        "opaque_packets": int(counts[COUNTED_OPAQUE]),
        "skipped_packets": int(counts[COUNTED_SKIPPED]),
        "copies": int(counts[COUNTED_COPIES]),
        "drops_kernel": s.drops_kernel,
        "drops_interface": s.drops_interface,
        "unsealed": s.unsealed,
        "sha256_ok": s.sha256_ok,
        "truncated": s.truncated,
        "problems": printable("; ".join(map(str, s.problems))) or None,
        **(_of_manifest(s.manifest) if s.manifest else {}),
    }


def _of_manifest(manifest: Manifest) -> dict[str, Any]:
    """What only a manifest says; a salvaged segment's ledger is not known."""
    ledger = None if manifest.salvaged else manifest.ledger
    part = manifest.derived_from
    opened, sealed = manifest.opened_ns, manifest.sealed_ns
    if manifest.salvaged:  # much later
        sealed = manifest.last_packet_ns or opened
    if part:
        opened = max(opened, part.since_ns or opened)
        sealed = min(sealed, part.until_ns or sealed)
    return {
        "opened": opened,
        "sealed": sealed,
        "drops_libpcap": ledger and ledger.libpcap,
        "drops_disk": ledger and ledger.disk,
        "drops_policy": ledger and ledger.policy,
        "salvaged": manifest.salvaged,
        "gap_before_ns": manifest.gap_before_ns,
        "derived_from": part and part.manifest_sha256,
        "only_addresses": part and part.addresses and ",".join(part.addresses),
        "run_id": manifest.run_id,
        "filter": manifest.filter,
        "payload": manifest.payload,
        "scope": manifest.scope,
        "clock_synchronised": manifest.clock.synchronised,
        "clock_max_error_ns": manifest.clock.max_error_ns,
        "clock_stepped": manifest.clock.stepped,
    }


def undecoded(segment: Segment, counts: npt.NDArray[np.int64]) -> list[Problem]:
    """Link types that can't be decoded, if there were packets of them."""
    if not counts[COUNTED_SKIPPED]:
        return []
    unknown = sorted({i.link_type for i in segment.interfaces} - DECODED_LINK_TYPES)
    skipped = int(counts[COUNTED_SKIPPED])
    packets = "1 packet" if skipped == 1 else f"{skipped:,} packets"
    message = f"{packets} of link type {', '.join(map(link_type_name, unknown))} can't be decoded"
    return [Problem(segment.path, None, message)]
