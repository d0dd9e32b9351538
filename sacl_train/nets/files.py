"""Tensors from a file that any program wrote; nothing in the file is executed."""

import argparse
import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from texturegen.errors import DamagedError, MissingError, UserError
from texturegen.storage.names import printable

MAX_DEPTH = 8  # of dictionaries within dictionaries
WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin")  # of a directory with config.json, as timm and the hub have

# Plain data that programs store beside their weights: arguments of the command line, and NumPy's numbers, whose
# constructor had another name before NumPy 2.
_SCALAR = np._core.multiarray.scalar  # type: ignore[attr-defined]
_SAFE: list[Any] = [argparse.Namespace, np.dtype, _SCALAR, (_SCALAR, "numpy.core.multiarray.scalar")]
_SAFE += [type(np.dtype(code)) for code in "fdilq?"]


@dataclass(frozen=True)
class WeightFile:
    """Content of a file of weights.

    Attributes
    ----------
    path : Path
        The file.
    tensors : dict of str to Tensor
        All tensors, on the CPU. Names of nested dictionaries are joined by dots: "state_dict.module.conv1.weight".
    about : dict
        What the file says about its encoder; empty if nothing. "mean" and "std", three numbers each, "size" in pixels,
        and "arguments" of `build_encoder` or "architecture", a name of timm.
    """

    path: Path
    tensors: dict[str, Tensor]
    about: dict[str, Any] = field(default_factory=dict)


def kind_of(path: Path) -> str:
    """Return what a file is by its content: "safetensors", "torchscript", "torch" or "onnx"; "directory" for one.

    Raises
    ------
    MissingError
        If there is no such file.
    UserError
        If it is none of them, or a program of `torch.export`.
    """
    if path.is_dir():
        return "directory"
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except FileNotFoundError:
        raise MissingError(f"{path}: no such file; give a file of weights or timm:NAME") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if path.suffix == ".onnx":
        return "onnx"
    if head[8:9] == b"{":
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(path) as archive:
                names = {name.partition("/")[2] for name in archive.namelist()}
        except (zipfile.BadZipFile, OSError) as error:
            raise DamagedError(f"{path}: cannot be read as a torch file ({error}); copy it again") from None
        if "constants.pkl" in names:
            return "torchscript"
        if "data.pkl" in names:
            return "torch"
        if any(name.startswith("models/") or name == "archive_format" for name in names):
            raise UserError(f"{path}: a program of torch.export; save the state dict of its encoder instead")
    # A pickle of torch before 1.6, or its tar of that time.
    elif head.startswith(b"\x80") or path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        return "torch"
    raise UserError(f"{path}: neither safetensors, nor a torch file of weights, nor ONNX; give a file of weights")


def read_weights(path: Path) -> WeightFile:
    """Read all tensors of a file, or of a directory with config.json and model.safetensors.

    Raises
    ------
    UserError
        If the file is missing, damaged, no file of weights, or holds objects that only their own program can load.
    """
    kind = kind_of(path)
    if kind == "directory":
        return _read_directory(path)
    if kind == "safetensors":
        return _read_safetensors(path)
    if kind != "torch":
        raise UserError(f"{path}: a program ({kind}), which has no state dict to start from; give a file of weights")
    try:
        # torch.load does not compare the CRC-32 of a zip's entries: a flipped bit would become a weight.
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if (corrupt := archive.testzip()) is not None:
                    raise DamagedError(f"{path}: damaged (the checksum of {printable(corrupt)} differs); copy it again")
        with torch.serialization.safe_globals(_SAFE):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except DamagedError:
        raise
    except Exception as error:  # torch.load raises many kinds of errors for bytes that are not its own
        reason = " ".join(str(error).split())
        if "Unsupported global" in reason or "Unsupported class" in reason or "WeightsUnpickler" in reason:
            name = reason.partition("GLOBAL ")[2].partition(" ")[0] or "an object"
            raise UserError(
                f"{path}: holds {printable(name)} beside tensors, which is not loaded because it could run code; save "
                "its state dict alone with the program that wrote it: torch.save(checkpoint['state_dict'], FILE)"
            ) from None
        raise DamagedError(f"{path}: cannot be read as a torch file ({type(error).__name__}); copy it again") from None
    tensors: dict[str, Tensor] = {}
    _flatten(content, "", tensors)
    if not tensors:
        raise UserError(f"{path}: holds no tensors; give a file with the weights of an encoder")
    return WeightFile(path, tensors, _describe_checkpoint(content))


