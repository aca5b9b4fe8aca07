"""The bytes of generated packets: headers are rows of a numpy record, laid over a buffer full of payload."""

from __future__ import annotations

import struct
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

PACKET: Final = np.dtype(
    [
        ("ts", "i8"), ("flow", "i8"), ("reply", "?"), ("layout", "u1"), ("resent", "u1"), ("lost", "?"),
        ("ip_id", "u2"), ("ipv6", "?"), ("payload", "i8"), ("http", "?"),
        ("flags", "u1"), ("seq", "u4"), ("ack", "u4"), ("sack_left", "u4"), ("sack_right", "u4"),
        ("tsval", "u4"), ("tsecr", "u4"),
        ("dns_id", "u2"), ("dns_name", "u4"), ("qtype", "u2"), ("rcode", "u1"),
        ("interface", "u4"), ("outgoing", "?"), ("wrapped", "?"), ("hops", "u1"),
    ]
)  # fmt: skip
"""A packet where it is seen. `payload`: bytes after the TCP header; `wrapped`: in VXLAN; `hops`: taken off the TTL."""
TCP, SYN, SACK, QUESTION, ANSWER = range(5)
"""Layouts: what follows the IP header."""

CLIENTS, SERVERS = 2000, 300
PORTS: Final = np.array([80, 443, 8080, 5432, 6379, 9090, 50051])
FILL: Final = ord("x")
HTTP_START: Final = b"GET /"
HTTP_END: Final = b" HTTP/1.1\r\nHost: web.shop.svc.cluster.local\r\n\r\n"
CHUNK: Final = 50_000
"""Packets written at a time: keeps the index arrays in the cache."""

RECORD: Final = [("seconds", "<u4"), ("nanoseconds", "<u4"), ("captured", "<u4"), ("on_wire", "<u4")]
ETHERNET: Final = [("dst_mac", "u1", 6), ("src_mac", "u1", 6), ("ethertype", ">u2")]
SLL2: Final = [
    ("ethertype", ">u2"), ("reserved", ">u2"), ("ifindex", ">u4"), ("arphrd", ">u2"), ("pkttype", "u1"),
    ("address_length", "u1"), ("address", "u1", 8),
]  # fmt: skip
IPV4: Final = [
    ("version", "u1"), ("tos", "u1"), ("total_length", ">u2"), ("ip_id", ">u2"), ("fragment", ">u2"),
    ("ttl", "u1"), ("protocol", "u1"), ("ip_checksum", ">u2"), ("src", ">u4"), ("dst", ">u4"),
]  # fmt: skip
IPV6: Final = [
    ("version", ">u4"), ("payload_length", ">u2"), ("next_header", "u1"), ("ttl", "u1"),
    ("src_net", ">u8"), ("src", ">u8"), ("dst_net", ">u8"), ("dst", ">u8"),
]  # fmt: skip
UDP: Final = [("src_port", ">u2"), ("dst_port", ">u2"), ("udp_length", ">u2"), ("checksum", ">u2")]
VXLAN: Final = [("vxlan_flags", ">u4"), ("vni", ">u4")]
TCP_HEADER: Final = [
    ("src_port", ">u2"), ("dst_port", ">u2"), ("seq", ">u4"), ("ack", ">u4"), ("header_length", "u1"),
    ("flags", "u1"), ("window", ">u2"), ("checksum", ">u2"), ("urgent", ">u2"),
]  # fmt: skip
TIMESTAMPS: Final = [("ts_option", ">u4"), ("tsval", ">u4"), ("tsecr", ">u4")]
SYN_OPTIONS: Final = [
    ("mss_option", ">u4"), ("ts_option", ">u4"), ("tsval", ">u4"), ("tsecr", ">u4"), ("scale_option", ">u4"),
]  # fmt: skip
SACK_OPTION: Final = [("sack_option", ">u4"), ("sack_left", ">u4"), ("sack_right", ">u4")]
DNS: Final = [
    ("dns_id", ">u2"), ("dns_flags", ">u2"), ("counts", ">u2", 4), ("name", "u1", 34), ("qtype", ">u2"),
    ("qclass", ">u2"),
]  # fmt: skip
DNS_A: Final = [
    ("owner", ">u2"), ("rtype", ">u2"), ("rclass", ">u2"), ("rr_ttl", ">u4"), ("rdlength", ">u2"), ("rdata", ">u4"),
]  # fmt: skip
NAME: Final = np.frombuffer(b"\x07svc-000\x06ns-000\x03svc\x07cluster\x05local\x00", "u1")
NAME_DIGITS: Final = [5, 6, 7, 12, 13, 14]
TRANSPORT: Final[dict[int, list[Any]]] = {
    TCP: TCP_HEADER + TIMESTAMPS,
    SYN: TCP_HEADER + SYN_OPTIONS,
    SACK: TCP_HEADER + TIMESTAMPS + SACK_OPTION,
    QUESTION: UDP + DNS,
    ANSWER: UDP + DNS + DNS_A,
}


