"""Check a run without starting it: `sacl-train --dry-run`."""

from pathlib import Path

import torch

from sacl_train.config import Config
from sacl_train.training.metrics import require_board
from sacl_train.training.online import make_online
from sacl_train.training.resume import load_resumable, refuse_other_run
from sacl_train.training.setup import build_method, choose_device, describe, make_stream, resolve
from texturegen.shards import open_shards


def plan(config: Config, shards_dir: str | Path, out: str | Path) -> tuple[Config, str]:
    """What `train` would do, with nothing written: the resolved config, and a line about it.

    Raises the UserErrors that `train` raises before its first step in a single process.
    """
    shards = open_shards(shards_dir)
    choose_device(config.device)
    require_board(config.tensorboard)
    state = load_resumable(Path(out))
    config = resolve(config, shards, state)
    cpu = torch.device("cpu")  # what is made here is only looked at
    stream = make_stream(config, shards, cpu)
    make_online(config, build_method(config, shards.image_size()).encoder, shards, cpu)
    if state is not None:
        refuse_other_run(Path(out), state, config, shards.digest)
    return config, describe(config, stream, state["step"] if state else 0)
