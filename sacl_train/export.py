"""Export of a run's encoder to formats of other programs, with a model card."""

import json
from pathlib import Path
from typing import Any

import torch

from sacl_train.config import Config, dump_config
from sacl_train.nets import Encoder, build_encoder
from sacl_train.nets.weights import timm_weights
from sacl_train.report.figures import flatten
from sacl_train.training.checkpoint import directory_of, is_checkpoint, load_checkpoint, write_tensors
from sacl_train.training.resume import load_encoder
from texturegen import __version__
from texturegen.errors import DamagedError, MissingError, UserError, nearest
from texturegen.shards import open_shards
from texturegen.storage.atomic import write_atomically

FORMATS = {"safetensors": "safetensors", "torchvision": "pth", "timm": "pth", "onnx": "onnx"}  # format -> extension


def export(run: str | Path, form: str, out: str | Path | None = None) -> Path:
    """Write the encoder of a run to a file, and a model card to the same name with the suffix .md.

    Parameters
    ----------
    run : str or Path
        Directory of `sacl-train`, or a checkpoint in it.
    form : str
        "safetensors": weights and settings, from which `load_exported` rebuilds the encoder. "torchvision": a state
        dict for its `resnet18`, 34, 50 or 101 (strict=False, without `fc`); attention "none" only. "timm": a state dict
        for its `resnet50`, `seresnet50`, ... (strict=False); see `nets.weights`. "onnx": a graph from normalised images
        float (N, 3, H, W) to features (N, C), with dynamic N, H and W.
    out : str, Path or None
        A file, or a directory in which to write encoder-FORMAT.EXT (encoder-best-FORMAT.EXT for RUN/best.pt). None:
        RUN.

    Returns
    -------
    Path
        The file of the encoder.

    Raises
    ------
    MissingError
        If there is no checkpoint in `run`, or the format's package is not installed.
    UserError
        If the format is unknown or cannot represent this encoder.

    Examples
    --------
    >>> path = export("run", "safetensors")
    >>> path.name
    'encoder-safetensors.safetensors'
    >>> path.with_suffix(".md").read_text().splitlines()[0]
    '# encoder-safetensors.safetensors'
    """
    run = Path(run)
    if form not in FORMATS:
        raise UserError(f"unknown format '{form}'{nearest(form, FORMATS)}; known: {', '.join(FORMATS)}")
    encoder, config, epochs = load_encoder(run)
    encoder = encoder.cpu().to(memory_format=torch.contiguous_format)
    out = Path(out) if out is not None else directory_of(run)
    if out.is_dir():
        checkpoint = f"{run.stem}-" if is_checkpoint(run) else ""
        out = out / f"encoder-{checkpoint}{form}.{FORMATS[form]}"
    if out.suffix == ".md":
        raise UserError(
            f"{out}: this name is reserved for the model card; choose another --out, such as {out.stem}.{FORMATS[form]}"
        )
    content: bytes | dict[str, torch.Tensor]
    if form == "safetensors":
        from safetensors.torch import save

        content = save(encoder.state_dict(), {"encoder": json.dumps(_describe(config, encoder))})
    elif form == "onnx":
        content = _make_onnx(encoder, config)
    else:
        content = _foreign_weights(encoder, config, form)
    out.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        write_atomically(out, content)
    else:
        write_tensors(out, content)
    write_atomically(out.with_suffix(".md"), _card(run, out, form, config, encoder, epochs))
    return out


