"""The training loop, from top to bottom: a run, its epochs, their batches. It knows no method's insides.

What happens between `loss.backward()` and the next batch: the rest of `update` in `step.make_step`, then the rest of
the loop's body in `_train_epoch` below. What a checkpoint holds is in `state`.
"""

import math
import threading
import time
from contextlib import nullcontext, suppress
from pathlib import Path

import torch

from sacl_train import distributed
from sacl_train.config import Config
from sacl_train.data.device import fetch_async
from sacl_train.report.curves import draw_curves
from sacl_train.training.allocator import keep_freed_memory
from sacl_train.training.checkpoint import exclusive
from sacl_train.training.compilation import compile_method, require_compiler
from sacl_train.training.metrics import Lap, Row, require_boards, write_rows
from sacl_train.training.out_of_memory import explain_out_of_memory
from sacl_train.training.precision import arithmetic
from sacl_train.training.resume import load_resumable, refuse_other_run, warn_of_other_threads
from sacl_train.training.run import Run, Score, open_run
from sacl_train.training.setup import choose_device, make_stream, resolve
from sacl_train.training.signals import stop_on_signal
from sacl_train.training.state import EpochProgress, PendingMetrics, TrainState, make_state, restore, snapshot
from sacl_train.training.step import Step, StepMetrics, join, make_step, stack_metrics
from texturegen.console import warn
from texturegen.errors import UserError
from texturegen.shards import open_shards
from texturegen.storage.atomic import write_atomically

COLLAPSED = 0.1  # embedding_std below which embeddings count as collapsed; evenly spread ones have 1

# Reading a number waits for the device: on CUDA, this many steps are queued before the metrics of the first are read.
IN_FLIGHT = 8

# What processes that train together tell each other along with their metrics.
STOP, SAVE = "stop", "save"


