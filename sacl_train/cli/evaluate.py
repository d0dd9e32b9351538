"""The `sacl-eval` command. torch is imported when the work begins: `--help` answers at once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from texturegen import __version__
from texturegen.console import FriendlyGroup, warn
from texturegen.storage.atomic import write_atomically

HELP = {"help_option_names": ["-h", "--help"]}
PLACE = "Shards, a folder of class folders, or DATASET:SPLIT."


@click.group(cls=FriendlyGroup, context_settings=HELP)
@click.version_option(__version__)
def eval_main() -> None:
    """Score a trained encoder on labelled images.

    Features are extracted once and kept in RUN/features, for whatever probe comes next.
    """


def common_options(tests: str) -> Callable[[Any], Any]:
    """Options that probes share; tests: "many", "one" or "none" test sets."""
    options = [
        click.option(
            "--run",
            required=True,
            type=click.Path(path_type=Path),
            help="Directory of `sacl-train`, or a checkpoint in it.",
        ),
        click.option("--train", "--shards", "train", required=True, help=f"Labelled training images. {PLACE}"),
        click.option("--root", type=click.Path(path_type=Path), help="Where the files of a DATASET lie."),
        click.option("--size", type=click.IntRange(1), help="Side in pixels of images that are not in shards."),
        click.option("--device", default="auto", show_default=True),
        click.option("--json", "output", type=click.Path(path_type=Path), help="[default: RUN/eval-PROBE.json]"),
    ]
    if tests == "many":
        text = "Test images; may be given again."
        options.insert(2, click.option("--test", "--test-shards", "tests", required=True, multiple=True, help=text))
    if tests == "one":
        options.insert(2, click.option("--test", "--test-shards", "test", required=True, help="Test images."))

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


epochs_option = click.option("--epochs", default=200, show_default=True, type=click.IntRange(1))
destroy_option = click.option("--destroy", is_flag=True, help="Score the test images with shuffled cells (4x4) too.")
seed_option = click.option("--seed", default=0, show_default=True)


def _rate(context: click.Context, parameter: click.Parameter, value: str) -> float | str:
    try:
        rate = value if value == "sweep" else float(value)
    except ValueError:
        rate = 0.0
    if rate != "sweep" and not float(rate) > 0:
        raise click.BadParameter(f"{value!r} is neither a number above 0 nor sweep")
    return rate


@eval_main.command()
@common_options("many")
@destroy_option
@click.option("--k", default=(20, 200), show_default=True, multiple=True, type=click.IntRange(1), help="Neighbours.")
@click.option("--tau", default=0.07, show_default=True, help="Temperature of the votes.")
def knn(**options: Any) -> None:
    """Weighted k nearest neighbours (Wu et al. 2018), for each k."""
    _evaluate("knn", **options)


@eval_main.command()
@common_options("many")
@destroy_option
@epochs_option
@click.option(
    "--lr", default="0.9", show_default=True, callback=_rate, help="Or sweep: chosen on held-out training images."
)
@click.option("--batch-size", default=128, show_default=True, type=click.IntRange(1))
@seed_option
def linear(**options: Any) -> None:
    """A linear layer on frozen features, trained by LARS (SACL section 3.2)."""
    _evaluate("linear", **options)


@eval_main.command()
@common_options("many")
@destroy_option
@click.option("--penalty", default=1e-2, show_default=True, type=click.FloatRange(0, min_open=True))
def ridge(**options: Any) -> None:
    """Ridge regression in closed form: a quick look, in seconds."""
    _evaluate("ridge", **options)


@eval_main.command("shape-bias")
@common_options("none")
@click.option("--stimuli", required=True, help="Folder of CLASS/SHAPE<k>-TEXTURE<k>.png, or shapes:conflict")
@click.option("--epochs", default=200, show_default=True, type=click.IntRange(1), help="Of the linear probe.")
@seed_option
def shape_bias(run: Path, output: Path | None, **options: Any) -> None:
    """Does it read shape or texture (Geirhos et al. 2019)? On the cue-conflict stimuli whose classes it knows."""
    from sacl_train.evaluate.shape_bias import evaluate_shape_bias

    figures = evaluate_shape_bias(run, **options)
    output = write_figures(figures, output or beside(run, "eval-shape-bias.json"))
    heads = ["shape", "stimuli", "shape decisions", "texture decisions", "bias"]
    rows = [
        [name, str(row["stimuli"]), *(_percent(row[key]) for key in ("shape_decisions", "texture_decisions", "bias"))]
        for name, row in {"all": figures, **figures["classes"]}.items()
    ]
    _print_table(heads, rows)
    print(f"written to {output}")


@eval_main.command()
@common_options("one")
@click.option("--images", type=click.IntRange(1), help="Of the test set, evenly over it.  [default: all]")
@click.option("--severities", default=(1, 2, 3, 4, 5), multiple=True, type=click.IntRange(1, 5), show_default=True)
@click.option("--epochs", default=200, show_default=True, type=click.IntRange(1), help="Of the linear probe.")
@seed_option
def corruption(run: Path, output: Path | None, **options: Any) -> None:
    """Error of a linear probe under fifteen corruptions (Hendrycks & Dietterich 2019)."""
    from sacl_train.evaluate.corruption import evaluate_corruption

    figures = evaluate_corruption(run, **options)
    output = write_figures(figures, output or beside(run, "eval-corruption.json"))
    rows = [[name, *map(_percent, errors)] for name, errors in figures["errors"].items()]
    _print_table(["error by severity", *map(str, figures["severities"])], rows)
    print(f"clean {figures['clean_error']:.1%}, mean of all corruptions {figures['mean_error']:.1%}")
    print(f"written to {output}")


@eval_main.command()
@common_options("many")
@click.option("--share", "shares", default=(0.01, 0.1, 1.0), multiple=True, show_default=True, help="Of the labels.")
@click.option("--epochs", default=30, show_default=True, type=click.IntRange(1))
@click.option("--lr", default=0.01, show_default=True, type=click.FloatRange(0, min_open=True), help="Encoder's.")
@click.option("--head-lr", default=0.1, show_default=True, type=click.FloatRange(0, min_open=True))
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(2))
@seed_option
def finetune(run: Path, tests: tuple[str, ...], output: Path | None, **options: Any) -> None:
    """Train encoder and a linear layer on 1, 10 and 100 % of the labels. The run is left as it is."""
    from sacl_train.evaluate.finetune import evaluate_finetune

    figures = evaluate_finetune(run, tests=list(tests), **options)
    output = write_figures(figures, output or beside(run, "eval-finetune.json"))
    rows = []
    for row in figures["test"]:
        name = f"{row['split'] or 'images'} ({row['set']})"
        counts = [f"{row['share']:.0%}", str(row["train_images"]), str(row["images"])]
        rows.append([name, *counts, _percent(row["top1"], 2)])
    _print_table(["", "labels", "of images", "test images", "top1"], rows)
    print(f"written to {output}")


@eval_main.command()
@click.option(
    "--run", required=True, type=click.Path(path_type=Path), help="Directory of `sacl-train`, or a checkpoint in it."
)
@click.option("--images", "place", required=True, help=PLACE)
@click.option("--root", type=click.Path(path_type=Path), help="Where the files of a DATASET lie.")
@click.option("--size", type=click.IntRange(1), help="Side in pixels of images that are not in shards.")
@click.option("--device", default="auto", show_default=True)
@click.option("--map", "method", default="pca", show_default=True, help="pca, or tsne (needs scikit-learn)")
@seed_option
@click.option("--query", "queries", multiple=True, metavar="KEY", help="Image of the sheet  [default: ten, evenly]")
@click.option("--out", type=click.Path(path_type=Path), help="[default: RUN/embedding]")
@click.option("--json", "output", type=click.Path(path_type=Path), help="[default: RUN/eval-embed.json]")
def embed(run: Path, out: Path | None, output: Path | None, **options: Any) -> None:
    """Features to Parquet with keys, labels and a map (x, y), and a sheet of nearest neighbours."""
    from sacl_train.evaluate.embed import embed as write_embedding

    figures = write_embedding(run, out=out or beside(run, "embedding"), **options)
    output = write_figures(figures, output or beside(run, "eval-embed.json"))
    rows = []
    for query in figures["queries"]:
        first, *_ = near = query["neighbours"]
        alike = sum(other["class"] == query["class"] for other in near)
        nearest = [first["key"], first["class"], f"{first['cosine']:.3f}"]
        rows.append([query["key"], query["class"], *nearest, f"{alike} of {len(near)}"])
    _print_table(["query", "class", "nearest", "class", "cosine", "neighbours of its class"], rows)
    print(f"{figures['images']} images, {figures['dimensions']} dimensions, map by {figures['map']}")
    print("\n".join(figures["files"]))
    print(f"written to {output}")


@eval_main.command()
@click.option(
    "--run", required=True, type=click.Path(path_type=Path), help="Directory of `sacl-train`, or a checkpoint in it."
)
@click.option("--shards", required=True, help="With textures, as it was trained on.")
@click.option("--device", default="auto", show_default=True)
@click.option("--json", "output", type=click.Path(path_type=Path), help="[default: RUN/eval-shortcut.json]")
def shortcut(run: Path, shards: str, device: str, output: Path | None) -> None:
    """Can it tell textures from images at no cost, so that the negatives teach nothing?"""
    from sacl_train.evaluate.shortcut import evaluate_shortcut

    figures = evaluate_shortcut(run, shards, device)
    output = write_figures(figures, output or beside(run, "eval-shortcut.json"))
    named = {
        "told_apart": "textures told from images (chance 50 %)",
        "one_direction": "of what sets textures apart, in one direction",
        "own_share": "of it, by being one's own texture",
        "own_texture": "cosine of an image to its texture",
        "other_textures": "cosine of an image to others' textures",
        "other_images": "cosine of an image to other images",
    }
    shares = ("told_apart", "one_direction", "own_share")
    rows = [
        [text, _percent(figures[key]) if key in shares else f"{figures[key]:.3f}"]
        for key, text in named.items()
        if key in figures
    ]
    _print_table([f"{figures['images']} images", ""], rows)
    print(f"written to {output}")


@eval_main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The HTML file.")
def report(runs: tuple[Path, ...], out: Path) -> None:
    """One HTML file about RUNS: curves, all probes side by side, pictures, a map, settings. It needs no network."""
    from sacl_train.report.page import write_page

    print(write_page(list(runs), out))


def beside(run: Path, name: str) -> Path:
    """Where a file about a run goes: RUN/NAME; of one of its checkpoints, RUN/best.pt, RUN/NAME with `-best`."""
    from sacl_train.training.checkpoint import directory_of, is_checkpoint

    mark, path = f"-{run.stem}" if is_checkpoint(run) else "", Path(name)
    return directory_of(run) / f"{path.stem}{mark}{path.suffix}"


def write_figures(figures: dict[str, Any], output: Path) -> Path:
    """Write figures with the command and the versions that made them."""
    from sacl_train.report.figures import provenance

    write_atomically(output, json.dumps({**figures, **provenance("sacl-eval")}, indent=2) + "\n")
    return output


def _evaluate(probe: str, run: Path, tests: tuple[str, ...], output: Path | None, **options: Any) -> None:
    from sacl_train.evaluate.probe import evaluate

    figures = evaluate(probe, run, tests=list(tests), **options)
    output = write_figures(figures, output or beside(run, f"eval-{probe}.json"))
    trained, planned = figures["trained_epochs"], figures["planned_epochs"]
    print(f"{run}: {figures['encoder']}, texture role {figures['texture_role']}, trained for {trained} epochs")
    if trained < planned:
        warn(f"{run} is not finished: {trained} of {planned} epochs")
    if "sweep" in figures:
        tried = ", ".join(f"{rate:g}: {hit:.1%}" for rate, hit in figures["sweep"].items())
        print(f"learning rate {figures['chosen_lr']:g}, by held-out training images ({tried})")
    known = ("top1", "top5", "texture_decisions", "destroyed")
    columns = [name for name in known if any(name in test for test in figures["test"])]
    rows = [
        [
            f"{test['split'] or 'images'} ({test['set']})",
            test["variant"],
            str(test["images"]),
            *(_percent(test.get(c), 2) for c in columns),
        ]
        for test in figures["test"]
    ]
    _print_table(["", "", "images", *columns], rows)
    print(f"written to {output}")


def _percent(value: float | None, places: int = 1) -> str:
    return "-" if value is None else f"{value:.{places}%}"


def _print_table(heads: list[str], rows: list[list[str]]) -> None:
    wide = [max(len(line[i]) for line in [heads, *rows]) for i in range(len(heads))]
    for line in [heads, *rows]:
        first, *rest = (
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, wide, strict=True))
        )
        print(first, *rest, sep="  ")
