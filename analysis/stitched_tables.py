"""The derived tables, of what stitch.py found."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from analysis import columns
from analysis.clocks import corrected
from analysis.schemas import TABLES
from analysis.stitch import NOWHERE, Flags, Integers, Stitched

MOST_LATENCIES: Final = 16
_PLACE: Final = ("node", "interface", "encapsulation")


def derived_tables(stitched: Stitched) -> dict[str, pa.Table]:
    """All of schemas.DERIVED by name; connections without the columns that identities.py fills in."""
    return {
        "connections": _connections(stitched),
        "connection_flows": _connection_flows(stitched),
        "hops": _hops(stitched),
        "losses": _losses(stitched),
        "clocks": _clocks(stitched),
    }


def _table(name: str, values: dict[str, Any], without: tuple[str, ...] = ()) -> pa.Table:
    schema = pa.schema([field for field in TABLES[name].schema if field.name not in without])
    return pa.table([_cast(values[field.name], field.type) for field in schema], schema=schema)


def _cast(values: Any, type_: pa.DataType) -> Any:
    column = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_dictionary(type_) and not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    return column if column.type == type_ else column.cast(type_)


def _words(stitched: Stitched, name: str, flow: Integers) -> pa.Array[Any]:
    """A column of flows at `flow`, null where that is -1, as a dictionary."""
    words: Any = _cast(stitched.flows[name], pa.dictionary(pa.int32(), pa.string()))
    return words.take(pa.array(np.maximum(flow, 0), mask=flow < 0))


def _end(stitched: Stitched, side: str, flow: Integers) -> tuple[Any, Any]:
    """Address and port of the connection's orig or resp, as at these flows."""
    as_orig = stitched.flipped[flow] == (side == "resp")
    ip, port = (
        pa.compute.if_else(pa.array(as_orig), _plain(stitched, f"orig_{what}", flow), _plain(stitched, f"resp_{what}", flow))
        for what in ("ip", "port")
    )
    return ip, port


def _plain(stitched: Stitched, name: str, flow: Integers) -> Any:
    return stitched.flows[name].combine_chunks().take(pa.array(flow))


def _times(values: Integers) -> Any:
    return columns.times(values)


def _ends_of_paths(stitched: Stitched) -> tuple[Integers, Integers]:
    """For each flow, its connection's flows nearest to orig and to resp, by what orig sends; else the primary."""
    position, connection = stitched.position[:, 1], stitched.connection
    known = np.flatnonzero(position < NOWHERE)
    nearest = [np.full(len(connection), -1), np.full(len(connection), -1)]
    for ends, order in zip(nearest, (known[np.argsort(-position[known])], known[np.argsort(position[known])]), strict=True):
        ends[connection[order]] = order
    return tuple(np.where(ends[connection] < 0, stitched.primary, ends[connection]) for ends in nearest)  # type: ignore[return-value]


def _seen(stitched: Stitched) -> tuple[Integers, Integers]:
    """first_seen and last_seen of each flow by the reference node's clock."""
    facts = stitched.facts
    return tuple(corrected(facts[name].copy(), stitched.node, stitched.offsets) for name in ("first_seen", "last_seen"))  # type: ignore[return-value]


def _connections(stitched: Stitched) -> pa.Table:
    connection = stitched.connection
    roots = np.flatnonzero(connection == np.arange(len(connection)))
    primary = stitched.primary[roots]
    _, near_resp = _ends_of_paths(stitched)
    first, last = _seen(stitched)
    begin, end = first.copy(), last.copy()
    np.minimum.at(begin, connection, first)
    np.maximum.at(end, connection, last)
    orig_ip, orig_port = _end(stitched, "orig", primary)
    resp_ip, resp_port = _end(stitched, "resp", primary)
    backend_ip, backend_port = _end(stitched, "resp", near_resp[roots])
    snat_ip, snat_port = _end(stitched, "orig", near_resp[roots])
    same = pa.compute.fill_null(
        pa.compute.and_(pa.compute.equal(orig_ip, snat_ip), pa.compute.equal(orig_port, snat_port)), True
    )
    values = {
        "connection_uid": _plain(stitched, "flow_uid", primary),
        "protocol": _words(stitched, "protocol", primary),
        "first_seen": _times(begin[roots]),
        "last_seen": _times(end[roots]),
        "orig_ip": orig_ip,
        "orig_port": orig_port,
        "resp_ip": resp_ip,
        "resp_port": resp_port,
        "backend_ip": backend_ip,
        "backend_port": backend_port,
        "snat_ip": pa.compute.if_else(same, pa.scalar(None, snat_ip.type), snat_ip),
        "snat_port": pa.compute.if_else(same, pa.scalar(None, snat_port.type), snat_port),
        "flows": np.bincount(connection, minlength=len(connection))[roots],
        "path": _path(stitched, 1, roots),
        "return_path": _path(stitched, 0, roots),
    }
    named = tuple(
        field.name for field in TABLES["connections"].schema if field.name not in values
    )
    table = _table("connections", values, named)
    return table.take(pa.array(np.argsort(begin[roots], kind="stable")))


