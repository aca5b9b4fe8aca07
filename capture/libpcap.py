"""libpcap and the packet socket beneath it, through ctypes: nothing else touches either.

Packets go from the kernel's ring to a file inside C: `pcap_dispatch` calls libpcap's own `pcap_dump`, no line of Python
runs for a packet. Structures and constants are those of pcap/pcap.h, pcap/bpf.h and linux/filter.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import socket
import weakref
from collections.abc import Callable, Sequence
from ctypes import (
    POINTER,
    byref,
    c_char_p,
    c_int,
    c_int64,
    c_long,
    c_size_t,
    c_ssize_t,
    c_ubyte,
    c_uint,
    c_uint32,
    c_ushort,
    c_void_p,
)
from typing import Any, Final, NamedTuple

LINUX_SLL2: Final = 276
ETHERNET: Final = 1
MOST_SNAPLEN: Final = 262_144
FILE_HEADER_BYTES: Final = 24
RECORD_HEADER_BYTES: Final = 16

_NAMES: Final = ("libpcap.so.1", "libpcap.so.0.8", "libpcap.so")
_ERROR_BUFFER_BYTES: Final = 256
_NANOSECONDS: Final = 1
_OPTIMIZED: Final = 1
_NETMASK_UNKNOWN: Final = 0xFFFFFFFF
_NO_SUCH_DEVICE, _PERMISSION_DENIED, _IFACE_NOT_UP = -5, -8, -9
_FULLY_BUFFERED: Final = 0
_BY_CALLER: Final = 2
_SO_ATTACH_FILTER: Final = 26


class Error(Exception):
    """What libpcap says went wrong, in its words."""


class NoDeviceError(Error):
    """There is no such interface, or it went away."""


class Instruction(NamedTuple):
    """One of classic BPF: operation, two jump offsets, constant."""

    code: int
    jt: int
    jf: int
    k: int


class Stats(NamedTuple):
    """Since the handle was opened; all three wrap at 2**32."""

    received: int
    """Accepted by the socket's filter: with those that were dropped, and those that still wait in the ring."""
    dropped: int
    """Accepted, but the ring was full."""
    interface_dropped: int
    """By the interface, before any socket saw them; always 0 of `any`."""


class _Instruction(ctypes.Structure):
    _fields_ = (("code", c_ushort), ("jt", c_ubyte), ("jf", c_ubyte), ("k", c_uint32))


class _Program(ctypes.Structure):
    """Both struct bpf_program (libpcap) and struct sock_fprog (kernel): their first field differs in size only."""

    _fields_ = (("length", c_uint), ("instructions", POINTER(_Instruction)))


class _KernelProgram(ctypes.Structure):
    _fields_ = (("length", c_ushort), ("instructions", POINTER(_Instruction)))


class _Stats(ctypes.Structure):
    _fields_ = (("received", c_uint), ("dropped", c_uint), ("interface_dropped", c_uint))


class _TimeValue(ctypes.Structure):
    _fields_ = (("seconds", c_long), ("fraction", c_long))


class _PacketHeader(ctypes.Structure):
    _fields_ = (("time", _TimeValue), ("captured", c_uint32), ("length", c_uint32))


_WRITE: Final = ctypes.CFUNCTYPE(c_ssize_t, c_void_p, c_void_p, c_size_t)
_SEEK: Final = ctypes.CFUNCTYPE(c_int, c_void_p, POINTER(c_int64), c_int)


class _Stream(ctypes.Structure):
    """cookie_io_functions_t of stdio.h."""

    _fields_ = (("read", c_void_p), ("write", _WRITE), ("seek", _SEEK), ("close", c_void_p))


_PACKET_HANDLER: Final = ctypes.CFUNCTYPE(None, c_void_p, POINTER(_PacketHeader), c_void_p)


