"""Commands that build and repair in their own process, where `texturegen` itself starts workers."""

from pathlib import Path

import click

from tests.texturegen.builds.test_directory import RECIPE
from texturegen.builds import build as build_shards
from texturegen.builds.repair import repair as repair_shards
from texturegen.console import FriendlyCommand

PATH = click.Path(path_type=Path)


@click.command(cls=FriendlyCommand)
@click.argument("root", type=PATH)
@click.argument("out", type=PATH)
@click.option("--retry-failed", is_flag=True)
def build(root: Path, out: Path, retry_failed: bool) -> None:
    build_shards(RECIPE, out, root=str(root), retry_failed=retry_failed)


@click.command(cls=FriendlyCommand)
@click.argument("root", type=PATH)
@click.argument("out", type=PATH)
def repair(root: Path, out: Path) -> None:
    repair_shards(out, root=str(root), workers=0)
