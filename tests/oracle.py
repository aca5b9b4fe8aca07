"""The public captures beside the repository, and what tshark, Zeek, nDPI and Arkime say of them (their README.md)."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[1].parent / "shared"
CAPTURES = SHARED / "pcaps"
NANOSECONDS = 1_000_000_000

needs_captures = pytest.mark.skipif(not CAPTURES.exists(), reason="the shared captures are absent")


@cache
def summary() -> dict[str, dict[str, str]]:
    """One row per capture, by the capture's name."""
    if not CAPTURES.exists():
        return {}
    with (CAPTURES / "oracle" / "SUMMARY.tsv").open(newline="") as lines:
        return {row["file"]: row for row in csv.DictReader(lines, delimiter="\t")}


def whole() -> list[str]:
    """Captures that tshark reads to their end."""
    return [name for name, row in summary().items() if row["tshark_rc"] == "0"]


def damaged() -> list[str]:
    """Captures at which tshark stops with an error."""
    return [name for name, row in summary().items() if row["tshark_rc"] != "0"]


@cache
def frames(name: str) -> list[dict[str, str]]:
    """tshark's fields of each frame it reads. Cells are not quoted: a name may hold any byte but tab and newline."""
    with gzip.open(CAPTURES / "oracle" / f"{name}.tsv.gz", "rt", errors="replace", newline="\n") as lines:
        header = lines.readline().rstrip("\n").split("\t")
        return [dict(zip(header, line.rstrip("\n").split("\t"), strict=False)) for line in lines]


def nanoseconds(text: str) -> int:
    """Seconds with nine decimal places, exactly."""
    seconds, _, fraction = text.lstrip("-").partition(".")
    value = int(seconds or 0) * NANOSECONDS + int(fraction.ljust(9, "0")[:9])
    return -value if text.startswith("-") else value


def is_plain(frame: dict[str, str], layer: str) -> bool:
    """Whether the frame holds one `layer` (tcp, udp), neither tunnelled nor quoted by ICMP."""
    protocols = frame["frame.protocols"].split(":")
    network = sum(name in ("ip", "ipv6") for name in protocols)
    return layer in protocols and network == 1 and "icmp" not in protocols and "icmpv6" not in protocols


@cache
def expected() -> dict[str, list[Path]]:
    """Files with the answers of other tools, by capture."""
    answers: dict[str, list[Path]] = {}
    if CAPTURES.exists():
        with (CAPTURES / "EXPECTED.tsv").open(newline="") as lines:
            for row in csv.DictReader(lines, delimiter="\t"):
                answers.setdefault(row["file"], []).append(CAPTURES / row["expected"])
    return answers


def zeek_rows(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a Zeek log that still names its columns; none of one that was cut to some columns."""
    header: list[str] = []
    for line in path.read_text().splitlines():
        if line.startswith("#fields"):
            header = line.split("\t")[1:]
        elif header and not line.startswith("#"):
            yield dict(zip(header, line.split("\t"), strict=True))
