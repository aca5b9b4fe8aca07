"""Slow and obvious twins of the DNS kernels: fragments to messages, one message to text, messages to transactions."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field

SECOND = 1_000_000_000
FIELDS = {"NS": (0, 1, 0), "CNAME": (0, 1, 0), "PTR": (0, 1, 0), "MX": (1, 1, 0), "SRV": (3, 1, 0), "SOA": (0, 2, 5)}


class UnreadableError(Exception):
    """The bytes are not what they should be."""


@dataclass
class Message:
    trans_id: int
    is_response: bool
    truncated: bool
    rcode: int
    qtype: int | None
    query: str | None
    answers: list[str]
    counts_no_answers: bool


def escaped(byte: int) -> str:
    return f"\\{byte:03d}"


def name_at(message: bytes, position: int) -> tuple[str, int]:
    labels: list[str] = []
    after = None
    pointers = 0
    wire = 1
    while position < len(message):
        size = message[position]
        if size == 0:
            return ".".join(labels) or ".", position + 1 if after is None else after
        if size >= 0xC0:
            if position + 2 > len(message) or pointers == 128:
                break
            pointers += 1
            after = position + 2 if after is None else after
            position = struct.unpack_from(">H", message, position)[0] & 0x3FFF
            continue
        label = message[position + 1 : position + 1 + size]
        wire += 1 + size
        if size > 63 or len(label) < size or wire > 255:
            break
        plain = [chr(b).lower() if 33 <= b <= 126 and chr(b) not in ".\\" else escaped(b) for b in label]
        labels.append("".join(plain))
        position += 1 + size
    raise UnreadableError


def end_of_name(message: bytes, position: int) -> int:
    while position < len(message):
        size = message[position]
        if size == 0 or size >= 0xC0:
            return position + (1 if size == 0 else 2)
        if size > 63:
            break
        position += 1 + size
    raise UnreadableError


def strings_of(rdata: bytes) -> str:
    parts = []
    while rdata:
        string, rest = rdata[1 : 1 + rdata[0]], rdata[1 + rdata[0] :]
        if len(string) < rdata[0]:
            raise UnreadableError
        quoted = ["\\" * (chr(b) in '"\\') + chr(b) if 32 <= b <= 126 else escaped(b) for b in string]
        parts.append('"' + "".join(quoted) + '"')
        rdata = rest
    if not parts:
        raise UnreadableError
    return " ".join(parts)


def value_of(message: bytes, kind: str, start: int, end: int) -> str:
    rdata = message[start:end]
    if kind == "A" and len(rdata) == 4:
        return socket.inet_ntop(socket.AF_INET, rdata)
    if kind == "AAAA" and len(rdata) == 16:
        compatible = rdata[:12] == bytes(12) and rdata[12:14] != b"\0\0"  # glibc writes these with dots, RFC 5952 not
        text = socket.inet_ntop(socket.AF_INET6, rdata)
        return f"::{rdata[12] << 8 | rdata[13]:x}:{rdata[14] << 8 | rdata[15]:x}" if compatible else text
    if kind == "TXT":
        return strings_of(rdata)
    if kind not in FIELDS:
        raise UnreadableError
    numbers, names, tail = FIELDS[kind]
    if len(rdata) < 2 * numbers:
        raise UnreadableError
    values = [str(number) for number in struct.unpack_from(f">{numbers}H", rdata)]
    position = start + 2 * numbers
    for _ in range(names):
        name, position = name_at(message[:end], position)
        values.append(name)
    if position + 4 * tail != end:
        raise UnreadableError
    return " ".join(values + [str(number) for number in struct.unpack_from(f">{tail}I", message, position)])


def read(message: bytes, types: dict[int, str]) -> Message:
    """A message as its row shows it; `types`: names by number. The text of answers has no limit here."""
    header = message[:12] if len(message) >= 12 else message[:4] + bytes(8)
    trans_id, flags, questions, answers, authorities, additionals = struct.unpack(">6H", header)
    position, query, qtype = 12, None, None
    for number in range(questions):
        try:
            name, position = name_at(message, position)
        except UnreadableError:
            position = len(message)
            break
        if position + 4 > len(message):
            position = len(message)
            break
        if number == 0:
            query, qtype = name, struct.unpack_from(">H", message, position)[0]
        position += 4
    texts, extended = [], 0
    for number in range(answers + authorities + additionals if flags >> 15 else 0):
        try:
            fixed = end_of_name(message, position)
        except UnreadableError:
            break
        if fixed + 10 > len(message):
            break
        code, _, ttl, size = struct.unpack_from(">HHIH", message, fixed)
        position = fixed + 10 + size
        if position > len(message):
            break
        if number >= answers:
            extended = ttl >> 24 << 4 if code == 41 else extended
            continue
        kind = types.get(code, f"TYPE{code}")
        try:
            value = value_of(message, kind, fixed + 10, position)
        except UnreadableError:
            value = f"\\# {size} {message[fixed + 10 : position].hex()}".rstrip()
        texts.append(f"{kind} {value}")
    rcode = (flags & 15) | extended
    return Message(trans_id, bool(flags >> 15), bool(flags >> 9 & 1), rcode, qtype, query, texts, answers == 0)


# --- fragments -----------------------------------------------------------------------------------------------------


@dataclass
class Fragment:
    """`position` counts in the UDP payload; of `length` bytes there, `payload` was captured."""

    ts: int
    number: int
    datagram: int
    position: int
    length: int
    payload: bytes
    is_last: bool
    knows_ports: bool


@dataclass
class Datagram:
    """What came of it: bytes by position, None where the snaplen cut them off."""

    ts: int
    first: Fragment | None = None
    total: int | None = None
    came: dict[int, int | None] = field(default_factory=dict)

    def is_whole(self) -> bool:
        return self.first is not None and self.total is not None and self.came.keys() >= set(range(self.total))

    def message(self) -> bytes:
        found = bytearray()
        while (byte := self.came.get(len(found))) is not None and len(found) != self.total:
            found.append(byte)
        return bytes(found)


def reassembled(fragments: list[Fragment]) -> list[tuple[int, int, bytes]]:
    """(time, number of the fragment that completed it, or of the first one if none did, bytes) of each message."""
    waiting: dict[int, Datagram] = {}
    found: list[tuple[int, int, bytes]] = []

    def give_up(datagram: Datagram) -> None:
        if datagram.first:
            found.append((datagram.first.ts, datagram.first.number, datagram.message()))

    for f in fragments:
        for key in [key for key, datagram in waiting.items() if f.ts - datagram.ts > 60 * SECOND]:
            give_up(waiting.pop(key))
        if f.datagram not in waiting and f.position and f.knows_ports:
            continue
        datagram = waiting.setdefault(f.datagram, Datagram(f.ts))
        missing = [None] * (f.length - len(f.payload))
        datagram.came |= dict(enumerate([*f.payload, *missing], f.position))
        datagram.first = datagram.first or (None if f.position else f)
        datagram.total = f.position + f.length if f.is_last else datagram.total
        if datagram.is_whole():
            found.append((f.ts, f.number, waiting.pop(f.datagram).message()))
    for datagram in waiting.values():
        give_up(datagram)
    return [(ts, number, message) for ts, number, message in found if len(message) >= 4]


# --- transactions --------------------------------------------------------------------------------------------------


@dataclass
class Transaction:
    client: tuple[str, int]
    trans_id: int
    query: str | None
    qtype: int | None
    query_ts: int | None = None
    last_query_ts: int = 0
    response_ts: int | None = None
    attempts: int = 0
    rcode: int | None = None
    search_expansion: bool = False
    status: str = "unanswered"
    spare: Transaction | None = None  # a response to another question, which answers if nothing better comes
    shared: list[str] = field(default_factory=list)  # labels that a walk has shown to be the application's

    def row(self) -> tuple[object, ...]:
        return (
            self.status, self.client, self.trans_id, self.query, self.query_ts, self.response_ts, self.attempts,
            self.rcode, self.search_expansion,
        )  # fmt: skip


def shared_by_walk(failed: list[str], name: list[str], known: list[str]) -> list[str]:
    if len(name) < len(failed) and failed[: len(name)] == name:
        return name
    size = len(known)
    if known and failed[:size] == name[:size] == known and len(failed) > size < len(name) and failed != name:
        return known
    for i in range(1, len(failed)):
        if failed[:i] == name[:i] and failed[i] != (name[i] if i < len(name) else None):
            rest = name[i:]
            if rest and failed[i + 1 :] == rest and (len(rest) >= 2 or failed[i] == "svc"):
                return failed[:i]
    return []


def transact(messages: list[tuple[int, str, int, str, Message]]) -> list[Transaction]:
    """`messages`: ts, flow, client port, client, message; in order. Forgets nothing, so short recordings only."""
    every: list[tuple[str, Transaction]] = []
    failures: list[Transaction] = []
    for ts, flow, port, client, m in messages:
        dialogue = [t for f, t in every if f == flow and t.client == (client, port) and t.trans_id == m.trans_id]
        asked = [t for t in dialogue if t.attempts]
        same = [t for t in asked if (t.query, t.qtype) == (m.query, m.qtype)] if m.query is not None else asked
        if not same and asked and asked[-1].query is None:
            same = asked[-1:]
        latest = same[-1] if same else None
        is_open = latest and latest.status == "unanswered" and ts - latest.last_query_ts <= 300 * SECOND
        if not m.is_response and latest and is_open and latest.query == m.query:
            latest.spare = None
            latest.attempts += 1
            latest.last_query_ts = ts
        elif not m.is_response:
            new = Transaction((client, port), m.trans_id, m.query, m.qtype, ts, ts, attempts=1)
            every.append((flow, new))
            if m.query is not None:
                go_on(failures, new, m.query.split("."))
        elif latest and is_open:
            latest.spare = None
            latest.status, latest.response_ts, latest.rcode = "answered", ts, m.rcode
            empty = m.rcode == 0 and m.counts_no_answers and not m.truncated
            if latest.query is not None and (m.rcode == 3 or empty):
                failures.append(latest)
        elif not (latest and latest.status == "answered" and ts - (latest.response_ts or 0) <= 10 * SECOND):
            unmatched = Transaction((client, port), m.trans_id, m.query, m.qtype, None, 0, ts, 0, m.rcode)
            unmatched.status = "unmatched_response"
            every.append((flow, unmatched))
            for waiting in asked[-8:]:
                still_open = waiting.status == "unanswered" and 0 <= ts - waiting.last_query_ts <= 10 * SECOND
                if still_open and waiting.spare is None:
                    waiting.spare = unmatched
                    break
    return with_spares([transaction for _, transaction in every])


def with_spares(every: list[Transaction]) -> list[Transaction]:
    """At the end, what nothing better came for is answered by its spare response."""
    for transaction in every:
        if spare := transaction.spare:
            transaction.status, transaction.response_ts = "answered", spare.response_ts
            transaction.rcode = spare.rcode
    used = [id(transaction.spare) for transaction in every]
    return [transaction for transaction in every if id(transaction) not in used]


def go_on(failures: list[Transaction], new: Transaction, name: list[str]) -> None:
    alike = [
        f for f in failures
        if f.client[0] == new.client[0] and f.qtype == new.qtype and f.query and f.query.split(".")[0] == name[0]
    ]  # fmt: skip
    for failed in reversed(alike[-8:]):
        assert failed.query is not None and failed.response_ts is not None and new.query_ts is not None
        if failed.search_expansion or new.query_ts - failed.response_ts > 10 * SECOND:
            continue
        shared = shared_by_walk(failed.query.split("."), name, failed.shared)
        if shared:
            failed.search_expansion = True
            new.shared = shared
            return
