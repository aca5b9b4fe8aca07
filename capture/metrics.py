"""Every metric of the recorder, and how Prometheus reads them (text format 0.0.4). docs/metrics.md lists them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
COUNTER, GAUGE = "counter", "gauge"


@dataclass(frozen=True)
class Metric:
    """What is exposed; a counter only grows while the process lives."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()


def _counter(name: str, help: str, *labels: str) -> Metric:
    return Metric(name, COUNTER, help, labels)


def _gauge(name: str, help: str, *labels: str) -> Metric:
    return Metric(name, GAUGE, help, labels)


BUILD = _gauge("podtap_build_info", "1; its labels tell what runs.", "version")
READY = _gauge("podtap_ready", "1 if it works as it should; /readyz says why it does not.")

# The agent: accepted = written + all that was dropped.
ACCEPTED_PACKETS = _counter("podtap_accepted_packets_total", "Packets that the socket's filter accepted.")
WRITTEN_PACKETS = _counter("podtap_written_packets_total", "Packets written to segments.")
WRITTEN_BYTES = _counter("podtap_written_bytes_total", "Bytes written to segments, before compression.")
DROPPED_PACKETS = _counter(
    "podtap_dropped_packets_total",
    "Accepted packets that were not written: kernel (its ring was full), libpcap, disk, or policy (out of scope).",
    "reason",
)
INTERFACE_DROPPED_PACKETS = _counter(
    "podtap_interface_dropped_packets_total", "Packets that interfaces dropped before any socket saw them."
)
READER_AGE = _gauge(
    "podtap_reader_age_seconds", "How long ago the reader last looked for packets; it grows if the reader is stalled."
)
SEALED_SEGMENTS = _counter("podtap_sealed_segments_total", "Segments that are complete and have a manifest.")
SALVAGED_SEGMENTS = _counter("podtap_salvaged_segments_total", "Segments that an earlier run left unsealed.")
EVICTED_SEGMENTS = _counter("podtap_evicted_segments_total", "Segments that the ring gave up for newer ones.")
LOST_SEGMENTS = _counter("podtap_lost_segments_total", "Segments that are gone, and not by the ring.")
WRITE_ERRORS = _counter("podtap_write_errors_total", "Failed attempts to write to the recording folder.", "error")
FILTER_SWAPS = _counter("podtap_filter_swaps_total", "How often the filter followed a change of scope or interfaces.")
RING_BYTES = _gauge("podtap_ring_bytes", "What the recording takes on disk: frozen or not.", "frozen")
RING_QUOTA_BYTES = _gauge("podtap_ring_quota_bytes", "What it may take.", "frozen")
RING_SEGMENTS = _gauge("podtap_ring_segments", "Segments in the ring.")
RING_OLDEST = _gauge("podtap_ring_oldest_timestamp_seconds", "Time of the oldest packet: frozen or not.", "frozen")
RING_NEWEST = _gauge("podtap_ring_newest_timestamp_seconds", "Time of the newest packet in a sealed segment.")
RING_OVERWRITTEN_IN = _gauge(
    "podtap_ring_overwritten_in_seconds", "When the oldest unfrozen segment will be overwritten, at the present rate."
)
WAITING_SEGMENTS = _gauge("podtap_waiting_segments", "Segments that are whole, and can't be sealed: the disk is full.")
FROZEN_WINDOWS = _gauge("podtap_frozen_windows", "Windows that are kept until they are thawed.")
REFUSED_SEGMENTS = _gauge(
    "podtap_refused_segments", "Segments of a frozen window that will be overwritten: the frozen quota is full."
)
DISK_FREE_BYTES = _gauge("podtap_disk_free_bytes", "Free space of the file system that holds the recording.")
INTERFACES = _gauge("podtap_interfaces", "Interfaces of the node.")
INTERFACE_RESYNCS = _counter(
    "podtap_interface_resyncs_total",
    "How often the kernel's news of interfaces came too fast, and all were listed again.",
)

# The journal; kind is the API's: Pod, Service ...
JOURNAL_RECORDS = _counter("podtap_journal_records_total", "Records written, by what they say.", "kind", "type")
JOURNAL_OBJECTS = _gauge("podtap_journal_objects", "Objects that are known.", "kind")
JOURNAL_LAST_EVENT = _gauge(
    "podtap_journal_last_event_timestamp_seconds", "When the last change of an object was seen.", "kind"
)
JOURNAL_BLIND = _gauge("podtap_journal_blind", "1 while nothing can be seen of the kind.", "kind")
JOURNAL_BLIND_SECONDS = _counter("podtap_journal_blind_seconds_total", "How long nothing could be seen.", "kind")
JOURNAL_GAPS = _counter(
    "podtap_journal_gaps_total",
    "Times of which the journal can't tell everything: objects may have come and gone.",
    "kind",
)
JOURNAL_REQUESTS = _counter("podtap_journal_requests_total", "Requests to the API server.", "kind", "verb")
JOURNAL_FAILURES = _counter(
    "podtap_journal_failures_total",
    "Requests without a good answer: by HTTP status, or silence, or broken.",
    "kind",
    "reason",
)
JOURNAL_BYTES = _gauge("podtap_journal_bytes", "What the journal's files take on disk.")

