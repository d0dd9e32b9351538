"""The group of all commands."""

import click

from texturegen import __version__
from texturegen.cli import build, shards, texture
from texturegen.console import FriendlyGroup


@click.group(cls=FriendlyGroup)
@click.version_option(__version__)
def main() -> None:
    """Synthesise texture images (hard negatives) from the images of a data set.

    Images and textures are written together as WebDataset shards.
    """


for command in (*build.COMMANDS, *texture.COMMANDS, *shards.COMMANDS):
    main.add_command(command)
