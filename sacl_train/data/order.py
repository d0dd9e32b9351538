"""The order of an epoch's samples, and each process's share of a batch, as pure functions.

Every process plans the whole epoch before it begins, from the manifest alone. So all processes have the same number of
batches, whatever the lengths of the shards.
"""

import numpy as np

from texturegen.errors import UserError, nearest

ORDERS = ("global", "shards")
REMAINDERS = ("drop", "wrap")


def epoch_order(numbers: np.ndarray, seed: int, epoch: int, order: str = "global", buffer: int = 4096) -> np.ndarray:
    """Return the order of an epoch's samples: a permutation that depends on the arguments alone.

    Parameters
    ----------
    numbers : ndarray, int (N,)
        Number of the shard that holds each sample.
    seed, epoch : int
        What the permutation is drawn from.
    order : str
        "global" shuffles all samples. "shards" takes whole shards in random order and delays each sample by up to
        `buffer` places, as a shuffle buffer of that size would, so that reads stay close together.
    buffer : int
        Size of that shuffle buffer.

    Returns
    -------
    ndarray, int64 (N,)

    Raises
    ------
    UserError
        If `order` is unknown.

    Examples
    --------
    >>> sorted(epoch_order(np.array([0, 0, 1, 1]), seed=0, epoch=3).tolist())
    [0, 1, 2, 3]
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
    """Return the number of batches of an epoch.

    "drop" counts full batches only; "wrap" fills the last one with samples from the beginning of the epoch.
    """
    if remainder not in REMAINDERS:
        raise UserError(f"unknown remainder '{remainder}'{nearest(remainder, REMAINDERS)}; known: drop, wrap")
    return samples // batch_size if remainder == "drop" else -(-samples // batch_size)


def split_batch(
    places: np.ndarray, numbers: np.ndarray | None, rank: int, ranks: int, accumulate: int = 1
) -> np.ndarray:
    """Return the share of one process in a batch.

    Piece a of all processes together is always the a-th part of the batch, so which images are contrasted with each
    other does not depend on the number of processes.

    Parameters
    ----------
    places : ndarray, int (B,)
        The batch's places in the epoch; B is a multiple of ranks * accumulate.
    numbers : ndarray, int (B,), or None
        Number of each sample's shard, to give every process samples that lie close together; None keeps the order.
    rank, ranks : int
        The process, and how many there are.
    accumulate : int
        Pieces that the batch is processed in.

    Returns
    -------
    ndarray, int (B / ranks,)
        `accumulate` equal pieces, one after the other.
    """
    pieces = places.reshape(accumulate, -1)
    if numbers is not None:
        pieces = np.take_along_axis(pieces, np.argsort(numbers.reshape(accumulate, -1), axis=1, kind="stable"), 1)
    return pieces.reshape(accumulate, ranks, -1)[:, rank].reshape(-1)
