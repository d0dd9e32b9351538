"""Work in threads of this process, for kernels that let go of the GIL."""

import math
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from texturegen.system.control_groups import control_groups, read_number

T = TypeVar("T")


def count_cpus() -> int:
    """Return how many CPUs this process may use: of the machine's, those that its affinity and its container leave."""
    # sched_getaffinity is not there on macOS and Windows.
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(min([count, *(_cpu_share(group) for group in control_groups("cpu"))]))


def _cpu_share(group: Path) -> float:
    """CPUs' worth of time that a control group may have (cgroup v2: cpu.max, v1: cfs_quota_us)."""
    try:
        quota, period = map(int, (group / "cpu.max").read_text().split())
    except (OSError, ValueError):  # version 1, or "max"
        quota, period = (read_number(group / f"cpu.cfs_{name}_us") or -1 for name in ("quota", "period"))
    return math.ceil(quota / period) if quota > 0 and period > 0 else math.inf


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
