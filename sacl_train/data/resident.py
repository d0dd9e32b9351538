"""A stream whose pixels stay on the device: the host sends an epoch's order once, and no image."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sacl_train.data.stream import Batch, Plan, Stream, pixel_shape
from texturegen.errors import UserError
from texturegen.shards import Shards

FREE_SHARE = 0.5  # of the device's free memory that the pixels may take; the rest is for the step
CHUNK = 256  # samples decoded and copied at once


def fits_on_device(shards: Shards, plan: Plan, device: torch.device, limit_gb: float | None = None) -> bool:
    """Return True if all pixels that `plan` reads fit into `limit_gb`, or into half of the device's free memory.

    Parameters
    ----------
    shards : Shards
        The data.
    plan : Plan
        Whether textures are read.
    device : device
        A CUDA device; for any other one the answer is False.
    limit_gb : float or None
        Limit in GB.
    """
    if device.type != "cuda":
        return False
    limit = FREE_SHARE * torch.cuda.mem_get_info(device)[0] if limit_gb is None else 1e9 * limit_gb
    return len(shards) * math.prod(pixel_shape(shards, plan)) <= limit


class ResidentStream(Stream):
    """The batches of a `Stream`, the same bits in the same order, gathered on the device.

    The first epoch reads all images and textures. Samples that are damaged then are replaced as in `Stream`.

    Parameters
    ----------
    shards, plan, threads, bad_share
        As in `Stream`.
    device : device
        Where the pixels are kept.
    """

    place = "kept on the device"

    def __init__(
        self, shards: Shards, plan: Plan, device: torch.device, threads: int | None = None, bad_share: float = 0.01
    ) -> None:
        super().__init__(shards, plan, threads, cache="none", bad_share=bad_share, pin=device.type == "cuda")
        self._device = device
        self._pixels: Tensor | None = None  # uint8 (samples * (1 + K), H, W, 3): each image, then its K textures

    def epoch(self, index: int, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of epoch `index`, from batch `skip` on; all tensors are on the device."""
        pixels = self._upload() if self._pixels is None else self._pixels
        samples = self._plan_epoch(index)  # (batches, N)
        images, batches = self._shape[0] * samples, range(skip, len(self))
        rows = [samples, images]
        if self.plan.textures == "one":
            first = np.array(self._choose(samples.reshape(-1), index), np.int64).reshape(samples.shape)
            rows.append((images + 1 + first)[..., None])
        elif self.plan.textures == "all":
            rows.append(images[..., None] + np.arange(1, self._shape[0]))
        numbers, *rows_on_device = (torch.from_numpy(values).to(self._device) for values in rows)
        for i in batches:
            image, *texture = (pixels.index_select(0, values[i].flatten()) for values in rows_on_device)
            batch = {"image": image.permute(0, 3, 1, 2), "index": numbers[i]}
            if texture:
                batch["texture"] = texture[0].unflatten(0, (len(image), -1)).permute(0, 1, 4, 2, 3)
            yield batch

    def _plan_epoch(self, index: int) -> np.ndarray:
        """Return the samples of each batch of an epoch, int64 (batches, N), damaged ones replaced."""
        order = self._order(index)
        batches = []
        for step in range(len(self)):
            positions = self._positions(order, step)
            samples = order[positions]
            for i in np.flatnonzero(np.isin(samples, list(self.damaged))):
                candidates = self._replacements(order, positions[i])
                readable = candidates[~np.isin(candidates, list(self.damaged))]
                if not len(readable):
                    raise self.damaged.none_left()
                samples[i] = readable[0]
            batches.append(samples)
        return np.stack(batches) if batches else np.empty((0, 0), np.int64)

    def _upload(self) -> Tensor:
        """Read all samples and return their pixels on the device."""
        count, shape = len(self.shards), self._shape
        pixels = torch.empty((count, *shape), dtype=torch.uint8, device=self._device)

        def read(start: int) -> Batch:
            chunk = torch.zeros((min(CHUNK, count - start), *shape), dtype=torch.uint8, pin_memory=self.pin)
            for i, target in enumerate(chunk.numpy(), start):
                if i in self.damaged:
                    continue
                try:
                    sample = self.shards[i]
                    target[0] = sample.image
                    if shape[0] > 1:
                        target[1:] = sample.textures
                except UserError as error:
                    self.damaged.note(i, str(error))
            return {"pixels": chunk}

        starts = range(0, count, CHUNK)
        for start, chunk in zip(starts, self._prefetch(read, starts), strict=True):
            pixels[start : start + CHUNK].copy_(chunk["pixels"], non_blocking=True)
        self._pixels = pixels.flatten(0, 1)
        return self._pixels
