"""The clock's state as the kernel tells it, and steps of the wall clock."""

from __future__ import annotations

import ctypes
import os
import time

import pytest

from capture import clock
from capture.clock import ClockSteps, read_clock
from capture.contract import Clock

SECOND = 10**9


def test_the_structure_is_the_kernels() -> None:
    """Fields behind those that are used hold what they must: the time of now, and ticks in microseconds."""
    values = clock._Timex()
    assert ctypes.CDLL(None).adjtimex(ctypes.byref(values)) >= 0
    assert abs(values.time[0] - time.time()) <= 1
    assert 0 <= values.time[1] < SECOND
    assert values.tick == pytest.approx(1_000_000 / os.sysconf("SC_CLK_TCK"), rel=0.1)
    assert ctypes.sizeof(values) >= 208


def test_nothing_is_set_by_reading() -> None:
    before = ClockSteps()
    assert [read_clock().max_error_ns is not None for _ in range(3)] == [True] * 3
    assert before.step_ns() == 0


@pytest.mark.parametrize(
    ("state", "status", "offset", "expected"),
    [
        (0, 0x2001, 1234, Clock(True, 500_000, 1234)),  # STA_PLL, STA_NANO
        (0, 0x0001, -7, Clock(True, 500_000, -7000)),
        (5, 0x2040, 0, Clock(False, 500_000, 0)),  # STA_UNSYNC
        (5, 0x2000, 0, Clock(False, 500_000, 0)),
        (-1, 0, 0, Clock()),
    ],
)
def test_what_the_kernel_says(
    state: int, status: int, offset: int, expected: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flags and units as in adjtimex(2)."""

    class Kernel:
        @staticmethod
        def adjtimex(reference: object) -> int:
            values = reference._obj  # type: ignore[attr-defined]
            assert values.modes == 0  # reads only
            values.status, values.offset, values.maxerror = status, offset, 500
            return state

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Kernel)
    assert read_clock() == expected


class Clocks:
    """A machine's two clocks; every look takes a while, and some are interrupted."""

    def __init__(self) -> None:
        self.passed = 0
        self.set_by = 1_700_000_000 * SECOND
        self.looks = 0

    def look(self) -> None:
        self.looks += 1
        self.passed += 20_000_000 if self.looks % 4 == 0 else 200

    def wall(self) -> int:
        self.look()
        return self.passed + self.set_by

    def monotonic(self) -> int:
        self.look()
        return self.passed


def test_steps_are_told_once_with_their_size() -> None:
    clocks = Clocks()
    steps = ClockSteps(clocks.wall, clocks.monotonic)
    assert steps.step_ns() == 0
    clocks.passed += 3600 * SECOND
    assert steps.step_ns() == 0
    clocks.set_by += 2 * SECOND
    assert steps.step_ns() == pytest.approx(2 * SECOND, abs=1000)
    assert steps.step_ns() == 0
    clocks.set_by -= 5_000_000
    assert steps.step_ns() == pytest.approx(-5_000_000, abs=1000)


def test_the_real_clocks_do_not_step_by_themselves() -> None:
    steps = ClockSteps()
    assert [steps.step_ns() for _ in range(200)] == [0] * 200
