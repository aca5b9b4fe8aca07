"""Flows: every packet to its flow, and what each flow did.

A flow is one 5-tuple at one observation point, in both directions, bounded in time:

- It ends after 5 minutes without a packet for TCP, 1 minute for all else (Zeek's inactivity timeouts). Zeek's shorter
  ones (5 s for an unanswered SYN, 5 s after a close) are not applied: SYN retries and late packets stay with theirs.
- A SYN with another sequence number than the flow's own begins a new flow: the ports were used again. One with the
  same is a retry, however late.
- orig is who sent the SYN; without one, who does not have the well-known port; else who was seen first.
- At one interface, packets of one direction all have the same in/out mark, VLAN and VNI. Others were observed at
  another place on their way (or are another tenant's) and make a flow of their own. The two directions may differ:
  Weave and Cilium put the sender into the VNI.
- Later IP fragments go with the first one, by its id. The row of one that came before its first fragment waits for
  that one, across chunks and files, for as long as a datagram may (a minute from fragment to fragment), and there
  are places for 4,096: else it names no flow.
- ICMP flows are Zeek's: (type, counterpart type) take the place of ports; errors are one-way.

`conn_state` and `history` follow Zeek (base/protocols/conn/main.zeek, TCPSessionAdapter.cc); no letter C, since
checksums of captured packets are mostly left to the network card.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from analysis import accounts_kernels as accounts
from analysis import columns, flows_kernels, rooms
from analysis.columns_kernels import write_community_ids
from analysis.copies import Copies
from analysis.layout import ICMP, ICMPV6, NANOSECONDS, PACKET, TCP, UDP

Records = npt.NDArray[Any]
FlowRows: TypeAlias = tuple[Records, Records, npt.NDArray[np.uint8], list[str | None], Records]
"""ACCOUNT[n], ACCOUNT_SIDE[2n], histories, server names, MINUTE[m]."""

FIRST_SLOTS: Final = 1 << 18
"""Enough for most recordings, since more need a copy of all that is known; what was not written to takes no memory."""
SWEEP_PACKETS: Final = 1 << 20
"""How often what is over is looked for; it decides about memory only, never about the tables."""
REMEMBERED_SLOTS: Final = 1 << 16
"""Ended TCP flows are remembered, for what the same ports do later, until there are more slots than this."""
REMEMBERED_NS: Final = 300 * NANOSECONDS

CONN_STATES: Final = ("OTH", "S0", "S1", "SF", "REJ", "S2", "S3", "RSTO", "RSTR", "RSTOS0", "RSTRH", "SH", "SHR")


class Flows:
    """The flows of one recording; carries their state over chunks and file borders."""

    def __init__(self) -> None:
        self.slots = rooms.zeros(FIRST_SLOTS, flows_kernels.SLOT)
        self.used = 0
        self._sides = rooms.zeros(2 * FIRST_SLOTS, flows_kernels.SLOT_SIDE)
        self._copies = Copies()
        self._fragments = np.zeros(flows_kernels.FRAGMENTED_DATAGRAMS, flows_kernels.FRAGMENT)
        self._early = np.zeros(flows_kernels.EARLY_FRAGMENTS + 1, PACKET)
        self._early_links = np.roll(np.arange(flows_kernels.EARLY_FRAGMENTS + 1, dtype=np.int32), -1)
        self._settled: list[Records] = []
        self._table = np.full(2 * FIRST_SLOTS, -1, np.int32)
        self._free = np.zeros(FIRST_SLOTS + 1, np.int32)
        self._accounts = accounts.Accounts(
            rooms.zeros(FIRST_SLOTS, accounts.ACCOUNT),
            rooms.zeros(2 * FIRST_SLOTS, accounts.ACCOUNT_SIDE),
            rooms.zeros(FIRST_SLOTS * accounts.HISTORY_BYTES, np.uint8),
        )
        self._hashes = np.zeros(flows_kernels.AHEAD, np.uint64)
        self._closed = _no_closed()
        self._blank = np.zeros(1, accounts.ACCOUNT), np.zeros(1, accounts.ACCOUNT_SIDE)
        self._unswept = 0
        self._clock = np.iinfo(np.int64).min
        self._server_names: dict[int, str] = {}

    def must_rest(self, packets: int) -> bool:
        """Whether assign() of so many moves what account() works on: all before them have to be accounted for first."""
        return self._unswept >= SWEEP_PACKETS or self._slots_needed(packets) > len(self.slots)

    def assign(
        self,
        data: npt.NDArray[np.uint8],
        packets: Records,
        points: npt.NDArray[np.int64],
        point_hashes: npt.NDArray[np.uint64],
    ) -> int:
        """Set flow, flow_uid, flow_first_seen, from_orig, starts_flow and is_copy of PACKET[n]; returns the copies.

        Those before them may be accounted for at the same time, unless it must_rest().

        `data`: of their chunk. `points` (layout.POINT_*) and `point_hashes` are by observation point.
        """
        if self._unswept >= SWEEP_PACKETS:
            self._sweep()
        self._unswept += len(packets)
        self._make_room(len(packets))
        settled = np.empty(len(self._early) + len(packets), PACKET)  # most often untouched, which takes no time
        with np.errstate(over="ignore"):
            self.used, count, waiting = flows_kernels.assign(
                packets, self._table, self.slots, self._sides, self._fragments, self._early,
                self._early_links, settled, points, point_hashes, self._free, self.used, self._hashes,
            )  # fmt: skip
        copies = self._copies.mark(data, packets, points, len(self.slots))
        self._settled.append(packets[packets["waits"] == 0] if waiting else packets)
        if count:
            self._settled.append(settled[:count].copy())
        return copies

    def settled(self) -> Records:
        """Assigned PACKET[n], since the last call, that know all they will of their flow.

        Not among them: fragments that wait for their first one. Among them: those that did.
        """
        settled, self._settled = self._settled, []
        return settled[0] if len(settled) == 1 else rooms.joined(settled, PACKET)

    def account(self, data: npt.NDArray[np.uint8], packets: Records, verdicts: Records) -> None:
        """Add assigned PACKET[n], and what was said of each (VERDICT[n]), to the flows' accounts."""
        self._make_closing_room(len(packets), len(packets))
        self._clock = accounts.account(
            data, packets, verdicts, self.slots, self._accounts, self._closed, self._clock, *self._blank
        )
        counts, names = self._closed.counts, self._closed.names
        for uid, offset, length in names[: counts[accounts.NAME_COUNT]].tolist():
            name = data[offset : offset + length].tobytes()
            self._server_names[uid] = name.decode("ascii", "backslashreplace").lower()
        counts[accounts.NAME_COUNT] = 0

    @property
    def finished(self) -> int:
        """Flows that rows() would give."""
        return int(self._closed.counts[accounts.FLOW_COUNT])

    def finish(self) -> None:
        """The recording ends: no fragment comes any more for which a row waits, and nothing that may be a copy."""
        self._copies = Copies()
        settled = np.empty(len(self._early), PACKET)
        count = flows_kernels.give_up_early(self._fragments, self._early, self._early_links, settled)
        self._settled.append(settled[:count])

    def rows(self) -> FlowRows:
        """What was finished since the last call."""
        closed, self._closed = self._closed, _no_closed()
        count, minute_count, _ = closed.counts.tolist()
        flows = closed.flows[:count]
        server_names: list[str | None] = [None] * count
        if self._server_names:
            for place in np.flatnonzero(flows["named"]).tolist():
                server_names[place] = self._server_names.pop(int(flows["flow_uid"][place]), None)
        history = closed.history.reshape(-1, accounts.HISTORY_BYTES)[:count]
        return flows, closed.sides[: 2 * count], history, server_names, closed.minutes[:minute_count]

    def last_rows(self, count: int) -> Iterator[FlowRows]:
        """All that rows() did not give yet: first what was finished, then what was not, clustered, `count` or so at a
        time."""
        if self.finished:
            yield clustered(self.rows())
        slots = np.flatnonzero(self._accounts.flows["open"][: self.used])
        slots = slots[_order(self._accounts.flows[slots])]
        parts = max(len(slots) // count, 1)
        for part in range(parts):
            self._close(slots[len(slots) * part // parts : len(slots) * (part + 1) // parts])
            yield self.rows()

    def _sweep(self) -> None:
        self._unswept = 0
        expired = np.zeros(self.used, np.bool_)
        keep_since = self._clock - REMEMBERED_NS if self.used > REMEMBERED_SLOTS else np.iinfo(np.int64).min
        flows_kernels.expire(self.slots, self.used, self._clock, keep_since, self._free, expired)
        self._close(np.flatnonzero(expired))
        self._table[:] = -1
        with np.errstate(over="ignore"):
            flows_kernels.rebuild(self._table, self.slots, self.used)

    def _close(self, slots: npt.NDArray[np.int64]) -> None:
        self._make_closing_room(len(slots), 0)
        accounts.close(self._accounts, slots, self._closed)

    def _make_closing_room(self, flows: int, packets: int) -> None:
        """So many more flows may close, and each packet may end a minute and name a server."""
        closed = self._closed
        flows += int(closed.counts[accounts.FLOW_COUNT])
        minutes = int(closed.counts[accounts.MINUTE_COUNT]) + flows + packets
        if flows > len(closed.flows) or minutes > len(closed.minutes) or packets > len(closed.names):
            self._closed = accounts.Closed(
                rooms.grown(closed.flows, rooms.GROWTH * flows),
                rooms.grown(closed.sides, rooms.GROWTH * 2 * flows),
                rooms.grown(closed.history, rooms.GROWTH * flows * accounts.HISTORY_BYTES),
                rooms.grown(closed.minutes, rooms.GROWTH * minutes),
                rooms.grown(closed.names, packets),
                closed.counts,
            )

    def _slots_needed(self, packets: int) -> int:
        """Every packet may begin a flow in a new slot."""
        return self.used - int(self._free[-1]) + packets

    def _make_room(self, packets: int) -> None:
        needed = self._slots_needed(packets)
        if needed <= len(self.slots):
            return
        size = max(rooms.GROWTH * len(self.slots), 1 << needed.bit_length())
        free = np.zeros(size + 1, np.int32)
        free[: len(self._free) - 1] = self._free[:-1]
        free[-1] = self._free[-1]
        self._free = free
        self.slots = rooms.grown(self.slots, size)
        self._sides = rooms.grown(self._sides, 2 * size)
        self._accounts = accounts.Accounts(
            rooms.grown(self._accounts.flows, size),
            rooms.grown(self._accounts.sides, 2 * size),
            rooms.grown(self._accounts.history, size * accounts.HISTORY_BYTES),
        )
        self._table = np.full(2 * size, -1, np.int32)
        with np.errstate(over="ignore"):
            flows_kernels.rebuild(self._table, self.slots, self.used)


def _no_closed() -> accounts.Closed:
    return accounts.Closed(
        rooms.zeros(FIRST_SLOTS, accounts.ACCOUNT),
        rooms.zeros(2 * FIRST_SLOTS, accounts.ACCOUNT_SIDE),
        rooms.zeros(FIRST_SLOTS * accounts.HISTORY_BYTES, np.uint8),
        rooms.zeros(2 * FIRST_SLOTS, accounts.MINUTE),
        rooms.zeros(0, accounts.SERVER_NAME),
        np.zeros(3, np.int64),
    )


def clustered(rows: FlowRows) -> FlowRows:
    """Flows of one orig side by side: where they are many, a filter by pod or address skips most row groups."""
    flows, sides, history, server_names, minutes = rows
    order = _order(flows)
    both = sides.view(np.dtype((np.void, 2 * sides.itemsize)))[order].view(sides.dtype)
    whole = flows.view(np.dtype((np.void, flows.itemsize)))[order].view(flows.dtype)
    return whole, both, history[order], [server_names[place] for place in order.tolist()], minutes


def _order(flows: Records) -> npt.NDArray[np.int64]:
    return np.lexsort((flows["first_seen"], flows["orig_lo"], flows["orig_hi"]))


def conn_states(flows: Records, orig: Records, resp: Records, history: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """Zeek's conn_state (conn/main.zeek, function conn_state) as places in CONN_STATES; first match wins."""
    o, r = orig["state"], resp["state"]
    o_inactive = (o == accounts.INACTIVE) | (o == accounts.PARTIAL)
    r_inactive = (r == accounts.INACTIVE) | (r == accounts.PARTIAL)
    o_reset, r_reset = o == accounts.RESET, r == accounts.RESET
    o_closed, r_closed = o == accounts.CLOSED, r == accounts.CLOSED
    o_opening = (o == accounts.SYN_SENT) | (o == accounts.SYN_ACK_SENT)
    both_reset_empty = o_reset & r_reset & (orig["bytes"] == 0) & (resp["bytes"] == 0)
    only_syn = np.zeros(len(flows), np.bool_)
    for row in np.flatnonzero(o_reset & r_inactive).tolist():
        only_syn[row] = _is_only_syn(history[row, : flows["history_length"][row]].tobytes().decode())
    tcp, udp = flows["protocol"] == TCP, flows["protocol"] == UDP
    o_sent, r_sent = orig["packets"] > 0, resp["packets"] > 0
    rules = [
        (tcp & r_reset & (o_opening | both_reset_empty), "REJ"),
        (tcp & r_reset & o_inactive, "RSTRH"),
        (tcp & r_reset, "RSTR"),
        (tcp & o_reset & r_inactive & only_syn, "RSTOS0"),
        (tcp & o_reset & r_inactive, "OTH"),
        (tcp & o_reset, "RSTO"),
        (tcp & o_closed & r_closed, "SF"),
        (tcp & o_closed & r_inactive, "SH"),
        (tcp & o_closed, "S2"),
        (tcp & r_closed & o_inactive, "SHR"),
        (tcp & r_closed, "S3"),
        (tcp & (o == accounts.SYN_SENT) & (r == accounts.INACTIVE), "S0"),
        (tcp & (o == accounts.ESTABLISHED) & (r == accounts.ESTABLISHED), "S1"),
        (udp & o_sent & r_sent, "SF"),
        (udp & o_sent, "S0"),
        (udp & r_sent, "SHR"),
    ]
    places = [np.int32(CONN_STATES.index(state)) for _, state in rules]
    return np.select([condition for condition, _ in rules], places, np.int32(0)).astype(np.int32)


def _is_only_syn(history: str) -> bool:
    """A SYN, then a reset of orig, and nothing between that tells of a connection."""
    return history.startswith("S") and "R" in history and not set("HAFGIQ") & set(history[: history.index("R")])


def flows_table(
    flows: Records,
    sides: Records,
    history: npt.NDArray[np.uint8],
    server_names: list[str | None],
    interface_names: list[str | None],
) -> pa.Table:
    """Rows of the flows table (schemas.FLOWS) without the identity columns, from what Flows.rows() gave."""
    orig, resp = sides[0::2], sides[1::2]
    lengths = flows["history_length"].astype(np.int32)
    histories = history[np.arange(history.shape[1]) < lengths[:, np.newaxis]]
    protocol = flows["protocol"].astype(np.int32)
    is_tcp = protocol == TCP
    text = np.empty(30 * len(flows), np.uint8)
    is_icmp = (protocol == ICMP) | (protocol == ICMPV6)
    one_way = is_icmp & one_way_icmp(flows)
    write_community_ids(flows, one_way, text, np.empty(64, np.uint8), np.empty(106, np.int64))
    orig_ip, resp_ip = columns.addresses((flows["orig_hi"], flows["orig_lo"]), (flows["resp_hi"], flows["resp_lo"]))
    ports = columns.bitmap(flows["has_ports"] != 0)
    states = conn_states(flows, orig, resp, history)
    missed = flows["missed_bytes"]
    values: dict[str, columns.Column] = {
        "flow_uid": columns.uid_text(flows["flow_uid"]),
        "community_id": columns.fixed_text(text, 30),
        "interface": columns.some_names(flows["interface"], interface_names),
        "first_seen": columns.times(flows["first_seen"]),
        "last_seen": columns.times(flows["last_seen"]),
        "protocol": columns.names(protocol, columns.PROTOCOL_NAMES),
        "orig_ip": orig_ip,
        "orig_port": columns.numbers(flows["orig_port"], pa.uint16(), ports),
        "resp_ip": resp_ip,
        "resp_port": columns.numbers(flows["resp_port"], pa.uint16(), ports),
        "conn_state": columns.names(states, CONN_STATES),
        "history": columns.text(histories.data, np.cumsum([0, *lengths], dtype=np.int32)),
        "handshake_rtt_ns": columns.numbers(
            flows["handshake_rtt"], pa.int64(), columns.bitmap(is_tcp & (flows["handshake_rtt"] >= 0))
        ),
        "zero_windows": columns.numbers(flows["zero_windows"], pa.int64()),
        "missed_bytes": columns.numbers(missed, pa.int64()),
        "loss_uncertain": columns.flags(is_loss_uncertain(flows, sides)),
        "encapsulation": columns.encapsulations(flows["encapsulation"]),
        "server_name": columns.texts(server_names),
    }
    for side, records in (("orig", orig), ("resp", resp)):
        for name in ("packets", "bytes", "ip_bytes", "tcp_segments", "retransmits", "out_of_order"):
            values[f"{side}_{name}"] = columns.numbers(records[name], pa.int64())
        values[f"{side}_vni"] = columns.numbers(records["vni"], pa.uint32(), columns.bitmap(records["vni"] >= 0))
    return columns.to_table("flows", values, without=columns.identity_names("flows"))


def one_way_icmp(flows: Records) -> npt.NDArray[np.bool_]:
    """Whether an ICMP flow's type has no counterpart, so that its second "port" is the code."""
    one_way = np.zeros(len(flows), np.bool_)
    protocols, kinds = (np.ascontiguousarray(flows[name]) for name in ("protocol", "orig_port"))
    flows_kernels.one_way_icmp(protocols, kinds, one_way)
    return one_way


def is_loss_uncertain(flows: Records, sides: Records) -> npt.NDArray[np.bool_]:
    """More than 1 % of the bytes were missed by the capture."""
    loss: npt.NDArray[np.bool_] = 100 * flows["missed_bytes"] > sides["bytes"][0::2] + sides["bytes"][1::2]
    return loss


def flow_minutes_table(minutes: Records) -> pa.Table:
    """Rows of schemas.FLOW_MINUTES from MINUTE[n]."""
    values = {"flow_uid": columns.uid_text(minutes["flow_uid"])}
    for name in ("minute", "first_ts", "last_ts"):
        values[name] = columns.times(minutes[name])
    for side in ("orig", "resp"):
        for name in ("packets", "bytes", "tcp_segments", "retransmits"):
            values[f"{side}_{name}"] = columns.numbers(minutes[f"{side}_{name}"], pa.int64())
    return columns.to_table("flow_minutes", values)
