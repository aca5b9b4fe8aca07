"""What sightings_kernels, paths_kernels and losses_kernels do, slowly and obviously."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
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


def sample(rows: Sequence[Any], first_row: int, flows: Sequence[Any]) -> tuple[list[tuple[int, ...]], list[list[int]]]:
    """(key, ts, row, flow, sender, decisive) of each packet that is compared, and each flow's SYNs (orig, resp)."""
    found: list[tuple[int, ...]] = []
    syns = [[-1, -1] for _ in flows]
    for number, row in enumerate(rows, start=first_row):
        if row["flow"] < 0:
            continue
        flow = flows[row["flow"]]
        by_orig = int((row["src"], row["src_port"]) == (flow["orig"], flow["orig_port"]))
        flags, place = int(row["tcp_flags"]), (int(row["ts"]), number, int(row["flow"]), by_orig)
        if flow["protocol"] == 6:
            what = (flags & (SYN | FIN | RST)) | (65536 if row["payload_length"] else 0)
            key = mixed(mixed(int(row["tcp_seq"]), int(row["tcp_ack"])), mixed(int(row["tcp_tsval"]), what))
            if flags & SYN:
                syns[row["flow"]][bool(flags & ACK)] = int(row["tcp_seq"])
                found.append((key, *place, int(bool(flags & ACK) or row["tcp_tsval"] != 0)))
            elif key & int(flow["mask"]) == 0:
                found.append((key, *place, 1))
        elif flow["protocol"] == 17 and row["ip_id"]:
            key = mixed(mixed(int(row["ip_id"]), int(row["payload_length"])), 1)
            if key & int(flow["mask"]) == 0:
                found.append((key, *place, 0))
    return found, syns


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
    """(way, flow, position): of the points that are left comes next which fewest of the others are before."""
    ways: dict[int, dict[int, list[int]]] = {}
    for row in seen:
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
            best = min(left, key=lambda b: sum(before[a, b] > before[b, a] for a in left))
            left.remove(best)
            steps.append((way, best, position))
            position += 1
    return steps


def find(
    rows: Sequence[Any], flows: Sequence[Any], flow_ways: Any, ways: Sequence[Any], events: Sequence[Any]
) -> list[tuple[int, int, int]]:
    """(event, flow, ts) of each packet that carried the first byte of an event."""
    found = []
    for row in rows:
        if row["flow"] < 0:
            continue
        flow = flows[row["flow"]]
        by_orig = int((row["src"], row["src_port"]) == (flow["orig"], flow["orig_port"]))
        number = flow_ways[row["flow"]][by_orig]
        if number < 0:
            continue
        length = int(row["payload_length"]) + bool(row["tcp_flags"] & (SYN | FIN))
        for place, event in enumerate(events):
            if event["way"] == number and (int(event["seq"]) - int(row["tcp_seq"])) % (1 << 32) < length:
                found.append((place, int(row["flow"]), int(row["ts"])))
    return found


def locate(
    events: Sequence[Any],
    ways: Sequence[Any],
    paths: Sequence[Sequence[int]],
    last_seen: Sequence[int],
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
        later = [ts for ts in times[nearest] if ts > event["ts"]]
        end = min(later, default=1 << 62)
        sent = sum(ts < end for ts in times[nearest])

        def saw(flow: int, since: int, until: int) -> bool:
            all_came = sum(ts < end for ts in times[flow]) >= sent  # noqa: B023
            return flow == nearest or all_came or any(since <= ts < until for ts in times[flow])  # noqa: B023

        def ends(points: list[int]) -> list[int]:
            last = points[-1] if points else -1
            behind = path[path.index(last) + 1 :] if points else []  # noqa: B023
            return [last, behind[0] if behind else -1]

        if event["previous_ts"] == NEVER:
            before = [-1, nearest]
        else:
            before = ends([flow for flow in path if saw(flow, int(event["previous_ts"]), int(event["ts"]))])
        own = [flow for flow in path if saw(flow, int(event["ts"]), end) or last_seen[flow] <= event["ts"]]
        found.append([*before, *([-1, -1] if later else ends(own))])
    return found
