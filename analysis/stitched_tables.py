"""The derived tables, of what stitch.py found; each part of the connections is some rows of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from analysis import columns, rooms
from analysis.clocks import Offset, corrected
from analysis.paths import NOWHERE
from analysis.schemas import CONNECTIONS, NAME, TABLES
from analysis.stitch import Stitched

Integers = npt.NDArray[np.int64]

MOST_LATENCIES: Final = 8
_PLACE: Final = ("node", "interface", "encapsulation")
_POINT: Final = (*_PLACE, "kind", "pod")


def stitched_tables(stitched: Stitched) -> dict[str, pa.Table]:
    """What of schemas.DERIVED is stitched, by name; connections without the columns that identities.py fills in.

    `stitched.flows` are those of interfaces_seen.with_interfaces().
    """
    return {
        "connections": _connections(stitched),
        "connection_flows": _connection_flows(stitched),
        "hops": _hops(stitched),
        "losses": _losses(stitched),
    }


def clocks_table(offsets: list[Offset], nodes: Sequence[str]) -> pa.Table:
    """schemas.CLOCKS; `nodes`: all of them, in the order of their names."""
    values: dict[str, Any] = {
        "node": [nodes[each.node] for each in offsets],
        "reference": [nodes[0]] * len(offsets),
        "start": columns.times(np.array([each.start_ns for each in offsets], np.int64)),
        "end": columns.times(np.array([each.end_ns for each in offsets], np.int64)),
        **{name: [getattr(each, name) for each in offsets] for name in ("offset_ns", "drift_ppb", "bound_ns")},
        "packets": [each.packets for each in offsets],
    }
    return _table("clocks", values)


def _connections(stitched: Stitched) -> pa.Table:
    connection = stitched.connection
    roots = np.flatnonzero(connection == np.arange(len(connection)))
    begin, end = _seen(stitched)
    np.minimum.at(begin, connection, begin.copy())
    np.maximum.at(end, connection, end.copy())
    roots = roots[np.argsort(begin[roots], kind="stable")]
    primary, near_resp = stitched.primary[roots], _nearest(stitched, orig=False)[roots]
    orig_ip, orig_port = _end(stitched, "orig", primary)
    resp_ip, resp_port = _end(stitched, "resp", primary)
    backend_ip, backend_port = _end(stitched, "resp", near_resp)
    snat_ip, snat_port = _end(stitched, "orig", near_resp)
    words = _point_names(stitched), columns.whole(stitched.flows["kind"])
    path, path_kinds = _along_path(stitched, 1, roots, words)
    return_path, return_path_kinds = _along_path(stitched, 0, roots, words)
    same = (orig_ip == snat_ip) & columns.plain(pc.equal(orig_port, snat_port), True)
    values = {
        "connection_uid": columns.uid_text(stitched.facts["uid"][primary]),
        "protocol": _names(stitched, "protocol", primary),
        "first_seen": columns.times(begin[roots]),
        "last_seen": columns.times(end[roots]),
        "orig_ip": _addresses(stitched, orig_ip),
        "orig_port": orig_port,
        "resp_ip": _addresses(stitched, resp_ip),
        "resp_port": resp_port,
        "backend_ip": _addresses(stitched, backend_ip),
        "backend_port": backend_port,
        "snat_ip": _addresses(stitched, np.where(same, -1, snat_ip)),
        "snat_port": snat_port.take(columns.array(np.arange(len(same)), ~same)),
        "flows": np.bincount(connection, minlength=len(connection))[roots],
        "path": path,
        "return_path": return_path,
        "path_kinds": path_kinds,
        "return_path_kinds": return_path_kinds,
    }
    return _table("connections", values)


def _connection_flows(stitched: Stitched) -> pa.Table:
    flow = np.arange(len(stitched.facts))
    alone = np.bincount(stitched.connection, minlength=len(flow))[stitched.connection] == 1
    aside = (stitched.position >= NOWHERE).all(axis=1)
    near_orig, near_resp = (_nearest(stitched, orig) == flow for orig in (True, False))
    roles = {"only": alone | (near_orig & near_resp), "aside": aside, "orig": near_orig, "resp": near_resp}
    way = 2 * stitched.connection
    values = {
        "connection_uid": columns.uid_text(stitched.facts["uid"][stitched.primary]),
        "flow_uid": columns.uid_text(stitched.facts["uid"]),
        "role": _first_true(roles, "between"),
        "is_primary": stitched.primary == flow,
        "counts_orig": stitched.sender_flow[way + 1] == flow,
        "counts_resp": stitched.sender_flow[way] == flow,
        "is_reversed": stitched.flipped,
        "position": _or_null(stitched.position[:, 1]),
        "return_position": _or_null(stitched.position[:, 0]),
    }
    return _table("connection_flows", values)


def _hops(stitched: Stitched) -> pa.Table:
    """Hops that packets were seen to take, and those that they were lost on."""
    seen = stitched.hops
    lost, last, after = _lost(stitched)
    segments = stitched.retransmits["tcp_segments"][stitched.events["row"][lost]]
    way = np.append(seen["way"], stitched.event_ways["way"][lost])
    one, other = np.append(seen["flow"], last), np.append(seen["next_flow"], after)
    is_packet = np.arange(len(way)) < len(seen)
    order = np.lexsort((~is_packet, other, one, way))
    way, one, other, is_packet = way[order], one[order], other[order], is_packet[order]
    latency = np.append(seen["latency_ns"], np.zeros(len(lost), np.int64))[order]
    lost_segments = np.append(np.zeros(len(seen), np.int64), segments)[order]
    changes = (np.diff(way) != 0) | (np.diff(one) != 0) | (np.diff(other) != 0)
    begin = np.flatnonzero(np.append(True, changes)[: len(way)])
    group = np.repeat(np.arange(len(begin)), np.diff(np.append(begin, len(way))))
    packets = np.bincount(group, is_packet, len(begin)).astype(np.int64)
    every = np.maximum(-(-packets // MOST_LATENCIES), 1)
    told = is_packet & ((np.arange(len(way)) - begin[group]) % every[group] == 0)
    way, one, other = way[begin], one[begin], other[begin]
    first, last = _seen(stitched)
    values = {
        "connection_uid": _uids(stitched, stitched.primary[one]),
        "sender": _senders(way),
        "position": stitched.position[one, way & 1],
        **_point(stitched, "from", one),
        **_point(stitched, "to", other),
        "packets": packets,
        "latencies_ns": _lists(np.bincount(group[told], minlength=len(begin)), columns.array(latency[told])),
        "lost_tcp_segments": np.bincount(group, lost_segments, len(begin)).astype(np.int64),
        "first_seen": columns.times(first[one]),
        "last_seen": columns.times(last[one]),
    }
    return _table("hops", values)


def _losses(stitched: Stitched) -> pa.Table:
    located = stitched.located.astype(np.int64)
    never_again = np.flatnonzero((located[:, 2:] >= 0).all(axis=1))
    event = np.append(np.arange(len(located)), never_again)
    last, after = np.concatenate([located[:, :2], located[never_again, 2:]]).T
    resent = np.arange(len(event)) < len(located)
    order = np.lexsort((resent, stitched.events["row"][event]))
    event, last, after, resent = event[order], last[order], after[order], resent[order]
    ways = stitched.event_ways[event]
    told = rooms.taken(stitched.retransmits, stitched.events["row"][event])
    values = {
        "ts": columns.times(told["ts"]),
        "resent": resent,
        "connection_uid": _uids(stitched, stitched.primary[ways["flow"]]),
        "flow_uid": _uids(stitched, told["flow"]),
        "sender": _senders(ways["way"]),
        "seq": columns.array(told["seq"]),
        "tcp_segments": columns.array(told["tcp_segments"]),
        "verdict": _first_true({"before": last < 0, "arrived": after < 0}, "lost"),
        "after_flow_uid": _uids(stitched, last),
        **_point(stitched, "after", last),
        "before_flow_uid": _uids(stitched, after),
        **_point(stitched, "before", after),
    }
    return _table("losses", values)


def _lost(stitched: Stitched) -> tuple[Integers, Integers, Integers]:
    """(event, flow, next flow) of all sends that were lost between two points."""
    sends = [stitched.located[:, :2].astype(np.int64), stitched.located[:, 2:].astype(np.int64)]
    event = [np.flatnonzero((each >= 0).all(axis=1)) for each in sends]
    last, after = np.concatenate([each[at] for each, at in zip(sends, event, strict=True)]).T
    return np.concatenate(event), last, after


# --- Parts -----------------------------------------------------------------------------------------------------------


def _seen(stitched: Stitched) -> tuple[Integers, Integers]:
    """first_seen and last_seen of each flow by the reference node's clock."""
    facts, node = stitched.facts, stitched.facts["node"].astype(np.int64)
    first, last = (corrected(facts[name], node, stitched.offsets) for name in ("first_seen", "last_seen"))
    return first, last


