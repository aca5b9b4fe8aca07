"""What Wireshark would say of each TCP packet: `tcp_analyze_sequence_number` of Wireshark 4.0 in our own words.

State is kept per stream of one observation point and end of the 5-tuple. It knows neither idle time nor FIN or RST:
only a SYN with another sequence number begins a new stream. The numbers in brackets are those of the rules' order in
docs/differences.md. Sequence numbers are compared modulo 2^32; 0 means unset, as there.
"""

from __future__ import annotations

import numpy as np

from analysis.kernel_compiler import inner, kernel
from analysis.layout import (
    ACK,
    FIN,
    RST,
    SYN,
    TCP,
    WIRESHARK_FAST,
    WIRESHARK_KEEP_ALIVE,
    WIRESHARK_NOTHING,
    WIRESHARK_OUT_OF_ORDER,
    WIRESHARK_RETRANSMISSION,
    WIRESHARK_SPURIOUS,
    in_lines,
)
from analysis.loads import prefetch

STREAM_SIDE = in_lines(
    ("next_time", "i8"),
    ("last_ack_time", "i8"),
    ("syn_time", "i8"),  # of the stream's last SYN, kept at end a; 0 = none
    ("first_rtt", "i8"),  # kept at end a; 0 = unknown
    ("next_seq", "u4"),  # highest end sent; 0 = unset
    ("max_seq", "u4"),  # highest contiguous end; 0 = unset
    ("last_ack", "u4"),
    ("base_seq", "u4"),
    ("dup_acks", "u4"),  # unsigned there too: "minus one" is a very high count
    ("window", "u2"),
    ("has_base", "u1"),
    ("was_keep_alive", "u1"),
)
"""Two for each flow slot: end a, end b. Only those of a 5-tuple's first slot are used."""

AHEAD = 8
"""So many packets before a stream's memory is needed it is asked for."""
FAST_NS = 20_000_000
OUT_OF_ORDER_NS = 3_000_000
MINUS_ONE = 0xFFFFFFFF


@inner
def before(x, y):
    """Whether x - y is negative as a signed 32-bit number: 2^31 apart, each is before the other."""
    return (np.int64(x) - np.int64(y)) & 0x80000000 != 0


@inner
def shorter(now, then, limit):
    """now - then < limit with unsigned times: a clock that stepped back looks like a very long time."""
    return np.uint64(now - then) < np.uint64(limit)


@inner
def forget_stream(side):
    side["next_time"] = 0
    side["last_ack_time"] = 0
    side["syn_time"] = 0
    side["first_rtt"] = 0
    side["next_seq"] = 0
    side["max_seq"] = 0
    side["last_ack"] = 0
    side["dup_acks"] = 0
    side["window"] = 0
    side["has_base"] = 0
    side["was_keep_alive"] = 0


@inner
def learn_bases(p, fwd, rev):
    """Initial sequence numbers, and the ports used anew that they tell."""
    flags = p["tcp_flags"]
    seq = p["tcp_seq"]
    if flags & SYN and fwd["has_base"]:
        if flags & ACK:
            fwd["base_seq"] = seq
        elif seq == fwd["base_seq"]:
            fwd["next_seq"] = fwd["max_seq"]
        else:
            forget_stream(fwd)
            forget_stream(rev)
    if not fwd["has_base"]:
        fwd["base_seq"] = seq if flags & SYN else (np.int64(seq) - 1) & 0xFFFFFFFF
        fwd["has_base"] = 1
    if flags & ACK and not rev["has_base"]:
        rev["base_seq"] = (np.int64(p["tcp_ack"]) - 1) & 0xFFFFFFFF
        rev["has_base"] = 1


@inner
def learn_rtt(p, a):
    flags = p["tcp_flags"]
    if flags & (SYN | ACK) == SYN:
        a["syn_time"] = p["ts"]
    elif flags & (SYN | ACK) == ACK and a["syn_time"] and not a["first_rtt"]:
        a["first_rtt"] = p["ts"] - a["syn_time"]


@inner
def judge_ack(p, length, plain, fwd, rev):
    """[7] and [8]: counts duplicate ACKs; an answer to a keep-alive is none."""
    repeats = plain and length == 0 and p["tcp_seq"] == fwd["next_seq"] and p["tcp_ack"] == fwd["last_ack"]
    if repeats and p["tcp_window"] and p["tcp_window"] == fwd["window"] and not rev["was_keep_alive"]:
        fwd["dup_acks"] = 1 if fwd["dup_acks"] == MINUS_ONE else fwd["dup_acks"] + 1


