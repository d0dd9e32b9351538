"""Shards -> uint8 batches: a seeded order per epoch, decoded by threads ahead of the consumer."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from texturegen.errors import UserError
from texturegen.shards import Shards

Batch = dict[str, torch.Tensor]
AHEAD = 3  # batches decoded ahead of the consumer


class Stream:
    """Batches of one shard directory.

    A batch is a dict: `image` uint8 (N, 3, H, W); `texture` uint8 (N, K, 3, H, W) when textures are asked for; `index`
    int64 (N,), numbers of the samples in the shards. The order of epoch e depends on (seed, e) only, so a run goes on
    at any batch with those it would have had.
    Images are decoded once and kept as uint8 where all of them fit into `cache_gb`, else on every use.

    Raises UserError when the images are of different sizes, or textures are asked for and there are none.
    """

    def __init__(
        self, shards: Shards, batch_size: int, seed: int, textures: bool, threads: int = 2, cache_gb: float = 4.0
    ) -> None:
        if textures and shards.textures_per_image == 0:
            raise UserError(
                f"{shards.directory}: these shards hold no textures (--per-image 0); build some with "
                "`texturegen build` or train with --texture-role none"
            )
        self.shards, self.batch_size, self.seed, self.threads = shards, batch_size, seed, threads
        height, width = shards.image_size()
        # Image and textures of a sample lie side by side: (1 + K, H, W, 3).
        self._shape = (1 + (shards.textures_per_image if textures else 0), height, width, 3)
        self._cache: np.ndarray | None = None
        if len(shards) * np.prod(self._shape) <= cache_gb * 1e9:
            self._cache = np.empty((len(shards), *self._shape), np.uint8)
            self._cached = np.zeros(len(shards), bool)

    def epoch(self, number: int, skip: int = 0) -> Iterator[Batch]:
        """The whole batches of epoch `number` in its own order, without the first `skip`.

        The remainder is left for other epochs.
        """
        order = np.random.default_rng([self.seed, number]).permutation(len(self.shards))
        whole = len(order) // self.batch_size * self.batch_size
        return self._batches(order[skip * self.batch_size : whole])

    def in_order(self, indices: np.ndarray | None = None) -> Iterator[Batch]:
        """Every sample once, in the order of `indices` (the shards' own by default); the last batch may be smaller."""
        return self._batches(np.arange(len(self.shards)) if indices is None else indices)

    def _batches(self, order: np.ndarray) -> Iterator[Batch]:
        parts = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        pool = ThreadPoolExecutor(self.threads)  # OpenCV's decoders release the GIL
        ahead: deque[Future[Batch]] = deque()
        try:
            for part in parts:
                ahead.append(pool.submit(self._load, part))
                if len(ahead) > AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _load(self, indices: np.ndarray) -> Batch:
        if self._cache is None:
            pixels = np.empty((len(indices), *self._shape), np.uint8)
            for i, index in enumerate(indices):
                self._decode(index, pixels[i])
        else:
            for index in indices[~self._cached[indices]]:
                self._decode(index, self._cache[index])
            self._cached[indices] = True
            pixels = self._cache[indices]
        planes = torch.from_numpy(pixels).permute(0, 1, 4, 2, 3).contiguous()  # (N, 1 + K, 3, H, W)
        batch = {"image": planes[:, 0], "index": torch.from_numpy(indices)}
        if planes.shape[1] > 1:
            batch["texture"] = planes[:, 1:]
        return batch

    def _decode(self, index: int, into: np.ndarray) -> None:
        sample = self.shards[int(index)]
        into[0] = sample.image
        if len(into) > 1:
            into[1:] = sample.textures


def channel_statistics(shards: Shards, at_most: int = 2000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, in 0..1, over up to `at_most` images spread evenly over the set."""
    picked = np.unique(np.linspace(0, len(shards) - 1, min(len(shards), at_most)).astype(int))
    sums = np.zeros((2, 3))
    for index in picked:
        pixels = shards[int(index)].image.reshape(-1, 3) / 255.0
        sums += pixels.mean(0), (pixels**2).mean(0)
    mean, square = sums / len(picked)
    std = np.sqrt(np.maximum(square - mean**2, 1e-6))
    return tuple(float(round(v, 4)) for v in mean), tuple(float(round(v, 4)) for v in std)
