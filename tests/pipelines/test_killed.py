"""A process that is killed, for instance because memory ran out, ends its own cell and no other."""

import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.commands import Commands
from pipelines.grids import SCALES, make_grid, narrow, runner
from pipelines.grids.runner import _run_jobs
from pipelines.grids.worker import Job
from texturegen.errors import UserError

# Workers are spawned, so what they run are functions of this module.


def start_nothing(threads: int) -> None: ...


def run_or_die(job: Job) -> tuple[str, Any]:
    if job.seed == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return "done", {"process": os.getpid()}


def test_a_killed_worker_fails_its_cell_and_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "start_worker", start_nothing)
    monkeypatch.setattr(runner, "run_cell", run_or_die)
    cell = make_grid("table4", SCALES["tiny"]).cells[0]
    todo = [Job(cell, seed, "", {}, {}, (), {}, {}, None, "cpu") for seed in range(3)]
    outcomes = []
    for job, status, content in _run_jobs(todo, ["cpu"], 1):
        outcomes.append((job.seed, status))
        if job.seed == 0:
            assert "killed (out of memory?); run the same command again" in content
        if job.seed == 1:  # the worker dies between two cells, while the table is written
            os.kill(content["process"], signal.SIGKILL)
            while Path(f"/proc/{content['process']}").exists():
                time.sleep(0.01)
    assert outcomes == [(0, "failed"), (1, "done"), (2, "done")]


def test_a_grid_names_the_killed_cell_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = iter([("failed", runner.KILLED), ("done", {"linear": 0.5, "top5": 0.5, "images": 60, "epochs": 1})])
    monkeypatch.setattr(runner, "_build_all", lambda *_: None)
    monkeypatch.setattr(runner, "digest_shards", str)
    monkeypatch.setattr(runner, "_run_jobs", lambda todo, *_: ((job, *next(outcomes)) for job in todo))
    grid = narrow(make_grid("table4", SCALES["tiny"]), ("pre", "post"), {})
    with pytest.raises(UserError, match=r"1 of 2 runs failed; the first: pre, shapes, seed 0: its worker .* killed"):
        runner.run_grid(grid, SCALES["tiny"], tmp_path, device="cpu", seeds=1)
    assert "50.0" in (tmp_path / "table4.md").read_text()


def test_a_killed_command_is_reported_as_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    die = tmp_path / "sacl-train"
    die.write_text("#!/bin/sh\nkill -9 $$\n")
    die.chmod(0o755)
    monkeypatch.setattr("pipelines.commands.sys", SimpleNamespace(executable=str(tmp_path / Path(sys.executable).name)))
    with pytest.raises(UserError, match=r"`sacl-train --out run` was killed by signal 9 \(out of memory\?\); run the"):
        Commands(tmp_path, 1).call("", "sacl-train", "--out", "run")
