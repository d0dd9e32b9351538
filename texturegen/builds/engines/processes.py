"""The engine for one machine: a spawned process per worker."""

import multiprocessing
import os
import signal
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from texturegen.builds.engines.base import ATTEMPTS, POLL_SECONDS, Job, Lost, Outcome, Progress, Stopped
from texturegen.system.threads import count_cpus

PATIENCE_SECONDS = 1.0  # how long a job that is to stop may take to its next tick


def run_in_processes(
    job: Job, numbers: list[int], workers: int | None, progress: Progress, directory: Path
) -> Iterator[Outcome]:
    """Run jobs in `workers` spawned processes (None: one per CPU); with 0 in this one, one after the other.

    Each worker is a pool of its own: the death of one (killed, out of memory) then breaks no other's job, and tells
    which job it had. That job is tried again, ATTEMPTS times in all, in a new process.
    """
    if workers is None:
        workers = count_cpus()
    if workers == 0:

        def tick(made: int, failed: int) -> bool:
            progress(made, failed)
            return True

        yield from (job(number, tick) for number in numbers)
        return

    waiting, idle = deque(numbers), [_Worker() for _ in range(min(workers, len(numbers)))]
    running: dict[Future, tuple[_Worker, int]] = {}
    deaths: defaultdict[int, list[int]] = defaultdict(list)
    everybody = list(idle)
    seen: Counter[str] = Counter()
    try:
        while waiting or running:
            while waiting and idle:
                worker, number = idle.pop(), waiting.popleft()
                running[worker.submit(job, number)] = worker, number
            done, _ = wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            now = Counter(made=sum(w.made.value for w in everybody), failed=sum(w.failed.value for w in everybody))
            progress(now["made"] - seen["made"], now["failed"] - seen["failed"])
            seen = now
            for future in done:
                worker, number = running.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    worker.close()
                    idle.append(_Worker())
                    everybody.append(idle[-1])
                    made, failed = worker.made.value - worker.before[0], worker.failed.value - worker.before[1]
                    progress(-made, -failed)  # it is not there: that shard has to be begun again
                    deaths[number].append(made)
                    if len(deaths[number]) == ATTEMPTS:
                        yield Lost(number, tuple(deaths[number]))
                    else:
                        waiting.append(number)
                else:
                    idle.append(worker)
                    yield result
    finally:
        for worker in everybody:
            worker.stop.value = 1
        for worker in everybody:
            worker.close()


@contextmanager
def _ctrl_c_held() -> Iterator[None]:
    """Put SIGINT off, also for processes that are started meanwhile.

    Where the platform, or a thread other than the main one, cannot, nothing is done.
    """
    if not hasattr(signal, "pthread_sigmask") or threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    # The mask is this thread's, and what children inherit. Another thread may get the signal and have it handled here.
    usual = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGINT, usual)
        if came:
            signal.raise_signal(signal.SIGINT)


class _Worker:
    """One spawned process, and what it shares with this one: counters and a stop flag.

    Raw values, without the locks of `multiprocessing.Value` and `Event`, which would stay locked if the process died
    while it held them. Each has one writer.
    """

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")  # fork is unsafe beside the threads of OpenCV and Arrow
        self.made, self.failed, self.stop = (context.RawValue("q", 0) for _ in range(3))
        self._pool = ProcessPoolExecutor(1, context, _start_worker, ((self.made, self.failed, self.stop),))
        self.before = 0, 0

    def submit(self, job: Job, number: int) -> Future:
        self.before = self.made.value, self.failed.value
        with _ctrl_c_held():  # a process that starts inherits this: the terminal's Ctrl-C is not for it
            return self._pool.submit(_call, job, number)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


_shared: list[Any] = []  # of a worker process: the values it was started with


def _start_worker(values: tuple[Any, ...]) -> None:
    import cv2

    cv2.setNumThreads(1)
    os.environ["NUMBA_NUM_THREADS"] = "1"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides; it sets the stop flag
    _shared[:] = values
    stop = values[2]
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    def end_when_told() -> None:
        while not stop.value:
            time.sleep(0.1)
        time.sleep(PATIENCE_SECONDS)
        os._exit(1)  # some methods take minutes for an image

    for target in (end_with_parent, end_when_told):
        threading.Thread(target=target, daemon=True).start()


def _call(job: Job, number: int) -> dict[str, Any] | None:
    made_sofar, failed_sofar, stop = _shared

    def tick(made: int, failed: int) -> bool:
        made_sofar.value += made
        failed_sofar.value += failed
        return not stop.value

    try:
        return job(number, tick)
    except Stopped:
        return None
