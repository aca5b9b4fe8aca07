"""What each flow did: Zeek's connection states and history, counts, bytes, minutes. The rules: flows.py.

An ACCOUNT per flow slot with two ACCOUNT_SIDEs (orig, resp) is open from a flow's first packet to its end; then it is
copied out.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from analysis.kernel_compiler import hot, inner, kernel
from analysis.layout import ACK, FIN, ICMP, ICMPV6, NANOSECONDS, RST, SYN, TCP, UDP, in_lines
from analysis.loads import be16, prefetch

ACCOUNT = in_lines(
    ("minute", "i8"),  # start of the minute since when the sides count it
    ("minute_first", "i8"),
    ("minute_last", "i8"),
    ("first_seen", "i8"),
    ("last_seen", "i8"),
    ("syn_time", "i8"),
    ("handshake_rtt", "i8"),  # -1 = unknown
    ("protocol", "u1"),
    ("open", "u1"),
    ("has_ports", "u1"),
    ("seen_synack", "u1"),
    ("named", "u1"),  # orig's first data was looked at for a server name
    ("history_length", "u1"),
    # what few packets change
    ("flow_uid", "u8"),
    ("orig_hi", "u8"),
    ("orig_lo", "u8"),
    ("resp_hi", "u8"),
    ("resp_lo", "u8"),
    ("missed_bytes", "i8"),
    ("zero_windows", "u4"),
    ("interface", "i4"),
    ("encapsulation", "u4"),
    ("orig_port", "u2"),
    ("resp_port", "u2"),
)

ACCOUNT_SIDE = in_lines(
    ("packets", "i8"),
    ("bytes", "i8"),
    ("ip_bytes", "i8"),
    ("tcp_segments", "i8"),
    ("retransmits", "i8"),
    ("last_end", "u4"),  # highest end of the sequence numbers
    ("letters", "u4"),  # which letters of the history were written, a bit each
    ("vni", "i4"),
    ("state", "u1"),
    ("started", "u1"),
    # what few packets change
    ("state_before", "u1"),
    ("syn_seq", "u4"),
    ("fin_end", "u4"),
    ("rst_seq", "u4"),
    ("repeats", "u4"),  # packets that are a T of the history
    ("zero_windows", "u4"),
    ("gaps", "u4"),
    ("out_of_order", "i8"),
    ("before_packets", "i8"),  # what had been counted when the minute began
    ("before_bytes", "i8"),
    ("before_tcp_segments", "i8"),
    ("before_retransmits", "i8"),
)

MINUTE = np.dtype(
    [
        ("flow_uid", "u8"),
        ("minute", "i8"),
        ("first_ts", "i8"),
        ("last_ts", "i8"),
        ("orig_packets", "i8"),
        ("orig_bytes", "i8"),
        ("resp_packets", "i8"),
        ("resp_bytes", "i8"),
        ("orig_tcp_segments", "i8"),
        ("resp_tcp_segments", "i8"),
        ("orig_retransmits", "i8"),
        ("resp_retransmits", "i8"),
    ]
)

SERVER_NAME = np.dtype([("flow_uid", "u8"), ("offset", "i4"), ("length", "i4")])

AHEAD = 8
"""So many packets before an account is needed it is asked for."""
HISTORY_BYTES = 40
FLIPPED = 94  # '^': the flow's first packet came from resp
MINUTE_NS = 60 * NANOSECONDS

# Zeek's endpoint states (TCP_Endpoint.h)
INACTIVE, SYN_SENT, SYN_ACK_SENT, PARTIAL, ESTABLISHED, CLOSED, RESET = range(7)


class Accounts(NamedTuple):
    """Open accounts by slot. `history`: HISTORY_BYTES of each."""

    flows: npt.NDArray[np.void]
    sides: npt.NDArray[np.void]
    history: npt.NDArray[np.uint8]


class Closed(NamedTuple):
    """Finished accounts, minutes and server names; `counts` says how many of each there are. There is room for more."""

    flows: npt.NDArray[np.void]
    sides: npt.NDArray[np.void]
    history: npt.NDArray[np.uint8]
    minutes: npt.NDArray[np.void]
    names: npt.NDArray[np.void]
    counts: npt.NDArray[np.int64]


FLOW_COUNT, MINUTE_COUNT, NAME_COUNT = range(3)


@hot
def ahead(x, y):
    """x - y modulo 2^32 as a signed number."""
    distance = (np.int64(x) - np.int64(y)) & 0xFFFFFFFF
    return distance - 0x100000000 if distance >= 0x80000000 else distance


@inner
def write_letter(accounts, slot, letter, is_orig):
    flow = accounts.flows[slot]
    if flow["history_length"] < HISTORY_BYTES:
        accounts.history[slot * HISTORY_BYTES + flow["history_length"]] = letter if is_orig else letter + 32
        flow["history_length"] += 1


@hot
def write_once(accounts, slot, side, letter, is_orig):
    bit = np.int64(1) << (letter - 65)
    if not np.int64(side["letters"]) & bit:
        side["letters"] = np.int64(side["letters"]) | bit
        write_letter(accounts, slot, letter, is_orig)


@inner
def write_power_of_ten(accounts, slot, count, letter, is_orig):
    """Letters of what happens often: at the 1st, 10th, 100th ... time."""
    while count >= 10 and count % 10 == 0:
        count //= 10
    if count == 1:
        write_letter(accounts, slot, letter, is_orig)


@inner
def close_minute(flow, orig, resp, closed):
    at = closed.counts[MINUTE_COUNT]
    closed.counts[MINUTE_COUNT] += 1
    m = closed.minutes[at]
    m["flow_uid"] = flow["flow_uid"]
    m["minute"] = flow["minute"]
    m["first_ts"] = flow["minute_first"]
    m["last_ts"] = flow["minute_last"]
    m["orig_packets"] = orig["packets"] - orig["before_packets"]
    m["orig_bytes"] = orig["bytes"] - orig["before_bytes"]
    m["resp_packets"] = resp["packets"] - resp["before_packets"]
    m["resp_bytes"] = resp["bytes"] - resp["before_bytes"]
    m["orig_tcp_segments"] = orig["tcp_segments"] - orig["before_tcp_segments"]
    m["resp_tcp_segments"] = resp["tcp_segments"] - resp["before_tcp_segments"]
    m["orig_retransmits"] = orig["retransmits"] - orig["before_retransmits"]
    m["resp_retransmits"] = resp["retransmits"] - resp["before_retransmits"]
    begin_minute(orig)
    begin_minute(resp)


@inner
def begin_minute(side):
    side["before_packets"] = side["packets"]
    side["before_bytes"] = side["bytes"]
    side["before_tcp_segments"] = side["tcp_segments"]
    side["before_retransmits"] = side["retransmits"]


@inner
def close_account(accounts, slot, closed):
    flow = accounts.flows[slot]
    if not flow["open"]:
        return
    flow["open"] = 0
    close_minute(flow, accounts.sides[2 * slot], accounts.sides[2 * slot + 1], closed)
    at = closed.counts[FLOW_COUNT]
    closed.counts[FLOW_COUNT] += 1
    closed.flows[at] = flow
    closed.sides[2 * at] = accounts.sides[2 * slot]
    closed.sides[2 * at + 1] = accounts.sides[2 * slot + 1]
    for k in range(flow["history_length"]):
        closed.history[at * HISTORY_BYTES + k] = accounts.history[slot * HISTORY_BYTES + k]


@inner
def open_account(accounts, slot, p, ends, blank_flow, blank_side):
    accounts.flows[slot] = blank_flow[0]
    accounts.sides[2 * slot] = blank_side[0]
    accounts.sides[2 * slot + 1] = blank_side[0]
    flow = accounts.flows[slot]
    flow["open"] = 1
    flow["flow_uid"] = p["flow_uid"]
    flow["first_seen"] = p["flow_first_seen"]
    flow["last_seen"] = p["ts"]
    flow["handshake_rtt"] = -1
    flow["minute"] = p["ts"] - p["ts"] % MINUTE_NS
    flow["minute_first"] = p["ts"]
    flow["minute_last"] = p["ts"]
    flow["interface"] = p["interface"]
    flow["protocol"] = p["protocol"]
    flow["encapsulation"] = p["encapsulation"]
    flow["has_ports"] = p["has_ports"] or p["protocol"] == ICMP or p["protocol"] == ICMPV6
    src_port = ends["a_port"] if p["from_a"] else ends["b_port"]
    dst_port = ends["b_port"] if p["from_a"] else ends["a_port"]
    if p["from_orig"]:
        flow["orig_hi"], flow["orig_lo"], flow["orig_port"] = p["src_hi"], p["src_lo"], src_port
        flow["resp_hi"], flow["resp_lo"], flow["resp_port"] = p["dst_hi"], p["dst_lo"], dst_port
    else:
        flow["orig_hi"], flow["orig_lo"], flow["orig_port"] = p["dst_hi"], p["dst_lo"], dst_port
        flow["resp_hi"], flow["resp_lo"], flow["resp_port"] = p["src_hi"], p["src_lo"], src_port
    accounts.sides[2 * slot]["vni"] = -1
    accounts.sides[2 * slot + 1]["vni"] = -1
    if not p["from_orig"] and (p["protocol"] == TCP or p["protocol"] == UDP):
        accounts.history[slot * HISTORY_BYTES] = FLIPPED
        flow["history_length"] = 1


@inner
def set_state(side, state):
    if side["state"] != state:
        side["state_before"] = side["state"]
        side["state"] = state


@inner
def advance_state(p, me, you, is_orig):
    """Zeek's TCP endpoint states (TCPSessionAdapter.cc), by what the packet's flags say."""
    flags = p["tcp_flags"]
    state = me["state"]
    if state == INACTIVE:
        if flags & SYN:
            if is_orig:
                set_state(me, np.int64(SYN_ACK_SENT if flags & ACK else SYN_SENT))
            else:
                if you["state"] == SYN_SENT:
                    set_state(you, np.int64(ESTABLISHED))
                set_state(me, np.int64(ESTABLISHED))
        if flags & FIN:
            set_state(me, np.int64(CLOSED))
        if flags & RST:
            set_state(me, np.int64(RESET))
        if not flags & (SYN | FIN | RST):
            waits = not is_orig and p["payload_length"] == 0 and you["state"] == SYN_SENT
            if not waits:
                set_state(me, np.int64(ESTABLISHED if flags & ACK and you["state"] == ESTABLISHED else PARTIAL))
    elif state == SYN_SENT or state == SYN_ACK_SENT:
        if flags & FIN:
            set_state(me, np.int64(CLOSED))
        if flags & RST:
            set_state(me, np.int64(RESET))
    elif state == ESTABLISHED or state == PARTIAL:
        if flags & (SYN | ACK) == SYN and state == PARTIAL and you["state"] == INACTIVE:
            set_state(me, np.int64(SYN_SENT))
        if flags & FIN and not flags & RST:
            set_state(me, np.int64(CLOSED))
            if you["state"] == RESET and you["state_before"] == CLOSED:
                set_state(you, np.int64(CLOSED))
        if flags & RST:
            set_state(me, np.int64(RESET))
    elif state == CLOSED and flags & RST and you["state"] != CLOSED:
        set_state(me, np.int64(RESET))


@hot
def write_history(accounts, slot, p, me, you, is_orig, missed):
    """Zeek's history letters of one TCP packet; states are those before the packet."""
    flags = p["tcp_flags"]
    length = np.int64(p["payload_length"])
    seq = p["tcp_seq"]
    end = (np.int64(seq) + length + (1 if flags & SYN else 0) + (1 if flags & FIN else 0)) & 0xFFFFFFFF
    control = (1 if flags & SYN else 0) + (1 if flags & FIN else 0) + (1 if flags & RST else 0)
    if control > 1:
        write_once(accounts, slot, me, np.int64(73 if flags & FIN and flags & RST else 81), is_orig)  # I, Q
    elif flags & SYN:
        first = not np.int64(me["letters"]) & (1 << 18)
        if first or me["syn_seq"] != seq:
            me["letters"] = np.int64(me["letters"]) | (1 << 18)
            write_letter(accounts, slot, np.int64(72 if flags & ACK else 83), is_orig)  # H, S
        me["syn_seq"] = seq
    elif flags & FIN:
        first = not np.int64(me["letters"]) & (1 << 5)
        if first or me["fin_end"] != end:
            me["letters"] = np.int64(me["letters"]) | (1 << 5)
            write_letter(accounts, slot, np.int64(70), is_orig)  # F
        me["fin_end"] = end
    elif flags & RST:
        first = not np.int64(me["letters"]) & (1 << 17)
        if first or me["rst_seq"] != seq:
            me["letters"] = np.int64(me["letters"]) | (1 << 17)
            write_letter(accounts, slot, np.int64(82), is_orig)  # R
        me["rst_seq"] = seq
    elif length > 0:
        write_once(accounts, slot, me, np.int64(68), is_orig)  # D
    elif flags & ACK:
        write_once(accounts, slot, me, np.int64(65), is_orig)  # A
    if p["tcp_window"] == 0 and not flags & RST and you["state"] != CLOSED and me["state"] != RESET:
        me["zero_windows"] += 1
        write_power_of_ten(accounts, slot, np.int64(me["zero_windows"]), np.int64(87), is_orig)  # W
    if me["started"]:
        advance = ahead(end, me["last_end"])
        if advance > 0:
            if not flags & RST:
                me["last_end"] = end
        elif length > 0 and me["state"] != RESET and not flags & RST:
            me["repeats"] += 1
            write_power_of_ten(accounts, slot, np.int64(me["repeats"]), np.int64(84), is_orig)  # T
    else:
        me["started"] = 1
        me["last_end"] = end
    if missed > 0:
        you["gaps"] += 1
        write_power_of_ten(accounts, slot, np.int64(you["gaps"]), np.int64(71), not is_orig)  # G


