"""Training on a CUDA GPU, for `train.py --only cuda`: speed, share of the card's matrix peak, waiting, what costs most.

Our steps start from uint8 images in page-locked memory and end with updated weights; lightly's parts are given views
that lie on the device already, as its transforms work image by image on the CPU and would be all that is measured.
FLOPs are what torch's counter finds in a step: convolutions and matrix products, both passes, a multiply-add as two.
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
from sacl_train.training.optim import build_optimizer
from sacl_train.training.setup import build_method
from sacl_train.training.step import DTYPES, Stepper, arithmetic
from texturegen.builds import Recipe, build

PIXELS = {"mean": [0.49, 0.48, 0.45], "std": [0.25, 0.24, 0.26]}
VARIANTS = [(last, compiled) for compiled in (False, True) for last in (False, True)]  # channels_last, compile


@dataclass(frozen=True)
class Scale:
    """How large the measurements are.

    Attributes
    ----------
    encoder : of all of them.
    sizes : (side of the images in pixels, batch), the largest last: it is the one that is profiled.
    matrix : side of the matrices whose product gives the peak.
    steps, rounds : steps of a round; of the rounds the median is reported.
    images, epochs : of the run that waits for its data, its first epoch not counted.
    settings : of all runs.
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
TINY = Scale("se_resnet8", ((16, 8),), 128, 1, 1, 64, 2, SMALL_HEADS)  # to try this file where there is no GPU


def report(rounds: int, device_name: str = "cuda", tiny: bool = False) -> None:
    """Print all of it; a sentence instead where there is no such device."""
    if device_name == "cuda" and not torch.cuda.is_available():
        print("no CUDA GPU here: this part has nothing to measure")
        return
    device, scale = torch.device(device_name), TINY if tiny else replace(FULL, rounds=rounds)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device_name
    peak = matrix_peak(device, scale)
    print(f"{name}, torch {torch.__version__}; bf16 products of {scale.matrix}^2 matrices: {peak / 1e12:.4g} TFLOP/s\n")
    report_speed(device, scale, peak)
    report_waiting(device, scale)
    report_profile(device, scale)


def matrix_peak(device: torch.device, scale: Scale) -> float:
    """FLOP/s of a large product of bf16 matrices, the best of some."""
    a, b = (torch.randn(scale.matrix, scale.matrix, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = time_steps(lambda: a @ b, device, scale.steps, scale.rounds + 1)
    return 2 * scale.matrix**3 / min(times)


def report_speed(device: torch.device, scale: Scale, peak: float) -> None:
    print(f"| {scale.encoder}, bf16 | px | batch | channels_last | compile | images/s | GFLOP an image | of the peak |")
    print("|---" * 8 + "|")
    for side, count in scale.sizes:
        for name, make in STEPS.items():
            for last, compiled in VARIANTS:
                config = make_config(scale, precision="bf16", channels_last=last, compile=compiled)
                on = ("yes" if switch else "no" for switch in (last, compiled))
                cells = [name, str(side), str(count), *on, *measure(make, device, scale, config, side, count, peak)]
                print("|", " | ".join(cells), "|", flush=True)


def measure(
    make: Callable[..., Callable[[], object]],
    device: torch.device,
    scale: Scale,
    config: Config,
    side: int,
    count: int,
    peak: float,
) -> list[str]:
    """Images/s, GFLOP an image and share of the peak of one kind of step."""
    torch._dynamo.reset()
    found = ["out of memory", "", ""]
    try:
        with arithmetic(config):
            # A compiled network's products are hidden from the counter; the plain one has the same.
            flops = count_flops(make(replace(config, compile=False), device, side, count)) / count
            step = make(config, device, side, count)
            seconds = statistics.median(time_steps(step, device, scale.steps, scale.rounds))
        found = [f"{count / seconds:,.0f}", f"{flops / 1e9:.2f}", f"{flops * count / seconds / peak:.1%}"]
    except torch.OutOfMemoryError:
        pass
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def make_config(scale: Scale, **changes: object) -> Config:
    """SACL's."""
    return load_config(None, {"encoder": scale.encoder, **PIXELS, **scale.settings, **changes})


def our_step(method_name: str) -> Callable[[Config, torch.device, int, int], Callable[[], object]]:
    """Makes steps of a method of ours, as `sacl-train` does them."""

    def make(config: Config, device: torch.device, side: int, count: int) -> Callable[[], object]:
        own = {"queue": 4096} if method_name == "mocov2" else {}
        given = {key: value for key, value in config.flat().items() if key in CARRIED and value is not None}
        config = load_config(None, {**given, "method": method_name, "attention": "se", **own})
        method: Any = build_method(config, (side, side)).to(device)
        if config.channels_last:
            method = method.to(memory_format=torch.channels_last)
        if config.compile:
            for network in method.children():
                network.compile()
        stepper = Stepper(method, build_optimizer(method), config, device)
        pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 2, side, side, 3), np.uint8))
        pixels = pixels.pin_memory() if device.type == "cuda" else pixels
        image, texture = pixels[:, 0].permute(0, 3, 1, 2), pixels[:, 1:].permute(0, 1, 4, 2, 3)
        batch = {"image": image, "texture": texture, "index": torch.arange(count)}
        return lambda: stepper(batch, 0, 0, 100, 0.1)

    return make