def _nearest(stitched: Stitched, orig: bool) -> Integers:
    """For each flow, its connection's flow nearest to orig (or resp) that saw what orig sent; else the primary."""
    position, connection = stitched.position[:, 1], stitched.connection
    known = np.flatnonzero(position < NOWHERE)
    order = known[np.argsort(position[known])]
    nearest = np.full(len(connection), -1)
    order = order[::-1] if orig else order
    nearest[connection[order]] = order
    return np.where(nearest[connection] < 0, stitched.primary, nearest[connection])


def _end(stitched: Stitched, side: str, flow: Integers) -> tuple[Integers, Any]:
    """Address (its number) and port of the connection's orig or resp, as these flows have them."""
    is_orig = stitched.flipped[flow] == (side == "resp")
    ip = np.where(is_orig, stitched.facts["orig"][flow], stitched.facts["resp"][flow])
    ports = (columns.whole(stitched.flows[name]).take(columns.array(flow)) for name in ("orig_port", "resp_port"))
    return ip, pc.if_else(columns.array(is_orig), *ports)


def _addresses(stitched: Stitched, numbers: Integers) -> Any:
    """The addresses of these numbers, null where one is below 0."""
    found, index = np.unique(numbers, return_inverse=True)
    return columns.some_names(index, [stitched.addresses[number] if number >= 0 else None for number in found.tolist()])


