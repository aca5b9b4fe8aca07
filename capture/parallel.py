"""Many slow things at once, in threads that never keep the command from ending."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

from capture.errors import PodtapError

T = TypeVar("T")
R = TypeVar("R")


def in_parallel(function: Callable[[T], R], items: Iterable[T], workers: int) -> list[tuple[T, R | PodtapError]]:
    """Each item with its result, or with the PodtapError that it ended in; in the items' order.

    Anything else that goes wrong is raised at once, Ctrl-C too: threads that still wait are left behind.
    """
    waiting = list(enumerate(items))
    todo: queue.SimpleQueue[tuple[int, T]] = queue.SimpleQueue()
    for each in waiting:
        todo.put(each)
    done: queue.SimpleQueue[tuple[int, R | BaseException]] = queue.SimpleQueue()

    def work() -> None:
        while True:
            try:
                number, item = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((number, function(item)))
            except BaseException as error:
                done.put((number, error))

    for _ in range(min(workers, len(waiting))):
        threading.Thread(target=work, daemon=True).start()
    results: dict[int, R | PodtapError] = {}
    while len(results) < len(waiting):
        number, result = done.get()
        if isinstance(result, BaseException) and not isinstance(result, PodtapError):
            raise result
        results[number] = result
    return [(item, results[number]) for number, item in waiting]
