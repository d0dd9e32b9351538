"""The options that say what to build: shared by `build` and `plan`, and by the recipes of `pipelines`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from texturegen.builds import RECIPES, find_recipe
from texturegen.cli.options import ROOT_HELP, WORKERS, method_option, method_settings_option, read_settings
from texturegen.console import option
from texturegen.sources import SOURCES


def read_recipe_name(context: click.Context, parameter: click.Parameter, name: str | None) -> str | None:
    """Callback of --recipe: make the recipe's fields the defaults of options, which click reads after given options."""
    if name is not None:
        fields = {field: value for field, value in find_recipe(name).fields.items() if field != "settings"}
        context.default_map = {**(context.default_map or {}), **fields}
    return name


def recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """Decorate a command with the fields of `Recipe`, which decide the bytes of a build, --root and --workers."""
    options = (
        option("--dataset", section="Images", required=True, metavar="NAME", registry=SOURCES, help="The data set."),
        option("--root", section="Images", help=ROOT_HELP),
        option("--split", section="Images", help="train, test or another split of the data set."),
        option(
            "--classes",
            section="Images",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="Text file, one per line: WordNet ids (imagenet100) or class names (webdataset).",
        ),
        option("--limit", section="Images", type=int, help="Use only the first N images."),
        option("--size", section="Images", type=int, help="Resize the short side to N pixels and crop the centre."),
        option("--short-side", section="Images", type=int, help="Resize the short side to N, then crop --size."),
        option(
            "--source-option",
            "source_options",
            section="Images",
            multiple=True,
            metavar="KEY=VALUE",
            callback=read_settings,
            help="An option of the data set; may be repeated.",
        ),
        option(
            "--recipe",
            "published",
            section="Synthesis",
            metavar="NAME",
            registry=RECIPES,
            callback=read_recipe_name,
            help="Options of a published recipe.",
        ),
        method_option,
        method_settings_option,
        option(
            "--per-image",
            section="Synthesis",
            default=1,
            show_default=True,
            help="Textures per image; 0 writes the images alone.",
        ),
        option(
            "--patches",
            section="Synthesis",
            type=int,
            metavar="N",
            help="Patches per texture: one from the centre, the others from random places  [default: 2]",
        ),
        option(
            "--patches-from",
            section="Synthesis",
            metavar="PLACE",
            help="corners: all patches near corners of the image, where objects are rare.",
        ),
        option(
            "--patch-size",
            section="Synthesis",
            type=int,
            metavar="PX",
            help="Side of the patches in pixels  [default: 3/10 of the short side, at most 96]",
        ),
        option(
            "--paste",
            section="Synthesis",
            is_flag=True,
            help="Also write each image with its texture pasted into it, and the mask, to train defect segmenters.",
        ),
        option("--seed", section="Synthesis", default=0, show_default=True, help="Seed of patches and textures."),
        option(
            "--encoding",
            section="Shards",
            default="png",
            show_default=True,
            help="Format of textures and re-encoded images: png or webp (both lossless), or jpeg.",
        ),
        option(
            "--one-kind",
            section="Shards",
            metavar="EXT",
            help="png, jpg or webp: re-encode images of any other type  [default: keep their files]",
        ),
        option(
            "--prefix",
            section="Shards",
            metavar="NAME",
            help="First part of the shards' file names, by which some readers cache  [default: shard]",
        ),
        option(
            "--shard-size",
            section="Shards",
            default=1000,
            show_default=True,
            help="Images per shard. One worker makes a shard at a time.",
        ),
        option("--workers", section="Execution", type=WORKERS, help="Number of processes  [default: one per CPU]"),
    )
    for add in reversed(options):
        command = add(command)
    return command


def read_recipe(classes: Path | None, source_options: dict[str, Any], published: str | None, **fields: Any) -> Any:
    """Return the `Recipe` of the values of `recipe_options`; --classes is a shorthand for --source-option classes=.

    --method-option replaces single settings of a published recipe, and --method all of them.
    """
    from texturegen.builds import Recipe

    recipe = {} if published is None else find_recipe(published).fields
    if fields["method"] == recipe.get("method"):
        fields["settings"] = {**recipe.get("settings", {}), **fields["settings"]}
    if classes is not None:
        source_options = {**source_options, "classes": str(classes)}
    return Recipe(source_options=source_options, **fields)
