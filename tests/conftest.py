"""Shared by all tests: where the captures are, and what may be skipped."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import suppress

import pytest

ALLOWED_SKIPS_IN_CI = (
    # The public captures with their oracles lie beside the repository, not in it.
    re.compile(r"\bshared\b.*\babsent\b"),
)

M_MMAP_THRESHOLD = -3
"""mallopt()'s name of it, in malloc.h."""

# Large arrays come from the system and go back there each time, as in a process of podtap, which makes them once. After
# the first analysis malloc would keep them, and zero them whole each time: nearly half of what a tiny capture costs.
with suppress(AttributeError):  # only the GNU C library has it
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 17)


def _fail_unexpected_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """In CI a test that did not run is a failure, unless its reason is allowed: green must mean tested."""
    if os.environ.get("CI") != "true" or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not any(allowed.search(reason) for allowed in ALLOWED_SKIPS_IN_CI):
        report.outcome = "failed"
        report.longrepr = f"unexpected skip in CI: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    report = yield
    _fail_unexpected_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    report = yield
    _fail_unexpected_skip(report)
    return report
