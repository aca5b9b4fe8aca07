"""From packets to DNS messages, and their names and records to text. What they mean: dns.py.

Bytes come from outside: nothing here raises for what they hold. An unreadable name or record ends what is read of
its message; header and question count even where the rest was cut or lies.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from analysis.kernel_compiler import inner, kernel
from analysis.layout import FRAGMENT_FIRST, FRAGMENT_NONE, TCP, UDP

Bytes = npt.NDArray[np.uint8]
Int = Any  # of Python, or of numpy where numba is off
Record = Any
Records = npt.NDArray[np.void]

MESSAGE: Final = np.dtype(
    [
        ("ts", "i8"),
        ("frame_number", "i8"),
        ("flow_uid", "u8"),
        ("flow_first_seen", "i8"),
        ("src_hi", "u8"),
        ("src_lo", "u8"),
        ("dst_hi", "u8"),
        ("dst_lo", "u8"),
        ("datagram", "u8"),  # tells which fragments belong together
        ("offset", "i8"),  # of the message (of a packet's payload, before reassembly)
        ("captured", "i8"),  # bytes there
        ("length", "i8"),  # bytes on the wire
        ("query_offset", "i8"),  # of the name in the text; this and all below: set by read_messages
        ("answers_offset", "i8"),
        ("query_length", "i4"),  # 0 = no readable question
        ("answers_length", "i4"),  # 0 = no answers
        ("segment", "i4"),
        ("interface", "i4"),
        ("tcp_seq", "u4"),
        ("tcp_ack", "u4"),
        ("tcp_flags", "u2"),
        ("src_port", "u2"),
        ("dst_port", "u2"),
        ("fragment_offset", "u2"),
        ("trans_id", "u2"),
        ("qtype", "u2"),
        ("rcode", "u2"),  # with the upper bits of EDNS
        ("transport", "u1"),  # UDP or TCP
        ("fragment", "u1"),  # FRAGMENT_*; of a message: FRAGMENT_NONE if it is whole
        ("has_ports", "u1"),  # 0 = a fragment that came before its first one
        ("is_reassembled", "u1"),  # its bytes are not the chunk's: `offset` points into what was put together
        ("is_dns", "u1"),
        ("is_response", "u1"),
        ("truncated", "u1"),  # TC bit
        ("no_answers", "u1"),  # the header counts none
    ],
    align=True,
)

NAME_LIMIT: Final = 1024
ANSWERS_LIMIT: Final = 1 << 16
HEADER: Final = 12
ID_AND_FLAGS: Final = 4
POINTERS_LIMIT: Final = 128
NAME_WIRE_LIMIT: Final = 255
A, NS, CNAME, SOA, PTR, MX, TXT, AAAA, SRV, OPT = 1, 2, 5, 6, 12, 15, 16, 28, 33, 41

TYPE_NAMES: Final = {
    1: "A", 2: "NS", 3: "MD", 4: "MF", 5: "CNAME", 6: "SOA", 7: "MB", 8: "MG", 9: "MR", 10: "NULL", 11: "WKS",
    12: "PTR", 13: "HINFO", 14: "MINFO", 15: "MX", 16: "TXT", 17: "RP", 18: "AFSDB", 19: "X25", 20: "ISDN", 21: "RT",
    22: "NSAP", 23: "NSAP-PTR", 24: "SIG", 25: "KEY", 26: "PX", 27: "GPOS", 28: "AAAA", 29: "LOC", 30: "NXT",
    31: "EID", 32: "NIMLOC", 33: "SRV", 34: "ATMA", 35: "NAPTR", 36: "KX", 37: "CERT", 38: "A6", 39: "DNAME",
    40: "SINK", 41: "OPT", 42: "APL", 43: "DS", 44: "SSHFP", 45: "IPSECKEY", 46: "RRSIG", 47: "NSEC", 48: "DNSKEY",
    49: "DHCID", 50: "NSEC3", 51: "NSEC3PARAM", 52: "TLSA", 53: "SMIMEA", 55: "HIP", 56: "NINFO", 57: "RKEY",
    58: "TALINK", 59: "CDS", 60: "CDNSKEY", 61: "OPENPGPKEY", 62: "CSYNC", 63: "ZONEMD", 64: "SVCB", 65: "HTTPS",
    99: "SPF", 104: "NID", 105: "L32", 106: "L64", 107: "LP", 108: "EUI48", 109: "EUI64", 249: "TKEY", 250: "TSIG",
    251: "IXFR", 252: "AXFR", 253: "MAILB", 254: "MAILA", 255: "ANY", 256: "URI", 257: "CAA",
}  # fmt: skip
"""https://www.iana.org/assignments/dns-parameters: types that have a mnemonic."""

