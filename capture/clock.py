"""How far the node's clock can be trusted, as the kernel says (adjtimex), and whether it jumped. Nothing is set."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Final

from capture.contract import Clock

STEP_NS: Final = 1_000_000
"""A jump is more than this: both clocks run at the same rate, also while NTP corrects it, so that all else is the time
between reading one and the other."""
_TIME_ERROR: Final = 5
_STA_UNSYNC, _STA_NANO = 0x0040, 0x2000
_READINGS: Final = 5


class _Timex(ctypes.Structure):
    """struct timex of linux/timex.h."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("constant", ctypes.c_long),
        ("precision", ctypes.c_long),
        ("tolerance", ctypes.c_long),
        ("time", ctypes.c_long * 2),
        ("tick", ctypes.c_long),
        ("rest", ctypes.c_long * 24),  # pps figures, TAI and what is reserved
    )


def read_clock() -> Clock:
    """The kernel's own estimate: whether something keeps the clock synchronised, its maximum error, and the offset
    that is being worked off. All are None where the kernel does not say; `stepped` is for ClockSteps to tell."""
    values = _Timex()
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(values))
    except (OSError, AttributeError):
        return Clock()
    if state < 0:
        return Clock()
    return Clock(
        synchronised=state != _TIME_ERROR and not values.status & _STA_UNSYNC,
        max_error_ns=values.maxerror * 1000,
        offset_ns=values.offset * (1 if values.status & _STA_NANO else 1000),
    )


class ClockSteps:
    """Notices when the wall clock was set: it moved against the monotonic clock. So it does while a machine sleeps."""

    def __init__(
        self, wall_ns: Callable[[], int] = time.time_ns, monotonic_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns
        self._difference_ns = self._difference()

    def step_ns(self) -> int:
        """By how much the clock was set since this was last asked, or made: forward is positive, 0 is not at all."""
        difference = self._difference()
        step = difference - self._difference_ns
        self._difference_ns = difference
        return step if abs(step) > STEP_NS else 0

    def _difference(self) -> int:
        """Wall time less monotonic time, of the reading that was interrupted least."""
        readings = []
        for _ in range(_READINGS):
            before = self._monotonic_ns()
            wall = self._wall_ns()
            after = self._monotonic_ns()
            readings.append((after - before, wall - (before + after) // 2))
        return min(readings)[1]
