"""Encoders from files of other programs: state dicts of any layout, our exports, timm's cache, TorchScript and ONNX."""

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sacl_train.nets import build_encoder
from sacl_train.nets.architectures import Architecture, VectorEncoder, find_architectures, to_vector
from sacl_train.nets.encoder import Encoder
from sacl_train.nets.encoder_file import EncoderFile
from sacl_train.nets.files import WeightFile, kind_of, read_weights
from sacl_train.nets.matching import Match, match_weights
from sacl_train.nets.timm_models import PREFIX, TimmEncoder, find_pretrained
from texturegen.errors import DamagedError, MissingError, UserError
from texturegen.storage.names import printable

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDES = (224, 64, 32)  # pixels; tried in turn to see what a program returns


@dataclass(frozen=True)
class OpenedEncoder:
    """An encoder that is ready to score.

    Attributes
    ----------
    encoder : Encoder
        In eval mode, on the CPU: normalised images float (N, 3, H, W) -> features (N, encoder.out_features).
    label : str
        Its architecture.
    mean, std : tuple of float
        Normalisation per channel.
    size : int or None
        Side in pixels of the images that it was trained with, if known.
    notes : list of str
        What was found and assumed, a line each.
    """

    encoder: Encoder
    label: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int | None
    notes: list[str] = field(default_factory=list)


def open_encoder(file: EncoderFile) -> OpenedEncoder:
    """Open an encoder. Weights are read without executing anything; only arch "torchscript" runs a file's program.

    Raises
    ------
    UserError
        If the source is not an encoder, the architecture must be named, or weights and architecture do not fit.
    """
    if file.source.startswith(PREFIX):
        opened = _open_cached(file)
    else:
        path = Path(file.source)
        kind = kind_of(path)
        if kind == "onnx":
            opened = _open_onnx(file, path)
        elif kind == "torchscript":
            opened = _open_torchscript(file, path)
        else:
            opened = _open_weights(file, read_weights(path))
    encoder, notes = opened.encoder, opened.notes
    if file.mean is None and file.std is None and (opened.mean, opened.std) == (IMAGENET_MEAN, IMAGENET_STD):
        notes.append("normalised by ImageNet's mean and std; --mean and --std set others")
    if file.size is not None and not (isinstance(encoder, VectorEncoder) and encoder.size == file.size):
        encoder = VectorEncoder(encoder, encoder.out_features, file.size)
    mean, std = file.mean or opened.mean, file.std or opened.std
    return OpenedEncoder(encoder.eval(), opened.label, mean, std, file.size or opened.size, notes)


def load_initial(encoder: Encoder, source: str) -> str:
    """Load the weights of a file into an encoder before training; return what was taken, in one line.

    Parameters
    ----------
    encoder : Encoder
        Every one of its tensors must be in the file, in the same shape; classifiers in the file are left.
    source : str
        As in `EncoderFile`, but no program.

    Raises
    ------
    UserError
        If the source is not a file of weights, or does not fit; the message names the tensors.
    """
    if source.startswith(PREFIX):
        name = source.removeprefix(PREFIX)
        cached = TimmEncoder(name, pretrained=find_pretrained(name))
        weights = WeightFile(Path(source), cached.model.state_dict())
    else:
        weights = read_weights(Path(source))
    target = _inner(encoder)
    classifier = encoder.classifier if isinstance(encoder, TimmEncoder) else ("fc",)
    match = match_weights(target.state_dict(), weights.tensors, classifier)
    if not match.fits:
        raise UserError(
            f"{source}: does not fit this encoder: {match.differences()}; choose encoder, stem, attention and width as "
            "in the file (weights of ImageNet models need stem=imagenet, plain ResNets attention=none)"
        )
    _load(target, match.weights)
    return f"initial weights from {source}: {match.summary()}"


def _open_weights(file: EncoderFile, weights: WeightFile) -> OpenedEncoder:
    """Build the architecture that the user or the file names, and load the weights into it."""
    best: tuple[Architecture, Encoder, Match] | None = None
    for architecture in _find_candidates(file, weights):
        encoder = architecture.make()
        expected = _inner(encoder).state_dict()
        try:
            match = match_weights(expected, weights.tensors, architecture.classifier, file.prefix)
        except UserError as error:
            raise UserError(f"{weights.path}: {error}") from None
        if best is None or len(match.weights) > len(best[2].weights) or match.fits:
            best = architecture, encoder, match
        if match.fits:
            break
    assert best is not None
    architecture, encoder, match = best
    if not match.fits:
        raise UserError(
            f"{weights.path}: does not fit {architecture.label}: {match.differences()}; choose another --arch"
        )
    _load(_inner(encoder), match.weights)
    about = weights.about
    given = {"mean": about.get("mean") or architecture.mean, "std": about.get("std") or architecture.std}
    size = about.get("size") or architecture.size
    notes = [f"{weights.path}: {architecture.label}, {match.summary()}"]
    return OpenedEncoder(encoder, architecture.label, *_normalisation(given), size, notes)


def _find_candidates(file: EncoderFile, weights: WeightFile) -> Iterator[Architecture]:
    """Yield the architectures that the weights may be of, the likeliest first."""
    about = weights.about
    if file.arch is None and "arguments" in about:
        arguments = about["arguments"]
        try:
            encoder = build_encoder(**arguments)
        except TypeError:
            raise DamagedError(
                f"{weights.path}: describes an encoder that this version does not know; name it with --arch"
            ) from None
        yield Architecture(arguments["name"], lambda: encoder)
        return
    name = file.arch or (f"{PREFIX}{about['architecture']}" if "architecture" in about else None)
    if name is None:
        raise UserError(
            f"{weights.path}: does not say its architecture; name it with --arch, for example --arch resnet50"
        )
    yield from find_architectures(name, weights.tensors)


