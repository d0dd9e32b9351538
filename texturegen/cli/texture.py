"""The command `texture`: one texture from whole pictures."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from texturegen.cli.options import METHODS_HELP, read_settings
from texturegen.console import plural


def read_side_or_sides(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, int] | None:
    """Callback of a size: N, or HEIGHTxWIDTH."""
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise click.BadParameter(f"{text!r} is neither N nor HEIGHTxWIDTH, in pixels", context, parameter)
    return int(sides[0]), int(sides[-1])


@click.command()
@click.argument("pictures", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="The file to write: .png and .webp keep every pixel, .jpg is lossy. One that is there is replaced.",
)
@click.option(
    "--size", metavar="N|HxW", callback=read_side_or_sides, help="N, or HEIGHTxWIDTH  [default: the first picture's]"
)
@click.option("--method", default="coherent", show_default=True, help=METHODS_HELP)
@click.option("--seed", default=0, show_default=True, help="Another seed gives another texture.")
@click.option("--method-option", "settings", multiple=True, callback=read_settings, help="KEY=VALUE for the method.")
def texture(
    pictures: tuple[Path, ...],
    output: Path,
    size: tuple[int, int] | None,
    method: str,
    seed: int,
    settings: dict[str, Any],
) -> None:
    """Make one texture of PICTURES, each taken whole.

    A texture of grey pictures is grey. EXIF orientation is applied, transparency dropped. efros-leung and wei-levoy
    compare each pixel they make with every pixel of the pictures: give them small ones, or expect minutes to hours.
    """
    try:
        from texturegen.cli.picture import make_texture

        made = make_texture(pictures, output, size, method, seed, settings)
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        sys.exit(130)
    figures = ", ".join(f"{name} {value:.3g}" for name, value in asdict(made.quality).items())
    height, width = made.size
    source = plural(len(pictures), "picture")
    print(f"{output}: {height}x{width} from {source} by {method} in {made.seconds:.1f} s; {figures}")


COMMANDS = (texture,)