def client_host(packets: NDArray[Any]) -> NDArray[np.int64]:
    return packets["flow"] % CLIENTS


def server_host(packets: NDArray[Any]) -> NDArray[np.int64]:
    return np.where(packets["layout"] < QUESTION, CLIENTS + packets["flow"] * 7919 % SERVERS, CLIENTS + SERVERS)


def server_port(flow: NDArray[np.int64]) -> NDArray[np.int64]:
    return PORTS[flow * 7919 % SERVERS % len(PORTS)]


def file_header(kind: str) -> bytes:
    """Classic pcap with nanoseconds; LINKTYPE_ETHERNET or LINKTYPE_LINUX_SLL2."""
    return struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262_144, 1 if kind == "ethernet" else 276)


def write_packets(out: BinaryIO, packets: NDArray[Any], kind: str) -> None:
    """Write the records of PACKET `packets`, in their order."""
    for begin in range(0, len(packets), CHUNK):
        out.write(encode(packets[begin : begin + CHUNK], kind))


def encode(packets: NDArray[Any], kind: str) -> bytes:
    """The pcap records of PACKET `packets`."""
    form = packets["layout"].astype("i8") * 4 + packets["ipv6"] * 2 + packets["wrapped"]
    rows = {int(f): header_rows(packets[form == f], kind) for f in np.unique(form)}
    lengths = np.zeros(len(packets), "i8")
    for f, row in rows.items():
        lengths[form == f] = row.dtype.itemsize + packets["payload"][form == f]
    ends = np.cumsum(lengths)
    starts = ends - lengths
    buffer = np.full(ends[-1], FILL, "u1")
    for f, row in rows.items():
        buffer[starts[form == f][:, None] + np.arange(row.dtype.itemsize)] = as_bytes(row)
    http = packets["http"]
    for text, where in ((HTTP_START, (ends - packets["payload"])[http]), (HTTP_END, ends[http] - len(HTTP_END))):
        buffer[where[:, None] + np.arange(len(text))] = np.frombuffer(text, "u1")
    return buffer.tobytes()


def header_rows(packets: NDArray[Any], kind: str) -> NDArray[Any]:
    """Everything but the payload, one record per packet; all packets have the same headers."""
    layout, ipv6, wrapped = (packets[name][0] for name in ("layout", "ipv6", "wrapped"))
    link = ETHERNET if kind == "ethernet" else SLL2
    around = [*named("outer", IPV4 + UDP + VXLAN), *named("inner", ETHERNET)] if wrapped else []
    network: list[Any] = IPV6 if ipv6 else IPV4
    dtype = np.dtype(RECORD + link + around + named("ip", network) + TRANSPORT[layout])
    rows = np.zeros(len(packets), dtype)
    transport = dtype.itemsize - np.dtype(TRANSPORT[layout]).itemsize
    network_start = transport - np.dtype(network).itemsize
    fill_record(rows, packets)
    fill_link(rows, packets, kind, ipv6 and not wrapped)
    fill_ip(rows, packets, transport)
    if layout < QUESTION:
        fill_tcp(rows, packets)
    else:
        fill_dns(rows, packets)
    fill_checksum(rows, packets, transport)
    if wrapped:
        fill_outer(rows, packets, network_start, ipv6)
    return rows


