"""Make the parts of a run: its device, resolved config, stream of batches, and method with fresh networks."""

import os
from dataclasses import replace

import torch

from sacl_train.config import Config, modern_settings
from sacl_train.data.draws import Draws
from sacl_train.data.order import held_out
from sacl_train.data.resident import ResidentStream, fits_on_device
from sacl_train.data.statistics import channel_statistics
from sacl_train.data.stream import Plan, Stream
from sacl_train.data.weak import WeakAugment, make_policy, published_strengths
from sacl_train.distributed import count_processes, count_started, process_rank
from sacl_train.methods import METHODS
from sacl_train.methods.method import Method
from sacl_train.methods.textures import TEXTURE_SOURCES
from sacl_train.nets import Encoder, build_encoder
from sacl_train.nets.blocks import zero_init_residual
from sacl_train.nets.norms import stop_counting
from sacl_train.training.checkpoint import Checkpoint
from sacl_train.training.compilation import can_compile
from sacl_train.training.precision import precision_on
from sacl_train.training.step import make_textures
from texturegen.console import note, plural
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


def resolve(config: Config, shards: Shards, device: torch.device, checkpoint: Checkpoint | None = None) -> Config:
    """Return the config with the values that it leaves open.

    The device decides `precision` and `compile`; the policy decides the strengths of the views; the shards decide mean,
    std, and the size of a memory bank or queue. A resumed run keeps the checkpoint's values: measured again, mean and
    std would change with every sample that was damaged or repaired since, and another precision would be another run.
    """
    saved = modern_settings(checkpoint["config"]) if checkpoint is not None else {}
    if config.precision == "auto":
        config = replace(config, precision=saved.get("precision", precision_on(device, "auto")))
    if config.compile == "auto":
        # SyncBatchNorm, in the networks of several processes, would cut a compiled network into hundreds of pieces.
        compiles = device.type == "cuda" and count_started() == 1 and not config.checkpointing and can_compile(device)
        config = replace(config, compile=saved.get("compile", "default" if compiles else "none"))
    crop_scale, jitter = published_strengths(config.weak)
    config = replace(config, crop_scale=config.crop_scale or crop_scale, jitter=config.jitter or jitter)
    settings = METHODS[config.method].load().resolve_settings(config.method_settings, len(shards))
    config = replace(config, method_settings=settings)
    if config.mean is not None and config.std is not None:
        return config
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
        textures that the shards do not have or that cannot be made of their images.
    """
    trained = len(shards) - len(held_out(len(shards), config.held_out, config.seed))
    if config.batch_size > trained:
        without = f", {len(shards) - trained} of them held out" if trained < len(shards) else ""
        raise UserError(
            f"batch_size is {config.batch_size}, but {shards.directory} holds {len(shards)} images{without}; "
            f"set batch_size to {trained} or less"
        )
    pieces = count_processes() * config.accumulate
    if config.batch_size // pieces < 2:
        where = f" on {count_processes()} processes" if count_processes() > 1 else ""
        raise UserError(
            f"batch_size {config.batch_size} with accumulate {config.accumulate}{where} is less than two images at a "
            f"time, and one image has nothing to be contrasted with; set batch_size to at least {2 * pieces}"
        )
    one = torch.zeros((1, 3, *shards.image_size()), dtype=torch.uint8)
    make_textures({"image": one}, Draws(config.seed, 0, torch.zeros(1, dtype=torch.int64)), config)
    plan = Plan(
        batch_size=config.batch_size,
        seed=config.seed,
        textures=config.texture_draw if config.reads_textures else "none",
        order=config.order,
        shuffle_buffer=config.shuffle_buffer,
        remainder=config.remainder,
        rank=process_rank(),
        ranks=count_processes(),
        accumulate=config.accumulate,
        held_out=config.held_out,
    )
    if config.cache in ("auto", "device"):
        if device.type == "cpu":  # its memory is the device's
            config = replace(config, cache="ram" if config.cache == "device" else "auto")
        elif fits_on_device(shards, plan, device, config.cache_gb):
            return ResidentStream(shards, plan, device, config.threads, config.bad_share)
        elif config.cache == "device":
            raise UserError(
                f"cache device: the pixels of {len(shards)} samples do not fit into "
                f"{'cache_gb' if config.cache_gb is not None else 'half of the free memory of ' + str(device)}; "
                "set cache to auto, ram or none"
            )
    pin = device.type == "cuda"
    return Stream(shards, plan, config.threads, config.cache, config.cache_gb, config.bad_share, pin)


def build_method(config: Config, image_size: tuple[int, int], initialise: bool = False) -> Method:
    """Return the method of `config` with freshly initialised networks, a function of its settings and seed alone.

    Parameters
    ----------
    config : Config
        With mean and std resolved.
    image_size : tuple of int
        Height and width in pixels.
    initialise : bool
        Load the encoder's weights from the file `config.init`, if there is one, before its target is copied from it.

    Raises
    ------
    UserError
        If the file does not fit the encoder, or a model of timm does not take the images or the cells of the grid.
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
        if config.zero_init_residual:
            zero_init_residual(encoder)
        if config.encoder.startswith("timm:"):
            _check_sizes(encoder, config, image_size)
        if initialise and config.init is not None:
            from sacl_train.nets.foreign import load_initial  # loads timm

            line = load_initial(encoder, config.init)
            if process_rank() == 0:
                note(line)
        policy = make_policy(config.weak, config.crop_scale, config.degrees, config.shift, config.jitter, config.grey)
        weak = WeakAugment(policy, config.mean, config.std, config.channels_last)
        method = METHODS[config.method].load()(encoder, weak, image_size, config.method_settings)
        stop_counting(method)
        method.add_shift_head(TEXTURE_SOURCES[config.texture_source])
        return method


