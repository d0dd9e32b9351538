"""Merge shard directories, or split one by a filter or a fraction, without decoding or encoding anything.

Members are copied by the manifest's offsets, and their checksums are compared on the way. Samples keep their order and
all their textures.
"""

import hashlib
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from texturegen.errors import UserError
from texturegen.shards.filter import rows_that_pass
from texturegen.shards.manifest import is_ok
from texturegen.shards.pending import PendingDirectory, Progress
from texturegen.shards.publish import find_repeated_key
from texturegen.shards.reader import Shards
from texturegen.storage.ranges import local_path

MAX_SHOWN = 60  # characters of a value in a message


def merge(
    inputs: Sequence[str | Path],
    out: str | Path,
    shard_size: int | None = None,
    progress: Progress = lambda samples: None,
) -> dict[str, int]:
    """Concatenate the samples of several shard directories in a new one.

    The manifest rows of failed images are copied too.

    Parameters
    ----------
    inputs : sequence of str or Path
        At least two finished directories.
    out : str or Path
        The new directory: missing, or empty.
    shard_size : int, optional
        Samples per shard, at least 1. Default: the shard size of the first input.
    progress : callable
        Called with 1 after each sample.

    Returns
    -------
    dict
        Counts of the new directory: samples, textures, failed and ignored.

    Raises
    ------
    DamagedError
        A shard or manifest of an input is damaged.
    BusyError
        Another process is writing `out`.
    UserError
        An input is not finished, the inputs differ in classes or textures per image or have a key in common, or `out`
        is not empty.

    Examples
    --------
    >>> import texturegen
    >>> texturegen.split("shards", "a", "b", share=0.25)[0]["samples"]
    16
    >>> texturegen.merge(["a", "b"], "joined")
    {'samples': 64, 'textures': 64, 'failed': 0, 'ignored': 0}
    """
    if len(inputs) < 2:
        raise UserError("merge needs at least two directories")
    out, opened = local_path(out), [Shards(local_path(directory)) for directory in inputs]
    for other in opened[1:]:
        for what, (first, second) in {
            "classes": (opened[0].classes, other.classes),
            "textures per image": (opened[0].textures_per_image, other.textures_per_image),
        }.items():
            if first != second:
                raise UserError(
                    f"{opened[0].directory} and {other.directory} cannot be merged: their {what} differ "
                    f"({_shorten(first)} and {_shorten(second)})"
                )
    _refuse_repeated_keys(opened)
    with PendingDirectory(out, opened, shard_size, {"operation": "merge"}) as new:
        for shards in opened:
            new.copy(shards, np.ones(shards.manifest.num_rows, bool), progress)
        new.complete()
        new.rename()
        new.keep()
    return new.counts


def split(
    directory: str | Path,
    out: str | Path,
    rest: str | Path | None = None,
    *,
    where: str | None = None,
    share: float | None = None,
    seed: int = 0,
    shard_size: int | None = None,
    progress: Progress = lambda samples: None,
) -> list[dict[str, int]]:
    """Copy some samples of a shard directory to a new one, and the others to a second one.

    Either both new directories are created or neither is.

    Parameters
    ----------
    directory : str or Path
        A finished directory.
    out : str or Path
        The new directory for the chosen samples: missing, or empty.
    rest : str or Path, optional
        The new directory for the other samples. Default: do not copy them.
    where : str, optional
        A condition on manifest rows, such as "completeness < 12" (see `rows_that_pass`). A sample is chosen if all its
        rows meet the condition. The row of a failed image counts as a sample.
    share : float, optional
        Instead of `where`: the fraction of samples to choose, between 0 and 1, rounded to the nearest sample. Keys with
        the smallest hashes are chosen, so the choice does not depend on the order. Failed images go to `out`.
    seed : int
        Seed of the hash for `share`.
    shard_size : int, optional
        Samples per shard, at least 1. Default: the shard size of the input.
    progress : callable
        Called with 1 after each sample.

    Returns
    -------
    list of dict
        Counts of `out`, and of `rest` if given: samples, textures, failed and ignored.

    Raises
    ------
    DamagedError
        A shard or the manifest is damaged.
    BusyError
        Another process is writing one of the new directories.
    UserError
        The input is not finished, the filter is invalid, `out` or `rest` is not empty or would hold no sample.

    Examples
    --------
    >>> import texturegen
    >>> counts = texturegen.split("shards", "low", "high", where="completeness < 9.5")
    >>> sum(side["samples"] for side in counts)
    64
    """
    if (where is None) == (share is None):
        raise UserError("split needs either a filter or a share")
    out, rest = local_path(out), None if rest is None else local_path(rest)
    shards = Shards(local_path(directory))
    if where is not None:
        chosen = _choose_by_filter(shards, rows_that_pass(where, shards.manifest).to_numpy())
        derived: dict[str, Any] = {"operation": "split", "filter": where}
    else:
        assert share is not None
        if not 0 < share < 1:
            raise UserError(f"--share is {share}; it must be between 0 and 1")
        chosen = _choose_by_hash(shards, share, seed)
        derived = {"operation": "split", "share": share, "seed": seed}
    if rest is not None and os.path.realpath(rest) == os.path.realpath(out):
        raise UserError(f"{out}: --out and --rest must differ")
    targets: list[tuple[Path, np.ndarray, str]] = [(out, chosen, "out")]
    if rest is not None:
        targets.append((rest, ~chosen, "rest"))
    for target, rows, part in targets:
        if not (rows & is_ok(shards.manifest)).any():
            chosen_count = "none" if part == "out" else "all"
            raise UserError(
                f"{target}: would hold no images, because {chosen_count} of the {len(shards)} images are chosen"
            )
    with ExitStack() as stack:
        pending = []
        for target, rows, part in targets:
            new = stack.enter_context(PendingDirectory(target, [shards], shard_size, {**derived, "part": part}))
            new.copy(shards, rows, progress)
            pending.append(new)
        for new in pending:
            new.complete()
        for new in pending:
            new.rename()
        for new in pending:
            new.keep()
    return [new.counts for new in pending]


def _choose_by_filter(shards: Shards, passes: np.ndarray) -> np.ndarray:
    """Return bool (rows,): True for all rows of a sample if all of them pass, and for failed images that pass."""
    ok = is_ok(shards.manifest)
    per_sample = max(shards.textures_per_image, 1)
    chosen = passes.copy()
    chosen[ok] = np.repeat(passes[ok].reshape(-1, per_sample).all(1), per_sample)
    return chosen


def _choose_by_hash(shards: Shards, fraction: float, seed: int) -> np.ndarray:
    """Return bool (rows,): True for failed images and for the samples whose keys have the smallest hashes."""
    keys = [f"{seed}/{key}".encode() for key in shards.keys]
    order = sorted(range(len(keys)), key=lambda i: hashlib.blake2b(keys[i], digest_size=16).digest())
    chosen = np.zeros(len(keys), bool)
    chosen[order[: int(fraction * len(keys) + 0.5)]] = True
    ok = is_ok(shards.manifest)
    rows = np.ones(len(ok), bool)
    rows[ok] = np.repeat(chosen, max(shards.textures_per_image, 1))
    return rows


def _refuse_repeated_keys(opened: list[Shards]) -> None:
    repeated = find_repeated_key(pa.chunked_array([shards.keys.array for shards in opened]))
    if repeated is not None:
        holders = [str(shards.directory) for shards in opened for _ in range(shards.keys.count(repeated))]
        raise UserError(
            f"the key {repeated!r} is in both {' and '.join(holders[:2])}, but must be unique in a merged directory; "
            "leave samples out with `texturegen split`"
        )


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."
