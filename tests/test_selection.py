"""Which segments of a ring are of a window, whatever the clock did while they were recorded."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from capture.contract import NANOSECONDS, Manifest, sha256, stem, to_json
from capture.recording import Window, select, span_of
from tests.recordings import START

STEPS = st.sampled_from([30, 60, 60, 60, 300, -40, -3600, 7200])
"""Seconds by which the clock went on while a segment was written."""


@dataclass
class Clock:
    time_ns: int = START


def ring(folder: Path, steps: list[int]) -> list[Manifest]:
    """Segments named as the ring names them: later than the one before, also where the clock went back."""
    clock, last_name, previous, found = Clock(), 0, None, []
    for number, seconds in enumerate(steps, start=1):
        opened = clock.time_ns
        last_name = max(opened, last_name + 1)
        clock.time_ns += seconds * NANOSECONDS
        first, last = sorted((opened, clock.time_ns))
        manifest = Manifest(
            "lab", "node-a", stem(last_name, number), opened, clock.time_ns, 1, 0, 2, 24, "", first, last, previous
        )
        content = to_json(manifest)
        previous = sha256(content)
        path = folder / f"{manifest.stem}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        found.append(manifest)
    return found


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(STEPS, min_size=1, max_size=8), since=st.integers(-9000, 9000), length=st.integers(1, 900))
@example(steps=[-3600], since=-601, length=1)
@example(steps=[60, -3600, 60, 60, 60], since=-3000, length=600)
def test_all_that_meet_a_window_are_selected_and_the_chain_is_not_torn(
    steps: list[int], since: int, length: int
) -> None:
    window = Window(START + since * NANOSECONDS, START + (since + length) * NANOSECONDS)
    with tempfile.TemporaryDirectory() as folder:
        manifests = ring(Path(folder), steps)
        entries, damaged = select(Path(folder), window)
    selected = [each.manifest.stem for each in entries]
    stems = [each.stem for each in manifests]
    meeting = [each.stem for each in manifests if window.meets(*span_of(each))]
    assert set(meeting) <= set(selected)
    if selected:
        assert (selected[0], selected[-1]) == (meeting[0], meeting[-1])
    assert damaged == []
    if selected and all(seconds in (30, 60, 300) for seconds in steps):
        assert selected == stems[stems.index(selected[0]) : stems.index(selected[-1]) + 1]
