"""Settings of a training run: dataclasses, filled from defaults, a TOML file and flags, in that order.

General settings are fields of `Config`; a method's own are fields of its `Settings` dataclass, held in
`Config.method_settings`. To the user they are one flat list of keys.
"""

import json
import sys
import tomllib
import types
import typing
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import sacl_train.extra  # noqa: F401 (says what to install)
from sacl_train.methods import METHODS
from sacl_train.methods.recipes import resolve_recipe
from sacl_train.methods.sacl import SACLSettings
from sacl_train.methods.textures import TEXTURE_SOURCES
from sacl_train.methods.widths import head_widths
from texturegen.errors import UserError, nearest

TYPE_NAMES = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false", type(None): "none"}

CHOICES: dict[str, tuple[str, ...]] = {
    "texture_source": tuple(TEXTURE_SOURCES),
    "texture_draw": ("one", "all"),
    "texture_part": ("whole", "inside"),
    "order": ("global", "shards"),
    "remainder": ("drop", "wrap"),
    "optimizer": ("sgd", "lars", "adamw"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
    "compile": ("auto", "none", "default", "max-autotune-no-cudagraphs"),
    "cache": ("auto", "device", "ram", "none"),
}

MINIMUMS = {
    "epochs": 0,
    "batch_size": 2,
    "accumulate": 1,
    "knn_every": 0,
    "held_out": 0,
    "threads": 1,
    "seed": 0,
    "cache_gb": 0,
    "save_every": 1,
    "save_minutes": 0,
    "keep": 1,
    "log_every": 0,
    "bad_share": 0,
    "shuffle_buffer": 1,
    "sgd_momentum": 0,
    "weight_decay": 0,
    "norm_lr": 0,
    "degrees": 0,
    "shift": 0,
}


class MethodSettings(Protocol):
    """What every method's `Settings` has, a frozen dataclass whose fields all have defaults."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def texture_role(self) -> str:
        """What the textures are to the method: "none", "negative", or another role that it names."""


@dataclass(frozen=True)
class Config:
    """Settings of a run.

    The defaults are those of the paper (SACL §3.2) where it gives a value. `load_config` fills a `Config` from a file
    and from flags.
    """

    method: str = "sacl"  # a name in `methods.METHODS`
    method_settings: MethodSettings = field(default_factory=SACLSettings)  # an instance of the method's Settings
    recipe: str | None = None  # published settings of the method that replaced the defaults: cifar, imagenet or paper

    # Encoder
    encoder: str = "se_resnet50"  # a name in `nets.ENCODERS`, or timm:NAME
    init: str | None = None  # file of initial weights of the encoder; see `nets.foreign`
    stem: str = "auto"  # imagenet, cifar or cifar-stride2; auto: cifar for images up to 64 px, else imagenet
    attention: str = "se"  # se, cbam, gc, nonlocal, triplet, abn or none
    placement: str = "standard"  # position of the attention in a block: standard, pre, post or identity
    width: int | None = None  # channels of the first stage; CIFAR family only
    zero_init_residual: bool = False  # each residual block starts as its shortcut: the scale of its last BN is 0
    checkpointing: bool = False  # recompute activations in the backward pass: less memory, more time

    # Views
    weak: str = "colour-geometric"  # policy: geometric, colour-geometric, mocov2, simclr, byol or none
    crop_scale: tuple[float, float] | None = None  # least and largest share of the image in a crop; None: the policy's
    degrees: float = 15.0  # maximum rotation to either side
    shift: float = 0.1  # maximum translation in any direction, as a share of the side
    jitter: tuple[float, float, float, float] | None = None  # brightness, contrast, saturation, hue; None: the policy's
    grey: float = 0.2  # probability of a greyscale view, 0 to 1
    mean: tuple[float, ...] | None = None  # per channel, 0 to 1; None: measured on the shards
    std: tuple[float, ...] | None = None  # per channel, 0 to 1; None: measured on the shards

    # Textures, for methods whose texture_role is not none
    texture_source: str = "shards"  # shards, patch-shuffle, both (of these), rotations or shards-and-rotations
    texture_draw: str = "one"  # one: a random texture per image, chosen anew in each epoch; all: every texture
    texture_part: str = "whole"  # whole; inside: the texture is pasted into the middle of its image
    shuffle_cells: tuple[float, float] = (0.07, 0.32)  # smallest and largest cell of patch-shuffle, share of the side

    # Order of the samples
    order: str = "global"  # global: shuffle all samples; shards: random shards through a shuffle buffer
    shuffle_buffer: int = 4096  # samples in the shuffle buffer of order shards
    remainder: str = "drop"  # incomplete last batch: drop it, or wrap around to the beginning of the epoch

    # Optimisation
    optimizer: str = "sgd"  # sgd, adamw, or lars for batches of thousands
    epochs: int = 200  # 0 writes an untrained encoder
    batch_size: int = 128  # images per step, over all processes
    accumulate: int = 1  # process a batch in this many pieces; an image is contrasted within its piece only
    lr: float = 0.1  # base learning rate; it falls to 0 along a cosine
    warmup_epochs: float = 0.0  # epochs of linear warm-up, counted within `epochs`
    clip: float | None = None  # maximum norm of the gradient; None: no clipping
    sgd_momentum: float = 0.9  # of sgd and lars
    betas: tuple[float, float] = (0.9, 0.999)  # of adamw
    weight_decay: float = 1e-4  # for biases and norms see decay_norms
    decay_norms: bool | None = None  # decay biases and norms, and let lars scale them; None: with sgd only
    norm_lr: float = 1.0  # learning rate of biases and norms, as a multiple of lr
    lars_trust: float = 1e-3  # trust coefficient of lars
    lars_clip: bool = False  # lars moves no weight further than sgd would

    # Run
    seed: int = 0  # of the weights, the order and the views
    device: str = "auto"  # cpu, cuda or cuda:N; auto: cuda if it is available
    knn_every: int = 5  # epochs between kNN scores; 0: never
    held_out: float = 0.0  # share of the images kept out of training, the queries of the kNN score; 0: training images
    online: bool = False  # train a linear probe along (training/online.py): for watching a run, not for tables
    precision: str = "auto"  # of the forward pass, by autocast: fp32, bf16 or fp16; auto: bf16 on CUDA, else fp32
    tf32: bool = True  # allow TF32 in fp32 matrix products and convolutions on CUDA
    channels_last: bool = True  # memory layout of the networks
    compile: str = "auto"  # torch.compile's mode for views, networks, loss, or none; auto: default on CUDA, else none
    cuda_graph: bool | None = None  # replay the step as a CUDA graph; None: on CUDA, where the settings allow it
    deterministic: bool = False  # deterministic CUDA kernels: the same bits in every run, slower
    threads: int | None = None  # threads that decode images; None: all CPUs, divided among the machine's processes
    cache: str = "auto"  # decoded images: kept on the device, in ram, or none; auto: the first of these that fits
    cache_gb: float | None = None  # cache limit per process, in GB; None: half the free memory (in ram, its share)
    bad_share: float = 0.01  # share of damaged samples, over all processes, above which the run stops
    log_every: int = 50  # steps between two lines of steps.jsonl; 0: no lines
    tensorboard: bool = False  # write TensorBoard events too
    wandb: bool = False  # log to Weights & Biases too; WANDB_PROJECT, WANDB_MODE and others apply
    save_minutes: float = 10.0  # between two checkpoints; one is also written at the end and at a new best kNN score
    save_every: int | None = None  # steps between two checkpoints, whatever the time
    keep: int = 2  # newest checkpoints to keep; best.pt, of the best kNN score, is kept besides

    def __post_init__(self) -> None:
        for key, minimum in MINIMUMS.items():
            if (value := getattr(self, key)) is not None and value < minimum:
                raise UserError(f"{key} is {value}; it must be at least {minimum}")
        for key, known in CHOICES.items():
            if (value := getattr(self, key)) not in known:
                raise UserError(f"unknown {key} '{value}'{nearest(value, known)}; known: {', '.join(known)}")
        if len(self.shuffle_cells) != 2 or not 0 < self.shuffle_cells[0] <= self.shuffle_cells[1] <= 0.5:
            raise UserError(
                f"shuffle_cells is {list(self.shuffle_cells)}; it must be two shares of the side, "
                "0 < smallest <= largest <= 0.5"
            )
        for key in ("held_out", "bad_share", "sgd_momentum"):
            if (value := getattr(self, key)) >= 1:
                raise UserError(f"{key} is {value}; it must be at least 0 and below 1")
        if self.seed >= 2**63:
            raise UserError(f"seed is {self.seed}; it must be below 2**63")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise UserError(f"warmup_epochs is {self.warmup_epochs}; it must be between 0 and epochs, {self.epochs}")
        if self.compile not in ("auto", "none") and self.checkpointing:
            raise UserError(
                "compile and checkpointing do not go together: set compile for speed, or checkpointing to save memory"
            )
        if self.clip is not None and self.clip <= 0:
            raise UserError(f"clip is {self.clip}; it must be above 0, or none")
        for key in ("lr", "lars_trust"):
            if (value := getattr(self, key)) <= 0:
                raise UserError(f"{key} is {value}; it must be above 0")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas is {list(self.betas)}; it must be two numbers, at least 0 and below 1")
        if (crop := self.crop_scale) is not None and (len(crop) != 2 or not 0 < crop[0] <= crop[1] <= 1):
            raise UserError(f"crop_scale is {list(crop)}; it must be two areas, 0 < smallest <= largest <= 1")
        if (jitter := self.jitter) is not None and (
            len(jitter) != 4 or not all(0 <= v <= 1 for v in jitter) or jitter[3] > 0.5
        ):
            raise UserError(
                f"jitter is {list(jitter)}; it must be three strengths from 0 to 1 and a hue shift from 0 to 0.5"
            )
        if not 0 <= self.grey <= 1:
            raise UserError(f"grey is {self.grey}; it must be a probability, from 0 to 1")
        for key in ("mean", "std"):
            if (value := getattr(self, key)) is not None and len(value) != 3:
                raise UserError(f"{key} has {len(value)} values; it must have 3, one per channel")
            if value is not None and not all(0 <= channel <= 1 for channel in value):
                raise UserError(f"{key} is {list(value)}; it must be 0 to 1 per channel, of pixels divided by 255")
        if self.std is not None and min(self.std) <= 0:
            raise UserError(f"std is {list(self.std)}; it must be above 0")

    @property
    def reads_textures(self) -> bool:
        """True if a step needs the textures of the shards, not only such as are made from the images."""
        return self.method_settings.texture_role != "none" and TEXTURE_SOURCES[self.texture_source].of_shards

    def flat(self) -> dict[str, Any]:
        """Return every setting by its key, the method's own included, with tuples as lists, as in JSON and TOML."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "method_settings"}
        values = {**own, **vars(self.method_settings)}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def load_config(path: str | Path | None, settings: dict[str, Any]) -> Config:
    """Return the defaults of `Config` and of the method, overridden by a recipe, by a TOML file, and by `settings`.

    The recipe is the one that the key `recipe` names, in the file or in `settings`.

    Parameters
    ----------
    path : str, Path or None
        TOML file of settings.
    settings : dict
        Key -> value; the string "none" is accepted for None.

    Raises
    ------
    UserError
        If a key is unknown (the message suggests the nearest one), or a value has the wrong type or is out of range.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> config = load_config(None, {"encoder": "se_resnet18", "tau": 0.1})
    >>> config.encoder, config.epochs, config.method_settings.tau
    ('se_resnet18', 200, 0.1)
    """
    given: dict[str, tuple[Any, str]] = {}  # key -> value and the file it comes from
    if path is not None:
        try:
            given.update(
                {key: (value, f"{path}: ") for key, value in tomllib.loads(Path(path).read_text("utf-8-sig")).items()}
            )
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UserError(f"{path}: not a TOML file ({error})") from None
    given.update({key: (value, "") for key, value in settings.items()})
    given = {key: (modern_settings({key: value})[key], where) for key, (value, where) in given.items()}

    method, where = given.pop("method", ("sacl", ""))
    if not isinstance(method, str) or method not in METHODS:
        raise UserError(f"{where}there is no method {method!r}{nearest(str(method), METHODS)}")
    cls = METHODS[method].load()
    of_run, of_method = typing.get_type_hints(Config), typing.get_type_hints(cls.Settings)
    del of_run["method_settings"]
    hints = of_run | of_method
    values: dict[str, Any] = {}
    for key, (value, where) in given.items():
        if key not in hints:
            owners = [name for name in METHODS if key in typing.get_type_hints(METHODS[name].load().Settings)]
            if owners:
                raise UserError(f"{where}method {method} has no setting {key!r}; it belongs to {', '.join(owners)}")
            raise UserError(f"{where}there is no setting {key!r}{nearest(key, hints)}")
        values[key] = _typed(value, hints[key], f"{where}{key}")
    if values.get("recipe") is not None:
        batch_size, epochs = (values.get(key, getattr(Config, key)) for key in ("batch_size", "epochs"))
        recipe = resolve_recipe(values["recipe"], cls.recipes, method, batch_size, epochs)
        if values.get("encoder", "").startswith("timm:"):
            recipe.pop("zero_init_residual", None)  # timm's ResNets start that way by themselves
        values = {**recipe, **values}
    own = {key: values.pop(key) for key in of_method if key in values}
    widths: dict[str, int] = {}
    if values.get("recipe") is None:
        widths = head_widths(vars(cls.Settings()), values.get("encoder", Config.encoder), values.get("width"))
    method_settings = cls.Settings(**{**widths, **own})
    defaults = dict(cls.defaults)
    if values.get("encoder", "").startswith("timm:"):
        defaults["attention"] = "none"  # the name of a timm model says what attention it has
    return replace(Config(), method=method, method_settings=method_settings, **{**defaults, **values})


def modern_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings of version 0.1 in today's values: `compile` was true or false before it named a mode."""
    if isinstance(settings.get("compile"), bool):
        return {**settings, "compile": "default" if settings["compile"] else "none"}
    return settings


def dump_config(config: Config) -> str:
    """Return the config as TOML that `load_config` reads back.

    TOML has no null: settings that are None are left out, or are "none" where the recipe has another value.
    """
    recipe = {} if config.recipe is None else METHODS[config.method].load().recipes[config.recipe]
    values = {key: "none" if value is None and key in recipe else value for key, value in config.flat().items()}
    # JSON and TOML write numbers, strings, booleans and lists in the same way.
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items() if value is not None)


def _typed(value: Any, hint: Any, where: str) -> Any:
    """Return `value` as the type that a field is annotated with; UserError, naming `where`, if it is another type."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value in ("none", "None") and type(None) in kinds:
        return None
    for kind in kinds:
        if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
            return tuple(_typed(item, float, where) for item in value)
        if kind is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
            return float(value)
        if type(value) is kind and kind is not float:
            return value
    names = " or ".join(TYPE_NAMES.get(kind, "a list of numbers") for kind in kinds)
    raise UserError(f"{where} is {value!r}; it must be {names}")
