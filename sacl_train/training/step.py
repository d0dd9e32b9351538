"""One step of the optimizer: precision, accumulation, several processes, clipping."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sacl_train.config import Config
from sacl_train.data.draws import Draws
from sacl_train.data.paste import paste_inside
from sacl_train.data.shuffle import shuffle_patches
from sacl_train.data.stream import Batch
from sacl_train.distributed import average_gradients, count_processes
from sacl_train.methods.method import LossTerm, Method, merge
from texturegen.errors import UserError

SHUFFLE = 1 << 17  # the purpose, among a sample's random numbers, of shuffling its cells
PASTE = SHUFFLE + 1  # and of where textures are pasted
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def arithmetic(config: Config) -> Iterator[None]:
    """TF32 or not, the same bits on every run or the fastest kernels; as it was, afterwards."""
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
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32, cudnn.benchmark = before[1:3]
        torch.use_deterministic_algorithms(before[3])


def autocast(config: Config, device: torch.device) -> torch.autocast:
    """The precision of forward passes."""
    return torch.autocast(device.type, DTYPES[config.precision], enabled=config.precision != "fp32")


class Stepper:
    """Holds what a step needs: the method, its optimizer, and the scaler of fp16's gradients."""

    def __init__(self, method: Method, optimizer: torch.optim.Optimizer, config: Config, device: torch.device) -> None:
        self.method, self.optimizer, self.config, self.device = method, optimizer, config, device
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self._trained = [p for group in optimizer.param_groups for p in group["params"]]

    def __call__(self, batch: Batch, epoch: int, step: int, steps: int, lr: float) -> dict[str, Any]:
        """Do step 0 <= step < steps with one process's share of a batch; return its metrics, tensors and numbers."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        parts = [part for piece in _pieces(batch, config.accumulate) for part in self.add_gradients(piece, epoch)]
        average_gradients(self._trained)
        if config.clip is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self._trained, config.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return {**merge(parts), **self.method.after_step(step, steps)}

    def add_gradients(self, piece: Batch, epoch: int) -> list[LossTerm]:
        """Those of one of the pieces that a batch is done in; its losses and their metrics, without gradient."""
        draws = Draws(self.config.seed, epoch, piece["index"].numpy())
        made = self.method.loss_terms(self._prepare(piece, draws), draws)
        parts: list[LossTerm] = []
        while (part := self._next(made)) is not None:
            loss = part[0] / self.config.accumulate
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            parts.append((loss.detach(), part[1]))
        return parts

    def _next(self, parts: Iterator[LossTerm]) -> LossTerm | None:
        # The forward pass alone: gradients take the types of what they are the gradients of.
        with autocast(self.config, self.device):
            return next(parts, None)

    def _prepare(self, batch: Batch, draws: Draws) -> Batch:
        """The images and negatives on the device."""
        source = self.config.texture_source
        wanted = self.config.method_settings.texture_role != "none"
        moved: dict[str, Tensor] = {
            name: batch[name].to(self.device, non_blocking=True) for name in ("image", "texture") if name in batch
        }
        if wanted and source != "shards":
            shuffled = shuffle_patches(
                moved["image"], draws.of(SHUFFLE), cell_sizes(self.config, moved["image"].shape[-2:])
            )[:, None]
            moved["texture"] = torch.cat([moved["texture"], shuffled], 1) if "texture" in moved else shuffled
        if wanted and self.config.texture_part == "inside" and "texture" in moved:
            moved["texture"] = paste_inside(moved["image"], moved["texture"], draws.of(PASTE))
        return moved


def cell_sizes(config: Config, image_size: tuple[int, ...]) -> tuple[int, int]:
    """Smallest and largest cell of patch-shuffle, in pixels."""
    side = min(image_size)
    low, high = (max(1, round(share * side)) for share in config.shuffle_cells)
    return low, high


def explain_memory(stepper: Stepper, batch: Batch, step: int, epoch: int, elsewhere: str = "") -> UserError:
    """What to say when the device's memory did not hold a batch: the largest that fits, from a step of an eighth.

    elsewhere: to be added to the advice to take other settings.

    To be called when nothing holds the failed step's tensors: an exception that is being handled does.
    """
    size = len(batch["index"]) // stepper.config.accumulate
    if count_processes() > 1:  # the others wait for this one's keys and gradients, not for those of a trial
        advice = "an estimate of what fits is made by a single process only; try half of it"
    elif stepper.device.type == "cuda":
        advice = _estimate(stepper, {name: values[: max(2, size // 8)] for name, values in batch.items()}, epoch)
    else:
        advice = "try half of it"
    return UserError(
        f"step {step}: the device is out of memory with {size} images at once; {advice}. Smaller pieces of a batch: "
        f"--set accumulate={2 * stepper.config.accumulate}; less memory: --set checkpointing=true or precision=bf16"
        f"{elsewhere}"
    )


def _estimate(stepper: Stepper, few: Batch, epoch: int) -> str:
    """How many images fit on a CUDA device, from the peak of memory that `few` of them need."""
    stepper.optimizer.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    base = torch.cuda.memory_allocated(stepper.device)
    torch.cuda.reset_peak_memory_stats(stepper.device)
    try:
        stepper.add_gradients(few, epoch)
    except torch.OutOfMemoryError:
        return "this encoder hardly fits at all"
    free = base + torch.cuda.mem_get_info(stepper.device)[0]
    fits = largest_batch(base, torch.cuda.max_memory_allocated(stepper.device), len(few["index"]), free)
    return f"by estimate {fits} fit" if fits >= 2 else "this encoder does not fit at all"


def largest_batch(base: int, peak: int, tried: int, available: int) -> int:
    """How many images fit into `available` bytes when `tried` of them took the memory from `base` to `peak` bytes.

    A tenth is left for what does not grow in proportion.
    """
    return int(0.9 * (available - base) / max((peak - base) / tried, 1))


def _pieces(batch: Batch, count: int) -> Iterator[Batch]:
    size = len(batch["index"]) // count
    for i in range(count):
        yield {name: values[i * size : (i + 1) * size] for name, values in batch.items()}


def as_numbers(metrics: dict[str, Any], device: torch.device) -> tuple[list[str], Tensor]:
    """Names, and the values as one float64 tensor on the device: read back together, later."""
    values = [
        v.to(device, torch.float64) if isinstance(v, Tensor) else torch.full((), v, dtype=torch.float64, device=device)
        for v in metrics.values()
    ]
    return list(metrics), torch.stack(values)