def _path(stitched: Stitched, sent: int, roots: Integers) -> Any:
    """For each connection the names of its points, in the order of its path."""
    places = [_words(stitched, name, np.arange(len(stitched.facts))).cast(pa.string()) for name in _PLACE]
    node, interface, encapsulation = (place.to_pylist() for place in places)
    numbers: dict[tuple[Any, ...], int] = {}
    index = [numbers.setdefault(place, len(numbers)) for place in zip(node, interface, encapsulation, strict=True)]
    names = ["/".join(part for part in place if part) for place in numbers]
    position = stitched.position[:, sent]
    order = np.lexsort((position, stitched.connection))
    order = order[position[order] < NOWHERE]
    counts = np.bincount(stitched.connection[order], minlength=len(position))[roots]
    offsets = np.append(0, np.cumsum(counts)).astype(np.int32)
    points = pa.array(names, pa.string()).take(pa.array(np.array(index, np.int64)[order]))
    return pa.ListArray.from_arrays(pa.array(offsets), points)


def _connection_flows(stitched: Stitched) -> pa.Table:
    flow = np.arange(len(stitched.facts))
    near_orig, near_resp = _ends_of_paths(stitched)
    alone = np.bincount(stitched.connection, minlength=len(flow))[stitched.connection] == 1
    nowhere = (stitched.position >= NOWHERE).all(axis=1)
    roles = np.select(
        [alone, nowhere, (near_orig == flow) & (near_resp == flow), near_orig == flow, near_resp == flow],
        ["only", "aside", "only", "orig", "resp"],
        "between",
    )
    way = 2 * stitched.connection
    values = {
        "connection_uid": _plain(stitched, "flow_uid", stitched.primary),
        "flow_uid": stitched.flows["flow_uid"],
        "role": roles.astype(object),
        "is_primary": stitched.primary == flow,
        "counts_orig": stitched.sender_flow[way + 1] == flow,
        "counts_resp": stitched.sender_flow[way] == flow,
        "is_reversed": stitched.flipped,
        "position": _or_null(stitched.position[:, 1]),
        "return_position": _or_null(stitched.position[:, 0]),
    }
    return _table("connection_flows", values)


def _or_null(position: Integers) -> Any:
    return pa.array(position.astype(np.int32), mask=position >= NOWHERE)


def _senders(way: Integers) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array((way & 1).astype(np.int32)), pa.array(["resp", "orig"]))


def _points(stitched: Stitched, prefix: str, flow: Integers) -> dict[str, Any]:
    return {f"{prefix}_{name}": _words(stitched, name, flow) for name in ("flow_uid", *_PLACE)}


