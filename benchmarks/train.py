"""Cost of a training step, as ratios within interleaved rounds: data loading, the grid, other methods, memory.

    python benchmarks/train.py [--threads 2] [--rounds 5] [--only wait,decode,grid,simclr,memory,launches,cuda]

wait     fraction of a step that the loop waits for its batch: SE-ResNet-20 on 32 px images of `shapes`
decode   batches read by threads and by processes
grid     forward and backward passes on a 2x2 grid, compared with whole views
simclr   a step starting from uint8 images, compared with lightly's transform, head and loss around the same encoder
memory   peak memory of all tensors in a step
launches operations of a step, eager and compiled, per method; --launches is short for --only launches
cuda     everything that needs a CUDA GPU, see gpu.py
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import gpu
import numpy as np
import torch
from torch._inductor.async_compile import AsyncCompile
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms.functional import to_pil_image

from sacl_train import train
from sacl_train.config import load_config
from sacl_train.data.grid import split_grid
from sacl_train.data.stream import Plan, Stream
from sacl_train.methods import METHODS
from sacl_train.training.allocator import keep_freed_memory
from sacl_train.training.compilation import compile_method
from sacl_train.training.optim import build_optimizer
from sacl_train.training.precision import arithmetic
from sacl_train.training.setup import build_method
from sacl_train.training.step import make_step
from texturegen.builds import Recipe, build
from texturegen.shards import open_shards

PIXELS = {"mean": [0.49, 0.48, 0.45], "std": [0.25, 0.24, 0.26]}


@click.command()
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--only", default="wait,decode,grid,simclr,memory", show_default=True, help="Parts to measure.")
@click.option("--launches", is_flag=True, help="Only count the operations of a step.")
@click.option("--encoder", default="se_resnet18", show_default=True, help="Of part launches.")
@click.option("--methods", default=",".join(METHODS), show_default=True, help="Of part launches.")
@click.option("--precision", default="fp32", show_default=True, help="Of part launches.")
@click.option("--simclr-steps", hidden=True, help="Print the seconds of this kind of step.")
@click.option("--device", default="cuda", hidden=True, help="Device of part cuda.")
@click.option("--tiny", is_flag=True, hidden=True, help="Run part cuda at toy size.")
def main(
    threads: int,
    rounds: int,
    only: str,
    launches: bool,
    encoder: str,
    methods: str,
    precision: str,
    simclr_steps: str | None,
    device: str,
    tiny: bool,
) -> None:
    """Measure the parts named by --only."""
    torch.set_num_threads(threads)
    if simclr_steps:
        print(time_simclr(simclr_steps))
        return
    parts = {
        "wait": report_waiting,
        "decode": report_decoding,
        "grid": report_grid,
        "simclr": report_simclr,
        "memory": report_memory,
    }
    parts["launches"] = lambda rounds: report_launches(encoder, methods, precision)
    parts["cuda"] = lambda rounds: gpu.report(rounds, device, tiny)
    for name in ("launches",) if launches else only.split(","):
        parts[name](rounds)
        print(flush=True)


def report_launches(encoder: str, methods: str, precision: str) -> None:
    """Print the operations of a step that compute something (no views, no allocations): eager, and compiled.

    They are counted on a CPU, where a generated kernel is a C++ function, which may be several kernels on CUDA. The
    optimizer is fused, as on CUDA: one operation for all parameters. Kernels are generated and called, but not built,
    because a C++ compiler takes minutes for them.
    """
    print(
        f"| step with {encoder}, 32 px, {precision} | eager | compiled | of them generated kernels |\n|---|---|---|---|"
    )
    torch._inductor.config.force_disable_caches = True  # kernels of an earlier process would be called in earnest
    for name in methods.split(","):
        eager, _ = count_launches(name, encoder, "none", precision)
        compiled, kernels = count_launches(name, encoder, "default", precision)
        print(f"| {name} | {eager:,} | {compiled + kernels:,} | {kernels:,} |", flush=True)


def count_launches(method_name: str, encoder: str, mode: str, precision: str) -> tuple[int, int]:
    """Return the operations and the generated kernels of a step."""
    own: dict[str, object] = {"queue": 4096} if method_name == "mocov2" else {}
    own |= {"images": 64} if method_name == "pirl" else {}
    own["precision"] = precision
    settings = {"method": method_name, "encoder": encoder, "attention": "se", **PIXELS, **own, "batch_size": 8}
    config = load_config(None, settings)
    method = build_method(config, (32, 32))
    torch._dynamo.reset()
    if mode != "none":
        compile_method(method, mode)
    optimizer = build_optimizer(method)
    for group in optimizer.param_groups:
        group.update(fused=True, foreach=False)
    step = make_step(method, optimizer, config, torch.device("cpu"))
    pixels = torch.randint(0, 256, (8, 2, 3, 32, 32), dtype=torch.uint8)
    batch = {"image": pixels[:, 0], "texture": pixels[:, 1:], "index": torch.arange(8)}
    calls = Counter[str]()

    def count_kernel(*_: object) -> None:
        calls["kernel"] += 1

    with patch.object(AsyncCompile, "cpp_pybinding", lambda *_: count_kernel):
        for number in range(2):
            step(batch, 0, number, 10, 0.1)
        calls.clear()
        with Operations() as operations:
            step(batch, 0, 2, 10, 0.1)
    return operations.count, calls["kernel"]


class Operations(TorchDispatchMode):
    """Counts the operations that compute something."""

    # These allocate memory, or have no tensor as their result.
    NOT_COUNTED = ("detach", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "promote_types")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let compiled networks run compiled."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view and func.overloadpacket.__name__ not in self.NOT_COUNTED
        return func(*args, **(kwargs or {}))


def report_waiting(rounds: int) -> None:
    """Print the fraction of a step that the loop waits for its batch; medians over all epochs but the first."""
    print("| images | waiting, % of time | images/s |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as work:
        build(Recipe("shapes", limit=1536), Path(work) / "shards")
        for cache, kept in (("ram", "cached decoded"), ("none", "decoded in every epoch")):
            settings = {"encoder": "se_resnet20", "epochs": rounds + 1, "knn_every": 0, "device": "cpu", "cache": cache}
            config = load_config(None, {**settings, "projector_hidden": 256, "projector_out": 128, "save_every": 10**6})
            rows = train(config, Path(work) / "shards", Path(work) / cache)[1:]
            wait, speed = (statistics.median(row[name] for row in rows) for name in ("data_wait", "samples_per_second"))
            print(f"| {kept} | {wait:.2%} | {speed:,.0f} |", flush=True)


def report_decoding(rounds: int) -> None:
    """Print the throughput of decoding by one thread, two threads, and two processes with one thread each."""
    print("| side, px | decoded by | images/s | relative to one thread |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as work, ProcessPoolExecutor(2, get_context("spawn")) as pool:
        for side, count in ((32, 4000), (224, 1024)):
            shards = Path(work) / str(side)
            build(Recipe("shapes", size=side, limit=count), shards)
            calls: dict[str, Callable[[], object]] = {
                "one thread": lambda shards=shards: decode(shards, 1, 0, 1),
                "two threads": lambda shards=shards: decode(shards, 2, 0, 1),
                "two processes": lambda shards=shards: list(
                    pool.map(partial(decode, shards, 1), (0, 1), (2, 2), chunksize=1)
                ),
            }
            times = interleave(calls, rounds)
            for name, seconds in zip(calls, times, strict=True):
                ratio = statistics.median(one / other for one, other in zip(times[0], seconds, strict=True))
                print(f"| {side} | {name} | {count / statistics.median(seconds):,.0f} | {ratio:.2f}x |", flush=True)


def decode(shards: Path, threads: int, rank: int, ranks: int) -> None:
    """Read all batches of an epoch in one of `ranks` processes."""
    for _ in Stream(open_shards(shards), Plan(64, textures="one", rank=rank, ranks=ranks), threads, "none").epoch(0):
        pass


def report_grid(rounds: int) -> None:
    """Print the cost of the 2x2 grid: forward and backward passes of the online networks on the same views."""
    print("| encoder | heads | batch | time with the grid / without |\n|---|---|---|---|")
    small = {"projector_hidden": 256, "projector_out": 128, "predictor_hidden": 128}
    for encoder, heads, count in (("se_resnet20", small, 128), ("se_resnet20", {}, 128), ("se_resnet50", {}, 32)):
        calls: dict[str, Callable[[], object]] = {}
        for grid in (1, 2):
            config = load_config(None, {"encoder": encoder, "grid": grid, "cells": grid, **PIXELS, **heads})
            method: Any = build_method(config, (32, 32)).to(memory_format=torch.channels_last)
            views = torch.randn(count, 3, 32, 32)
            cells = split_grid(views, grid)
            calls[str(grid)] = lambda method=method, cells=cells: method._queries(cells).square().mean().backward()
        whole, cells = interleave(calls, rounds)
        ratio = statistics.median(b / a for a, b in zip(whole, cells, strict=True))
        print(f"| {encoder} | {'small' if heads else 'default'} | {count} | {ratio:.2f} |", flush=True)


def report_simclr(rounds: int) -> None:
    """Print the throughput of SimCLR with ResNet-18, 32 px and batch 128, from uint8 images to updated weights."""
    print("| SimCLR step | images/s | relative to lightly |\n|---|---|---|")
    kinds = ("lightly", "ours", "ours, freed memory returned")
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    threads = str(torch.get_num_threads())
    for _ in range(rounds):
        for kind in kinds:
            command = [sys.executable, __file__, "--threads", threads, "--simclr-steps", kind]
            times[kind].append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    for kind in kinds:
        ratio = statistics.median(a / b for a, b in zip(times["lightly"], times[kind], strict=True))
        print(f"| {kind} | {128 / statistics.median(times[kind]):.1f} | {ratio:.2f}x |")


def time_simclr(kind: str) -> float:
    """Return the seconds of a step: the median of three, after one for warm-up."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    config = load_config(None, {"method": "simclr", "encoder": "se_resnet18", **PIXELS})
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (128, 3, 32, 32), np.uint8))
    method: Any = build_method(config, (32, 32))
    if kind == "lightly":
        encoder, head, loss_of = method.encoder, SimCLRProjectionHead(512, 512, 128), NTXentLoss(0.5)
        optimizer = build_optimizer(torch.nn.ModuleList([encoder, head]))
        transform = SimCLRTransform(input_size=32, gaussian_blur=0.0)
        pictures = [to_pil_image(image) for image in images]

        def step() -> None:
            views = [torch.stack(view) for view in zip(*(transform(picture) for picture in pictures), strict=True)]
            first, second = (head(encoder(view)) for view in views)
            loss_of(first, second).backward()
            optimizer.step()
            optimizer.zero_grad()

        return statistics.median(interleave({kind: step}, 3)[0])
    if kind == "ours":
        keep_freed_memory()
    method = method.to(memory_format=torch.channels_last)
    do_step = make_step(method, build_optimizer(method), config, torch.device("cpu"))
    batch = {"image": images, "index": torch.arange(128)}
    with arithmetic(config):
        return statistics.median(interleave({kind: lambda: do_step(batch, 0, 0, 100, 0.1)}, 3)[0])


