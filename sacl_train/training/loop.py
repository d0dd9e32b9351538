"""The training loop. It knows no method's insides: batch -> loss, step, `after_step`."""

import math
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from sacl_train import distributed
from sacl_train.config import Config, dump_config
from sacl_train.data.device import fetch_async
from sacl_train.methods.method import Method
from sacl_train.nets import Encoder
from sacl_train.report.curves import draw_curves
from sacl_train.report.sheet import draw_views
from sacl_train.training.allocator import keep_freed_memory
from sacl_train.training.checkpoint import exclusive, save_checkpoint
from sacl_train.training.metrics import Board, Lap, StepLog, require_board, write_rows
from sacl_train.training.online import make_online
from sacl_train.training.optim import build_optimizer, cosine_lr
from sacl_train.training.resume import comparable, load_resumable, location, refuse_other_run
from sacl_train.training.setup import build_method, choose_device, describe, make_stream, resolve
from sacl_train.training.signals import listen
from sacl_train.training.step import Stepper, arithmetic, as_numbers, explain_memory
from texturegen.console import Progress, warn
from texturegen.errors import UserError
from texturegen.shards import Shards, open_shards
from texturegen.storage.atomic import write_atomically

COLLAPSED = 0.1  # of the embedding_std of evenly spread embeddings


