"""One step of the optimizer: forward and backward passes, gradient averaging, clipping, update, EMA target."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from sacl_train.config import Config
from sacl_train.data.draws import Draws
from sacl_train.data.paste import paste_inside
from sacl_train.data.shuffle import shuffle_patches
from sacl_train.data.stream import Batch
from sacl_train.distributed import average_gradients
from sacl_train.methods.method import LossTerm, Method, merge

Metrics = dict[str, Tensor | float]  # 0-d tensors on the device, without gradient, and numbers known to the host

# Purposes of `Draws`: the random numbers of patch-shuffle, and of the place where a texture is pasted.
SHUFFLE = 1 << 17
PASTE = SHUFFLE + 1

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Step(Protocol):
    """What `make_step` returns: run one optimizer step (0 <= step < steps) on this process's part of the batch."""

    def __call__(self, batch: Batch, epoch: int, step: int, steps: int, lr: float) -> Metrics: ...


def make_step(
    method: Method,
    optimizer: torch.optim.Optimizer,
    config: Config,
    device: torch.device,
    scaler: torch.amp.GradScaler | None = None,
) -> Step:
    """Return the function that does one step of the optimizer.

    Parameters
    ----------
    method : Method
        The networks and their loss, on `device`.
    optimizer : Optimizer
        Over the parameters of `method` that take a gradient.
    config : Config
        The run's settings: accumulate, clip, precision, and those of the textures.
    device : device
        Where the networks are.
    scaler : GradScaler or None
        Scaler of the loss for fp16, part of a checkpoint; None makes a new one.

    Returns
    -------
    Step
        Changes the weights in place and returns the step's metrics. On CUDA it only queues work: the host never waits
        for the device, except in fp16, where the scaler has to know whether the gradients overflowed.
    """
    scaler = make_scaler(config, device) if scaler is None else scaler
    trained = [p for group in optimizer.param_groups for p in group["params"]]

    def do_step(batch: Batch, epoch: int, step: int, steps: int, lr: float) -> Metrics:
        for group in optimizer.param_groups:
            group["lr"] = lr
        terms: list[LossTerm] = []
        for piece in _pieces(batch, config.accumulate):
            terms += add_gradients(method, piece, epoch, config, device, scaler)  # loss.backward() is in here
        average_gradients(trained)  # over the processes
        if config.clip is not None:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(trained, config.clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return {**merge(terms), **method.after_step(step, steps)}  # after_step moves the EMA target

    return do_step


def add_gradients(
    method: Method,
    piece: Batch,
    epoch: int,
    config: Config,
    device: torch.device,
    scaler: torch.amp.GradScaler,
) -> list[LossTerm]:
    """Add the gradients of one piece of a batch to the parameters' own.

    Returns the piece's loss terms, divided by `config.accumulate`, and their metrics, all without gradient.
    """
    draws = Draws(config.seed, epoch, piece["index"].to(device, non_blocking=True))
    terms = method.loss_terms(_prepare_batch(piece, draws, config, device), draws)
    done: list[LossTerm] = []
    # The backward pass of each term comes before the forward pass of the next: only one term's activations are held.
    while (term := _next(terms, config, device)) is not None:
        loss = term[0] / config.accumulate
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        done.append((loss.detach(), term[1]))
    return done


def make_scaler(config: Config, device: torch.device) -> torch.amp.GradScaler:
    """Return the scaler of the loss: it keeps fp16 gradients from underflowing and does nothing in other precisions."""
    return torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")


def autocast(config: Config, device: torch.device) -> torch.autocast:
    """Return the context manager in which forward passes compute in the run's precision."""
    return torch.autocast(device.type, DTYPES[config.precision], enabled=config.precision != "fp32")


@contextmanager
def arithmetic(config: Config) -> Iterator[None]:
    """Set TF32 and deterministic kernels as the config asks; restore torch's settings afterwards."""
    cudnn = torch.backends.cudnn
    before = (
        torch.get_float32_matmul_precision(),
        cudnn.allow_tf32,
        cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
    )
    torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    cudnn.allow_tf32 = config.tf32
    cudnn.benchmark = not config.deterministic
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this set
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32, cudnn.benchmark = before[1:3]
        torch.use_deterministic_algorithms(before[3])


def stack_metrics(metrics: Metrics, device: torch.device) -> tuple[list[str], Tensor]:
    """Stack the metrics of a step into one tensor, so that the host reads them in a single copy.

    Returns
    -------
    names : list of str
    values : Tensor, float64 (len(names),), on `device`
    """
    values = [
        v.to(device, torch.float64) if isinstance(v, Tensor) else torch.full((), v, dtype=torch.float64, device=device)
        for v in metrics.values()
    ]
    return list(metrics), torch.stack(values)


def cell_sizes(config: Config, image_size: tuple[int, ...]) -> tuple[int, int]:
    """Return the smallest and the largest side of patch-shuffle's cells, in pixels."""
    side = min(image_size)
    low, high = (max(1, round(share * side)) for share in config.shuffle_cells)
    return low, high


def _next(terms: Iterator[LossTerm], config: Config, device: torch.device) -> LossTerm | None:
    # The context covers the forward pass only: autograd chooses the types of the backward pass itself.
    with autocast(config, device):
        return next(terms, None)


def _prepare_batch(batch: Batch, draws: Draws, config: Config, device: torch.device) -> Batch:
    """Copy images and textures to the device, and make there the textures that the config asks for."""
    moved: Batch = {name: batch[name].to(device, non_blocking=True) for name in ("image", "texture") if name in batch}
    if config.method_settings.texture_role == "none":
        return moved
    if config.texture_source != "shards":
        sizes = cell_sizes(config, moved["image"].shape[-2:])
        shuffled = shuffle_patches(moved["image"], draws.of(SHUFFLE), sizes)[:, None]
        moved["texture"] = torch.cat([moved["texture"], shuffled], 1) if "texture" in moved else shuffled
    if config.texture_part == "inside" and "texture" in moved:
        moved["texture"] = paste_inside(moved["image"], moved["texture"], draws.of(PASTE))
    return moved


def _pieces(batch: Batch, count: int) -> Iterator[Batch]:
    """Cut a batch into `count` equal pieces along its first dimension."""
    size = len(batch["index"]) // count
    for i in range(count):
        yield {name: values[i * size : (i + 1) * size] for name, values in batch.items()}
