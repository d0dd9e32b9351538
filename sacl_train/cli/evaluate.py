"""The `sacl-eval` command. torch is imported only when a command runs, so `--help` is fast."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from sacl_train.cli.subject import subject_options
from sacl_train.nets.encoder_file import EncoderFile
from texturegen import __version__
from texturegen.console import FriendlyGroup, warn
from texturegen.storage.atomic import write_atomically

IMAGES = "Shards, a folder of class folders, or DATASET:SPLIT."
POSITIVE = click.FloatRange(0, min_open=True)
COUNT = click.IntRange(1)
PATH = click.Path(path_type=Path)

Option = Callable[[Any], Any]

run_option = click.option("--run", required=True, type=PATH, help="Directory of `sacl-train`, or a checkpoint in it.")
train_option = click.option("--train", "--shards", "train", required=True, help=f"Labelled training images. {IMAGES}")
tests_option = click.option(
    "--test", "--test-shards", "tests", required=True, multiple=True, help="Labelled test images; may be repeated."
)
test_option = click.option("--test", "--test-shards", "test", required=True, help="Labelled test images.")
root_option = click.option("--root", type=PATH, help="Directory of the DATASET's files.")
size_option = click.option(
    "--size", type=COUNT, help="Resize images to this side, in pixels; those of shards only with --encoder."
)
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
network_option = click.option(
    "--network",
    default="online",
    show_default=True,
    help="Encoder to evaluate: online, or target for its moving average.",
)
statistics_option = click.option(
    "--norm-statistics",
    default="auto",
    show_default=True,
    help="BatchNorm statistics: images, estimated on whole training images; training, the running averages of the "
    "training; auto: images for a run, training for an encoder of another program.",
)
destroy_option = click.option("--destroy", is_flag=True, help="Also score the test images with shuffled cells (4x4).")
model_options = (device_option, network_option, statistics_option)
seed_option = click.option("--seed", default=0, show_default=True, help="Seed of the random numbers.")
probe_epochs_option = click.option(
    "--epochs", default=200, show_default=True, type=COUNT, help="Epochs of the linear probe."
)


def _json_option(name: str) -> Option:
    return click.option("--json", "output", type=PATH, help=f"JSON file  [default: RUN/eval-{name}.json]")


def _options(*options: Option) -> Option:
    """Return a decorator that adds options to a command, in this order."""

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _probe_options(name: str, *tests: Option) -> Option:
    """Return a decorator that adds the options of a probe with labelled training images."""
    return _options(subject_options, train_option, *tests, root_option, size_option, *model_options, _json_option(name))


def _parse_rate(context: click.Context, parameter: click.Parameter, value: str) -> float | str:
    try:
        rate = value if value == "sweep" else float(value)
    except ValueError:
        rate = 0.0
    if rate != "sweep" and not float(rate) > 0:
        raise click.BadParameter(f"{value!r} is neither a number above 0 nor sweep")
    return rate


@click.group(cls=FriendlyGroup)
@click.version_option(__version__)
def eval_main() -> None:
    """Score a trained encoder on labelled images.

    Features are extracted once and kept in RUN/features for all probes.
    """


@eval_main.command()
@_probe_options("knn", tests_option)
@destroy_option
@click.option(
    "--k",
    default=(20, 200),
    show_default=True,
    multiple=True,
    type=COUNT,
    help="Number of neighbours; may be repeated.",
)
@click.option("--tau", default=0.07, show_default=True, help="Temperature of the votes.")
def knn(**options: Any) -> None:
    """Weighted k-nearest-neighbour classification.

    Wu et al. 2018, section 3.4. One row of figures per k.
    """
    _evaluate("knn", **options)


@eval_main.command()
@_probe_options("linear", tests_option)
@destroy_option
@click.option("--epochs", default=200, show_default=True, type=COUNT, help="Passes over the training images.")
@click.option(
    "--lr",
    default="0.9",
    show_default=True,
    callback=_parse_rate,
    help="Initial learning rate, or sweep to choose it on held-out training images.",
)
@click.option("--batch-size", default=128, show_default=True, type=COUNT, help="Images per batch.")
@click.option("--augment", is_flag=True, help="Train on random crops and flips, encoded anew in each epoch.")
@seed_option
def linear(**options: Any) -> None:
    """Linear classifier on frozen features, trained by LARS.

    SACL, section 3.2. Features are of whole images and standardised; with --augment they are of random crops and flips,
    as in most papers, which takes an encoding of the training images per epoch.
    """
    _evaluate("linear", **options)


@eval_main.command()
@_probe_options("ridge", tests_option)
@destroy_option
@click.option("--penalty", default=1e-2, show_default=True, type=POSITIVE, help="Ridge penalty per training image.")
def ridge(**options: Any) -> None:
    """Ridge regression in closed form, for a quick look."""
    _evaluate("ridge", **options)


@eval_main.command("shape-bias")
@_probe_options("shape-bias")
@click.option("--stimuli", required=True, help="Folder of CLASS/SHAPE<k>-TEXTURE<k>.png, or shapes:conflict.")
@probe_epochs_option
@seed_option
def shape_bias(run: Path, output: Path | None, **options: Any) -> None:
    """Shape bias of a linear probe on cue-conflict stimuli.

    Geirhos et al. 2019. Only stimuli with both shape and texture among the training classes are
    scored.
    """
    from sacl_train.evaluate.shape_bias import evaluate_shape_bias

    figures = evaluate_shape_bias(run, **options)
    rows = [
        [name, str(row["stimuli"]), *(_percent(row[key]) for key in ("shape_decisions", "texture_decisions", "bias"))]
        for name, row in {"all": figures, **figures["classes"]}.items()
    ]
    _finish(figures, run, output, ["shape", "stimuli", "shape decisions", "texture decisions", "bias"], rows)


@eval_main.command()
@_probe_options("corruption", test_option)
@click.option("--images", type=COUNT, help="Number of test images, evenly spaced over the set  [default: all]")
@click.option(
    "--severities",
    default=(1, 2, 3, 4, 5),
    multiple=True,
    type=click.IntRange(1, 5),
    show_default=True,
    help="Severity of the corruptions; may be repeated.",
)
@probe_epochs_option
@seed_option
def corruption(run: Path, output: Path | None, **options: Any) -> None:
    """Error of a linear probe under fifteen corruptions.

    Hendrycks & Dietterich 2019.
    """
    from sacl_train.evaluate.corruption import evaluate_corruption

    figures = evaluate_corruption(run, **options)
    rows = [[name, *map(_percent, errors)] for name, errors in figures["errors"].items()]
    means = f"clean {figures['clean_error']:.1%}, mean of all corruptions {figures['mean_error']:.1%}"
    _finish(figures, run, output, ["error by severity", *map(str, figures["severities"])], rows, below=[means])


@eval_main.command()
@_probe_options("finetune", tests_option)
@click.option(
    "--share",
    "shares",
    default=(0.01, 0.1, 1.0),
    multiple=True,
    show_default=True,
    help="Fraction of the labels, above 0 and at most 1; may be repeated.",
)
@click.option("--epochs", default=30, show_default=True, type=COUNT, help="Passes over the training images.")
@click.option("--lr", default=0.01, show_default=True, type=POSITIVE, help="Initial learning rate of the encoder.")
@click.option(
    "--head-lr", default=0.1, show_default=True, type=POSITIVE, help="Initial learning rate of the linear layer."
)
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(2), help="Images per batch.")
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
        rows.append([name, *counts, _percent(row["top1"], 2)])
    _finish(figures, run, output, ["", "labels", "train images", "test images", "top1"], rows)


@eval_main.command()
@_probe_options("ood", test_option)
@click.option("--ood", multiple=True, help=f"Out-of-distribution images; may be repeated. {IMAGES}")
@click.option("--textures", is_flag=True, help="The textures of the test shards are an out-of-distribution set too.")
@click.option("--k", default=50, show_default=True, type=COUNT, help="Neighbour whose distance is the score knn.")
@probe_epochs_option
@seed_option
def ood(run: Path, ood: tuple[str, ...], output: Path | None, **options: Any) -> None:
    """Detect images of other sets by four scores.

    Distance to the k-th neighbour (Sun et al. 2022), Mahalanobis distance (Lee et al. 2018), CSI's score (Tack et al.
    2020) and the largest softmax of a linear probe. --test is the in-distribution set, --train the reference.
    """
    from sacl_train.evaluate.ood import evaluate_ood

    figures = evaluate_ood(run, ood=list(ood), **options)
    rows = [
        [
            row["set"] if row["split"] is None else f"{row['split']} ({row['set']})",
            row["variant"],
            str(row["images"]),
            *(_percent(row[key]) for key in ("auroc", "aupr", "fpr95")),
        ]
        for row in figures["test"]
    ]
    inside = f"in-distribution: {figures['in_distribution']}, {figures['in_distribution_images']} images"
    heads = ["out of distribution", "score", "images", "AUROC", "AUPR", "FPR@95"]
    _finish(figures, run, output, heads, rows, above=[inside])


@eval_main.command()
@subject_options
@click.option("--images", "--shards", "place", required=True, help=f"Images to encode. {IMAGES}")
@_options(root_option, size_option, *model_options)
@click.option("--map", "method", default="pca", show_default=True, help="pca, or tsne (needs scikit-learn).")
@seed_option
@click.option(
    "--query",
    "queries",
    multiple=True,
    metavar="KEY",
    help="Query image of the sheet; may be repeated  [default: ten, evenly spaced]",
)
@click.option("--out", type=PATH, help="Write OUT.parquet and OUT.png  [default: RUN/embedding]")
@_json_option("embed")
def embed(run: Path, out: Path | None, output: Path | None, **options: Any) -> None:
    """Write features, a map and nearest neighbours.

    OUT.parquet has keys, labels, features and a map (x, y); OUT.png is a sheet of query images and their neighbours.
    """
    from sacl_train.evaluate.embed import embed as write_embedding

    figures = write_embedding(run, out=out or _beside(run, "embedding"), **options)
    rows = []
    for query in figures["queries"]:
        first, *_ = neighbours = query["neighbours"]
        same_class = sum(neighbour["class"] == query["class"] for neighbour in neighbours)
        nearest = [first["key"], first["class"], f"{first['cosine']:.3f}"]
        rows.append([query["key"], query["class"], *nearest, f"{same_class} of {len(neighbours)}"])
    heads = ["query", "class", "nearest", "class", "cosine", "neighbours of its class"]
    about = f"{figures['images']} images, {figures['dimensions']} dimensions, map by {figures['map']}"
    _finish(figures, run, output, heads, rows, below=[about, *figures["files"]])


@eval_main.command()
@run_option
@click.option("--shards", required=True, help="Shards with textures, as the run was trained on.")
@_options(*model_options, _json_option("shortcut"))
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
        [label, _percent(figures[key]) if key in fractions else f"{figures[key]:.3f}"]
        for key, label in labels.items()
        if key in figures
    ]
    _finish(figures, run, output, [f"{figures['images']} images", ""], rows)


@eval_main.command()
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
            *(_percent(test.get(column), 2) for column in columns),
        ]
        for test in figures["test"]
    ]
    heads = ["", "", "images", *(column.replace("_", " ") for column in columns)]
    _finish(figures, run, output, heads, rows, above=above)


def _finish(
    figures: dict[str, Any],
    run: Path,
    output: Path | None,
    heads: list[str],
    rows: list[list[str]],
    above: Sequence[str] = (),
    below: Sequence[str] = (),
) -> None:
    """Write the figures as JSON, with the command and the package versions; then print them as a table."""
    from sacl_train.evaluate.norm import default_statistics
    from sacl_train.report.figures import describe_probe, provenance

    variant = "-target" if figures["network"] == "target" else ""
    statistics = figures["norm_statistics"]
    is_default = statistics in ("none", default_statistics(isinstance(run, EncoderFile)))
    variant += "" if is_default else f"-{statistics}-statistics"
    output = output or _beside(run, f"eval-{figures['probe']}{variant}.json")
    write_atomically(output, json.dumps({**figures, **provenance("sacl-eval")}, indent=2) + "\n")
    trained, planned = figures["trained_epochs"], figures["planned_epochs"]
    if trained < planned:
        warn(f"{run} is not finished: trained for {trained} of {planned} epochs")
    print(f"{run}: {figures['encoder']}, texture role {figures['texture_role']}, trained for {trained} epochs")
    print(f"{figures['probe']}: {describe_probe(figures)}")
    for line in above:
        print(line)
    _print_table(heads, rows)
    for line in (*below, f"written to {output}"):
        print(line)


def _beside(run: Path | EncoderFile, name: str) -> Path:
    """Return RUN/NAME; for a checkpoint such as RUN/best.pt, with `-best` inserted before the suffix."""
    from sacl_train.training.checkpoint import directory_of, is_checkpoint

    if isinstance(run, EncoderFile):
        return run.results / name
    path, checkpoint = Path(name), f"-{run.stem}" if is_checkpoint(run) else ""
    return directory_of(run) / f"{path.stem}{checkpoint}{path.suffix}"


def _percent(value: float | None, places: int = 1) -> str:
    return "-" if value is None else f"{value:.{places}%}"


def _print_table(heads: list[str], rows: list[list[str]]) -> None:
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    for row in [heads, *rows]:
        first, *rest = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print(first, *rest, sep="  ")
