"""Damaged captures and hostile bytes: what can be read is read, the rest is said, nothing raises or hangs."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from analysis.errors import PodtapError
from tests import oracle
from tests.tables import Analysed, analysed, analysed_once

pytestmark = oracle.needs_captures

SMALL = [
    name
    for name in oracle.whole()
    if 200 < (oracle.CAPTURES / name).stat().st_size < 40_000 and not name.startswith("rotation/")
]
MUTANTS_EACH = 2


@pytest.mark.parametrize("capture", oracle.damaged())
def test_damage_costs_no_packet_that_tshark_reads_and_is_reported(capture: str) -> None:
    result = analysed_once(oracle.CAPTURES / capture)
    assert result.tables["packets"].num_rows >= len(oracle.frames(capture))
    assert result.problems


def mutant(random_: random.Random, content: bytes) -> bytes:
    """Some bits flipped, some bytes overwritten, added, doubled or cut off."""
    changed = bytearray(content)
    for _ in range(random_.choice((1, 3, 30))):
        at = random_.randrange(len(changed))
        changed[at] ^= 1 << random_.randrange(8)
    action = random_.randrange(5)
    at = random_.randrange(len(changed))
    size = random_.randrange(1, 64)
    if action == 0:
        changed[at : at + size] = random_.randbytes(size)
    elif action == 1:
        changed[at:at] = random_.randbytes(size)
    elif action == 2:
        del changed[at : at + size]
    elif action == 3:
        del changed[at:]
    else:
        changed[at : at + size] = b"\xff" * size
    return bytes(changed)


def survives(capture: Path) -> Analysed | None:
    """The tables, or None where the file is so damaged that podtap says it is no capture."""
    try:
        return analysed(capture)
    except PodtapError as error:
        assert str(capture) in str(error)
        return None


@pytest.mark.parametrize("capture", SMALL)
def test_changed_bytes_are_survived(capture: str, tmp_path: Path) -> None:
    random_ = random.Random(capture)
    content = (oracle.CAPTURES / capture).read_bytes()
    for number in range(MUTANTS_EACH):
        path = tmp_path / f"{number}.pcap"
        path.write_bytes(mutant(random_, content))
        result = survives(path)
        if result is None:
            continue
        packets = result.tables["packets"]
        flows = result.tables["flows"]
        uids = set(packets["flow_uid"].to_pylist()) - {None}
        assert uids == set(flows["flow_uid"].to_pylist())
        assert sum(flows["orig_packets"].to_pylist()) + sum(flows["resp_packets"].to_pylist()) <= packets.num_rows


def test_noise_is_no_capture(tmp_path: Path) -> None:
    random_ = random.Random(1)
    for size in (0, 1, 23, 24, 400):
        path = tmp_path / f"{size}.pcap"
        path.write_bytes(random_.randbytes(size))
        result = survives(path)
        assert result is None or result.problems or size == 0
