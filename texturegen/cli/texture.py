"""The command `texture`: one texture from whole pictures."""

import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from texturegen.cli.options import method_option, method_settings_option
from texturegen.console import FriendlyCommand, option, plural, say


def read_side_or_sides(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, int] | None:
    """Callback of a size in pixels, N or HEIGHTxWIDTH; return (height, width)."""
    if text is None:
        return None
    found = re.fullmatch(r"([1-9][0-9]{0,8})(?:x([1-9][0-9]{0,8}))?", text.lower())
    if found is None:
        raise click.BadParameter(f"{text!r} is neither N nor HEIGHTxWIDTH, in pixels", context, parameter)
    return int(found[1]), int(found[2] or found[1])


@click.command(cls=FriendlyCommand)
@click.argument("pictures", nargs=-1, required=True, type=click.Path(path_type=Path))
@option(
    "-o",
    "--output",
    section="Output",
    required=True,
    type=click.Path(path_type=Path),
    help="File to write or replace: .png and .webp are lossless, .jpg is not.",
)
@option(
    "--size",
    section="Output",
    metavar="N|HxW",
    callback=read_side_or_sides,
    help="N or HEIGHTxWIDTH in pixels  [default: as the first picture]",
)
@method_option
@method_settings_option
@option("--seed", section="Synthesis", default=0, show_default=True, help="Another seed gives another texture.")
def texture(
    pictures: tuple[Path, ...],
    output: Path,
    size: tuple[int, int] | None,
    method: str,
    seed: int,
    settings: dict[str, Any],
) -> None:
    """Make one texture from whole pictures.

    The texture of grey PICTURES is grey. EXIF orientation is applied and transparency dropped. efros-leung and
    wei-levoy compare every new pixel with every pixel of the pictures: large pictures take minutes to hours.
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
    say(f"{output}: {height}x{width} from {source} by {method} in {made.seconds:.1f} s; {figures}")


COMMANDS = (texture,)
