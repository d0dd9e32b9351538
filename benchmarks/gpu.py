"""Training on a CUDA GPU: throughput, fraction of the peak FLOP/s, waiting for data, and a profile.

    python benchmarks/train.py --only cuda
    python benchmarks/train.py --only cuda --device cpu --tiny      # tests the code without a GPU

Our steps start from uint8 images in page-locked memory and end with updated weights. lightly's transforms run per image
on the CPU and would take almost all of the time, so the step built from lightly's modules gets views that are already
on the device. FLOPs are counted by torch's counter: convolutions and matrix products, forward and backward, two per
multiply-add.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from sacl_train import train
from sacl_train.config import Config, load_config
from sacl_train.nets.ema import make_target
from sacl_train.training.compilation import compile_method
from sacl_train.training.optim import build_optimizer
from sacl_train.training.precision import DTYPES, arithmetic
from sacl_train.training.setup import build_method
from sacl_train.training.speed import matrix_peak, synchronise
from sacl_train.training.step import make_step
from texturegen.builds import Recipe, build

PIXELS = {"mean": [0.49, 0.48, 0.45], "std": [0.25, 0.24, 0.26]}
# compile, cuda_graph
VARIANTS = [("none", False), ("none", True), ("default", False), ("default", True)]


@dataclass(frozen=True)
class Scale:
    """Size of the measurements.

    Attributes
    ----------
    encoder : str
        Encoder of all steps.
    sizes : tuple of (int, int)
        Side of the images in pixels and batch size. The last pair is profiled.
    matrix : int
        Side of the matrices whose product gives the peak FLOP/s.
    steps, rounds : int
        Steps per round; the median over the rounds is reported.
    images, epochs : int
        Images and epochs of the run that measures waiting, whose first epoch is not counted.
    settings : dict
        Settings of all runs.
    """

    encoder: str
    sizes: tuple[tuple[int, int], ...]
    matrix: int
    steps: int
    rounds: int
    images: int
    epochs: int
    settings: dict[str, Any]


FULL = Scale("se_resnet50", ((32, 128), (32, 512), (96, 256), (224, 256)), 8192, 10, 5, 8192, 4, {})
SMALL_HEADS = {"projector_hidden": 16, "projector_out": 16}
TINY = Scale("se_resnet8", ((16, 8),), 128, 1, 1, 64, 2, SMALL_HEADS)  # tests the code on a CPU


def report(rounds: int, device_name: str = "cuda", tiny: bool = False) -> None:
    """Print all tables, or one line if there is no GPU."""
    if device_name == "cuda" and not torch.cuda.is_available():
        print("no CUDA GPU is available; nothing measured")
        return
    device, scale = torch.device(device_name), TINY if tiny else replace(FULL, rounds=rounds)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device_name
    peak = matrix_peak(device, scale.matrix, scale.steps, scale.rounds)
    print(f"{name}, torch {torch.__version__}; bf16 product of {scale.matrix}^2 matrices: {peak / 1e12:.4g} TFLOP/s\n")
    report_speed(device, scale, peak)
    report_waiting(device, scale)
    report_profile(device, scale)


def report_speed(device: torch.device, scale: Scale, peak: float) -> None:
    """Print the throughput of every kind of step."""
    print(f"| {scale.encoder}, bf16 | px | batch | compile | CUDA graph | images/s | GFLOP per image | % of peak |")
    print("|---" * 8 + "|")
    for side, count in scale.sizes:
        for name, make in STEPS.items():
            for compiled, graph in VARIANTS:
                graph = graph and device.type == "cuda"
                config = make_config(scale, precision="bf16", compile=compiled, cuda_graph=graph)
                cells = [name, str(side), str(count), compiled, "yes" if graph else "no"]
                try:
                    cells += format_measured(measure(make, device, scale, config, side, count, peak))
                except torch.OutOfMemoryError:
                    cells += ["out of memory", "", ""]
                print("|", " | ".join(cells), "|", flush=True)


def measure(
    make: Callable[..., Callable[[], object]],
    device: torch.device,
    scale: Scale,
    config: Config,
    side: int,
    count: int,
    peak: float,
) -> dict[str, float]:
    """Time one kind of step.

    Returns
    -------
    dict
        "ms" a step, "images_per_s", "gflop_per_image", "share_of_peak" (0 to 1), "launches" (kernels of a step; on a
        CPU, operations) and "peak_gib" of memory (0 on a CPU).

    Raises
    ------
    torch.OutOfMemoryError
        If the step does not fit.
    """
    torch._dynamo.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    with arithmetic(config):
        # The counter does not work for compiled networks, so it runs on the eager one, which has the same FLOPs.
        flops = count_flops(make(replace(config, compile="none", cuda_graph=False), device, side, count))
        step = make(config, device, side, count)
        seconds = statistics.median(time_steps(step, device, scale.steps, scale.rounds))
        launches = sum(calls for _, _, calls in profile_step(step, device))
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return {
        "ms": 1000 * seconds,
        "images_per_s": count / seconds,
        "gflop_per_image": flops / count / 1e9,
        "share_of_peak": flops / seconds / peak,
        "launches": launches,
        "peak_gib": memory / 2**30,
    }


def format_measured(figures: dict[str, float]) -> list[str]:
    """Return images/s, GFLOP per image and share of the peak of `measure` as cells of a table."""
    return [
        f"{figures['images_per_s']:,.0f}",
        f"{figures['gflop_per_image']:.2f}",
        f"{figures['share_of_peak']:.1%}",
    ]


def make_config(scale: Scale, **changes: object) -> Config:
    """Return settings of SACL with these changes."""
    return load_config(None, {"encoder": scale.encoder, **PIXELS, **scale.settings, **changes})


def our_step(method_name: str) -> Callable[[Config, torch.device, int, int], Callable[[], object]]:
    """Return a function that makes steps of one of our methods, equal to those of `sacl-train`."""

    def make(config: Config, device: torch.device, side: int, count: int) -> Callable[[], object]:
        own = {"queue": 4096} if method_name == "mocov2" else {}
        given = {key: value for key, value in config.flat().items() if key in KEPT_SETTINGS and value is not None}
        config = load_config(None, {**given, "method": method_name, "attention": "se", **own})
        method: Any = build_method(config, (side, side)).to(device)
        if config.channels_last:
            method = method.to(memory_format=torch.channels_last)
        if config.compile != "none":
            compile_method(method, config.compile)
        optimizer = build_optimizer(method, capturable=device.type == "cuda")
        do_step = make_step(method, optimizer, config, device)
        pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 2, side, side, 3), np.uint8))
        pixels = pixels.pin_memory() if device.type == "cuda" else pixels
        image, texture = pixels[:, 0].permute(0, 3, 1, 2), pixels[:, 1:].permute(0, 1, 4, 2, 3)
        batch = {"image": image, "texture": texture, "index": torch.arange(count)}
        return lambda: do_step(batch, 0, 0, 100, 0.1)

    return make


KEPT_SETTINGS = ("encoder", "mean", "std", "precision", "channels_last", "compile", "cuda_graph")
KEPT_SETTINGS += ("projector_hidden", "projector_out")


def lightly_moco_step(config: Config, device: torch.device, side: int, count: int) -> Callable[[], object]:
    """Return a step of MoCo v2 from lightly's modules, combined as in its documentation, around our encoder."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import update_momentum

    online, views = _around_encoder(MoCoProjectionHead, config, device, side, count)
    target, loss_of = make_target(online), NTXentLoss(0.2, memory_bank_size=(4096, 128)).to(device)
    optimizer = build_optimizer(online)
    if config.compile != "none":
        online.compile()
        target.compile()

    def step() -> None:
        update_momentum(online, target, m=0.999)
        with torch.autocast(device.type, DTYPES[config.precision]):
            query = online(views[0])
            with torch.no_grad():
                key = target(views[1])
            loss = loss_of(query, key)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def lightly_simclr_step(config: Config, device: torch.device, side: int, count: int) -> Callable[[], object]:
    """Return a step of SimCLR, as `lightly_moco_step`."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    network, views = _around_encoder(SimCLRProjectionHead, config, device, side, count)
    loss_of, optimizer = NTXentLoss(), build_optimizer(network)
    if config.compile != "none":
        network.compile()

    def step() -> None:
        with torch.autocast(device.type, DTYPES[config.precision]):
            loss = loss_of(network(views[0]), network(views[1]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _around_encoder(
    head: Callable[..., torch.nn.Module], config: Config, device: torch.device, side: int, count: int
) -> tuple[torch.nn.Module, list[torch.Tensor]]:
    """Return our encoder with a head of lightly's, and two views that are already on the device."""
    encoder: Any = build_method(config, (side, side)).encoder
    network = torch.nn.Sequential(encoder, head(encoder.out_features, encoder.out_features, 128)).to(device)
    views = [torch.randn(count, 3, side, side, device=device) for _ in range(2)]
    if config.channels_last:
        network = network.to(memory_format=torch.channels_last)
        views = [view.contiguous(memory_format=torch.channels_last) for view in views]
    return network, views


