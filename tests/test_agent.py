"""When the agent says that it is not ready."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from capture.agent import problems


@pytest.mark.parametrize(
    ("age_s", "disk", "source", "scope", "said"),
    [
        (1.0, "", "", "", []),
        (9.0, "", "", "", ["the reader has not looked for packets for 9 s"]),
        (1.0, "can't write", "eth0 is away", "no scope", ["can't write", "eth0 is away", "no scope"]),
    ],
)
def test_an_agent_that_does_not_record_is_not_ready(
    age_s: float, disk: str, source: str, scope: str, said: list[str]
) -> None:
    recorder = SimpleNamespace(beat_s=time.monotonic() - age_s, disk_problem=disk, source_problem=source)
    assert problems(cast(Any, recorder), cast(Any, SimpleNamespace(problem=scope))) == said
