"""Read shards into uint8 batches: an order per epoch, decoded by threads ahead of the consumer."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from sacl_train.data.draws import Draws, uniform
from sacl_train.data.memory import cache_budget
from sacl_train.data.order import count_batches, epoch_order, split_batch
from texturegen.console import warn
from texturegen.errors import DamagedError, UserError, nearest
from texturegen.shards import Shards
from texturegen.system.threads import count_cpus

# "image" uint8 (N, 3, H, W), "index" int64 (N,): numbers of the samples in the shards, and, if the plan has textures,
# "texture" uint8 (N, P, 3, H, W).
Batch = dict[str, torch.Tensor]

CACHES = ("auto", "ram", "none")
TEXTURE_CHOICE = 1 << 16  # the purpose, among a sample's random numbers, of choosing one of its textures
SPARE_BYTES = 64 << 20  # of remote shards, kept beside the blocks of the shuffle buffer
MAX_WARNINGS = 10  # damaged samples that are named on stderr; RUN/damaged.txt names all


@dataclass(frozen=True)
class Plan:
    """How the samples of an epoch become the batches of one process; see `Config` for the settings of these names.

    Attributes
    ----------
    batch_size : images of all processes together.
    seed : of the order and of the choice of textures.
    textures : "one" of each sample's K textures, chosen anew in each epoch, "all" of them, or "none".
    order, shuffle_buffer, remainder : see `order.epoch_order` and `order.count_batches`.
    rank, ranks : number of this process, and how many there are.
    accumulate : pieces that a batch is processed in.
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