TYPE_TEXT: Final = np.zeros((258, 12), np.uint8)
for _code, _name in TYPE_NAMES.items():
    TYPE_TEXT[_code, : len(_name)] = np.frombuffer(_name.encode(), np.uint8)

RDATA_FIELDS: Final = np.zeros((34, 3), np.int64)
"""By type: how many 16-bit numbers, then names, then 32-bit numbers the rdata has."""
RDATA_FIELDS[[NS, CNAME, PTR]] = 0, 1, 0
RDATA_FIELDS[SOA] = 0, 2, 5
RDATA_FIELDS[MX] = 1, 1, 0
RDATA_FIELDS[SRV] = 3, 1, 0


# --- packets to message candidates -------------------------------------------------------------------------------


@inner
def big_endian(data: Bytes, position: Int, size: Int) -> Int:
    number = 0
    for i in range(size):
        number = (number << 8) | np.int64(data[position + i])
    return number


@inner
def is_multicast(hi: Int, lo: Int) -> Any:
    return np.uint64(hi) >> np.uint64(56) == 0xFF or (hi == 0 and np.uint64(lo) >> np.uint64(28) == 0xFFFFE)


@inner
def is_standard(data: Bytes, start: Int) -> Any:
    """Whether the header is that of a standard query with one question, or of the response to one."""
    flags = big_endian(data, start + 2, 2)
    if flags & 0x7840 != 0 or big_endian(data, start + 4, 2) != 1:  # opcode, Z
        return False
    if flags & 0x8000 != 0:
        return True
    return flags & 0x068F == 0 and big_endian(data, start + 6, 4) == 0  # AA, TC, RA, rcode


@inner
def may_be_dns(data: Bytes, p: Record) -> Any:
    low, high = min(p["src_port"], p["dst_port"]), max(p["src_port"], p["dst_port"])
    if low == 137 or high == 137 or low == 5355 or high == 5355 or (low == 5353 and high == 5353):
        return False  # NetBIOS names, LLMNR, multicast DNS
    if p["fragment"] > FRAGMENT_FIRST:
        return p["protocol"] == UDP
    if low == 53 or high == 53:
        return p["protocol"] == TCP or p["fragment"] == FRAGMENT_FIRST or p["payload_captured"] >= ID_AND_FLAGS
    if p["protocol"] == UDP:
        return p["payload_captured"] > HEADER and is_standard(data, p["payload_offset"])
    return True


@inner
def is_other_tcp(p: Record) -> Any:
    """Most packets: told by what is close together in memory."""
    if p["protocol"] != TCP:
        return False
    for port in (53, 1053, 5353, 8053, 9053):
        if p["src_port"] == port or p["dst_port"] == port:
            return False
    return True


@inner
def datagram_key(p: Record) -> Any:
    """Of the IP datagram that a fragment is of: a hash of its ends and id, and where it was seen; xorshift."""
    h = np.uint64(p["ip_id"])
    place = np.int64(p["interface"]) << 40 | np.int64(p["direction"]) << 32
    mark = (np.int64(p["vlan"]) + 1) << 32 | np.int64(p["vni"]) + 1
    for value in (p["src_hi"], p["src_lo"], p["dst_hi"], p["dst_lo"], np.uint64(place), np.uint64(mark)):
        h ^= value
        h ^= h << np.uint64(13)
        h ^= h >> np.uint64(7)
        h ^= h << np.uint64(17)
    return h


