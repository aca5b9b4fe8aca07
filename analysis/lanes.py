"""Tasks in lanes: those of one lane are done in order, one at a time, beside those of other lanes.

Each thread takes whatever is ready in any lane. A thread for each lane would be simpler, but such threads hand on to
each other, and sleep and wake so often that processors stand idle while there is work.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

Task: TypeAlias = Callable[[], Any]


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Lanes:
    """So many lanes, and threads for all of them, the caller's among them: where it waits, it does what is to be done.

    Tasks may hand in others, to any lane, but not wait for them.
    """

    def __init__(self, lanes: int, threads: int) -> None:
        self._lanes = [Lane(self) for _ in range(lanes)]
        self._changed = threading.Condition()
        self._is_over = False
        self._error: BaseException | None = None
        self._threads = [threading.Thread(target=self._help) for _ in range(min(threads - 1, lanes))]

    def __enter__(self) -> list[Lane]:
        for thread in self._threads:
            thread.start()
        return self._lanes

    def __exit__(self, *error: object) -> None:
        """What was not waited for may be left undone."""
        self._end()
        for thread in self._threads:
            thread.join()

    def submit(self, lane: Lane, task: Task) -> None:
        with self._changed:
            lane.tasks.append(task)
            self._changed.notify()

    def wait(self, lane: Lane, left: int) -> None:
        self._work([lane, *self._lanes], lambda: len(lane.tasks) + lane.is_busy <= left)
        if self._error:
            raise self._error

    def _help(self) -> None:
        """What comes last is done first, so that it does not pile up."""
        self._work(self._lanes[::-1], lambda: False)

    def _work(self, lanes: Sequence[Lane], is_done: Callable[[], bool]) -> None:
        """Do what is ready, that of the first lane first, until that is so or all is over."""
        while taken := self._take(lanes, is_done):
            lane, task = taken
            try:
                task()
            except BaseException as error:
                self._error = error
                self._end()
            with self._changed:
                lane.is_busy = False
                self._changed.notify_all()

    def _take(self, lanes: Sequence[Lane], is_done: Callable[[], bool]) -> tuple[Lane, Task] | None:
        with self._changed:
            while not (self._is_over or is_done()):
                for lane in lanes:
                    if lane.tasks and not lane.is_busy:
                        lane.is_busy = True
                        return lane, lane.tasks.popleft()
                self._changed.wait()
        return None

    def _end(self) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify_all()


class Lane:
    """Tasks that are done in the order in which they were handed in. What one raises, the next wait() does."""

    def __init__(self, lanes: Lanes) -> None:
        self.tasks: deque[Task] = deque()
        self.is_busy = False
        self._lanes = lanes

    def submit(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Have it called with these."""
        self._lanes.submit(self, partial(function, *arguments))

    def wait(self, left: int = 0) -> None:
        """Until no more than `left` of the tasks are to be done."""
        self._lanes.wait(self, left)
