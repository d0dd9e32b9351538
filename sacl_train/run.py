"""A run: what is trained on what, whether a directory holds it, and the encoder that came out."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sacl_train.checkpoint import is_checkpoint, load_checkpoint, read_checkpoint
from sacl_train.config import Config, load_config
from sacl_train.data.stream import Plan, Stream, channel_statistics
from sacl_train.data.weak import WeakAugment, make_policy
from sacl_train.distributed import count_processes, process_rank
from sacl_train.evaluate.online import make_online
from sacl_train.methods import METHODS, Method
from sacl_train.metrics import require_board
from sacl_train.nets import Encoder, build_encoder
from texturegen.errors import UserError
from texturegen.shards import Shards, open_shards

# Settings that may differ when a run goes on.
FREE = ("device", "threads", "cache", "cache_gb", "bad_share", "save_every", "keep", "log_every", "tensorboard")


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is some, else the CPU; of torchrun's processes each has the CUDA device of its number,
    or the one that it is shown.

    UserError for a device that is not there, or is neither a CPU nor CUDA's.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    tried = name
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise UserError(f"device {name!r}: this program knows cpu and cuda")
        if device.type == "cuda" and "LOCAL_RANK" in os.environ:
            # Whoever only asked the first one for memory would have some of it for good.
            shown = torch.cuda.device_count()
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) if shown != 1 else 0)
            tried = str(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {tried!r} is not to be had here ({str(error).splitlines()[0]}); try cpu") from None
    return device


def resolve(config: Config, shards: Shards, state: dict[str, Any] | None = None) -> Config:
    """The config with what it leaves to the shards: mean and std, and the length of a memory bank.

    state : the checkpoint that the run goes on from. Its mean and std stay: samples that were damaged or repaired since
        would change what is measured.
    """
    if getattr(config.method_settings, "images", len(shards)) is None:
        config = replace(config, method_settings=replace(config.method_settings, images=len(shards)))
    if config.mean is not None and config.std is not None:
        return config
    there = state["config"] if state is not None else {}
    if there.get("mean") and there.get("std"):
        mean, std = tuple(there["mean"]), tuple(there["std"])
    else:
        mean, std = channel_statistics(shards)
    return replace(config, mean=config.mean or mean, std=config.std or std)


def make_stream(config: Config, shards: Shards, device: torch.device) -> Stream:
    """The stream of this process; UserError when the shards hold less than a batch, or do not fit the settings."""
    if config.batch_size > len(shards):
        raise UserError(
            f"batch_size is {config.batch_size}, but {shards.directory} holds {len(shards)} images; "
            f"set a batch of at most {len(shards)}"
        )
    pieces = count_processes() * config.accumulate
    if config.batch_size // pieces < 2:
        on = f" on {count_processes()} processes" if count_processes() > 1 else ""
        raise UserError(
            f"batch_size {config.batch_size} with accumulate {config.accumulate}{on} is less than two images at a time "
            f"(one alone has nothing to be contrasted with); take a batch_size of at least {2 * pieces}"
        )
    from_shards = config.method_settings.texture_role != "none" and config.texture_source != "patch-shuffle"
    plan = Plan(
        config.batch_size,
        config.seed,
        config.texture_draw if from_shards else "none",
        config.order,
        config.shuffle_buffer,
        config.remainder,
        process_rank(),
        count_processes(),
        config.accumulate,
    )
    pin = device.type == "cuda"
    return Stream(shards, plan, config.threads, config.cache, config.cache_gb, config.bad_share, pin)


def build_method(config: Config, image_size: tuple[int, int]) -> Method:
    """The method of `config` with freshly initialised networks, a function of the config (and its seed) alone."""
    if config.mean is None or config.std is None:
        raise ValueError("mean and std must be resolved before the networks are built")
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU: CUDA's generators stay as they are
        torch.default_generator.manual_seed(config.seed)
        encoder = build_encoder(
            config.encoder,
            config.stem,
            config.width,
            config.attention,
            min(image_size),
            config.placement,
            config.checkpointing,
        )
        policy = make_policy(config.weak, config.crop_scale, config.degrees, config.shift, config.jitter, config.grey)
        weak = WeakAugment(policy, config.mean, config.std)
        return METHODS[config.method](encoder, weak, image_size, config.method_settings)


def describe(config: Config, stream: Stream, step: int) -> str:
    """What a run will do, in a line."""
    shards, count = stream.shards, len(stream) * config.batch_size
    odd = abs(len(shards) - count)
    wrapped = "taken twice" if config.remainder == "wrap" else "left to other epochs"
    rest = f", {odd} {wrapped}" if odd else ""
    ranks = f" on {stream.plan.ranks} processes" if stream.plan.ranks > 1 else ""
    kept = "kept decoded in memory" if stream.cached else "decoded anew each epoch"
    going = f", going on after step {step}" if step else ""
    return (
        f"{len(shards)} images, {kept}; {config.epochs} epochs of {len(stream)} batches of {config.batch_size}"
        f"{ranks}{rest}{going}"
    )


def plan(config: Config, shards_dir: str | Path, out: str | Path) -> tuple[Config, str]:
    """What `train` would do, with nothing written: the resolved config, and a line about it.

    Raises the UserErrors that `train` raises before its first step in a single process.
    """
    shards = open_shards(shards_dir)
    choose_device(config.device)
    require_board(config.tensorboard)
    state = load_begun(Path(out))
    config = resolve(config, shards, state)
    cpu = torch.device("cpu")  # what is made here is only looked at
    stream = make_stream(config, shards, cpu)
    make_online(config, build_method(config, shards.image_size()).encoder, shards, cpu)
    if state is not None:
        refuse_other_run(Path(out), state, config, shards.digest)
    return config, describe(config, stream, state["step"] if state else 0)


def load_begun(out: Path) -> dict[str, Any] | None:
    """The newest checkpoint in `out`, for a run to go on from; None where there is none.

    None too for a run that ended before its first step (out of memory, a loss that is not finite): the next try begins
    anew, with what settings it likes. An untrained encoder, of 0 epochs, is a run that is done.
    """
    state = load_checkpoint(out)
    return None if state is not None and state["step"] == 0 < state["config"]["epochs"] else state


def place_of(shards: Shards) -> str:
    """Where shards lie, for whoever works in another directory: an absolute path, or their address."""
    return str(shards.directory.absolute() if isinstance(shards.directory, Path) else shards.directory)


def comparable(config: Config) -> dict[str, Any]:
    """What must be equal for a run to go on: all that decides the figures, not where and how fast they are made."""
    return {key: value for key, value in config.flat().items() if key not in FREE}


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
