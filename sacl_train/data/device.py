"""Small arrays from the host to the device and back, without the host waiting for the device."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

ALIGNED = 8  # bytes, of the largest numbers sent


def to_device(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Arrays as tensors on `device`. To CUDA all go in one copy, from page-locked memory: those of pageable memory end
    when the device has done all its work. On the CPU they share the arrays' memory.
    """
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    return unpack(pack(arrays, pin=device.type == "cuda").to(device, non_blocking=True), arrays)


def fetch_async(values: Tensor) -> Callable[[], list[float]]:
    """Begin to fetch 1-d `values`; the function that gives them waits for them, not for what is queued after them.

    On CUDA `values.tolist()` would wait for all that is queued by the time it is called.
    """
    if values.device.type != "cuda":
        return values.tolist
    there = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    there.copy_(values, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> list[float]:
        copied.synchronize()
        return there.tolist()

    return read


def pack(arrays: Sequence[np.ndarray], pin: bool = False) -> Tensor:
    """The bytes of arrays one after the other, uint8 (B,), each array's aligned."""
    places = _places(arrays)
    # torch keeps page-locked memory for the next of its size, once the copy from it is done.
    buffer = torch.empty(places[-1], dtype=torch.uint8, pin_memory=pin)
    into = buffer.numpy()
    for start, array in zip(places, arrays, strict=False):
        into[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return buffer


def unpack(buffer: Tensor, arrays: Sequence[np.ndarray]) -> list[Tensor]:
    """Views of what `pack` made of `arrays`, of their types and shapes."""
    return [
        buffer[start : start + array.nbytes].view(_type_of(array.dtype)).view(array.shape)
        for start, array in zip(_places(arrays), arrays, strict=False)
    ]


@lru_cache(maxsize=64)
def constant(values: tuple[float, ...] | tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """Numbers of a run as a tensor on `device`, float32 or int64, copied there once. Not to be written to."""
    with torch.inference_mode(False):  # asked for first by an evaluation, it is to serve training as well
        whole = all(isinstance(value, tuple) for value in values)
        return torch.tensor(values, dtype=torch.int64 if whole else torch.float32, device=device)


def _places(arrays: Sequence[np.ndarray]) -> list[int]:
    """Where each begins, and where all end."""
    places = [0]
    for array in arrays:
        places.append(-(-(places[-1] + array.nbytes) // ALIGNED) * ALIGNED)
    return places


def _type_of(kind: np.dtype) -> torch.dtype:
    return torch.from_numpy(np.empty(0, kind)).dtype
