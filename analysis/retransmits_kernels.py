"""Which TCP packets are retransmissions, and of what kind. The rules and their order: retransmits.py.

Per side of a flow slot a SIDE record keeps what it sent and what its peer acknowledged. What was sent is logged in one
ring for all flows, each entry linked to the one before it of the same side, so that a resend finds its original. Byte
ranges that were jumped over are holes, in lists out of one pool. Sequence numbers are compared modulo 2^32.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from analysis.kernel_compiler import hot, inner, kernel
from analysis.layout import (
    ACK,
    CONFIDENCE_HIGH,
    CONFIDENCE_LOW,
    CONFIDENCE_MEDIUM,
    EVIDENCE_ACKED,
    EVIDENCE_BACKOFF,
    EVIDENCE_DSACK,
    EVIDENCE_DUP_ACK,
    EVIDENCE_HOLE,
    EVIDENCE_IP_ID,
    EVIDENCE_PEER_WINDOW,
    EVIDENCE_RACK,
    EVIDENCE_SACK,
    EVIDENCE_TIMER,
    EVIDENCE_TSVAL,
    FIN,
    KIND_CAPTURE_GAP,
    KIND_FAST,
    KIND_FIN,
    KIND_KEEP_ALIVE,
    KIND_NETWORK_DUPLICATE,
    KIND_NOTHING,
    KIND_OUT_OF_ORDER,
    KIND_RTO,
    KIND_RTO_RECOVERY,
    KIND_SPURIOUS,
    KIND_SYN,
    KIND_SYNACK,
    KIND_TLP,
    KIND_UNKNOWN,
    KIND_UNSEEN_ORIGINAL,
    KIND_ZERO_WINDOW_PROBE,
    NANOSECONDS,
    RST,
    STARTS_AFRESH,
    SYN,
    TCP,
    TCP_WHOLE,
    WIRESHARK_NOTHING,
    in_lines,
)
from analysis.loads import be32, prefetch

SIDE = in_lines(
    ("last_time", "i8"),  # of this side's last packet
    ("timed_since", "i8"),  # when the packet that times the path was sent, 0 = none is timed
    ("last_send", "i8"),  # its newest entry in the log, -1 = none
    ("holes", "i4"),  # its first hole, -1 = none
    ("window", "i4"),  # that this side offers, in bytes; -1 = unknown
    ("next_seq", "u4"),  # end of the highest byte it sent
    ("una", "u4"),  # highest ack its peer sent
    ("timed_seq", "u4"),
    ("dup_acks", "i4"),  # that its peer sent for una
    ("raw_window", "u2"),
    ("mss", "u2"),  # that it announced, 0 = unknown
    ("window_scale", "u1"),  # 255 = no option
    ("seen_syn", "u1"),
    ("has_next", "u1"),
    ("has_una", "u1"),
    ("has_sack", "u1"),
    ("recovering", "u1"),
    # what few packets need
    ("srtt", "i8"),  # 0 = no sample yet
    ("rttvar", "i8"),
    ("min_rtt", "i8"),
    ("recovering_since", "i8"),  # when the retransmission timer fired
    ("sacked_end", "u4"),  # highest right edge its peer reported by SACK
    ("recovery_end", "u4"),  # next_seq when the retransmission timer fired
)
"""Two for each flow slot: orig, resp."""

SEND = in_lines(
    ("ts", "i8"),
    ("frame_number", "i8"),
    ("before", "i8"),  # the entry before it of the same side, -1 = none
    ("event", "i8"),  # -1 = none; what was sent before has one, which says what the original was
    ("segment", "i4"),
    ("ip_id", "u4"),  # 0 = none
    ("seq", "u4"),
    ("end", "u4"),
    ("ack", "u4"),
    ("tsval", "u4"),
    ("flags", "u2"),
)
"""A packet with data, SYN or FIN, in the log."""
MOST_SENDS = 1 << 20
MOST_STEPS = 4096
"""How far back a resend looks for its original."""

HOLE = np.dtype(
    [
        ("ts", "i8"),
        ("ip_id", "i8"),
        ("start", "u4"),
        ("end", "u4"),
        ("tsval", "u4"),
        ("next", "i4"),
        ("has_timestamps", "u1"),
    ],
    align=True,
)
"""Bytes never seen; ts, ip_id and tsval are those of the packet behind it."""
MOST_HOLES = 256

EVENT = np.dtype(
    [
        ("ts", "i8"),
        ("frame_number", "i8"),
        ("flow_uid", "u8"),
        ("flow_first_seen", "i8"),
        ("orig_hi", "u8"),
        ("orig_lo", "u8"),
        ("resp_hi", "u8"),
        ("resp_lo", "u8"),
        ("original_ts", "i8"),
        ("original_frame", "i8"),
        ("delay", "i8"),
        ("segment", "i4"),
        ("interface", "i4"),
        ("original_segment", "i4"),  # -1 = never seen before
        ("tcp_segments", "i4"),
        ("attempt", "i4"),
        ("seq", "u4"),
        ("length", "u4"),
        ("orig_port", "u2"),
        ("resp_port", "u2"),
        ("evidence", "u2"),
        ("kind", "u1"),
        ("wireshark_kind", "u1"),
        ("confidence", "u1"),
        ("from_orig", "u1"),
    ],
    align=True,
)
"""A row of the retransmits table."""

SENDS, HOLES, FREE_HOLE, EVENTS = range(4)
"""Where Memory.counters counts what; FREE_HOLE heads the list of holes that can be used again."""

AHEAD = 8
"""So many packets before a connection's memory is needed it is asked for."""
RTO_MIN_NS = 200_000_000  # Linux' TCP_RTO_MIN
TLP_SLACK_NS = 4_000_000  # timer granularity on top of 2 SRTT
REORDERING_NS = 3_000_000
KEEP_ALIVE_NS = NANOSECONDS
FAR = 1 << 30  # bytes; sequence numbers further off than any window are junk


