"""The engine of processes: jobs whose worker dies are retried, and lost ones are reported."""

import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from texturegen.builds.engines import ATTEMPTS, Lost, Tick
from texturegen.builds.engines.processes import _hold_ctrl_c, run_in_processes

# Jobs run in spawned processes, so they are functions of this module.


def count_to_three(number: int, tick: Tick) -> dict[str, Any]:
    for _ in range(3):
        tick(1, int(number == 1))
    return {"number": number, "process": os.getpid()}


def die(directory: Path, victim: int, deaths: int, number: int, tick: Tick) -> dict[str, Any]:
    """Job `victim` kills its process after two ticks, until it has done so `deaths` times."""
    tick(2, 0)
    path = directory / f"attempt-{number}"
    attempts = len(path.read_text()) if path.exists() else 0
    path.write_text("x" * (attempts + 1))
    if number == victim and attempts < deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    tick(1, 0)
    return {"number": number}


def die_starting(directory: Path, starts: int, deaths: int, number: int, tick: Tick) -> dict[str, Any]:
    """Kill this process before the first tick the first `starts` times, then at the second image `deaths` times."""
    path = directory / f"attempt-{number}"
    attempts = len(path.read_text()) if path.exists() else 0
    path.write_text("x" * (attempts + 1))
    if attempts < starts:
        os.kill(os.getpid(), signal.SIGKILL)
    tick(0, 0)
    tick(2, 0)
    if attempts < starts + deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"number": number}


def fail(number: int, tick: Tick) -> dict[str, Any]:
    if number == 2:
        raise OSError(28, "No space left on device", "out")
    while tick(0, 0):
        time.sleep(0.01)
    return {}


class Told:
    def __init__(self) -> None:
        self.made = self.failed = 0

    def __call__(self, made: int, failed: int) -> None:
        self.made += made
        self.failed += failed


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_every_job_runs_once_and_its_ticks_are_reported(workers: int, tmp_path: Path) -> None:
    told = Told()
    results = list(run_in_processes(count_to_three, [0, 1, 2, 5], workers, told, tmp_path))
    assert sorted(result["number"] for result in results) == [0, 1, 2, 5]
    processes = {result["process"] for result in results}
    assert len(processes) <= max(workers, 1)
    assert (os.getpid() in processes) == (workers == 0)
    assert (told.made, told.failed) == (12, 3)


def test_a_job_whose_worker_died_is_retried_and_counted_once(tmp_path: Path) -> None:
    told = Told()
    job = partial(die, tmp_path, 1, ATTEMPTS - 1)
    assert sorted(r["number"] for r in run_in_processes(job, [0, 1, 2, 3], 2, told, tmp_path)) == [0, 1, 2, 3]
    assert [len((tmp_path / f"attempt-{n}").read_text()) for n in range(4)] == [1, ATTEMPTS, 1, 1]
    assert told.made == 12


def test_only_the_job_that_always_kills_its_worker_is_lost(tmp_path: Path) -> None:
    told = Told()
    outcomes = list(run_in_processes(partial(die, tmp_path, 1, 99), [0, 1, 2, 3], 2, told, tmp_path))
    assert [o for o in outcomes if isinstance(o, Lost)] == [Lost(1, (2,) * ATTEMPTS)]
    assert sorted(o["number"] for o in outcomes if not isinstance(o, Lost)) == [0, 2, 3]
    assert told.made == 9


@pytest.mark.parametrize(
    ("starts", "deaths", "outcome"),
    [
        (ATTEMPTS - 1, ATTEMPTS - 1, {"number": 4}),
        (ATTEMPTS - 1, ATTEMPTS, Lost(4, (2,) * ATTEMPTS)),  # deaths during the start say nothing about the image
        (ATTEMPTS, 0, Lost(4)),
    ],
)
def test_deaths_before_the_first_tick_are_counted_separately(
    starts: int, deaths: int, outcome: object, tmp_path: Path
) -> None:
    told = Told()
    job = partial(die_starting, tmp_path, starts, deaths)
    assert list(run_in_processes(job, [4], 1, told, tmp_path)) == [outcome]
    assert told.made == (2 if isinstance(outcome, dict) else 0)


def test_a_worker_killed_between_two_jobs_is_replaced(tmp_path: Path) -> None:
    told = Told()
    outcomes = run_in_processes(count_to_three, [0, 1], 1, told, tmp_path)
    first = next(outcomes)
    assert isinstance(first, dict)
    os.kill(first["process"], signal.SIGKILL)
    time.sleep(0.5)  # until its pool has noticed
    (second,) = outcomes
    assert isinstance(second, dict)
    assert (second["number"], second["process"] == first["process"]) == (1, False)
    assert (told.made, told.failed) == (6, 3)


def test_an_exception_in_a_job_stops_the_others(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        list(run_in_processes(fail, [1, 2], 2, Told(), tmp_path))
    assert caught.value.filename == "out"


def test_ctrl_c_received_by_another_thread_is_deferred_too() -> None:
    after, go = [], threading.Event()

    def receive() -> None:
        go.wait()
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    other = threading.Thread(target=receive)  # started before the mask is set
    other.start()
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        with _hold_ctrl_c():
            go.set()
            other.join()
            time.sleep(0.05)
            after.append("undisturbed")
        after.append("not reached")
    assert after == ["undisturbed"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