def _read_directory(path: Path) -> WeightFile:
    config = path / "config.json"
    if not config.is_file():
        hint = "give a file in it"
        if newest := sorted(path.glob("checkpoint-*.pt")):
            hint = f"for the encoder of a run, give its checkpoint: {newest[-1]}"
        raise UserError(f"{path}: a directory without config.json; {hint}")
    try:
        about = json.loads(config.read_bytes())
    except (ValueError, OSError) as error:
        raise DamagedError(f"{config}: cannot be read as JSON ({error})") from None
    for name in WEIGHT_NAMES:
        if (path / name).is_file():
            weights = read_weights(path / name)
            return WeightFile(path, weights.tensors, {**_describe(config, about), **weights.about})
    raise MissingError(f"{path}: has no {' or '.join(WEIGHT_NAMES)} beside config.json")


def _describe(path: Path, content: Any) -> dict[str, Any]:
    """Return `WeightFile.about` of a description: ours, or timm's of any age, which may nest the pixels' values."""
    content = content if isinstance(content, dict) else {}
    nested = content.get("pretrained_cfg")
    about = {**content, **(nested if isinstance(nested, dict) else {})}
    found: dict[str, Any] = {}
    for key, kind in (("arguments", dict), ("architecture", str)):
        if isinstance(content.get(key), kind):
            found[key] = content[key]
    for key in ("mean", "std"):
        value = about.get(key)
        if value is not None and not (isinstance(value, list) and len(value) == 3 and all(map(_is_number, value))):
            raise DamagedError(f"{path}: {key} is {printable(str(value), 40)}; it must be three numbers")
        found[key] = value
    sides = about.get("input_size")
    size = sides[-1] if isinstance(sides, list) and sides else about.get("size")
    return {**found, "size": size if isinstance(size, int) else None}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def checksum(tensors: Mapping[str, Tensor], about: str) -> str:
    """Return a SHA-256 (hex) over what an encoder's file says about it and over its tensors, by name.

    safetensors has no checksum: a flipped bit would become a weight.
    """
    digest = hashlib.sha256(about.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_safetensors(path: Path) -> WeightFile:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(metadata.get("encoder", "{}"))
    except (SafetensorError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path}: cannot be read as safetensors ({error}); copy or export it again") from None
    if metadata.get("sha256", expected := checksum(tensors, metadata.get("encoder", ""))) != expected:
        raise DamagedError(f"{path}: damaged (its content differs from its own checksum); copy or export it again")
    return WeightFile(path, tensors, _describe(path, about) if about else {})


def _describe_checkpoint(content: Any) -> dict[str, Any]:
    """Return what a checkpoint of `sacl-train` says about its encoder; empty for any other file."""
    if not (isinstance(content, dict) and {"method", "config", "image_size"} <= content.keys()):
        return {}
    config, side = content["config"], min(content["image_size"])
    arguments = {"name": config["encoder"], "image_size": side}
    arguments |= {key: config[key] for key in ("stem", "attention", "placement", "width") if config.get(key)}
    return {"arguments": arguments, "mean": config.get("mean"), "std": config.get("std"), "size": side}


def _flatten(content: Any, prefix: str, into: dict[str, Tensor], depth: int = 0) -> None:
    if isinstance(content, Tensor):
        into[prefix.removesuffix(".")] = content.detach()
    elif isinstance(content, dict) and depth < MAX_DEPTH:
        for key, value in content.items():
            _flatten(value, f"{prefix}{key}.", into, depth + 1)
