"""Tasks in queues: those of one queue are done in order, one at a time, beside those of other queues.

Each thread takes whatever is ready in any queue. A thread for each queue would be simpler, but such threads hand on to
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


class Queues:
    """So many queues, and threads for all of them, the caller's among them: where it waits, it does what is to be done.

    Tasks may hand in others, to any queue, but not wait for them.
    """

    def __init__(self, queues: int, threads: int) -> None:
        self._queues = [Queue(self) for _ in range(queues)]
        self._changed = threading.Condition()
        self._is_over = False
        self._error: BaseException | None = None
        self._threads = [threading.Thread(target=self._help) for _ in range(min(threads - 1, queues))]

    def __enter__(self) -> list[Queue]:
        for thread in self._threads:
            thread.start()
        return self._queues

    def __exit__(self, *error: object) -> None:
        """What was not waited for may be left undone."""
        self._end()
        for thread in self._threads:
            thread.join()

    def submit(self, queue: Queue, task: Task) -> None:
        with self._changed:
            queue.tasks.append(task)
            self._changed.notify()

    def wait(self, queue: Queue, left: int) -> None:
        self._work([queue, *self._queues], lambda: len(queue.tasks) + queue.is_busy <= left)
        if self._error:
            raise self._error

    def _help(self) -> None:
        """What comes last is done first, so that it does not pile up."""
        self._work(self._queues[::-1], lambda: False)

    def _work(self, queues: Sequence[Queue], is_done: Callable[[], bool]) -> None:
        """Do what is ready, that of the first queue first, until that is so or all is over."""
        while taken := self._take(queues, is_done):
            queue, task = taken
            try:
                task()
            except BaseException as error:
                self._error = error
                self._end()
            with self._changed:
                queue.is_busy = False
                self._changed.notify_all()

    def _take(self, queues: Sequence[Queue], is_done: Callable[[], bool]) -> tuple[Queue, Task] | None:
        with self._changed:
            while not (self._is_over or is_done()):
                for queue in queues:
                    if queue.tasks and not queue.is_busy:
                        queue.is_busy = True
                        return queue, queue.tasks.popleft()
                self._changed.wait()
        return None

    def _end(self) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify_all()


class Queue:
    """Tasks that are done in the order in which they were handed in. What one raises, the next wait() does."""

    def __init__(self, queues: Queues) -> None:
        self.tasks: deque[Task] = deque()
        self.is_busy = False
        self._queues = queues

    def submit(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Have it called with these."""
        self._queues.submit(self, partial(function, *arguments))

    def wait(self, left: int = 0) -> None:
        """Until no more than `left` of the tasks are to be done."""
        self._queues.wait(self, left)
