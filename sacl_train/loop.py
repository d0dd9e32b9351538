"""The training loop. It knows no method's insides: batch -> loss, step, `after_step`."""

import csv
import io
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sacl_train.checkpoint import load_checkpoint, save_checkpoint
from sacl_train.config import Config, dump_config
from sacl_train.data.stream import Stream, channel_statistics
from sacl_train.evaluate.features import extract_features
from sacl_train.evaluate.knn import knn_accuracy
from sacl_train.methods import Method
from sacl_train.optim import build_sgd, cosine_lr
from sacl_train.report.curves import draw_curves
from sacl_train.report.sheet import draw_views
from sacl_train.run import build_method, choose_device, shards_digest
from texturegen.console import Progress, warn
from texturegen.errors import UserError
from texturegen.files import write_atomically
from texturegen.shards import Shards, open_shards

COLLAPSED = 0.1  # of the embedding_std of evenly spread embeddings
FREE = ("device", "threads", "cache_gb", "save_every", "keep")  # settings that may differ when a run goes on
KNN_SAMPLES = 2500  # training images the kNN score looks at: a fifth as queries, the rest as bank


class Stopped(Exception):
    """The run was asked to stop (Ctrl-C, SIGTERM), and has saved a checkpoint of `step`."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped at step {step}")
        self.step = step


@dataclass
class Epoch:
    """What is under way of an epoch; part of the checkpoint.

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


def train(config: Config, shards_dir: str | Path, out: str | Path) -> list[dict[str, Any]]:
    """Train for `config.epochs` epochs into directory `out`, going on after the last checkpoint that is there.

    A run that went on has the losses and the weights, bit for bit, of one that was never stopped (on a CPU).
    Writes config.toml, checkpoint-*.pt and best.pt, metrics.csv and metrics.jsonl (a row per epoch), curves.png and
    sheet.png.
    `config.epochs = 0` writes an untrained encoder: the row that every result should be compared with.

    Returns the rows of metrics. Raises UserError for a mistake of the user's or a loss that is not finite, and Stopped
    at the next step after SIGTERM or Ctrl-C.
    """
    out = Path(out)
    shards = open_shards(shards_dir)
    stream = Stream(
        shards,
        config.batch_size,
        config.seed,
        config.method_settings.texture_role != "none",
        config.threads,
        config.cache_gb,
    )
    if config.batch_size > len(shards):
        raise UserError(
            f"batch_size is {config.batch_size}, but {shards.directory} holds {len(shards)} images; "
            f"set a batch of at most {len(shards)}"
        )
    image_size = shards.image_size()
    device = choose_device(config.device)
    if config.mean is None or config.std is None:
        mean, std = channel_statistics(shards)
        config = replace(config, mean=config.mean or mean, std=config.std or std)

    digest = shards_digest(shards)
    method = build_method(config, image_size).to(device)
    if config.channels_last:
        method = method.to(memory_format=torch.channels_last)
    optimizer = build_sgd(method, config.lr, config.sgd_momentum, config.weight_decay)
    rows: list[dict[str, Any]] = []
    now = Epoch(0)
    if (state := load_checkpoint(out)) is not None:
        _refuse_other_run(out, state, config, digest)
        method.load_state_dict(state["method"])
        optimizer.load_state_dict(state["optimizer"])
        rows, now = state["metrics"], Epoch(**state["running"])
        _write_metrics(out, rows)  # a crash may have come between the checkpoint and them

    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "config.toml", dump_config(config))
    draw_views(out / "sheet.png", shards, method.weak)
    steps = len(shards) // config.batch_size
    saved = now.number * steps + now.batches

    def save(now: Epoch, best: bool = False) -> None:
        nonlocal saved
        _refuse_broken(method, now.number * steps + now.batches, saved)
        saved = now.number * steps + now.batches
        content = {
            "step": saved,
            "epoch": len(rows),
            "running": asdict(now),
            "method": method.state_dict(),
            "optimizer": optimizer.state_dict(),
            "metrics": rows,
            "config": _comparable(config),
            "shards": digest,
            "image_size": image_size,
        }
        save_checkpoint(out, content, config.keep, best)

    if state is None:
        save(now)
    progress = Progress(config.epochs * steps * config.batch_size, "samples", saved * config.batch_size)
    try:
        with _listen() as stop:
            while now.number < config.epochs:

                def after_step(now: Epoch = now) -> None:
                    if stop.is_set():
                        save(now)
                        raise Stopped(saved)
                    if now.number * steps + now.batches - saved >= config.save_every and now.batches < steps:
                        save(now)

                row = _train_epoch(method, optimizer, stream, config, now, steps, device, progress, after_step)
                _refuse_broken(method, (now.number + 1) * steps, saved)
                best = False
                if config.knn_every and ((now.number + 1) % config.knn_every == 0 or now.number + 1 == config.epochs):
                    scores = [other["knn"] for other in rows if other.get("knn") is not None]
                    row["knn"] = _knn_score(method, shards, config, device)
                    best = row["knn"] is not None and row["knn"] >= max(scores, default=0)
                rows.append(row)
                if row["embedding_std"] < COLLAPSED:
                    warn(
                        f"epoch {row['epoch']}: the embeddings have collapsed (their standard deviation is "
                        f"{row['embedding_std']:.3f} of a spread one's); try a lower lr"
                    )
                now = Epoch(now.number + 1)
                save(now, best)
                _write_metrics(out, rows)
    finally:
        progress.close()
    if rows:
        draw_curves(out / "curves.png", rows)
    return rows