@hot
def time_handshake(flow, p, is_orig):
    """SYN to the first ACK without SYN, once a SYN-ACK came: tshark's tcp.analysis.initial_rtt."""
    flags = p["tcp_flags"]
    if flags & (SYN | ACK) == SYN:
        if flow["handshake_rtt"] < 0:
            flow["syn_time"] = p["ts"]
    elif flags & SYN:
        flow["seen_synack"] = 1
    elif flags & ACK and flow["syn_time"] and flow["seen_synack"] and flow["handshake_rtt"] < 0 and is_orig:
        if not flags & RST:
            flow["handshake_rtt"] = p["ts"] - flow["syn_time"]


@inner
def find_server_name(data, p, flow, closed):
    """The TLS server name (RFC 6066) or HTTP Host in orig's first data, as a place in the chunk."""
    at = np.int64(p["payload_offset"])
    end = at + np.int64(p["payload_captured"])
    start, length = np.int64(0), np.int64(0)
    if end - at >= 43 and data[at] == 22 and data[at + 5] == 1:
        start, length = find_sni(data, at + 43, end)
    elif end - at >= 16 and 65 <= data[at] <= 90:
        start, length = find_host(data, at, end)
    if 0 < length <= 253:
        name = closed.names[closed.counts[NAME_COUNT]]
        closed.counts[NAME_COUNT] += 1
        name["flow_uid"] = flow["flow_uid"]
        name["offset"] = start
        name["length"] = length


