"""Find the checkpoint to resume from, check that it belongs to the same run, and load its networks."""

import shlex
from pathlib import Path
from typing import Any

import torch

from sacl_train.config import Config, load_config, modern_settings
from sacl_train.methods.method import Method
from sacl_train.nets import Encoder
from sacl_train.training.checkpoint import Checkpoint, is_checkpoint, load_checkpoint, read_checkpoint
from sacl_train.training.setup import build_method
from texturegen.console import warn
from texturegen.errors import DamagedError, MissingError, OtherBuildError, UserError
from texturegen.shards import Shards

# Settings that may differ when a run is resumed: they decide where and how fast it trains, not its figures.
RESUME_MAY_CHANGE = (
    "device",
    "threads",
    "cache",
    "cache_gb",
    "bad_share",
    "save_every",
    "save_minutes",
    "cuda_graph",
    "keep",
    "log_every",
    "tensorboard",
    "wandb",
)


def load_resumable(out: Path) -> Checkpoint | None:
    """Return the newest checkpoint in `out` that a run can resume from, or None.

    A run that failed before its first step (out of memory, a loss that is not finite) leaves nothing to resume: the
    next attempt starts over and may change any setting. An untrained encoder, of 0 epochs, is a finished run.
    """
    checkpoint = load_checkpoint(out)
    if checkpoint is not None and checkpoint["step"] == 0 < checkpoint["config"].get("epochs", 0):
        return None
    return checkpoint


def refuse_other_run(out: Path, checkpoint: Checkpoint, config: Config, digest: str) -> None:
    """Raise OtherBuildError unless the checkpoint is of a run with this config, on shards with this digest."""
    mine = comparable(config)
    _saved_config(checkpoint, out)
    # A setting that is newer than the checkpoint had its default value then.
    defaults = load_config(None, {"method": checkpoint["config"].get("method", "sacl")}).flat()
    theirs = {**defaults, **modern_settings(checkpoint["config"])}
    differ = [f"{k}: {theirs.get(k)!r} there, {mine.get(k)!r} here" for k in mine if theirs.get(k) != mine.get(k)]
    if checkpoint["shards"] != digest:
        differ.append("other shards")
    if differ:
        raise OtherBuildError(
            f"{out}: holds another run ({'; '.join(differ)}); choose another --out or give the same settings"
        )


def warn_of_other_threads(out: Path, checkpoint: Checkpoint, device: torch.device) -> None:
    """Warn if a run on the CPU resumes with another number of torch threads, which round its sums differently."""
    before, now = checkpoint.get("torch_threads"), torch.get_num_threads()
    if device.type == "cpu" and before not in (None, now):
        warn(
            f"{out}: resumed with {now} torch threads after {before}: the weights drift from those of a run that was "
            f"never stopped; OMP_NUM_THREADS={before} gives the same bits"
        )


def comparable(config: Config) -> dict[str, Any]:
    """Return the settings that must be equal for a run to be resumed, as plain values."""
    return {key: value for key, value in config.flat().items() if key not in RESUME_MAY_CHANGE}


def location(shards: Shards) -> str:
    """Return the absolute path or the address of the shards: it holds in any working directory."""
    return str(shards.directory.absolute() if isinstance(shards.directory, Path) else shards.directory)


def load_encoder(run: str | Path) -> tuple[Encoder, Config, int]:
    """Return the trained encoder of a run.

    Parameters
    ----------
    run : str or Path
        The run's directory, for its newest checkpoint, or one of the checkpoints in it, such as RUN/best.pt.

    Returns
    -------
    encoder : Encoder
        In eval mode, on the CPU: images float (N, 3, H, W) to features (N, encoder.out_features).
    config : Config
        The run's settings, mean and std of the images among them.
    epochs : int
        Epochs it has been trained for so far.

    Raises
    ------
    MissingError
        If `run` has no checkpoint.
    DamagedError
        If the checkpoint cannot be read.

    Examples
    --------
    >>> encoder, config, epochs = load_encoder("run")
    >>> config.encoder, encoder.out_features, epochs
    ('se_resnet8', 32, 0)
    """
    method, config, checkpoint = load_networks(Path(run))
    return method.encoder.eval(), config, checkpoint["epoch"]


def load_networks(run: Path) -> tuple[Method, Config, Checkpoint]:
    """Return the method of a run with all its networks on the CPU, its config and its checkpoint, as `load_encoder`."""
    checkpoint = read_checkpoint(run) if is_checkpoint(run) else load_checkpoint(run)
    if checkpoint is None and run.is_file():
        raise UserError(f"{run}: not a checkpoint; give the directory of a run, or a .pt file in it")
    if checkpoint is None:
        raise MissingError(f"{run}: no checkpoint here; train one with `sacl-train --out {shlex.quote(str(run))}`")
    config = _saved_config(checkpoint, run)  # config.toml may have been edited since
    method = build_method(config, checkpoint["image_size"])
    load_weights(method, checkpoint, run)
    return method, config, checkpoint


def _saved_config(checkpoint: Checkpoint, run: Path) -> Config:
    """Return the settings in a checkpoint; OtherBuildError, naming `run`, if this version does not know one of them."""
    try:
        return load_config(None, checkpoint["config"])
    except UserError as error:
        raise OtherBuildError(
            f"{run}: the checkpoint has settings that this version of sacl-train does not know ({error}); use the "
            "version that wrote it"
        ) from None


def load_weights(method: Method, checkpoint: Checkpoint, run: Path) -> None:
    """Load the checkpoint's weights into the networks; DamagedError, naming `run`, if names or shapes differ."""
    try:
        method.load_state_dict(checkpoint["method"])
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DamagedError(f"{run}: the checkpoint's weights do not fit its networks ({reason})") from None
