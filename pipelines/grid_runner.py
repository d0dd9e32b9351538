"""Run a grid cell by cell, in processes of its own; what is done is not done again.

Layout: OUT/shards/SET, OUT/cells/ROW/COLUMN/seedN (a run of `sacl-train` with figures.json), OUT/GRID.md, .json, .png.
A cell of other settings or shards is moved aside, to seedN.old-1 and so on.
"""

import contextlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
import traceback
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pipelines.grid_report import Found, write_grid
from pipelines.grids import Cell, Grid, Scale, narrow
from pipelines.runner import Commands
from pipelines.stages import (
    claim_run,
    decides_run,
    digest_folder,
    digest_shards,
    is_done,
    job_devices,
    record_done,
    set_aside,
)
from texturegen.console import plural
from texturegen.errors import UserError
from texturegen.sources import SOURCES
from texturegen.storage.atomic import write_json
from texturegen.system.threads import count_cpus

GRACE = 20.0  # seconds that a worker has for a checkpoint when its parent is gone
idle = threading.Event()  # this worker has no cell at hand


@dataclass(frozen=True)
class Job:
    """A cell of one seed, as a worker gets it; digests: of what it is measured on, by set."""

    cell: Cell
    seed: int
    directory: str
    shards: dict[str, str]  # set -> directory
    digests: dict[str, str]
    figures: tuple[str, ...]
    probe: dict[str, Any]
    corruption: dict[str, Any]
    stimuli: str | None
    device: str

    @property
    def settings(self) -> dict[str, Any]:
        return {**self.cell.settings, "seed": self.seed, "device": self.device}

    @property
    def measured(self) -> dict[str, Any]:
        """What decides its figures, beside the run."""
        measured = {"figures": self.figures, "probe": self.probe, "digests": self.digests}
        return measured | ({"corruption": self.corruption} if "corruption" in self.figures else {})

    def figures_at_hand(self) -> dict[str, Any] | None:
        """Its figures, where it is done."""
        directory = Path(self.directory)
        record, output = directory / "stage.json", directory / "figures.json"
        run = decides_run(self.settings, self.digests["train"])
        return json.loads(output.read_text()) if is_done(record, run, self.measured, [output]) else None


