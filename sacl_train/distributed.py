"""Data-parallel training: gathered keys, averaged gradients and synchronised BatchNorm.

Processes are started by `torchrun`; in a single process, these functions do nothing. All processes hold the same
weights, and N images spread over R processes give the loss and the gradients of one process with all N.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import sacl_train.extra  # noqa: F401 (says what to install)

# isort: split
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


def process_rank() -> int:
    """Return the rank of this process; 0 if there is only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first_started() -> bool:
    """Return True in torchrun's process of rank 0, even before `join_processes`, and in a single process."""
    return os.environ.get("RANK", "0") == "0"


def count_started() -> int:
    """Return the number of processes that torchrun started, even before `join_processes`."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def count_processes() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def join_processes(device: torch.device) -> Iterator[torch.device]:
    """Join the process group of torchrun and make `device` the current CUDA device of this process.

    The back end is NCCL on CUDA and Gloo on CPUs. Without torchrun no group is created.
    """
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    if count_started() == 1 or dist.is_initialized():
        yield device
        return
    cuda = device.type == "cuda"
    # With a device_id, NCCL connects immediately, and barriers know which device to use.
    dist.init_process_group("nccl" if cuda else "gloo", device_id=device if cuda else None)
    try:
        yield device
    finally:
        dist.destroy_process_group()


@torch.no_grad()
def gather(x: Tensor) -> Tensor:
    """Return the rows of all processes, in the order of their ranks: (N, ...) -> (R * N, ...), without gradient."""
    if count_processes() == 1:
        return x
    rows = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(count_processes())]
    dist.all_gather(rows, x.contiguous())
    return torch.cat(rows)


def gather_with_gradient(x: Tensor) -> Tensor:
    """Return the rows of all processes like `gather`; the gradient of a row sums over all processes' losses."""
    if count_processes() == 1:
        return x
    return _Gather.apply(x)


class _Gather(torch.autograd.Function):
    """All-gather with gradient; torch.distributed.nn's is wrong on Gloo if the gradient is not contiguous."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return gather(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(count_processes())[process_rank()]


@torch.no_grad()
def average(values: Tensor) -> Tensor:
    """Return the mean over the processes, element by element."""
    if count_processes() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / count_processes()


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes.

    All gradients are averaged in one buffer with a fixed layout. DistributedDataParallel rearranges its buffers after
    the first step, so a resumed run would sum in a different order from one that was never stopped.
    """
    if count_processes() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = average(torch.cat([g.reshape(-1) for g in gradients]))
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def wait() -> None:
    """Wait until all processes have called this."""
    if count_processes() > 1:
        dist.barrier()


def gather_objects(value: T) -> list[T]:
    """Return the values of all processes, in the order of their ranks."""
    if count_processes() == 1:
        return [value]
    values: list[Any] = [None] * count_processes()
    dist.all_gather_object(values, value)
    return values


def synchronise_batch_norm(module: nn.Module, device: torch.device) -> None:
    """Make every BatchNorm in `module` use statistics over all processes; the keys of the state dict do not change."""
    if count_processes() == 1:
        return
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            setattr(module, name, _synchronised(child, device))
        else:
            synchronise_batch_norm(child, device)


def local_batch_norm(module: M) -> M:
    """Make every BatchNorm in `module`, in place, use the statistics of this process alone; return it."""
    for child in module.modules():
        if isinstance(child, nn.SyncBatchNorm | _SyncBatchNorm1d | _SyncBatchNorm2d):
            child.__class__ = _LocalBatchNorm  # type: ignore[assignment]
    return module


class _LocalBatchNorm(_BatchNorm):
    """BatchNorm for inputs of any number of dimensions."""

    def _check_input_dim(self, x: Tensor) -> None:
        pass


def _synchronised(norm: nn.BatchNorm1d | nn.BatchNorm2d, device: torch.device) -> nn.Module:
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(norm)
    # torch.nn.SyncBatchNorm does not support CPUs.
    norm.__class__ = _SyncBatchNorm1d if isinstance(norm, nn.BatchNorm1d) else _SyncBatchNorm2d
    return norm


class _SyncBatchNorm1d(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return _normalise(self, x) if self.training else super().forward(x)


class _SyncBatchNorm2d(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return _normalise(self, x) if self.training else super().forward(x)


def _normalise(norm: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor:
    shape = (1, -1) + (1,) * (x.dim() - 2)
    # Like torch's, it computes and keeps its statistics in float32 when autocast hands it bf16 or fp16.
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    y, mean, variance, count = _Normalise.apply(wide, norm.eps)
    if norm.track_running_stats:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.momentum is not None
        with torch.no_grad():
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(variance * count / (count - 1), norm.momentum)
    y = y * norm.weight.view(shape) + norm.bias.view(shape) if norm.affine else y
    return y.to(x.dtype)


class _Normalise(torch.autograd.Function):
    """(x - mean) / std per channel over all processes, which have equal batches (Ioffe & Szegedy 2015, algorithm 1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, int]:
        dims = [d for d in range(x.dim()) if d != 1]
        shape = (1, -1) + (1,) * (x.dim() - 2)
        mean = average(x.mean(dims))
        variance = average((x - mean.view(shape)).square().mean(dims))  # two passes: E[x^2] - E[x]^2 would cancel
        scale = (variance + eps).rsqrt()
        y = (x - mean.view(shape)) * scale.view(shape)
        ctx.save_for_backward(y, scale)
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance, x.numel() // x.shape[1] * count_processes()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, None]:
        y, scale = ctx.saved_tensors
        dims = [d for d in range(y.dim()) if d != 1]
        shape = (1, -1) + (1,) * (y.dim() - 2)
        means = average(torch.stack([gradient.mean(dims), (gradient * y).mean(dims)]))
        return (gradient - means[0].view(shape) - y * means[1].view(shape)) * scale.view(shape), None
