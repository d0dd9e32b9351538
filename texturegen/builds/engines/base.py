"""The interface of an engine: how builds call it, the jobs it runs, and what it yields.

An engine maps a job over shard numbers, without knowing what the job does::

    run = find_engine("processes").load()
    for outcome in run(job, numbers, workers, progress, directory): ...

A job is called as ``job(number, tick)`` and must be picklable. It calls ``tick(0, 0)`` before its first image and
``tick(made, failed)`` after every image, and raises `Stopped` when that returns False. A worker that dies before the
first tick was still starting, and no image is the cause. The engine calls ``progress(made, failed)`` about twice a
second with the change since the last call. It yields the result of each job when it finishes, and a `Lost` for each job
whose workers died ATTEMPTS times. On Ctrl-C it asks its jobs to stop, waits for them, and raises KeyboardInterrupt
again; an exception in one job stops the others in the same way.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Tick = Callable[[int, int], bool]
Job = Callable[[int, Tick], dict[str, Any]]
Progress = Callable[[int, int], object]

POLL_SECONDS = 0.5
# Workers that die on a job before it counts as lost. Those that die while they start are counted separately.
ATTEMPTS = 3


class Stopped(Exception):
    """Raised by a job whose `tick` returned False: the build was asked to stop."""


@dataclass(frozen=True)
class Lost:
    """A job whose worker processes died ATTEMPTS times.

    Attributes
    ----------
    number : int
        Number of the shard.
    made : tuple of int
        For each attempt, how many textures were made when the worker died. Empty if that is unknown, or if the workers
        died before the first tick.
    """

    number: int
    made: tuple[int, ...] = ()


Outcome = dict[str, Any] | Lost


class Engine(Protocol):
    """A function that maps a job over shard numbers; see the docstring of this module.

    Parameters
    ----------
    job : callable
        The job.
    numbers : list of int
        Shards to build.
    workers : int or None
        Processes or tasks at once. None: the engine decides. 0: this process does the work, if the engine can.
    progress : callable
        Called with (textures made, images failed) since the last call.
    directory : Path
        Where the jobs write; every worker must be able to access it.
    options
        Those that the engine's entry lists.
    """

    def __call__(
        self, job: Job, numbers: list[int], workers: int | None, progress: Progress, directory: Path, **options: Any
    ) -> Iterator[Outcome]: ...