class _Library:
    """Both libraries with the types of what is called in them; loaded when the first handle is made."""

    def __init__(self) -> None:
        self.pcap = _load()
        self.c = ctypes.CDLL(None, use_errno=True)
        for function, result, arguments in (
            ("pcap_create", c_void_p, [c_char_p, c_char_p]),
            ("pcap_open_dead_with_tstamp_precision", c_void_p, [c_int, c_int, c_uint]),
            ("pcap_set_snaplen", c_int, [c_void_p, c_int]),
            ("pcap_set_timeout", c_int, [c_void_p, c_int]),
            ("pcap_set_buffer_size", c_int, [c_void_p, c_int]),
            ("pcap_set_tstamp_precision", c_int, [c_void_p, c_int]),
            ("pcap_set_datalink", c_int, [c_void_p, c_int]),
            ("pcap_activate", c_int, [c_void_p]),
            ("pcap_setnonblock", c_int, [c_void_p, c_int, c_char_p]),
            ("pcap_datalink", c_int, [c_void_p]),
            ("pcap_fileno", c_int, [c_void_p]),
            ("pcap_dispatch", c_int, [c_void_p, c_int, c_void_p, c_void_p]),
            ("pcap_stats", c_int, [c_void_p, POINTER(_Stats)]),
            ("pcap_compile", c_int, [c_void_p, POINTER(_Program), c_char_p, c_int, c_uint32]),
            ("pcap_freecode", None, [POINTER(_Program)]),
            ("pcap_geterr", c_char_p, [c_void_p]),
            ("pcap_statustostr", c_char_p, [c_int]),
            ("pcap_close", None, [c_void_p]),
            ("pcap_dump", None, [c_void_p, POINTER(_PacketHeader), c_void_p]),
            ("pcap_dump_fopen", c_void_p, [c_void_p, c_void_p]),
            ("pcap_dump_ftell64", ctypes.c_int64, [c_void_p]),
            ("pcap_dump_close", None, [c_void_p]),
            ("pcap_lib_version", c_char_p, []),
        ):
            _declare(self.pcap, function, result, arguments)
        for function, result, arguments in (
            ("fopencookie", c_void_p, [c_void_p, c_char_p, _Stream]),
            ("fclose", c_int, [c_void_p]),
            ("fflush", c_int, [c_void_p]),
            ("fwrite", c_int, [c_char_p, c_size_t, c_size_t, c_void_p]),
            ("clearerr", None, [c_void_p]),
            ("setvbuf", c_int, [c_void_p, c_void_p, c_int, c_size_t]),
            ("__fpurge", None, [c_void_p]),
            ("__fsetlocking", c_int, [c_void_p, c_int]),
            ("setsockopt", c_int, [c_int, c_int, c_int, c_void_p, c_uint]),
        ):
            _declare(self.c, function, result, arguments)
        self.dump = ctypes.cast(self.pcap.pcap_dump, c_void_p)
        # Python would take these for names that belong to the class which calls them.
        self.purge = getattr(self.c, "__fpurge")
        self.set_locking = getattr(self.c, "__fsetlocking")


_library: _Library | None = None


def _loaded() -> _Library:
    global _library
    if _library is None:
        _library = _Library()
    return _library


def _load() -> ctypes.CDLL:
    for name in _NAMES:
        try:
            return ctypes.CDLL(name, use_errno=True)
        except OSError:
            continue
    raise Error("libpcap is not installed: install the package libpcap0.8 (Debian, Ubuntu) or libpcap")


def _declare(library: ctypes.CDLL, name: str, result: Any, arguments: list[Any]) -> None:
    try:
        function = getattr(library, name)
    except AttributeError:
        raise Error(f"this libpcap has no {name}: podtap needs version 1.10 or newer") from None
    function.restype, function.argtypes = result, arguments


def version() -> str:
    """As libpcap says it."""
    words: bytes = _loaded().pcap.pcap_lib_version()
    return words.decode(errors="replace")


