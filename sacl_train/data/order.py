"""In which order an epoch takes the samples, and who of several processes takes which: pure functions.

An epoch is planned before it begins, from the manifest alone, so every process knows it whole: all have the same number
of batches, and no shard is too short for one of them.
"""

import numpy as np

from texturegen.errors import UserError, nearest

ORDERS = ("global", "shards")
REMAINDERS = ("drop", "wrap")


def epoch_order(numbers: np.ndarray, seed: int, epoch: int, order: str = "global", buffer: int = 4096) -> np.ndarray:
    """The samples of an epoch in its own order: int64 (N,), a permutation, a function of the arguments alone.

    Parameters
    ----------
    numbers : int (N,), of the shard that each sample lies in.
    order : "global" shuffles all samples. "shards" takes whole shards in random order, and each sample up to `buffer`
        places later than its turn: what a shuffle buffer of that many does. Reads stay close together.

    UserError for another `order`.
    """
    if order not in ORDERS:
        raise UserError(f"unknown order '{order}'{nearest(order, ORDERS)}; known: {', '.join(ORDERS)}")
    random = np.random.default_rng([seed, epoch])
    if order == "global":
        return random.permutation(len(numbers))
    shards = np.unique(numbers)
    turn = np.empty(int(shards.max(initial=0)) + 1, np.int64)
    turn[shards] = random.permutation(len(shards))
    by_shard = np.argsort(turn[numbers], kind="stable")
    return by_shard[np.argsort(np.arange(len(numbers)) + random.uniform(0, buffer, len(numbers)), kind="stable")]


def count_batches(samples: int, batch_size: int, remainder: str = "drop") -> int:
    """Batches of an epoch: whole ones only ("drop"), or the last filled up from the epoch's beginning ("wrap")."""
    if remainder not in REMAINDERS:
        raise UserError(f"unknown remainder '{remainder}'{nearest(remainder, REMAINDERS)}; known: drop, wrap")
    return samples // batch_size if remainder == "drop" else -(-samples // batch_size)


def split_batch(
    places: np.ndarray, numbers: np.ndarray | None, rank: int, ranks: int, accumulate: int = 1
) -> np.ndarray:
    """The share of process `rank` of a batch: (B / ranks,), in `accumulate` equal pieces, one after the other.

    Piece a of all processes together is always the a-th part of the batch, so what is contrasted with what does not
    depend on how many there are. `places` : (B,); B must be a multiple of ranks * accumulate. `numbers` : the shard of
    each, to give every process samples that lie close together; None leaves the order.
    """
    pieces = places.reshape(accumulate, -1)
    if numbers is not None:
        pieces = np.take_along_axis(pieces, np.argsort(numbers.reshape(accumulate, -1), axis=1, kind="stable"), 1)
    return pieces.reshape(accumulate, ranks, -1)[:, rank].reshape(-1)