def _hops(stitched: Stitched) -> pa.Table:
    """Hops that packets were seen to take, and those that they were lost on."""
    lost, segments = _lost(stitched)
    hops = stitched.hops
    way = np.concatenate([hops["way"], 2 * stitched.connection[lost[:, 0]] + _sent(stitched)[lost[:, 2]]])
    one = np.concatenate([hops["flow"], lost[:, 0]]).astype(np.int64)
    other = np.concatenate([hops["next_flow"], lost[:, 1]]).astype(np.int64)
    latency = np.append(hops["latency_ns"], np.zeros(len(lost), np.int64))
    weight = np.append(np.zeros(len(hops), np.int64), segments)
    is_packet = np.arange(len(way)) < len(hops)
    order = np.lexsort((~is_packet, other, one, way))
    way, one, other, latency, weight, is_packet = (each[order] for each in (way, one, other, latency, weight, is_packet))
    first = np.append(True, (way[1:] != way[:-1]) | (one[1:] != one[:-1]) | (other[1:] != other[:-1]))[: len(way)]
    begin = np.flatnonzero(first)
    group = np.cumsum(first) - 1
    packets = np.bincount(group, is_packet, len(begin)).astype(np.int64)
    rank = np.arange(len(way)) - begin[group]
    every = -(-packets // MOST_LATENCIES)
    chosen = is_packet & (rank % np.maximum(every, 1)[group] == 0)
    counts = np.bincount(group[chosen], minlength=len(begin))
    latencies = pa.ListArray.from_arrays(
        pa.array(np.append(0, np.cumsum(counts)).astype(np.int32)), pa.array(latency[chosen])
    )
    way, one, other = way[begin], one[begin], other[begin]
    seen = _seen(stitched)
    values = {
        "connection_uid": _words(stitched, "flow_uid", stitched.primary[one]),
        "sender": _senders(way),
        "position": stitched.position[one, way & 1],
        **_points(stitched, "from", one),
        **_points(stitched, "to", other),
        "packets": packets,
        "latencies_ns": latencies,
        "lost_tcp_segments": np.bincount(group, weight, len(begin)).astype(np.int64),
        "first_seen": _times(seen[0][one]),
        "last_seen": _times(seen[1][one]),
    }
    return _table("hops", values)


def _sent(stitched: Stitched) -> Integers:
    """Of each event, whether orig sent it."""
    row = stitched.events["row"].astype(np.int64)
    by_orig = np.array([sender == "orig" for sender in stitched.retransmits["sender"].to_pylist()], np.bool_)[row]
    flow = _flow_of_event(stitched)
    return (by_orig ^ stitched.flipped[flow]).astype(np.int64)


def _flow_of_event(stitched: Stitched) -> Integers:
    order = np.argsort(stitched.facts["uid"])
    from analysis.sightings import uid_numbers

    uids = uid_numbers(stitched.retransmits["flow_uid"].combine_chunks())[stitched.events["row"]]
    flow: Integers = order[np.searchsorted(stitched.facts["uid"], uids, sorter=order)]
    return flow


def _lost(stitched: Stitched) -> tuple[npt.NDArray[np.int64], Integers]:
    """(flow, next flow, event) of each event that was lost between two points, and its TCP segments."""
    located = stitched.located.astype(np.int64)
    at = np.flatnonzero((located >= 0).all(axis=1))
    segments = stitched.retransmits["tcp_segments"].to_numpy()[stitched.events["row"][at]]
    return np.column_stack([located[at], at]), segments


def _losses(stitched: Stitched) -> pa.Table:
    events, located = stitched.events, stitched.located.astype(np.int64)
    order = np.argsort(events["row"], kind="stable")
    row, (last, after) = events["row"][order].astype(np.int64), located[order].T
    told = stitched.retransmits.take(pa.array(row))
    flow = _flow_of_event(stitched)[order]
    verdicts = np.select([last < 0, after < 0], ["before", "arrived"], "lost")
    values = {
        "ts": told["ts"],
        "connection_uid": _words(stitched, "flow_uid", stitched.primary[flow]),
        "flow_uid": told["flow_uid"],
        "sender": _senders(_sent(stitched)[order]),
        "seq": told["seq"],
        "tcp_segments": told["tcp_segments"],
        "verdict": verdicts.astype(object),
        **_points(stitched, "after", last),
        **_points(stitched, "before", after),
    }
    return _table("losses", values)


def _clocks(stitched: Stitched) -> pa.Table:
    nodes = _nodes(stitched)
    offsets = stitched.offsets
    values: dict[str, Any] = {
        "node": pa.array([nodes[each.node] for each in offsets], pa.string()),
        "reference": pa.array([nodes[0] for _ in offsets], pa.string()),
        "start": _times(np.array([each.start_ns for each in offsets], np.int64)),
        "end": _times(np.array([each.end_ns for each in offsets], np.int64)),
        **{
            name: pa.array([getattr(each, name) for each in offsets], pa.int64())
            for name in ("offset_ns", "drift_ppb", "bound_ns", "packets")
        },
    }
    return _table("clocks", values)


def _nodes(stitched: Stitched) -> dict[int, str]:
    nodes = stitched.node
    numbers, first = np.unique(nodes, return_index=True)
    names = stitched.flows["node"].take(pa.array(first)).to_pylist()
    return dict(zip(numbers.tolist(), names, strict=True))
