"""What sightings_kernels, paths_kernels and losses_kernels do, slowly and obviously."""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any

MULTIPLIER = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1
SYN, FIN, RST, ACK = 2, 1, 4, 16
NEVER = -(1 << 62)


def mixed(a: int, b: int) -> int:
    h = ((a ^ (b * MULTIPLIER & MASK)) * MULTIPLIER) & MASK
    h ^= h >> 29
    h = h * MULTIPLIER & MASK
    return h ^ (h >> 32)


def sample(
    packets: Sequence[Mapping[str, int]], first_row: int, flows: Sequence[Any], resent: Collection[int]
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]], list[list[int]], list[list[int]]]:
    """(key, ts, row, flow, sender, decisive) of each packet that is compared; (ts, flow, seq, length, sender) of each
    that carried a number of `resent`; each flow's SYNs (orig, resp); and its shapes (orig, resp), the first packets'
    times, rows and TTLs, ways, and which sides had IP ids."""
    found: list[tuple[int, ...]] = []
    carried: list[tuple[int, ...]] = []
    syns = [[-1, -1] for _ in flows]
    datagrams: list[list[int]] = [[0, 0, -1, -1, -1, -1, 0, 0, 0, 0] for _ in flows]
    for number, packet in enumerate(packets, start=first_row):
        if packet["flow"] < 0 or flows[packet["flow"]]["mask"] < 0:
            continue
        flow = flows[packet["flow"]]
        flags, by_orig = packet["flags"], int(packet["src_port"] == flow["orig_port"])
        if flow["orig_port"] == flow["resp_port"] and packet["source"] != flow["orig"]:
            by_orig = 0
        place = (packet["ts"], number, packet["flow"], by_orig)
        if flow["protocol"] == 6 and not flags:
            continue
        if flow["protocol"] == 6:
            length = packet["payload"] + bool(flags & (SYN | FIN))
            if any((number - packet["seq"]) % (1 << 32) < length for number in resent):
                carried.append((packet["ts"], packet["flow"], packet["seq"], length, by_orig))
            what = (flags & (SYN | FIN | RST)) | (65536 if packet["payload"] else 0)
            key = mixed(mixed(packet["seq"], packet["ack"]), mixed(packet["tsval"], what))
            if flags & SYN:
                syns[packet["flow"]][bool(flags & ACK)] = packet["seq"]
                found.append((key, *place, int(bool(flags & ACK) or packet["tsval"] != 0)))
            elif key & int(flow["mask"]) == 0:
                found.append((key, *place, 1))
        elif flow["protocol"] == 17:
            key = mixed(mixed(packet["ip_id"], packet["payload"]), 1)
            if packet["ip_id"] and key & int(flow["mask"]) == 0:
                found.append((key, *place, 0))
            if by_orig or packet["src_port"] == flow["resp_port"]:
                side, of_flow = 1 - by_orig, datagrams[packet["flow"]]
                of_flow[side] = (of_flow[side] + key) & MASK
                if of_flow[2 + side] < 0 or packet["ts"] < of_flow[2 + side]:
                    of_flow[2 + side], of_flow[4 + side], of_flow[6 + side] = packet["ts"], number, packet["ttl"]
                of_flow[8] |= packet["direction"] << 2 * side
                of_flow[9] |= (packet["ip_id"] != 0) << side
    return found, carried, syns, datagrams