class Stopped(Exception):
    """The run was asked to stop (Ctrl-C, SIGTERM) and has saved a checkpoint of `step`."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped at step {step}")
        self.step = step


def train(config: Config, shards_dir: str | Path, out: str | Path, score: Score | None = None) -> list[Row]:
    """Train for `config.epochs` epochs into the directory `out`, or resume the run that is there.

    A resumed run has the losses and the weights of one that was never stopped: bit for bit on a CPU with the same
    number of threads, and on CUDA with `deterministic`. Under torchrun every process calls this; the first one writes
    config.toml, checkpoint-*.pt and best.pt, metrics.csv and metrics.jsonl (a row per epoch), steps.jsonl, curves.png
    and sheet.png.

    Parameters
    ----------
    config : Config
        Settings; `epochs = 0` writes an untrained encoder, the baseline of every result.
    shards_dir : str or Path
        Directory or address of the shards.
    out : str or Path
        Directory of the run.
    score : callable or None
        Called every `config.knn_every` epochs with the encoder; the best score decides which checkpoint is best.pt.

    Returns
    -------
    list of dict
        Metrics, a row per epoch.

    Raises
    ------
    UserError
        For a mistake in the settings, another run or another process in `out`, or a loss that is not finite.
    Stopped
        Soon after SIGTERM or Ctrl-C.
    """
    shards, out = open_shards(shards_dir), Path(out)
    with exclusive(out) if distributed.is_first_started() else nullcontext():
        checkpoint = load_resumable(out)
        device = choose_device(config.device)
        config = resolve(config, shards, device, checkpoint)
        with arithmetic(config), distributed.join_processes(device):
            if device.type == "cpu":
                keep_freed_memory()
            require_boards(config)
            stream = make_stream(config, shards, device)
            state = make_state(config, shards, device, len(stream), is_new=checkpoint is None)
            distributed.wait()  # no process may write a checkpoint while another one still reads
            is_new = checkpoint is None
            if checkpoint is not None:
                refuse_other_run(out, checkpoint, config, shards.digest)
                restore(state, checkpoint, out)
                if distributed.is_first_started() and state.epoch.number < config.epochs:
                    warn_of_other_threads(out, checkpoint, device)
                stream.recheck(state.damaged)
                del checkpoint  # a second copy of all weights
            _refuse_different_checkpoints(out, state)
            if config.compile != "none":
                require_compiler(device)
                compile_method(state.method, config.compile)
            step = make_step(state.method, state.optimizer, config, device, state.scaler)
            with open_run(config, shards, stream, out, device, state, score) as run:
                if is_new:
                    _save(run, state)
                with stop_on_signal() as stop:
                    while state.epoch.number < config.epochs:
                        row = _train_epoch(run, state, step, stop)
                        _refuse_broken_weights(run, state)
                        is_best = _score_epoch(run, state, row)
                        _warn_of_collapse(run, row)
                        state.rows.append(row)
                        state.epoch = EpochProgress(state.epoch.number + 1)
                        if is_best or state.is_save_due or state.epoch.number == config.epochs:
                            begin = time.monotonic()
                            _save(run, state, is_best)
                            state.epoch.seconds += time.monotonic() - begin  # counts in the epoch that follows
                        if run.is_writer:
                            write_rows(out, state.rows)
                            run.board.write("epoch", row, state.step - 1)  # where the epoch's last step is
                if state.rows and run.is_writer:
                    draw_curves(out / "curves.png", state.rows)
            return state.rows


def _train_epoch(run: Run, state: TrainState, step: Step, stop: threading.Event) -> Row:
    """Train on the rest of the current epoch and return its row of metrics."""
    config, epoch = run.config, state.epoch
    state.method.train()
    state.lap = Lap()
    begin = time.monotonic()
    for batch in run.stream.epoch(epoch.number, skip=epoch.batches):
        waited = time.monotonic() - begin
        epoch.waited += waited
        state.lap.waited += waited

        number, lr = state.step, run.lr(state.step)
        metrics: StepMetrics | None = None
        with suppress(torch.OutOfMemoryError):
            done = step(batch, epoch.number, number, run.steps, lr)
            if state.online is not None:
                done = join(done, stack_metrics(state.online.step(state.method.encoder, batch, config), run.device))
            metrics = done
        if metrics is None:  # outside the handler, which would keep the tensors of the failed step alive
            hint = _new_out_hint(state)
            raise explain_out_of_memory(state.method, batch, number, epoch.number, config, run.device, hint)
        _queue_metrics(run, state, metrics, lr, stop.is_set())
        _read_metrics(run, state, leave=IN_FLIGHT if run.device.type == "cuda" else 0)

        epoch.batches += 1
        ended = time.monotonic()
        epoch.seconds += ended - begin
        if state.is_stop_requested:
            _save(run, state)
            raise Stopped(state.saved_step)
        if state.is_save_due and epoch.batches < len(run.stream):  # after the last batch, the epoch's row comes first
            _save(run, state)
        begin = time.monotonic()
        epoch.seconds += begin - ended  # a checkpoint counts as time, but not as waiting for data
    _read_metrics(run, state)

    steps = len(run.stream)
    return {
        "epoch": epoch.number + 1,
        "lr": run.lr((epoch.number + 1) * steps - 1),
        **{name: total / steps for name, total in epoch.sums.items()},
        "damaged": len(_gather_damaged(run, state)),
        "samples_per_second": steps * config.batch_size / epoch.seconds,
        "data_wait": epoch.waited / epoch.seconds,
        **(run.speed.metrics(steps, epoch.seconds) if run.speed is not None else {}),
    }


def _queue_metrics(run: Run, state: TrainState, metrics: StepMetrics, lr: float, is_stopping: bool) -> None:
    """Start copying a step's metrics to the host, and find out whether to stop or to save after it."""
    is_due = run.is_save_due(state)
    if distributed.count_processes() == 1:
        state.is_stop_requested |= is_stopping
        state.is_save_due |= is_due
    else:  # the means over the processes, so that all of them stop and save after the same step
        metrics = join(metrics, stack_metrics({STOP: float(is_stopping), SAVE: float(is_due)}, run.device))
    values = fetch_async(distributed.average(metrics.values))
    state.pending.append(PendingMetrics(state.step, lr, metrics.names, values))