@inner
def find_sni(data, at, end):
    """`at` is at the session id's length of a ClientHello."""
    if at + 1 <= end:
        at += 1 + np.int64(data[at])
    if at + 2 <= end:
        at += 2 + be16(data, at)
    if at + 1 <= end:
        at += 1 + np.int64(data[at])
    at += 2
    while at + 4 <= end:
        size = be16(data, at + 2)
        if be16(data, at) == 0:
            length = be16(data, at + 7) if at + 9 <= end else np.int64(0)
            return (at + 9, length) if at + 9 + length <= end else (at, np.int64(0))
        at += 4 + size
    return at, np.int64(0)


@inner
def find_host(data, at, end):
    """The value of the Host header, which begins a line."""
    end = min(end, at + 2048)
    while at + 8 < end:
        if (
            data[at] == 10
            and data[at + 1] | 32 == 104
            and data[at + 2] | 32 == 111
            and data[at + 3] | 32 == 115
            and data[at + 4] | 32 == 116
            and data[at + 5] == 58
        ):
            at += 6
            while at < end and data[at] == 32:
                at += 1
            start = at
            while at < end and 32 < data[at] < 127:
                at += 1
            return start, (at - start if at < end else np.int64(0))
        at += 1
    return at, np.int64(0)


@hot
def add_packet(accounts, slot, p, me, you, verdict):
    is_orig = p["from_orig"] == 1
    flow = accounts.flows[slot]
    new_bytes = np.int64(p["payload_length"]) + np.int64(p["earlier_payload"])
    if p["protocol"] == TCP:
        new_bytes = verdict["new_bytes"]
        if p["tcp_analyzable"]:
            write_history(accounts, slot, p, me, you, is_orig, verdict["missed_bytes"])
            if p["tcp_flags"] & (SYN | FIN | RST) or me["state"] == INACTIVE:  # nothing else changes it
                advance_state(p, me, you, is_orig)
            time_handshake(flow, p, is_orig)
            if p["tcp_window"] == 0 and not p["tcp_flags"] & (SYN | FIN | RST):
                flow["zero_windows"] += 1
    elif p["protocol"] == UDP:
        write_once(accounts, slot, me, np.int64(68), is_orig)
        me["state"] = ESTABLISHED
    count = 1 + np.int64(p["earlier_fragments"])
    me["packets"] += count
    me["bytes"] += new_bytes
    me["ip_bytes"] += np.int64(p["ip_length"]) + np.int64(p["earlier_ip_bytes"])
    me["tcp_segments"] += verdict["tcp_segments"]
    if verdict["retransmitted"]:
        me["retransmits"] += verdict["retransmitted"]
    if verdict["out_of_order"]:
        me["out_of_order"] += verdict["out_of_order"]
    if verdict["missed_bytes"] or verdict["gap_bytes"]:
        you["bytes"] += verdict["gap_bytes"]
        flow["missed_bytes"] += verdict["missed_bytes"]
    if me["vni"] < 0:
        me["vni"] = p["vni"]