def unite(count: int, pairs: Sequence[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """For each of `count` flows the smallest one that it is tied to, and whether it is opposite to that one."""
    tied: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for left, right, opposite in pairs:
        tied[left].append((right, opposite))
        tied[right].append((left, opposite))
    found: dict[int, tuple[int, int]] = {}
    for start in range(count):
        if start in found:
            continue
        found[start] = (start, 0)
        waiting = deque([start])
        while waiting:
            one = waiting.popleft()
            for other, opposite in tied[one]:
                if other not in found:
                    found[other] = (start, found[one][1] ^ opposite)
                    waiting.append(other)
    return [found[flow] for flow in range(count)]


def order(seen: Sequence[Any]) -> list[tuple[int, int, int]]:
    """(way, flow, position): of the points that are left comes next which fewest of the others are before, then which
    saw a packet first."""
    ways: dict[int, dict[int, list[int]]] = {}
    first: dict[tuple[int, int], int] = {}
    for row in seen:
        place = int(row["way"]), int(row["flow"])
        first[place] = min(int(row["ts"]), first.get(place, int(row["ts"])))
        ways.setdefault(int(row["way"]), {}).setdefault(int(row["packet"]), []).append(int(row["flow"]))
    steps = []
    for way, packets in ways.items():
        left = list(dict.fromkeys(flow for flows in packets.values() for flow in flows))
        before: dict[tuple[int, int], int] = defaultdict(int)
        for flows in packets.values():
            for k, later in enumerate(flows):
                for earlier in flows[:k]:
                    before[earlier, later] += 1
        position = 0
        while left:
            best = min(left, key=lambda b: (sum(before[a, b] > before[b, a] for a in left), first[way, b]))
            left.remove(best)
            steps.append((way, best, position))
            position += 1
    return steps


def find(carried: Sequence[Any], flow_ways: Any, events: Sequence[Any]) -> list[tuple[int, int, int]]:
    """(event, flow, ts) of each packet that carried the first byte of an event."""
    return [
        (place, int(packet["flow"]), int(packet["ts"]))
        for packet in carried
        for place, event in enumerate(events)
        if event["way"] == flow_ways[packet["flow"]][packet["sender"]]
        and (int(event["seq"]) - int(packet["seq"])) % (1 << 32) < packet["length"]
    ]


def locate(
    events: Sequence[Any],
    ways: Sequence[Any],
    paths: Sequence[Sequence[int]],
    clocks: Sequence[Any],
    sends: Sequence[tuple[int, int, int]],
) -> list[list[int]]:
    """For each event [last point, next point] of the send before it, and of its own if it was the last send."""
    found = []
    for number, event in enumerate(events):
        nearest, path = int(ways[event["way"]]["flow"]), list(paths[event["way"]])
        path = path[path.index(nearest) :] if nearest in path else []
        times: dict[int, list[int]] = defaultdict(list)
        for of_event, flow, ts in sends:
            if of_event == number:
                times[flow].append(ts)
        sent = sorted(times[nearest])
        before = [ts for ts in sent if ts < event["ts"]][-1:]

        def slack(one: int, other: int) -> int:
            first, second = clocks[one], clocks[other]
            return int(first["bound"] + second["bound"]) if first["node"] != second["node"] else 0

        came, at_point, before_point = {nearest: set(sent)}, {ts: ts for ts in sent}, nearest
        for flow in path[1:]:
            seen = sorted(times[flow])
            by_time: dict[int, list[int]] = defaultdict(list)
            for ts, at in sorted(at_point.items()):
                by_time[at].append(ts)
            latest = latest_sends(sorted(at_point.values()), seen, slack(before_point, flow))
            there = [by_time[at].pop() for at in latest]
            if len(there) < len(seen):
                there = list(latest_sends(sent, seen, slack(nearest, flow)))
            came[flow] = set(there)
            at_point = dict(zip(sorted(there), seen[len(seen) - len(there) :], strict=True))
            before_point = flow

        def ends(points: list[int]) -> list[int]:
            last = points[-1] if points else -1
            behind = path[path.index(last) + 1 :] if points else []  # noqa: B023
            return [last, behind[0] if behind else -1]

        own = [f for f in path if event["ts"] in came[f] or clocks[f]["last_seen"] <= event["ts"] + slack(nearest, f)]
        found.append(
            [
                *([-1, nearest] if event["previous_ts"] == NEVER else ends([f for f in path if before[0] in came[f]])),
                *([-1, -1] if sent[-1] > event["ts"] else ends(own)),
            ]
        )
    return found


def latest_sends(sent: Sequence[int], seen: Sequence[int], slack: int) -> Collection[int]:
    """The latest sends that may be what was seen: each of those comes from one of them, before it."""
    possible = [
        sorted((ts for ts, _ in pairs), reverse=True)
        for count in range(min(len(sent), len(seen)) + 1)
        for chosen in itertools.combinations(sent, count)
        for pairs in (tuple(zip(chosen, order, strict=True)) for order in itertools.permutations(seen, count))
        if all(ts <= at + slack for ts, at in pairs)
    ]
    return max(possible)