class Handle:
    """Packets of one interface, or of all (`any`, link type SLL2), with times in nanoseconds; never blocks.

    Made by live() or dead(). Not for use by several threads.
    """

    def __init__(self, pointer: int) -> None:
        self._pointer: int | None = pointer
        self._library = _loaded()

    @classmethod
    def live(cls, device: str, snaplen: int, ring_bytes: int, retire_ms: int) -> Handle:
        """A socket that receives at once, unfiltered.

        `retire_ms`: after so long the kernel hands over what it has, be it little. NoDeviceError, Error;
        PermissionError without CAP_NET_RAW.
        """
        library = _loaded()
        text = ctypes.create_string_buffer(_ERROR_BUFFER_BYTES)
        pointer = library.pcap.pcap_create(device.encode(), text)
        if not pointer:
            raise Error(text.value.decode(errors="replace"))
        handle = cls(pointer)
        try:
            library.pcap.pcap_set_snaplen(pointer, snaplen)
            library.pcap.pcap_set_timeout(pointer, retire_ms)
            library.pcap.pcap_set_buffer_size(pointer, ring_bytes)
            library.pcap.pcap_set_tstamp_precision(pointer, _NANOSECONDS)
            if (status := library.pcap.pcap_activate(pointer)) < 0:
                raise handle._error(status, device)
            if device == "any" and library.pcap.pcap_set_datalink(pointer, LINUX_SLL2) < 0:
                raise handle._error(-1, device)
            if library.pcap.pcap_setnonblock(pointer, 1, text) < 0:
                raise Error(text.value.decode(errors="replace"))
        except BaseException:
            handle.close()
            raise
        return handle

    @classmethod
    def dead(cls, link_type: int, snaplen: int = MOST_SNAPLEN) -> Handle:
        """No socket: for compile() and for Dumper."""
        return cls(_loaded().pcap.pcap_open_dead_with_tstamp_precision(link_type, snaplen, _NANOSECONDS))

    @property
    def link_type(self) -> int:
        return int(self._library.pcap.pcap_datalink(self._pointer))

    def fileno(self) -> int:
        """Of the socket: readable when dispatch() has something to do."""
        return int(self._library.pcap.pcap_fileno(self._pointer))

    def dispatch(self, most: int, dumper: Dumper) -> int:
        """At most so many packets from the ring into the dumper's buffer; returns how many. NoDeviceError, Error."""
        count: int = self._library.pcap.pcap_dispatch(self._pointer, most, self._library.dump, dumper.pointer)
        if count < 0:
            raise self._error(count, "")
        return count

    def dispatch_some(self, most: int, dumper: Dumper, keep: Callable[[bytes], bool]) -> tuple[int, int]:
        """The same through Python, for a few: keep(frame) decides. Returns how many were read, and kept."""
        kept = 0
        dump = self._library.pcap.pcap_dump

        def handler(_: object, header: Any, data: int) -> None:
            nonlocal kept
            if keep(ctypes.string_at(data, header.contents.captured)):
                dump(dumper.pointer, header, data)
                kept += 1

        callback = _PACKET_HANDLER(handler)
        count: int = self._library.pcap.pcap_dispatch(self._pointer, most, ctypes.cast(callback, c_void_p), None)
        if count < 0:
            raise self._error(count, "")
        return count, kept

    def stats(self) -> Stats:
        """Counters of the socket. Error where the system has none any more."""
        stats = _Stats()
        if self._library.pcap.pcap_stats(self._pointer, byref(stats)) < 0:
            raise self._error(-1, "")
        return Stats(stats.received, stats.dropped, stats.interface_dropped)

    def compile(self, text: str) -> list[Instruction]:
        """A filter's program for this handle's link type. Error with libpcap's words where it is none."""
        program = _Program()
        if self._library.pcap.pcap_compile(self._pointer, byref(program), text.encode(), _OPTIMIZED, _NETMASK_UNKNOWN):
            raise self._error(-1, "")
        try:
            return [Instruction(each.code, each.jt, each.jf, each.k) for each in program.instructions[: program.length]]
        finally:
            self._library.pcap.pcap_freecode(byref(program))

    def attach(self, program: Sequence[Instruction]) -> None:
        """Let the kernel filter with this from the next packet on: in one step, no packet is missed. OSError.

        pcap_setfilter() does not do: it empties the ring without a word.
        """
        instructions = (_Instruction * len(program))(*(_Instruction(*each) for each in program))
        wanted = _KernelProgram(len(program), instructions)
        size = ctypes.sizeof(wanted)
        if self._library.c.setsockopt(self.fileno(), socket.SOL_SOCKET, _SO_ATTACH_FILTER, byref(wanted), size):
            error = ctypes.get_errno()
            hint = "; net.core.optmem_max limits it" if error == errno.ENOMEM else ""
            raise OSError(error, f"no filter of {len(program)} instructions: {os.strerror(error)}{hint}")

    def close(self) -> None:
        """Give the socket and its ring back. May be called again."""
        if self._pointer is not None:
            self._library.pcap.pcap_close(self._pointer)
            self._pointer = None

    def _error(self, status: int, device: str) -> Exception:
        words = self._library.pcap.pcap_geterr(self._pointer).decode(errors="replace")
        words = words or self._library.pcap.pcap_statustostr(status).decode(errors="replace")
        if status == _PERMISSION_DENIED:
            return PermissionError(errno.EPERM, words)
        if status in (_NO_SUCH_DEVICE, _IFACE_NOT_UP) or "went away" in words or "disappeared" in words:
            return NoDeviceError(f"{device}: {words}" if device else words)
        return Error(words)


