"""Measure one GPU in under nine minutes: peaks, step times, exact resumption, a CIFAR-10 run and a profile.

    python benchmarks/card.py --out card.jsonl --data TARS            # TARS from benchmarks/cifar_pack.py unpack
    python benchmarks/card.py --out card.jsonl --device cpu --toy     # tests every stage in minutes without a GPU

Each stage runs in a separate process with a time limit (the last one has all the time that is left), so that a crash or
hang does not affect the others, and appends its figures to the file as it measures them. Stages:

hardware   the matrix peak (bf16, random data) and the memory bandwidth (bytes read and written by a large copy)
steps      time of a step, images/s, FLOPs, fraction of the peak: as a CUDA graph, eager, and compiled; ours, lightly's
exact      bitwise comparison of `deterministic` runs: resumed and uninterrupted, as a CUDA graph and eager
pirl       the same for PIRL, whose step `sacl-train` does not capture: does it stand a CUDA graph?
profile    the ten operations that take the most time in a step
cifar      build CIFAR-10, with textures if a row uses them, train --rows for --epochs or as many as fit, then score by
           kNN and linear probe

What docs/results.md does not have yet, in two calls, the most valuable figures of each first:

    python benchmarks/card.py --out card.jsonl --data TARS --stages cifar --minutes 8 \
        --rows sacl:none,simclr,byol,mocov2 --epochs 50 --batch-size 256     # beside SACL with textures
    python benchmarks/card.py --out card.jsonl --stages hardware,pirl,steps --minutes 5
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from gpu import FULL, STEPS, TINY, make_config, measure, our_step, profile_step, time_steps

from sacl_train import load_config, train
from sacl_train.config import Config
from sacl_train.evaluate.probe import evaluate
from sacl_train.methods import METHODS
from sacl_train.training.checkpoint import list_checkpoints, read_checkpoint
from sacl_train.training.precision import arithmetic
from sacl_train.training.speed import matrix_peak
from texturegen.builds import Recipe, build
from texturegen.system.threads import count_cpus

# Time limit of each stage in seconds; the last one gets the rest of --minutes.
LIMITS = {"hardware": 40, "steps": 150, "exact": 60, "pirl": 60, "profile": 30, "cifar": 300}
Write = Callable[..., None]


def hardware(device: torch.device, toy: bool, write: Write, **_: Any) -> None:
    scale = TINY if toy else FULL
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    count = 1 << 20 if toy else 1 << 31
    source = torch.empty(count, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    seconds = min(time_steps(lambda: target.copy_(source), device, scale.steps, scale.rounds + 1))
    write(device=name, torch=torch.__version__, cuda=torch.version.cuda, cpus=count_cpus())
    write(matrix_tflops=matrix_peak(device, scale.matrix) / 1e12, copy_tb_per_s=2 * count / seconds / 1e12)


def steps(device: torch.device, toy: bool, write: Write, **_: Any) -> None:
    scale = TINY if toy else replace(FULL, rounds=3, steps=5)
    peak = matrix_peak(device, scale.matrix)
    kinds = {**STEPS, **{f"ours, {name}": our_step(name) for name in ("simclr", "byol")}}
    for mode, name, encoder, side, count in PLAN_TOY if toy else PLAN:
        compiled, graph, precision = MODES[mode]
        about = {"step": name, "mode": mode, "encoder": encoder, "px": side, "batch": count}
        config = make_config(
            replace(scale, encoder=encoder),
            precision=precision,
            compile=compiled,
            cuda_graph=graph and device.type == "cuda",
        )
        begin = time.monotonic()
        try:
            found = measure(kinds[name], device, scale, config, side, count, peak)
            write(**about, **found, measured_in_s=time.monotonic() - begin)
        except (torch.OutOfMemoryError, ImportError) as error:
            write(**about, failed=type(error).__name__)


# Mode -> compile, cuda_graph, precision.
MODES = {
    "captured": ("none", True, "bf16"),
    "eager": ("none", False, "bf16"),
    "eager, fp16": ("none", False, "fp16"),
    "compiled and captured": ("default", True, "bf16"),
}

# What `steps` measures, the most important first: the time limit may cut it off. Compilation takes about a minute each.
PLAN = [
    ("compiled and captured", "ours, sacl", "se_resnet50", 32, 128),
    ("compiled and captured", "ours, sacl", "se_resnet50", 224, 256),
    ("eager, fp16", "ours, sacl", "se_resnet18", 32, 128),
    *(
        ("captured", name, "se_resnet18", 32, 128)
        for name in ("ours, sacl", "ours, mocov2", "ours, simclr", "ours, byol")
    ),
    ("compiled and captured", "ours, sacl", "se_resnet50", 96, 256),
    ("compiled and captured", "ours, sacl", "se_resnet18", 32, 128),
    ("compiled and captured", "ours, sacl", "se_resnet18", 32, 512),
    *(("captured", "ours, sacl", "se_resnet50", *size) for size in ((32, 128), (32, 512), (96, 256), (224, 256))),
    *(
        ("eager", name, "se_resnet18", 32, 128)
        for name in ("lightly, mocov2", "ours, mocov2", "lightly, simclr", "ours, simclr", "ours, sacl")
    ),
    *(("eager", name, "se_resnet50", 224, 256) for name in ("lightly, mocov2", "ours, mocov2", "ours, sacl")),
]
PLAN_TOY = [
    (mode, step, "se_resnet8", 16, 8)
    for mode, step in (("captured", "ours, sacl"), ("eager", "lightly, mocov2"), ("eager", "lightly, simclr"))
]


def exact(device: torch.device, toy: bool, write: Write, work: Path, **_: Any) -> None:
    _compare("sacl", device, toy, write, work)


def pirl(device: torch.device, toy: bool, write: Write, work: Path, **_: Any) -> None:
    METHODS["pirl"].load().is_capturable = True
    _compare("pirl", device, toy, write, work)


def _compare(method: str, device: torch.device, toy: bool, write: Write, work: Path) -> None:
    """Compare the weights of a run with those of a resumed one, and of one that is not captured."""
    shards = work / "shapes"
    build(Recipe("shapes", limit=64 if toy else 512), shards)
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 16 if toy else 64, "save_every": 4 if toy else 8}
    settings |= {"keep": 99, "knn_every": 0, "compile": "none", "precision": "bf16", "deterministic": True}
    settings |= {"encoder": "se_resnet8", "width": 8} if toy else {"encoder": "se_resnet18"}
    config = load_config(None, {"method": method, **settings, **_small_heads(method, toy), "device": device.type})
    whole, resumed, eager = (work / name for name in ("whole", "resumed", "eager"))
    train(config, shards, whole)
    resumed.mkdir()
    middle = list_checkpoints(whole)[1]  # the newest one is of the end
    shutil.copy(middle, resumed / middle.name)
    train(config, shards, resumed)
    train(replace(config, cuda_graph=False), shards, eager)
    ours = read_checkpoint(list_checkpoints(whole)[0])["method"]
    for run in (resumed, eager):
        theirs = read_checkpoint(list_checkpoints(run)[0])["method"]
        differ = [name for name in ours if not torch.equal(ours[name], theirs[name])]
        far = max((float((ours[name].double() - theirs[name].double()).abs().max()) for name in differ), default=0.0)
        about = {"method": method, "run": run.name, "resumed_from": middle.name}
        write(**about, tensors=len(ours), that_differ=len(differ), largest=far)


def cifar(
    device: torch.device, toy: bool, write: Write, work: Path, data: Path | None, limit: float, **choice: Any
) -> None:
    begin = time.monotonic()
    train_shards, test_shards = work / "train", work / "test"
    workers = count_cpus()
    settings: dict[str, Any] = {"encoder": choice["encoder"], "device": device.type, "knn_every": 0}
    settings |= {"weak": "colour-geometric", "precision": "bf16", "batch_size": choice["batch_size"]}
    settings |= {"lr": 0.1 * choice["batch_size"] / 128, "save_minutes": 100}
    if toy:
        settings |= {"encoder": "se_resnet8", "width": 8, "stem": "cifar-stride2", "batch_size": 32}
    rows = [row.partition(":") for row in choice["rows"].split(",")]
    configs = [_row_config(method, role, settings, toy) for method, _, role in rows]
    per_image = int(any(config.method_settings.texture_role != "none" for config in configs))
    if data is None:
        made = Recipe("shapes", limit=256 if toy else None, per_image=per_image, shard_size=64)
        build(made, train_shards, workers=workers)
        build(Recipe("shapes", split="test", limit=100 if toy else None, per_image=0), test_shards, workers=workers)
    else:
        made = Recipe("webdataset", per_image=per_image, shard_size=500)
        build(made, train_shards, root=f"{data}/train-*.tar", workers=workers)
        build(
            Recipe("webdataset", per_image=0, shard_size=500), test_shards, root=f"{data}/test-*.tar", workers=workers
        )
    write(data=str(data or "shapes"), textures=per_image, build_seconds=time.monotonic() - begin)
    if choice["epochs"] is None:
        trial = train(replace(configs[0], epochs=3), train_shards, work / "trial")
        per_epoch = _samples(train_shards) / max(row["samples_per_second"] for row in trial[1:])
        each = (limit - (time.monotonic() - begin)) / len(rows) - (5 if toy else PROBE_SECONDS)
        epochs = max(1, min(2 if toy else 200, int(each / per_epoch)))
        write(seconds_per_epoch=per_epoch, epochs=epochs)
    else:
        epochs = choice["epochs"]
    for (method, _, role), config in zip(rows, configs, strict=True):
        about = {"method": method, "role": role or "default", "encoder": config.encoder, "epochs": epochs}
        run, started = work / f"{method}-{role}", time.monotonic()
        end = train(replace(config, epochs=epochs), train_shards, run)[-1]
        last = {name: end[name] for name in ("loss", "samples_per_second", "data_wait", "embedding_std")}
        last |= {name: end[name] for name in ("mfu", "peak_memory_gb") if name in end}
        write(**about, train_seconds=time.monotonic() - started, batch_size=config.batch_size, **last)
        for name in ("knn", "linear"):
            given = {"epochs": 2 if toy else 30} if name == "linear" else {}
            started = time.monotonic()
            found = evaluate(name, run, train_shards, [test_shards], device.type, **given)
            measured = {key: found[key] for key in ("protocol", "network", "norm_statistics", "precision")}
            write(**about, probe=name, **measured, test=found["test"], seconds=time.monotonic() - started)


PROBE_SECONDS = 40  # of a row, for compilation and its two probes


def _row_config(method: str, role: str, settings: dict[str, Any], toy: bool) -> Config:
    own = {"texture_role": role} if role else {}
    own |= {"queue": 4096} if method == "mocov2" else {}
    return load_config(None, {"method": method, "attention": "se", **settings, **own, **_small_heads(method, toy)})


def _small_heads(method: str, toy: bool) -> dict[str, int]:
    """Return settings of narrow heads at toy size, those that the method has."""
    small = {"projector_hidden": 16, "projector_out": 16, "predictor_hidden": 8, "queue": 64} if toy else {}
    fields = METHODS[method].load().Settings.__dataclass_fields__
    return {key: value for key, value in small.items() if key in fields}


def _samples(shards: Path) -> int:
    return int(json.loads((shards / "build.json").read_text())["counts"]["samples"])


def report_kernels(device: torch.device, toy: bool, write: Write, **_: Any) -> None:
    scale, side, count = (TINY, 16, 8) if toy else (replace(FULL, encoder="se_resnet50"), 32, 128)
    config = make_config(scale, precision="bf16", compile="none", cuda_graph=device.type == "cuda")
    with arithmetic(config):
        step = STEPS["ours, sacl"](config, device, side, count)
        for _ in range(5):
            step()
        costs = profile_step(step, device)
    launches = sum(calls for _, _, calls in costs)
    total = sum(cost for _, cost, _ in costs)
    for name, cost, calls in costs[:10]:
        write(operation=name[:100], ms=cost, share=cost / total, calls=calls)
    write(launches=launches, ms=total)


STAGES = {"hardware": hardware, "steps": steps, "exact": exact, "profile": report_kernels, "cifar": cifar}
TRIALS = {"pirl": pirl}  # only on request


@click.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="JSON lines, appended.")
@click.option("--data", type=click.Path(exists=True, path_type=Path), help="Tars of CIFAR-10  [default: shapes]")
@click.option("--device", default="cuda", show_default=True)
@click.option("--stages", default=",".join(STAGES), show_default=True)
@click.option("--minutes", default=8.5, show_default=True, help="Total for all stages.")
@click.option("--encoder", default="se_resnet18", show_default=True, help="For the stage cifar, like the next three.")
@click.option("--rows", default="sacl", show_default=True, help="METHOD[:TEXTURE_ROLE],... to train in turn.")
@click.option("--batch-size", default=128, show_default=True)
@click.option("--epochs", type=int, help="Epochs of every row  [default: as many of 200 as fit]")
@click.option("--toy", is_flag=True, help="Use tiny sizes, to test the script.")
@click.option("--stage", hidden=True, help="Run only this stage, in this process.")
@click.option("--limit", type=float, hidden=True)
def main(
    out: Path, device: str, stages: str, minutes: float, stage: str | None, limit: float, toy: bool, **choice: Any
) -> None:
    """Measure a GPU, and this trainer on it, in stages."""
    if stage is not None:
        with tempfile.TemporaryDirectory() as work:
            write = partial(_append, out, stage)
            {**STAGES, **TRIALS}[stage](
                torch.device(device), toy=toy, write=write, work=Path(work), limit=limit, **choice
            )
        return
    end = time.monotonic() + 60 * minutes
    *first, last = stages.split(",")
    for name in (*first, last):
        left = end - time.monotonic()
        seconds = left if name == last else min(left, LIMITS[name])
        command = [sys.executable, __file__, *sys.argv[1:], "--stage", name, "--limit", str(seconds)]
        begin = time.monotonic()
        try:
            status: Any = subprocess.run(command, timeout=max(seconds, 1), env={**os.environ}).returncode
        except subprocess.TimeoutExpired:
            status = "time limit"
        _append(out, name, ended=status, seconds=round(time.monotonic() - begin, 1))


def _append(out: Path, stage: str, **figures: Any) -> None:
    line = json.dumps({"stage": stage, **figures})
    with out.open("a") as f:
        f.write(line + "\n")
    print(line, flush=True)


if __name__ == "__main__":
    main()