@hot
def ask(accounts, slot):
    """Asks for what each packet changes of an account."""
    prefetch(accounts.flows, slot)
    prefetch(accounts.sides, 2 * slot)
    prefetch(accounts.sides, 2 * slot + 1)


@hot
def look_ahead(packets, i, accounts):
    """Asks for the accounts of packets[i]."""
    if i < len(packets):
        slot = np.int64(packets[i]["flow"])
        if slot >= 0:
            ask(accounts, slot)


@kernel
def account(data, packets, verdicts, slots, accounts, closed, clock, blank_flow, blank_side):
    """Adds every packet that belongs to a flow, and is no copy, to its account.

    `blank_flow`, `blank_side`: one each, of zeros. Returns the latest time of `clock` and the packets'.
    """
    for i in range(len(packets)):
        look_ahead(packets, i + AHEAD, accounts)
        p = packets[i]
        ts = p["ts"]
        clock = max(clock, ts)
        slot = np.int64(p["flow"])
        if slot < 0:
            continue
        if p["starts_flow"]:
            close_account(accounts, slot, closed)
            open_account(accounts, slot, p, slots[slot], blank_flow, blank_side)
        if p["is_copy"]:
            continue
        flow = accounts.flows[slot]
        orig = accounts.sides[2 * slot]
        resp = accounts.sides[2 * slot + 1]
        if not 0 <= ts - flow["minute"] < MINUTE_NS:
            close_minute(flow, orig, resp, closed)
            flow["minute"] = ts - ts % MINUTE_NS
            flow["minute_first"] = ts
            flow["minute_last"] = ts
        flow["minute_first"] = min(flow["minute_first"], ts)
        flow["minute_last"] = max(flow["minute_last"], ts)
        flow["first_seen"] = min(flow["first_seen"], ts)
        flow["last_seen"] = max(flow["last_seen"], ts)
        if p["from_orig"]:
            if not flow["named"] and p["protocol"] == TCP and p["payload_captured"] > 0:
                flow["named"] = 1
                find_server_name(data, p, flow, closed)
            add_packet(accounts, slot, p, orig, resp, verdicts[i])
        else:
            add_packet(accounts, slot, p, resp, orig, verdicts[i])
    return clock


@kernel
def close(accounts, slots, closed):
    """Copies out the accounts of these slots that are open."""
    for k in range(len(slots)):
        if k + AHEAD < len(slots):
            ask(accounts, slots[k + AHEAD])
        close_account(accounts, slots[k], closed)