def find_notes(method: Method) -> list[str]:
    """Return what a user should know about the networks before they are trained, a sentence each."""
    networks = {name: sum(p.numel() for p in child.parameters()) for name, child in method.named_children()}
    encoder = networks.pop("encoder")
    heads = sum(count for name, count in networks.items() if not name.startswith("target"))
    notes = list(method.encoder.notes)
    if heads > encoder:
        widths = [key for key in vars(method.settings) if key.endswith(("_hidden", "_out"))]
        notes.append(
            f"the heads have {heads / 1e6:.2g} million parameters and the encoder {encoder / 1e6:.2g} million; for a "
            f"small encoder set smaller {', '.join(widths)}"
        )
    return notes


def _check_sizes(encoder: Encoder, config: Config, image_size: tuple[int, int]) -> None:
    from sacl_train.nets.timm_models import TimmEncoder, check_sizes  # loads timm

    assert isinstance(encoder, TimmEncoder)
    height, width = image_size
    grid = getattr(config.method_settings, "grid", 1)
    check_sizes(encoder, [image_size, *([(height // grid, width // grid)] if grid > 1 else [])])


def describe(config: Config, stream: Stream, step: int) -> str:
    """Return one line on what a run that starts at `step` will do."""
    shards, count = stream.shards, len(stream) * config.batch_size
    held = f", {len(shards) - stream.samples} held out" if stream.samples < len(shards) else ""
    odd = abs(stream.samples - count)
    fate = "used twice per epoch" if config.remainder == "wrap" else "left out of each epoch"
    rest = f", {odd} {fate}" if odd else ""
    processes = f" on {stream.plan.ranks} processes" if stream.plan.ranks > 1 else ""
    resumed = f", resuming after step {step}" if step else ""
    return (
        f"{len(shards)} images{held}, {stream.place}; {plural(config.epochs, 'epoch')} of {len(stream)} batches of "
        f"{config.batch_size}{processes}{rest}{resumed}"
    )