class Memory(NamedTuple):
    """What is known of all connections of a recording, carried from chunk to chunk."""

    sides: npt.NDArray[np.void]
    sends: npt.NDArray[np.void]
    holes: npt.NDArray[np.void]
    events: npt.NDArray[np.void]
    counters: npt.NDArray[np.int64]


@hot
def ahead(x, y):
    """x - y modulo 2^32 as a signed number: positive where x comes after y."""
    distance = (np.int64(x) - np.int64(y)) & 0xFFFFFFFF
    return distance - 0x100000000 if distance >= 0x80000000 else distance


@inner
def forget(memory, index):
    side = memory.sides[index]
    if side["has_next"] or side["has_una"]:
        while side["holes"] >= 0:
            drop_first_hole(memory, side)
    side["holes"] = -1
    side["last_send"] = -1
    side["window"] = -1
    side["window_scale"] = 255
    side["last_time"] = 0
    side["timed_since"] = 0
    side["srtt"] = 0
    side["rttvar"] = 0
    side["min_rtt"] = 0
    side["dup_acks"] = 0
    side["mss"] = 0
    side["seen_syn"] = 0
    side["has_next"] = 0
    side["has_una"] = 0
    side["has_sack"] = 0
    side["recovering"] = 0


# --- holes: what was not seen yet ------------------------------------------------------------------------------------


@inner
def drop_first_hole(memory, side):
    index = side["holes"]
    side["holes"] = memory.holes[index]["next"]
    memory.holes[index]["next"] = memory.counters[FREE_HOLE]
    memory.counters[FREE_HOLE] = index


@inner
def take_hole(memory):
    index = memory.counters[FREE_HOLE]
    if index >= 0:
        memory.counters[FREE_HOLE] = memory.holes[index]["next"]
        return index
    index = memory.counters[HOLES]
    memory.counters[HOLES] += 1
    return index


