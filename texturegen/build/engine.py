"""Engines map jobs over shard numbers, and know nothing of what a job does.

    for stats in ENGINES["processes"](job, numbers, workers, progress): ...

A job is called as `job(number, tick)`; it must be picklable. `progress(textures)` is called about twice a second with
what was made since. On Ctrl-C an engine asks its jobs to stop, waits for them, and lets KeyboardInterrupt pass.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from texturegen.errors import UserError

Tick = Callable[[int], bool]
Job = Callable[[int, Tick], dict[str, Any]]
Engine = Callable[[Job, list[int], int, Callable[[int], object]], Iterator[dict[str, Any]]]

POLL_SECONDS = 0.5


class Stopped(Exception):
    """Raised by a job whose `tick` returned False: the build was asked to stop."""


_shared: dict[str, Any] = {}  # of a worker process: the counter and the stop flag it was started with


def run_in_processes(
    job: Job, numbers: list[int], workers: int, progress: Callable[[int], object]
) -> Iterator[dict[str, Any]]:
    """Run jobs in `workers` spawned processes, in this one when a single worker is asked for.

    Yields the jobs' results as they finish. Raises UserError when a worker process dies.
    """
    if workers == 1 or len(numbers) == 1:

        def tick(textures: int) -> bool:
            progress(textures)
            return True

        yield from (job(number, tick) for number in numbers)
        return

    context = multiprocessing.get_context("spawn")  # fork is unsafe beside the threads of OpenCV and Arrow
    made, stop = context.Value("q", 0), context.Event()
    seen = 0
    pool = ProcessPoolExecutor(min(workers, len(numbers)), context, _start_worker, (made, stop))
    try:
        pending: set[Future] = {pool.submit(_call, job, number) for number in numbers}
        while pending:
            done, pending = wait(pending, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            progress(made.value - seen)
            seen = made.value
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process died (killed, or out of memory?); the finished shards are kept: "
            "run the same command again to go on, with fewer --workers if memory was short"
        ) from None
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


ENGINES: dict[str, Engine] = {"processes": run_in_processes}


def _start_worker(made: Any, stop: Any) -> None:
    import cv2

    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides; it sets the stop flag
    _shared.update(made=made, stop=stop)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _call(job: Job, number: int) -> dict[str, Any] | None:
    def tick(textures: int) -> bool:
        with _shared["made"].get_lock():
            _shared["made"].value += textures
        return not _shared["stop"].is_set()

    try:
        return job(number, tick)
    except Stopped:
        return None
