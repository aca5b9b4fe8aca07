"""Captures of any size for the benchmarks, made by numpy, the same for the same seed.

Two kinds:

- `ethernet`: one tap beside the servers. TCP over IPv4 and DNS, nothing else.
- `node`: what `tcpdump -i any` writes on a Kubernetes node: LINUX_SLL2, a packet seen again at each interface that it
  crosses, some of it inside VXLAN, a fifth of the flows over IPv6, and packets that were lost before they came here.

A connection is a sequence of *exchanges* (open, ask, answer ..., close) and an exchange is a sequence of *steps*, one
packet each. Steps count bytes in units of what their side sends per packet, so that all sequence and acknowledgment
numbers follow from two cumulative sums. Whatever is drawn at random is drawn per flow or per exchange.

    python -m benchmarks.generate ethernet 1000000

writes `data/ethernet-1000000-1.pcap` and, beside it, a JSON file of what the generator knows to be in it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks import frames
from benchmarks.frames import PACKET

DATA: Final = Path(__file__).parent / "data"
BEGIN_NS: Final = 1_767_225_600_000_000_000
"""2026-01-01T00:00:00Z."""
KINDS: Final = ("ethernet", "node")
OTHER: Final = "other"
"""The kind `node` again, as another node has it a little later: for stitching only."""
LATER_NS: Final = 150_000
MINUTE_NS: Final = 60_000_000_000
MINUTE: Final = {"ethernet": (10_000, 12_500), "node": (4_000, 5_000)}
"""TCP connections and DNS sockets that open in a minute: about a million packets are recorded."""
DNS_SHARE: Final = 0.05

# --- What happens on a connection ------------------------------------------------------------------------------------

FAST, RTO = 1, 2
"""Why a packet was sent again: three duplicate ACKs, or nothing came back."""

STEP: Final = np.dtype(
    [
        ("answerer", "?"),  # who sends: the side that asks, or the one that answers
        ("flags", "u1"),
        ("start", "i8"),  # sequence number, payload and ACK in units of what the side (the peer) sends per packet
        ("count", "i8"),
        ("ack", "i8"),
        ("rtts", "f8"),  # wait before it, in round-trip times ...
        ("wait_ns", "f8"),  # ... plus this
        ("sacked", "i8"),  # right edge of the SACK block, which begins one unit after `ack`; 0: none
        ("resent", "u1"),
        ("lost", "?"),  # does not reach the other side
    ]
)
SYN, ACK, PSH_ACK, FIN_ACK, RST_ACK = 0x02, 0x10, 0x18, 0x11, 0x14
MS: Final = 1e6

EXCHANGES: Final[dict[str, list[tuple[Any, ...]]]] = {
    "open": [(0, SYN, 0, 0, 0, 0, 0), (1, SYN | ACK, 0, 0, 1, 0, 0), (0, ACK, 1, 0, 1, 1, 0)],
    "close": [(0, FIN_ACK, 0, 0, 0, 0, 0), (1, FIN_ACK, 0, 0, 1, 0, 0), (0, ACK, 1, 0, 1, 1, 0)],
    "reset": [(0, RST_ACK, 0, 0, 0, 0, 0)],
    "refused": [(0, SYN, 0, 0, 0, 0, 0), (1, RST_ACK, 0, 0, 1, 0, 0)],
    "unheard": [(0, SYN, 0, 0, 0, 0, 0), (0, SYN, 0, 0, 0, 0, 1000 * MS, 0, RTO)],
    "call": [(0, PSH_ACK, 0, 1, 0, 0, 0), (1, PSH_ACK, 0, 1, 1, 0, 2 * MS), (0, ACK, 1, 0, 1, 1, 0)],
    "download": [
        (0, PSH_ACK, 0, 1, 0, 0, 0),
        (1, ACK, 0, 1, 1, 0, 1 * MS), (1, ACK, 1, 1, 1, 0, 0), (0, ACK, 1, 0, 2, 1, 0),
        (1, ACK, 2, 1, 1, 0, 0), (1, ACK, 3, 1, 1, 0, 0), (0, ACK, 1, 0, 4, 1, 0),
        (1, ACK, 4, 1, 1, 0, 0), (1, PSH_ACK, 5, 1, 1, 0, 0), (0, ACK, 1, 0, 6, 1, 0),
    ],
    "fast": [
        (0, PSH_ACK, 0, 1, 0, 0, 0),
        (1, ACK, 0, 1, 1, 0, 1 * MS), (1, ACK, 1, 1, 1, 0, 0, 0, 0, True), (1, ACK, 2, 1, 1, 0, 0),
        (1, ACK, 3, 1, 1, 0, 0), (1, PSH_ACK, 4, 1, 1, 0, 0),
        (0, ACK, 1, 0, 1, 1, 0), (0, ACK, 1, 0, 1, 0, 0, 3), (0, ACK, 1, 0, 1, 0, 0, 4), (0, ACK, 1, 0, 1, 0, 0, 5),
        (1, ACK, 1, 1, 1, 0, 0, 0, FAST), (0, ACK, 1, 0, 5, 1, 0),
    ],
    "timeout": [
        (0, PSH_ACK, 0, 1, 0, 0, 0),
        (1, PSH_ACK, 0, 1, 1, 0, 2 * MS), (1, PSH_ACK, 0, 1, 1, 0, 220 * MS, 0, RTO), (0, ACK, 1, 0, 1, 1, 0),
    ],
}  # fmt: skip
NAMES: Final = list(EXCHANGES)
OPEN, CLOSE, RESET, REFUSED, UNHEARD, CALL, DOWNLOAD, FAST_LOSS, TIMEOUT = range(len(NAMES))
USUAL: Final = {CALL: 0.915, DOWNLOAD: 0.059, FAST_LOSS: 0.01, TIMEOUT: 0.016}
"""How often a connection does what, once it is open."""
MSS: Final = 1448

# Two questions (A, AAAA) per socket, as a libc resolver asks: what happens to them.
LOOKUP_STEP: Final = np.dtype(
    [("answerer", "?"), ("qtype", "u2"), ("rcode", "u1"), ("answers", "?"), ("wait_ns", "f8")]
)
A, AAAA, NXDOMAIN = 1, 28, 3
LOOKUPS: Final[dict[str, list[tuple[Any, ...]]]] = {
    "answered": [(0, A, 0, 0, 0), (0, AAAA, 0, 0, 0), (1, A, 0, 1, MS), (1, AAAA, 0, 0, 0)],
    "nxdomain": [(0, A, 0, 0, 0), (0, AAAA, 0, 0, 0), (1, A, NXDOMAIN, 0, MS), (1, AAAA, NXDOMAIN, 0, 0)],
    "repeated": [(0, A, 0, 0, 0), (0, AAAA, 0, 0, 0), (1, AAAA, 0, 0, MS), (0, A, 0, 0, 2000 * MS), (1, A, 0, 1, MS)],
    "unheard": [(0, A, 0, 0, 0), (0, AAAA, 0, 0, 0)],
}
LOOKUP_SHARES: Final = [0.84, 0.13, 0.02, 0.01]

# --- Where it is seen ------------------------------------------------------------------------------------------------

SEEN: Final = np.dtype([("interface", "u4"), ("outgoing", "?"), ("wrapped", "?"), ("hops", "u1")])
ETH0, FLANNEL, CNI0, VETH, PEER_VETH = 2, 3, 4, 10, 1000
"""Interface indexes; VETH and PEER_VETH stand for that of the sender's (the receiver's) pod."""
LEAVES: Final = [(VETH, 0, 0, 0), (CNI0, 0, 0, 0), (FLANNEL, 1, 0, 1), (ETH0, 1, 1, 1)]
ARRIVES: Final = [(ETH0, 0, 1, 1), (FLANNEL, 0, 0, 1), (CNI0, 1, 0, 2), (PEER_VETH, 1, 0, 2)]
WAYS: Final[list[list[tuple[int, int, int, int]]]] = [
    [(VETH, 0, 0, 0), (PEER_VETH, 1, 0, 0)],  # 0: pod to pod on this node
    LEAVES,  # 1: pod to a pod of another node
    ARRIVES,  # 2: and back
    [(ETH0, 1, 0, 0)],  # 3: the node itself to the world
    [(ETH0, 0, 0, 1)],  # 4: and back
]
LOCAL, FROM_HERE, TO_HERE, HOST = range(4)
WAY_OF: Final = np.array([[0, 0], [1, 2], [2, 1], [3, 4]])
"""The way that a packet takes, by place of its flow and by whether it is a reply."""
PLACES: Final = np.array([LOCAL] * 25 + [FROM_HERE] * 30 + [TO_HERE] * 15 + [HOST] * 30)


def table(templates: list[Any], dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64]]:
    """All steps of all templates as one array, where each template begins in it, and how many steps it has."""
    width = len(dtype.fields or ())
    steps = [tuple(step) + (0,) * (width - len(step)) for template in templates for step in template]
    counts = np.array([len(template) for template in templates])
    return np.array(steps, dtype), np.cumsum(counts) - counts, counts


def spread(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For owners with `counts[i]` items each: the owner of every item, and the item's number with that owner."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)


def before(values: NDArray[Any], counts: NDArray[np.int64]) -> NDArray[Any]:
    """Sum of the owner's earlier values, for every value (owners have `counts[i]` consecutive values)."""
    total: NDArray[Any] = np.cumsum(values) - values
    total -= np.repeat(total[np.cumsum(counts) - counts], counts)
    return total


