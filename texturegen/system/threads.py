"""Count the available CPUs, and run jobs in threads, for kernels that release the GIL."""

import math
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from texturegen.system.control_groups import control_groups, read_number

T = TypeVar("T")


def count_cpus() -> int:
    """Return the number of CPUs that this process may use, from its affinity and its container's quota."""
    # macOS and Windows have no sched_getaffinity.
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(min([count, *(_cpu_share(group) for group in control_groups("cpu"))]))


def _cpu_share(group: Path) -> float:
    """Return the CPU quota of a control group in CPUs, rounded up, from cpu.max (v2) or cpu.cfs_quota_us (v1)."""
    try:
        quota, period = map(int, (group / "cpu.max").read_text().split())
    except (OSError, ValueError):  # version 1, or "max"
        quota, period = (read_number(group / f"cpu.cfs_{name}_us") or -1 for name in ("quota", "period"))
    return math.ceil(quota / period) if quota > 0 and period > 0 else math.inf


def run_in_threads(job: Callable[[int], T], count: int, threads: int) -> list[T]:
    """Return [job(0), ..., job(count - 1)], run in up to `threads` threads.

    After a failure or Ctrl-C, no further job starts. If several jobs fail, the exception of the first one is raised.
    Jobs run in daemon threads, which Python does not wait for on exit, unlike those of `concurrent.futures`, so Ctrl-C
    ends the call and the process immediately.

    Parameters
    ----------
    job : function of the index of a job.
    count : number of jobs.
    threads : number of threads, at least 1.
    """
    results: dict[int, T] = {}
    failures: dict[int, BaseException] = {}
    numbers = iter(range(count))
    lock, stop = threading.Lock(), threading.Event()

    def work() -> None:
        while not stop.is_set():
            with lock:
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
        # Jobs start in order, so every job before the first failed one has finished.
        raise failures[min(failures)]
    return [results[number] for number in range(count)]