CARRIED = ("encoder", "mean", "std", "precision", "channels_last", "compile", "projector_hidden", "projector_out")


def lightlys_step(config: Config, device: torch.device, side: int, count: int) -> Callable[[], object]:
    """MoCo v2 as lightly's documentation puts its parts together, around our encoder."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import update_momentum

    encoder: Any = build_method(config, (side, side)).encoder
    head = MoCoProjectionHead(encoder.out_features, encoder.out_features, 128)
    online = torch.nn.Sequential(encoder, head).to(device)
    views = [torch.randn(count, 3, side, side, device=device) for _ in range(2)]
    if config.channels_last:
        online = online.to(memory_format=torch.channels_last)
        views = [view.contiguous(memory_format=torch.channels_last) for view in views]
    target, loss_of = make_target(online), NTXentLoss(0.2, memory_bank_size=(4096, 128)).to(device)
    optimizer = build_optimizer(online)
    if config.compile:
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


STEPS: dict[str, Callable[..., Callable[[], object]]] = {
    "ours, mocov2": our_step("mocov2"),
    "lightly, mocov2": lightlys_step,
    "ours, sacl": our_step("sacl"),
}


def count_flops(step: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def time_steps(step: Callable[[], object], device: torch.device, steps: int, rounds: int) -> list[float]:
    """Seconds of a step in each round, after a round to warm up (and to compile)."""
    times = []
    for _ in range(rounds + 1):
        synchronise(device)
        start = time.perf_counter()
        for _ in range(steps):
            step()
        synchronise(device)
        times.append((time.perf_counter() - start) / steps)
    return times[1:]


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def report_waiting(device: torch.device, scale: Scale) -> None:
    """Share of an epoch's time that the loop waits for its batch, of images that are read from shards."""
    print(
        f"\n| {scale.encoder}, sacl, bf16, 32 px, from shards | waiting, share of the time | images/s |\n|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as work:
        shards = Path(work) / "shards"
        build(Recipe("shapes", limit=scale.images), shards)
        for cache, kept in (("none", "decoded anew each epoch"), ("ram", "kept decoded")):
            batch = min(128, scale.images // 4)
            changes = {"epochs": scale.epochs, "batch_size": batch, "cache": cache, "cache_gb": 4, "knn_every": 0}
            changes |= {"device": device.type, "threads": max(2, (os.cpu_count() or 2) - 2), "save_every": 10**6}
            config = make_config(scale, precision="bf16", **changes)
            rows = train(config, shards, Path(work) / cache)[1:]
            wait, speed = (statistics.median(row[name] for row in rows) for name in ("data_wait", "samples_per_second"))
            print(f"| {kept} | {wait:.2%} | {speed:,.0f} |", flush=True)


def report_profile(device: torch.device, scale: Scale) -> None:
    """The three operations that take most of the device's time in a step of SACL's."""
    side, count = scale.sizes[-1]
    step = STEPS["ours, sacl"](make_config(scale, precision="bf16"), device, side, count)
    for _ in range(3):
        step()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as record:
        step()
        synchronise(device)
    spent = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    costs = sorted(((getattr(event, spent), event.key) for event in record.key_averages()), reverse=True)
    total = sum(cost for cost, _ in costs)
    print(f"\n| a step of sacl, {side} px, batch {count}: most of the device's time | share | ms |\n|---|---|---|")
    for cost, name in costs[:3]:
        print(f"| {name} | {cost / total:.1%} | {cost / 1000:.2f} |")
