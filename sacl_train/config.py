"""One training run's settings: dataclasses, filled from their defaults, a TOML file and flags, in that order.

General settings are `Config`'s own; those of a method are its `Settings` dataclass, held in `Config.method_settings`.
To the user they are one flat list of keys.
"""

import json
import math
import tomllib
import types
import typing
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from sacl_train.methods import METHODS
from sacl_train.methods.sacl import SACLSettings
from texturegen.errors import UserError, nearest

KINDS = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false", type(None): "none"}

CHOICES: dict[str, tuple[str, ...]] = {
    "texture_source": ("shards", "patch-shuffle", "both"),
    "texture_draw": ("one", "all"),
    "texture_part": ("whole", "inside"),
    "order": ("global", "shards"),
    "remainder": ("drop", "wrap"),
    "optimizer": ("sgd", "lars"),
    "precision": ("fp32", "bf16", "fp16"),
    "cache": ("auto", "ram", "none"),
}


@dataclass(frozen=True)
class Config:
    """Settings of a run. Defaults are the paper's (SACL §3.2) where it gives one."""

    method: str = "sacl"
    method_settings: Any = field(default_factory=SACLSettings)  # an instance of the method's Settings
    # the encoder
    encoder: str = "se_resnet50"
    stem: str = "auto"  # imagenet, cifar, cifar-stride2; auto: cifar up to 64 px
    attention: str = "se"  # se, cbam, gc, nonlocal, triplet, abn, none
    placement: str = "standard"  # of the attention in a block: standard, pre, post, identity
    width: int | None = None  # of the first stage, CIFAR family only
    checkpointing: bool = False  # computes activations again in the backward pass instead of keeping them
    # the views
    weak: str = "geometric"  # geometric, mocov2, colour-geometric, none
    crop_scale: tuple[float, float] = (0.2, 1.0)  # smallest and largest area of a crop, of the image's
    degrees: float = 15.0  # rotation to either side
    shift: float = 0.1  # translation to any side, of the view's side
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)  # brightness, contrast, saturation, hue
    grey: float = 0.2  # probability
    mean: tuple[float, ...] | None = None  # per channel, 0..1; measured on the shards when not given
    std: tuple[float, ...] | None = None
    # the textures, where the method's texture_role has any
    texture_source: str = "shards"  # shards, patch-shuffle (made on the device, needs none), both
    texture_draw: str = "one"  # of the K textures of an image: one, drawn anew each epoch, or all
    texture_part: str = "whole"  # whole, or inside: pasted into the middle of its image
    shuffle_cells: tuple[float, float] = (0.07, 0.32)  # smallest and largest cell of patch-shuffle, of the image's side
    # the order
    order: str = "global"  # global: all samples shuffled; shards: shard after shard, through a buffer
    shuffle_buffer: int = 4096  # samples, of order shards
    remainder: str = "drop"  # of an epoch's samples, less than a batch: drop, or wrap to the epoch's beginning
    # the optimisation
    optimizer: str = "sgd"  # sgd, lars
    epochs: int = 200
    batch_size: int = 128  # of all processes together
    accumulate: int = 1  # pieces that a batch is done in, one after the other; each is contrasted with itself only
    lr: float = 0.1
    warmup_epochs: float = 0.0  # of rising lr, within `epochs`
    clip: float | None = None  # largest norm of all gradients together
    sgd_momentum: float = 0.9
    weight_decay: float = 1e-4
    # the run
    seed: int = 0
    device: str = "auto"  # cpu, cuda, cuda:1 ...; auto: cuda where there is one
    knn_every: int = 5  # epochs; 0: never
    online: bool = False  # a linear probe that learns along (evaluate/online.py): to watch, no figure for a table
    precision: str = "fp32"  # fp32, bf16, fp16: of the forward pass (autocast)
    tf32: bool = True  # for fp32 on CUDA
    channels_last: bool = True
    compile: bool = False  # the networks, by torch.compile
    deterministic: bool = False  # the same bits on every run on CUDA too; slower
    threads: int | None = None  # that decode images; none: the CPUs there are, shared by the processes of a machine
    cache: str = "auto"  # decoded images in memory, all in each process: ram, none, or auto: if they fit into cache_gb
    cache_gb: float | None = None  # of a process; none: its part of half the memory that is available
    bad_share: float = 0.01  # of the samples that may be damaged, for all processes together, before the run stops
    log_every: int = 50  # steps from one line of steps.jsonl to the next; 0: none
    tensorboard: bool = False
    save_every: int = 1000  # steps from one checkpoint to the next; there is one after every epoch too
    keep: int = 2  # newest checkpoints; best.pt beside them is of the best kNN score

    def __post_init__(self) -> None:
        least = {"epochs": 0, "batch_size": 2, "knn_every": 0, "threads": 1, "seed": 0, "cache_gb": 0}
        least |= {"save_every": 1, "keep": 1, "accumulate": 1, "shuffle_buffer": 1, "log_every": 0, "bad_share": 0}
        least |= {"sgd_momentum": 0, "weight_decay": 0, "degrees": 0, "shift": 0}
        for key, bound in least.items():
            if (value := getattr(self, key)) is not None and value < bound:
                raise UserError(f"{key} is {getattr(self, key)}; it must be at least {bound}")
        for key, known in CHOICES.items():
            if (value := getattr(self, key)) not in known:
                raise UserError(f"unknown {key} '{value}'{nearest(value, known)}; known: {', '.join(known)}")
        if len(self.shuffle_cells) != 2 or not 0 < self.shuffle_cells[0] <= self.shuffle_cells[1] <= 0.5:
            raise UserError(
                f"shuffle_cells is {list(self.shuffle_cells)}; it must be two shares, 0 < smallest <= largest <= 0.5"
            )
        if self.seed >= 2**63:
            raise UserError(f"seed is {self.seed}; it must be below 2**63")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise UserError(f"warmup_epochs is {self.warmup_epochs}; it must be between 0 and epochs, {self.epochs}")
        if self.compile and self.checkpointing:
            raise UserError("compile and checkpointing do not go together: choose one, for speed or for memory")
        if self.clip is not None and self.clip <= 0:
            raise UserError(f"clip is {self.clip}; it must be above 0, or none")
        if self.lr <= 0:
            raise UserError(f"lr is {self.lr}; it must be above 0")
        if len(self.crop_scale) != 2 or not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise UserError(
                f"crop_scale is {list(self.crop_scale)}; it must be two areas, 0 < smallest <= largest <= 1"
            )
        if len(self.jitter) != 4 or not all(0 <= v <= 1 for v in self.jitter) or self.jitter[3] > 0.5:
            raise UserError(f"jitter is {list(self.jitter)}; it must be three strengths in 0..1 and a hue in 0..0.5")
        if not 0 <= self.grey <= 1:
            raise UserError(f"grey is {self.grey}; it is a probability, 0..1")
        for key in ("mean", "std"):
            if (value := getattr(self, key)) is not None and len(value) != 3:
                raise UserError(f"{key} has {len(value)} values; it must have 3, one per channel")
        if self.std is not None and min(self.std) <= 0:
            raise UserError(f"std is {list(self.std)}; it must be above 0")

    def flat(self) -> dict[str, Any]:
        """Every setting by its key, the method's own among them, as JSON and TOML hold them (tuples as lists)."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "method_settings"}
        values = {**own, **vars(self.method_settings)}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def load_config(path: str | Path | None, settings: dict[str, Any]) -> Config:
    """Defaults (`Config`'s, the method's), overlaid by the TOML file at `path`, overlaid by `settings`.

    Raises UserError for an unknown key (with the nearest known one), a value of the wrong type or out of range.
    """
    given: dict[str, tuple[Any, str]] = {}  # key -> value, where it was given
    if path is not None:
        try:
            given.update({key: (value, f"{path}: ") for key, value in tomllib.loads(Path(path).read_text()).items()})
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not a TOML file ({error})") from None
    given.update({key: (value, "") for key, value in settings.items()})

    method, where = given.get("method", ("sacl", ""))
    if not isinstance(method, str) or method not in METHODS:
        raise UserError(f"{where}there is no method {method!r}{nearest(str(method), METHODS)}")
    own, of_method = typing.get_type_hints(Config), typing.get_type_hints(METHODS[method].load().Settings)
    del own["method_settings"]
    hints = own | of_method
    values: dict[str, Any] = {}
    given.pop("method", None)
    for key, (value, where) in given.items():
        if key not in hints:
            owners = [name for name in METHODS if key in typing.get_type_hints(METHODS[name].load().Settings)]
            if owners:
                raise UserError(f"{where}method {method} has no setting {key!r}; it belongs to {', '.join(owners)}")
            raise UserError(f"{where}there is no setting {key!r}{nearest(key, hints)}")
        values[key] = _typed(value, hints[key], f"{where}{key}")
    method_settings = METHODS[method].load().Settings(**{key: values.pop(key) for key in of_method if key in values})
    return replace(
        Config(), method=method, method_settings=method_settings, **{**METHODS[method].load().defaults, **values}
    )


def dump_config(config: Config) -> str:
    """The config as TOML that `load_config` reads back; settings that are None are left out."""
    # Numbers, strings, booleans and lists are written alike in JSON and TOML.
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in config.flat().items() if value is not None)


def _typed(value: Any, hint: Any, where: str) -> Any:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value in ("none", "None") and type(None) in kinds:
        return None
    for kind in kinds:
        if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
            return tuple(_typed(item, float, where) for item in value)
        if kind is float and type(value) in (int, float) and math.isfinite(value):
            return float(value)
        if type(value) is kind and kind is not float:
            return value
    names = " or ".join(KINDS.get(kind, "a list of numbers") for kind in kinds)
    raise UserError(f"{where} is {value!r}; it must be {names}")
