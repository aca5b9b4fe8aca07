"""Compiles the kernels on all cores, before the first run on a machine needs them: it waits half as long on two.

Each process compiles some and leaves them in Numba's cache on disk, from where the run loads them. Whatever goes wrong
in a helper, the run itself compiles what is missing, as Numba does anyway.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np

from analysis import accounts_kernels, columns, dns_kernels, flows_kernels, sightings_kernels
from analysis.columns_kernels import write_community_ids
from analysis.dns import Dns
from analysis.dns_fragments import Fragments
from analysis.dns_message_kernels import MESSAGE, find_candidates, read_messages
from analysis.flow_facts import FLOW_FACTS
from analysis.flows import Flows, one_way_icmp
from analysis.framing_kernels import CLOCK, scan_blocks, scan_records
from analysis.layout import FRAGMENT_FIRST, FRAME, PACKET, POINT_UNNAMED, VERDICT
from analysis.losses import EVENT, EVENT_WAY, FLOW_CLOCK, losses
from analysis.packet_rows import PacketRows
from analysis.packet_rows_kernels import split
from analysis.packets import decode_packets
from analysis.packets_kernels import decode
from analysis.parquet_kernels import encode_page
from analysis.paths import SEEN, STEP, paths
from analysis.retransmits import Retransmits
from analysis.retransmits_kernels import classify
from analysis.sightings import CARRIED, SIGHTING

BYTES: Final = np.zeros(64, np.uint8)
NUMBERS: Final = np.zeros(1, np.int64)
HASHES: Final = np.zeros(1, np.uint64)
PACKETS: Final = np.zeros(0, PACKET)


def _retransmits() -> None:
    Retransmits().feed(BYTES, PACKETS, np.zeros(0, flows_kernels.SLOT))


def _packets() -> None:
    decode_packets(
        BYTES,
        np.zeros(0, FRAME),
        link_types=NUMBERS,
        interfaces=NUMBERS,
        vxlan_ports=(),
        segment=0,
        first_frame_number=1,
    )


def _dns_messages() -> None:
    find_candidates(BYTES, PACKETS, np.zeros(0, MESSAGE))
    read_messages(BYTES, BYTES, np.zeros(0, MESSAGE), 0, BYTES)


def _accounts() -> None:
    flows = Flows()
    flows.account(BYTES, PACKETS, np.zeros(0, VERDICT))
    flows._close(np.zeros(0, np.int64))


def _dns() -> None:
    Dns().finish()
    message = np.zeros(1, MESSAGE)
    message["fragment"] = FRAGMENT_FIRST
    Fragments(MESSAGE).feed(BYTES, message)
    ends, transactions = np.zeros(1, np.int32), np.zeros(1, dns_kernels.TRANSACTION)
    state = np.zeros(dns_kernels.STATE_SIZE, np.int64)
    dns_kernels.transact(np.zeros(0, MESSAGE), 0, BYTES, transactions, HASHES, ends, BYTES, ends, state)
    dns_kernels.gather(BYTES, NUMBERS, np.zeros(2, np.int32), BYTES)


def _flows() -> None:
    flows = Flows()
    flows.assign(BYTES, PACKETS, np.full(1, POINT_UNNAMED), HASHES)
    flows_kernels.rebuild(np.zeros(1, np.int32), flows.slots, 0)
    flows_kernels.expire(flows.slots, 0, 0, 0, np.zeros(1, np.int32), np.zeros(0, np.bool_))
    flows_kernels.give_up_early(flows._fragments, flows._early, flows._early_links, PACKETS)
    one_way_icmp(np.zeros(0, accounts_kernels.ACCOUNT))


def _columns() -> None:
    columns.distinct(HASHES, HASHES)
    columns.uid_text(HASHES)
    nobody = np.zeros(0, accounts_kernels.ACCOUNT)
    write_community_ids(nobody, np.zeros(0, np.bool_), BYTES, BYTES, np.zeros(106, np.int64))


def _packet_rows() -> None:
    packets = np.zeros(2, PACKET)
    packets["quote_offset"] = -1
    rows = PacketRows(rows=len(packets))
    rows.take(BYTES, packets, 1, [None])
    rows.place_quotes(PACKETS, NUMBERS)
    rows.clear()


def _framing() -> None:
    scan_records(BYTES, len(BYTES), 0, False, 1, 16, 0, False, np.zeros(0, FRAME), 0)
    scan_blocks(BYTES, len(BYTES), 0, False, 0, np.zeros(1, CLOCK), 0, np.zeros(0, FRAME), 0)


def _sightings() -> None:
    columns = [np.zeros(0, type_) for type_ in ("i8", "u2", "u2", "u4", "u4", "u4", "u4", "u4", "u1", "i4")]
    for column in columns:
        column.flags.writeable = False  # as Arrow's are
    room = np.zeros(0, SIGHTING), np.zeros(0, CARRIED)
    facts = np.zeros(0, FLOW_FACTS)
    nobody = np.zeros(0, np.int32)
    sightings_kernels.sample(nobody, nobody, *columns, BYTES, 0, facts, BYTES == 1, *room)
    sightings_kernels.ask(NUMBERS, NUMBERS, NUMBERS, NUMBERS, np.zeros(1, FLOW_FACTS))
    sightings_kernels.unite(NUMBERS, BYTES, NUMBERS[:0], NUMBERS[:0], BYTES[:0])


def _paths() -> None:
    paths(np.zeros(0, SEEN))


def _losses() -> None:
    events, ways = np.zeros(0, EVENT), np.zeros(0, EVENT_WAY)
    nothing = np.zeros((0, 2), np.int32)
    losses(events, ways, np.zeros(0, STEP), np.zeros(0, CARRIED), nothing, np.zeros(0, FLOW_CLOCK))


PARTS: Final[tuple[Callable[[], None], ...]] = (
    _flows,
    _packet_rows,
    _retransmits,
    _accounts,
    _dns,
    _packets,
    _dns_messages,
    _sightings,
    _losses,
    _columns,
    _framing,
    _paths,
)
"""The slowest first. No two call kernels of one file: Numba's cache confuses them if two processes compile at once.

