"""Options and callbacks that several commands share."""

from typing import Any

import click

from texturegen.console import read_pairs
from texturegen.sources import SOURCES
from texturegen.texture import METHODS

SOURCES_HELP = f"{', '.join(SOURCES)}."
METHODS_HELP = f"{', '.join(METHODS)}."


def read_settings(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """Callback of a repeated KEY=VALUE option whose values may be None, which TOML has no word for."""
    pairs = read_pairs(context, parameter, values)
    return {key: None if value in ("none", "None") else value for key, value in pairs.items()}