def run_grid(
    grid: Grid,
    scale: Scale,
    out: Path,
    root: str | None = None,
    stimuli: str | None = None,
    device: str = "auto",
    seeds: int | None = None,
    jobs: int = 1,
    only: tuple[str, ...] = (),
) -> Path:
    """Build what the cells need, run every cell with every seed, the first seed of all first; return the table's path.

    only: the rows or columns to run (all, if nothing is named). The table is written anew after each cell; it also has
    the figures of other cells and seeds that are there. Raises UserError when a cell fails (the others are run first),
    and KeyboardInterrupt when asked to stop.
    """
    chosen = narrow(grid, only, {})
    out.mkdir(parents=True, exist_ok=True)
    devices = job_devices(device, jobs)
    threads = max(1, count_cpus() // len(devices))
    commands = Commands(out, threads)
    built: set[Path] = set()
    for cell in chosen.cells:
        _build(commands, scale, cell, out, root, built)
    make = _job_maker(grid, scale, out, stimuli, devices[0])
    found, other = _read_figures(grid, make, out)
    mine = {(cell.row, cell.column) for cell in chosen.cells}
    cells = tuple(cell for cell in grid.cells if (cell.row, cell.column) in mine or found[cell.row, cell.column])
    grid = replace(grid, cells=cells)
    found = {(cell.row, cell.column): found[cell.row, cell.column] for cell in cells}
    done = {(place, run["seed"]) for place, runs in found.items() for run in runs}
    wanted = [(cell, seed) for seed in range(seeds or scale.seeds) for cell in chosen.cells]
    todo = [make(cell, seed) for cell, seed in wanted if ((cell.row, cell.column), seed) not in done]
    if left := [place for place in other if place not in mine]:
        print(f"left out of the table, of other settings or shards: {'; '.join(map(', '.join, left))}", flush=True)
    if len(todo) < len(wanted):
        print(f"{plural(len(wanted) - len(todo), 'cell')} of {len(wanted)} done before", flush=True)
    path = write_grid(out, grid, scale.name, found) if done else None
    if todo and "corruption" in grid.figures:
        from sacl_train.evaluate.corruption import load_corruptions

        load_corruptions()  # a package that is missing is missed before the first cell is trained
    failed: list[str] = []
    with contextlib.closing(_run_all(todo, devices, threads)) as results:
        for job, status, content in results:
            name = f"{job.cell.row}, {job.cell.column}, seed {job.seed}"
            if status == "failed":
                failed.append(f"{name}: {content}")
                print(f"{name}: failed: {content}", flush=True)
                continue
            found[job.cell.row, job.cell.column].append({"seed": job.seed, **content})
            told = ", ".join(f"{key} {content[key]:.3f}" for key in grid.figures if key in content)
            print(f"{name}: {told}", flush=True)
            path = write_grid(out, grid, scale.name, found)
    if failed:
        raise UserError(f"{len(failed)} of {len(todo)} cells failed; the first: {failed[0]}")
    assert path is not None
    return path


def _job_maker(grid: Grid, scale: Scale, out: Path, stimuli: str | None, device: str) -> Any:
    """(cell, seed) -> its Job."""
    digests: dict[str, str] = {}
    if stimuli is not None and not Path(stimuli).is_dir():
        raise UserError(f"--stimuli {stimuli}: there is no such folder")
    of_stimuli = {"stimuli": digest_folder(stimuli)} if stimuli and "shape_bias" in grid.figures else {}

    def make(cell: Cell, seed: int) -> Job:
        shards = {name: str(place) for name, place in _places(scale, cell, out).items()}
        for place in shards.values():
            if place not in digests:
                digests[place] = digest_shards(place)
        directory = out / "cells" / _slug(cell.row) / _slug(cell.column) / f"seed{seed}"
        measured = {name: digests[place] for name, place in shards.items()} | of_stimuli
        probe = probe_settings(scale, cell)
        figures, corruption = grid.figures, scale.corruption
        return Job(cell, seed, str(directory), shards, measured, figures, probe, corruption, stimuli, device)

    return make


def probe_settings(scale: Scale, cell: Cell) -> dict[str, Any]:
    """Of the linear probe of a cell."""
    return {**scale.probe, **scale.probe_of.get(cell.dataset, {})}


def _read_figures(grid: Grid, make: Any, out: Path) -> tuple[Found, list[tuple[str, str]]]:
    """What is there of the grid's cells; and the places of the cells that have figures of another run."""
    found: Found = {(cell.row, cell.column): [] for cell in grid.cells}
    other: list[tuple[str, str]] = []
    for cell in grid.cells:
        place = (cell.row, cell.column)
        for path in sorted((out / "cells" / _slug(cell.row) / _slug(cell.column)).glob("seed*/figures.json")):
            number = path.parent.name.removeprefix("seed")
            if not number.isdecimal():
                continue  # moved aside
            try:
                figures = make(cell, int(number)).figures_at_hand()
            except UserError:
                figures = None  # its shards are gone, or are others
            if figures is not None:
                found[place].append({"seed": int(number), **figures})
            elif place not in other:
                other.append(place)
    return found, other


def _run_all(todo: list[Job], devices: list[str], threads: int) -> Any:
    """(job, status, content) of each as it ends; as many at a time as there are devices, and none after Ctrl-C."""
    if not todo:
        return
    left, running, free = iter(todo), dict[Future[Any], Job](), list(devices)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(len(devices), len(todo)), context, initializer=_start, initargs=(threads,)) as pool:
        try:
            while True:
                # None is queued: a queued cell is begun by a worker whatever its parent has been told meanwhile.
                for job in islice(left, len(free)):
                    placed = replace(job, device=free.pop(0))
                    running[pool.submit(run_cell, placed)] = placed
                if not running:
                    return
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    job = running.pop(done)
                    free.append(job.device)
                    status, content = done.result()
                    if status == "stopped":
                        raise KeyboardInterrupt
                    yield job, status, content
        except (KeyboardInterrupt, GeneratorExit):
            # Ctrl-C of a terminal reaches the workers too, a signal to this process alone does not.
            for worker in multiprocessing.active_children():
                worker.terminate()  # it saves what it trains, see `Stopped`
            raise
        except BrokenProcessPool:
            raise UserError(
                "a process of a cell was killed (out of memory?); run the same command again, with fewer --jobs"
            ) from None


