"""Options and callbacks that several commands share."""

from typing import Any

import click

from texturegen.console import option, read_pairs
from texturegen.texture import METHODS

WORKERS = click.IntRange(1)
ROOT_HELP = (
    "Folder of the data set's files. CIFAR, STL-10 and ImageNet are otherwise looked for in $TEXTUREGEN_DATA, data/ "
    "and the user's cache; shapes needs none."
)

method_option = option(
    "--method",
    section="Synthesis",
    default="coherent",
    show_default=True,
    metavar="NAME",
    registry=METHODS,
    help="How textures are made.",
)


def read_settings(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """Callback of a repeated KEY=VALUE option; "none" and "None" stand for None, which TOML cannot express."""
    pairs = read_pairs(context, parameter, values)
    return {key: None if value in ("none", "None") else value for key, value in pairs.items()}


method_settings_option = option(
    "--method-option",
    "settings",
    section="Synthesis",
    multiple=True,
    metavar="KEY=VALUE",
    callback=read_settings,
    help="A setting of the method; may be repeated.",
)
