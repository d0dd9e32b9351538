"""Run a grid cell by cell in worker processes, skipping finished cells.

Layout: OUT/shards/SET, OUT/cells/ROW/COLUMN/seedN (a run of `sacl-train` with figures.json), OUT/GRID.md, .json, .png.
Cells with other settings or shards are set aside as seedN.old-1 and so on.
"""

import contextlib
import json
import multiprocessing
import re
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.commands import Commands
from pipelines.grids import narrow
from pipelines.grids.figures import Found
from pipelines.grids.grid import Cell, Grid, Scale, Settings
from pipelines.grids.report import write_grid
from pipelines.grids.worker import SETS_OF_OOD, Job, run_cell, start_worker
from pipelines.stages import assign_devices, digest_folder, digest_shards, set_aside
from texturegen.console import plural
from texturegen.errors import MissingError, UserError
from texturegen.sources import SOURCES
from texturegen.storage.atomic import write_json
from texturegen.system.threads import count_cpus

MakeJob = Callable[[Cell, int], Job]

KILLED = (
    "its worker process was killed (out of memory?); run the same command again to resume it, with fewer --jobs if "
    "memory ran out"
)


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
    """Build the shards, run every cell with every seed, and write the table after each cell.

    Parameters
    ----------
    grid : Grid
        A grid from `make_grid`.
    scale : Scale
        The scale of the grid.
    out : Path
        Directory for shards, cells and the table.
    root : str, optional
        Directory of the data sets' files.
    stimuli : str, optional
        Folder of cue-conflict stimuli, for the shape bias.
    device : str
        "auto", a device, or several ("cuda:0,cuda:1") that each run one cell at a time.
    seeds : int, optional
        Runs per cell; by default that of the scale. All cells run with one seed before any runs with the next.
    jobs : int
        Cells to run at once.
    only : tuple of str
        Rows or columns to run; empty runs all. The table also shows other cells that have already run.

    Returns
    -------
    Path
        The Markdown table.

    Raises
    ------
    UserError
        A cell failed, after the others have run.
    KeyboardInterrupt
        The user stopped the grid; cells in training have saved their state.
    """
    chosen = narrow(grid, only, {})
    if stimuli is not None and not Path(stimuli).is_dir():
        raise MissingError(f"--stimuli {stimuli}: there is no such folder")
    out.mkdir(parents=True, exist_ok=True)
    devices = assign_devices(device, jobs)
    threads = max(1, count_cpus() // len(devices))
    _build_all(Commands(out, threads), scale, chosen, out, root)
    make = _job_maker(grid, scale, out, stimuli, devices[0])
    found, outdated = _read_figures(grid, make, out)
    selected = {(cell.row, cell.column) for cell in chosen.cells}
    if left_out := [place for place in outdated if place not in selected]:
        names = "; ".join(map(", ".join, left_out))
        print(f"left out of the table, because settings or shards differ: {names}", flush=True)
    cells = tuple(cell for cell in grid.cells if (cell.row, cell.column) in selected or found[cell.row, cell.column])
    grid = replace(grid, cells=cells)
    found = {(cell.row, cell.column): found[cell.row, cell.column] for cell in cells}

    done = {(place, run["seed"]) for place, runs in found.items() for run in runs}
    wanted = [(cell, seed) for seed in range(seeds or scale.seeds) for cell in chosen.cells]
    todo = [make(cell, seed) for cell, seed in wanted if ((cell.row, cell.column), seed) not in done]
    if len(todo) < len(wanted):
        print(f"{len(wanted) - len(todo)} of {plural(len(wanted), 'run')} already done", flush=True)
    path = write_grid(out, grid, scale.name, found) if done else None
    if todo and "corruption" in grid.figures:
        from sacl_train.evaluate.corruption import load_corruptions

        load_corruptions()  # raises before training if a package is missing
    failed: list[str] = []
    with contextlib.closing(_run_jobs(todo, devices, threads)) as results:
        for job, status, content in results:
            if status == "failed":
                failed.append(f"{job.name}: {content}")
                print(f"{job.name}: failed: {content}", flush=True)
                continue
            found[job.cell.row, job.cell.column].append({"seed": job.seed, **content})
            figures = ", ".join(f"{key} {content[key]:.3f}" for key in grid.figures if key in content)
            print(f"{job.name}: {figures}", flush=True)
            path = write_grid(out, grid, scale.name, found)
    if failed:
        raise UserError(f"{len(failed)} of {plural(len(todo), 'run')} failed; the first: {failed[0]}")
    assert path is not None
    return path


def probe_settings(scale: Scale, cell: Cell) -> Settings:
    """Return the settings of a cell's linear probe."""
    return {**scale.probe, **scale.probe_of.get(cell.dataset, {})}


def _job_maker(grid: Grid, scale: Scale, out: Path, stimuli: str | None, device: str) -> MakeJob:
    """Return a function that makes the job of a cell and seed, and digests each shard directory only once."""
    digests: dict[str, str] = {}
    of_stimuli = {"stimuli": digest_folder(stimuli)} if stimuli and "shape_bias" in grid.figures else {}

    def make(cell: Cell, seed: int) -> Job:
        shards = {
            name: str(directory) for name, directory in _shard_directories(scale, cell, out, grid.figures).items()
        }
        for directory in shards.values():
            if directory not in digests:
                digests[directory] = digest_shards(directory)
        return Job(
            cell,
            seed,
            str(_cell_directory(out, cell) / f"seed{seed}"),
            shards,
            {name: digests[directory] for name, directory in shards.items()} | of_stimuli,
            grid.figures,
            probe_settings(scale, cell),
            scale.corruption,
            stimuli,
            device,
        )

    return make


def _read_figures(grid: Grid, make: MakeJob, out: Path) -> tuple[Found, list[tuple[str, str]]]:
    """Return the figures of finished cells, and (row, column) of cells whose settings or shards have changed."""
    found: Found = {(cell.row, cell.column): [] for cell in grid.cells}
    outdated: list[tuple[str, str]] = []
    for cell in grid.cells:
        place = (cell.row, cell.column)
        for path in sorted(_cell_directory(out, cell).glob("seed*/figures.json")):
            number = path.parent.name.removeprefix("seed")
            if not number.isdecimal():
                continue  # set aside
            try:
                figures = make(cell, int(number)).read_figures()
            except UserError:
                figures = None  # its shards are missing
            if figures is not None:
                found[place].append({"seed": int(number), **figures})
            elif place not in outdated:
                outdated.append(place)
    return found, outdated


def _run_jobs(todo: list[Job], devices: list[str], threads: int) -> Generator[tuple[Job, str, Any]]:
    """Yield (job, status, content) as jobs finish, with one job at a time per device. After Ctrl-C, no job starts.

    A job whose worker process is killed has failed, and the others go on: each worker is a pool of its own, because a
    pool ends with any of its processes.
    """
    context = multiprocessing.get_context("spawn")

    def start_pool() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, context, initializer=start_worker, initargs=(threads,))

    waiting, running = deque(todo), dict[Future[Any], tuple[Job, ProcessPoolExecutor]]()
    free = [(device, start_pool()) for device in devices[: len(todo)]]
    try:
        while waiting or running:
            # A worker would start a queued job even after Ctrl-C, so no job waits in a pool's queue.
            while waiting and free:
                device, pool = free.pop(0)
                placed = replace(waiting[0], device=device)
                try:
                    running[pool.submit(run_cell, placed)] = placed, pool
                    waiting.popleft()
                except BrokenProcessPool:  # killed since its last job
                    free.insert(0, (device, start_pool()))
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job, pool = running.pop(future)
                try:
                    status, content = future.result()
                except BrokenProcessPool:
                    pool, status, content = start_pool(), "failed", KILLED
                free.append((job.device, pool))
                if status == "stopped":
                    raise KeyboardInterrupt
                yield job, status, content
    except (KeyboardInterrupt, GeneratorExit):
        # Ctrl-C in a terminal reaches the workers too, but a signal to this process alone does not.
        for worker in multiprocessing.active_children():
            worker.terminate()  # the worker saves its training state, see `Stopped`
        raise
    finally:
        for _, pool in (*free, *running.values()):
            pool.shutdown()