def _point_names(stitched: Stitched) -> Any:
    """For each flow the name of its point."""
    _, first, index = np.unique(stitched.facts["point"], return_index=True, return_inverse=True)
    places = zip(*(stitched.flows[name].take(columns.array(first)).to_pylist() for name in _PLACE), strict=True)
    return columns.names(index, ["/".join(part for part in place if part) for place in places])


def _along_path(stitched: Stitched, sent: int, roots: Integers, words: Sequence[Any]) -> list[Any]:
    """For each connection the words of its flows (dictionaries), in the order of its path."""
    position = stitched.position[:, sent]
    rank = np.full(len(position), len(roots))
    rank[roots] = np.arange(len(roots))
    rank = rank[stitched.connection]
    order = np.lexsort((position, rank))
    order = order[position[order] < NOWHERE]
    counts, at = np.bincount(rank[order], minlength=len(roots)), columns.array(order)
    return [_lists(counts, each.take(at).cast(pa.string())) for each in words]


def _point(stitched: Stitched, prefix: str, flow: Integers) -> dict[str, Any]:
    return {f"{prefix}_{name}": _names(stitched, name, flow) for name in _POINT}


def _uids(stitched: Stitched, flow: Integers) -> Any:
    """flow_uid as a dictionary, null where `flow` is -1."""
    return columns.uids(stitched.facts["uid"][np.maximum(flow, 0)], columns.bitmap(flow >= 0))


def _names(stitched: Stitched, name: str, flow: Integers) -> Any:
    """A column of flows as a dictionary, null where `flow` is -1."""
    return columns.whole(stitched.flows[name]).take(columns.array(np.maximum(flow, 0), flow >= 0))


def _senders(way: Integers) -> Any:
    return columns.names((way & 1).astype(np.int32), ["resp", "orig"])


def _first_true(words: dict[str, npt.NDArray[np.bool_]], otherwise: str) -> Any:
    """The first word that is true of a row, as a dictionary."""
    return columns.names(np.select([*words.values()], [*range(len(words))], len(words)), [*words, otherwise])


def _or_null(position: Integers) -> Any:
    return columns.array(position.astype(np.int32), position < NOWHERE)


def _lists(counts: Integers, values: Any) -> Any:
    """Lists that follow each other in `values`."""
    return columns.lists(np.append(0, np.cumsum(counts)).astype(np.int32), values)


def _table(name: str, values: dict[str, Any]) -> pa.Table:
    """The columns in the order of the schema, but for those of identities."""
    schema = pa.schema([field for field in TABLES[name].schema if name != CONNECTIONS.name or field.name in values])
    return pa.table([_typed(values[field.name], field.type) for field in schema], schema=schema)


def _typed(values: Any, type_: pa.DataType) -> Any:
    if isinstance(values, list):
        return columns.values(values, type_)
    column: Any = columns.array(values) if isinstance(values, np.ndarray) else columns.whole(values)
    if type_ == NAME and not isinstance(column, pa.DictionaryArray):
        column = column.cast(pa.string()).dictionary_encode()
    return column if column.type == type_ else column.cast(type_)
