"""Stream shards as uint8 batches: shuffled per epoch, decoded by threads ahead of the consumer."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from sacl_train.data.damaged import DamagedSamples
from sacl_train.data.draws import Draws, uniform
from sacl_train.data.memory import cache_budget
from sacl_train.data.order import count_batches, epoch_order, held_out, split_batch
from texturegen.errors import UserError, nearest
from texturegen.shards import Shards
from texturegen.system.threads import count_cpus

# "image" uint8 (N, 3, H, W), "index" int64 (N,): indices of the samples in the shards, and, if the plan has textures,
# "texture" uint8 (N, P, 3, H, W).
Batch = dict[str, torch.Tensor]

CACHES = ("auto", "ram", "none")
TEXTURE_CHOICE = 1 << 16  # purpose in `Draws.of` for the choice of one of a sample's textures
SPARE_BYTES = 64 << 20  # of remote shards, cached in addition to the blocks of the shuffle buffer


@dataclass(frozen=True)
class Plan:
    """How the samples of an epoch are batched for one process.

    Attributes
    ----------
    batch_size : int
        Images per batch, over all processes.
    seed : int
        Seed of the order and of the choice of textures.
    textures : str
        "one": a random one of each sample's K textures, different in each epoch; "all" of them; or "none".
    order, shuffle_buffer, remainder
        See `order.epoch_order` and `order.count_batches`.
    rank, ranks : int
        Index of this process, and number of processes.
    accumulate : int
        Number of pieces of a batch, for gradient accumulation.
    held_out : float
        Share of the samples that no epoch contains; see `order.held_out`.
    """

    batch_size: int
    seed: int = 0
    textures: str = "none"
    order: str = "global"
    shuffle_buffer: int = 4096
    remainder: str = "drop"
    rank: int = 0
    ranks: int = 1
    accumulate: int = 1
    held_out: float = 0.0


class Stream:
    """Batches of one shard directory, for one process.

    The pixels of a batch (see `Batch`) are channels-last in memory. An epoch is determined by the plan and its index;
    the only state of the stream is the number of batches read. A resumed run gets the batches that it would have had,
    or, with another number of processes, the rest of the same samples.

    A damaged sample is named in a warning and replaced by another sample of the epoch, the same one in every run.

    Parameters
    ----------
    shards : Shards
        The data.
    plan : Plan
        How samples are batched.
    threads : int or None
        Decoding threads; None: see `default_threads`.
    cache : str
        "ram" decodes each image once and keeps it as uint8; "auto" does so if all fit into `cache_gb`; "none" decodes
        again in every epoch. Each process keeps all images.
    cache_gb : float or None
        Size limit of that cache; None: half of the available memory (see `memory`).
    bad_share : float
        Fraction of the samples that may be damaged, 0 to 1.
    pin : bool
        Allocate batches in page-locked memory, for asynchronous copies to CUDA.

    Attributes
    ----------
    damaged : DamagedSamples
        The samples that could not be read so far.

    Raises
    ------
    UserError
        If the images differ in size, the plan asks for textures that the shards do not have, the batch cannot be
        divided evenly among the processes, or the cache is too small for "ram"; while reading, if more samples
        are damaged than `bad_share` allows, or all that are trained on.

    Examples
    --------
    >>> from texturegen.shards import open_shards
    >>> stream = Stream(open_shards("shards"), Plan(batch_size=16, textures="one"))
    >>> batch = next(stream.epoch(0))
    >>> len(stream), tuple(batch["image"].shape), tuple(batch["texture"].shape)
    (4, (16, 3, 32, 32), (16, 1, 3, 32, 32))
    """

    def __init__(
        self,
        shards: Shards,
        plan: Plan,
        threads: int | None = None,
        cache: str = "auto",
        cache_gb: float | None = None,
        bad_share: float = 0.01,
        pin: bool = False,
    ) -> None:
        if plan.textures != "none" and shards.textures_per_image == 0:
            raise UserError(
                f"{shards.directory}: these shards have no textures (--per-image 0); build some with "
                "`texturegen build`, or train with --set texture_source=patch-shuffle or --texture-role none"
            )
        if plan.batch_size % (plan.ranks * plan.accumulate):
            raise UserError(
                f"batch_size {plan.batch_size} is not divisible by {plan.ranks} processes times "
                f"accumulate {plan.accumulate}; set it to a multiple of {plan.ranks * plan.accumulate}"
            )
        if cache not in CACHES:
            raise UserError(f"unknown cache '{cache}'{nearest(cache, CACHES)}; known: {', '.join(CACHES)}")
        self.shards, self.plan, self.threads, self.pin = shards, plan, threads or default_threads(), pin
        self.damaged = DamagedSamples(shards, bad_share)
        if plan.order == "shards" and len(shards):
            bytes_per_sample = sum(shard["bytes"] for shard in shards.build["shards"]) / len(shards)
            shards.enable_block_cache(
                round(2 * bytes_per_sample * (plan.shuffle_buffer + plan.batch_size)) + SPARE_BYTES
            )
        self._held_out = held_out(len(shards), plan.held_out, plan.seed)
        self._steps = count_batches(self.samples, plan.batch_size, plan.remainder)
        self._shape = pixel_shape(shards, plan)
        self._cache: np.ndarray | None = None
        if cache == "none":
            return
        size = len(shards) * np.prod(self._shape) / 1e9
        limit = cache_budget() / 1e9 if cache_gb is None else cache_gb
        if cache == "ram" and size > limit:
            limit_name = "cache_gb is" if cache_gb is not None else "half of the memory available to this process is"
            raise UserError(
                f"cache ram: the pixels take {size:.1f} GB, but {limit_name} {limit:.2g} GB; set cache_gb higher, or "
                "cache none"
            )
        if size <= limit:
            self._cache = np.empty((len(shards), *self._shape), np.uint8)
            self._cached = np.zeros(len(shards), bool)

    @property
    def place(self) -> str:
        """Where decoded pixels are kept, in words."""
        return "kept decoded in memory" if self._cache is not None else "decoded again in each epoch"

    @property
    def samples(self) -> int:
        """Number of samples that are trained on."""
        return len(self.shards) - len(self._held_out)

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        return self._steps

    def epoch(self, index: int, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of epoch `index`, from batch `skip` on."""
        order = self._order(index)

        def load(step: int) -> Batch:
            positions = self._positions(order, step)
            return self._load(order[positions], index, lambda i: self._replacements(order, positions[i]))

        return self._prefetch(load, range(skip, self._steps))

    def _order(self, index: int) -> np.ndarray:
        """Return the order of an epoch's samples, without those that are held out."""
        plan = self.plan
        order = epoch_order(self.shards.numbers, plan.seed, index, plan.order, plan.shuffle_buffer)
        return order[~np.isin(order, self._held_out)] if len(self._held_out) else order

    def _replacements(self, order: np.ndarray, position: int) -> np.ndarray:
        """Return the samples that may take the place of a damaged one, the first readable one first."""
        # They are taken half an epoch away, so no batch holds a sample twice.
        return np.roll(order, -(position + len(order) // 2))

    def _positions(self, order: np.ndarray, step: int) -> np.ndarray:
        """Return the positions in `order` of this process's part of a batch, int64 (batch_size / ranks,)."""
        plan = self.plan
        positions = np.arange(step * plan.batch_size, (step + 1) * plan.batch_size) % len(order)
        shards = self.shards.numbers[order[positions]] if plan.order == "shards" else None
        return split_batch(positions, shards, plan.rank, plan.ranks, plan.accumulate)

    def in_order(self, indices: np.ndarray | None = None) -> Iterator[Batch]:
        """Yield every sample once, in the order of `indices`, by default the order in the shards.

        The last batch may be smaller. Damaged samples are left out, and so is a batch of nothing else; "index" lists
        the samples of a batch.
        """
        samples = np.arange(len(self.shards)) if indices is None else indices
        size = self.plan.batch_size
        batches = self._prefetch(
            lambda start: self._load(samples[start : start + size], 0, None), range(0, len(samples), size)
        )
        return (batch for batch in batches if len(batch["index"]))

    def _prefetch(self, load: Callable[[int], Batch], arguments: range) -> Iterator[Batch]:
        """Yield load(argument) for each argument, with a few loads running ahead on threads."""
        pool = ThreadPoolExecutor(self.threads)  # OpenCV's decoders release the GIL
        pending: deque[Future[Batch]] = deque()
        try:
            for argument in arguments:
                pending.append(pool.submit(load, argument))
                if len(pending) > self.threads + 1:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _load(self, indices: np.ndarray, epoch: int, replacements: Callable[[int], np.ndarray] | None) -> Batch:
        """Decode samples into a new batch.

        If the i-th sample is damaged, the first readable one of replacements(i) is used; without `replacements` the
        sample is left out.
        """
        pixel_shape = self._shape[1:]
        texture_count = {"none": 0, "one": 1}.get(self.plan.textures, self._shape[0] - 1)  # P
        # torch caches page-locked memory and reuses it once the copy from it has finished.
        images = torch.empty((len(indices), *pixel_shape), dtype=torch.uint8, pin_memory=self.pin)
        textures = torch.empty((len(indices), texture_count, *pixel_shape), dtype=torch.uint8, pin_memory=self.pin)
        first = self._choose(indices, epoch)
        loaded: list[int] = []
        is_readable = self.damaged.isdisjoint(indices.tolist())
        if self._cache is not None and self._cached[indices].all() and is_readable:
            images.numpy()[:] = self._cache[indices, 0]
            for k in range(texture_count):
                textures.numpy()[:, k] = self._cache[indices, np.add(first, 1 + k)]
            return self._as_batch(images, textures, indices.tolist())
        for i, index in enumerate(indices.tolist()):
            targets = images[len(loaded)].numpy(), textures[len(loaded)].numpy()
            if self._read(index, first[i], *targets):
                loaded.append(index)
            elif replacements is not None:
                candidates = replacements(i)
                pairs = zip(candidates.tolist(), self._choose(candidates, epoch), strict=True)
                replacement = next((n for n, texture in pairs if self._read(n, texture, *targets)), None)
                if replacement is None:
                    raise self.damaged.none_left()
                loaded.append(replacement)
        return self._as_batch(images, textures, loaded)

    def _as_batch(self, images: torch.Tensor, textures: torch.Tensor, loaded: list[int]) -> Batch:
        """Make a batch of the samples `loaded` from the start of images (N, H, W, 3) and textures (N, P, H, W, 3)."""
        count = len(loaded)
        index = torch.tensor(loaded, dtype=torch.int64, pin_memory=self.pin)
        batch = {"image": images[:count].permute(0, 3, 1, 2), "index": index}
        if textures.shape[1]:
            batch["texture"] = textures[:count].permute(0, 1, 4, 2, 3)
        return batch

    def _choose(self, indices: np.ndarray, epoch: int) -> list[int]:
        """Return the index of the first texture to read for each sample: random for "one", else 0."""
        count = self._shape[0] - 1
        if self.plan.textures != "one" or count < 2:
            return [0] * len(indices)
        draws = Draws(self.plan.seed, epoch, torch.from_numpy(indices))
        return (uniform(draws.of(TEXTURE_CHOICE), 0) * count).long().tolist()

    def _read(self, index: int, first: int, image: np.ndarray, textures: np.ndarray) -> bool:
        """Read a sample's image into `image` (H, W, 3) and its textures from `first` on into `textures` (P, H, W, 3).

        Return False if the sample is damaged.
        """
        if index in self.damaged:
            return False
        try:
            if self._cache is None:
                sample = self.shards[index]
                image[:] = sample.image
                for k, target in enumerate(textures, first):
                    target[:] = sample.texture(k)
                return True
            if not self._cached[index]:
                sample = self.shards[index]
                self._cache[index, 0] = sample.image
                if self._shape[0] > 1:
                    self._cache[index, 1:] = sample.textures
                self._cached[index] = True
        except UserError as error:
            self.damaged.note(index, str(error))
            return False
        image[:] = self._cache[index, 0]
        textures[:] = self._cache[index, 1 + first : 1 + first + len(textures)]
        return True

    def recheck(self, damaged: dict[int, str]) -> None:
        """Add the damaged samples of an earlier session, except those that have been repaired."""
        still = {}
        for index, message in damaged.items():
            try:
                sample = self.shards[index]
                _ = sample.image, sample.textures if self._shape[0] > 1 else None
            except UserError:
                still[index] = message
        self.damaged.add(still)


def pixel_shape(shards: Shards, plan: Plan) -> tuple[int, int, int, int]:
    """Return the shape of a sample's image and its K textures, (1 + K, H, W, 3); K is 0 for a plan without textures."""
    height, width = shards.image_size()
    return (1 + (shards.textures_per_image if plan.textures != "none" else 0), height, width, 3)


def default_threads() -> int:
    """Return the number of CPUs divided by the number of torchrun's processes on this machine, at least 1."""
    return max(1, count_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
