"""Classic pcap: the file header, and the records after it as frames (draft-ietf-opsawg-pcap; Wireshark: libpcap.c)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from analysis.framing_kernels import CORRUPT, find_records, scan_records
from analysis.layout import FRAME, NANOSECONDS

FILE_HEADER_BYTES: Final = 24
DEFAULT_MAX_CAPTURED: Final = 262_144  # libpcap's largest snaplen, and Wireshark's limit
_MAX_CAPTURED: Final = 16 << 20
_UNCOMMON_LINK_TYPE_BITS: Final = 0x03FF_0000  # those above are the FCS length

# magic -> nanoseconds per unit of the fraction, bytes of a record header
_MAGICS: Final = {
    0xA1B2C3D4: (1000, 16),
    0xA1B23C4D: (1, 16),
    0xA1B2CD34: (1000, 24),  # Kuznetzov's patched libpcap
}


@dataclass
class Interface:
    """One capture interface of a segment: pcap has exactly one, pcapng any number."""

    name: str | None
    link_type: int
    snaplen: int
    """Most bytes of a packet that were captured; 0 = unlimited."""
    drops_kernel: int | None = None
    drops_interface: int | None = None


class Damages:
    """What made no sense in a file: the first places as (offset, message), and the number of all others."""

    KEPT: Final = 20

    def __init__(self) -> None:
        self.first: list[tuple[int, str]] = []
        self.more = 0

    def add(self, offset: int, message: str) -> None:
        """One more place."""
        if len(self.first) < self.KEPT:
            self.first.append((offset, message))
        else:
            self.more += 1


def with_room(frames: np.ndarray, count: int) -> np.ndarray:
    """These FRAME[n], or new ones if they are fewer: the operating system has to clear new memory each time."""
    return frames if len(frames) >= count else np.empty(count, FRAME)


class PcapFramer:
    """Makes frames of the content of one pcap file, given piece by piece.

    `interfaces` is filled once the header is read. `dropped` is there to be like PcapngFramer's.
    """

    format: Final = "pcap"

    def __init__(self) -> None:
        self.interfaces: list[Interface] = []
        self.damages = Damages()
        self.dropped: int | None = None
        self._big = False
        self._tick_ns = 1
        self._record_header_bytes = 16
        self._max_captured = DEFAULT_MAX_CAPTURED
        self._old_lengths = False
        self._last_s = -1
        self._lost_at: int | None = None
        self._unsupported = False
        self._room = np.empty(0, FRAME)

    @staticmethod
    def recognises(head: bytes) -> bool:
        """Whether a file that starts with `head` (4 bytes) is a pcap."""
        return any(head == struct.pack(order + "I", magic) for magic in _MAGICS for order in "<>")

    def frames(self, data: npt.NDArray[np.uint8], offset: int, final: bool) -> tuple[np.ndarray, int]:
        """Frames of the whole records in `data`, which is the content from `offset` on, and the bytes consumed.

        The next call's data must begin with what was not consumed, and its frames take the place of these. `final`:
        nothing follows this data.
        """
        position = 0
        if not self.interfaces and not self._unsupported:
            if len(data) < FILE_HEADER_BYTES:
                return np.empty(0, FRAME), 0
            self._read_header(data[:FILE_HEADER_BYTES].tobytes())
            position = FILE_HEADER_BYTES
        if self._unsupported:
            return np.empty(0, FRAME), len(data)
        frames = self._room = with_room(self._room, len(data) // self._record_header_bytes + 1)
        count = 0
        layout = self._big, self._tick_ns, self._record_header_bytes, self._max_captured
        while True:
            if self._lost_at is not None:
                found, position = find_records(data, position, *layout, self._last_s, final)
                if not found:
                    break
                self._report_damage(f"skipped {offset + position - self._lost_at:,} bytes to the next packet")
            count, position, stop = scan_records(data, position, offset, *layout, self._old_lengths, frames, count)
            if count:
                self._last_s = int(frames[count - 1]["ts"]) // NANOSECONDS
            if stop != CORRUPT:
                break
            self._lost_at = offset + position
            position += 1
        if final and self._lost_at is not None:
            self._report_damage("nothing readable follows")
            position = len(data)
        return frames[:count], position

    def _report_damage(self, outcome: str) -> None:
        assert self._lost_at is not None
        message = f"a packet longer than {self._max_captured:,} bytes makes no sense; {outcome}"
        self.damages.add(self._lost_at, message)
        self._lost_at = None

    def _read_header(self, header: bytes) -> None:
        order = next(order for order in "<>" if struct.unpack(order + "I", header[:4])[0] in _MAGICS)
        magic, major, minor, _, _, snaplen, link_type = struct.unpack(order + "IHHiIII", header)
        if major != 2:
            self._unsupported = True
            self.damages.add(4, f"pcap version {major}.{minor} is not supported (only 2.x is)")
            return
        if link_type & _UNCOMMON_LINK_TYPE_BITS:
            message = f"reserved bits are set in the link type 0x{link_type:08x}; read as {link_type & 0xFFFF}"
            self.damages.add(20, message)
        self._big = order == ">"
        self._tick_ns, self._record_header_bytes = _MAGICS[magic]
        self._max_captured = max(DEFAULT_MAX_CAPTURED, min(snaplen, _MAX_CAPTURED))
        self._old_lengths = minor < 4
        self.interfaces.append(Interface(None, link_type & 0xFFFF, snaplen))
