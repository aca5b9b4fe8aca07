"""Large pieces of a file past the page cache (O_DIRECT), as long as the disk is quick.

Through the page cache a piece is copied, waits for a flush, and has its pages taken away again: more work than all else
that the disk needs. But whoever writes past it waits for the disk. So that is done only while the wait is short: a slow
disk gets what the page cache can hold for it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from typing import Final

BLOCK_BYTES: Final = 4096
"""Offsets, sizes and memory must be multiples of it."""
LEAST_BYTES: Final = 1024 * 1024
"""Smaller pieces cost less through the page cache."""
MOST_WAIT_S: Final = 0.05
AGAIN_S: Final = 30.0
"""After a write that took longer than that, so long none is tried."""


class DirectWriting:
    """Whether and how, for all files of one disk after each other. Not for use by several threads."""

    def __init__(self) -> None:
        self._not_before_s = 0.0

    def write(self, fd: int, data: memoryview, offset: int) -> int:
        """The whole blocks of `data`, or less, or nothing of it. Returns how many bytes.

        OSError where the disk refuses them; none where the file system can't do it.
        """
        began_s = time.monotonic()
        size = len(data) - len(data) % BLOCK_BYTES
        if size < LEAST_BYTES or offset % BLOCK_BYTES or began_s < self._not_before_s:
            return 0
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        try:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
            count = os.pwrite(fd, data[:size], offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._not_before_s = began_s + AGAIN_S
            return 0
        finally:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags)
        ended_s = time.monotonic()
        if ended_s - began_s > MOST_WAIT_S:
            self._not_before_s = ended_s + AGAIN_S
        return count