@kernel
def find_candidates(data: Bytes, packets: Records, candidates: Records) -> Int:
    """Copy what DNS needs of each packet that may carry it; returns how many.

    All TCP packets at a DNS port count, and all later fragments of UDP: whether theirs is a DNS message is known by
    the first one.
    """
    found = 0
    for i in range(packets.size):
        p = packets[i]
        if is_other_tcp(p) or (p["protocol"] != UDP and p["protocol"] != TCP):
            continue
        if p["ip_version"] == 0 or p["is_copy"] != 0:
            continue
        if p["has_ports"] == 0 and p["fragment"] <= FRAGMENT_FIRST:
            continue
        if p["payload_captured"] > 0 and not 0 <= p["payload_offset"] <= data.size - p["payload_captured"]:
            continue
        if not may_be_dns(data, p) or is_multicast(p["dst_hi"], p["dst_lo"]):
            continue
        m = candidates[found]
        m["ts"] = p["ts"]
        m["frame_number"] = p["frame_number"]
        m["flow_uid"] = p["flow_uid"]
        m["flow_first_seen"] = p["flow_first_seen"]
        m["src_hi"] = p["src_hi"]
        m["src_lo"] = p["src_lo"]
        m["dst_hi"] = p["dst_hi"]
        m["dst_lo"] = p["dst_lo"]
        m["offset"] = p["payload_offset"]
        m["captured"] = max(p["payload_captured"], 0)
        m["length"] = p["payload_length"]
        m["segment"] = p["segment"]
        m["interface"] = p["interface"]
        m["tcp_seq"] = p["tcp_seq"]
        m["tcp_ack"] = p["tcp_ack"]
        m["tcp_flags"] = p["tcp_flags"]
        m["src_port"] = p["src_port"]
        m["dst_port"] = p["dst_port"]
        m["transport"] = p["protocol"]
        m["fragment"] = p["fragment"] if p["protocol"] == UDP else FRAGMENT_NONE
        m["fragment_offset"] = p["fragment_offset"]
        m["has_ports"] = p["has_ports"]
        m["datagram"] = datagram_key(p) if m["fragment"] != FRAGMENT_NONE else 0
        m["is_reassembled"] = 0
        found += 1
    return found


# --- wire to text ------------------------------------------------------------------------------------------------
# Writers take the position to write at and return the next one. What does not fit is left out, the position still
# moves: a position beyond the end says that text was lost.


@inner
def put(out: Bytes, at: Int, byte: Int) -> Int:
    if at < out.size:
        out[at] = byte
    return at + 1


@inner
def put_hex(out: Bytes, at: Int, number: Int) -> Int:
    digit = np.int64(number) & 15
    return put(out, at, digit + (48 if digit < 10 else 87))


