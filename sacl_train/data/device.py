"""Copy small arrays between host and device without waiting for the device."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 8  # bytes of the largest number type


def to_device(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Return arrays as tensors on `device`.

    To CUDA all arrays go in a single copy from page-locked memory, because a copy from pageable memory waits until the
    device has done all queued work. On the CPU the tensors share the arrays' memory.
    """
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    return unpack(pack(arrays, pin=device.type == "cuda").to(device, non_blocking=True), arrays)


def fetch_async(values: Tensor) -> Callable[[], list[float]]:
    """Start to copy `values`, 1-d, to the host, and return the function that waits for the copy and returns them.

    It waits for work queued before this call only; on CUDA `values.tolist()` waits for everything queued by then.
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
    """Return the bytes of arrays one after the other, each aligned: uint8 (B,), page-locked with `pin`."""
    offsets = _offsets(arrays)
    # torch keeps page-locked memory for the next buffer of this size once the copy from it is done.
    buffer = torch.empty(offsets[-1], dtype=torch.uint8, pin_memory=pin)
    into = buffer.numpy()
    for start, array in zip(offsets, arrays, strict=False):
        into[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return buffer


def unpack(buffer: Tensor, arrays: Sequence[np.ndarray]) -> list[Tensor]:
    """Return views of a buffer that `pack` made of `arrays`, with their types and shapes."""
    return [
        buffer[start : start + array.nbytes].view(_type_of(array.dtype)).view(array.shape)
        for start, array in zip(_offsets(arrays), arrays, strict=False)
    ]


@lru_cache(maxsize=64)
def constant(values: tuple[float, ...] | tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """Return constants as a tensor on `device`, copied there once: float32, or int64 for tuples. Do not write to it."""
    with torch.inference_mode(False):  # a tensor made in inference mode could not be used in training afterwards
        whole = all(isinstance(value, tuple) for value in values)
        return torch.tensor(values, dtype=torch.int64 if whole else torch.float32, device=device)


def _offsets(arrays: Sequence[np.ndarray]) -> list[int]:
    """Return the offset of each array in bytes, and the length of all."""
    offsets = [0]
    for array in arrays:
        offsets.append(-(-(offsets[-1] + array.nbytes) // ALIGNMENT) * ALIGNMENT)
    return offsets


def _type_of(kind: np.dtype) -> torch.dtype:
    return torch.from_numpy(np.empty(0, kind)).dtype
