"""Train and evaluate one cell of a grid, in a worker process."""

import contextlib
import multiprocessing
import os
import shutil
import signal
import statistics
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.grids.grid import Cell
from pipelines.stages import claim_run, describe_run, is_done, mark_done
from sacl_train.report.figures import describe_probe, read_figures, write_figures
from texturegen.console import describe_error
from texturegen.errors import UserError

GRACE_SECONDS = 20.0  # to write a checkpoint after the parent process has ended

SETS_OF_OOD = ("textures", "ood")  # the test set with its textures, and another data set

_idle = threading.Event()  # set while this worker runs no cell


@dataclass(frozen=True)
class Job:
    """One cell with one seed.

    Attributes
    ----------
    cell : Cell
        The cell, with complete settings.
    seed : int
        Seed of the run.
    directory : str
        Directory of the run.
    shards : dict of str to str
        Set -> shard directory.
    digests : dict of str to str
        Set (or "stimuli") -> digest of its content.
    figures : tuple of str
        Figures to measure; see `Grid.figures`.
    probe, corruption : dict
        Settings of the linear probe and of the corruption benchmark.
    stimuli : str or None
        Folder of cue-conflict stimuli.
    device : str
        Device to train and evaluate on.
    """

    cell: Cell
    seed: int
    directory: str
    shards: dict[str, str]
    digests: dict[str, str]
    figures: tuple[str, ...]
    probe: dict[str, Any]
    corruption: dict[str, Any]
    stimuli: str | None
    device: str

    @property
    def name(self) -> str:
        """Name for messages."""
        return f"{self.cell.row}, {self.cell.column}, seed {self.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the run."""
        return {**self.cell.settings, "seed": self.seed, "device": self.device}

    @property
    def inputs(self) -> dict[str, Any]:
        """Everything that determines the figures, besides the run."""
        inputs = {"figures": self.figures, "probe": self.probe, "digests": self.digests}
        return inputs | ({"corruption": self.corruption} if "corruption" in self.figures else {})

    def read_figures(self) -> dict[str, Any] | None:
        """Return the figures of a finished job; None if it is not finished."""
        directory = Path(self.directory)
        record, output = directory / "stage.json", directory / "figures.json"
        run = describe_run(self.settings, self.digests["train"])
        return read_figures(output) if is_done(record, run, self.inputs, [output]) else None


