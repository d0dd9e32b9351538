"""The order of an epoch's samples and the division of a batch among processes, as pure functions.

Every process plans the whole epoch in advance from the manifest alone. All processes therefore have the same number of
batches, even if shards differ in length.
"""

import numpy as np

from texturegen.errors import UserError, nearest

ORDERS = ("global", "shards")
REMAINDERS = ("drop", "wrap")


def epoch_order(shards: np.ndarray, seed: int, epoch: int, order: str = "global", buffer: int = 4096) -> np.ndarray:
    """Return the order of an epoch's samples: a permutation determined by the arguments.

    Parameters
    ----------
    shards : ndarray, int (N,)
        Index of the shard of each sample.
    seed, epoch : int
        Seed of the run and index of the epoch.
    order : str
        "global" shuffles all samples. "shards" takes whole shards in random order and delays each sample by up to
        `buffer` positions, as a shuffle buffer of that size would, so that reads stay close together.
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
        return random.permutation(len(shards))
    present = np.unique(shards)
    turn = np.empty(int(present.max(initial=0)) + 1, np.int64)  # shard -> its position in the order of shards
    turn[present] = random.permutation(len(present))
    by_shard = np.argsort(turn[shards], kind="stable")
    return by_shard[np.argsort(np.arange(len(shards)) + random.uniform(0, buffer, len(shards)), kind="stable")]


def held_out(samples: int, share: float, seed: int) -> np.ndarray:
    """Return the samples that a run keeps out of training, determined by the arguments.

    Parameters
    ----------
    samples : int
        Number of samples in the shards.
    share : float
        Share of them, 0 to 1.
    seed : int
        Seed of the run.

    Returns
    -------
    ndarray, int64
        Indices, ascending.
    """
    # A word more than `epoch_order` has, so that the choice is independent of every epoch's order.
    return np.sort(np.random.default_rng([seed, 0, 1]).permutation(samples)[: round(share * samples)])


def count_batches(samples: int, batch_size: int, remainder: str = "drop") -> int:
    """Return the number of batches of an epoch.

    "drop" counts full batches only; "wrap" fills the last one with samples from the beginning of the epoch.
    """
    if remainder not in REMAINDERS:
        raise UserError(f"unknown remainder '{remainder}'{nearest(remainder, REMAINDERS)}; known: drop, wrap")
    return samples // batch_size if remainder == "drop" else -(-samples // batch_size)


def split_batch(
    positions: np.ndarray, shards: np.ndarray | None, rank: int, ranks: int, accumulate: int = 1
) -> np.ndarray:
    """Return the part of a batch that one process trains on.

    The a-th pieces of all processes together are always the a-th piece of the batch, so the number of processes does
    not change which images are contrasted with each other.

    Parameters
    ----------
    positions : ndarray, int (B,)
        Positions of the batch's samples in the epoch; B is a multiple of ranks * accumulate.
    shards : ndarray, int (B,), or None
        Index of each sample's shard, used to give every process samples of few shards; None keeps the order.
    rank, ranks : int
        Index of the process, and number of processes.
    accumulate : int
        Number of pieces of the batch, for gradient accumulation.

    Returns
    -------
    ndarray, int (B / ranks,)
        `accumulate` equal pieces, one after the other.
    """
    pieces = positions.reshape(accumulate, -1)
    if shards is not None:
        pieces = np.take_along_axis(pieces, np.argsort(shards.reshape(accumulate, -1), axis=1, kind="stable"), 1)
    return pieces.reshape(accumulate, ranks, -1)[:, rank].reshape(-1)
