"""zstd in the background: one thread of low priority compresses sealed segments, when nothing else wants the processor.

The manifest is not touched: its hashes are over the uncompressed data.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Final

_LEVEL: Final = 3
_PIECE_BYTES: Final = 1 << 20
_LOWEST_PRIORITY: Final = 19


class Compressor:
    """Calls `work` with one stem after the other, in its own thread."""

    def __init__(self, work: Callable[[str], None]) -> None:
        import_module("zstandard")  # so that it is missed now, and not in the thread
        self._work = work
        self._stems: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="compression", daemon=True)
        self._thread.start()

    def add(self, stem: str) -> None:
        self._stems.put(stem)

    def close(self) -> None:
        """Ends after the segment at hand; the next start compresses the others."""
        self._work = lambda stem: None
        self._stems.put(None)
        self._thread.join()

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)  # on Linux: of this thread only
        while (stem := self._stems.get()) is not None:
            self._work(stem)


def compress(source: Path, target: Path, sha256: str) -> bool:
    """Write `source` compressed into `target`, durably. False: it is not what `sha256` says, or would not be smaller.

    Then, and after an OSError, there is no target.
    """
    import zstandard

    digest = hashlib.sha256()
    try:
        with open(source, "rb") as reader, open(target, "wb") as writer:
            size = os.fstat(reader.fileno()).st_size
            compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
            with compressor.stream_writer(writer, size=size, closefd=False) as stream:
                while piece := reader.read(_PIECE_BYTES):
                    digest.update(piece)
                    stream.write(piece)
            writer.flush()
            os.fsync(writer.fileno())
            if digest.hexdigest() == sha256 and writer.tell() < size:
                return True
    except zstandard.ZstdError as error:  # the file grew or shrank meanwhile
        target.unlink(missing_ok=True)
        raise OSError(f"{source}: {error}") from error
    except OSError:
        target.unlink(missing_ok=True)
        raise
    target.unlink(missing_ok=True)
    return False