class Stopped(Exception):
    """The run was asked to stop (Ctrl-C, SIGTERM), and has saved a checkpoint of `step`."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped at step {step}")
        self.step = step


@dataclass
class Epoch:
    """What is under way of an epoch; part of the checkpoint, which does not know how long it took to write.

    Attributes
    ----------
    number : of the epoch, from 0.
    batches : done so far.
    seconds : of wall time spent on them.
    waited : of these, waiting for the batch; `data_wait` in the metrics is its share.
    sums : of each statistic, over the batches.
    """

    number: int
    batches: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)


Score = Callable[[Encoder, Shards, Config, torch.device], float | None]


def train(config: Config, shards_dir: str | Path, out: str | Path, score: Score | None = None) -> list[dict[str, Any]]:
    """Train for `config.epochs` epochs into directory `out`, going on after the last checkpoint that is there.

    A run that went on has the losses and the weights, bit for bit, of one that was never stopped (on a CPU, and on CUDA
    with `deterministic`). Under torchrun all processes call this; the first writes config.toml, checkpoint-*.pt and
    best.pt, metrics.csv and metrics.jsonl (a row per epoch), steps.jsonl, curves.png and sheet.png.
    `config.epochs = 0` writes an untrained encoder: the row that every result should be compared with.

    Returns the rows of metrics. Raises UserError for a mistake of the user's, where another process trains in `out`, or
    for a loss that is not finite, and Stopped soon after SIGTERM or Ctrl-C.
    """
    shards, out = open_shards(shards_dir), Path(out)
    with exclusive(out) if distributed.first_started() else nullcontext():
        return _train(config, shards, out, score)


def _train(config: Config, shards: Shards, out: Path, score: Score | None) -> list[dict[str, Any]]:
    state = load_resumable(out)
    config = resolve(config, shards, state)
    with arithmetic(config), distributed.joined(choose_device(config.device)) as device:
        if device.type == "cpu":
            keep_freed_memory()
        run = _Run(config, shards, out, device, state, score)
        del state  # a second copy of all weights
        try:
            return run.train()
        finally:
            run.close()


class _Run:
    """The state of a run: networks, optimizer, the place in the data, the metrics; what a checkpoint holds."""

    def __init__(
        self,
        config: Config,
        shards: Shards,
        out: Path,
        device: torch.device,
        state: dict[str, Any] | None,
        score: Score | None,
    ) -> None:
        self.score = score
        self.config, self.shards, self.out, self.device = config, shards, out, device
        require_board(config.tensorboard)
        self.first = distributed.process_rank() == 0  # it alone writes
        self.stream = make_stream(config, shards, device)
        self.steps = len(self.stream)  # of an epoch
        method = build_method(config, shards.image_size())
        distributed.synchronise_batch_norm(method, device)
        self.method: Method = method.to(device)
        if config.channels_last:
            self.method = self.method.to(memory_format=torch.channels_last)
        optimizer = build_optimizer(method, config.optimizer, config.lr, config.sgd_momentum, config.weight_decay)
        self.stepper = Stepper(self.method, optimizer, config, device)
        self.online = make_online(config, method.encoder, shards, device)
        self.rows: list[dict[str, Any]] = []
        self.now, self.lap = Epoch(0), Lap()
        self.saved = 0
        self.pending: deque[tuple[int, float, list[str], Callable[[], list[float]]]] = deque()
        self.stop_asked = False  # by any process, as all have read it
        self.log: StepLog | None = None
        self.new = state is None
        distributed.wait()  # nobody writes while another reads
        if state is not None:
            self._restore(state)
        steps = distributed.gather_objects(self.saved)
        if len(set(steps)) > 1:
            raise UserError(f"{out}: the processes found checkpoints of steps {steps}; all must see the same directory")
        if config.compile:
            for network in self.method.children():
                network.compile()
        if self.first:
            self._begin(state)
        self.board = Board(out, self.saved, config.tensorboard and self.first)

    def _restore(self, state: dict[str, Any]) -> None:
        refuse_other_run(self.out, state, self.config, self.shards.digest)
        self.method.load_state_dict(state["method"])
        self.stepper.optimizer.load_state_dict(state["optimizer"])
        self.stepper.scaler.load_state_dict(state["scaler"])
        if self.online is not None:
            self.online.load(state["online"])
        self.rows, self.now, self.saved = state["metrics"], Epoch(**state["running"]), state["step"]
        self.stream.try_again(state["damaged"])

    def _begin(self, state: dict[str, Any] | None) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        if state is not None:
            write_rows(self.out, self.rows)  # a crash may have come between the checkpoint and them
        write_atomically(self.out / "config.toml", dump_config(self.config))
        draw_views(self.out / "sheet.png", self.shards, self.method.weak)
        self.log = StepLog(self.out / "steps.jsonl", state["steps_bytes"] if state else 0)
        print(describe(self.config, self.stream, self.saved), file=sys.stderr, flush=True)

    def train(self) -> list[dict[str, Any]]:
        """All epochs that are left."""
        config = self.config
        if self.new:
            self.save()
        self.progress = Progress(self.total * config.batch_size, "samples", self.saved * config.batch_size)
        try:
            with listen() as self.asked:
                while self.now.number < config.epochs:
                    row = self._train_epoch()
                    self._refuse_broken()
                    best = self._score(row)
                    self.rows.append(row)
                    if row["embedding_std"] < COLLAPSED:
                        self._warn_of_collapse(row)
                    self.now = Epoch(self.now.number + 1)
                    self.save(best)
                    if self.first:
                        write_rows(self.out, self.rows)
                        self.board.write("epoch", row, self.saved)
        finally:
            self.progress.close()
        if self.rows and self.first:
            draw_curves(self.out / "curves.png", self.rows)
        return self.rows

    @property
    def total(self) -> int:
        """Steps of the run."""
        return self.config.epochs * self.steps

    @property
    def step(self) -> int:
        """The next step."""
        return self.now.number * self.steps + self.now.batches

    def _lr(self, step: int) -> float:
        return cosine_lr(step, self.total, self.config.lr, round(self.config.warmup_epochs * self.steps))

    def _train_epoch(self) -> dict[str, Any]:
        """Do what is left of the epoch, counting in `now`; return its row of metrics."""
        self.method.train()
        now, config = self.now, self.config
        self.lap = Lap()
        begin = time.monotonic()
        for batch in self.stream.epoch(now.number, skip=now.batches):
            waited = time.monotonic() - begin
            now.waited += waited
            self.lap.waited += waited
            step, lr = self.step, self._lr(self.step)
            metrics: dict[str, Any] = {}
            with suppress(torch.OutOfMemoryError):
                done = self.stepper(batch, now.number, step, self.total, lr)
                if self.online is not None:
                    done |= self.online.step(self.method.encoder, batch, config)
                metrics = done
            if not metrics:  # behind the handler, which holds all tensors of the step that failed
                raise explain_memory(self.stepper, batch, step, now.number, self._new_out_hint())
            names, values = as_numbers({**metrics, "stop": float(self.asked.is_set())}, self.device)
            self.pending.append((step, lr, names, fetch_async(distributed.average(values))))
            # Reading a figure waits for the device: on CUDA that of a step is read when the next is under way.
            self._read_metrics(leave=1 if self.device.type == "cuda" else 0)
            now.batches += 1
            ended = time.monotonic()
            now.seconds += ended - begin
            if self.stop_asked:
                self.save()
                raise Stopped(self.saved)
            if self.step - self.saved >= config.save_every and now.batches < self.steps:
                self.save()
            begin = time.monotonic()
            now.seconds += begin - ended  # of writing: it counts as time, but not as waiting for a batch
        self._read_metrics()
        means = {name: total / self.steps for name, total in now.sums.items()}
        rate = self.steps * config.batch_size / now.seconds
        damaged = len(self._damaged())
        lr = self._lr((now.number + 1) * self.steps - 1)
        row = {"epoch": now.number + 1, "lr": lr, **means, "damaged": damaged, "samples_per_second": rate}
        return {**row, "data_wait": now.waited / now.seconds}

    def _read_metrics(self, leave: int = 0) -> None:
        """Take in the metrics of all steps but the last `leave`; UserError for a loss that is not finite."""
        while len(self.pending) > leave:
            step, lr, names, read = self.pending.popleft()
            values = dict(zip(names, read(), strict=True))
            self.stop_asked |= values.pop("stop") > 0
            if not math.isfinite(values["loss"]):
                raise UserError(
                    f"step {step} (epoch {step // self.steps + 1}): the loss is {values['loss']}; the last good "
                    f"checkpoint is of step {self.saved}. Try a lower lr{self._new_out_hint()}"
                )
            for name, value in values.items():
                self.now.sums[name] = self.now.sums.get(name, 0.0) + value
            self.lap.steps += 1
            if self.log is not None:
                note = f"epoch {step // self.steps + 1}/{self.config.epochs}, loss {values['loss']:.3f}"
                self.progress(self.config.batch_size, note=note)
                if self.config.log_every and step % self.config.log_every == 0:
                    values = {"lr": lr, **values, **self.lap.speed(self.config.batch_size)}
                    self.lap = Lap()
                    self.log.write({"step": step, "epoch": step // self.steps + 1, **values})
                    self.board.write("step", values, step)

    def save(self, best: bool = False) -> None:
        """A checkpoint of the steps done."""
        self._read_metrics()
        self._refuse_broken()
        damaged = self._damaged()
        self.saved = self.step
        if self.log is not None:
            if damaged:
                write_atomically(self.out / "damaged.txt", "".join(f"{text}\n" for text in damaged.values()))
            content = {
                "step": self.saved,
                "epoch": len(self.rows),
                "running": asdict(self.now),
                "method": self.method.state_dict(),
                "optimizer": self.stepper.optimizer.state_dict(),
                "scaler": self.stepper.scaler.state_dict(),
                "online": self.online.state() if self.online is not None else None,
                "metrics": self.rows,
                "steps_bytes": self.log.offset(),
                "damaged": damaged,
                "config": comparable(self.config),
                "shards": self.shards.digest,
                "shards_place": location(self.shards),
                "image_size": self.shards.image_size(),
            }
            save_checkpoint(self.out, content, self.config.keep, best)

    def _damaged(self) -> dict[int, str]:
        """What any of the processes could not read; UserError when it is too much."""
        found = distributed.gather_objects(self.stream.found_bad())
        damaged = dict(sorted((number, text) for part in found for number, text in part.items()))
        self.stream.take_in(damaged)
        return damaged

    def _score(self, row: dict[str, Any]) -> bool:
        """Put the kNN score into the row if it is due; whether it is the best so far."""
        every, number = self.config.knn_every, self.now.number + 1
        if self.score is None or not every or (number % every and number != self.config.epochs):
            return False
        with torch.compiler.set_stance("force_eager"):  # minutes of compiling again, in eval mode, for this
            row["knn"] = self.score(self.method.encoder, self.shards, self.config, self.device) if self.first else None
        distributed.wait()
        scores = [other["knn"] for other in self.rows if other.get("knn") is not None]
        return row["knn"] is not None and row["knn"] >= max(scores, default=0)

    def _warn_of_collapse(self, row: dict[str, Any]) -> None:
        if self.first:
            warn(
                f"epoch {row['epoch']}: the embeddings have collapsed (their standard deviation is "
                f"{row['embedding_std']:.3f} of a spread one's); try a lower lr, warmup_epochs, a momentum of 0.99 to "
                "0.996, or a larger batch"
            )

    def _refuse_broken(self) -> None:
        """A step can destroy the weights unseen: no loss is computed after the last one before a checkpoint."""
        finite = torch.stack([tensor.isfinite().all() for tensor in self.method.state_dict().values()]).all()
        if not bool(finite):  # the device is waited for once
            raise UserError(
                f"after step {self.step} weights are no longer finite; the last good checkpoint is of step "
                f"{self.saved}. Try a lower lr{self._new_out_hint()}"
            )

    def _new_out_hint(self) -> str:
        """To be added to advice on settings: a run that has saved a step takes no others."""
        return ", into another --out" if self.saved else ""

    def close(self) -> None:
        if self.log is not None:
            self.log.close()
        self.board.close()
