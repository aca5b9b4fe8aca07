"""Tasks are done in the order of their queue, one at a time, beside those of other queues."""

from __future__ import annotations

import os
import threading
import time

import pytest

from analysis.queues import Queues, processors

SECONDS = 20


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_each_queue_keeps_its_order_and_does_one_task_at_a_time(threads: int) -> None:
    done: list[list[int]] = [[], [], []]
    at_work = [0, 0, 0]
    most = [0, 0, 0]

    def task(queue: int, number: int) -> None:
        at_work[queue] += 1
        most[queue] = max(most[queue], at_work[queue])
        time.sleep(0.0005 * (number % 3))
        done[queue].append(number)
        at_work[queue] -= 1

    with Queues(3, threads) as queues:
        for number in range(60):
            for place, queue in enumerate(queues):
                queue.submit(task, place, number)
        for queue in queues:
            queue.wait()
    assert done == [list(range(60))] * 3
    assert most == [1, 1, 1]


def test_queues_go_on_beside_each_other_and_the_one_who_waits_lends_a_hand() -> None:
    meeting = threading.Barrier(2)
    with Queues(2, threads=2) as (one, other):
        one.submit(meeting.wait, SECONDS)
        other.submit(meeting.wait, SECONDS)
        one.wait()
        other.wait()


def test_one_thread_is_that_of_the_caller() -> None:
    threads: list[threading.Thread] = []
    with Queues(2, threads=1) as queues:
        for queue in queues:
            queue.submit(lambda: threads.append(threading.current_thread()))
        assert threads == []
        for queue in queues:
            queue.wait()
    assert threads == [threading.current_thread()] * 2


def test_wait_leaves_as_many_tasks_as_it_may() -> None:
    done: list[int] = []
    with Queues(1, threads=1) as (queue,):
        for number in range(5):
            queue.submit(done.append, number)
        queue.wait(2)
        assert done == [0, 1, 2]


def test_tasks_hand_in_others_that_are_waited_for_too() -> None:
    done: list[int] = []
    with Queues(2, threads=2) as (one, other):
        for number in range(50):
            one.submit(other.submit, done.append, number)
        one.wait()
        other.wait()
    assert done == list(range(50))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_comes_with_the_next_wait_and_ends_all(threads: int, error: type[BaseException]) -> None:
    done: list[int] = []

    def fail() -> None:
        raise error("no room")

    running = threading.active_count()
    with pytest.raises(error, match="no room"), Queues(2, threads) as (one, other):
        other.submit(fail)
        other.submit(done.append, 1)
        other.wait(1)
        one.submit(done.append, 2)
        one.wait()
    assert done == []
    assert threading.active_count() == running


def test_an_error_of_the_caller_leaves_nothing_running() -> None:
    running = threading.active_count()
    with pytest.raises(ZeroDivisionError), Queues(1, threads=3) as (queue,):
        queue.submit(time.sleep, 0.01)
        raise ZeroDivisionError
    assert threading.active_count() == running


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system can't keep a process from processors")
def test_only_processors_that_may_be_used_count() -> None:
    allowed = os.sched_getaffinity(0)
    assert processors() == len(allowed)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert processors() == 1
    finally:
        os.sched_setaffinity(0, allowed)
