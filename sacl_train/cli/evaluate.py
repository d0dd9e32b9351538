"""The `sacl-eval` command. torch is imported only when a command runs, so `--help` is fast."""

from pathlib import Path
from typing import Any

import click

from sacl_train.cli.command import TorchGroup
from sacl_train.cli.probes import (
    COUNT,
    IMAGES,
    PATH,
    POSITIVE,
    PROBE,
    add_options,
    beside,
    destroy_option,
    finish,
    json_option,
    model_options,
    percent,
    probe_options,
    root_option,
    run_option,
    seed_option,
    size_option,
    tests_option,
)
from sacl_train.cli.robustness import COMMANDS
from sacl_train.cli.subject import subject_options
from texturegen import __version__
from texturegen.console import FriendlyCommand, option


def _parse_rate(context: click.Context, parameter: click.Parameter, value: str) -> float | str:
    try:
        rate = value if value == "sweep" else float(value)
    except ValueError:
        rate = 0.0
    if rate != "sweep" and not float(rate) > 0:
        raise click.BadParameter(f"{value!r} is neither a number above 0 nor sweep")
    return rate


@click.group(cls=TorchGroup)
@click.version_option(__version__)
def eval_main() -> None:
    """Score a trained encoder on labelled images.

    Features are extracted once and kept in RUN/features for all probes.
    """


@eval_main.command()
@probe_options("knn", tests_option)
@destroy_option
@option(
    "--k",
    default=(20, 200),
    show_default=True,
    multiple=True,
    type=COUNT,
    help="Number of neighbours; may be repeated.",
    section=PROBE,
)
@option("--tau", default=0.07, show_default=True, help="Temperature of the votes.", section=PROBE)
def knn(**options: Any) -> None:
    """Weighted k-nearest-neighbour classification.

    Wu et al. 2018, section 3.4. One row of figures per k.
    """
    _evaluate("knn", **options)


@eval_main.command()
@probe_options("linear", tests_option)
@destroy_option
@option("--epochs", default=200, show_default=True, type=COUNT, help="Passes over the training images.", section=PROBE)
@option(
    "--lr",
    default="0.9",
    show_default=True,
    callback=_parse_rate,
    help="Initial learning rate, or sweep to choose it on held-out training images.",
    section=PROBE,
)
@option("--batch-size", default=128, show_default=True, type=COUNT, help="Images per batch.", section=PROBE)
@option("--augment", is_flag=True, help="Train on random crops and flips, encoded anew in each epoch.", section=PROBE)
@seed_option
def linear(**options: Any) -> None:
    """Linear classifier on frozen features, trained by LARS.

    SACL, section 3.2. Features are of whole images and standardised; with --augment they are of random crops and flips,
    as in most papers, and the training images are encoded anew in each epoch.
    """
    _evaluate("linear", **options)


@eval_main.command()
@probe_options("ridge", tests_option)
@destroy_option
@option(
    "--penalty", default=1e-2, show_default=True, type=POSITIVE, help="Ridge penalty per training image.", section=PROBE
)
def ridge(**options: Any) -> None:
    """Ridge regression in closed form, for a quick look."""
    _evaluate("ridge", **options)


@eval_main.command()
@probe_options("finetune", tests_option)
@option(
    "--share",
    "shares",
    default=(0.01, 0.1, 1.0),
    multiple=True,
    show_default=True,
    help="Fraction of the labels, above 0 and at most 1; may be repeated.",
    section=PROBE,
)
@option("--epochs", default=30, show_default=True, type=COUNT, help="Passes over the training images.", section=PROBE)
@option(
    "--lr", default=0.01, show_default=True, type=POSITIVE, help="Initial learning rate of the encoder.", section=PROBE
)
@option(
    "--head-lr",
    default=0.1,
    show_default=True,
    type=POSITIVE,
    help="Initial learning rate of the linear layer.",
    section=PROBE,
)
@option("--batch-size", default=64, show_default=True, type=click.IntRange(2), help="Images per batch.", section=PROBE)
@seed_option
def finetune(run: Path, tests: tuple[str, ...], output: Path | None, **options: Any) -> None:
    """Fine-tune the encoder on 1, 10 and 100 % of the labels.

    The encoder and a linear layer are trained together. The run is not changed.
    """
    from sacl_train.evaluate.finetune import evaluate_finetune

    figures = evaluate_finetune(run, tests=list(tests), **options)
    rows = []
    for row in figures["test"]:
        name = f"{row['split'] or 'images'} ({row['set']})"
        counts = [f"{row['share']:.0%}", str(row["train_images"]), str(row["images"])]
        rows.append([name, *counts, percent(row["top1"], 2)])
    finish(figures, run, output, ["", "labels", "train images", "test images", "top1"], rows)