def _inner(encoder: Encoder) -> nn.Module:
    """Return the module whose names the weights have."""
    inner: nn.Module = encoder.model if isinstance(encoder, TimmEncoder | VectorEncoder) else encoder
    return inner


def _load(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load weights of any floating-point type; counters of batches that old files lack stay 0."""
    module.load_state_dict(weights, strict=False)


def _normalisation(about: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(about.get("mean") or IMAGENET_MEAN), tuple(about.get("std") or IMAGENET_STD)


def _open_cached(file: EncoderFile) -> OpenedEncoder:
    name = file.source.removeprefix(PREFIX)
    encoder = TimmEncoder(name, pretrained=find_pretrained(name))
    notes = [f"{file.source}: weights from timm's cache"]
    return OpenedEncoder(encoder, file.source, *_normalisation(encoder.config), encoder.side, notes)


def _open_torchscript(file: EncoderFile, path: Path) -> OpenedEncoder:
    if file.arch != "torchscript":
        raise UserError(
            f"{path}: a TorchScript program, which can do more than compute; if you trust its source, add "
            "--arch torchscript"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated; its files remain
            model = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise DamagedError(
            f"{path}: cannot be loaded as TorchScript ({str(error).splitlines()[0][:160]}); copy it again"
        ) from None
    side, features = _probe(path, model, file.size)
    encoder = VectorEncoder(model, features, side if file.size else None)
    return OpenedEncoder(encoder, "torchscript", *_normalisation({}), None, [f"{path}: TorchScript"])


def _open_onnx(file: EncoderFile, path: Path) -> OpenedEncoder:
    model = OnnxModel(path)
    about = {key: _three_numbers(model.metadata.get(key, "")) for key in ("mean", "std")}
    side, features = _probe(path, model, model.side or file.size)
    if file.size and model.side and file.size != model.side:
        raise UserError(f"{path}: takes images of {model.side} px only; leave out --size")
    side_trained = model.metadata.get("size", "")
    size = int(side_trained) if side_trained.isdigit() else model.side
    notes = [f"{path}: ONNX, input '{model.input}', output '{model.output}'"]
    for key, values in about.items():
        if key in model.metadata and values is None:
            notes.append(f"its metadata have {key} '{printable(model.metadata[key], 40)}', not three numbers; ignored")
    encoder = VectorEncoder(model, features, side if model.side or file.size else None)
    return OpenedEncoder(encoder, "onnx", *_normalisation(about), size, notes)


def _three_numbers(text: str) -> list[float] | None:
    """Return the numbers of "0.5,0.5,0.5", as our export writes them; None for anything else."""
    try:
        values = [float(value) for value in text.split(",")]
    except ValueError:
        return None
    return values if len(values) == 3 else None


def _probe(path: Path, model: nn.Module, side: int | None) -> tuple[int, int]:
    """Return a side that the program takes, in pixels, and the number of its features."""
    reason = ""
    for size in SIDES if side is None else (side,):
        try:
            with torch.no_grad():
                return size, to_vector(model(torch.zeros(2, 3, size, size))).shape[1]
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        except Exception as error:  # a program may raise anything
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:160]
    raise UserError(f"{path}: does not take images (N, 3, H, W) ({reason}); set their side with --size")


class OnnxModel(nn.Module):
    """A graph of onnxruntime, on the CPU: images float (N, 3, H, W) -> its first output.

    Attributes
    ----------
    input, output : str
        Names in the graph.
    side : int or None
        Side in pixels if the graph fixes it.
    metadata : dict of str to str
        What the exporting program wrote: ours writes mean, std, size and channels.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError:
            raise MissingError(f"{path}: needs onnxruntime; pip install 'sacl-texture[onnx]'") from None
        self.path = path
        try:
            self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no public base
            reason = " ".join(str(error).split())[:160]
            raise DamagedError(f"{path}: cannot be loaded as ONNX ({reason}); export it again") from None
        first, *others = self.session.get_inputs()
        if others or len(first.shape) != 4 or (first.shape[1] not in (3, None) and not isinstance(first.shape[1], str)):
            raise UserError(f"{path}: its input is not images (N, 3, H, W) but {first.name} {first.shape}")
        self.input, self.output = first.name, self.session.get_outputs()[0].name
        batch, _, height, _ = first.shape
        self.side = height if isinstance(height, int) else None
        self.batch = batch if isinstance(batch, int) else None
        self.metadata: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)
        # The graph has no parameters here: this tells the cache of features one file from another.
        digest = hashlib.sha256(path.read_bytes()).digest()
        self.register_buffer("digest", torch.tensor(list(digest), dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        images = x.detach().cpu().float().numpy()
        size = self.batch or len(images)
        parts = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            padding = size - len(part)  # a graph of a fixed batch size
            full = np.concatenate([part, np.zeros((padding, *part.shape[1:]), part.dtype)]) if padding else part
            parts.append(self.session.run([self.output], {self.input: full})[0][: len(part)])
        return torch.from_numpy(np.concatenate(parts)).to(x.device)