def report_memory(rounds: int) -> None:
    """Print the peak memory of tensors in a step, including weights and optimizer state."""
    print("| step, se_resnet50, 96 px, batch 32 | peak, MB | relative to MoCo v2 |\n|---|---|---|")
    random, first = np.random.default_rng(0), 0.0
    pixels = torch.from_numpy(random.integers(0, 256, (32, 2, 3, 96, 96), np.uint8))
    batch = {"image": pixels[:, 0], "texture": pixels[:, 1:], "index": torch.arange(32)}
    runs: dict[str, dict[str, object]] = {
        "mocov2": {"method": "mocov2", "queue": 4096, "attention": "se"},
        "sacl": {},
        "sacl, checkpointing": {"checkpointing": True},
    }
    for name, settings in runs.items():
        config = load_config(None, {"encoder": "se_resnet50", "weak": "geometric", **PIXELS, **settings})
        method = build_method(config, (96, 96)).to(memory_format=torch.channels_last)
        optimizer = build_optimizer(method)
        do_step = make_step(method, optimizer, config, torch.device("cpu"))
        do_step(batch, 0, 0, 100, 0.1)  # creates the optimizer state
        tensors = [*method.parameters(), *method.buffers(), *batch.values()]
        tensors += [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
        peak = (sum(t.nbytes for t in tensors) + peak_allocation(lambda s=do_step: s(batch, 0, 1, 100, 0.1))) / 1e6
        first = first or peak
        print(f"| {name} | {peak:,.0f} | {peak / first:.2f}x |", flush=True)


def peak_allocation(call: Callable[[], object]) -> int:
    """Return the peak number of bytes allocated during a call."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    assert record.profiler is not None
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(held.max())


def interleave(calls: dict[str, Callable[[], object]], rounds: int) -> list[list[float]]:
    """Return the seconds of each call in each round, after one round of warm-up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                times[name].append(time.perf_counter() - start)
    return list(times.values())


if __name__ == "__main__":
    main()
