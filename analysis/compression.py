"""The uncompressed content of a file: what its compression is, is decided by its first bytes, never by its name."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import lz4.frame
import zstandard

# Small, because it bounds memory: 4 KiB of hostile zstd can become 128 MiB, 4 KiB of anything else much less.
_PIECE_BYTES: Final = 4096
_MAGIC_BYTES: Final = 6
_XZ_MEMORY_BYTES: Final = 256 << 20


@dataclass(frozen=True)
class _Compression:
    name: str
    magics: tuple[bytes, ...]
    decompressor: Callable[[], Any]
    """Makes an object for one gzip member, or one frame: decompress(bytes), eof, unused_data."""


_SKIPPABLE_FRAMES: Final = tuple(bytes([low, 0x2A, 0x4D, 0x18]) for low in range(0x50, 0x60))
_COMPRESSIONS: Final = (
    _Compression("gzip", (b"\x1f\x8b",), lambda: zlib.decompressobj(16 + zlib.MAX_WBITS)),
    _Compression(
        "zstd", (b"\x28\xb5\x2f\xfd", *_SKIPPABLE_FRAMES), lambda: zstandard.ZstdDecompressor().decompressobj()
    ),
    _Compression("lz4", (b"\x04\x22\x4d\x18",), lz4.frame.LZ4FrameDecompressor),
    _Compression("xz", (b"\xfd7zXZ\x00",), lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY_BYTES)),
)
_ERRORS: Final = (zlib.error, zstandard.ZstdError, lzma.LZMAError, RuntimeError)  # lz4: RuntimeError


class ContentStream:
    """Reads a file's uncompressed content from front to back.

    `compression` is gzip, zstd, lz4, xz or None. `damage` says what was wrong with the compressed data, once
    `readinto` has met it; the content then ends there.
    """

    def __init__(self, source: BinaryIO) -> None:
        """`source` is read from where it is; its `readinto` must fill the buffer unless the file ends."""
        self._source = source
        head = source.read(_MAGIC_BYTES)
        self._compression = next((c for c in _COMPRESSIONS if head.startswith(c.magics)), None)
        self.compression = self._compression.name if self._compression else None
        self.damage: str | None = None
        self._compressed = head
        self._decompressor: Any = None
        self._ready = memoryview(b"" if self._compression else head)

    def close(self) -> None:
        """Close the file."""
        self._source.close()

    def peek(self, size: int) -> bytes:
        """The next `size` bytes of content, or what there is of them; the next read gives them again."""
        head = memoryview(bytearray(size))
        head = head[: self.readinto(head)]
        self._ready = memoryview(bytes(head) + self._ready)
        return bytes(head)

    def readinto(self, buffer: memoryview) -> int:
        """Fill `buffer` with content; returns fewer bytes than it holds only at the end of the content."""
        filled = 0
        while filled < len(buffer):
            if not self._ready:
                if self._compression is None:
                    return filled + self._source.readinto(buffer[filled:])  # type: ignore[attr-defined, no-any-return]
                if not self._decompress():
                    break
            part = self._ready[: len(buffer) - filled]
            buffer[filled : filled + len(part)] = part
            self._ready = self._ready[len(part) :]
            filled += len(part)
        return filled

    def _decompress(self) -> bool:
        """Decompress one more piece into `_ready`, perhaps to nothing; False at the end."""
        if self.damage:
            return False
        piece = self._compressed or self._source.read(_PIECE_BYTES)
        self._compressed = b""
        if not piece:
            if self._decompressor:
                self.damage = f"the {self.compression} data is cut short"
            return False
        self._ready = memoryview(self._decompress_piece(piece))
        return True

    def _decompress_piece(self, piece: bytes) -> bytes:
        assert self._compression is not None
        if self._decompressor is None:  # between members or frames
            piece = piece.lstrip(b"\0")  # padding, as gzip and xz allow
            if not piece:
                return b""
            if len(piece) < _MAGIC_BYTES:
                piece += self._source.read(_MAGIC_BYTES - len(piece))
            if not piece.startswith(self._compression.magics):
                self.damage = f"something else follows the {self.compression} data"
                return b""
            self._decompressor = self._compression.decompressor()
        before = self._decompressor.copy() if self.compression == "gzip" else None
        try:
            content: bytes = self._decompressor.decompress(piece)
        except _ERRORS as error:
            self.damage = f"the {self.compression} data is damaged: {error}"
            return _until_damage(before, piece) if before else b""
        if self._decompressor.eof:
            self._compressed = self._decompressor.unused_data or b""
            self._decompressor = None
        return content


def _until_damage(decompressor: Any, piece: bytes) -> bytes:
    """What `piece` holds before its damage, which makes zlib withhold all that it made of it (others can't go back)."""
    content = b""
    for at in range(len(piece)):
        try:
            content += decompressor.decompress(piece[at : at + 1])
        except _ERRORS:
            break
    return content
