"""Make the parts of a run: its device, resolved config, stream of batches, and method with fresh networks."""

import os
from dataclasses import replace

import torch

from sacl_train.config import Config
from sacl_train.data.stream import Plan, Stream, channel_statistics
from sacl_train.data.weak import WeakAugment, make_policy
from sacl_train.distributed import count_processes, process_rank
from sacl_train.methods import METHODS
from sacl_train.methods.method import Method
from sacl_train.nets import build_encoder
from sacl_train.training.checkpoint import Checkpoint
from texturegen.errors import UserError
from texturegen.shards import Shards


def choose_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" is CUDA if it is available, else the CPU.

    Under torchrun each process gets the CUDA device of its local rank, or the only one that is visible to it.

    Raises
    ------
    UserError
        If the device is not available, or is neither a CPU nor a CUDA device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    tried = name
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise UserError(f"device {name!r} is not supported; use --device cpu or cuda")
        if device.type == "cuda" and "LOCAL_RANK" in os.environ:
            # Choose before the first allocation: every process would hold some memory of device 0 until it ends.
            visible = torch.cuda.device_count()
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) if visible != 1 else 0)
            tried = str(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {tried!r} is not available ({reason}); use --device cpu") from None
    return device


def resolve(config: Config, shards: Shards, checkpoint: Checkpoint | None = None) -> Config:
    """Return the config with the values that it leaves to the shards: mean, std, and the places of a memory bank.

    A resumed run keeps the checkpoint's mean and std: measured again, they would change with every sample that was
    damaged or repaired since.
    """
    if getattr(config.method_settings, "images", len(shards)) is None:
        config = replace(config, method_settings=replace(config.method_settings, images=len(shards)))
    if config.mean is not None and config.std is not None:
        return config
    saved = checkpoint["config"] if checkpoint is not None else {}
    if saved.get("mean") and saved.get("std"):
        mean, std = tuple(saved["mean"]), tuple(saved["std"])
    else:
        mean, std = channel_statistics(shards)
    return replace(config, mean=config.mean or mean, std=config.std or std)


def make_stream(config: Config, shards: Shards, device: torch.device) -> Stream:
    """Return this process's stream of batches.

    Raises
    ------
    UserError
        If the shards hold fewer images than a batch, a piece of a batch has fewer than two, or the settings ask for
        textures that the shards do not have.
    """
    if config.batch_size > len(shards):
        raise UserError(
            f"batch_size is {config.batch_size}, but {shards.directory} holds {len(shards)} images; "
            f"set batch_size to {len(shards)} or less"
        )
    pieces = count_processes() * config.accumulate
    if config.batch_size // pieces < 2:
        where = f" on {count_processes()} processes" if count_processes() > 1 else ""
        raise UserError(
            f"batch_size {config.batch_size} with accumulate {config.accumulate}{where} is less than two images at a "
            f"time, and one image has nothing to be contrasted with; set batch_size to at least {2 * pieces}"
        )
    reads_textures = config.method_settings.texture_role != "none" and config.texture_source != "patch-shuffle"
    plan = Plan(
        batch_size=config.batch_size,
        seed=config.seed,
        textures=config.texture_draw if reads_textures else "none",
        order=config.order,
        shuffle_buffer=config.shuffle_buffer,
        remainder=config.remainder,
        rank=process_rank(),
        ranks=count_processes(),
        accumulate=config.accumulate,
    )
    pin = device.type == "cuda"
    return Stream(shards, plan, config.threads, config.cache, config.cache_gb, config.bad_share, pin)


def build_method(config: Config, image_size: tuple[int, int]) -> Method:
    """Return the method of `config` with freshly initialised networks, a function of its settings and seed alone.

    Parameters
    ----------
    config : Config
        With mean and std resolved.
    image_size : tuple of int
        Height and width in pixels.
    """
    if config.mean is None or config.std is None:
        raise ValueError("mean and std must be resolved before the networks are built")
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU; torch's own generator stays as it was
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
    """Return one line on what a run that starts at `step` will do."""
    shards, count = stream.shards, len(stream) * config.batch_size
    odd = abs(len(shards) - count)
    fate = "used twice per epoch" if config.remainder == "wrap" else "left out of each epoch"
    rest = f", {odd} {fate}" if odd else ""
    processes = f" on {stream.plan.ranks} processes" if stream.plan.ranks > 1 else ""
    cache = "kept decoded in memory" if stream.cached else "decoded again in each epoch"
    resumed = f", resuming after step {step}" if step else ""
    return (
        f"{len(shards)} images, {cache}; {config.epochs} epochs of {len(stream)} batches of {config.batch_size}"
        f"{processes}{rest}{resumed}"
    )
