"""Work in threads of this process, for kernels that let go of the GIL."""

import os
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def count_cpus() -> int:
    """Return how many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_in_threads(job: Callable[[int], T], count: int, threads: int) -> list[T]:
    """Return [job(0), ..., job(count - 1)], made in up to `threads` threads.

    The first job to fail, by number, has its exception raised here. After a failure or Ctrl-C no further job is
    begun; Ctrl-C ends the call at once, and so it can the process: a job that is still running is in a daemon thread,
    which is not waited for, as one of `concurrent.futures` would be.
    """
    results: dict[int, T] = {}
    failures: dict[int, BaseException] = {}
    numbers = iter(range(count))
    taking, stop = threading.Lock(), threading.Event()

    def work() -> None:
        while not stop.is_set():
            with taking:
                number = next(numbers, None)
            if number is None:
                return
            try:
                results[number] = job(number)
            except BaseException as error:
                failures[number] = error
                stop.set()

    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(threads, count))]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        stop.set()
    if failures:
        # Jobs are begun in order, so all that come before a failed one have ended too.
        raise failures[min(failures)]
    return [results[number] for number in range(count)]
