"""Options of capture's commands: sizes, durations and times as people write them, and kubectl's own flags."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from capture.contract import NANOSECONDS

F = TypeVar("F", bound=Callable[..., Any])

UNIT_BYTES: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
UNIT_NS: Final = {"s": NANOSECONDS, "m": 60 * NANOSECONDS, "h": 3600 * NANOSECONDS, "d": 86_400 * NANOSECONDS}
SIZE_TEXT: Final = re.compile(r"(\d+)([KMGT]?)(?:i?B|i)?", re.ASCII | re.IGNORECASE)
DURATION_TEXT: Final = re.compile(r"(?:\d+[smhd])+", re.ASCII)
EPOCH: Final = re.compile(r"(\d+)(?:\.(\d{1,9}))?", re.ASCII)
RFC3339: Final = re.compile(
    r"(\d{4}-\d{2}-\d{2})[Tt ](\d{2}:\d{2}(?::\d{2})?)(?:\.(\d{1,9}))?([Zz]|[+-]\d{2}:\d{2})?", re.ASCII
)


def parse_size(text: str) -> int:
    """Bytes of `64M`, `4G`, `512Ki`; units are powers of 1024, as tcpdump's and du's. ValueError if it is none."""
    match = SIZE_TEXT.fullmatch(text)
    if not match:
        raise ValueError(f"'{text}' is not a size: write bytes, or a number with K, M, G or T (64M, 4G)")
    return int(match[1]) * UNIT_BYTES[match[2].upper()]


def parse_duration(text: str) -> int:
    """Nanoseconds of `90s`, `15m`, `1h30m`, `2d`; ValueError if it is none."""
    if not DURATION_TEXT.fullmatch(text):
        raise ValueError(f"'{text}' is not a duration: write numbers with s, m, h or d (90s, 15m, 1h30m)")
    return sum(int(number) * UNIT_NS[unit] for number, unit in re.findall(r"(\d+)([smhd])", text))


def parse_time(text: str, now_ns: int, *, future: bool = False) -> int:
    """UTC nanoseconds of a time as people write it; `15m` is before `now_ns` (`now`), in the `future` `+15m` after it.

    A time without a zone is UTC, as in analysis. ValueError where it is none of RFC 3339, epoch seconds and relative.
    """
    if text == "now":
        return now_ns
    if DURATION_TEXT.fullmatch(text):
        return now_ns - parse_duration(text)
    if future and text.startswith("+") and DURATION_TEXT.fullmatch(text[1:]):
        return now_ns + parse_duration(text[1:])
    if epoch := EPOCH.fullmatch(text):
        return int(epoch[1]) * NANOSECONDS + _fraction_ns(epoch[2])
    if match := RFC3339.fullmatch(text):
        day, clock, fraction, zone = match.groups()
        try:
            whole = datetime.fromisoformat(f"{day}T{clock}{(zone or 'Z').upper()}")
        except ValueError as error:
            raise ValueError(f"'{text}' is not a time: {error}") from error
        return int(whole.timestamp()) * NANOSECONDS + _fraction_ns(fraction)
    ahead = ", or how long from now (+15m)" if future else ""
    raise ValueError(
        f"'{text}' is not a time: write RFC 3339 (2026-03-01T14:03:00Z), epoch seconds (1772373780), "
        f"how long ago (15m, 2h, 1d), now{ahead}"
    )


def _fraction_ns(digits: str | None) -> int:
    return int((digits or "").ljust(9, "0"))


class _Written(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.4
    """A value that has a way to be written; a default may be given as text or as the value."""

    def __init__(self, name: str, parse: Callable[[str], int]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


SIZE: Final = _Written("size", parse_size)
"""`type=` of an option; the command gets bytes."""
DURATION: Final = _Written("duration", parse_duration)
"""Nanoseconds."""
PAST: Final = _Written("time", lambda text: parse_time(text, time.time_ns()))
"""UTC nanoseconds; relative times are before now."""
TIME: Final = _Written("time", lambda text: parse_time(text, time.time_ns(), future=True))
"""UTC nanoseconds; `+15m` is after now."""

namespace_option = click.option("-n", "--namespace", metavar="N", help="Only pods of this namespace.")
all_namespaces_option = click.option("-A", "--all-namespaces", is_flag=True, help="Pods of all namespaces.")
selector_option = click.option(
    "-l", "--selector", metavar="SELECTOR", default="", help="Only pods with these labels, as kubectl takes it."
)


def cluster_options(command: F) -> F:
    """--kubeconfig and --context, with kubectl's meaning; inside a pod neither is needed."""
    kubeconfig = click.option(
        "--kubeconfig",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="How to reach the cluster.  [default: $KUBECONFIG, ~/.kube/config, or the pod's own account]",
    )
    context = click.option("--context", metavar="C", help="Of the kubeconfig.  [default: its current one]")
    return kubeconfig(context(command))