@inner
def judge_data(p, length, fwd, rev, first_rtt):
    """[11]: the packet has data, SYN or FIN."""
    seq = np.int64(p["tcp_seq"])
    end = (seq + length) & 0xFFFFFFFF
    late = fwd["next_seq"] != 0 and before(seq, fwd["next_seq"])
    if length > 1 and (np.int64(fwd["next_seq"]) - 1) & 0xFFFFFFFF == seq:
        late = False
    if length > 0 and rev["last_ack"] and (end == rev["last_ack"] or before(end, rev["last_ack"])):
        return WIRESHARK_SPURIOUS
    if not late:
        return WIRESHARK_NOTHING
    if rev["dup_acks"] >= 2 and seq == rev["last_ack"] and shorter(p["ts"], rev["last_ack_time"], FAST_NS):
        return WIRESHARK_FAST
    if p["tcp_flags"] & (SYN | FIN):
        end = (end + 1) & 0xFFFFFFFF
    limit = first_rtt if first_rtt else np.int64(OUT_OF_ORDER_NS)
    if shorter(p["ts"], fwd["next_time"], limit) and fwd["next_seq"] != end:
        return WIRESHARK_OUT_OF_ORDER
    return WIRESHARK_RETRANSMISSION


@inner
def look_ahead(packets, i, slots, streams):
    """Asks for the stream of packets[i], which most often is that of its flow's own slot."""
    if i < len(packets):
        flow = np.int64(packets[i]["flow"])
        if flow >= 0:
            prefetch(slots, flow)
            prefetch(streams, 2 * flow)
            prefetch(streams, 2 * flow + 1)


@kernel
def judge(packets, slots, streams, kinds):
    """Sets kinds[i] (WIRESHARK_*) of each packet of which Wireshark analyses the sequence numbers.

    Returns how many packets quote another one.
    """
    quotes = 0
    for i in range(len(packets)):
        look_ahead(packets, i + AHEAD, slots, streams)
        p = packets[i]
        kinds[i] = WIRESHARK_NOTHING
        if p["protocol"] != TCP:
            quotes += p["quote_offset"] >= 0
            continue
        if not p["tcp_analyzable"] or p["flow"] < 0 or p["fragment"]:
            continue
        first = 2 * np.int64(slots[p["flow"]]["head"])
        a = streams[first]
        fwd = streams[first if p["from_a"] else first + 1]
        rev = streams[first + 1 if p["from_a"] else first]
        learn_bases(p, fwd, rev)
        flags = p["tcp_flags"]
        seq = np.int64(p["tcp_seq"])
        length = np.int64(p["payload_length"])
        plain = not flags & (SYN | FIN | RST)
        probe = length == 1 and seq == fwd["next_seq"] and rev["window"] == 0
        keep_alive = not probe and length <= 1 and plain and (seq + 1) & 0xFFFFFFFF == fwd["next_seq"]
        if not probe:
            judge_ack(p, length, plain, fwd, rev)
        if p["tcp_ack"] != fwd["last_ack"]:
            fwd["dup_acks"] = 0
        if flags & ACK and rev["max_seq"] and before(rev["max_seq"], p["tcp_ack"]):
            if before(rev["max_seq"], rev["next_seq"]):
                rev["max_seq"] = rev["next_seq"]
            else:
                rev["dup_acks"] = MINUS_ONE
        if keep_alive:
            kinds[i] = WIRESHARK_KEEP_ALIVE
        elif length > 0 or flags & (SYN | FIN):
            kinds[i] = judge_data(p, length, fwd, rev, a["first_rtt"])
        end = (seq + length + (1 if flags & (SYN | FIN) else 0)) & 0xFFFFFFFF
        if not probe:
            if fwd["next_seq"] == 0 or before(fwd["next_seq"], end):
                fwd["next_seq"] = end
                fwd["next_time"] = p["ts"]
            if fwd["max_seq"] == 0 or seq == fwd["max_seq"]:
                fwd["max_seq"] = fwd["next_seq"]
        fwd["window"] = p["tcp_window"]
        fwd["last_ack"] = p["tcp_ack"]
        fwd["last_ack_time"] = p["ts"]
        fwd["was_keep_alive"] = keep_alive
        learn_rtt(p, a)
    return quotes
