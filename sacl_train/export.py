"""The encoder of a run alone, in the shape that other programs read, with a model card beside it."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sacl_train.config import Config, dump_config
from sacl_train.nets import Encoder, build_encoder
from sacl_train.nets.weights import timm_weights
from sacl_train.report.figures import flatten
from sacl_train.training.checkpoint import directory_of, is_checkpoint, load_checkpoint
from sacl_train.training.resume import load_encoder
from texturegen import __version__
from texturegen.errors import UserError, nearest
from texturegen.shards import open_shards
from texturegen.storage.atomic import write_atomically

FORMATS = {"safetensors": "safetensors", "torchvision": "pth", "timm": "pth", "onnx": "onnx"}


def export(run: str | Path, form: str, out: str | Path | None = None) -> Path:
    """Write the encoder of `run` to `out`, and a model card beside it (OUT with .md); return where.

    run : of `sacl-train`, or one of its checkpoints. out : a file, or a directory to put encoder-FORMAT.EXT into
    (encoder-best-FORMAT.EXT of RUN/best.pt); RUN by default.

    safetensors: our own names; `load_exported` builds the encoder again from the file alone.
    torchvision: a state dict for its `resnet18`, 34, 50 or 101 (strict=False: without `fc`), of attention "none".
    timm: a state dict for its `resnet50` or `seresnet50` ... (strict=False), see `nets.weights`.
    onnx: a graph from images float (N, 3, H, W), normalised, to features (N, C), for any N.

    Raises UserError when the format does not hold this encoder, or its package is missing.
    """
    run = Path(run)
    if form not in FORMATS:
        raise UserError(f"unknown format '{form}'{nearest(form, FORMATS)}; known: {', '.join(FORMATS)}")
    encoder, config, epochs = load_encoder(run)
    encoder = encoder.cpu().to(memory_format=torch.contiguous_format)
    out = Path(out) if out is not None else directory_of(run)
    if out.is_dir():
        mark = f"{run.stem}-" if is_checkpoint(run) else ""
        out = out / f"encoder-{mark}{form}.{FORMATS[form]}"
    if out.suffix == ".md":
        raise UserError(
            f"{out}: the model card has this name; choose another --out, such as {out.stem}.{FORMATS[form]}"
        )
    if form == "safetensors":
        from safetensors.torch import save

        content: Any = save(encoder.state_dict(), {"encoder": json.dumps(_describe(config, encoder))})
    elif form == "onnx":
        content = _make_onnx(encoder, config)
    else:
        content = partial(torch.save, _foreign_weights(encoder, config, form))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, content)
    write_atomically(out.with_suffix(".md"), _card(run, out, form, config, encoder, epochs))
    return out


def load_exported(path: str | Path) -> Encoder:
    """The encoder of a safetensors file of `export`, in eval mode. UserError when it is another file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = (file.metadata() or {}).get("encoder")
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, FileNotFoundError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if about is None:
        raise UserError(f"{path}: not made by `sacl-export`")
    encoder = build_encoder(**json.loads(about)["arguments"])
    encoder.load_state_dict(weights)
    return encoder.eval()


def _describe(config: Config, encoder: Encoder) -> dict[str, Any]:
    first = encoder.conv1
    stem = {7: "imagenet"}.get(first.kernel_size[0], "cifar" if first.stride[0] == 1 else "cifar-stride2")
    arguments = {"name": config.encoder, "stem": stem, "attention": config.attention, "placement": config.placement}
    if config.width is not None:
        arguments["width"] = config.width  # type: ignore[assignment]
    return {"arguments": arguments, "features": encoder.out_features, "mean": config.mean, "std": config.std}


def _foreign_weights(encoder: Encoder, config: Config, form: str) -> dict[str, torch.Tensor]:
    about = _describe(config, encoder)["arguments"]
    fits = config.encoder not in ("se_resnet20", "se_resnet8") and config.placement == "standard"
    fits = fits and config.attention in (("none",) if form == "torchvision" else ("none", "se"))
    if not fits:
        raise UserError(
            f"{form} has no model like this encoder ({', '.join(f'{k} {v}' for k, v in about.items())}); "
            "take --format safetensors or onnx"
        )
    return encoder.state_dict() if form == "torchvision" else timm_weights(encoder)


def _make_onnx(encoder: Encoder, config: Config) -> bytes:
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
        raise UserError(f"--format onnx needs more packages ({error}): pip install 'sacl-texture[onnx]'") from None
    assert program is not None
    return program.model_proto.SerializeToString()


def _card(run: Path, out: Path, form: str, config: Config, encoder: Encoder, epochs: int) -> str:
    """What it is, what it was trained on, what it scored: all from the run's own files."""
    about = _describe(config, encoder)
    lines = [
        f"# {out.name}\n",
        f"{config.encoder}, attention {config.attention}, trained by {config.method} for {epochs} of "
        f"{config.epochs} epochs with texture role `{config.method_settings.texture_role}`.\n",
        f"sacl-texture {__version__}, torch {torch.__version__}.\n",
        f"Format {form}. Input: images (N, 3, H, W) in 0..1, minus mean {list(about['mean'])}, divided by std "
        f"{list(about['std'])}. Output: {encoder.out_features} features an image.\n",
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
        lines.append("None: `sacl-eval` has not been run on it.")
    return "\n".join([*lines, "\n## Settings\n", "```toml", dump_config(config).rstrip(), "```"]) + "\n"


def _scores(run: Path) -> dict[Path, dict[str, Any]]:
    """What `sacl-eval` wrote of this checkpoint, or of the run where `run` is one."""
    found = {path: json.loads(path.read_text()) for path in sorted(directory_of(run).glob("eval-*.json"))}

    def subject(of: Path) -> str:
        return of.name if is_checkpoint(of) else ""

    return {path: of for path, of in found.items() if subject(Path(of.get("run", ""))) == subject(run)}


def _data(run: Path) -> list[str]:
    """What it learnt from, of the build.json of its shards where they still lie where it was trained, or in a place
    that its figures name; they are known by their digest.
    """
    state = load_checkpoint(directory_of(run))
    assert state is not None
    places = [state.get("shards_place")]
    places += [of.get(key) for of in _scores(run).values() for key in ("train", "shards")]
    for place in dict.fromkeys(place for place in places if place):
        try:
            shards = open_shards(place)
        except (UserError, OSError):
            continue
        if shards.digest == state["shards"]:
            recipe, source = shards.build["recipe"], shards.build["source"]
            made = (
                f"{shards.textures_per_image} an image, by {recipe['method']}" if shards.textures_per_image else "none"
            )
            return [
                f"- data set: {source['name']}, split {source['split']}, {len(source['classes'])} classes",
                f"- images: {len(shards)}",
                f"- textures: {made}",
                f"- digest of the shards: {state['shards']}",
            ]
    return [f"The shards are not at hand; their digest is {state['shards']}."]
