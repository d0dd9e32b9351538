"""Measure one GPU in under nine minutes: peaks, step times, exact resumption, a CIFAR-10 run and a profile.

    python benchmarks/card.py --out card.jsonl --data TARS            # TARS from benchmarks/cifar_pack.py unpack
    python benchmarks/card.py --out card.jsonl --device cpu --toy     # tests every stage in minutes without a GPU

Each stage runs in a separate process with a time limit, so that a crash or hang does not affect the others, and appends
its figures to the file as it measures them. Stages:

hardware   the matrix peak (bf16, random data) and the memory bandwidth (bytes read and written by a large copy)
steps      time of a step, images/s, FLOPs, fraction of the peak, kernel launches: eager, compiled; ours, lightly's
exact      bitwise comparison of a `deterministic` run resumed from a checkpoint with an uninterrupted one
cifar      build textures of CIFAR-10, train for as many epochs as fit, then score by kNN and linear probe
profile    the ten operations that take the most time in a step
"""

import json
import os
import shutil
import statistics
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
from gpu import FULL, STEPS, TINY, Scale, count_flops, make_config, matrix_peak, our_step, synchronise, time_steps
from torch.profiler import ProfilerActivity, profile

from sacl_train import load_config, train
from sacl_train.evaluate.probe import evaluate
from sacl_train.training.checkpoint import list_checkpoints, read_checkpoint
from sacl_train.training.step import arithmetic
from texturegen.builds import Recipe, build
from texturegen.system.threads import count_cpus

# Time limit of each stage in seconds; cifar gets the rest of --minutes.
LIMITS = {"hardware": 40, "steps": 110, "exact": 45, "profile": 30, "cifar": 300}
Write = Callable[..., None]