STEPS: dict[str, Callable[..., Callable[[], object]]] = {
    "ours, mocov2": our_step("mocov2"),
    "lightly, mocov2": lightly_moco_step,
    "lightly, simclr": lightly_simclr_step,
    "ours, sacl": our_step("sacl"),
}


def count_flops(step: Callable[[], object]) -> int:
    """Return the FLOPs of a step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def time_steps(step: Callable[[], object], device: torch.device, steps: int, rounds: int) -> list[float]:
    """Return the seconds per step in each round, after one round of warm-up (and compilation)."""
    times = []
    for _ in range(rounds + 1):
        synchronise(device)
        start = time.perf_counter()
        for _ in range(steps):
            step()
        synchronise(device)
        times.append((time.perf_counter() - start) / steps)
    return times[1:]


def report_waiting(device: torch.device, scale: Scale) -> None:
    """Print the fraction of an epoch that the loop waits for batches read from shards."""
    print(f"\n| {scale.encoder}, sacl, bf16, 32 px, from shards | waiting, % of time | images/s |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as work:
        shards = Path(work) / "shards"
        build(Recipe("shapes", limit=scale.images), shards)
        for cache, kept in (("none", "decoded in every epoch"), ("ram", "cached decoded")):
            batch = min(128, scale.images // 4)
            changes = {"epochs": scale.epochs, "batch_size": batch, "cache": cache, "cache_gb": 4, "knn_every": 0}
            changes |= {"device": device.type, "threads": max(2, (os.cpu_count() or 2) - 2), "save_every": 10**6}
            config = make_config(scale, precision="bf16", **changes)
            rows = train(config, shards, Path(work) / cache)[1:]
            wait, speed = (statistics.median(row[name] for row in rows) for name in ("data_wait", "samples_per_second"))
            print(f"| {kept} | {wait:.2%} | {speed:,.0f} |", flush=True)


def report_profile(device: torch.device, scale: Scale) -> None:
    """Print the three kernels (on a CPU, operations) that take the most time in a step of SACL."""
    side, count = scale.sizes[-1]
    config = make_config(scale, precision="bf16", cuda_graph=False)
    with arithmetic(config):
        step = STEPS["ours, sacl"](config, device, side, count)
        for _ in range(3):
            step()
        costs = profile_step(step, device)
    total = sum(cost for _, cost, _ in costs)
    print(f"\n| kernels of a sacl step with the most time, {side} px, batch {count} | % of time | ms |\n|---|---|---|")
    for name, cost, _ in costs[:3]:
        print(f"| {name} | {cost / total:.1%} | {cost:.2f} |")


def profile_step(step: Callable[[], object], device: torch.device) -> list[tuple[str, float, int]]:
    """Return (name, ms, calls) of each kind of kernel (on a CPU, operation) in a step, the longest first."""
    # With the host's operations too, a kernel's time would count twice: as its own and as its operation's.
    activities = [ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU]
    with profile(activities=activities) as record:
        step()
        synchronise(device)
    spent = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    costs = [(e.key, getattr(e, spent) / 1000, e.count) for e in record.key_averages() if getattr(e, spent) > 0]
    return sorted(costs, key=lambda cost: -cost[1])
