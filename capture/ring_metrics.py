"""Metrics of the ring, of the disk beneath it and of the node's clock: found out when somebody asks."""

from __future__ import annotations

import os
import time

from capture.clock import ClockSteps, read_clock
from capture.contract import FREEZES, MANIFEST_SUFFIX, NANOSECONDS
from capture.metrics import (
    CLOCK_MAX_ERROR,
    CLOCK_STEPS,
    CLOCK_SYNCHRONISED,
    DISK_FREE_BYTES,
    EVICTED_SEGMENTS,
    FROZEN_WINDOWS,
    LOST_SEGMENTS,
    REFUSED_SEGMENTS,
    RING_BYTES,
    RING_NEWEST,
    RING_OLDEST,
    RING_OVERWRITTEN_IN,
    RING_QUOTA_BYTES,
    RING_SEGMENTS,
    WAITING_SEGMENTS,
    Metrics,
)
from capture.ring import Ring


class RingMetrics:
    """`metrics.on_read(RingMetrics(metrics, ring).refresh)`."""

    def __init__(self, metrics: Metrics, ring: Ring) -> None:
        self._metrics = metrics
        self._ring = ring
        self._steps = ClockSteps()
        metrics.set(CLOCK_STEPS, 0)

    def refresh(self) -> None:
        """OSError: the folder is gone; what was set before stays."""
        self._clock()
        self._state()
        self._folder()

    def _clock(self) -> None:
        clock = read_clock()
        self._metrics.set(CLOCK_SYNCHRONISED, None if clock.synchronised is None else int(clock.synchronised))
        self._metrics.set(CLOCK_MAX_ERROR, _seconds(clock.max_error_ns))
        self._metrics.add(CLOCK_STEPS, int(self._steps.step_ns() != 0))

    def _state(self) -> None:
        metrics, now_ns = self._metrics, time.time_ns()
        state = self._ring.state(now_ns)
        metrics.set(RING_SEGMENTS, state.segments)
        metrics.set(RING_BYTES, state.bytes, "false")
        metrics.set(RING_BYTES, state.frozen_bytes, "true")
        metrics.set(RING_QUOTA_BYTES, state.quota_bytes, "false")
        metrics.set(RING_QUOTA_BYTES, state.frozen_quota_bytes, "true")
        metrics.set(RING_OLDEST, _seconds(state.oldest_unfrozen_ns), "false")
        metrics.set(RING_OLDEST, _seconds(state.oldest_frozen_ns), "true")
        metrics.set(RING_NEWEST, _seconds(state.newest_ns))
        left_ns = None if state.overwritten_ns is None else max(0, state.overwritten_ns - now_ns)
        metrics.set(RING_OVERWRITTEN_IN, _seconds(left_ns))
        metrics.set(EVICTED_SEGMENTS, state.evicted_segments)
        metrics.set(LOST_SEGMENTS, state.lost_segments)
        metrics.set(REFUSED_SEGMENTS, state.refused_segments)
        metrics.set(WAITING_SEGMENTS, state.waiting_segments)

    def _folder(self) -> None:
        found = os.statvfs(self._ring.folder)
        self._metrics.set(DISK_FREE_BYTES, found.f_bavail * found.f_frsize)
        freezes = self._ring.folder / FREEZES
        names = os.listdir(freezes) if freezes.is_dir() else []
        self._metrics.set(FROZEN_WINDOWS, sum(name.endswith(MANIFEST_SUFFIX) for name in names))


def _seconds(time_ns: int | None) -> float | None:
    return None if time_ns is None else time_ns / NANOSECONDS