def run_cell(job: Job) -> tuple[str, Any]:
    """Train and evaluate one cell in its directory: ("done", figures), ("stopped", None) or ("failed", why).

    What it would print goes to DIRECTORY.log.
    """
    directory = Path(job.directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    idle.clear()
    with directory.with_suffix(".log").open("a") as log, contextlib.redirect_stderr(log):
        try:
            return _run_cell(job, directory)
        except UserError as error:
            return "failed", str(error)
        except KeyboardInterrupt:
            return "stopped", None
        except Exception:
            traceback.print_exc(file=log)
            return "failed", f"a fault of the program, see {log.name}"
        finally:
            idle.set()


def _run_cell(job: Job, directory: Path) -> tuple[str, Any]:
    from sacl_train import train
    from sacl_train.config import load_config
    from sacl_train.training.loop import Stopped

    record, output = directory / "stage.json", directory / "figures.json"
    claim_run(directory, job.settings, job.shards["train"])
    if (figures := job.figures_at_hand()) is not None:
        return "done", figures
    try:
        rows = train(load_config(None, job.settings), job.shards["train"], directory)
    except Stopped:
        return "stopped", None
    figures = _measure(job, directory, rows)
    write_json(output, figures)
    shutil.rmtree(directory / "features", ignore_errors=True)
    record_done(record, decides_run(job.settings, job.digests["train"]), job.measured)
    return "done", figures


def _measure(job: Job, directory: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The cell's figures, 0..1."""
    from sacl_train.evaluate.corruption import evaluate_corruption
    from sacl_train.evaluate.probe import evaluate
    from sacl_train.evaluate.shape_bias import evaluate_shape_bias
    from sacl_train.evaluate.shortcut import evaluate_shortcut

    wanted, device, shards = set(job.figures), job.device, job.shards
    tests: list[str | Path] = [place for name, place in shards.items() if name not in ("train", "conflict")]
    linear = evaluate("linear", directory, shards["train"], tests, device, "destroyed" in wanted, **job.probe)
    first = linear["test"][0]
    figures = {"linear": first["top1"], "images": first["images"], "epochs": linear["trained_epochs"]}
    figures |= {key: first[key] for key in ("top5", "destroyed") if key in first}
    if rows:
        figures["spread"] = rows[-1]["embedding_std"]
    if "knn" in wanted:
        figures["knn"] = evaluate("knn", directory, shards["train"], tests, device)["test"][0]["top1"]
    stimuli = shards.get("conflict") or job.stimuli
    if "shape_bias" in wanted and stimuli is not None:
        bias = evaluate_shape_bias(directory, shards["train"], stimuli, device, **job.probe)
        figures |= {key: bias[key] for key in ("shape_decisions", "texture_decisions")}
        if bias["bias"] is not None:
            figures["shape_bias"] = bias["bias"]
    if "corruption" in wanted:
        figures["corruption"] = evaluate_corruption(
            directory, shards["train"], tests[0], device, **job.corruption, **job.probe
        )["mean_error"]
    if "told_apart" in wanted:
        found = evaluate_shortcut(directory, shards["train"], device)
        figures |= {key: found[key] for key in ("told_apart", "one_direction", "own_texture") if key in found}
    return figures


def _places(scale: Scale, cell: Cell, out: Path) -> dict[str, Path]:
    """Where the sets lie that a cell learns from and is measured on."""
    found = {}
    for name in scale.data[cell.dataset]:
        parts = [cell.dataset, name] + ([cell.synthesis, cell.filter] if name == "train" else [])
        found[name] = out / "shards" / "-".join(_slug(part) for part in parts if part)
    return found


def _build(commands: Commands, scale: Scale, cell: Cell, out: Path, root: str | None, built: set[Path]) -> None:
    """The shards of a cell's data, by the real commands, where they are not there yet; `built`: seen to already."""
    whole, places = _places(scale, replace(cell, filter=None), out), _places(scale, cell, out)
    for name, options in scale.data[cell.dataset].items():
        if whole[name] not in built:
            chosen = {**options, "method": cell.synthesis} if cell.synthesis and name == "train" else options
            commands.build(whole[name], chosen, root if SOURCES[options["dataset"]].needs_root else None)
            built.add(whole[name])
    part = places["train"]
    if cell.filter is not None and part not in built:
        record, what = part.with_name(f"{part.name}.json"), [cell.filter, digest_shards(whole["train"])]
        line = ("texturegen", "split", str(whole["train"]), "--filter", cell.filter, "--out", str(part))
        if part.is_dir() and record.is_file() and json.loads(record.read_text()) == what:
            commands.skip("", *line)
        else:
            if part.exists():
                set_aside(part)
            commands.call("", *line)
            write_json(record, what)
        built.add(part)


def _start(threads: int) -> None:
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot tell its workers: this one saves what it trains and ends too."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    idle.wait(GRACE)
    os._exit(1)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