def hardware(device: torch.device, toy: bool, write: Write, **_: Any) -> None:
    scale = TINY if toy else FULL
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    count = 1 << 20 if toy else 1 << 31
    source = torch.empty(count, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    seconds = min(time_steps(lambda: target.copy_(source), device, scale.steps, scale.rounds + 1))
    write(device=name, torch=torch.__version__, cuda=torch.version.cuda, cpus=count_cpus())
    write(matrix_tflops=matrix_peak(device, scale) / 1e12, copy_tb_per_s=2 * count / seconds / 1e12)


def steps(device: torch.device, toy: bool, write: Write, **_: Any) -> None:
    sizes = [("se_resnet18", 32, 128), ("se_resnet18", 32, 512), ("se_resnet50", 32, 128), ("se_resnet50", 32, 512)]
    sizes += [("se_resnet50", 96, 256), ("se_resnet50", 224, 256)]
    scale = replace(FULL, rounds=3, steps=5)
    if toy:
        sizes, scale = [("se_resnet8", 16, 8)], TINY
    peak = matrix_peak(device, scale)
    kinds = {**STEPS, "ours, simclr": our_step("simclr")}
    for compiled in (False, True):
        for encoder, side, count in sizes:
            for name, make in kinds.items():
                if compiled and name != "ours, sacl":  # minutes of compiling
                    continue
                about = {"step": name, "encoder": encoder, "px": side, "batch": count, "compile": compiled}
                try:
                    write(
                        **about,
                        **_time_step(make, device, replace(scale, encoder=encoder), compiled, side, count, peak),
                    )
                except (torch.OutOfMemoryError, ImportError) as error:
                    write(**about, failed=type(error).__name__)


def _time_step(
    make: Callable[..., Any], device: torch.device, scale: Scale, compiled: bool, side: int, count: int, peak: float
) -> dict[str, Any]:
    torch._dynamo.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    config = make_config(scale, precision="bf16", channels_last=True, compile=compiled)
    with arithmetic(config):
        flops = count_flops(make(replace(config, compile=False), device, side, count))
        step = make(config, device, side, count)
        seconds = statistics.median(time_steps(step, device, scale.steps, scale.rounds))
        launches, _ = _profile(step, device)
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return {
        "ms": 1000 * seconds,
        "images_per_s": count / seconds,
        "gflop_per_image": flops / count / 1e9,
        "share_of_peak": flops / seconds / peak,
        "launches": launches,
        "peak_gib": memory / 2**30,
    }


def _profile(step: Callable[[], object], device: torch.device) -> tuple[int, list[tuple[str, float, int]]]:
    """Return the number of kernels (on a CPU, operations) in a step, and (name, ms, calls) per kind, longest first."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as record:
        step()
        synchronise(device)
    spent = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    costs = [(e.key, getattr(e, spent) / 1000, e.count) for e in record.key_averages() if getattr(e, spent) > 0]
    costs.sort(key=lambda cost: -cost[1])
    return sum(calls for _, _, calls in costs), costs


def exact(device: torch.device, toy: bool, write: Write, work: Path, **_: Any) -> None:
    shards = work / "shapes"
    build(Recipe("shapes", limit=64 if toy else 512), shards)
    settings: dict[str, Any] = {
        "epochs": 2,
        "batch_size": 16 if toy else 64,
        "save_every": 1,
        "keep": 99,
        "knn_every": 0,
    }
    settings |= {"encoder": "se_resnet8" if toy else "se_resnet18", "device": device.type, "deterministic": True}
    settings |= {"projector_hidden": 16, "projector_out": 16, "predictor_hidden": 8, "width": 8} if toy else {}
    for precision in ("fp32", "bf16"):
        config = load_config(None, {**settings, "precision": precision})
        whole, resumed = work / f"whole-{precision}", work / f"resumed-{precision}"
        train(config, shards, whole)
        resumed.mkdir()
        paths = list_checkpoints(whole)  # newest first
        middle = paths[len(paths) // 2]
        shutil.copy(middle, resumed / middle.name)
        train(config, shards, resumed)
        ours, theirs = (read_checkpoint(list_checkpoints(run)[0])["method"] for run in (whole, resumed))
        differ = [name for name in ours if not torch.equal(ours[name], theirs[name])]
        write(precision=precision, resumed_from=middle.name, tensors=len(ours), tensors_that_differ=len(differ))


def cifar(
    device: torch.device, toy: bool, write: Write, work: Path, data: Path | None, limit: float, **choice: Any
) -> None:
    begin = time.monotonic()
    train_shards, test_shards = work / "train", work / "test"
    workers = count_cpus()
    if data is None:
        build(Recipe("shapes", limit=256 if toy else None, shard_size=64), train_shards, workers=workers)
        build(Recipe("shapes", split="test", limit=100 if toy else None, per_image=0), test_shards, workers=workers)
    else:
        build(Recipe("webdataset", shard_size=500), train_shards, root=f"{data}/train-*.tar", workers=workers)
        build(
            Recipe("webdataset", per_image=0, shard_size=500), test_shards, root=f"{data}/test-*.tar", workers=workers
        )
    built = time.monotonic() - begin
    write(data=str(data or "shapes"), build_seconds=built)
    settings: dict[str, Any] = {"encoder": choice["encoder"], "method": choice["method"], "device": device.type}
    settings |= {"precision": "bf16", "knn_every": 0, "save_every": 10**6, "cache": "ram", "cache_gb": 8}
    settings |= {"weak": "colour-geometric", "compile": not toy}
    if choice["role"]:
        settings["texture_role"] = choice["role"]
    most = 2 if toy else choice["epochs"]
    if toy:
        settings |= {"encoder": "se_resnet8", "width": 8, "stem": "cifar-stride2", "batch_size": 32}
        settings |= {"projector_hidden": 16, "projector_out": 16, "predictor_hidden": 8}
    probe = train(load_config(None, {**settings, "epochs": 3}), train_shards, work / "probe")
    seconds_per_epoch = _samples(train_shards) / max(row["samples_per_second"] for row in probe[1:])
    left = limit - (time.monotonic() - begin) - (5 if toy else 75)  # for recompilation and the probes
    epochs = max(1, min(most, int(left / seconds_per_epoch)))
    write(seconds_per_epoch=seconds_per_epoch, epochs=epochs, **{k: settings[k] for k in ("encoder", "method")})
    started = time.monotonic()
    rows = train(load_config(None, {**settings, "epochs": epochs}), train_shards, work / "run")
    about = {name: rows[-1][name] for name in ("loss", "samples_per_second", "data_wait")}
    write(train_seconds=time.monotonic() - started, role=choice["role"], **about)
    for name in ("knn", "linear"):
        given = {"epochs": 2 if toy else 50} if name == "linear" else {}
        found = evaluate(name, work / "run", train_shards, [test_shards], device.type, **given)
        write(probe=name, test=found["test"])


def _samples(shards: Path) -> int:
    return int(json.loads((shards / "build.json").read_text())["counts"]["samples"])


def profile_step(device: torch.device, toy: bool, write: Write, **_: Any) -> None:
    scale, side, count = (TINY, 16, 8) if toy else (replace(FULL, encoder="se_resnet50"), 32, 128)
    step = STEPS["ours, sacl"](make_config(scale, precision="bf16"), device, side, count)
    for _ in range(3):
        step()
    launches, costs = _profile(step, device)
    total = sum(cost for _, cost, _ in costs)
    for name, cost, calls in costs[:10]:
        write(operation=name[:100], ms=cost, share=cost / total, calls=calls)
    write(launches=launches, ms=total)


STAGES = {"hardware": hardware, "steps": steps, "exact": exact, "profile": profile_step, "cifar": cifar}


@click.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="JSON lines, appended.")
@click.option("--data", type=click.Path(exists=True, path_type=Path), help="Tars of CIFAR-10  [default: shapes]")
@click.option("--device", default="cuda", show_default=True)
@click.option("--stages", default=",".join(STAGES), show_default=True)
@click.option("--minutes", default=8.5, show_default=True, help="Total for all stages.")
@click.option("--encoder", default="se_resnet18", show_default=True, help="For the stage cifar, like the next three.")
@click.option("--method", default="sacl", show_default=True)
@click.option("--role", help="texture_role  [default: the method's]")
@click.option("--epochs", default=200, show_default=True, help="Maximum number of epochs.")
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
            STAGES[stage](torch.device(device), toy=toy, write=write, work=Path(work), limit=limit, **choice)
        return
    end = time.monotonic() + 60 * minutes
    for name in stages.split(","):
        left = end - time.monotonic()
        seconds = min(left, LIMITS[name]) if name != "cifar" else left
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
