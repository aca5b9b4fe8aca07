"""Pure: what is missing of a node's recording in a window, as sentences for people."""

from __future__ import annotations

from collections.abc import Iterable

from capture.contract import NANOSECONDS, Manifest, Tombstone
from capture.recording import Window, clock_text, span_of

TOLERATED_NS = NANOSECONDS
"""Between two segments there is always a moment."""

Interval = tuple[int, int]


def missing(
    window: Window, manifests: Iterable[Manifest], tombstones: Iterable[Tombstone], open_since_ns: int | None
) -> list[str]:
    """Why a window is not complete, oldest first; [] if it is.

    `open_since_ns`: since when the segment is written that is not sealed yet, if there is one.
    """
    known = sorted(manifests, key=lambda each: each.opened_ns)
    sentences: list[tuple[int, str]] = []
    recorded = [span_of(each) for each in known]
    if open_since_ns is not None and open_since_ns < window.until_ns:
        since = max(open_since_ns, window.since_ns)
        recorded.append((open_since_ns, window.until_ns))
        sentences.append((since, f"the segment since {clock_text(open_since_ns)} is still being written"))
    for each in known:
        if each.gap_before_ns:
            gap = (each.opened_ns - each.gap_before_ns, each.opened_ns)
            recorded = [part for whole in recorded for part in _without(whole, gap)]
        if each.salvaged:
            start, end = span_of(each)
            sentences.append(
                (
                    start,
                    f"the agent crashed: what came after {clock_text(end)} may be missing",
                )
            )
    evicted = [each for each in tombstones if each.first_packet_ns is not None and each.last_packet_ns is not None]
    for gap in _gaps((window.since_ns, window.until_ns), recorded):
        sentences.append((gap[0], _sentence(gap, evicted)))
    return [text for _, text in sorted(sentences)]


def _sentence(gap: Interval, evicted: list[Tombstone]) -> str:
    when = f"{clock_text(gap[0])} to {clock_text(gap[1])}"
    for each in evicted:
        if (each.first_packet_ns or 0) < gap[1] and (each.last_packet_ns or 0) >= gap[0]:
            return f"{when} was evicted at {clock_text(each.evicted_ns)} ({each.reason})"
    return f"nothing was recorded from {when}"


def _gaps(whole: Interval, parts: list[Interval]) -> list[Interval]:
    """What of `whole` no part covers, but for moments."""
    left = [whole]
    for part in parts:
        left = [rest for each in left for rest in _without(each, part)]
    return [each for each in left if each[1] - each[0] > TOLERATED_NS]


def _without(whole: Interval, part: Interval) -> list[Interval]:
    if part[1] <= whole[0] or part[0] >= whole[1]:
        return [whole]
    candidates = [(whole[0], part[0]), (part[1], whole[1])]
    return [each for each in candidates if each[0] < each[1]]
