"""The engine for one machine: one spawned process per worker."""

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
from texturegen.errors import UserError
from texturegen.system.main_module import hide_missing_main, is_call_unguarded
from texturegen.system.threads import count_cpus

STOP_SECONDS = 1.0  # how long a job may run after it was asked to stop


def run_in_processes(
    job: Job, numbers: list[int], workers: int | None, progress: Progress, directory: Path
) -> Iterator[Outcome]:
    """Run jobs in `workers` spawned processes (None: one per CPU), or, with 0, one after the other in this process.

    Each worker is a process pool of its own, so that the death of one (killed, out of memory) interrupts no other job
    and shows which job it had. That job is tried again in a new process until ATTEMPTS workers have died on it, or as
    many before its first tick.
    """
    if workers is None:
        workers = count_cpus()
    if workers == 0:

        def tick(made: int, failed: int) -> bool:
            if made or failed:
                progress(made, failed)
            return True

        yield from (job(number, tick) for number in numbers)
        return

    if is_call_unguarded():
        raise UserError(
            'a script that builds with workers must do so below `if __name__ == "__main__":`, because each worker '
            "process imports the script; add that line, or build with workers=0"
        )
    waiting, idle = deque(numbers), [_Worker() for _ in range(min(workers, len(numbers)))]
    running: dict[Future, tuple[_Worker, int]] = {}
    deaths: defaultdict[int, list[int]] = defaultdict(list)
    failed_starts: Counter[int] = Counter()
    all_workers = list(idle)
    seen: Counter[str] = Counter()
    try:
        while waiting or running:
            while waiting and idle:
                worker, number = idle.pop(), waiting.popleft()
                try:
                    running[worker.submit(job, number)] = worker, number
                except BrokenProcessPool:  # killed since its last job; an idle worker has no process before its first
                    worker.close()
                    idle.append(_Worker())
                    all_workers.append(idle[-1])
                    waiting.appendleft(number)
            done, _ = wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            now = Counter(made=sum(w.made.value for w in all_workers), failed=sum(w.failed.value for w in all_workers))
            progress(now["made"] - seen["made"], now["failed"] - seen["failed"])
            seen = now
            for future in done:
                worker, number = running.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    worker.close()
                    idle.append(_Worker())
                    all_workers.append(idle[-1])
                    ticks, made, failed = worker.since_submit()
                    progress(-made, -failed)  # lost with the worker: the shard starts again
                    if ticks:
                        deaths[number].append(made)
                    else:
                        failed_starts[number] += 1
                    if len(deaths[number]) == ATTEMPTS:
                        yield Lost(number, tuple(deaths[number]))
                    elif failed_starts[number] == ATTEMPTS:
                        yield Lost(number)
                    else:
                        waiting.append(number)
                else:
                    idle.append(worker)
                    yield result
    finally:
        for worker in all_workers:
            worker.stop.value = 1
        for worker in all_workers:
            worker.close()


@contextmanager
def _hold_ctrl_c() -> Iterator[None]:
    """Defer SIGINT until the block ends; processes started in the block ignore it.

    Does nothing outside the main thread, or on platforms without signal masks.
    """
    if not hasattr(signal, "pthread_sigmask") or threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    # The mask covers this thread, and is inherited by children. Another thread may still receive the signal; Python
    # then runs the handler in this thread.
    handler = signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
        if received:
            signal.raise_signal(signal.SIGINT)


class _Worker:
    """One spawned process, and the counters and stop flag that it shares with this one.

    The shared values have no locks, as those of `multiprocessing.Value` and `Event` do: a process that dies while it
    holds a lock would leave it locked. Each value has one writer.
    """

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")  # fork is unsafe beside the threads of OpenCV and Arrow
        self.ticks, self.made, self.failed, self.stop = (context.RawValue("q", 0) for _ in range(4))
        shared = self.ticks, self.made, self.failed, self.stop
        self._pool = ProcessPoolExecutor(1, context, _start_worker, (shared,))
        self._before = self._counts()

    def _counts(self) -> tuple[int, int, int]:
        return self.ticks.value, self.made.value, self.failed.value

    def since_submit(self) -> tuple[int, int, int]:
        """Return the ticks, textures and failed images of the last job."""
        ticks, made, failed = self._before
        now = self._counts()
        return now[0] - ticks, now[1] - made, now[2] - failed

    def submit(self, job: Job, number: int) -> Future:
        self._before = self._counts()
        # A new process inherits the mask of `_hold_ctrl_c`: the terminal's Ctrl-C is for this one.
        with hide_missing_main(), _hold_ctrl_c():
            return self._pool.submit(_call, job, number)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


_shared: list[Any] = []  # in a worker process: the shared values of its `_Worker`


def _start_worker(values: tuple[Any, ...]) -> None:
    import cv2

    cv2.setNumThreads(1)
    os.environ["NUMBA_NUM_THREADS"] = "1"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent sets the stop flag instead
    _shared[:] = values
    stop = values[3]
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    def end_when_told() -> None:
        while not stop.value:
            time.sleep(0.1)
        time.sleep(STOP_SECONDS)
        os._exit(1)  # some methods take minutes per image

    for target in (end_with_parent, end_when_told):
        threading.Thread(target=target, daemon=True).start()


def _call(job: Job, number: int) -> dict[str, Any] | None:
    ticks, made_so_far, failed_so_far, stop = _shared

    def tick(made: int, failed: int) -> bool:
        ticks.value += 1
        made_so_far.value += made
        failed_so_far.value += failed
        return not stop.value

    try:
        return job(number, tick)
    except Stopped:
        return None
