"""Stateless random numbers: each is a hash of its purpose, so none depends on how many were drawn before it.

A sample's views are the same in any batch, on any number of processes, on every device and in a resumed run. The hash
is SplitMix64 (Steele et al. 2014, "Fast splittable pseudorandom number generators", figure 15), applied once per word.
It is computed where the samples' indices are; nothing is copied between host and device.

torch has no arithmetic for uint64, so the hash is computed in int64, whose sums and products wrap around to the same 64
bits.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sacl_train.data.device import constant


def _signed(number: int) -> int:
    """Return the int64 with the same lowest 64 bits."""
    return (number + 2**63) % 2**64 - 2**63


GOLDEN, FIRST, SECOND = map(_signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
SIGN = _signed(1 << 63)


def mix(state: Tensor, word: int | Tensor) -> Tensor:
    """Hash states, int64 of any shape, with a word: one int for all, or int64 that broadcasts with the states."""
    z = (state ^ (_signed(word) if isinstance(word, int) else word)) + GOLDEN
    z = (z ^ _shift_right(z, 30)) * FIRST
    z = (z ^ _shift_right(z, 27)) * SECOND
    return z ^ _shift_right(z, 31)


def _mix_on_host(state: int, word: int) -> int:
    """Return what `mix` does, for ints of any size."""
    z = ((state ^ word) + GOLDEN) % 2**64
    z = ((z ^ z >> 30) * FIRST) % 2**64
    z = ((z ^ z >> 27) * SECOND) % 2**64
    return _signed(z ^ z >> 31)


def uniform(state: Tensor, word: int | range | tuple[int, ...]) -> Tensor:
    """Return float32 numbers in [0, 1); different words give independent numbers.

    Parameters
    ----------
    state : Tensor int64 (N,)
    word : int, range or tuple of int
        One word, or K of them.

    Returns
    -------
    Tensor float32 (N,), or (K, N) for K words
    """
    return _shift_right(_hash(state, word), 40).to(torch.float32) * 2**-24


def integers(state: Tensor, words: range, count: int) -> Tensor:
    """Return integers in [0, count), int64 (K, N), for states int64 (N,) and K words; count is below 2**32."""
    return _shift_right(_hash(state, words), 1) % count


def sort_keys(state: Tensor, words: range) -> Tensor:
    """Return a key for each of K things, int64 (N, K) below 2**63 - 1; sorting by them gives a random order."""
    # With the sign bit flipped, signed integers compare as the unsigned hashes do.
    return (_hash(state, words) ^ SIGN).T


@dataclass(frozen=True)
class Draws:
    """Random numbers of the samples of a batch.

    Attributes
    ----------
    seed : int
        Seed of the run.
    epoch : int or Tensor int64 (0-d)
        Index of the epoch. A tensor may change between replays of a captured CUDA graph.
    samples : Tensor int64 (N,)
        Indices of the samples in the shards. All random numbers are computed on their device.
    start : Tensor int64 (0-d)
        Hash of seed and epoch, which the hashes of all samples begin with; see `states_of`.

    Examples
    --------
    >>> draws = Draws(seed=0, epoch=2, samples=torch.tensor([7, 8]))
    >>> torch.equal(draws.of(1)[:1], Draws(0, 2, torch.tensor([7])).of(1))  # the same in any batch
    True
    """

    seed: int
    epoch: int | Tensor
    samples: Tensor
    start: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        run = _mix_on_host(0, self.seed)
        if isinstance(self.epoch, int):
            start = torch.full((), _mix_on_host(run, self.epoch), dtype=torch.int64, device=self.samples.device)
        else:
            start = mix(self.epoch, run)  # a hash of two words does not depend on their order
        object.__setattr__(self, "start", start)

    def of(self, purpose: int | tuple[int, ...]) -> Tensor:
        """Return a state for each sample, for `uniform` and `mix`. The purpose of a view is its index.

        The states are int64 (N,), or (K, N) for K purposes.
        """
        return states_of(self.samples, self.start, purpose)


def states_of(samples: Tensor, start: Tensor, purpose: int | tuple[int, ...]) -> Tensor:
    """Return what `Draws.of` does, as a function of tensors that torch.compile takes for every epoch and batch."""
    return _hash(mix(samples, start), purpose)


def _hash(state: Tensor, word: int | range | tuple[int, ...]) -> Tensor:
    """Mix states (N,) with one word, or with each of several: int64 (N,) or (K, N)."""
    if isinstance(word, int):
        return mix(state, word)
    if isinstance(word, tuple):
        return mix(state, constant((word,), state.device)[0, :, None])
    return mix(state, torch.arange(word.start, word.stop, word.step, device=state.device)[:, None])


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Shift in zeros from the left; >> of int64 would repeat the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
