"""One node's agent: everything wired together, its signals, its end."""

from __future__ import annotations

import errno
import gc
import ipaddress
import os
import signal
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Final

from capture import libpcap, log
from capture.bpf import FilterError
from capture.counter_freezer import watch
from capture.endpoint import serve, split_address
from capture.errors import PartialError, PodtapError, UsageError
from capture.filtering import Filtering, Wanted
from capture.interfaces import InterfaceTable
from capture.metrics import (
    ACCEPTED_PACKETS,
    BUILD,
    DROPPED_PACKETS,
    INTERFACE_DROPPED_PACKETS,
    INTERFACE_RESYNCS,
    INTERFACES,
    READER_AGE,
    SALVAGED_SEGMENTS,
    WRITTEN_BYTES,
    WRITTEN_PACKETS,
    Metrics,
)
from capture.recorder import Recorder
from capture.retention import Limits
from capture.ring import Ring
from capture.ring_metrics import RingMetrics
from capture.rotation import Rotation
from capture.sealing import Sealing
from capture.segment_writer import SegmentFacts
from capture.sniffer import ANY, Sniffer, Source
from capture.triggers import Trigger

HEADERS, SNAPLEN, ALL = "headers", "snaplen", "all"
SEAL_S: Final = 4.0
"""At the end, for sealing: with what comes before it, SIGTERM is obeyed within 5 seconds."""
STALLED_S: Final = 5.0
NEVER_WRITABLE: Final = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG)


@dataclass(frozen=True)
class Settings:
    """What was asked for."""

    root: Path
    cluster: str = "cluster"
    node: str = ""
    interfaces: tuple[str, ...] = (ANY,)
    payload: str = HEADERS
    snaplen: int = libpcap.MOST_SNAPLEN
    filter: str = ""
    ring_bytes: int = 32 * 1024 * 1024
    rotation: Rotation = field(default_factory=Rotation)
    limits: Limits = field(default_factory=Limits)
    scope_file: Path | None = None
    metrics: str = ""
    """Address and port; '': none."""
    include_own_traffic: bool = False
    triggers: tuple[Trigger, ...] = ()
    """What freezes the minutes around it."""

    @property
    def device(self) -> str:
        """One interface is captured as it is; of several, those packets of `any` that are theirs."""
        return self.interfaces[0] if len(self.interfaces) == 1 else ANY


def record(settings: Settings) -> None:
    """Until SIGTERM, SIGINT or SIGHUP. PodtapError where it can't start; PartialError: not all could be sealed."""
    with ExitStack() as stack:
        stopping, wake_fd = stack.enter_context(_signals())
        _check_address(settings.metrics)
        table = InterfaceTable()
        try:
            table.start()
        except OSError as error:
            raise PodtapError(f"can't learn of the interfaces: {error}") from error
        stack.callback(table.stop)
        filtering = Filtering(_wanted(settings), table)
        sniffer = _sniffer(settings, filtering)
        stack.callback(sniffer.close)
        ring = _ring(settings)
        stack.callback(ring.close)
        metrics = Metrics()
        metrics.set(BUILD, 1, metadata.version("podtap"))
        metrics.set(SALVAGED_SEGMENTS, _salvage(ring))
        newest_ns = ring.state(time.time_ns()).newest_ns
        recorder = Recorder(
            sniffer,
            ring,
            Sealing(ring, table.during, metrics),
            settings.rotation,
            metrics,
            _facts(settings, filtering),
            every_tick=lambda: filtering.follow(sniffer, metrics),
            gap_before_ns=None if newest_ns is None else max(0, time.time_ns() - newest_ns),
        )
        metrics.on_read(lambda: _refresh(metrics, recorder, table))
        metrics.on_read(RingMetrics(metrics, ring).refresh)
        if settings.metrics:
            stack.callback(_serve(settings, metrics, lambda: problems(recorder, filtering)))
        if settings.triggers:
            stack.callback(watch(ring.folder, settings.triggers))
        log.info(
            "recording",
            capture=",".join(settings.interfaces),
            folder=str(ring.folder),
            filter=settings.filter,
            payload=settings.payload,
        )
        gc.collect()
        gc.freeze()  # what is there now stays: not to be looked through again and again
        recorder.run(stopping, wake_fd)
        recorder.finish()
        if not recorder.sealing.finish(SEAL_S):
            raise PartialError("not all segments could be sealed: the next start of the agent seals what is left")


def _check_address(metrics: str) -> None:
    try:
        if metrics:
            ipaddress.ip_address(split_address(metrics)[0])
    except ValueError as error:
        raise UsageError(f"--metrics: {error}") from error


