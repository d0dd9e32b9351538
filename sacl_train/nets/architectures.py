"""Architectures that a file of weights may be of: our encoders, torchvision's and timm's models, by name."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from sacl_train.nets import ENCODERS, build_encoder
from sacl_train.nets.encoder import Encoder
from sacl_train.nets.timm_models import PREFIX, TimmEncoder, check_name
from texturegen.errors import UserError, nearest

TORCHVISION = "torchvision:"
RESNETS = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
)  # ours without attention: torchvision's and timm's names


@dataclass(frozen=True)
class Architecture:
    """A network that weights may fit.

    Attributes
    ----------
    label : str
        For messages: "timm:resnet50", "se_resnet18 with a 3x3 stem".
    make : callable
        Return the network with random weights.
    classifier : tuple of str
        Names of the modules that the network lacks.
    mean, std : tuple of float or None
        Normalisation of its published weights.
    size : int or None
        Side of the images, in pixels, that they were trained with.
    """

    label: str
    make: Callable[[], Encoder]
    classifier: tuple[str, ...] = ("fc",)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = None


class VectorEncoder(Encoder):
    """Any network whose output is made a vector: maps (N, C, H, W) are averaged over their positions.

    Parameters
    ----------
    model : nn.Module
        The network.
    out_features : int
        Dimensions of its vector.
    size : int or None
        Images of another size are first resized to this side, in pixels (bicubic, antialiased).
    """

    def __init__(self, model: nn.Module, out_features: int, size: int | None = None) -> None:
        super().__init__()
        self.model, self.out_features, self.size = model, out_features, size

    def forward(self, x: Tensor) -> Tensor:
        if self.size is not None and x.shape[-2:] != (self.size, self.size):
            x = nn.functional.interpolate(x, (self.size, self.size), mode="bicubic", antialias=True)
        return to_vector(self.model(x))


def to_vector(output: Any) -> Tensor:
    """Return the features of a network's output: (N, C) as they are, maps (N, C, H, W) averaged."""
    if isinstance(output, Tensor) and output.ndim == 4:
        output = output.mean(dim=(2, 3))
    if not isinstance(output, Tensor) or output.ndim != 2:
        kind = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(f"the encoder returns {kind} instead of features (N, C); give its backbone alone")
    return output


def find_architectures(name: str, tensors: dict[str, Tensor]) -> Iterator[Architecture]:
    """Yield the architectures called `name`, the likeliest first.

    Parameters
    ----------
    name : str
        A name of `nets.ENCODERS`, of torchvision or of timm; with "timm:" or "torchvision:" of that library only.
    tensors : dict of str to Tensor
        The file's tensors, whose shapes decide the stem of a ResNet and the image size of a vision transformer.

    Raises
    ------
    UserError
        If no library has the name.
    """
    import timm
    import torchvision

    in_torchvision = torchvision.models.list_models(module=torchvision.models)  # classifiers only
    if name in ENCODERS or name in RESNETS:
        yield _ours(name, tensors)
        return
    library, _, bare = name.rpartition(":")
    if library == "timm":
        check_name(bare)
    elif library == "torchvision":
        if bare not in in_torchvision:
            raise UserError(
                f"torchvision {torchvision.__version__} has no model '{bare}'{nearest(bare, in_torchvision)}"
            )
    elif library or not (timm.is_model(bare.partition(".")[0]) or bare in in_torchvision):
        known = (*RESNETS, *ENCODERS, *timm.list_models(), *in_torchvision)
        raise UserError(
            f"unknown architecture '{name}'{nearest(name, known)}; --arch takes {', '.join((*RESNETS, *ENCODERS))}, "
            "a model of timm or torchvision, or torchscript"
        )
    if library != "torchvision" and timm.is_model(bare.partition(".")[0]):
        yield _of_timm(bare, tensors)
    if library != "timm" and bare in in_torchvision:
        yield _of_torchvision(bare)


def _ours(name: str, tensors: dict[str, Tensor]) -> Architecture:
    """Return one of our encoders, or a plain ResNet, with the stem, width and attention that the tensors show."""
    first = next((t for key, t in tensors.items() if t.ndim == 4 and t.shape[1] == 3), None)
    small = first is not None and first.shape[-1] == 3
    arguments: dict[str, Any] = {"name": name, "stem": "cifar" if small else "imagenet"}
    if name in RESNETS:
        arguments |= {"name": f"se_{name}", "attention": "none"}
    elif not any(".se." in key for key in tensors):
        arguments["attention"] = "none"
    if name in ENCODERS and ENCODERS[name].width is not None and first is not None:
        arguments["width"] = first.shape[0]
    # A 3x3 convolution does not show its stride; 1 is what papers use for small images.
    label = f"{name} with a 3x3 stem of stride 1 and no max pooling" if small else name
    return Architecture(label, lambda: build_encoder(**arguments))


def _of_timm(name: str, tensors: dict[str, Tensor]) -> Architecture:
    encoder = TimmEncoder(name)
    config = encoder.config
    side = _side_of_positions(encoder.model, tensors)
    return Architecture(
        f"{PREFIX}{name}",
        (lambda: encoder) if side is None else (lambda: TimmEncoder(name, side)),
        encoder.classifier,
        tuple(config["mean"]) if config.get("mean") else None,
        tuple(config["std"]) if config.get("std") else None,
        side or encoder.side,
    )


def _side_of_positions(model: Any, tensors: dict[str, Tensor]) -> int | None:
    """Return the image size of the position embeddings in a file, if it is not the model's own."""
    own = getattr(model, "pos_embed", None)
    found = next((t for key, t in tensors.items() if key.endswith("pos_embed") and t.ndim == 3), None)
    if own is None or found is None or found.shape == own.shape or not hasattr(model, "patch_embed"):
        return None
    patches = model.patch_embed
    extra = own.shape[1] - patches.num_patches
    side = isqrt(max(found.shape[1] - extra, 0))
    return side * patches.patch_size[0] if side else None


def _of_torchvision(name: str) -> Architecture:
    import torchvision

    def make() -> Encoder:
        model = torchvision.models.get_model(name, weights=None)
        owner, attribute = _classifier(model)
        features = getattr(owner, attribute).in_features
        setattr(owner, attribute, nn.Identity())
        return VectorEncoder(model, features)

    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    owner, attribute = _classifier(model)
    prefix = next(key for key, module in model.named_modules() if module is owner)
    classifier = f"{prefix}.{attribute}" if prefix else attribute
    weights = torchvision.models.get_model_weights(name).DEFAULT  # type: ignore[attr-defined]
    transform = weights.transforms()
    return Architecture(
        f"{TORCHVISION}{name}",
        make,
        (classifier, "AuxLogits", "aux1", "aux2"),
        tuple(transform.mean),
        tuple(transform.std),
        transform.crop_size[0],
    )


def _classifier(model: nn.Module) -> tuple[nn.Module, str]:
    """Return the parent and the name of a classification model's last linear layer."""
    for name, module in reversed([*model.named_modules()]):
        if isinstance(module, nn.Linear):
            parent, _, attribute = name.rpartition(".")
            return model.get_submodule(parent), attribute
    raise UserError(f"{type(model).__name__} of torchvision has no linear classifier; choose a model that has one")