@inner
def put_number(out: Bytes, at: Int, number: Int) -> Int:
    divisor = 1
    while number // divisor >= 10:
        divisor *= 10
    while divisor > 0:
        at = put(out, at, 48 + number // divisor % 10)
        divisor //= 10
    return at


@inner
def put_escaped(out: Bytes, at: Int, byte: Int) -> Int:
    """A byte as \\DDD (RFC 1035 section 5.1)."""
    at = put(out, at, 92)
    at = put(out, at, 48 + byte // 100)
    at = put(out, at, 48 + byte // 10 % 10)
    return put(out, at, 48 + byte % 10)


@inner
def put_name(data: Bytes, start: Int, end: Int, position: Int, out: Bytes, at: Int) -> tuple[Int, Int]:
    """Write the domain name at `position`; returns what follows it on the wire (-1: unreadable) and in the text.

    RFC 1035 section 4.1.4; pointers may point forward, as Wireshark allows, but are counted.
    """
    after = -1
    pointers = 0
    wire = 1
    first = at
    while 0 <= position < end:
        size = np.int64(data[position])
        if size == 0:
            if at == first:
                at = put(out, at, 46)
            return (position + 1 if after < 0 else after), at
        if size >= 0xC0:
            pointers += 1
            if position + 2 > end or pointers > POINTERS_LIMIT:
                break
            if after < 0:
                after = position + 2
            position = start + (big_endian(data, position, 2) & 0x3FFF)
            continue
        wire += size + 1
        if size > 63 or position + 1 + size > end or wire > NAME_WIRE_LIMIT:
            break
        if at > first:
            at = put(out, at, 46)
        for i in range(position + 1, position + 1 + size):
            byte = np.int64(data[i])
            if 65 <= byte <= 90:
                byte += 32
            if 33 <= byte <= 126 and byte != 46 and byte != 92:
                at = put(out, at, byte)
            else:
                at = put_escaped(out, at, byte)
        position += 1 + size
    return -1, first


@inner
def skip_name(data: Bytes, end: Int, position: Int) -> Int:
    while position < end:
        size = np.int64(data[position])
        if size == 0:
            return position + 1
        if size >= 0xC0:
            return position + 2
        if size > 63:
            return -1
        position += size + 1
    return -1


@inner
def put_type(out: Bytes, at: Int, code: Int) -> Int:
    if code < TYPE_TEXT.shape[0] and TYPE_TEXT[code, 0] != 0:
        for byte in TYPE_TEXT[code]:
            if byte != 0:
                at = put(out, at, np.int64(byte))
        return at
    for byte in (84, 89, 80, 69):  # TYPE<number>, RFC 3597 section 5
        at = put(out, at, byte)
    return put_number(out, at, code)


@inner
def put_ipv4(data: Bytes, position: Int, out: Bytes, at: Int) -> Int:
    for i in range(4):
        if i > 0:
            at = put(out, at, 46)
        at = put_number(out, at, np.int64(data[position + i]))
    return at


@inner
def put_ipv6(data: Bytes, position: Int, out: Bytes, at: Int) -> Int:
    """RFC 5952 section 4; ::ffff:a.b.c.d keeps its dots (section 5)."""
    mapped = big_endian(data, position, 5) == 0 and big_endian(data, position + 5, 5) == 0
    groups = 6 if mapped and big_endian(data, position + 10, 2) == 0xFFFF else 8
    zeros_at, zeros, run = -1, 1, 0
    for i in range(groups):
        run = run + 1 if big_endian(data, position + 2 * i, 2) == 0 else 0
        if run > zeros:
            zeros_at, zeros = i - run + 1, run
    i = 0
    while i < groups:
        if i == zeros_at:
            at = put(out, at, 58)
            i += zeros
            if i == 8:
                at = put(out, at, 58)
            continue
        if i > 0:
            at = put(out, at, 58)
        group = big_endian(data, position + 2 * i, 2)
        for shift in (12, 8, 4, 0):
            if group >> shift != 0 or shift == 0:
                at = put_hex(out, at, group >> shift)
        i += 1
    if groups == 6:
        at = put_ipv4(data, position + 12, out, put(out, at, 58))
    return at


@inner
def put_strings(data: Bytes, position: Int, end: Int, out: Bytes, at: Int) -> Int:
    """The character strings of a TXT record, quoted; -1 if their lengths make no sense."""
    while position < end:
        stop = position + 1 + np.int64(data[position])
        if stop > end:
            return -1
        at = put(out, put(out, at, 32), 34)
        for i in range(position + 1, stop):
            byte = np.int64(data[i])
            if byte == 34 or byte == 92:
                at = put(out, at, 92)
            at = put(out, at, byte) if 32 <= byte <= 126 else put_escaped(out, at, byte)
        at = put(out, at, 34)
        position = stop
    return at


@inner
def put_fields(data: Bytes, start: Int, code: Int, position: Int, end: Int, out: Bytes, at: Int) -> Int:
    """Rdata of 16-bit numbers, names and 32-bit numbers, as many of each as RDATA_FIELDS says; -1 if it is not that."""
    numbers, names, tail = RDATA_FIELDS[code, 0], RDATA_FIELDS[code, 1], RDATA_FIELDS[code, 2]
    if position + 2 * numbers > end:
        return -1
    for _ in range(numbers):
        at = put_number(out, put(out, at, 32), big_endian(data, position, 2))
        position += 2
    for _ in range(names):
        position, at = put_name(data, start, end, position, out, put(out, at, 32))
        if position < 0:
            return -1
    if position + 4 * tail != end:
        return -1
    for _ in range(tail):
        at = put_number(out, put(out, at, 32), big_endian(data, position, 4))
        position += 4
    return at


@inner
def put_rdata(data: Bytes, start: Int, code: Int, position: Int, end: Int, out: Bytes, at: Int) -> Int:
    """A space and the value of a record as dig prints it, where its type is a common one and it is sound."""
    done = -1
    if code == A and end - position == 4:
        done = put_ipv4(data, position, out, put(out, at, 32))
    elif code == AAAA and end - position == 16:
        done = put_ipv6(data, position, out, put(out, at, 32))
    elif code == TXT and end > position:
        done = put_strings(data, position, end, out, at)
    elif code < RDATA_FIELDS.shape[0] and RDATA_FIELDS[code, 1] > 0:
        done = put_fields(data, start, code, position, end, out, at)
    if done >= 0:
        return done
    for byte in (32, 92, 35, 32):  # \# length hex, RFC 3597 section 5
        at = put(out, at, byte)
    at = put_number(out, at, end - position)
    for i in range(position, end):
        if i == position:
            at = put(out, at, 32)
        at = put_hex(out, put_hex(out, at, data[i] >> 4), data[i])
    return at


@inner
def put_answers(
    data: Bytes, start: Int, end: Int, position: Int, answers: Int, others: Int, out: Bytes
) -> tuple[Int, Int]:
    """Write the answer section; returns its length as text and the upper bits of the rcode (EDNS, RFC 6891).

    Reading ends at the first record that is not whole. Text that does not fit ends in '...'.
    """
    length, extended, full = np.int64(0), np.int64(0), False
    for i in range(answers + others):
        position = skip_name(data, end, position)
        if position < 0 or position + 10 > end:
            break
        code = big_endian(data, position, 2)
        rdata = position + 10
        position = rdata + big_endian(data, position + 8, 2)
        if position > end:
            break
        if code == OPT and i >= answers:
            extended = np.int64(data[rdata - 6]) << 4
        if i >= answers or full:
            continue
        begin = length if length == 0 else put(out, put(out, length, 44), 32)
        at = put_rdata(data, start, code, rdata, position, out, put_type(out, begin, code))
        full = at > out.size - 5  # room for ', ...'
        if full:
            at = begin
            for _ in range(3):
                at = put(out, at, 46)
        length = at
    return length, extended


# --- messages ----------------------------------------------------------------------------------------------------


@inner
def is_plausible(data: Bytes, m: Record, qclass: Int) -> Any:
    """Port 53 is taken at its word, as Wireshark does, but for opcodes that do not exist. Elsewhere header and question
    must be usual ones.
    """
    if m["src_port"] == 53 or m["dst_port"] == 53:
        opcode = (data[m["offset"] + 2] >> 3) & 15
        return opcode <= 6 and opcode != 3
    if not is_standard(data, m["offset"]) or m["query_length"] == 0:
        return False
    known = m["qtype"] < TYPE_TEXT.shape[0] and TYPE_TEXT[m["qtype"], 0] != 0
    return known and (qclass == 1 or qclass == 3 or qclass == 255)  # IN, CH, ANY


@inner
def read_message(data: Bytes, m: Record, text: Bytes, used: Int) -> Int:
    """Fill `m` from its bytes (id and flags at least); returns where the text now ends."""
    start = m["offset"]
    end = start + m["captured"]
    flags = big_endian(data, start + 2, 2)
    questions, answers, others = 0, 0, 0
    if m["captured"] >= HEADER:
        questions = big_endian(data, start + 4, 2)
        answers = big_endian(data, start + 6, 2)
        others = big_endian(data, start + 8, 2) + big_endian(data, start + 10, 2)
    m["trans_id"] = big_endian(data, start, 2)
    m["is_response"] = flags >> 15
    m["truncated"] = (flags >> 9) & 1
    m["no_answers"] = answers == 0
    m["query_offset"] = used
    m["query_length"] = 0
    m["qtype"] = 0
    qclass = np.int64(0)
    position = start + HEADER
    for q in range(questions):
        position, name_end = put_name(data, start, end, position, text, used + m["query_length"])
        if position < 0 or position + 4 > end:
            position = end
            break
        if q == 0:
            m["query_length"] = name_end - used
            m["qtype"] = big_endian(data, position, 2)
            qclass = big_endian(data, position + 2, 2)
        position += 4
    used += m["query_length"]
    m["is_dns"] = is_plausible(data, m, qclass)
    m["answers_offset"] = used
    m["answers_length"] = 0
    m["rcode"] = flags & 15
    if m["is_response"] != 0 and m["is_dns"] != 0:
        length, extended = put_answers(data, start, end, position, answers, others, text[used : used + ANSWERS_LIMIT])
        m["answers_length"] = length
        m["rcode"] = (flags & 15) | extended
        used += length
    return used


@kernel
def read_messages(data: Bytes, reassembled: Bytes, messages: Records, first: Int, text: Bytes) -> Int:
    """Read messages from number `first` on, while the text has room; returns the number of the first unread one."""
    used = np.int64(0)
    for i in range(first, messages.size):
        if text.size - used < NAME_LIMIT + ANSWERS_LIMIT:
            return i
        m = messages[i]
        used = read_message(reassembled if m["is_reassembled"] else data, m, text, used)
    return messages.size