def start_worker(threads: int) -> None:
    """Prepare a worker process: limit its threads, and end it when its parent ends."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def run_cell(job: Job) -> tuple[str, Any]:
    """Train and evaluate one cell. Its output goes to DIRECTORY.log.

    Returns
    -------
    status : str
        "done", "stopped" or "failed".
    content : dict, str or None
        The figures (0..1) if done, the reason if failed.
    """
    directory = Path(job.directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    _idle.clear()
    path = directory.with_suffix(".log")  # a message may name a file whose name is no text
    with path.open("a", encoding="utf-8", errors="backslashreplace") as log, contextlib.redirect_stderr(log):
        try:
            return _run_cell(job, directory)
        except UserError as error:
            return "failed", str(error)
        except KeyboardInterrupt:
            return "stopped", None
        except (OSError, MemoryError) as error:  # most often a full disk
            traceback.print_exc(file=log)
            no_memory = isinstance(error, MemoryError)
            return "failed", "not enough memory; try fewer --jobs" if no_memory else describe_error(error)
        except Exception:
            traceback.print_exc(file=log)
            return "failed", f"internal error, see the traceback in {log.name}"
        finally:
            _idle.set()


def _run_cell(job: Job, directory: Path) -> tuple[str, Any]:
    from sacl_train import train
    from sacl_train.config import load_config
    from sacl_train.training.loop import Stopped

    record, output = directory / "stage.json", directory / "figures.json"
    claim_run(directory, job.settings, job.shards["train"])
    if (figures := job.read_figures()) is not None:
        return "done", figures
    try:
        rows = train(load_config(None, job.settings), job.shards["train"], directory)
    except Stopped:
        return "stopped", None
    figures = _measure(job, directory, rows)
    write_figures(output, figures)
    shutil.rmtree(directory / "features", ignore_errors=True)
    mark_done(record, describe_run(job.settings, job.digests["train"]), job.inputs)
    return "done", figures


def _measure(job: Job, directory: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures (0..1) of a trained cell; `rows` are its metrics, one dict per epoch."""
    from sacl_train.evaluate.corruption import evaluate_corruption
    from sacl_train.evaluate.probe import evaluate
    from sacl_train.evaluate.shape_bias import evaluate_shape_bias
    from sacl_train.evaluate.shortcut import evaluate_shortcut

    wanted, device, shards = set(job.figures), job.device, job.shards
    if "novelty_knn" in wanted:
        return _measure_novelty(directory, shards, device)
    tests: list[str | Path] = [path for name, path in shards.items() if name not in ("train", "conflict", *SETS_OF_OOD)]
    linear = evaluate("linear", directory, shards["train"], tests, device, "destroyed" in wanted, **job.probe)
    first = linear["test"][0]
    figures = {"linear": first["top1"], "images": first["images"], "epochs": linear["trained_epochs"]}
    figures["probes"] = describe_probe(linear)
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
    if "without_shape" in wanted:
        figures |= _measure_suppression(directory, shards["train"], tests[0], device, job.probe)
    if "ood" in wanted and "ood" in shards:
        figures |= _measure_ood(directory, shards, device, job.probe)
    if "told_apart" in wanted:
        found = evaluate_shortcut(directory, shards["train"], device)
        figures |= {key: found[key] for key in ("told_apart", "one_direction", "own_texture") if key in found}
    return figures


def _measure_suppression(
    run: Path, train: str, test: str | Path, device: str, probe: dict[str, Any]
) -> dict[str, float]:
    """Return the accuracy of the linear probe when a cue is suppressed, as a share of that on untouched images.

    The mean over the strengths of a cue's suppression.
    """
    from sacl_train.evaluate.suppression import evaluate_suppression

    shares: dict[str, list[float]] = {}
    for row in evaluate_suppression(run, train, test, device, **probe)["test"]:
        if row["cue"] != "none" and row["relative"] is not None:
            shares.setdefault(f"without_{row['cue']}", []).append(row["relative"])
    return {name: statistics.fmean(values) for name, values in shares.items()}


def _measure_ood(run: Path, shards: dict[str, str], device: str, probe: dict[str, Any]) -> dict[str, Any]:
    """Return the AUROC of images of another data set, and of textures, by distance to the nearest neighbours.

    "ood_all" has the AUROC of every score: [of the other data set, of the textures].
    """
    from sacl_train.evaluate.ood import evaluate_ood

    found = evaluate_ood(run, shards["train"], shards["textures"], [shards["ood"]], device, textures=True, **probe)
    scores: dict[str, list[float]] = {}
    for row in found["test"]:
        scores.setdefault(row["variant"], []).append(row["auroc"])
    other, textures = scores["knn"]
    return {"ood": other, "ood_textures": textures, "ood_all": scores}


def _measure_novelty(run: Path, shards: dict[str, str], device: str) -> dict[str, Any]:
    """Return the AUROC of images of classes that the run was not trained on, by each score."""
    from sacl_train.evaluate.novelty import evaluate_novelty

    found = evaluate_novelty(run, shards["train"], shards["test"], device)
    figures: dict[str, Any] = {f"novelty_{row['variant']}": row["auroc"] for row in found["test"]}
    return figures | {"epochs": found["trained_epochs"], "known_images": found["known_images"]}


def _end_with_parent() -> None:
    """Wait for the parent to end, then save the training state and exit. A killed parent cannot stop its workers."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    _idle.wait(GRACE_SECONDS)
    os._exit(1)
