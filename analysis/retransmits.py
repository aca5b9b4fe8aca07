"""Retransmissions: which packets are, what kind they are, and what Wireshark would call them.

`kind` is podtap's own judgement, from what one observation point can see. For each packet with data, SYN or FIN that
begins below what its side has sent before, the first rule that fits decides:

1. network_duplicate: same IPv4 id, sequence numbers, flags, ack and TSval as a packet before. Not a retransmission.
2. keep_alive, zero_window_probe: one byte or none, just below the next one, and nothing in flight for 1 s; or the peer
   has closed its window. Not retransmissions.
3. syn, synack, fin: the same control flag again.
4. spurious: the peer had acknowledged all of it. A DSACK makes that certain.
5. Bytes never seen here (a hole): an older TSval, else an older IPv4 id, than the packet behind the hole has:
   out_of_order. A newer one: unseen_original, lost before this point. Neither: time decides.
6. Bytes seen, not acknowledged: rto, if it is the oldest outstanding byte and 0.9 of the estimated timeout (RFC 6298,
   200 ms at least, as Linux) have passed; rto_recovery, what follows before new data; tlp, the last packet of a
   flight after about two round trips without a sign of loss (RFC 8985); fast, with SACK or duplicate ACKs above it;
   else unknown.

capture_gap rows say that the peer acknowledged bytes that the capture never had: its loss, not the network's.

`wireshark_kind` follows Wireshark's own rules instead (wireshark_kernels.py), for those who cross-check there.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from analysis import columns, path_mtu, retransmits_kernels, rooms
from analysis.layout import (
    CONFIDENCE_LOW,
    CONFIDENCE_NAMES,
    EVIDENCE_NAMES,
    KIND_NAMES,
    VERDICT,
    WIRESHARK_KIND_NAMES,
)
from analysis.wireshark_kernels import STREAM_SIDE, judge

Records = npt.NDArray[Any]

FIRST_EVENTS: Final = 1 << 12
NO_HOLE: Final = -1


class Retransmits:
    """What is known of all TCP connections of one recording; carried over chunks and file borders."""

    def __init__(self) -> None:
        self._streams = rooms.zeros(0, STREAM_SIDE)
        self._memory = retransmits_kernels.Memory(
            rooms.zeros(0, retransmits_kernels.SIDE),
            rooms.zeros(retransmits_kernels.MOST_SENDS, retransmits_kernels.SEND),
            rooms.zeros(0, retransmits_kernels.HOLE),
            rooms.zeros(FIRST_EVENTS, retransmits_kernels.EVENT),
            np.zeros(4, np.int64),
        )
        self._memory.counters[retransmits_kernels.FREE_HOLE] = NO_HOLE
        self._verdicts = rooms.zeros(0, VERDICT)
        self._kinds = rooms.zeros(0, np.uint8)
        self._uncertain: list[npt.NDArray[np.uint64]] = []

    def feed(self, data: npt.NDArray[np.uint8], packets: Records, slots: Records) -> Records:
        """Judge assigned PACKET[n]; returns VERDICT[n], for the flows' accounts, which are there until the next call.

        `slots`: flows_kernels.SLOT.
        """
        self._make_room(len(packets), len(slots))
        verdicts, kinds = self._verdicts[: len(packets)], self._kinds[: len(packets)]
        quotes = judge(packets, slots, self._streams, kinds)
        first = 0
        for report in [*(path_mtu.reports(packets) if quotes else []), len(packets)]:
            part = slice(first, report)
            retransmits_kernels.classify(data, packets[part], kinds[part], self._memory, verdicts[part])
            if report < len(packets):
                path_mtu.learn(data, packets[report], slots, self._memory.sides)
            first = report
        return verdicts

    def learn_uncertain(self, flow_uids: npt.NDArray[np.uint64]) -> None:
        """The capture missed too much of these flows to be sure of anything in them."""
        if len(flow_uids):
            self._uncertain.append(flow_uids)

    def finish(self) -> None:
        """The recording ends: what was kept to judge more packets is given back."""
        nothing = rooms.zeros(0, np.uint8)
        self._streams = nothing
        self._memory = self._memory._replace(sides=nothing, sends=nothing, holes=nothing)

    def rows(self) -> Records:
        """EVENT[n]: all that was found. They wait for the end, since a later DSACK or capture loss has a say."""
        events = self._memory.events[: self._memory.counters[retransmits_kernels.EVENTS]]
        if self._uncertain:
            doubtful = np.isin(events["flow_uid"], np.concatenate(self._uncertain))
            doubtful &= events["confidence"] > CONFIDENCE_LOW
            events["confidence"] -= doubtful
        return events

    def _make_room(self, packets: int, slots: int) -> None:
        memory = self._memory
        holes = int(memory.counters[retransmits_kernels.HOLES]) + packets
        events = int(memory.counters[retransmits_kernels.EVENTS]) + 2 * packets
        self._streams = rooms.grown(self._streams, 2 * slots)
        if holes > len(memory.holes) or events > len(memory.events) or 2 * slots > len(memory.sides):
            self._memory = memory._replace(
                sides=rooms.grown(memory.sides, 2 * slots),
                holes=rooms.grown(memory.holes, rooms.GROWTH * holes),
                events=rooms.grown(memory.events, rooms.GROWTH * events),
            )
        self._verdicts = rooms.grown(self._verdicts, packets)
        self._kinds = rooms.grown(self._kinds, packets)


def retransmits_table(events: Records, segment_names: list[str], interface_names: list[str | None]) -> pa.Table:
    """Rows of the retransmits table (schemas.RETRANSMITS) without the identity columns, from EVENT[n]."""
    seen = columns.bitmap(events["original_segment"] >= 0)
    orig_ip, resp_ip = columns.addresses((events["orig_hi"], events["orig_lo"]), (events["resp_hi"], events["resp_lo"]))
    has_kind = events["kind"] != 0
    bits, which = np.unique(np.where(has_kind, events["evidence"], 0), return_inverse=True)
    evidence = ["+".join(name for k, name in enumerate(EVIDENCE_NAMES) if word >> k & 1) or None for word in bits]
    values: dict[str, columns.Column] = {
        "ts": columns.times(events["ts"]),
        "segment": columns.names(events["segment"], segment_names),
        "frame_number": columns.numbers(events["frame_number"], pa.int64()),
        "flow_uid": columns.uids(events["flow_uid"]),
        "flow_first_seen": columns.times(events["flow_first_seen"]),
        "interface": columns.some_names(events["interface"], interface_names),
        "sender": columns.names(events["from_orig"], ["resp", "orig"]),
        "orig_ip": orig_ip,
        "orig_port": columns.numbers(events["orig_port"], pa.uint16()),
        "resp_ip": resp_ip,
        "resp_port": columns.numbers(events["resp_port"], pa.uint16()),
        "kind": columns.some_names(events["kind"].astype(np.int32), [None, *KIND_NAMES[1:]]),
        "wireshark_kind": columns.some_names(
            events["wireshark_kind"].astype(np.int32), [None, *WIRESHARK_KIND_NAMES[1:]]
        ),
        "confidence": columns.some_names(events["confidence"].astype(np.int32), [None, *CONFIDENCE_NAMES[1:]]),
        "evidence": columns.some_names(which, evidence),
        "seq": columns.numbers(events["seq"], pa.uint32()),
        "length": columns.numbers(events["length"], pa.uint32()),
        "tcp_segments": columns.numbers(events["tcp_segments"], pa.int64()),
        "original_ts": columns.times(events["original_ts"], seen),
        "original_segment": columns.some_names(events["original_segment"], segment_names),
        "original_frame": columns.numbers(events["original_frame"], pa.int64(), seen),
        "delay_ns": columns.numbers(events["delay"], pa.int64(), seen),
        "attempt": columns.numbers(events["attempt"], pa.int32(), seen),
    }
    return columns.to_table("retransmits", values, without=columns.identity_names("retransmits"))
