"""Random numbers: the published generator, and the arguments that determine a sample's numbers."""

import numpy as np

from sacl_train.data.draws import Draws, mix, uniform


def test_mix_is_splitmix64() -> None:
    # The first outputs of the reference code (prng.di.unimi.it/splitmix64.c) from the state 1234567.
    state, outputs = np.array([1234567], np.uint64), []
    for _ in range(5):
        outputs.append(int(mix(state, 0)[0]))
        state = state + np.uint64(0x9E3779B97F4A7C15)
    assert outputs == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_uniform_is_even_and_in_unit_interval() -> None:
    values = uniform(Draws(3, 0, np.arange(100_000)).of(0), 5)
    assert values.dtype == np.float32
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.histogram(values, bins=20, range=(0, 1))[0]
    assert np.abs(counts - 5000).max() < 5 * np.sqrt(5000)
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.015
    others = uniform(Draws(3, 0, np.arange(100_000)).of(0), 6)
    assert abs(np.corrcoef(values, others)[0, 1]) < 0.015


def test_draws_are_independent_of_position_in_batch() -> None:
    samples = np.array([7, 3, 900, 0])
    together = Draws(1, 2, samples).of(4)
    for i, sample in enumerate(samples):
        assert Draws(1, 2, np.array([sample])).of(4)[0] == together[i]


def test_seed_epoch_sample_and_purpose_all_matter() -> None:
    seen = [
        int(Draws(seed, epoch, np.array([sample])).of(purpose)[0])
        for seed in range(4)
        for epoch in range(4)
        for sample in range(4)
        for purpose in range(4)
    ]
    assert len(set(seen)) == 4**4
