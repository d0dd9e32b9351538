"""What stays the same while a run trains, and the files that it writes."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from sacl_train.config import Config, dump_config
from sacl_train.data.stream import Stream
from sacl_train.distributed import process_rank
from sacl_train.nets import Encoder
from sacl_train.report.sheet import draw_views
from sacl_train.training.metrics import Board, StepLog, write_rows
from sacl_train.training.optim import cosine_lr
from sacl_train.training.setup import describe, find_notes
from sacl_train.training.speed import Speed, measure_speed
from sacl_train.training.state import TrainState
from sacl_train.training.writer import CheckpointWriter
from texturegen.console import Progress, note
from texturegen.shards import Shards
from texturegen.storage.atomic import write_atomically

# Scores an encoder on the shards' own images: columns of the epoch's row, among them "knn", in 0..1, or None without
# labels. `evaluate.quick.quick_scores` is one.
Score = Callable[[Encoder, Shards, Config, torch.device], dict[str, float | None]]


@dataclass(frozen=True)
class Run:
    """What stays the same while a run trains.

    Attributes
    ----------
    config : resolved: mean, std and the places of a memory bank are given.
    shards, stream : the data, and this process's batches of it.
    out : directory of the run.
    device : where the networks are.
    score : the kNN score, or None.
    is_writer : True in the first process, the only one that writes files.
    log, writer : steps.jsonl, and the thread that writes checkpoints; None in a process that does not write.
    board : TensorBoard's events and the run of Weights & Biases, if wanted.
    progress : the bar or the lines on stderr.
    speed : the FLOPs of a step and the peak of the device, on CUDA.
    """

    config: Config
    shards: Shards
    stream: Stream
    out: Path
    device: torch.device
    score: Score | None
    is_writer: bool
    log: StepLog | None
    writer: CheckpointWriter | None
    board: Board
    progress: Progress
    speed: Speed | None

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.config.epochs * len(self.stream)

    def lr(self, step: int) -> float:
        """Return the learning rate of a step."""
        return cosine_lr(step, self.steps, self.config.lr, round(self.config.warmup_epochs * len(self.stream)))

    def is_save_due(self, state: TrainState) -> bool:
        """Return True if this process wants a checkpoint after the current step: by steps, or in the first by time."""
        steps, config = state.step + 1 - state.saved_step, self.config
        if config.save_every is not None and steps >= config.save_every:
            return True
        return self.is_writer and time.monotonic() - state.saved_at >= 60 * config.save_minutes


@contextmanager
def open_run(
    config: Config,
    shards: Shards,
    stream: Stream,
    out: Path,
    device: torch.device,
    state: TrainState,
    score: Score | None,
) -> Iterator[Run]:
    """Yield the run with its files open, in the first process; close them in the end."""
    is_writer = process_rank() == 0
    log: StepLog | None = None
    writer: CheckpointWriter | None = None
    if is_writer:
        out.mkdir(parents=True, exist_ok=True)
        if state.saved_step:
            write_rows(out, state.rows)  # a crash may have come between the checkpoint and these files
        write_atomically(out / "config.toml", dump_config(config))
        with torch.compiler.set_stance("force_eager"):  # the sheet's few images are not worth a compilation
            draw_views(out / "sheet.png", shards, state.method.weak)
        log = StepLog(out / "steps.jsonl", state.log_bytes)
        writer = CheckpointWriter(out, config.keep)
        print(describe(config, stream, state.saved_step), file=sys.stderr, flush=True)
        for line in find_notes(state.method):
            note(line)
    has_steps = state.epoch.number < config.epochs
    speed = measure_speed(config, stream, device) if has_steps and device.type == "cuda" else None
    board = Board(out, state.saved_step, config if is_writer else None)
    steps = config.epochs * len(stream)
    progress = Progress(steps * config.batch_size, "samples", state.saved_step * config.batch_size)
    try:
        with writer or nullcontext():
            yield Run(config, shards, stream, out, device, score, is_writer, log, writer, board, progress, speed)
    finally:
        progress.close()
        if log is not None:
            log.close()
        board.close()
