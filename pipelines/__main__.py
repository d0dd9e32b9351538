"""`python -m pipelines run RECIPE`: from images to figures."""

from pathlib import Path
from typing import Any

import click

from texturegen.console import FriendlyGroup, read_pairs


@click.group(cls=FriendlyGroup, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Whole journeys: a recipe in, figures out."""


@main.command()
@click.argument("recipe")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Directory for shards, runs and report.")
@click.option("--root", help="Where the data set's files lie.")
@click.option("--device", default="auto", show_default=True)
@click.option("--set", "changes", multiple=True, callback=read_pairs, help="SECTION.KEY=VALUE, over the recipe's.")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1), help="Runs that train at once.")
def run(recipe: str, out: Path, root: str | None, device: str, changes: dict[str, Any], jobs: int) -> None:
    """Build, train, evaluate and report RECIPE: shapes, cifar10, or the path of a TOML file."""
    from pipelines.recipe import load_recipe
    from pipelines.runner import run as run_journey

    report = run_journey(load_recipe(recipe, changes), out, root, device, jobs)
    print(f"\n{report.read_text()}\nwritten to {report}")


if __name__ == "__main__":
    main(prog_name="python -m pipelines")