def _build_all(commands: Commands, scale: Scale, grid: Grid, out: Path, root: str | None) -> None:
    """Build the shards of all cells by `texturegen build` and `split`."""
    built: set[Path] = set()
    for cell in grid.cells:
        directories = _shard_directories(scale, cell, out, grid.figures)
        unfiltered = _shard_directories(scale, replace(cell, filter=None), out, grid.figures)
        for name, directory in unfiltered.items():
            if directory not in built:
                options = scale.data[cell.dataset][name] | (cell.build if name == "train" else {})
                commands.build(directory, options, root if SOURCES[options["dataset"]].needs_root else None)
                built.add(directory)
        if cell.filter is not None and directories["train"] not in built:
            _split(commands, unfiltered["train"], cell.filter, directories["train"])
            built.add(directories["train"])


def _split(commands: Commands, shards: Path, condition: str, out: Path) -> None:
    """Copy the images of `shards` that pass a filter to `out`, unless it already holds them."""
    record, inputs = out.with_name(f"{out.name}.json"), [condition, digest_shards(shards)]
    line = ("texturegen", "split", str(shards), "--filter", condition, "--out", str(out))
    with contextlib.suppress(OSError, ValueError):  # without a whole record, the copy is made again
        if out.is_dir() and json.loads(record.read_text()) == inputs:
            commands.skip("", *line)
            return
    if out.exists():
        set_aside(out)
    commands.call("", *line)
    write_json(record, inputs)


def _shard_directories(scale: Scale, cell: Cell, out: Path, figures: tuple[str, ...]) -> dict[str, Path]:
    """Return set -> directory of the shards for training a cell and measuring these figures."""
    options = [str(value) if key == "method" else f"{key} {value}" for key, value in cell.build.items()]
    directories = {}
    for name in scale.data[cell.dataset]:
        if name in SETS_OF_OOD and "ood" not in figures:
            continue
        parts = [cell.dataset, name] + ([*options, cell.filter] if name == "train" else [])
        directories[name] = out / "shards" / "-".join(_slug(part) for part in parts if part)
    return directories


def _cell_directory(out: Path, cell: Cell) -> Path:
    return out / "cells" / _slug(cell.row) / _slug(cell.column)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