def _read_metrics(run: Run, state: TrainState, leave: int = 0) -> None:
    """Take the metrics of all steps but the last `leave` from the device: sum, check and log them.

    Raises
    ------
    UserError
        If a loss is not finite.
    """
    config, steps = run.config, len(run.stream)
    while len(state.pending) > leave:
        number, lr, names, fetch = state.pending.popleft()
        values = dict(zip(names, fetch(), strict=True))
        state.is_stop_requested |= values.pop(STOP, 0) > 0
        state.is_save_due |= values.pop(SAVE, 0) > 0
        if not math.isfinite(values["loss"]):
            raise UserError(
                f"step {number} (epoch {number // steps + 1}): the loss is {values['loss']}; the last good checkpoint "
                f"is of step {state.saved_step}. Try a lower lr{_new_out_hint(state)}"
            )
        for name, value in values.items():
            state.epoch.sums[name] = state.epoch.sums.get(name, 0.0) + value
        state.lap.steps += 1
        if run.log is None:
            continue
        note = f"epoch {number // steps + 1}/{config.epochs}, loss {values['loss']:.3f}"
        if run.speed is not None and state.lap.steps > 1:
            if state.lap.memory is None:
                state.lap.memory = run.speed.peak_memory()
            note += f", {run.speed.mfu(state.lap.steps, state.lap.seconds):.0%} of peak, {state.lap.memory:.1f} GB"
        run.progress(config.batch_size, note=note)
        if config.log_every and number % config.log_every == 0:
            values = {"lr": lr, **values, **state.lap.speed(config.batch_size)}
            if run.speed is not None:
                values |= run.speed.metrics(state.lap.steps, state.lap.seconds)
            state.lap = Lap()
            run.log.write({"step": number, "epoch": number // steps + 1, **values})
            run.board.write("step", values, number)


def _save(run: Run, state: TrainState, is_best: bool = False) -> None:
    """Write a checkpoint of the steps done; every process calls this."""
    _read_metrics(run, state)
    _refuse_broken_weights(run, state)
    state.damaged = _gather_damaged(run, state)
    state.saved_step, state.saved_at, state.is_save_due = state.step, time.monotonic(), False
    if run.log is not None and run.writer is not None:
        if state.damaged:
            write_atomically(run.out / "damaged.txt", "".join(f"{text}\n" for text in state.damaged.values()))
        state.log_bytes = run.log.sync()
        run.writer.write(snapshot(state, run.config, run.shards), is_best)


def _score_epoch(run: Run, state: TrainState, row: Row) -> bool:
    """Add the kNN score and RankMe to the row if they are due; return True if the score is the best so far."""
    every, number = run.config.knn_every, state.epoch.number + 1
    if run.score is None or not every or (number % every and number != run.config.epochs):
        return False
    # In eval mode torch.compile would compile the networks once more, for minutes.
    with torch.compiler.set_stance("force_eager"):
        row |= run.score(state.method.encoder, run.shards, run.config, run.device) if run.is_writer else {"knn": None}
    distributed.wait()
    scores = [other["knn"] for other in state.rows if other.get("knn") is not None]
    return row["knn"] is not None and row["knn"] >= max(scores, default=0)


def _gather_damaged(run: Run, state: TrainState) -> dict[int, str]:
    """Return the samples that any process found damaged; UserError if they are more than `bad_share`."""
    found = distributed.gather_objects(run.stream.damaged.found())
    damaged = dict(sorted((number, text) for part in found for number, text in part.items()))
    run.stream.damaged.add(damaged)
    return damaged


def _warn_of_collapse(run: Run, row: Row) -> None:
    if run.is_writer and row["embedding_std"] < COLLAPSED:
        warn(
            f"epoch {row['epoch']}: the embeddings have collapsed (their standard deviation is "
            f"{row['embedding_std']:.3f} of that of evenly spread ones); try a lower lr, warmup_epochs, a momentum of "
            "0.99 to 0.996, or a larger batch"
        )


def _refuse_broken_weights(run: Run, state: TrainState) -> None:
    """Raise UserError if a weight is not finite: no later loss shows what the last step before a checkpoint did."""
    finite = torch.stack([tensor.isfinite().all() for tensor in state.method.state_dict().values()]).all()
    if not bool(finite):  # a single wait for the device
        raise UserError(
            f"after step {state.step} weights are no longer finite; the last good checkpoint is of step "
            f"{state.saved_step}. Try a lower lr{_new_out_hint(state)}"
        )


def _new_out_hint(state: TrainState) -> str:
    """Return what to add to advice on settings: a run that has saved a step cannot change them."""
    return ", with another --out" if state.saved_step else ""


def _refuse_different_checkpoints(out: Path, state: TrainState) -> None:
    """Raise UserError unless all processes resume from the same step."""
    steps = distributed.gather_objects(state.saved_step)
    if len(set(steps)) > 1:
        raise UserError(f"{out}: the processes found checkpoints of steps {steps}; all must see the same directory")
