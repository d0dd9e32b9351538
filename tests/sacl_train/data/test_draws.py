"""Random numbers: the published generator, and the arguments that determine a sample's numbers."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sacl_train.data.draws import Draws, integers, mix, sort_keys, uniform

GOLDEN, FIRST, SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def reference_mix(state: np.ndarray, word: int | np.ndarray) -> np.ndarray:
    """SplitMix64 as published, in unsigned arithmetic."""
    z = (state ^ (np.uint64(word % 2**64) if isinstance(word, int) else word.astype(np.uint64))) + GOLDEN
    z = (z ^ (z >> np.uint64(30))) * FIRST
    z = (z ^ (z >> np.uint64(27))) * SECOND
    return z ^ (z >> np.uint64(31))


def reference_states(seed: int, epoch: int, samples: np.ndarray, purpose: int) -> np.ndarray:
    states = np.zeros(len(samples), np.uint64)
    for word in (seed, epoch, samples, purpose):
        states = reference_mix(states, word)
    return states


def unsigned(states: Tensor) -> np.ndarray:
    return states.numpy().view(np.uint64)


def test_mix_is_splitmix64() -> None:
    # The first outputs of the reference code (prng.di.unimi.it/splitmix64.c) from the state 1234567.
    state, outputs = np.array([1234567], np.uint64), []
    for _ in range(5):
        outputs.append(int(unsigned(mix(torch.from_numpy(state.view(np.int64)), 0))[0]))
        state = state + np.uint64(0x9E3779B97F4A7C15)
    assert outputs == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@pytest.mark.parametrize("seed", [0, 7, -3, 2**31, 2**63 - 1, 2**63, 2**64 - 1, 2**64 + 5])
@pytest.mark.parametrize("epoch", [0, 799, 2**40])
def test_numbers_equal_unsigned_arithmetic(seed: int, epoch: int) -> None:
    samples = np.concatenate([np.arange(20), np.random.default_rng(0).integers(0, 2**40, 300)])
    for purpose in (0, 1, 2, 9, 0x40000, 1 << 16, 1 << 17, (1 << 17) + 1):
        expected = reference_states(seed, epoch, samples, purpose)
        for given in (epoch, torch.tensor(epoch)):
            states = Draws(seed, given, torch.from_numpy(samples)).of(purpose)
            assert np.array_equal(unsigned(states), expected)
    words = range(0x100, 0x117)
    hashes = np.stack([reference_mix(expected, word) for word in words])
    floats = (hashes >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
    assert np.array_equal(uniform(states, words).numpy(), floats)
    assert np.array_equal(uniform(states, words[3]).numpy(), floats[3])
    assert np.array_equal(integers(states, words, 50_000).numpy(), ((hashes >> np.uint64(1)) % 50_000).astype(int))
    assert np.array_equal(sort_keys(states, words).argsort(1).numpy(), hashes.T.argsort(1))


def test_uniform_is_even_and_in_unit_interval() -> None:
    values = uniform(Draws(3, 0, torch.arange(100_000)).of(0), 5).numpy()
    assert values.dtype == np.float32
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.histogram(values, bins=20, range=(0, 1))[0]
    assert np.abs(counts - 5000).max() < 5 * np.sqrt(5000)
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.015
    others = uniform(Draws(3, 0, torch.arange(100_000)).of(0), 6).numpy()
    assert abs(np.corrcoef(values, others)[0, 1]) < 0.015


def test_draws_are_independent_of_position_in_batch() -> None:
    samples = torch.tensor([7, 3, 900, 0])
    together = Draws(1, 2, samples).of(4)
    for i in range(len(samples)):
        assert Draws(1, 2, samples[i : i + 1]).of(4)[0] == together[i]


def test_seed_epoch_sample_and_purpose_all_matter() -> None:
    seen = [
        int(Draws(seed, epoch, torch.tensor([sample])).of(purpose)[0])
        for seed in range(4)
        for epoch in range(4)
        for sample in range(4)
        for purpose in range(4)
    ]
    assert len(set(seen)) == 4**4