class Dumper:
    """Makes a pcap file's bytes of packets, through a buffer of `buffer_bytes`; `sink` takes them, in pieces.

    The sink is called amid dispatch(), with a full buffer, and in flush(); the buffer begins at a page of memory. After
    it raised, nothing more is given to it until rewind(). The file's header comes with the first flush.
    """

    def __init__(self, handle: Handle, sink: Callable[[memoryview], object], buffer_bytes: int) -> None:
        self._library = _loaded()
        self._sink = sink
        self._given = 0
        self._failure: BaseException | None = None
        self._stream: _Stream | None = _Stream(None, _WRITE(self._write), _SEEK(self._seek), None)
        self._file = self._library.c.fopencookie(None, b"wb", self._stream)
        if not self._file:
            raise OSError(errno.ENOMEM, "no stream")
        # glibc takes no size without a buffer. Mapped memory begins at a page; to hand large ones to the disk is cheap.
        memory = mmap.mmap(-1, buffer_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
        self._buffer = memoryview(memory)
        self._buffer_begin = ctypes.addressof(c_ubyte.from_buffer(self._buffer))
        self._library.c.setvbuf(self._file, self._buffer_begin, _FULLY_BUFFERED, buffer_bytes)
        self._library.set_locking(self._file, _BY_CALLER)
        self.pointer: int | None = self._library.pcap.pcap_dump_fopen(handle._pointer, self._file)
        if not self.pointer:
            error = handle._error(-1, "")
            self._library.c.fclose(self._file)
            raise error
        # When the process ends, C flushes its streams, and Python is no longer there to be called.
        self._end = weakref.finalize(self, _end_stream, self._library, self._file, self.pointer)

    def tell(self) -> int:
        """Where the next packet will be, with what is buffered. Not to be relied on after an error."""
        return int(self._library.pcap.pcap_dump_ftell64(self.pointer))

    def flush(self) -> None:
        """Give what is buffered to the sink. Raises what it raised, now or since the last flush."""
        self._library.c.fflush(self._file)
        if self._failure:
            raise self._failure

    @property
    def has_failed(self) -> bool:
        """Whether the sink raised."""
        return self._failure is not None

    def rewind(self, offset: int, head: bytes = b"") -> None:
        """Forget what is buffered and what failed; begin the buffer anew with `head`, which stands at `offset`."""
        self._library.purge(self._file)
        self._library.c.clearerr(self._file)
        self._given = offset
        self._failure = None
        self._library.c.fwrite(head, 1, len(head), self._file)

    def close(self) -> None:
        """Give up what is not flushed, and the buffer's memory. May be called again."""
        self._end()
        self.pointer = None
        self._stream = None  # which refers to this object: else its memory would wait for the garbage collector

    def _write(self, _: object, data: int, size: int) -> int:
        """For C, which can't be raised through."""
        if self._failure:
            return 0
        try:
            self._sink(self._bytes_at(data, size))
        except BaseException as error:
            self._failure = error
            return 0
        self._given += size
        return size

    def _bytes_at(self, data: int, size: int) -> memoryview:
        begin = data - self._buffer_begin
        if 0 <= begin <= len(self._buffer) - size:
            return self._buffer[begin : begin + size]
        # A packet that the buffer has no room for. An array of each size is a type of its own, and slow to make.
        return memoryview((c_ubyte * size).from_address(data)).cast("B")

    def _seek(self, _: object, offset: Any, whence: int) -> int:
        """Only where it is, which ftell asks for."""
        if offset[0] or whence != os.SEEK_CUR:
            return -1
        offset[0] = self._given
        return 0


def _end_stream(library: _Library, file: int, pointer: int) -> None:
    library.purge(file)
    library.pcap.pcap_dump_close(pointer)
