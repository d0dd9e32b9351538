"""Constants on a device, and copies to the host that do not wait for all of its work."""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor


def fetch_async(values: Tensor) -> Callable[[], list[float]]:
    """Start copying `values`, 1-d, to the host; return a function that waits for the copy and returns the list.

    The function waits only for work queued before the copy; on CUDA, `values.tolist()` waits for all queued work.
    """
    if values.device.type != "cuda":
        return values.tolist
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> list[float]:
        copied.synchronize()
        return host.tolist()

    return read


@torch.compiler.assume_constant_result  # a compiled graph holds the tensor; it does not copy it from the host again
def constant(values: tuple[float, ...] | tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """Return a cached tensor of constants on `device`: float32, or int64 for tuples of int. Do not modify it.

    Index the result where it is used: torch 2.14 gives all results in a compiled graph one name, and refuses that, but
    gives what is taken from them names of their own.
    """
    return _constant(values, device)


@lru_cache(maxsize=64)
def _constant(values: tuple[float, ...] | tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # an inference tensor could not be used in training later
        is_integer = all(isinstance(value, tuple) for value in values)
        return torch.tensor(values, dtype=torch.int64 if is_integer else torch.float32, device=device)
