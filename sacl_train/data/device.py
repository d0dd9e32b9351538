"""Copy small arrays between host and device without waiting for the device."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 8  # bytes; the size of the largest dtype


def to_device(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Return arrays as tensors on `device`.

    A copy from pageable memory waits for all work queued on the device, so for CUDA all arrays are packed into
    page-locked memory and copied at once. On the CPU the tensors share the arrays' memory.
    """
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    return unpack(pack(arrays, pin=device.type == "cuda").to(device, non_blocking=True), arrays)


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


def pack(arrays: Sequence[np.ndarray], pin: bool = False) -> Tensor:
    """Concatenate the bytes of arrays, each aligned, into a buffer uint8 (B,), page-locked if `pin` is True."""
    offsets = _offsets(arrays)
    # torch caches page-locked memory and reuses it once the copy from it has finished.
    buffer = torch.empty(offsets[-1], dtype=torch.uint8, pin_memory=pin)
    target = buffer.numpy()
    for start, array in zip(offsets, arrays, strict=False):
        target[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return buffer


def unpack(buffer: Tensor, arrays: Sequence[np.ndarray]) -> list[Tensor]:
    """Return views into a buffer packed from `arrays`, with their dtypes and shapes."""
    return [
        buffer[start : start + array.nbytes].view(_torch_dtype(array.dtype)).view(array.shape)
        for start, array in zip(_offsets(arrays), arrays, strict=False)
    ]


@torch.compiler.assume_constant_result  # a compiled graph holds the tensor; it does not copy it from the host again
def constant(values: tuple[float, ...] | tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """Return a cached tensor of constants on `device`: float32, or int64 for tuples of int. Do not modify it."""
    return _constant(values, device)


@lru_cache(maxsize=64)
def _constant(values: tuple[float, ...] | tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # an inference tensor could not be used in training later
        is_integer = all(isinstance(value, tuple) for value in values)
        return torch.tensor(values, dtype=torch.int64 if is_integer else torch.float32, device=device)


def _offsets(arrays: Sequence[np.ndarray]) -> list[int]:
    """Return the offset of each array in bytes, followed by the total length."""
    offsets = [0]
    for array in arrays:
        offsets.append(-(-(offsets[-1] + array.nbytes) // ALIGNMENT) * ALIGNMENT)
    return offsets


def _torch_dtype(dtype: np.dtype) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype
