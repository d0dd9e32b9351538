"""The order of an epoch has every sample once, for any order and number of processes."""

import numpy as np
import pytest

from sacl_train.data.order import ORDERS, count_batches, epoch_order, split_batch
from texturegen.errors import UserError

NUMBERS = np.repeat(np.arange(7), [40, 3, 17, 40, 40, 1, 40])  # uneven shards


@pytest.mark.parametrize("order", ORDERS)
def test_epoch_has_every_sample_once_in_its_own_order(order: str) -> None:
    first = epoch_order(NUMBERS, 0, 0, order, 16)
    assert sorted(first) == list(range(len(NUMBERS)))
    assert np.array_equal(epoch_order(NUMBERS, 0, 0, order, 16), first)
    assert not np.array_equal(epoch_order(NUMBERS, 0, 1, order, 16), first)
    assert not np.array_equal(epoch_order(NUMBERS, 1, 0, order, 16), first)
    assert not np.array_equal(epoch_order(NUMBERS, 1, 0, order, 16), epoch_order(NUMBERS, 0, 1, order, 16))


def test_whole_shards_are_read_one_after_other_within_buffer() -> None:
    numbers = np.repeat(np.arange(50), 100)
    order = epoch_order(numbers, 0, 0, "shards", 200)
    shard = numbers[order]
    spans = [np.flatnonzero(shard == n)[[0, -1]] for n in range(50)]
    assert max(last - first for first, last in spans) < 100 + 2 * 200
    by_start = np.argsort([first for first, _ in spans])
    assert not np.array_equal(by_start, np.arange(50)), "shards come in random order"
    inside = order[shard == by_start[25]]
    assert not np.array_equal(inside, np.sort(inside)), "samples of a shard are shuffled"
    assert len(np.unique(shard[2500:2600])) > 2, "a batch mixes shards"


def test_buffer_of_one_keeps_order_within_shard() -> None:
    order = epoch_order(NUMBERS, 0, 0, "shards", 1)
    for n in range(7):
        inside = order[NUMBERS[order] == n]
        assert np.array_equal(inside, np.sort(inside))


def test_remainder_is_dropped_or_wrapped() -> None:
    assert count_batches(100, 32, "drop") == 3
    assert count_batches(100, 32, "wrap") == 4
    assert count_batches(96, 32, "wrap") == count_batches(96, 32, "drop") == 3


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_share_batch_without_overlap(order: str, accumulate: int, ranks: int) -> None:
    places = np.random.default_rng(0).permutation(48)
    numbers = places // 5 if order == "shards" else None
    shares = [split_batch(places, numbers, rank, ranks, accumulate) for rank in range(ranks)]
    assert {len(share) for share in shares} == {48 // ranks}
    for a, piece in enumerate(np.split(places, accumulate)):
        size = 48 // ranks // accumulate
        together = np.concatenate([share[a * size : (a + 1) * size] for share in shares])
        assert sorted(together) == sorted(piece), "what is contrasted with what does not depend on the ranks"


def test_ranks_of_batch_in_shard_order_read_different_shards() -> None:
    numbers = np.tile(np.arange(4), 12)
    shares = [split_batch(np.arange(48), numbers, rank, 4) for rank in range(4)]
    assert [set(numbers[share].tolist()) for share in shares] == [{0}, {1}, {2}, {3}]


def test_resuming_with_another_number_of_ranks_reads_every_sample_once() -> None:
    order, batch, seen = epoch_order(NUMBERS, 5, 3), 24, []
    steps = count_batches(len(order), batch)
    for step in range(steps):
        ranks = 2 if step < steps // 2 else 3
        places = order[step * batch : (step + 1) * batch]
        for rank in range(ranks):
            seen.extend(split_batch(places, None, rank, ranks))
    assert sorted(seen) == sorted(order[: steps * batch])


def test_unknown_names_are_refused_with_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'shards'"):
        epoch_order(NUMBERS, 0, 0, "shard")
    with pytest.raises(UserError, match="did you mean 'wrap'"):
        count_batches(4, 2, "warp")
