"""Command line: `python -m pipelines run RECIPE` goes from images to figures; `table3` and the like run a grid."""

from pathlib import Path
from typing import Any

import click

import sacl_train.extra  # noqa: F401 (says what to install)
from pipelines.grids import GRIDS, SCALES
from texturegen.console import FriendlyGroup, read_pairs

DEVICE = "Device; several, separated by commas (cuda:0,cuda:1), each train one run at a time."


@click.group(cls=FriendlyGroup)
def main() -> None:
    """Run a recipe from images to figures, or reproduce a table of the paper."""


@main.command(short_help="Build, train, evaluate and report a recipe.")
@click.argument("recipe")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Directory for shards, runs and reports.")
@click.option("--root", help="Directory of the images, for sets that name none.")
@click.option("--device", default="auto", show_default=True, help=DEVICE)
@click.option(
    "--set", "changes", multiple=True, callback=read_pairs, metavar="SECTION.KEY=VALUE", help="Override the recipe."
)
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1), help="Runs to train at once.")
def run(recipe: str, out: Path, root: str | None, device: str, changes: dict[str, Any], jobs: int) -> None:
    """Build, train, evaluate and report RECIPE.

    RECIPE is shapes, cifar10, cifar100, stl10, imagenet100 or the path of a TOML file.
    """
    from pipelines.recipe import load_recipe
    from pipelines.runner import run as run_journey

    reports = run_journey(load_recipe(recipe, changes), out, root, device, jobs)
    print(f"\n{reports.markdown.read_text('utf-8')}")
    for path in reports:
        if path is not None:
            print(f"report: {path}")


def _add_grid(name: str) -> None:
    @main.command(name, help=GRIDS[name].__doc__)
    @click.option("--scale", default="tiny", show_default=True, type=click.Choice(list(SCALES)))
    @click.option("--out", required=True, type=click.Path(path_type=Path), help="Directory for shards, runs and table.")
    @click.option("--root", help="Directory of the data sets' files.")
    @click.option("--stimuli", help="Folder of cue-conflict stimuli, for the shape bias (only negatives).")
    @click.option("--device", default="auto", show_default=True, help=DEVICE)
    @click.option("--seeds", type=click.IntRange(1), help="Runs per cell.  [default: 2 at scale tiny, else 3]")
    @click.option("--jobs", default=1, show_default=True, type=click.IntRange(1), help="Runs to train at once.")
    @click.option("--only", multiple=True, metavar="NAME", help="Run only this row or column; may be repeated.")
    @click.option(
        "--set", "changes", multiple=True, callback=read_pairs, metavar="KEY=VALUE", help="Override a training setting."
    )
    def run_one(scale: str, out: Path, only: tuple[str, ...], changes: dict[str, Any], **options: Any) -> None:
        from pipelines.grids import make_grid, narrow
        from pipelines.grids.runner import run_grid

        grid = narrow(make_grid(name, SCALES[scale]), (), changes)
        table = run_grid(grid, SCALES[scale], out, only=only, **options)
        print(f"\n{table.read_text('utf-8')}\nreport: {table}")


for grid_name in GRIDS:
    _add_grid(grid_name)