@inner
def open_hole(memory, side, p):
    """[next_seq, seq) was jumped over. Holes are in order of sequence numbers."""
    index = take_hole(memory)
    hole = memory.holes[index]
    hole["start"] = side["next_seq"]
    hole["end"] = p["tcp_seq"]
    hole["ts"] = p["ts"]
    hole["tsval"] = p["tsval"]
    hole["ip_id"] = p["ip_id"]
    hole["has_timestamps"] = p["has_timestamps"]
    hole["next"] = -1
    if side["holes"] < 0:
        side["holes"] = index
        return
    last = side["holes"]
    count = 1
    while memory.holes[last]["next"] >= 0:
        last = memory.holes[last]["next"]
        count += 1
    memory.holes[last]["next"] = index
    if count >= MOST_HOLES:
        drop_first_hole(memory, side)


@inner
def find_hole(memory, side, seq):
    index = side["holes"]
    while index >= 0:
        hole = memory.holes[index]
        if ahead(seq, hole["start"]) >= 0 and ahead(seq, hole["end"]) < 0:
            return index
        index = hole["next"]
    return index


@inner
def fill_holes(memory, side, start, end):
    """[start, end) is not missing any more. Returns how many bytes of it were."""
    filled = np.int64(0)
    before = np.int64(-1)
    index = np.int64(side["holes"])
    while index >= 0:
        hole = memory.holes[index]
        following = np.int64(hole["next"])
        left = start if ahead(start, hole["start"]) > 0 else np.int64(hole["start"])
        right = end if ahead(end, hole["end"]) < 0 else np.int64(hole["end"])
        if ahead(right, left) > 0:
            filled += ahead(right, left)
            keep_left = ahead(left, hole["start"]) > 0
            keep_right = ahead(hole["end"], right) > 0
            if keep_left and keep_right:
                rest = take_hole(memory)
                memory.holes[rest] = memory.holes[index]
                memory.holes[rest]["start"] = right
                hole["end"] = left
                hole["next"] = rest
            elif keep_left:
                hole["end"] = left
            elif keep_right:
                hole["start"] = right
            else:
                if before < 0:
                    side["holes"] = following
                else:
                    memory.holes[before]["next"] = following
                hole["next"] = memory.counters[FREE_HOLE]
                memory.counters[FREE_HOLE] = index
                index = following
                continue
        before = index
        index = following
    return filled


# --- what was sent, and what was sent again --------------------------------------------------------------------------


@inner
def find_send(memory, side, seq):
    """The newest logged packet of this side that carried byte `seq`, -1 = none in reach."""
    at = side["last_send"]
    oldest = memory.counters[SENDS] - MOST_SENDS
    for _ in range(MOST_STEPS):
        if at < 0 or at < oldest:
            return np.int64(-1)
        send = memory.sends[at % MOST_SENDS]
        if ahead(seq, send["seq"]) >= 0 and ahead(seq, send["end"]) < 0:
            return at
        at = send["before"]
    return np.int64(-1)


@hot
def log_send(memory, side, p, end, event):
    at = memory.counters[SENDS]
    memory.counters[SENDS] += 1
    send = memory.sends[at % MOST_SENDS]
    send["ts"] = p["ts"]
    send["frame_number"] = p["frame_number"]
    send["segment"] = p["segment"]
    send["ip_id"] = max(p["ip_id"], 0)
    send["seq"] = p["tcp_seq"]
    send["end"] = end
    send["ack"] = p["tcp_ack"]
    send["tsval"] = p["tsval"]
    send["flags"] = p["tcp_flags"]
    send["before"] = side["last_send"]
    send["event"] = event
    side["last_send"] = at


