"""One agent at a time writes to a node's folder: a lock on the folder itself, which ends with its process."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from capture.errors import PodtapError


class NodeLock:
    """`hold` makes the folder where it is missing, and tells whether it is another one than before."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._fd: int | None = None

    def hold(self) -> bool:
        """True: this folder was not held until now (at the start; removed and made again; mounted again).

        PodtapError: another agent holds it. OSError: it is not there, and can't be made.
        """
        if self._fd is not None:
            held = os.fstat(self._fd)
            try:
                now = os.stat(self.folder)
            except (FileNotFoundError, NotADirectoryError):
                now = None
            if now and (now.st_dev, now.st_ino) == (held.st_dev, held.st_ino):
                return False
            self.release()
        self.folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise PodtapError(
                f"{self.folder}: another agent records into this folder; end it, or give this one another --node"
            ) from None
        except OSError:
            os.close(fd)
            raise
        self._fd = fd
        return True

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