def named(prefix: str, header: list[Any]) -> list[Any]:
    """The fields with a prefix, so that an outer and an inner header fit one record."""
    return [(f"{prefix}_{field[0]}", *field[1:]) for field in header]


def fields(rows: NDArray[Any]) -> tuple[str, ...]:
    return rows.dtype.names or ()


def as_bytes(rows: NDArray[Any]) -> NDArray[np.uint8]:
    return rows.view("u1").reshape(len(rows), rows.dtype.itemsize)


def words(rows: NDArray[Any], begin: int, end: int) -> NDArray[np.int64]:
    """Sum of the 16-bit words between two even offsets of each row, as Internet checksums add them (RFC 1071)."""
    total: NDArray[np.int64] = np.ascontiguousarray(as_bytes(rows)[:, begin:end]).view(">u2").sum(axis=1, dtype="i8")
    return total


def checksum(total: NDArray[np.int64]) -> NDArray[np.int64]:
    return 0xFFFF - total % 0xFFFF


def fill_record(rows: NDArray[Any], packets: NDArray[Any]) -> None:
    rows["seconds"], rows["nanoseconds"] = packets["ts"] // 1_000_000_000, packets["ts"] % 1_000_000_000
    rows["captured"] = rows["on_wire"] = rows.dtype.itemsize - 16 + packets["payload"]


def fill_link(rows: NDArray[Any], packets: NDArray[Any], kind: str, ipv6: bool) -> None:
    rows["ethertype"] = 0x86DD if ipv6 else 0x0800
    if kind == "ethernet":
        rows["dst_mac"], rows["src_mac"] = (2, 0, 0, 0, 0, 1), (2, 0, 0, 0, 0, 2)
        return
    rows["ifindex"] = packets["interface"]
    rows["arphrd"] = 1
    rows["pkttype"] = np.where(packets["outgoing"], 4, 0)
    rows["address_length"] = 6
    rows["address"] = (2, 0, 0, 0, 0, 2, 0, 0)