def _wanted(settings: Settings) -> Wanted:
    return Wanted(
        settings.filter,
        settings.interfaces,
        headers_only=settings.payload == HEADERS,
        snaplen=settings.snaplen,
        scope_file=settings.scope_file,
        own_endpoint=settings.metrics,
        include_own=settings.include_own_traffic,
    )


def _sniffer(settings: Settings, filtering: Filtering) -> Sniffer:
    source = Source(settings.device, settings.snaplen, settings.ring_bytes, settings.payload == HEADERS)
    try:
        return Sniffer(source, filtering.program)
    except libpcap.NoDeviceError as error:
        there = ", ".join(name for _, name in socket.if_nameindex())
        raise UsageError(f"can't capture on {error}; there are: any, {there}") from error
    except FilterError as error:
        raise UsageError(f"the filter '{settings.filter}' can't be used: {error}; man pcap-filter tells how") from error
    except libpcap.Error as error:
        raise PodtapError(f"can't capture on {settings.device}: {error}") from error
    except PermissionError as error:
        raise PodtapError(
            f"can't capture on {settings.device}: {error.strerror}; run it as root, or with the capability CAP_NET_RAW"
        ) from error
    except OSError as error:
        raise PodtapError(f"can't capture on {settings.device}: {error}") from error


def _ring(settings: Settings) -> Ring:
    """PodtapError where nothing could ever be written. A disk that is full or read-only is waited for."""
    ring = Ring(settings.root, settings.cluster, settings.node, settings.limits)
    try:
        ring.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=ring.folder):
            pass
    except OSError as error:
        if error.errno in NEVER_WRITABLE:
            raise PodtapError(
                f"can't record to {ring.folder}: {error.strerror}; give another --root, or access to this one"
            ) from error
    return ring


def _salvage(ring: Ring) -> int:
    """How many segments of earlier runs were sealed. What can't be now is tried again with each segment."""
    try:
        return len(ring.salvage())
    except OSError as error:
        log.error("what an earlier run left can't be sealed yet", folder=str(ring.folder), error=str(error))
        return 0


def _facts(settings: Settings, filtering: Filtering) -> Callable[[], SegmentFacts]:
    run_id = uuid.uuid4().hex

    def facts() -> SegmentFacts:
        return SegmentFacts(
            link_type=-1,
            snaplen=settings.snaplen,
            packets=0,
            size_bytes=0,
            capture=list(settings.interfaces),
            filter=settings.filter,
            payload=settings.payload,
            scope=filtering.scope_text,
            run_id=run_id,
        )

    return facts


def _serve(settings: Settings, metrics: Metrics, problems: Callable[[], list[str]]) -> Callable[[], None]:
    try:
        return serve(settings.metrics, metrics, problems).close
    except OSError as error:
        raise PodtapError(
            f"can't listen at {settings.metrics}: {error.strerror}; give another address with --metrics, or '' for none"
        ) from error


def problems(recorder: Recorder, filtering: Filtering) -> list[str]:
    """Why the agent is not ready."""
    age_s = time.monotonic() - recorder.beat_s
    stalled = f"the reader has not looked for packets for {age_s:.0f} s" if age_s > STALLED_S else ""
    return [each for each in (stalled, recorder.disk_problem, recorder.source_problem, filtering.problem) if each]


def _refresh(metrics: Metrics, recorder: Recorder, table: InterfaceTable) -> None:
    """What is counted elsewhere, when somebody asks."""
    totals = recorder.latest
    metrics.set(ACCEPTED_PACKETS, totals.read + totals.kernel + totals.libpcap)
    metrics.set(WRITTEN_PACKETS, totals.read - totals.disk - totals.policy)
    metrics.set(WRITTEN_BYTES, recorder.bytes_so_far)
    for reason in ("kernel", "libpcap", "disk", "policy"):
        metrics.set(DROPPED_PACKETS, getattr(totals, reason), reason)
    metrics.set(INTERFACE_DROPPED_PACKETS, totals.interface)
    metrics.set(READER_AGE, time.monotonic() - recorder.beat_s)
    metrics.set(INTERFACES, len(table.now()))
    metrics.set(INTERFACE_RESYNCS, table.resyncs)


@contextmanager
def _signals() -> Iterator[tuple[Callable[[], bool], int]]:
    """Whether a signal asked to stop, and a descriptor that becomes readable then. A second one ends the process."""
    asked: list[int] = []
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def ask(number: int, _: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, ask) for number in numbers}
    former = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield lambda: bool(asked), reader
    finally:
        signal.set_wakeup_fd(former)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)
