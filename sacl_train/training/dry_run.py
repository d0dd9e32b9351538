"""Check a run without starting it: `sacl-train --dry-run`."""

from pathlib import Path

import torch

from sacl_train.config import Config
from sacl_train.training.metrics import require_boards
from sacl_train.training.online import make_online
from sacl_train.training.resume import load_resumable, refuse_other_run
from sacl_train.training.setup import build_method, choose_device, describe, make_stream, resolve
from texturegen.shards import open_shards


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
    UserError
        For every mistake that `train` reports before its first step, in a single process.
    """
    shards = open_shards(shards_dir)
    device = choose_device(config.device)
    require_boards(config)
    checkpoint = load_resumable(Path(out))
    config = resolve(config, shards, device, checkpoint)
    cpu = torch.device("cpu")  # nothing is computed here, so the networks need no GPU
    stream = make_stream(config, shards, cpu)
    make_online(config, build_method(config, shards.image_size()).encoder, shards, cpu)
    if checkpoint is not None:
        refuse_other_run(Path(out), checkpoint, config, shards.digest)
    return config, describe(config, stream, checkpoint["step"] if checkpoint else 0)