@inner
def add_event(memory, p, from_orig, kind, seq, length):
    """Appends an event without explanation, and returns where it is."""
    at = memory.counters[EVENTS]
    memory.counters[EVENTS] += 1
    e = memory.events[at]
    e["ts"] = p["ts"]
    e["frame_number"] = p["frame_number"]
    e["flow_uid"] = p["flow_uid"]
    e["flow_first_seen"] = p["flow_first_seen"]
    e["segment"] = p["segment"]
    e["interface"] = p["interface"]
    if p["from_orig"]:
        e["orig_hi"], e["orig_lo"], e["orig_port"] = p["src_hi"], p["src_lo"], p["src_port"]
        e["resp_hi"], e["resp_lo"], e["resp_port"] = p["dst_hi"], p["dst_lo"], p["dst_port"]
    else:
        e["orig_hi"], e["orig_lo"], e["orig_port"] = p["dst_hi"], p["dst_lo"], p["dst_port"]
        e["resp_hi"], e["resp_lo"], e["resp_port"] = p["src_hi"], p["src_lo"], p["src_port"]
    e["from_orig"] = from_orig
    e["kind"] = kind
    e["confidence"] = 0
    e["evidence"] = 0
    e["wireshark_kind"] = WIRESHARK_NOTHING
    e["seq"] = seq
    e["length"] = length
    e["tcp_segments"] = 0
    e["original_segment"] = -1
    e["original_ts"] = 0
    e["original_frame"] = 0
    e["delay"] = 0
    e["attempt"] = 0
    return at


@inner
def explain(memory, event, confidence, evidence):
    memory.events[event]["confidence"] = confidence
    memory.events[event]["evidence"] = evidence


@inner
def tell_original(memory, event, previous):
    """What was resent, from the entry `previous` of the log."""
    e = memory.events[event]
    earlier = memory.sends[previous % MOST_SENDS]
    e["original_ts"] = earlier["ts"]
    e["original_frame"] = earlier["frame_number"]
    e["original_segment"] = earlier["segment"]
    e["delay"] = e["ts"] - earlier["ts"]
    e["attempt"] = 1
    if was_resend(memory, earlier):
        first = memory.events[earlier["event"]]
        e["original_ts"] = first["original_ts"]
        e["original_frame"] = first["original_frame"]
        e["original_segment"] = first["original_segment"]
        e["attempt"] = first["attempt"] + 1


@inner
def was_resend(memory, send):
    """Whether an entry of the log was sent before, of which its event tells."""
    return send["event"] >= 0 and memory.events[send["event"]]["original_segment"] >= 0


# --- what acknowledgements tell --------------------------------------------------------------------------------------


