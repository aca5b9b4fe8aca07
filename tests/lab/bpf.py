"""Small programs that the kernel runs at its tracepoints: each copies some bytes out of it, with the time.

They live as long as their file descriptors, so that a crash leaves nothing behind. Written out as instructions, since
a compiler for a dozen of them would be the largest thing that the lab needs. Now and then one is not run though
the tracepoint was passed, for a reason not known, and no counter of misses says so: on Linux 6.18, 46 of 6,218 times
as raw tracepoints, more rarely on perf events as here. Who needs all events has to compare with another count.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import re
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_BPF: Final = {"x86_64": 321, "aarch64": 280}
_PERF_EVENT_OPEN: Final = {"x86_64": 298, "aarch64": 241}
"""Numbers of system calls."""
_MAP_CREATE, _PROG_LOAD, _OBJ_GET_INFO_BY_FD = 0, 5, 15
_INFORMATION_SIZE, _RECURSION_MISSES = 216, 208
"""Of struct bpf_prog_info."""
_MAP_TYPE_RINGBUF, _PROG_TYPE_TRACEPOINT = 27, 5
_PERF_TYPE_TRACEPOINT, _PERF_ATTRIBUTES_SIZE = 2, 112
_PERF_SET_BPF, _PERF_ENABLE = 0x40042408, 0x2400
TRACEFS: Final = Path("/sys/kernel/tracing")
_FIELD: Final = re.compile(r"field:.*?(\w+)(?:\[\d+\])?;\s*offset:(\d+);\s*size:(\d+);")
_PROBE_READ_KERNEL, _RINGBUF_OUTPUT, _KTIME_GET_TAI_NS = 113, 130, 208
_FRAME_POINTER: Final = 10
_LICENSE: Final = b"Dual BSD/GPL\0"
"""The kernel lends its reading functions to such programs only."""
_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Read:
    """`size` bytes behind the pointer that is a field of the event, or the field itself, 4 bytes, where size is 0."""

    field: str
    offset: int = 0
    size: int = 0
    through: tuple[int, ...] = ()
    """Offsets of pointers to follow first."""

    @property
    def length(self) -> int:
        return self.size or 4


def tracer(reads: Sequence[Read], fields: Mapping[str, int], ring: int) -> bytes:
    """The program: 8 bytes of time (CLOCK_TAI), then what is read, one behind the other, into the ring buffer.

    `fields`: where the event has them.
    """
    length = 8 + sum(read.length for read in reads)
    record = -(length + 7) // 8 * 8
    pointer = record - 8
    code = [
        _move(6, 1),
        *_call(_KTIME_GET_TAI_NS),
        _store(_FRAME_POINTER, record, 0),
    ]
    at = record + 8
    for read in reads:
        if read.size:
            code += [_load(7, 6, fields[read.field])]
            for offset in read.through:
                code += [*_copy(pointer, 8, offset), _load(7, _FRAME_POINTER, pointer)]
            code += _copy(at, read.size, read.offset)
        else:
            code += [_load_half(1, 6, fields[read.field]), *_store_bytes(at, 1, read.length)]
        at += read.length
    code += [
        _instruction(0x18, 1, 1, 0, ring),  # r1 = the map; takes two instructions
        _instruction(0, 0, 0, 0, 0),
        _move(2, _FRAME_POINTER),
        _add(2, record),
        _set(3, length),
        _set(4, 0),
        *_call(_RINGBUF_OUTPUT),
        _set(0, 0),
        _instruction(0x95, 0, 0, 0, 0),
    ]
    return b"".join(code)


def _instruction(code: int, to: int, source: int, offset: int, value: int) -> bytes:
    return struct.pack("<BBhi", code, source << 4 | to, offset, value)


def _move(to: int, source: int) -> bytes:
    return _instruction(0xBF, to, source, 0, 0)


def _set(to: int, value: int) -> bytes:
    return _instruction(0xB7, to, 0, 0, value)


def _add(to: int, value: int) -> bytes:
    return _instruction(0x07, to, 0, 0, value)


def _load(to: int, source: int, offset: int) -> bytes:
    return _instruction(0x79, to, source, offset, 0)


def _load_half(to: int, source: int, offset: int) -> bytes:
    return _instruction(0x61, to, source, offset, 0)


def _store(to: int, offset: int, source: int) -> bytes:
    return _instruction(0x7B, to, source, offset, 0)


def _store_bytes(at: int, source: int, count: int) -> list[bytes]:
    """One by one: the place may not be aligned."""
    shift = _instruction(0x77, source, 0, 0, 8)
    return [each for k in range(count) for each in (_instruction(0x73, _FRAME_POINTER, source, at + k, 0), shift)]


def _call(function: int) -> list[bytes]:
    return [_instruction(0x85, 0, 0, 0, function)]


def _copy(at: int, size: int, offset: int) -> list[bytes]:
    """From r7 + offset into the stack."""
    return [
        _move(1, _FRAME_POINTER),
        _add(1, at),
        _set(2, size),
        _move(3, 7),
        _add(3, offset),
        *_call(_PROBE_READ_KERNEL),
    ]


class IncompleteTruthError(RuntimeError):
    """The kernel did not tell all that happened."""


class RingBuffer:
    """What programs have written, in order; Documentation/bpf/ringbuf.rst."""

    def __init__(self, size: int) -> None:
        self.descriptor = _bpf(_MAP_CREATE, struct.pack("<IIII", _MAP_TYPE_RINGBUF, 0, 0, size))
        self._size = size
        page = mmap.PAGESIZE
        self._consumer = mmap.mmap(self.descriptor, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._producer = mmap.mmap(self.descriptor, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)

    def drain(self, largest: int) -> Iterator[bytes]:
        """What came since the last time. Raises RuntimeError where a record of the largest size may not have fitted."""
        page = mmap.PAGESIZE
        (at,) = struct.unpack_from("Q", self._consumer)
        (end,) = struct.unpack_from("Q", self._producer)
        if end - at > self._size - (largest + 16):
            raise RuntimeError("the ring buffer is full: events were lost")
        while at < end:
            (header,) = struct.unpack_from("<I", self._producer, page + at % self._size)
            while header >> 31:  # being written on another processor
                time.sleep(0)
                (header,) = struct.unpack_from("<I", self._producer, page + at % self._size)
            length = header & 0x3FFFFFFF
            begin = page + at % self._size + 8
            yield self._producer[begin : begin + length]
            at += (8 + length + 7) // 8 * 8
            struct.pack_into("Q", self._consumer, 0, at)

    def close(self) -> None:
        self._consumer.close()
        self._producer.close()
        os.close(self.descriptor)


class Tracer:
    """Runs at an event of tracefs, such as tcp/tcp_retransmit_skb, until it is closed."""

    def __init__(self, event: str, reads: Sequence[Read], ring: RingBuffer) -> None:
        folder = _tracefs() / "events" / event
        fields = {name: int(offset) for name, offset, _ in _FIELD.findall((folder / "format").read_text())}
        self._program = _load_program(tracer(reads, fields, ring.descriptor))
        self._event = _open_event(int((folder / "id").read_text()))
        fcntl.ioctl(self._event, _PERF_SET_BPF, self._program)
        fcntl.ioctl(self._event, _PERF_ENABLE, 0)

    def close(self) -> None:
        """Raises IncompleteTruthError if it was not run each time: a processor runs one such program at a time."""
        os.close(self._event)
        information = ctypes.create_string_buffer(_INFORMATION_SIZE)
        request = struct.pack("<IIQ", self._program, len(information), ctypes.addressof(information))
        try:
            _bpf(_OBJ_GET_INFO_BY_FD, request)
        finally:
            os.close(self._program)
        (missed,) = struct.unpack_from("<Q", information, _RECURSION_MISSES)
        if missed:
            raise IncompleteTruthError(f"{missed} events were missed")


def _tracefs() -> Path:
    if not (TRACEFS / "events").exists():
        subprocess.run(["mount", "-t", "tracefs", "tracefs", str(TRACEFS)], check=True)
    return TRACEFS


def _load_program(code: bytes) -> int:
    log = ctypes.create_string_buffer(1 << 16)
    texts = (ctypes.create_string_buffer(code), ctypes.create_string_buffer(_LICENSE))
    instructions, license_text = (ctypes.addressof(text) for text in texts)
    verifier = (1, len(log), ctypes.addressof(log))
    load = struct.pack("<IIQQIIQ", _PROG_TYPE_TRACEPOINT, len(code) // 8, instructions, license_text, *verifier)
    try:
        return _bpf(_PROG_LOAD, load)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}: {log.value.decode()}") from None


def _open_event(number: int) -> int:
    """Programs on it run wherever it happens, though a perf event is on one processor."""
    attributes = struct.pack("<IIQQ", _PERF_TYPE_TRACEPOINT, _PERF_ATTRIBUTES_SIZE, number, 1)
    given = ctypes.create_string_buffer(attributes, _PERF_ATTRIBUTES_SIZE)
    return _system_call(_PERF_EVENT_OPEN, given, -1, 0, -1, 0)


def _bpf(command: int, attributes: bytes) -> int:
    given = ctypes.create_string_buffer(attributes, 128)
    return _system_call(_BPF, command, given, len(given))


def _system_call(numbers: Mapping[str, int], *arguments: object) -> int:
    done = int(_libc.syscall(numbers[platform.machine()], *arguments))
    if done < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return done
