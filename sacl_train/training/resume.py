"""Take up a run again: which checkpoint, whether it is of the same run, and the networks it holds."""

from pathlib import Path
from typing import Any

from sacl_train.config import Config, load_config
from sacl_train.methods.method import Method
from sacl_train.nets import Encoder
from sacl_train.training.checkpoint import is_checkpoint, load_checkpoint, read_checkpoint
from sacl_train.training.setup import build_method
from texturegen.errors import UserError
from texturegen.shards import Shards

# Settings that may differ when a run goes on.
RESUME_MAY_CHANGE = (
    "device",
    "threads",
    "cache",
    "cache_gb",
    "bad_share",
    "save_every",
    "keep",
    "log_every",
    "tensorboard",
)


def load_resumable(out: Path) -> dict[str, Any] | None:
    """The newest checkpoint in `out`, for a run to go on from; None where there is none.

    None too for a run that ended before its first step (out of memory, a loss that is not finite): the next try begins
    anew, with what settings it likes. An untrained encoder, of 0 epochs, is a run that is done.
    """
    state = load_checkpoint(out)
    return None if state is not None and state["step"] == 0 < state["config"]["epochs"] else state


def location(shards: Shards) -> str:
    """Where shards lie, for whoever works in another directory: an absolute path, or their address."""
    return str(shards.directory.absolute() if isinstance(shards.directory, Path) else shards.directory)


def comparable(config: Config) -> dict[str, Any]:
    """What must be equal for a run to go on: all that decides the figures, not where and how fast they are made."""
    return {key: value for key, value in config.flat().items() if key not in RESUME_MAY_CHANGE}


def refuse_other_run(out: Path, state: dict[str, Any], config: Config, digest: str) -> None:
    """UserError unless checkpoint `state` of `out` is of a run with this config on the shards of this digest."""
    mine = comparable(config)
    # A setting that came after the checkpoint had its default, or rather what that stands for.
    there = {**load_config(None, {"method": state["config"].get("method", "sacl")}).flat(), **state["config"]}
    differ = [f"{k} {there.get(k)!r} there, {mine.get(k)!r} asked" for k in mine if there.get(k) != mine.get(k)]
    if state["shards"] != digest:
        differ.append("other shards")
    if differ:
        raise UserError(
            f"{out}: holds another run ({'; '.join(differ)}); choose another --out or give the same settings"
        )


def load_method(run: Path) -> tuple[Method, Config, int]:
    """The method of a run with its networks, its config, and the epochs it has been trained for so far.

    run : the run's directory, for its newest checkpoint, or one of the checkpoints in it: RUN/best.pt.

    Raises UserError when there is no checkpoint in `run`.
    """
    state = read_checkpoint(run) if is_checkpoint(run) else load_checkpoint(run)
    if state is None:
        raise UserError(f"{run}: no checkpoint here; train one with `sacl-train --out {run}`")
    config = load_config(None, state["config"])  # not config.toml: that one may have been edited since
    method = build_method(config, state["image_size"])
    method.load_state_dict(state["method"])
    return method, config, state["epoch"]


def load_encoder(run: Path) -> tuple[Encoder, Config, int]:
    """The online encoder of a run in eval mode, its config and epochs; as `load_method`."""
    method, config, epochs = load_method(run)
    return method.encoder.eval(), config, epochs