def load_exported(path: str | Path) -> Encoder:
    """Load an encoder that `export` wrote as safetensors.

    Parameters
    ----------
    path : str or Path
        The file; nothing else of the run is needed.

    Returns
    -------
    Encoder
        In eval mode, on the CPU: normalised images float (N, 3, H, W) -> features (N, encoder.out_features).

    Raises
    ------
    UserError
        If the file is missing, damaged or not written by `export`.

    Examples
    --------
    >>> encoder = load_exported(export("run", "safetensors"))
    >>> encoder(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 32])
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = (file.metadata() or {}).get("encoder")
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise MissingError(f"{path}: no such file; write one with `sacl-export RUN --out {path}`") from None
    except SafetensorError as error:
        raise DamagedError(f"{path}: cannot be read as safetensors ({error}); export the encoder again") from None
    if about is None:
        raise UserError(f"{path}: not written by `sacl-export --format safetensors`; export the encoder again")
    encoder = build_encoder(**json.loads(about)["arguments"])
    encoder.load_state_dict(weights)
    return encoder.eval()


def _describe(config: Config, encoder: Encoder) -> dict[str, Any]:
    """Return the arguments of `build_encoder`, the feature dimensions and the normalisation."""
    # The stem is read from the network, because in the config it may be "auto".
    first = encoder.conv1
    stem = {7: "imagenet"}.get(first.kernel_size[0], "cifar" if first.stride[0] == 1 else "cifar-stride2")
    arguments = {"name": config.encoder, "stem": stem, "attention": config.attention, "placement": config.placement}
    if config.width is not None:
        arguments["width"] = config.width  # type: ignore[assignment]
    return {"arguments": arguments, "features": encoder.out_features, "mean": config.mean, "std": config.std}


def _foreign_weights(encoder: Encoder, config: Config, form: str) -> dict[str, torch.Tensor]:
    """Return the state dict in the layout of torchvision or timm; raise UserError if the library has no such model."""
    about = _describe(config, encoder)["arguments"]
    is_supported = config.encoder not in ("se_resnet20", "se_resnet8") and config.placement == "standard"
    is_supported = is_supported and config.attention in (("none",) if form == "torchvision" else ("none", "se"))
    if not is_supported:
        raise UserError(
            f"{form} has no model like this encoder ({', '.join(f'{k} {v}' for k, v in about.items())}); "
            "use --format safetensors or onnx"
        )
    return encoder.state_dict() if form == "torchvision" else timm_weights(encoder)


def _make_onnx(encoder: Encoder, config: Config) -> bytes:
    """Return the encoder as a serialised ONNX graph."""
    side = 32 if _describe(config, encoder)["arguments"]["stem"] != "imagenet" else 224
    try:
        program = torch.onnx.export(
            encoder,
            (torch.zeros(2, 3, side, side),),
            input_names=["images"],
            output_names=["features"],
            dynamic_shapes={"x": {0: torch.export.Dim("N"), 2: torch.export.Dim("H"), 3: torch.export.Dim("W")}},
            dynamo=True,
            verbose=False,
        )
    except ImportError as error:
        raise MissingError(f"--format onnx needs more packages ({error}); pip install 'sacl-texture[onnx]'") from None
    assert program is not None
    return program.model_proto.SerializeToString()


def _card(run: Path, out: Path, form: str, config: Config, encoder: Encoder, epochs: int) -> str:
    """Return the model card: the encoder, its data, figures and settings, all from the run's own files."""
    about = _describe(config, encoder)
    lines = [
        f"# {out.name}\n",
        f"{config.encoder}, attention {config.attention}, trained by {config.method} for {epochs} of "
        f"{config.epochs} epochs with texture role `{config.method_settings.texture_role}`.\n",
        f"sacl-texture {__version__}, torch {torch.__version__}.\n",
        f"Format {form}. Input: images (N, 3, H, W) in 0..1, minus mean {list(about['mean'])}, divided by std "
        f"{list(about['std'])}. Output: {encoder.out_features} features per image.\n",
        "## Data\n",
        *_data(run),
        "\n## Figures\n",
    ]
    scores = _scores(run)
    for path, figures in scores.items():
        found = flatten(path.stem.removeprefix("eval-"), figures)
        lines += [f"- {name}: {value:.2%}" for name, value in found.items()]
        if "command" in figures:
            lines.append(f"  by `{figures['command']}`")
    if not scores:
        lines.append("(none; `sacl-eval` has not been run on it)")
    return "\n".join([*lines, "\n## Settings\n", "```toml", dump_config(config).rstrip(), "```"]) + "\n"


def _scores(run: Path) -> dict[Path, dict[str, Any]]:
    """Return the figures that `sacl-eval` wrote about this checkpoint, or about the run if `run` is its directory."""
    scores = {path: json.loads(path.read_text()) for path in sorted(directory_of(run).glob("eval-*.json"))}

    def checkpoint(path: Path) -> str:
        return path.name if is_checkpoint(path) else ""

    return {
        path: figures for path, figures in scores.items() if checkpoint(Path(figures.get("run", ""))) == checkpoint(run)
    }


def _data(run: Path) -> list[str]:
    """Describe the training data, from build.json of the shards.

    Looks for shards with the run's digest at the location used in training, then at the locations in the run's figures.
    """
    state = load_checkpoint(directory_of(run))
    assert state is not None
    locations = [state.get("shards_place")]
    locations += [figures.get(key) for figures in _scores(run).values() for key in ("train", "shards")]
    for location in dict.fromkeys(location for location in locations if location):
        try:
            shards = open_shards(location)
        except (UserError, OSError):
            continue
        if shards.digest == state["shards"]:
            recipe, source = shards.build["recipe"], shards.build["source"]
            count = shards.textures_per_image
            textures = f"{count} per image, by {recipe['method']}" if count else "(none)"
            return [
                f"- data set: {source['name']}, split {source['split']}, {len(source['classes'])} classes",
                f"- images: {len(shards)}",
                f"- textures: {textures}",
                f"- digest of the shards: {state['shards']}",
            ]
    return [f"The shards are not available; their digest is {state['shards']}."]
