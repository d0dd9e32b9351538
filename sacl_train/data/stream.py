"""Shards -> uint8 batches: an order per epoch, decoded by threads ahead of the consumer."""

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
from texturegen.errors import UserError, nearest
from texturegen.shards import Shards
from texturegen.system.threads import count_cpus

Batch = dict[str, torch.Tensor]
CACHES = ("auto", "ram", "none")
DRAW = 1 << 16  # the purpose, among a sample's random numbers, of choosing one of its textures
SPARE = 64 << 20  # bytes of remote shards that are kept beside those of the shuffle buffer, for its ends
NAMED = 10  # bad samples that a warning is given for; all are in `Stream.bad`


@dataclass(frozen=True)
class Plan:
    """How the samples of an epoch become the batches of one process; see `Config` for the settings of these names.

    Attributes
    ----------
    batch_size : of all processes together.
    rank, ranks : this process, and how many there are.
    textures : "one" of each sample's K, drawn anew each epoch, "all" of them, or "none".
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
    """Batches of one shard directory.

    A batch is a dict: `image` uint8 (N, 3, H, W); `texture` uint8 (N, P, 3, H, W) where the plan has textures, P = 1 or
    K; `index` int64 (N,), numbers of the samples in the shards. Pixels lie as they do in an image file, channels last.
    With `pin`, in page-locked memory.

    An epoch depends on (plan, number) alone, so its state is a number of batches: a run goes on with those it would
    have had, and on another number of processes with the rest of the same samples.

    A sample whose bytes are damaged is named in a warning and another of the epoch stands in for it, the same in every
    run. More than `bad_share` of all samples: UserError.

    threads: that decode; None takes the CPUs there are, by equal parts to the processes that torchrun started here.

    Images are decoded once and kept as uint8 with cache "ram", or "auto" where `cache_gb` is enough for all of them;
    every process keeps all. None for `cache_gb` takes half of the memory that is available (see `memory`).

    Raises UserError when the images are of different sizes, textures are asked for and there are none, the batch does
    not divide among the processes, or the cache is too small for "ram".
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
                "`texturegen build`, take --set texture_source=patch-shuffle, which needs none, or --texture-role none"
            )
        if plan.batch_size % (plan.ranks * plan.accumulate):
            raise UserError(
                f"batch_size {plan.batch_size} does not divide by {plan.ranks} processes times "
                f"accumulate {plan.accumulate}; take a multiple of {plan.ranks * plan.accumulate}"
            )
        if cache not in CACHES:
            raise UserError(f"unknown cache '{cache}'{nearest(cache, CACHES)}; known: {', '.join(CACHES)}")
        self.shards, self.plan, self.threads, self.pin = shards, plan, threads or default_threads(), pin
        self.bad: dict[int, str] = {}  # number of each damaged sample -> what is wrong
        self._noting = threading.Lock()  # the threads that decode find them while others look
        self._most_bad = bad_share * len(shards)
        if plan.order == "shards" and len(shards):
            each = sum(shard["bytes"] for shard in shards.build["shards"]) / len(shards)
            shards.keep_blocks(round(2 * each * (plan.shuffle_buffer + plan.batch_size)) + SPARE)
        self._steps = count_batches(len(shards), plan.batch_size, plan.remainder)
        # Image and textures of a sample lie side by side in the cache: (1 + K, H, W, 3).
        held = shards.textures_per_image if plan.textures != "none" else 0
        height, width = shards.image_size()
        self._shape = (1 + held, height, width, 3)
        self._cache: np.ndarray | None = None
        if cache == "none":
            return
        size = len(shards) * np.prod(self._shape) / 1e9
        most = cache_budget() / 1e9 if cache_gb is None else cache_gb
        if cache == "ram" and size > most:
            allowed = "cache_gb is" if cache_gb is not None else "half of the memory available to this process is"
            raise UserError(f"cache ram: the pixels take {size:.1f} GB, {allowed} {most:.2g}; set cache_gb higher")
        if size <= most:
            self._cache = np.empty((len(shards), *self._shape), np.uint8)
            self._cached = np.zeros(len(shards), bool)

    @property
    def cached(self) -> bool:
        """Whether decoded pixels are kept."""
        return self._cache is not None

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._steps

    def epoch(self, number: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of epoch `number`, without the first `skip`."""
        plan, numbers = self.plan, self.shards.numbers
        order = epoch_order(numbers, plan.seed, number, plan.order, plan.shuffle_buffer)

        def load(step: int) -> Batch:
            places = np.arange(step * plan.batch_size, (step + 1) * plan.batch_size) % len(order)
            near = numbers[order[places]] if plan.order == "shards" else None
            places = split_batch(places, near, plan.rank, plan.ranks, plan.accumulate)
            # Half an epoch away: nobody's batch has the same sample twice.
            return self._load(order[places], number, lambda i: np.roll(order, -(places[i] + len(order) // 2)))

        return self._ahead(load, range(skip, self._steps))

    def in_order(self, indices: np.ndarray | None = None) -> Iterator[Batch]:
        """Every sample once, in the order of `indices` (the shards' own by default); the last batch may be smaller.

        Damaged samples are left out: `index` says which are there.
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
        """Decode samples into a new batch; where the i-th is damaged, the first of others(i) that is not."""
        side = self._shape[1:]
        drawn = {"none": 0, "one": 1}.get(self.plan.textures, self._shape[0] - 1)  # P
        # Page-locked memory is not given back but kept by torch for the next batch, once the copy from it is done.
        images = torch.empty((len(indices), *side), dtype=torch.uint8, pin_memory=self.pin)
        textures = torch.empty((len(indices), drawn, *side), dtype=torch.uint8, pin_memory=self.pin)
        first = self._choose(indices, epoch)
        taken: list[int] = []
        if self._cache is not None and self._cached[indices].all() and not self.bad.keys() & set(indices.tolist()):
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
        """The first of (N, H, W, 3) and (N, P, H, W, 3), as many as are taken, with their numbers."""
        batch = {"image": images[: len(taken)].permute(0, 3, 1, 2), "index": torch.tensor(taken, dtype=torch.int64)}
        if textures.shape[1]:
            batch["texture"] = textures[: len(taken)].permute(0, 1, 4, 2, 3)
        return batch

    def _choose(self, indices: np.ndarray, epoch: int) -> list[int]:
        """The first of the textures to read of each sample: with "one" a random one, else number 0."""
        held = self._shape[0] - 1
        if self.plan.textures != "one" or held < 2:
            return [0] * len(indices)
        return (uniform(Draws(self.plan.seed, epoch, indices).of(DRAW), 0) * held).astype(int).tolist()

    def _read(self, index: int, first: int, image: np.ndarray, textures: np.ndarray) -> bool:
        """Put the pixels of a sample into (H, W, 3), textures `first` to first + P into (P, H, W, 3).

        False when it is damaged.
        """
        if index in self.bad:
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
            self._note_bad(index, str(error))
            return False
        image[:] = self._cache[index, 0]
        textures[:] = self._cache[index, 1 + first : 1 + first + len(textures)]
        return True

    def try_again(self, damaged: dict[int, str]) -> None:
        """Take in what an earlier session found damaged (its `bad`), but for samples that have been repaired since."""
        for index, fault in damaged.items():
            try:
                sample = self.shards[index]
                _ = sample.image, sample.textures if self._shape[0] > 1 else None
            except UserError:
                self.bad[index] = fault

    def take_in(self, damaged: dict[int, str]) -> None:
        """What all processes together have found (their `found_bad`): `bad_share` is meant for that."""
        with self._noting:
            self.bad.update(damaged)
            self._refuse_too_many()

    def found_bad(self) -> dict[int, str]:
        """A copy of `bad`, which threads may be adding to."""
        with self._noting:
            return dict(self.bad)

    def _refuse_too_many(self) -> None:
        if len(self.bad) > self._most_bad:
            raise UserError(
                f"{self.shards.directory}: {len(self.bad)} damaged samples are more than bad_share allows of "
                f"{len(self.shards)}; the last: {list(self.bad.values())[-1]}. `texturegen repair` makes their shards "
                "again"
            )

    def _note_bad(self, index: int, fault: str) -> None:
        with self._noting:
            self.bad[index] = fault
            self._refuse_too_many()
            count = len(self.bad)
        if count <= NAMED:
            last = "; further ones are counted only" if count == NAMED else ""
            warn(f"skipped: {fault}{last}")


def default_threads() -> int:
    """This process's part of the CPUs."""
    return max(1, count_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def channel_statistics(shards: Shards, at_most: int = 2000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, in 0..1, over up to `at_most` images spread evenly over the set.

    Damaged ones are left out; UserError when all are.
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
