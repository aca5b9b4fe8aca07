"""Stages in threads of their own make the tables that one thread makes, however far one is ahead of the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partialmethod, wraps
from pathlib import Path
from typing import Any

import pytest

from analysis.retransmits import Retransmits
from analysis.schemas import TABLES
from analysis.segments import Segment
from tests.tables import OF_FILES, Analysed, analysed

SAMPLES = Path(__file__).resolve().parents[1] / "sample_pcaps"


def same_rows(one: Analysed, other: Analysed) -> None:
    for name in TABLES:
        if name not in OF_FILES:
            assert one.rows(name) == other.rows(name), name


def late(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def slow(*arguments: Any) -> Any:
        time.sleep(0.002)
        return function(*arguments)

    return slow


@pytest.mark.parametrize("chunk_bytes", [100, 3000, 100_000])
def test_many_threads_make_the_tables_of_one(chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of small chunks: some hold no whole packet, and what is known of flows often moves to where more have room."""
    monkeypatch.setattr(Segment, "chunks", partialmethod(Segment.chunks, chunk_bytes))
    monkeypatch.setattr("analysis.flows.SWEEP_PACKETS", 500)
    monkeypatch.setattr("analysis.flows.FIRST_SLOTS", 16)
    monkeypatch.setattr("analysis.pipeline.FLUSH_FLOWS", 100)
    captures = [SAMPLES / "incident" / "node-a.pcap.gz"] if chunk_bytes > 100 else sorted(SAMPLES.glob("*.pcap*"))
    alone = analysed(*captures, jobs=1)
    assert alone.tables["dns"].num_rows and alone.tables["retransmits"].num_rows
    same_rows(analysed(*captures, jobs=2), alone)
    monkeypatch.setattr(Retransmits, "feed", late(Retransmits.feed))
    same_rows(analysed(*captures, jobs=2), alone)
