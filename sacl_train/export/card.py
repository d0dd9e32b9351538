"""The model card: what an exported encoder is, how to load it, and how good it is."""

from pathlib import Path
from typing import Any

import torch

from sacl_train.config import dump_config
from sacl_train.export.formats import FORMATS, Exported
from sacl_train.report.figures import describe_probe, flatten, read_figures
from sacl_train.training.checkpoint import directory_of, is_checkpoint
from texturegen import __version__
from texturegen.errors import UserError
from texturegen.shards import open_shards

STEMS = {
    "imagenet": "7x7 convolution of stride 2 and 3x3 max pooling of stride 2",
    "cifar": "3x3 convolution of stride 1, no max pooling",
    "cifar-stride2": "3x3 convolution of stride 2, no max pooling",
}


def write_card(exported: Exported) -> str:
    """Return the model card as Markdown, all from the run's own files; for a directory with the hub's metadata."""
    config, scores = exported.config, _find_scores(exported.run)
    height, width = exported.image_size
    stem = "" if exported.stem is None else f" Stem {exported.stem}: {STEMS[exported.stem]}."
    lines = [
        *_front_matter(exported),
        f"# {exported.path.name}\n",
        f"{config.encoder}, attention {config.attention}, trained by {config.method} for {exported.epochs} of "
        f"{config.epochs} epochs with texture role `{config.method_settings.texture_role}`.\n",
        f"sacl-texture {__version__}, torch {torch.__version__}.\n",
        f"Format {exported.form}. Trained on images of {height} x {width} px.{stem} Input: images (N, 3, H, W), "
        f"channels R, G, B, in 0..1, minus mean {list(config.mean or ())}, divided by std {list(config.std or ())}. "
        f"Output: {exported.encoder.out_features} features per image.\n",
        "```python",
        *FORMATS[exported.form].lines(exported),
        "```\n",
        "## Data\n",
        *_describe_data(exported, scores),
        "\n## Figures\n",
    ]
    for path, figures in scores.items():
        found = flatten(path.stem.removeprefix("eval-"), figures)
        lines += [f"- {name}: {value:.2%}" for name, value in found.items()]
        if how := describe_probe(figures):
            lines.append(f"  {how}")
        if "command" in figures:
            lines.append(f"  by `{figures['command']}`")
    if not scores:
        lines.append("(none; `sacl-eval` has not been run on it)")
    return "\n".join([*lines, "\n## Settings\n", "```toml", dump_config(config).rstrip(), "```"]) + "\n"


def _front_matter(exported: Exported) -> list[str]:
    """Return the metadata that the Hugging Face hub reads from README.md; the licence is for its owner to add."""
    if FORMATS[exported.form].extension:
        return []
    library = "timm" if exported.form == "timm" else "sacl-texture"
    tags = ["image-feature-extraction", library, "self-supervised-learning"]
    return ["---", f"library_name: {library}", "tags:", *(f"- {tag}" for tag in tags), "---\n"]


def _find_scores(run: Path) -> dict[Path, dict[str, Any]]:
    """Return the figures that `sacl-eval` wrote about this checkpoint, or about the run if `run` is its directory."""
    scores = {path: read_figures(path) for path in sorted(directory_of(run).glob("eval-*.json"))}

    def checkpoint(path: Path) -> str:
        return path.name if is_checkpoint(path) else ""

    return {
        path: figures for path, figures in scores.items() if checkpoint(Path(figures.get("run", ""))) == checkpoint(run)
    }


def _describe_data(exported: Exported, scores: dict[Path, dict[str, Any]]) -> list[str]:
    """Describe the training data, from build.json of the shards.

    Looks for shards with the run's digest at the location used in training, then at the locations in the run's figures.
    """
    locations = [exported.shards_place]
    locations += [figures.get(key) for figures in scores.values() for key in ("train", "shards")]
    for location in dict.fromkeys(location for location in locations if location):
        try:
            shards = open_shards(location)
        except (UserError, OSError):
            continue
        if shards.digest == exported.shards:
            recipe, source = shards.build["recipe"], shards.build["source"]
            count = shards.textures_per_image
            textures = f"{count} per image, by {recipe['method']}" if count else "(none)"
            return [
                f"- data set: {source['name']}, split {source['split']}, {len(source['classes'])} classes",
                f"- images: {len(shards)}",
                f"- textures: {textures}",
                f"- digest of the shards: {exported.shards}",
            ]
    return [f"The shards are not available; their digest is {exported.shards}."]
