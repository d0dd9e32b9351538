"""How much of a GPU's arithmetic a run uses: model FLOPs utilisation (MFU), against the GPU's own matrix products."""

import time
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from sacl_train.config import Config
from sacl_train.data.stream import Stream
from sacl_train.training.precision import make_scaler
from sacl_train.training.setup import build_method
from sacl_train.training.step import add_gradients

SIDE, PRODUCTS, ROUNDS = 8192, 10, 3  # of the matrices that the peak is measured with
IMAGES = 4  # images of the step whose FLOPs are counted; the networks' FLOPs grow in proportion


@dataclass(frozen=True)
class Speed:
    """What a run's speed is compared with.

    Attributes
    ----------
    flops : float
        Of a step of this process.
    peak : float
        FLOP/s of bf16 matrix products on its device.
    device : device
    """

    flops: float
    peak: float
    device: torch.device

    def mfu(self, steps: int, seconds: float) -> float:
        """Return the share of the peak that `steps` in `seconds` used."""
        return self.flops * steps / seconds / self.peak

    def peak_memory(self) -> float:
        """Return the most memory that was in use so far, in GB; reading it takes too long for every step."""
        return torch.cuda.max_memory_allocated(self.device) / 1e9 if self.device.type == "cuda" else 0.0

    def metrics(self, steps: int, seconds: float) -> dict[str, float]:
        """Return `mfu` and `peak_memory_gb`."""
        return {"mfu": self.mfu(steps, seconds), "peak_memory_gb": self.peak_memory()}


def measure_speed(config: Config, stream: Stream, device: torch.device) -> Speed:
    """Measure the peak of a CUDA device and count the FLOPs of a step; this takes a second or two."""
    shards, plan = stream.shards, stream.plan
    textures = {"none": 0, "one": 1}.get(plan.textures, shards.textures_per_image)
    flops = count_step_flops(config, shards.image_size(), textures, device) / plan.ranks
    speed = Speed(flops, matrix_peak(device), device)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return speed


def matrix_peak(device: torch.device, side: int = SIDE, products: int = PRODUCTS, rounds: int = ROUNDS) -> float:
    """Return the FLOP/s of products of random bf16 matrices of side x side, the best of several rounds."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(rounds + 1):  # the first one warms up
        synchronise(device)
        begin = time.perf_counter()
        for _ in range(products):
            a @ b
        synchronise(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * side**3 * products / best


def count_step_flops(config: Config, image_size: tuple[int, int], textures: int, device: torch.device) -> float:
    """Return the FLOPs of a step on `config.batch_size` images: convolutions and matrix products, two per multiply-add.

    They are counted in a small step of fresh networks, without compilation, which has the same FLOPs.

    Parameters
    ----------
    config : Config
        Resolved.
    image_size : tuple of int
        Height and width in pixels.
    textures : int
        Textures per image in a batch.
    device : device
        Where the step is done.
    """
    method = build_method(config, image_size).to(device)
    pixels = torch.zeros((IMAGES, 1 + textures, 3, *image_size), dtype=torch.uint8, device=device)
    batch = {"image": pixels[:, 0], "index": torch.arange(IMAGES, device=device)}
    if textures:
        batch["texture"] = pixels[:, 1:]
    with FlopCounterMode(display=False) as counter:
        add_gradients(method, batch, 0, config, device, make_scaler(config, device))
    return counter.get_total_flops() / IMAGES * config.batch_size


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done all that is queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
