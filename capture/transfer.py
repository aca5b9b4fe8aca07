"""How files of a recording travel from a node to whoever collects them: one stream, that can be taken up again.

    {"path": "cluster/node-a/20261127/...-000007.pcap", "offset": 0}        a header, one line of JSON
    4 bytes: length, big-endian; so many bytes                              pieces of the file, from the offset
    ...
    4 bytes: 0                                                              its end
    {"size_bytes": ..., "sha256": ..., "manifest": ..., "chain": ...}       a trailer, one line of JSON
    ...                                                                     more files
    {"end": true, ...}                                                      the stream is whole

Size and hash are of the whole file, also where only its end was sent. A segment's manifest comes after its packets,
since a manifest is what says that they are there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from capture.contract import from_json
from capture.errors import PodtapError

PIECE_BYTES: Final = 256 << 10
_LONGEST_LINE: Final = 64 << 20
_LONGEST_PIECE: Final = 16 << 20


class TransferError(PodtapError):
    """The stream is not as it should be: it was cut off, or is no stream of this kind."""


@dataclass
class Header:
    """What comes before a file's bytes."""

    path: str
    """Relative to the root, with slashes."""
    offset: int = 0


@dataclass
class Trailer:
    """What comes after them."""

    size_bytes: int
    sha256: str
    manifest: str | None = None
    """Of a segment: what belongs into the file beside it. None where it turned out that it can't be sent."""
    chain: str | None = None
    """Where a part was cut out: the manifest of the whole segment."""


@dataclass
class End:
    """What the sender has to say at last."""

    end: bool = True
    vanished: list[str] = field(default_factory=list)
    """Segments that were evicted before it was their turn."""
    damaged: list[str] = field(default_factory=list)
    """Segments that are not what their manifest says: what could be read of them was sent."""
    now_ns: int = 0
    """The sender's clock."""
    versions: dict[str, str] = field(default_factory=dict)


def send_file(header: Header, pieces: Iterable[bytes], finish: Callable[[Trailer], None]) -> Iterator[bytes]:
    """One file of the stream; `pieces` are all of its bytes, those before the header's offset are hashed only.

    `finish` may add to the trailer, which knows the size and the hash.
    """
    yield _line(header)
    digest, size = hashlib.sha256(), 0
    for piece in pieces:
        digest.update(piece)
        skipped = min(max(header.offset - size, 0), len(piece))
        size += len(piece)
        if rest := piece[skipped:] if skipped else piece:
            yield len(rest).to_bytes(4, "big") + rest
    yield bytes(4)
    trailer = Trailer(size, digest.hexdigest())
    finish(trailer)
    yield _line(trailer)


def send_end(end: End) -> bytes:
    """The last line of the stream."""
    return _line(end)


class Receiver:
    """The stream at its other end. `chunks` are its bytes, cut anywhere."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._buffer = bytearray()

    def header(self) -> Header | End:
        """Of the next file, or what comes last. Take all its pieces() and its trailer() before the next."""
        values = self._json()
        header: Header | End = _parsed(End if "end" in values else Header, values)
        return header

    def pieces(self) -> Iterator[bytes]:
        while length := int.from_bytes(self._read(4), "big"):
            if length > _LONGEST_PIECE:
                raise TransferError("what the node sent is no stream of files")
            yield self._read(length)

    def trailer(self) -> Trailer:
        trailer: Trailer = _parsed(Trailer, self._json())
        return trailer

    def _json(self) -> dict[str, Any]:
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > _LONGEST_LINE:
                raise TransferError("what the node sent is no stream of files")
            self._more()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            values = json.loads(line)
        except ValueError:
            raise TransferError(f"what the node sent is no stream of files: {_shown(line)}") from None
        if not isinstance(values, dict):
            raise TransferError(f"what the node sent is no stream of files: {_shown(line)}")
        return values

    def _read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._more()
        taken = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return taken

    def _more(self) -> None:
        chunk = next(self._chunks, None)
        if chunk is None:
            raise TransferError("the stream ended before it was whole")
        self._buffer += chunk


def _line(value: Header | Trailer | End) -> bytes:
    return json.dumps(asdict(value), separators=(",", ":")).encode() + b"\n"


def _parsed(kind: Any, values: dict[str, Any]) -> Any:
    try:
        return from_json(kind, json.dumps(values).encode())
    except ValueError as error:
        raise TransferError(f"what the node sent is no stream of files: {error}") from None


def _shown(line: bytes) -> str:
    return repr(line[:80].decode(errors="replace"))