def fill_ip(rows: NDArray[Any], packets: NDArray[Any], transport: int) -> None:
    """The (inner) IP header: pods are 10.244.0.0/16 or fd00:10:244::/64."""
    client, server = client_host(packets), server_host(packets)
    source, target = np.where(packets["reply"], (server, client), (client, server))
    length = rows.dtype.itemsize - transport + packets["payload"]
    protocol = np.where(packets["layout"] < QUESTION, 6, 17)
    rows["ip_ttl"] = 64 - packets["hops"]
    if "ip_next_header" in fields(rows):
        rows["ip_version"] = 6 << 28
        rows["ip_payload_length"], rows["ip_next_header"] = length, protocol
        rows["ip_src_net"] = rows["ip_dst_net"] = 0xFD00001002440000
        rows["ip_src"], rows["ip_dst"] = source + 1, target + 1
        return
    rows["ip_version"] = 0x45
    rows["ip_total_length"], rows["ip_protocol"] = length + 20, protocol
    rows["ip_ip_id"], rows["ip_fragment"] = packets["ip_id"], 0x4000
    for name, host in (("ip_src", source), ("ip_dst", target)):
        rows[name] = (10 << 24) + (244 << 16) + (host // 250 << 8) + host % 250 + 1
    rows["ip_ip_checksum"] = checksum(words(rows, transport - 20, transport))


def fill_ports(rows: NDArray[Any], packets: NDArray[Any], port: NDArray[np.int64] | int) -> None:
    client = 32768 + packets["flow"] // CLIENTS % 28000
    rows["src_port"] = np.where(packets["reply"], port, client)
    rows["dst_port"] = np.where(packets["reply"], client, port)


def fill_tcp(rows: NDArray[Any], packets: NDArray[Any]) -> None:
    fill_ports(rows, packets, server_port(packets["flow"]))
    for name in ("seq", "ack", "flags", "tsval", "tsecr"):
        rows[name] = packets[name]
    rows["header_length"] = np.dtype(TRANSPORT[packets["layout"][0]]).itemsize // 4 << 4
    rows["window"] = 502
    if "mss_option" in fields(rows):
        rows["window"] = 64240
        rows["mss_option"], rows["ts_option"], rows["scale_option"] = 0x020405B4, 0x0402080A, 0x01030307
        return
    rows["ts_option"] = 0x0101080A
    if "sack_option" in fields(rows):
        rows["sack_option"] = 0x0101050A
        rows["sack_left"], rows["sack_right"] = packets["sack_left"], packets["sack_right"]


def fill_dns(rows: NDArray[Any], packets: NDArray[Any]) -> None:
    """A question for svc-NNN.ns-NNN.svc.cluster.local, or its reply."""
    fill_ports(rows, packets, 53)
    rows["udp_length"] = np.dtype(TRANSPORT[packets["layout"][0]]).itemsize
    rows["dns_id"] = packets["dns_id"]
    rows["dns_flags"] = np.where(packets["reply"], 0x8580, 0x0100) + packets["rcode"]
    rows["counts"][:, 0] = 1
    rows["name"] = NAME
    rows["name"][:, NAME_DIGITS] += (packets["dns_name"][:, None] // 10 ** np.arange(6) % 10).astype("u1")
    rows["qtype"], rows["qclass"] = packets["qtype"], 1
    if "rdata" in fields(rows):
        rows["counts"][:, 1] = 1
        rows["owner"], rows["rtype"], rows["rclass"], rows["rr_ttl"], rows["rdlength"] = 0xC00C, 1, 1, 30, 4
        rows["rdata"] = (10 << 24) + (96 << 16) + packets["dns_name"] % 65536


def fill_checksum(rows: NDArray[Any], packets: NDArray[Any], transport: int) -> None:
    """TCP and UDP checksum over pseudo header (the addresses are the IP header's last bytes), header and payload."""
    addresses = 32 if "ip_next_header" in fields(rows) else 8
    protocol = np.where(packets["layout"] < QUESTION, 6, 17)
    length = rows.dtype.itemsize - transport + packets["payload"]
    pseudo = words(rows, transport - addresses, transport) + protocol + length
    rows["checksum"] = checksum(pseudo + words(rows, transport, rows.dtype.itemsize) + payload_sum(packets))


def payload_sum(packets: NDArray[Any]) -> NDArray[np.int64]:
    """Sum of the payload's 16-bit words: all fill, but for the two ends of an HTTP request."""
    length = packets["payload"]
    total: NDArray[np.int64] = length // 2 * (FILL * 257) + length % 2 * (FILL << 8)
    start, end = (np.frombuffer(text, "u1").astype("i8") - FILL for text in (HTTP_START, HTTP_END))
    even, odd = ((end[parity::2].sum() << 8) + end[1 - parity :: 2].sum() for parity in (0, 1))
    text = (start[0::2].sum() << 8) + start[1::2].sum() + np.where((length - len(HTTP_END)) % 2, odd, even)
    total += np.where(packets["http"], text, 0)
    return total


def fill_outer(rows: NDArray[Any], packets: NDArray[Any], network: int, ipv6: bool) -> None:
    """VXLAN on port 8472 between two nodes, as Flannel sends it: VNI 1, no UDP checksum, outer IP id 0."""
    rows["inner_dst_mac"], rows["inner_src_mac"] = (2, 0, 0, 0, 1, 1), (2, 0, 0, 0, 1, 2)
    rows["inner_ethertype"] = 0x86DD if ipv6 else 0x0800
    there = (192 << 24) + (168 << 16) + 11 + client_host(packets) % 20
    here = np.full_like(there, (192 << 24) + (168 << 16) + 10)
    outer_start = network - 50
    length = rows.dtype.itemsize - outer_start + packets["payload"]
    rows["outer_version"], rows["outer_ttl"], rows["outer_protocol"] = 0x45, 64, 17
    rows["outer_total_length"], rows["outer_udp_length"] = length, length - 20
    rows["outer_src"], rows["outer_dst"] = np.where(packets["outgoing"], (here, there), (there, here))
    rows["outer_src_port"], rows["outer_dst_port"] = 49152 + packets["flow"] % 16384, 8472
    rows["outer_vxlan_flags"], rows["outer_vni"] = 0x08000000, 1 << 8
    rows["outer_ip_checksum"] = checksum(words(rows, outer_start, outer_start + 20))
