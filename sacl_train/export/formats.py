"""The formats of `export`: what is written for each, and the lines that load it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sacl_train.config import Config
from sacl_train.nets import Encoder
from sacl_train.nets.files import checksum
from sacl_train.nets.timm_models import TimmEncoder
from sacl_train.nets.weights import find_stem, timm_weights
from texturegen.errors import MissingError, UserError

RESNETS = ("se_resnet18", "se_resnet34", "se_resnet50", "se_resnet101")
STRIDES = {"cifar": 1, "cifar-stride2": 2}  # of the 3x3 stems


@dataclass(frozen=True)
class Exported:
    """What is exported.

    Attributes
    ----------
    run : Path
        Directory of the run, or a checkpoint in it.
    form : str
        One of `FORMATS`.
    path : Path
        The file or directory to write.
    encoder : Encoder
        In eval mode, on the CPU.
    config : Config
        The run's settings.
    epochs : int
        Epochs that it was trained for.
    image_size : tuple of int
        (H, W) in pixels of the images that it was trained with.
    shards : str
        Digest of the shards that it was trained on.
    shards_place : str or None
        Where they were.
    """

    run: Path
    form: str
    path: Path
    encoder: Encoder
    config: Config
    epochs: int
    image_size: tuple[int, int]
    shards: str
    shards_place: str | None

    @property
    def stem(self) -> str | None:
        """The stem, read from the network because "auto" may stand in the config; None for a model of timm."""
        return None if isinstance(self.encoder, TimmEncoder) else find_stem(self.encoder)

    def describe(self) -> dict[str, Any]:
        """Return what rebuilds the encoder and how to feed it, JSON-serialisable."""
        config = self.config
        arguments: dict[str, Any] = {"name": config.encoder, "attention": config.attention}
        if self.stem is None:
            arguments["image_size"] = min(self.image_size)
        else:
            arguments |= {"stem": self.stem, "placement": config.placement}
        if config.width is not None:
            arguments["width"] = config.width
        return {
            "arguments": arguments,
            "features": self.encoder.out_features,
            "mean": config.mean,
            "std": config.std,
            "size": min(self.image_size),
            "channels": "RGB",
        }


@dataclass(frozen=True)
class Files:
    """Content of a directory: name of a file -> its bytes."""

    files: dict[str, bytes]


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes
    ----------
    extension : str
        Of its file; "" for a directory.
    make : callable
        Return what to write: bytes, a state dict for `torch.save`, or the files of a directory. UserError if the format
        cannot represent the encoder.
    lines : callable
        Return the lines of Python that load it and compute `features` of `images`, which a line makes up.
    """

    extension: str
    make: Callable[[Exported], bytes | dict[str, Tensor] | Files]
    lines: Callable[[Exported], list[str]]


def _make_safetensors(exported: Exported) -> bytes:
    from safetensors.torch import save

    tensors, about = exported.encoder.state_dict(), json.dumps(exported.describe())
    return save(tensors, {"encoder": about, "sha256": checksum(tensors, about)})


def _make_hub(exported: Exported) -> Files:
    config = json.dumps(exported.describe(), indent=2) + "\n"
    return Files({"config.json": config.encode(), "model.safetensors": _make_safetensors(exported)})


def _load_ours(exported: Exported) -> list[str]:
    return [
        "import torch",
        "from sacl_train.export import load_exported",
        f'encoder = load_exported("{exported.path.name}")',
        _random_images(exported, "torch.rand({})"),
        f"features = encoder({_normalised(exported)})",
    ]


def _make_torchvision(exported: Exported) -> dict[str, Tensor]:
    if isinstance(exported.encoder, TimmEncoder):
        raise UserError(f"{exported.config.encoder} is a model of timm; use --format timm, safetensors or onnx")
    _require(exported, "torchvision", ("none",))
    return exported.encoder.state_dict()


def _load_torchvision(exported: Exported) -> list[str]:
    lines = [
        "import torch, torchvision",
        f"encoder = torchvision.models.{exported.config.encoder.removeprefix('se_')}()",
        "encoder.fc = torch.nn.Identity()",
    ]
    if exported.stem in STRIDES:
        conv = f"torch.nn.Conv2d(3, 64, 3, stride={STRIDES[exported.stem]}, padding=1, bias=False)"
        lines.append(f"encoder.conv1, encoder.maxpool = {conv}, torch.nn.Identity()")
    return [
        *lines,
        f'encoder.load_state_dict(torch.load("{exported.path.name}", weights_only=True))',
        _random_images(exported, "torch.rand({})"),
        f"features = encoder.eval()({_normalised(exported)})",
    ]