def _train_epoch(
    method: Method,
    optimizer: torch.optim.Optimizer,
    stream: Stream,
    config: Config,
    now: Epoch,
    steps: int,
    device: torch.device,
    progress: Progress,
    after_step: Callable[[], None],
) -> dict[str, Any]:
    """Do what is left of an epoch, counting in `now`; return its row of metrics."""
    method.train()
    epoch = now.number
    warmup = round(config.warmup_epochs * steps)
    begin = time.monotonic()
    for batch in stream.epoch(epoch, skip=now.batches):
        now.waited += time.monotonic() - begin
        step = epoch * steps + now.batches
        lr = cosine_lr(step, config.epochs * steps, config.lr, warmup)
        for group in optimizer.param_groups:
            group["lr"] = lr
        # The views depend on (seed, step) alone: a resumed run draws what the uninterrupted one would have.
        generator = torch.Generator().manual_seed(
            np.random.SeedSequence([config.seed, step]).generate_state(1)[0].item()
        )
        loss, stats = method(
            {name: batch[name].to(device) for name in ("image", "texture") if name in batch}, generator
        )
        value = loss.item()
        if not np.isfinite(value):
            raise UserError(
                f"step {step} (epoch {epoch + 1}): the loss is {value}; the checkpoints are of earlier steps. "
                "Try a lower lr, into another --out"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.clip is not None:
            torch.nn.utils.clip_grad_norm_((p for p in method.parameters() if p.grad is not None), config.clip)
        optimizer.step()
        method.after_step()
        for name, stat in stats.items():
            now.sums[name] = now.sums.get(name, 0.0) + float(stat)
        progress(config.batch_size, note=f"epoch {epoch + 1}/{config.epochs}, loss {value:.3f}")
        now.batches += 1
        now.seconds += time.monotonic() - begin
        begin = time.monotonic()
        after_step()
    means = {name: total / steps for name, total in now.sums.items()}
    lr = cosine_lr(
        (epoch + 1) * steps - 1, config.epochs * steps, config.lr
    )  # a resumed epoch may have had no step left
    return {"epoch": epoch + 1, "lr": lr, **means, "samples_per_second": steps * config.batch_size / now.seconds}


@contextmanager
def _listen() -> Iterator[threading.Event]:
    """An event that the first SIGTERM or Ctrl-C sets; the second has its usual effect."""
    stop = threading.Event()
    usual: dict[int, Any] = {}

    def heed(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(number, usual[number])

    if threading.current_thread() is threading.main_thread():  # Python tells no other of signals
        usual = {number: signal.signal(number, heed) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


def _knn_score(method: Method, shards: Shards, config: Config, device: torch.device) -> float | None:
    """kNN top-1 of training images among other training images; None where fewer than two classes are labelled."""
    labelled = np.flatnonzero(shards.labels >= 0)
    if len(np.unique(shards.labels[labelled])) < 2 or len(labelled) < 10:
        return None
    picked = np.random.default_rng(config.seed).permutation(labelled)[:KNN_SAMPLES]
    features = extract_features(method.encoder, shards, config, device, picked)
    labels = torch.from_numpy(shards.labels[picked])
    split = len(picked) // 5
    return knn_accuracy(features[split:], labels[split:], features[:split], labels[:split])


def _comparable(config: Config) -> dict[str, Any]:
    """What must be equal for a run to go on: all that decides the figures, not where and how fast they are made."""
    return {key: value for key, value in config.flat().items() if key not in FREE}


def _refuse_other_run(out: Path, state: dict[str, Any], config: Config, digest: str) -> None:
    mine = _comparable(config)
    there = state["config"]
    differ = [f"{k} {there.get(k)!r} there, {mine.get(k)!r} asked" for k in mine if there.get(k) != mine.get(k)]
    if state["shards"] != digest:
        differ.append("other shards")
    if differ:
        raise UserError(
            f"{out}: holds another run ({'; '.join(differ)}); choose another --out or give the same settings"
        )


def _write_metrics(out: Path, rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = io.StringIO()
    writer = csv.DictWriter(table, names)
    writer.writeheader()
    writer.writerows(rows)
    # Whole files, from the rows the checkpoint holds: after a crash they follow the checkpoint again.
    write_atomically(out / "metrics.csv", table.getvalue())
    write_atomically(out / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def _refuse_broken(method: Method, step: int, saved: int) -> None:
    """A step can destroy the weights unseen: no loss is computed after the last one before a checkpoint."""
    if not all(bool(tensor.isfinite().all()) for tensor in method.state_dict().values()):
        raise UserError(
            f"after step {step} weights are no longer finite; the last good checkpoint is of step {saved}. "
            "Try a lower lr, into another --out"
        )