Each calls kernels with nothing to do, but with the types that the run has. Not here is what only damaged captures need.
"""


def must_compile() -> bool:
    """Whether kernels that every run needs are not in Numba's cache, or of another version than this one."""
    needed: tuple[Any, ...] = (
        decode,
        classify,
        read_messages,
        accounts_kernels.account,
        dns_kernels.transact,
        flows_kernels.assign,
        split,
        encode_page,
    )
    try:
        return any(not kernel._cache._cache_file._load_index() for kernel in needed)
    except AttributeError:  # no compiler (NUMBA_DISABLE_JIT), or a Numba that keeps its cache in another way
        return False


def compile_kernels(processes: int) -> None:
    """Compile PARTS, in this process and `processes` - 1 others."""
    helpers: list[subprocess.Popen[bytes]] = []
    todo = _queue(len(PARTS))
    try:
        with suppress(OSError):  # with fewer helpers, or none, it just takes longer
            while len(helpers) < min(processes, len(PARTS)) - 1:
                helpers.append(_helper(todo))
        _work(todo)
        for helper in helpers:
            helper.wait()
    finally:
        os.close(todo)
        for helper in helpers:
            helper.kill()
            helper.wait()


def _queue(length: int) -> int:
    """A pipe that holds numbers below `length`, a byte each: whichever process is free reads the next."""
    queue, end = os.pipe()
    os.write(end, bytes(range(length)))
    os.close(end)
    return queue


def _helper(todo: int) -> subprocess.Popen[bytes]:
    """This module in a process that finds the same modules as this one, and that a terminal's Ctrl-C leaves alone."""
    path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "analysis.compilation"],
        stdin=todo,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)},
        process_group=0,
    )


def _work(todo: int) -> None:
    """Compile part after part until none is left."""
    gc.disable()  # the compiler makes millions of objects, and looking through them for garbage takes a tenth longer
    try:
        while number := os.read(todo, 1):
            PARTS[number[0]]()
    finally:
        gc.enable()


if __name__ == "__main__":
    _work(sys.stdin.fileno())