@eval_main.command()
@subject_options
@option("--images", "--shards", "place", required=True, help=f"Images to encode. {IMAGES}", section="Images")
@add_options(root_option, size_option, *model_options)
@option("--map", "method", default="pca", show_default=True, help="pca, or tsne (needs scikit-learn).", section=PROBE)
@seed_option
@option(
    "--query",
    "queries",
    multiple=True,
    metavar="KEY",
    help="Query image of the sheet; may be repeated  [default: ten, evenly spaced]",
    section=PROBE,
)
@option("--out", type=PATH, help="Write OUT.parquet and OUT.png  [default: RUN/embedding]", section="Output")
@json_option("embed")
def embed(run: Path, out: Path | None, output: Path | None, **options: Any) -> None:
    """Write features, a map and nearest neighbours.

    OUT.parquet has keys, labels, features and a map (x, y); OUT.png is a sheet of query images and their neighbours.
    """
    from sacl_train.evaluate.embed import embed as write_embedding

    figures = write_embedding(run, out=out or beside(run, "embedding"), **options)
    rows = []
    for query in figures["queries"]:
        first, *_ = neighbours = query["neighbours"]
        same_class = sum(neighbour["class"] == query["class"] for neighbour in neighbours)
        nearest = [first["key"], first["class"], f"{first['cosine']:.3f}"]
        rows.append([query["key"], query["class"], *nearest, f"{same_class} of {len(neighbours)}"])
    heads = ["query", "class", "nearest", "class", "cosine", "neighbours of its class"]
    about = f"{figures['images']} images, {figures['dimensions']} dimensions, map by {figures['map']}"
    finish(figures, run, output, heads, rows, below=[about, *figures["files"]])


@eval_main.command()
@run_option
@option("--shards", required=True, help="Shards with textures, as the run was trained on.", section="Images")
@add_options(*model_options, json_option("shortcut"))
def shortcut(run: Path, shards: str, output: Path | None, **options: Any) -> None:
    """Test whether one direction separates textures from images.

    If it does, the loss can discount texture negatives at no cost, and they teach nothing.
    """
    from sacl_train.evaluate.shortcut import evaluate_shortcut

    figures = evaluate_shortcut(run, shards, **options)
    labels = {
        "told_apart": "accuracy, textures against images (chance 50 %)",
        "one_direction": "texture similarity explained by one direction",
        "own_share": "explained by being the image's own texture",
        "own_texture": "cosine of an image to its own texture",
        "other_textures": "cosine of an image to other textures",
        "other_images": "cosine of an image to other images",
    }
    fractions = ("told_apart", "one_direction", "own_share")
    rows = [
        [label, percent(figures[key]) if key in fractions else f"{figures[key]:.3f}"]
        for key, label in labels.items()
        if key in figures
    ]
    finish(figures, run, output, [f"{figures['images']} images", ""], rows)


@eval_main.command(cls=FriendlyCommand)  # needs no torch
@click.argument("runs", nargs=-1, required=True, type=PATH)
@click.option("-o", "--out", required=True, type=PATH, help="HTML file to write.")
def report(runs: tuple[Path, ...], out: Path) -> None:
    """Write an HTML report of RUNS that works offline.

    The report shows curves, the figures of all probes side by side, images, maps and settings.
    """
    from sacl_train.report.page import write_page

    print(write_page(list(runs), out))


def _evaluate(probe: str, run: Path, tests: tuple[str, ...], output: Path | None, **options: Any) -> None:
    from sacl_train.evaluate.probe import evaluate

    figures = evaluate(probe, run, tests=list(tests), **options)
    above = []
    if "sweep" in figures:
        tried = ", ".join(f"{rate:g}: {accuracy:.1%}" for rate, accuracy in figures["sweep"].items())
        above.append(f"learning rate {figures['chosen_lr']:g}, chosen on held-out training images ({tried})")
    known = ("top1", "top5", "texture_decisions", "destroyed")
    columns = [name for name in known if any(name in test for test in figures["test"])]
    rows = [
        [
            f"{test['split'] or 'images'} ({test['set']})",
            test["variant"],
            str(test["images"]),
            *(percent(test.get(column), 2) for column in columns),
        ]
        for test in figures["test"]
    ]
    heads = ["", "", "images", *(column.replace("_", " ") for column in columns)]
    finish(figures, run, output, heads, rows, above=above)


for command in COMMANDS:
    eval_main.add_command(command)