# The node's clock.
CLOCK_SYNCHRONISED = _gauge("podtap_clock_synchronised", "1 if the kernel says that something synchronises the clock.")
CLOCK_MAX_ERROR = _gauge("podtap_clock_max_error_seconds", "The kernel's bound of the clock's error.")
CLOCK_STEPS = _counter("podtap_clock_steps_total", "How often the clock was set, instead of slowed or hastened.")

# The process itself, by the names that all Prometheus clients use.
PROCESS_CPU = _counter("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.")
PROCESS_MEMORY = _gauge("process_resident_memory_bytes", "Resident memory size in bytes.")
PROCESS_START = _gauge("process_start_time_seconds", "Start time of the process since unix epoch in seconds.")
PROCESS_FILES = _gauge("process_open_fds", "Number of open file descriptors.")

ALL: Final = tuple(value for value in tuple(globals().values()) if isinstance(value, Metric))
"""In the order in which they stand here."""


class Metrics:
    """The values of one process. A metric is exposed once it has a value.

    metrics = Metrics()
    metrics.add(WRITTEN_PACKETS, 12)
    metrics.add(DROPPED_PACKETS, 0, "kernel")       # known, and 0
    metrics.set(RING_SEGMENTS, 3)
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[Metric, dict[tuple[str, ...], float]] = {}
        self._refreshers: list[Callable[[], None]] = []
        self.set(PROCESS_START, _started())

    def add(self, counter: Metric, amount: float = 1, *labels: str) -> None:
        """Labels as the metric has them, in its order."""
        self._check(counter, COUNTER, labels)
        if amount < 0:
            raise ValueError(f"{counter.name} only grows: {amount}")
        with self._lock:
            values = self._values.setdefault(counter, {})
            values[labels] = values.get(labels, 0) + amount

    def set(self, metric: Metric, value: float | None, *labels: str) -> None:
        """None: it has no value now, and is not exposed. A counter may be set to a total that somebody else counts."""
        self._check(metric, metric.kind, labels)
        with self._lock:
            if value is None:
                self._values.get(metric, {}).pop(labels, None)
            else:
                self._values.setdefault(metric, {})[labels] = value

    def on_read(self, refresh: Callable[[], None]) -> None:
        """Calls it, in the reading thread, before the values are read: for what would be wasteful to keep up to date.

        It must be quick. If it raises OSError, the values stay what they were.
        """
        self._refreshers.append(refresh)

    def get(self, metric: Metric, *labels: str) -> float | None:
        """None: no value."""
        with self._lock:
            return self._values.get(metric, {}).get(labels)

    def exposition(self) -> str:
        """All that have a value, as Prometheus reads them."""
        for refresh in (self._refresh_process, *self._refreshers):
            try:
                refresh()
            except OSError:
                continue
        with self._lock:
            values = {metric: dict(series) for metric, series in self._values.items()}
        return "".join(_family(metric, values[metric]) for metric in ALL if values.get(metric))

    def _refresh_process(self) -> None:
        times = os.times()
        self.set(PROCESS_CPU, times.user + times.system)
        self.set(PROCESS_MEMORY, int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE"))
        self.set(PROCESS_FILES, len(os.listdir("/proc/self/fd")) - 1)  # one of them lists the others

    @staticmethod
    def _check(metric: Metric, kind: str, labels: tuple[str, ...]) -> None:
        if metric.kind != kind or len(labels) != len(metric.labels):
            raise ValueError(f"{metric.name} is a {metric.kind} with the labels {', '.join(metric.labels) or 'none'}")


def _family(metric: Metric, series: dict[tuple[str, ...], float]) -> str:
    lines = [f"# HELP {metric.name} {_escape(metric.help, quotes=False)}", f"# TYPE {metric.name} {metric.kind}"]
    for labels, value in sorted(series.items()):
        pairs = ",".join(
            f'{name}="{_escape(label, quotes=True)}"' for name, label in zip(metric.labels, labels, strict=True)
        )
        lines.append(f"{metric.name}{f'{{{pairs}}}' if pairs else ''} {_number(value)}")
    return "\n".join(lines) + "\n"


def _escape(text: str, quotes: bool) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text


def _number(value: float) -> str:
    """Go's ParseFloat reads Python's inf and nan too, but in this spelling every parser does."""
    if isinstance(value, int):
        return str(int(value))  # True is 1
    if value != value or value in (float("inf"), float("-inf")):
        return {"nan": "NaN", "inf": "+Inf", "-inf": "-Inf"}[repr(value)]
    return repr(value)


def _started() -> float:
    """When this process began: boot time, and its start since then in clock ticks."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        booted = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
    except (OSError, StopIteration):
        return time.time()
    return int(booted.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")
