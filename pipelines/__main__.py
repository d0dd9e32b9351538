"""`python -m pipelines run RECIPE`: from images to figures; `python -m pipelines table3` ...: a grid of them."""

from pathlib import Path
from typing import Any

import click

from texturegen.console import FriendlyGroup, read_pairs

GRID_NAMES = ("table3", "table4", "table5", "table6", "table7", "figure7", "negatives")
SCALE_NAMES = ("tiny", "small", "paper")
DEVICE = "Or several: cuda:0,cuda:1 has a run at a time on each."


@click.group(cls=FriendlyGroup, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Whole journeys: a recipe in, figures out."""


@main.command()
@click.argument("recipe")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Directory for shards, runs and report.")
@click.option("--root", help="Where the data set's files lie.")
@click.option("--device", default="auto", show_default=True, help=DEVICE)
@click.option("--set", "changes", multiple=True, callback=read_pairs, help="SECTION.KEY=VALUE, over the recipe's.")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1), help="Runs that train at once.")
def run(recipe: str, out: Path, root: str | None, device: str, changes: dict[str, Any], jobs: int) -> None:
    """Build, train, evaluate and report RECIPE: shapes, cifar10, cifar100, stl10, imagenet100, or a TOML file."""
    from pipelines.recipe import load_recipe
    from pipelines.runner import run as run_journey

    report = run_journey(load_recipe(recipe, changes), out, root, device, jobs)
    print(f"\n{report.read_text()}\nwritten to {report}")


def _grid_command(name: str) -> None:
    help_text = {"negatives": "What the negatives do: the ablation that the paper lacks."}
    number = name.removeprefix("table").removeprefix("figure")
    text = help_text.get(name, f"The paper's {name.removesuffix(number)} {number}, ours beside it.")

    @main.command(name, help=text)
    @click.option("--scale", default="tiny", show_default=True, type=click.Choice(SCALE_NAMES))
    @click.option("--out", required=True, type=click.Path(path_type=Path), help="Directory for shards, runs and table.")
    @click.option("--root", help="Where the data sets' files lie.")
    @click.option("--stimuli", help="Cue-conflict stimuli, for the shape bias.")
    @click.option("--device", default="auto", show_default=True, help=DEVICE)
    @click.option("--seeds", type=click.IntRange(1), help="[default: 2 tiny, else 3]")
    @click.option("--jobs", default=1, show_default=True, type=click.IntRange(1), help="Cells at once.")
    @click.option("--only", multiple=True, help="Rows or columns with this name alone; may be given again.")
    @click.option("--set", "changes", multiple=True, callback=read_pairs, help="KEY=VALUE of every run.")
    def run_one(scale: str, out: Path, only: tuple[str, ...], changes: dict[str, Any], **options: Any) -> None:
        from pipelines.grid_runner import run_grid
        from pipelines.grids import SCALES, make_grid, narrow

        grid = narrow(make_grid(name, SCALES[scale]), (), changes)
        table = run_grid(grid, SCALES[scale], out, only=only, **options)
        print(f"\n{table.read_text()}\nwritten to {table}")


for grid_name in GRID_NAMES:
    _grid_command(grid_name)

if __name__ == "__main__":
    main(prog_name="python -m pipelines")