def _make_timm(exported: Exported) -> Files:
    from safetensors.torch import save

    encoder, config = exported.encoder, exported.config
    arguments: dict[str, Any] = {}
    if isinstance(encoder, TimmEncoder):
        name, arguments = encoder.name.partition(".")[0], encoder.arguments
        own = encoder.config
        names = {key: own[key] for key in ("first_conv", "classifier", "pool_size") if own.get(key)}
        weights = encoder.model.state_dict()
    else:
        _require(exported, "timm", ("none", "se"))
        if exported.stem != "imagenet":
            raise UserError(
                f"timm's ResNets have no 3x3 stem, which this encoder has because it was trained on images of "
                f"{min(exported.image_size)} px; use --format safetensors or onnx"
                f"{', or torchvision, whose card has the lines that replace the stem' * (config.attention == 'none')}"
            )
        depth = config.encoder.removeprefix("se_")
        name = f"se{depth}" if config.attention == "se" else depth
        names = {"first_conv": "conv1", "classifier": "fc"}
        weights = timm_weights(encoder)
    size = [3, *exported.image_size]
    about = {
        "architecture": name,
        "num_classes": 0,
        "num_features": encoder.out_features,
        "model_args": arguments,
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": size,
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": config.mean,
            "std": config.std,
            "num_classes": 0,
            **names,
        },
    }
    contiguous = {key: tensor.contiguous() for key, tensor in weights.items()}
    return Files(
        {
            "config.json": (json.dumps(about, indent=2) + "\n").encode(),
            "model.safetensors": save(contiguous, {"format": "pt"}),
        }
    )


def _load_timm(exported: Exported) -> list[str]:
    return [
        "import timm, torch",
        f'encoder = timm.create_model("local-dir:{exported.path.name}", pretrained=True)',
        _random_images(exported, "torch.rand({})"),
        f"features = encoder.eval()({_normalised(exported)})",
    ]


def _make_onnx(exported: Exported) -> bytes:
    """Return the encoder as a serialised ONNX graph with its description in the metadata."""
    encoder: nn.Module = exported.encoder
    height, width = exported.image_size
    try:
        program = torch.onnx.export(
            encoder,
            (torch.zeros(2, 3, height, width),),
            input_names=["images"],
            output_names=["features"],
            dynamic_shapes={"x": {0: torch.export.Dim("N"), **_dynamic_sides(exported)}},
            dynamo=True,
            verbose=False,
        )
    except ImportError as error:
        raise MissingError(f"--format onnx needs more packages ({error}); pip install 'sacl-texture[onnx]'") from None
    assert program is not None
    model = program.model_proto
    about = exported.describe()
    metadata = {
        "mean": ",".join(map(repr, about["mean"])),
        "std": ",".join(map(repr, about["std"])),
        "size": str(about["size"]),
        "channels": about["channels"],
        "encoder": json.dumps(about["arguments"]),
    }
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString()


def _dynamic_sides(exported: Exported) -> dict[int, Any]:
    """Return the dynamic dimensions H and W; a vision transformer's graph keeps the size of its positions."""
    if isinstance(exported.encoder, TimmEncoder) and hasattr(exported.encoder.model, "pos_embed"):
        return {}
    return {2: torch.export.Dim("H"), 3: torch.export.Dim("W")}


def _load_onnx(exported: Exported) -> list[str]:
    mean, std = exported.config.mean, exported.config.std
    return [
        "import numpy as np, onnxruntime",
        f'session = onnxruntime.InferenceSession("{exported.path.name}")',
        f"mean, std = (np.array(v, np.float32)[:, None, None] for v in ({_list(mean)}, {_list(std)}))",
        _random_images(exported, "np.random.rand({}).astype(np.float32)"),
        'features = session.run(["features"], {"images": (images - mean) / std})[0]',
    ]


FORMATS: dict[str, Format] = {
    "safetensors": Format(".safetensors", _make_safetensors, _load_ours),
    "hub": Format("", _make_hub, _load_ours),
    "torchvision": Format(".pth", _make_torchvision, _load_torchvision),
    "timm": Format("", _make_timm, _load_timm),
    "onnx": Format(".onnx", _make_onnx, _load_onnx),
}


def _require(exported: Exported, library: str, attention: tuple[str, ...]) -> None:
    """Raise UserError unless the library has a ResNet like the encoder."""
    config = exported.config
    if config.encoder not in RESNETS or config.placement != "standard" or config.attention not in attention:
        arguments = exported.describe()["arguments"]
        raise UserError(
            f"{library} has no model like this encoder ({', '.join(f'{k} {v}' for k, v in arguments.items())}); "
            "use --format safetensors, hub or onnx"
        )


def _random_images(exported: Exported, call: str) -> str:
    height, width = exported.image_size
    return f"images = {call.format(f'2, 3, {height}, {width}')}  # yours: float (N, 3, H, W), RGB, 0..1"


def _normalised(exported: Exported) -> str:
    return " / ".join(
        (
            f"(images - torch.tensor({_list(exported.config.mean)})[:, None, None])",
            f"torch.tensor({_list(exported.config.std)})[:, None, None]",
        )
    )


def _list(values: tuple[float, ...] | None) -> str:
    assert values is not None
    return f"[{', '.join(f'{value:.6g}' for value in values)}]"