@inner
def time_path(side, sample):
    """SRTT and RTTVAR by RFC 6298, section 2."""
    if sample < 0:
        return
    if side["srtt"] == 0:
        side["srtt"] = max(sample, 1)
        side["rttvar"] = sample // 2
        side["min_rtt"] = sample
        return
    side["rttvar"] = (3 * side["rttvar"] + abs(side["srtt"] - sample)) // 4
    side["srtt"] = max((7 * side["srtt"] + sample) // 8, 1)
    side["min_rtt"] = min(side["min_rtt"], sample)


@hot
def learn_ack(memory, p, me, you, verdict):
    """What the packet's ack says of what its peer `you` sent. Returns where missing bytes began, -1 = none."""
    ack = np.int64(p["tcp_ack"])
    gap_start = np.int64(-1)
    if you["has_next"] and me["has_next"]:
        beyond = ahead(ack, you["next_seq"])
        if beyond > FAR:
            return gap_start
        if you["holes"] >= 0:
            gap_start = np.int64(memory.holes[you["holes"]]["start"])
            missed = fill_holes(memory, you, gap_start, ack)
            verdict["missed_bytes"] = missed
            if missed == 0:
                gap_start = np.int64(-1)
        if beyond > 0:
            if beyond > 1:  # one byte may be a FIN
                if gap_start < 0:
                    gap_start = np.int64(you["next_seq"])
                verdict["missed_bytes"] += beyond
                verdict["gap_bytes"] = beyond
            you["next_seq"] = ack
    advance = ahead(ack, you["una"]) if you["has_una"] else np.int64(1)
    if advance > 0:
        if you["timed_since"] and ahead(ack, you["timed_seq"]) >= 0:
            time_path(you, p["ts"] - you["timed_since"])
            you["timed_since"] = 0
        you["una"] = ack
        you["has_una"] = 1
        you["dup_acks"] = 0
        if you["recovering"] and ahead(ack, you["recovery_end"]) >= 0:
            you["recovering"] = 0
        if you["has_sack"] and ahead(you["sacked_end"], ack) <= 0:
            you["has_sack"] = 0
    elif advance == 0 and p["payload_length"] == 0 and not p["tcp_flags"] & (SYN | FIN):
        in_flight = you["has_next"] and ahead(you["next_seq"], you["una"]) > 0
        if in_flight and p["tcp_window"] == me["raw_window"]:
            you["dup_acks"] += 1
    return gap_start


@inner
def learn_sack(memory, data, p, you):
    """SACK blocks (RFC 2018); a first one at or below the ack, or inside the second, is a DSACK (RFC 2883)."""
    for block in range(p["sack_blocks"]):
        at = np.int64(p["sack_offset"]) + 8 * block
        left = be32(data, at)
        right = be32(data, at + 4)
        if block == 0:
            twice = ahead(right, p["tcp_ack"]) <= 0
            if not twice and p["sack_blocks"] > 1:
                twice = ahead(left, be32(data, at + 8)) >= 0 and ahead(right, be32(data, at + 12)) <= 0
            if twice:
                confirm_spurious(memory, you, left)
                continue
        if not you["has_sack"] or ahead(right, you["sacked_end"]) > 0:
            you["sacked_end"] = right
            you["has_sack"] = 1


@inner
def confirm_spurious(memory, side, seq):
    """The peer got byte `seq` twice: its latest retransmission was not needed."""
    at = find_send(memory, side, seq)
    if at < 0:
        return
    event = memory.sends[at % MOST_SENDS]["event"]
    if 0 <= event < memory.counters[EVENTS]:
        e = memory.events[event]
        e["evidence"] |= EVIDENCE_DSACK
        if e["kind"] == KIND_SPURIOUS:
            e["confidence"] = CONFIDENCE_HIGH


@hot
def learn_offer(p, me, you):
    """MSS, window scale and window that the packet's sender offers."""
    flags = p["tcp_flags"]
    if flags & SYN:
        none = 536 if p["tcp_analyzable"] == TCP_WHOLE else 0  # RFC 9293, section 3.7.1
        me["mss"] = p["tcp_mss"] if p["tcp_mss"] else none
        me["window_scale"] = p["tcp_window_scale"]
        me["seen_syn"] = 1
    shift = 0
    if not flags & SYN and me["seen_syn"] and me["window_scale"] != 255 and you["window_scale"] != 255:
        shift = np.int64(me["window_scale"])
    me["window"] = np.int64(p["tcp_window"]) << shift
    me["raw_window"] = p["tcp_window"]


@hot
def count_segments(p, me, you):
    """How many TCP segments a packet carries: more than one if GSO or GRO made it."""
    length = np.int64(p["payload_length"])
    if length <= 536:
        return np.int64(1)
    mss = np.int64(me["mss"]) if me["mss"] else np.int64(you["mss"])
    if you["mss"]:
        mss = min(mss, np.int64(you["mss"]))
    if mss == 0:
        mss = np.int64(1460 if p["ip_version"] == 4 else 1440)
    options = np.int64(p["ip_length"]) - np.int64(p["ip_header_length"]) - length - 20
    mss = max(mss - max(options, 0), 64)
    return (length + mss - 1) // mss


# --- what a packet is ------------------------------------------------------------------------------------------------


@inner
def judge_hole(memory, p, me, hole):
    """Bytes never seen: did the original come late, or was it lost before this point? (kind, confidence, evidence)"""
    by_time = p["ts"] - hole["ts"]
    if p["has_timestamps"] and hole["has_timestamps"]:
        newer = ahead(p["tsval"], hole["tsval"])
        if newer:
            kind = KIND_UNSEEN_ORIGINAL if newer > 0 else KIND_OUT_OF_ORDER
            return kind, CONFIDENCE_HIGH, EVIDENCE_HOLE | EVIDENCE_TSVAL
    if p["ip_id"] > 0 and hole["ip_id"] > 0 and p["ip_version"] == 4:
        newer = (p["ip_id"] - hole["ip_id"]) & 0xFFFF
        if newer:
            kind = KIND_UNSEEN_ORIGINAL if newer < 0x8000 else KIND_OUT_OF_ORDER
            return kind, CONFIDENCE_HIGH, EVIDENCE_HOLE | EVIDENCE_IP_ID
    if by_time < max(REORDERING_NS, me["min_rtt"] // 4):
        return KIND_OUT_OF_ORDER, CONFIDENCE_MEDIUM, EVIDENCE_HOLE | EVIDENCE_TIMER
    return KIND_UNSEEN_ORIGINAL, CONFIDENCE_MEDIUM, EVIDENCE_HOLE | EVIDENCE_TIMER


@inner
def timer_evidence(memory, p, previous):
    """A timer fired; and waited longer than the time before, if it did."""
    if previous >= 0:
        earlier = memory.sends[previous % MOST_SENDS]
        if was_resend(memory, earlier):
            if 2 * (p["ts"] - earlier["ts"]) >= 3 * memory.events[earlier["event"]]["delay"]:
                return EVIDENCE_TIMER | EVIDENCE_BACKOFF
    return EVIDENCE_TIMER


@inner
def judge_resend(memory, p, me, end, previous):
    """Bytes seen before and not acknowledged: why were they sent again? (kind, confidence, evidence)"""
    seq = p["tcp_seq"]
    evidence = 0
    if me["has_sack"] and ahead(me["sacked_end"], seq) > 0:
        evidence |= EVIDENCE_SACK
    if me["dup_acks"] >= 3:
        evidence |= EVIDENCE_DUP_ACK
    reported = evidence != 0 or me["dup_acks"] >= 2
    if previous >= 0:
        earlier = memory.sends[previous % MOST_SENDS]
        delay = p["ts"] - earlier["ts"]
        rto = max(me["srtt"] + 4 * me["rttvar"], RTO_MIN_NS)
        oldest = not me["has_una"] or (ahead(seq, me["una"]) <= 0 and ahead(end, me["una"]) > 0)
        if me["recovering"] and earlier["ts"] < me["recovering_since"]:
            return KIND_RTO_RECOVERY, CONFIDENCE_MEDIUM, evidence
        if oldest and 10 * delay >= 9 * rto:
            me["recovering"] = 1
            me["recovering_since"] = p["ts"]
            me["recovery_end"] = me["next_seq"]
            return KIND_RTO, CONFIDENCE_HIGH, evidence | timer_evidence(memory, p, previous)
        if me["recovering"]:
            return KIND_RTO_RECOVERY, CONFIDENCE_MEDIUM, evidence
        if not reported and me["dup_acks"] == 0 and end == me["next_seq"] and me["srtt"]:
            timeout = 2 * me["srtt"]
            if 10 * delay >= 8 * timeout and 10 * delay <= 15 * timeout + 10 * TLP_SLACK_NS:
                return KIND_TLP, CONFIDENCE_MEDIUM, EVIDENCE_TIMER
            if oldest and 10 * delay <= 15 * (timeout + RTO_MIN_NS) and delay >= RTO_MIN_NS:
                return KIND_TLP, CONFIDENCE_LOW, EVIDENCE_TIMER
    elif me["recovering"]:
        return KIND_RTO_RECOVERY, CONFIDENCE_LOW, evidence
    if reported:
        if me["dup_acks"] < 3:
            evidence |= EVIDENCE_RACK
        return KIND_FAST, CONFIDENCE_HIGH, evidence
    return KIND_UNKNOWN, CONFIDENCE_LOW, evidence


@inner
def is_duplicate(memory, p, end, previous):
    """The network (or the capture) made a second one of the very same packet."""
    if previous < 0 or p["ip_id"] <= 0:
        return False
    send = memory.sends[previous % MOST_SENDS]
    return (
        send["ip_id"] == p["ip_id"]
        and send["seq"] == p["tcp_seq"]
        and send["end"] == end
        and send["flags"] == p["tcp_flags"]
        and send["ack"] == p["tcp_ack"]
        and send["tsval"] == p["tsval"]
    )


@inner
def judge_old(memory, p, me, end, previous):
    """The packet begins below what its side has sent already. Returns (kind, confidence, evidence)."""
    flags = p["tcp_flags"]
    if is_duplicate(memory, p, end, previous):
        return KIND_NETWORK_DUPLICATE, CONFIDENCE_HIGH, EVIDENCE_IP_ID
    if flags & SYN:
        kind = KIND_SYNACK if flags & ACK else KIND_SYN
        return kind, CONFIDENCE_HIGH if previous >= 0 else CONFIDENCE_MEDIUM, timer_evidence(memory, p, previous)
    if flags & FIN and p["payload_length"] == 0:
        confidence = CONFIDENCE_HIGH if previous >= 0 else CONFIDENCE_MEDIUM
        return KIND_FIN, confidence, timer_evidence(memory, p, previous)
    if me["has_una"] and ahead(end, me["una"]) <= 0:
        return KIND_SPURIOUS, CONFIDENCE_MEDIUM, EVIDENCE_ACKED
    hole = find_hole(memory, me, p["tcp_seq"])
    if hole >= 0:
        return judge_hole(memory, p, me, memory.holes[hole])
    return judge_resend(memory, p, me, end, previous)


@hot
def judge_probe(p, me, you):
    """Keep-alives and zero-window probes: no news for the peer, sent to hear from it."""
    length = p["payload_length"]
    if length > 1 or p["tcp_flags"] & (SYN | FIN | RST) or not me["has_next"]:
        return KIND_NOTHING
    before_next = ahead(p["tcp_seq"], me["next_seq"]) == -1
    if you["window"] == 0 and (before_next or length == 1):
        return KIND_ZERO_WINDOW_PROBE
    nothing_in_flight = me["has_una"] and ahead(me["una"], me["next_seq"]) >= 0
    if before_next and nothing_in_flight and p["ts"] - me["last_time"] >= KEEP_ALIVE_NS:
        return KIND_KEEP_ALIVE
    return KIND_NOTHING


@inner
def is_retransmission(kind):
    return KIND_SYN <= kind <= KIND_UNKNOWN and kind != KIND_OUT_OF_ORDER


@hot
def judge_sent(memory, p, me, you, verdict):
    """A packet with data, SYN or FIN. Returns the event that was added, -1 = none."""
    flags = p["tcp_flags"]
    seq = np.int64(p["tcp_seq"])
    length = np.int64(p["payload_length"])
    end = (seq + length + (1 if flags & SYN else 0) + (1 if flags & FIN else 0)) & 0xFFFFFFFF
    tcp_segments = count_segments(p, me, you)
    verdict["tcp_segments"] = tcp_segments
    if not me["has_next"]:
        me["has_next"] = 1
        me["next_seq"] = seq
    position = ahead(seq, me["next_seq"])
    if position > FAR:
        return np.int64(-1)
    news = ahead(end, me["next_seq"])
    event = np.int64(-1)
    previous = np.int64(-1)
    if position < 0:
        previous = find_send(memory, me, seq)
        kind, confidence, evidence = judge_old(memory, p, me, end, previous)
        resent = tcp_segments if is_retransmission(kind) else np.int64(0)
        event = add_event(memory, p, np.int64(p["from_orig"]), kind, seq, length)
        explain(memory, event, confidence, evidence)
        if previous >= 0:
            tell_original(memory, event, previous)
        memory.events[event]["tcp_segments"] = resent
        verdict["retransmitted"] = resent
        verdict["out_of_order"] = kind == KIND_OUT_OF_ORDER
        fill_holes(memory, me, seq, end)
        me["timed_since"] = 0
    else:
        if position > 0:
            open_hole(memory, me, p)
        me["recovering"] = 0
        if me["timed_since"] == 0:
            me["timed_since"] = p["ts"]
            me["timed_seq"] = end
    if news > 0:
        control = (1 if flags & SYN else 0) + (1 if flags & FIN else 0)
        verdict["new_bytes"] = max(news - control, 0)
        me["next_seq"] = end
    log_send(memory, me, p, end, event)
    return event


@hot
def judge_packet(memory, data, p, me, you, verdict):
    """One packet of a flow, with whole headers and no RST. Returns the event that speaks of it, -1 = none."""
    if p["tcp_flags"] & ACK:
        gap_start = learn_ack(memory, p, me, you, verdict)
        if gap_start >= 0:
            sender = np.int64(1 - p["from_orig"])
            event = add_event(memory, p, sender, KIND_CAPTURE_GAP, gap_start, verdict["missed_bytes"])
            explain(memory, event, CONFIDENCE_HIGH, EVIDENCE_ACKED)
        if p["sack_blocks"]:
            learn_sack(memory, data, p, you)
    learn_offer(p, me, you)
    probe = judge_probe(p, me, you)
    event = np.int64(-1)
    if probe:
        evidence = EVIDENCE_PEER_WINDOW if probe == KIND_ZERO_WINDOW_PROBE else EVIDENCE_TIMER
        length = np.int64(p["payload_length"])
        verdict["tcp_segments"] = length
        event = add_event(memory, p, np.int64(p["from_orig"]), probe, np.int64(p["tcp_seq"]), length)
        explain(memory, event, CONFIDENCE_HIGH, evidence)
    elif p["payload_length"] or p["tcp_flags"] & (SYN | FIN):
        event = judge_sent(memory, p, me, you, verdict)
    elif not me["has_next"]:
        me["has_next"] = 1
        me["next_seq"] = p["tcp_seq"]
    me["last_time"] = p["ts"]
    return event


# --- all packets -----------------------------------------------------------------------------------------------------


@hot
def look_ahead(packets, i, memory):
    """Asks for what is known of packets[i]'s connection."""
    if i < len(packets):
        p = packets[i]
        if p["protocol"] == TCP and p["flow"] >= 0:
            prefetch(memory.sides, 2 * np.int64(p["flow"]))
            prefetch(memory.sides, 2 * np.int64(p["flow"]) + 1)


@hot
def clear(verdict):
    verdict["new_bytes"] = 0
    verdict["gap_bytes"] = 0
    verdict["missed_bytes"] = 0
    verdict["tcp_segments"] = 0
    verdict["retransmitted"] = 0
    verdict["out_of_order"] = 0


@kernel
def classify(data, packets, wireshark_kinds, memory, verdicts):
    """Fills verdicts[i] of each packet, and appends to memory.events (room for two a packet)."""
    for i in range(len(packets)):
        look_ahead(packets, i + AHEAD, memory)
        p = packets[i]
        clear(verdicts[i])
        if p["protocol"] != TCP or p["flow"] < 0:
            continue
        event = np.int64(-1)
        first = 2 * np.int64(p["flow"])
        if p["starts_flow"] == STARTS_AFRESH:
            forget(memory, first)
            forget(memory, first + 1)
        if p["tcp_analyzable"] and not p["fragment"] and not p["is_copy"] and not p["tcp_flags"] & RST:
            me = memory.sides[first if p["from_orig"] else first + 1]
            you = memory.sides[first + 1 if p["from_orig"] else first]
            event = judge_packet(memory, data, p, me, you, verdicts[i])
        if wireshark_kinds[i]:
            if event < 0:
                length = np.int64(p["payload_length"])
                event = add_event(memory, p, np.int64(p["from_orig"]), KIND_NOTHING, np.int64(p["tcp_seq"]), length)
            memory.events[event]["wireshark_kind"] = wireshark_kinds[i]
