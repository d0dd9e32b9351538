"""Run a grid cell by cell, in processes of its own; what is done is not done again.

Layout: OUT/shards/SET, OUT/cells/ROW/COLUMN/seedN (a run of `sacl-train` with figures.json), OUT/GRID.md, .json, .png.
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
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.grid_report import write_grid
from pipelines.grids import Cell, Grid, Scale
from pipelines.runner import Commands, flags_of
from pipelines.stages import is_done, newest_checkpoint, record_done
from texturegen.errors import UserError
from texturegen.files import write_json
from texturegen.sources import SOURCES

GRACE = 20.0  # seconds that a worker has for a checkpoint when its parent is gone
idle = threading.Event()  # this worker has no cell at hand


@dataclass(frozen=True)
class Job:
    """A cell of one seed, as a worker gets it."""

    cell: Cell
    seed: int
    directory: str
    shards: dict[str, str]  # set -> directory
    figures: tuple[str, ...]
    probe: dict[str, Any]
    corruption: dict[str, Any]
    stimuli: str | None
    device: str


def run_grid(
    grid: Grid,
    scale: Scale,
    out: Path,
    root: str | None = None,
    stimuli: str | None = None,
    device: str = "auto",
    seeds: int | None = None,
    jobs: int = 1,
) -> Path:
    """Build what the cells need, run every cell with every seed, the first seed of all first; return the table's path.

    The table is written anew after each cell. Raises UserError when a cell fails (the others are run first), and
    KeyboardInterrupt when asked to stop.
    """
    out.mkdir(parents=True, exist_ok=True)
    commands = Commands(out, max(1, len(os.sched_getaffinity(0)) // jobs))
    wanted = list(dict.fromkeys((cell.dataset, cell.synthesis) for cell in grid.cells))
    shards = _build(commands, scale, wanted, out, root)
    seeds = seeds or scale.seeds
    todo = [
        Job(
            cell,
            seed,
            str(out / "cells" / _slug(cell.row) / _slug(cell.column) / f"seed{seed}"),
            shards[cell.dataset, cell.synthesis],
            grid.figures,
            scale.probe,
            scale.corruption,
            stimuli,
            device,
        )
        for seed in range(seeds)
        for cell in grid.cells
    ]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {(cell.row, cell.column): [] for cell in grid.cells}
    failed: list[str] = []
    context = multiprocessing.get_context("spawn")
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    with ProcessPoolExecutor(jobs, context, initializer=_start, initargs=(threads,)) as pool:
        futures: dict[Future[Any], Job] = {pool.submit(run_cell, job): job for job in todo}
        try:
            for done in as_completed(futures):
                job = futures[done]
                name = f"{job.cell.row}, {job.cell.column}, seed {job.seed}"
                status, content = done.result()
                if status == "stopped":
                    raise KeyboardInterrupt
                if status == "failed":
                    failed.append(f"{name}: {content}")
                    print(f"{name}: failed: {content}", flush=True)
                    continue
                found[job.cell.row, job.cell.column].append({"seed": job.seed, **content})
                told = ", ".join(f"{key} {content[key]:.3f}" for key in grid.figures if key in content)
                print(f"{name}: {told}", flush=True)
                path = write_grid(out, grid, scale.name, found)
        except BrokenProcessPool:
            raise UserError(
                "a process of a cell was killed (out of memory?); run the same command again, with fewer --jobs"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)
    if failed:
        raise UserError(f"{len(failed)} of {len(todo)} cells failed; the first: {failed[0]}")
    return path


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
    from sacl_train.config import load_config
    from sacl_train.loop import Stopped, train

    settings = {**job.cell.settings, "seed": job.seed, "device": job.device}
    sources = [Path(place) / "build.json" for place in job.shards.values()]
    what = {"settings": settings, "figures": job.figures, "stimuli": job.stimuli}
    what |= {"probe": job.probe, "corruption": job.corruption}
    record, output = directory / "stage.json", directory / "figures.json"
    if is_done(record, what, [*sources, *newest_checkpoint(directory)], [output]):
        return "done", json.loads(output.read_text())
    started = directory.with_suffix(".json")
    if directory.exists() and not is_done(started, settings, sources[:1], []):
        shutil.rmtree(directory)  # of other settings or shards
    record_done(started, settings, sources[:1], [])
    try:
        rows = train(load_config(None, settings), job.shards["train"], directory)
    except Stopped:
        return "stopped", None
    figures = _measure(job, directory, rows)
    write_json(output, figures)
    shutil.rmtree(directory / "features", ignore_errors=True)
    record_done(record, what, [*sources, *newest_checkpoint(directory)], [output])
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


def _build(
    commands: Commands, scale: Scale, wanted: list[tuple[str, str | None]], out: Path, root: str | None
) -> dict[tuple[str, str | None], dict[str, str]]:
    """The shards of (data set, synthesis), each directory built once by the real command: set -> directory."""
    found: dict[tuple[str, str | None], dict[str, str]] = {}
    built: set[Path] = set()
    for dataset, synthesis in wanted:
        places = found[dataset, synthesis] = {}
        for name, options in scale.data[dataset].items():
            textured = synthesis if name == "train" else None
            place = out / "shards" / "-".join(part for part in (dataset, name, textured) if part)
            places[name] = str(place)
            if place not in built:
                rooted = {"root": root} if root and SOURCES[options["dataset"]].needs_root else {}
                chosen = {"method": textured} if textured else {}
                line = flags_of({**options, **rooted, **chosen})
                commands.call("", "texturegen", "build", "--out", str(place), *line)
                built.add(place)
    return found


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