class Stream:
    """Batches of one shard directory, for one process.

    A batch (see `Batch`) has its pixels channels last in memory, as an image file has. An epoch depends on the plan and
    its number alone, so the state of the stream is a number of batches: a resumed run gets the batches it would have
    had, and on another number of processes the rest of the same samples.

    A sample whose bytes are damaged is named in a warning, and another sample of the epoch replaces it, the same one in
    every run.

    Parameters
    ----------
    shards : Shards
        The data.
    plan : Plan
        How batches are made of it.
    threads : int or None
        Threads that decode; None takes this process's share of the CPUs.
    cache : str
        "ram" decodes each image once and keeps it as uint8; "auto" does so if all fit into `cache_gb`; "none" decodes
        again in every epoch. Each process keeps all images.
    cache_gb : float or None
        Size of that cache; None is half of the available memory (see `memory`).
    bad_share : float
        Share of the samples that may be damaged, 0 to 1.
    pin : bool
        Put batches into page-locked memory, for asynchronous copies to CUDA.

    Raises
    ------
    UserError
        If the images differ in size, the plan asks for textures that the shards do not have, the batch does not divide
        among the processes, or the cache is too small for "ram"; while reading, if more samples are damaged than
        `bad_share` allows.

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
                f"{shards.directory}: these shards hold no textures (--per-image 0); build some with "
                "`texturegen build`, or train with --set texture_source=patch-shuffle or --texture-role none"
            )
        if plan.batch_size % (plan.ranks * plan.accumulate):
            raise UserError(
                f"batch_size {plan.batch_size} does not divide by {plan.ranks} processes times "
                f"accumulate {plan.accumulate}; set it to a multiple of {plan.ranks * plan.accumulate}"
            )
        if cache not in CACHES:
            raise UserError(f"unknown cache '{cache}'{nearest(cache, CACHES)}; known: {', '.join(CACHES)}")
        self.shards, self.plan, self.threads, self.pin = shards, plan, threads or default_threads(), pin
        self._damaged: dict[int, str] = {}  # number of each damaged sample -> what is wrong
        self._damaged_lock = threading.Lock()  # decoding threads add to it
        self._max_damaged = bad_share * len(shards)
        if plan.order == "shards" and len(shards):
            each = sum(shard["bytes"] for shard in shards.build["shards"]) / len(shards)
            shards.enable_block_cache(round(2 * each * (plan.shuffle_buffer + plan.batch_size)) + SPARE_BYTES)
        self._steps = count_batches(len(shards), plan.batch_size, plan.remainder)
        # The cache holds a sample's image and its K textures side by side: (1 + K, H, W, 3).
        held = shards.textures_per_image if plan.textures != "none" else 0
        height, width = shards.image_size()
        self._shape = (1 + held, height, width, 3)
        self._cache: np.ndarray | None = None
        if cache == "none":
            return
        size = len(shards) * np.prod(self._shape) / 1e9
        limit = cache_budget() / 1e9 if cache_gb is None else cache_gb
        if cache == "ram" and size > limit:
            allowed = "cache_gb is" if cache_gb is not None else "half of the memory available to this process is"
            raise UserError(
                f"cache ram: the pixels take {size:.1f} GB, but {allowed} {limit:.2g} GB; set cache_gb higher, or "
                "cache none"
            )
        if size <= limit:
            self._cache = np.empty((len(shards), *self._shape), np.uint8)
            self._cached = np.zeros(len(shards), bool)

    @property
    def cached(self) -> bool:
        """True if decoded pixels are kept."""
        return self._cache is not None

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return self._steps

    def epoch(self, number: int, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of epoch `number`, without the first `skip`."""
        plan, numbers = self.plan, self.shards.numbers
        order = epoch_order(numbers, plan.seed, number, plan.order, plan.shuffle_buffer)

        def load(step: int) -> Batch:
            places = np.arange(step * plan.batch_size, (step + 1) * plan.batch_size) % len(order)
            near = numbers[order[places]] if plan.order == "shards" else None
            places = split_batch(places, near, plan.rank, plan.ranks, plan.accumulate)
            # Replacements come from half an epoch away, so no batch holds a sample twice.
            return self._load(order[places], number, lambda i: np.roll(order, -(places[i] + len(order) // 2)))

        return self._ahead(load, range(skip, self._steps))

    def in_order(self, indices: np.ndarray | None = None) -> Iterator[Batch]:
        """Yield every sample once, in the order of `indices`, by default the shards' own.

        The last batch may be smaller. Damaged samples are left out; "index" says which samples a batch has.
        """
        samples = np.arange(len(self.shards)) if indices is None else indices
        size = self.plan.batch_size
        return self._ahead(lambda at: self._load(samples[at : at + size], 0, None), range(0, len(samples), size))

    def _ahead(self, load: Callable[[int], Batch], parts: range) -> Iterator[Batch]:
        pool = ThreadPoolExecutor(self.threads)  # OpenCV's decoders release the GIL
        ahead: deque[Future[Batch]] = deque()
        try:
            for part in parts:
                ahead.append(pool.submit(load, part))
                if len(ahead) > self.threads + 1:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _load(self, indices: np.ndarray, epoch: int, others: Callable[[int], np.ndarray] | None) -> Batch:
        """Decode samples into a new batch; the first readable one of others(i) replaces the i-th if it is damaged."""
        side = self._shape[1:]
        drawn = {"none": 0, "one": 1}.get(self.plan.textures, self._shape[0] - 1)  # P
        # torch keeps page-locked memory for the next batch once the copy from it is done.
        images = torch.empty((len(indices), *side), dtype=torch.uint8, pin_memory=self.pin)
        textures = torch.empty((len(indices), drawn, *side), dtype=torch.uint8, pin_memory=self.pin)
        first = self._choose(indices, epoch)
        taken: list[int] = []
        if self._cache is not None and self._cached[indices].all() and not self._damaged.keys() & set(indices.tolist()):
            images.numpy()[:] = self._cache[indices, 0]
            for number in range(drawn):
                textures.numpy()[:, number] = self._cache[indices, np.add(first, 1 + number)]
            return self._as_batch(images, textures, indices.tolist())
        for i, index in enumerate(indices.tolist()):
            into = images[len(taken)].numpy(), textures[len(taken)].numpy()
            if self._read(index, first[i], *into):
                taken.append(index)
            elif others is not None:
                candidates = others(i)
                firsts = self._choose(candidates, epoch)
                pairs = zip(candidates.tolist(), firsts, strict=True)
                taken.append(next(n for n, chosen in pairs if self._read(n, chosen, *into)))
        return self._as_batch(images, textures, taken)

    def _as_batch(self, images: torch.Tensor, textures: torch.Tensor, taken: list[int]) -> Batch:
        """Make a batch of the first len(taken) of images (N, H, W, 3) and textures (N, P, H, W, 3)."""
        batch = {"image": images[: len(taken)].permute(0, 3, 1, 2), "index": torch.tensor(taken, dtype=torch.int64)}
        if textures.shape[1]:
            batch["texture"] = textures[: len(taken)].permute(0, 1, 4, 2, 3)
        return batch

    def _choose(self, indices: np.ndarray, epoch: int) -> list[int]:
        """Return the first texture to read of each sample: a random one for "one", else number 0."""
        held = self._shape[0] - 1
        if self.plan.textures != "one" or held < 2:
            return [0] * len(indices)
        return (uniform(Draws(self.plan.seed, epoch, indices).of(TEXTURE_CHOICE), 0) * held).astype(int).tolist()

    def _read(self, index: int, first: int, image: np.ndarray, textures: np.ndarray) -> bool:
        """Read a sample's image into (H, W, 3) and its textures from `first` on into (P, H, W, 3).

        Return False if it is damaged.
        """
        if index in self._damaged:
            return False
        try:
            if self._cache is None:
                sample = self.shards[index]
                image[:] = sample.image
                for number, into in enumerate(textures, first):
                    into[:] = sample.texture(number)
                return True
            if not self._cached[index]:
                sample = self.shards[index]
                self._cache[index, 0] = sample.image
                if self._shape[0] > 1:
                    self._cache[index, 1:] = sample.textures
                self._cached[index] = True
        except UserError as error:
            self._note_damaged(index, str(error))
            return False
        image[:] = self._cache[index, 0]
        textures[:] = self._cache[index, 1 + first : 1 + first + len(textures)]
        return True

    def damaged(self) -> dict[int, str]:
        """Return the damaged samples found so far: number -> what is wrong."""
        with self._damaged_lock:
            return dict(self._damaged)

    def add_damaged(self, damaged: dict[int, str]) -> None:
        """Add the damaged samples that other processes found; UserError if they are more than `bad_share` together."""
        with self._damaged_lock:
            self._damaged.update(damaged)
            self._refuse_too_many()

    def recheck(self, damaged: dict[int, str]) -> None:
        """Add samples that an earlier session found damaged, except those that were repaired since."""
        for index, fault in damaged.items():
            try:
                sample = self.shards[index]
                _ = sample.image, sample.textures if self._shape[0] > 1 else None
            except UserError:
                self._damaged[index] = fault

    def _note_damaged(self, index: int, fault: str) -> None:
        with self._damaged_lock:
            self._damaged[index] = fault
            self._refuse_too_many()
            count = len(self._damaged)
        if count <= MAX_WARNINGS:
            last = "; further damaged samples are only counted" if count == MAX_WARNINGS else ""
            warn(f"skipped: {fault}{last}")

    def _refuse_too_many(self) -> None:
        if len(self._damaged) > self._max_damaged:
            raise DamagedError(
                f"{self.shards.directory}: {len(self._damaged)} damaged samples of {len(self.shards)} are more than "
                f"bad_share allows; the last: {list(self._damaged.values())[-1]}. Run `texturegen repair` to rebuild "
                "their shards"
            )


def default_threads() -> int:
    """Return this process's share of the CPUs, at least 1: torchrun's processes of a machine divide them."""
    return max(1, count_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def channel_statistics(shards: Shards, at_most: int = 2000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel, of pixels in 0..1.

    They are taken over up to `at_most` images, evenly over the set. Damaged images are left out; if all of them are
    damaged, the last one's UserError is raised.
    """
    picked = np.unique(np.linspace(0, len(shards) - 1, min(len(shards), at_most)).astype(int))
    sums, count = np.zeros((2, 3)), 0
    for index in picked.tolist():
        try:
            pixels = shards[index].image.reshape(-1, 3) / 255.0
        except UserError as error:
            if count == 0 and index == picked[-1]:
                raise error from None
            continue
        sums += pixels.mean(0), (pixels**2).mean(0)
        count += 1
    mean, square = sums / count
    std = np.sqrt(np.maximum(square - mean**2, 1e-6))
    return tuple(float(round(v, 4)) for v in mean), tuple(float(round(v, 4)) for v in std)
