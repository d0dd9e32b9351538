"""Make what a run is of: device, resolved config, stream, method with fresh networks."""

import os
from dataclasses import replace
from typing import Any

import torch

from sacl_train.config import Config
from sacl_train.data.stream import Plan, Stream, channel_statistics
from sacl_train.data.weak import WeakAugment, make_policy
from sacl_train.distributed import count_processes, process_rank
from sacl_train.methods import METHODS
from sacl_train.methods.method import Method
from sacl_train.nets import build_encoder
from texturegen.errors import UserError
from texturegen.shards import Shards


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
        return METHODS[config.method].load()(encoder, weak, image_size, config.method_settings)


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