def exchanges_of(rng: np.random.Generator, rounds: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What each connection does: (number of exchanges per connection, all exchanges in order)."""
    failed = rng.random(len(rounds)) < 0.02
    counts = np.where(failed, 1, rounds + 2)
    owner, position = spread(counts)
    kinds = rng.choice(list(USUAL), len(owner), p=list(USUAL.values()))
    kinds[position == 0] = OPEN
    kinds[position == counts[owner] - 1] = np.where(rng.random(len(rounds)) < 0.05, RESET, CLOSE)
    kinds[failed[owner]] = rng.choice([REFUSED, UNHEARD], failed.sum())
    return counts, kinds


def tcp_packets(rng: np.random.Generator, flows: NDArray[np.int64], begin_ns: int) -> NDArray[Any]:
    """Packets of the connections numbered `flows` that open in the minute from `begin_ns`: PACKET, in flow order."""
    steps, first, lengths = table(list(EXCHANGES.values()), STEP)
    rounds = np.minimum(1 + rng.lognormal(np.log(7), 1.45, len(flows)).astype("i8"), 3000)
    counts, kinds = exchanges_of(rng, rounds)
    usual = kinds >= CALL
    asked = np.where(usual, 64 + np.minimum(rng.lognormal(4.2, 0.8, len(kinds)), 1300).astype("i8"), 1)
    answered = np.where(usual, np.minimum(rng.lognormal(5.0, 0.9, len(kinds)), MSS).astype("i8") + 1, 1)
    answered[np.isin(kinds, [DOWNLOAD, FAST_LOSS])] = MSS
    swapped = usual & (kinds != CALL) & (rng.random(len(kinds)) < 0.3)  # uploads: the client sends the bulk
    units = np.zeros((2, len(NAMES)), "i8")  # sent in a whole exchange by who asks and by who answers
    for sender in (0, 1):
        taken = np.maximum(steps["count"], steps["flags"] & 3 != 0)  # SYN and FIN take one number
        end = np.where(steps["answerer"] == sender, steps["start"] + taken, 0)
        units[sender] = np.maximum.reduceat(end, first)
    sent = np.array([units[0][kinds] * asked, units[1][kinds] * answered])
    client_base = before(np.where(swapped, sent[1], sent[0]), counts)
    server_base = before(np.where(swapped, sent[0], sent[1]), counts)

    exchange, position = spread(lengths[kinds])
    step = steps[first[kinds][exchange] + position]
    flow_of_exchange = np.repeat(np.arange(len(flows)), counts)
    owner = flow_of_exchange[exchange]
    per_flow = np.bincount(owner, minlength=len(flows))
    by_server = step["answerer"] ^ swapped[exchange]

    packets = np.zeros(len(step), PACKET)
    packets["flow"] = flows[owner]
    packets["reply"] = by_server
    packets["flags"] = step["flags"]
    packets["resent"] = step["resent"]
    packets["lost"] = step["lost"]
    own_unit = np.where(step["answerer"], answered[exchange], asked[exchange])
    peer_unit = np.where(step["answerer"], asked[exchange], answered[exchange])
    isn = rng.integers(0, 1 << 32, (2, len(flows)))[:, owner]
    bases = np.array([client_base[exchange], server_base[exchange]]) + isn
    own, peer = np.where(by_server, bases[::-1], bases)
    packets["seq"] = own + step["start"] * own_unit & 0xFFFFFFFF
    packets["payload"] = step["count"] * own_unit
    packets["ack"] = np.where(step["flags"] & ACK, peer + step["ack"] * peer_unit & 0xFFFFFFFF, 0)
    packets["sack_left"] = peer + (step["ack"] + 1) * peer_unit & 0xFFFFFFFF
    packets["sack_right"] = peer + step["sacked"] * peer_unit & 0xFFFFFFFF
    packets["layout"] = np.where(step["flags"] & SYN, frames.SYN, np.where(step["sacked"], frames.SACK, frames.TCP))
    asks = (kinds[exchange] == CALL) & ~by_server & (step["count"] == 1)
    packets["http"] = asks & (frames.server_port(packets["flow"]) == 80)

    rtt_ns = rng.lognormal(np.log(0.4 * MS), 0.7, len(flows))
    think_ns = np.minimum(250 * MS, 20_000 * MS / (rounds + 1))
    wait = step["wait_ns"] + step["rtts"] * rtt_ns[owner] + rng.exponential(15_000, len(step)) + 1000
    wait += np.where(position == 0, think_ns[owner] * rng.exponential(1, len(step)), 0)
    opened = begin_ns + rng.integers(0, MINUTE_NS, len(flows))
    packets["ts"] = opened[owner] + before(wait, per_flow).astype("i8")
    stamp(rng, packets, per_flow)
    return packets


def stamp(rng: np.random.Generator, packets: NDArray[Any], per_flow: NDArray[np.int64]) -> None:
    """Fill what a socket counts by itself: IP ids, TSval (milliseconds), and TSecr, the peer's latest TSval."""
    by_server = packets["reply"]
    owner = np.repeat(np.arange(len(per_flow)), per_flow)
    started = np.repeat(np.cumsum(per_flow) - per_flow, per_flow)
    clock = rng.integers(0, 1 << 31, (2, len(per_flow)))[by_server.astype("i8"), owner]
    packets["tsval"] = clock + packets["ts"] // 1_000_000 & 0xFFFFFFFF
    index = np.arange(len(packets))
    for side in (False, True):
        mine, latest = by_server == side, np.maximum.accumulate(np.where(by_server != side, index, -1))
        heard = mine & (latest >= started)
        packets["tsecr"][heard] = packets["tsval"][latest[heard]]
        sent = before(mine.astype("i8"), per_flow)
        packets["ip_id"][mine] = (rng.integers(0, 1 << 16, len(per_flow))[owner] + sent)[mine] & 0xFFFF
    packets["ip_id"][packets["flags"] == SYN | ACK] = 0  # as Linux


def dns_packets(rng: np.random.Generator, flows: NDArray[np.int64], begin_ns: int) -> NDArray[Any]:
    """Packets of the DNS sockets numbered `flows` that open in the minute from `begin_ns`: PACKET, in flow order."""
    steps, first, lengths = table(list(LOOKUPS.values()), LOOKUP_STEP)
    kinds = rng.choice(len(LOOKUPS), len(flows), p=LOOKUP_SHARES)
    owner, position = spread(lengths[kinds])
    step = steps[first[kinds][owner] + position]
    packets = np.zeros(len(step), PACKET)
    packets["layout"] = np.where(step["answers"], frames.ANSWER, frames.QUESTION)
    for name, values in (("reply", step["answerer"]), ("qtype", step["qtype"]), ("rcode", step["rcode"])):
        packets[name] = values
    packets["flow"] = flows[owner]
    packets["ip_id"] = rng.integers(0, 1 << 16, len(step))
    packets["dns_id"] = rng.integers(0, 1 << 15, len(flows))[owner] * 2 + (step["qtype"] == AAAA)
    packets["dns_name"] = rng.integers(0, 1_000_000, len(flows))[owner]
    packets["resent"] = np.where((position == 3) & ~step["answerer"], RTO, 0)
    wait = step["wait_ns"] * rng.lognormal(0, 0.5, len(step)) + rng.exponential(15_000, len(step)) + 1000
    wait = np.where(packets["resent"], step["wait_ns"], wait)
    packets["ts"] = begin_ns + rng.integers(0, MINUTE_NS, len(flows))[owner] + before(wait, lengths[kinds]).astype("i8")
    return packets


def seen_on_node(packets: NDArray[Any]) -> NDArray[Any]:
    """One PACKET for every interface of the node that each packet crosses, 2 us apart, and none if it never came."""
    seen, first, lengths = table(WAYS, SEEN)
    mixed = (packets["flow"].astype("u8") * 2654435761) >> 7
    place = PLACES[mixed % 100]
    way = WAY_OF[place, packets["reply"].astype("i8")]
    lost_before = packets["lost"] & (seen["outgoing"][first[way]] == 0) & (seen["interface"][first[way]] == ETH0)
    packets, way, mixed = packets[~lost_before], way[~lost_before], mixed[~lost_before]
    owner, position = spread(lengths[way])
    at = seen[first[way][owner] + position]
    result = packets[owner]
    result["ts"] += position * 2000
    result["ipv6"] = (mixed[owner] >> 9) % 5 == 0
    result["outgoing"], result["wrapped"], result["hops"] = at["outgoing"], at["wrapped"], at["hops"]
    client, server = frames.client_host(result) % 40, frames.server_host(result) % 40
    sender, receiver = np.where(result["reply"], (server, client), (client, server))
    result["interface"] = np.select(
        [at["interface"] == VETH, at["interface"] == PEER_VETH], [VETH + sender, VETH + receiver], at["interface"]
    )
    return result


def minutes(kind: str, packets: int, seed: int) -> Iterator[NDArray[Any]]:
    """PACKET arrays, `packets` in all, each of what began in one minute, in flow order."""
    left, minute = packets, 0
    share = min(1.0, 1.5 * packets / 1_000_000)  # no need to make a million to keep ten
    connections, sockets = (int(n * share) + 20 for n in MINUTE["ethernet" if kind == "ethernet" else "node"])
    while left:
        rng = np.random.default_rng([seed, minute])
        begin_ns = BEGIN_NS + minute * MINUTE_NS
        parts = [
            tcp_packets(rng, np.arange(connections) + minute * connections, begin_ns),
            dns_packets(rng, np.arange(sockets) + minute * sockets, begin_ns),
        ]
        if kind != "ethernet":
            parts = [seen_on_node(part) for part in parts]
        if kind == OTHER:
            for part in parts:
                part["ts"] += LATER_NS
                part["hops"] += 2
        dns = min(int(DNS_SHARE * left), len(parts[1]))
        parts = [parts[0][: left - dns], parts[1][:dns]]
        yield np.concatenate(parts)
        left -= sum(map(len, parts))
        minute += 1


def known(packets: NDArray[Any]) -> dict[str, int]:
    """What a correct reader finds in these packets (on `node` captures: at all interfaces together)."""
    dns = packets[packets["layout"] >= frames.QUESTION]
    tcp = packets[packets["layout"] < frames.QUESTION]
    asked = dns[~dns["reply"] & (dns["resent"] == 0)]
    replies = dns[dns["reply"]]
    return {
        "packets": len(packets),
        "tcp_flows": len(np.unique(tcp["flow"])),
        "dns_flows": len(np.unique(dns["flow"])),
        "fast_retransmits": int((tcp["resent"] == FAST).sum()),
        "timeout_retransmits": int((tcp["resent"] == RTO).sum()),
        "dns_queries": len(asked),
        "dns_repeats": int((dns["resent"] == RTO).sum()),
        "dns_replies": len(replies),
        "dns_nxdomain": int((replies["rcode"] == NXDOMAIN).sum()),
    }


def write(path: Path, kind: str, packets: int, seed: int = 1) -> dict[str, int]:
    """Write a capture of `packets` packets to `path`, in order of time; what is known of it is returned.

    Minutes overlap by the flows that outlive them: what is later than the minute waits for the next one.
    """
    truth: dict[str, int] = {}
    waiting = np.zeros(0, PACKET)
    with path.open("wb") as out:
        out.write(frames.file_header(kind))
        for minute, made in enumerate(minutes(kind, packets, seed)):
            for name, count in known(made).items():
                truth[name] = truth.get(name, 0) + count
            waiting = np.concatenate([waiting, made])
            waiting = waiting[np.argsort(waiting["ts"], kind="stable")]
            now = int(np.searchsorted(waiting["ts"], BEGIN_NS + (minute + 1) * MINUTE_NS))
            frames.write_packets(out, waiting[:now], kind)
            waiting = waiting[now:]
        frames.write_packets(out, waiting, kind)
    return truth


def capture(kind: str, packets: int, seed: int = 1) -> Path:
    """The capture of that kind and size in `data/`, made if it is not there yet."""
    DATA.mkdir(exist_ok=True)
    path = DATA / f"{kind}-{packets}-{seed}.pcap"
    if not path.exists():
        part = path.with_suffix(".part")
        truth = write(part, kind, packets, seed)
        path.with_suffix(".json").write_text(json.dumps(truth, indent=2) + "\n")
        part.rename(path)
    return path


if __name__ == "__main__":
    print(capture(sys.argv[1], int(sys.argv[2])))
