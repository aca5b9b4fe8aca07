"""Frames into an interface at a steady rate, as a process of its own: `python benchmarks/traffic.py IFACE COUNT RATE`.

TCP with timestamps, most packets small. They leave in batches (sendmmsg), each when it is due; it prints how many left.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
import time

BATCH = 64
SIZES = (66, 66, 66, 66, 130, 130, 514, 1514)
"""Of TCP frames: 320 bytes on average, about as captures of real nodes."""
FLOWS = 256


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("vectors", ctypes.POINTER(_Vector)),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("sent", ctypes.c_uint),
    )


def frames() -> list[bytes]:
    """One of each flow and size."""
    made = []
    for flow in range(FLOWS):
        for size in SIZES:
            tcp = struct.pack(
                "!HHIIBBHHH12s", 30000 + flow, 8080, flow, 1, 0x80, 0x10, 512, 0, 0, b"\1\1\x08\x0a" + bytes(8)
            )
            made.append(_frame(flow, 6, tcp + bytes(size - 66)))
    return made


def _frame(flow: int, protocol: int, payload: bytes) -> bytes:
    ip = struct.pack(
        "!BBHHHBBH4s4s",
        0x45,
        0,
        20 + len(payload),
        flow,
        0,
        64,
        protocol,
        0,
        bytes((10, 0, 0, 1)),
        bytes((10, 0, 1, flow)),
    )
    return bytes.fromhex("0200000000020200000000010800") + ip + payload


def send(interface: str, count: int, rate: float, made: list[bytes] | None = None) -> int:
    """So many frames, `rate` a second; 0: as fast as it goes. Returns how many the kernel took."""
    library = ctypes.CDLL(None, use_errno=True)
    made = made or frames()
    buffers = [ctypes.create_string_buffer(frame, len(frame)) for frame in made]
    vectors = (_Vector * len(made))(*(_Vector(ctypes.addressof(each), len(each)) for each in buffers))
    messages = (_Message * (len(made) + BATCH))()
    for index, message in enumerate(messages):
        message.vectors = ctypes.pointer(vectors[index % len(made)])
        message.vector_count = 1
    sent = 0
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
        out.bind((interface, 0))
        begin = time.perf_counter()
        while sent < count:
            if rate and (ahead := sent / rate - (time.perf_counter() - begin)) > 0:
                time.sleep(ahead)
            first = ctypes.byref(messages, sent % len(made) * ctypes.sizeof(_Message))
            done = library.sendmmsg(out.fileno(), first, min(BATCH, count - sent), 0)
            if done < 0:
                raise OSError(ctypes.get_errno(), "sendmmsg")
            sent += done
    return sent


if __name__ == "__main__":
    print(send(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
