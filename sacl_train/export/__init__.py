"""Export of a run's encoder to formats of other programs, with a model card."""

import shlex
from pathlib import Path

import sacl_train.extra  # noqa: F401 (says what to install)

# isort: split
import torch

from sacl_train.export.card import write_card
from sacl_train.export.formats import FORMATS, Exported, Files
from sacl_train.nets import Encoder, build_encoder
from sacl_train.nets.files import read_weights
from sacl_train.training.checkpoint import directory_of, is_checkpoint, write_tensors
from sacl_train.training.resume import load_networks
from texturegen.errors import DamagedError, MissingError, UserError, nearest
from texturegen.storage.atomic import write_atomically

__all__ = ["FORMATS", "card_of", "export", "load_exported"]

CARD = "README.md"  # of an exported directory, as the Hugging Face hub shows it


def export(run: str | Path, form: str, out: str | Path | None = None) -> Path:
    """Write the encoder of a run to a file or a directory, and a model card with the lines that load it.

    Parameters
    ----------
    run : str or Path
        Directory of `sacl-train`, or a checkpoint in it.
    form : str
        "safetensors": weights and settings, from which `load_exported` rebuilds the encoder. "hub": a directory of the
        same with config.json and README.md, as it can be uploaded to the Hugging Face hub. "timm": such a directory for
        `timm.create_model("local-dir:DIR", pretrained=True)`, timm 1.0.16 or newer. "torchvision": a state dict for its
        `resnet18`, 34, 50 or 101 without `fc`; attention "none" only. "onnx": a graph from normalised images float (N,
        3, H, W) to features (N, C), with dynamic N, H and W; mean, std, size and channels are in its metadata.
    out : str, Path or None
        For "hub" and "timm" the directory. For the others a file, which has a suffix, or a directory in which to write
        encoder-FORMAT.EXT (encoder-best-FORMAT.EXT for RUN/best.pt); a string that ends in "/" is always a directory.
        None: in RUN.

    Returns
    -------
    Path
        The file or directory; its card is `card_of(path)`.

    Raises
    ------
    MissingError
        If there is no checkpoint in `run`, or the format's package is not installed.
    UserError
        If the format is unknown or cannot represent this encoder, or the directory holds something else.

    Examples
    --------
    >>> path = export("run", "safetensors")
    >>> path.name
    'encoder-safetensors.safetensors'
    >>> card_of(path).read_text().splitlines()[0]
    '# encoder-safetensors.safetensors'
    """
    run = Path(run)
    if form not in FORMATS:
        raise UserError(f"unknown format '{form}'{nearest(form, FORMATS)}; known: {', '.join(FORMATS)}")
    path = _choose_path(run, form, out)
    method, config, checkpoint = load_networks(run)
    encoder = method.encoder.eval().to(memory_format=torch.contiguous_format)
    height, width = checkpoint["image_size"]
    shards, place = checkpoint["shards"], checkpoint.get("shards_place")
    exported = Exported(run, form, path, encoder, config, checkpoint["epoch"], (height, width), shards, place)
    content = FORMATS[form].make(exported)
    card = write_card(exported)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Files):
        path.mkdir(exist_ok=True)
        for name, data in {**content.files, CARD: card.encode()}.items():
            write_atomically(path / name, data)
    elif isinstance(content, bytes):
        write_atomically(path, content)
    else:
        write_tensors(path, content)
    if not isinstance(content, Files):
        write_atomically(card_of(path), card)
    return path


def card_of(path: Path) -> Path:
    """Return the path of the model card of what `export` wrote."""
    return path / CARD if path.is_dir() else path.with_suffix(".md")


def load_exported(path: str | Path) -> Encoder:
    """Load an encoder that `export` wrote as "safetensors" or "hub".

    Parameters
    ----------
    path : str or Path
        The file or directory; nothing else of the run is needed.

    Returns
    -------
    Encoder
        In eval mode, on the CPU: normalised images float (N, 3, H, W) -> features (N, encoder.out_features).

    Raises
    ------
    UserError
        If it is missing, damaged or not written by `export`.

    Examples
    --------
    >>> encoder = load_exported(export("run", "safetensors"))
    >>> encoder(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 32])
    """
    path = Path(path)
    if not path.exists():
        raise MissingError(f"{path}: no such file; write one with `sacl-export RUN --out {shlex.quote(str(path))}`")
    weights = read_weights(path)
    if "arguments" not in weights.about or "method." in next(iter(weights.tensors)):
        raise UserError(f"{path}: not written by `sacl-export --format safetensors`; export the encoder again")
    try:
        encoder = build_encoder(**weights.about["arguments"])
        encoder.load_state_dict(weights.tensors)
    except (TypeError, RuntimeError):
        raise DamagedError(f"{path}: its weights do not fit the encoder that it describes; export it again") from None
    return encoder.eval()


def _choose_path(run: Path, form: str, out: str | Path | None) -> Path:
    """Return where to write; UserError if the model card would take the place of another file."""
    checkpoint = f"{run.stem}-" if is_checkpoint(run) else ""
    extension = FORMATS[form].extension
    name = f"encoder-{checkpoint}{form}{extension}"
    if out is None:
        return directory_of(run) / name
    path = Path(out)
    if not extension:
        if path.exists() and not path.is_dir():
            raise UserError(f"{path}: a file, but format {form} is a directory; choose another --out")
        if (path / CARD).exists() and not (path / "config.json").exists():
            raise UserError(f"{path}: holds a {CARD} of something else; choose another --out, such as {path / name}")
        return path
    if path.is_dir() or str(out).endswith(("/", "\\")) or not path.suffix:
        path.mkdir(parents=True, exist_ok=True)
        return path / name
    if path.suffix == ".md":
        raise UserError(
            f"{path}: this name is reserved for the model card; choose another --out, such as {path.stem}{extension}"
        )
    return path
