"""Check a run without starting it: `sacl-train --dry-run`."""

import errno
import os
from pathlib import Path

import torch

from sacl_train.config import Config
from sacl_train.training.checkpoint import LOCK, refuse_other_files
from sacl_train.training.compilation import require_compiler
from sacl_train.training.metrics import require_boards
from sacl_train.training.resume import load_resumable, refuse_other_run
from sacl_train.training.setup import choose_device, describe, make_stream, resolve
from sacl_train.training.state import make_state, restore
from sacl_train.training.step import is_captured
from texturegen.shards import open_shards
from texturegen.storage.lock import refuse_locked


def plan(config: Config, shards_dir: str | Path, out: str | Path) -> tuple[Config, str]:
    """Check what `loop.train` would do with the same arguments, and write nothing.

    Returns
    -------
    config : Config
        The resolved config.
    line : str
        One line on what the run would do.

    Raises
    ------
    UserError, OSError
        For every mistake that `train` reports before its first step, in a single process. What only the step shows
        (memory, a loss that is not finite, a compiler that fails) and what only a service knows (the login of Weights &
        Biases) is not found.
    """
    shards, out = open_shards(shards_dir), Path(out)
    _check_place(out)
    checkpoint = load_resumable(out)
    device = choose_device(config.device)
    config = resolve(config, shards, device, checkpoint)
    require_boards(config)
    stream = make_stream(config, shards, device)
    # The networks are made on the CPU: nothing is computed, so they need no memory of a GPU.
    state = make_state(config, shards, torch.device("cpu"), len(stream), is_new=checkpoint is None)
    if checkpoint is not None:
        refuse_other_run(out, checkpoint, config, shards.digest)
        restore(state, checkpoint, out)
        stream.recheck(state.damaged)
    if config.compile != "none":
        require_compiler(device)
    is_captured(state.method, config, device)
    return config, describe(config, stream, state.saved_step)


def _check_place(out: Path) -> None:
    """Raise UserError or OSError where `checkpoint.exclusive` would, but leave the directory as it is."""
    refuse_other_files(out)
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(out))
    if nearest != out and not os.access(nearest, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(nearest))
    refuse_locked(out / LOCK)
