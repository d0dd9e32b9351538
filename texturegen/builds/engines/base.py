"""What every engine offers the builds: its call, the jobs it maps, and what comes back.

An engine maps a job over shard numbers and knows nothing of what the job does::

    for outcome in load_engine("processes").run(job, numbers, workers, progress, directory): ...

A job is called as ``job(number, tick)`` and must be picklable. It calls ``tick(made, failed)`` after every image and
raises `Stopped` when that returns False. ``progress(made, failed)`` is called about twice a second with the change
since the last call. An engine yields the jobs' results as they finish, and a `Lost` for each job that no worker lived
to finish. On Ctrl-C it asks its jobs to stop, waits for them and re-raises KeyboardInterrupt; an exception in one job
ends the others in the same way.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Tick = Callable[[int, int], bool]
Job = Callable[[int, Tick], dict[str, Any]]
Progress = Callable[[int, int], object]

POLL_SECONDS = 0.5
ATTEMPTS = 3  # workers that may die on a job before it counts as lost


class Stopped(Exception):
    """Raised by a job whose `tick` returned False: the build was asked to stop."""


@dataclass(frozen=True)
class Lost:
    """A job whose worker process died on every attempt.

    Attributes
    ----------
    number : of the shard.
    made : per attempt, the textures made when the worker died; empty if the engine cannot know.
    """

    number: int
    made: tuple[int, ...] = ()


Outcome = dict[str, Any] | Lost


class Engine(Protocol):
    """Map `job` over `numbers`; see the module's docstring.

    workers : processes or tasks at once; None lets the engine decide, 0 works in this process where the engine can.
    directory : where the jobs write. Every worker must see it.
    """

    def __call__(
        self, job: Job, numbers: list[int], workers: int | None, progress: Progress, directory: Path, **options: Any
    ) -> Iterator[Outcome]: ...
