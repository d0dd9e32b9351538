"""What the commands of `sacl-eval` share: options of probes, and the JSON file and the table of their figures."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from sacl_train.cli.subject import ENCODER, subject_options
from sacl_train.nets.encoder_file import EncoderFile
from texturegen.console import option, plural, say, warn

IMAGES = "Shards, a folder of class folders, or DATASET:SPLIT."
POSITIVE = click.FloatRange(0, min_open=True)
COUNT = click.IntRange(1)
PATH = click.Path(path_type=Path)
PROBE = "Probe"  # section of --help with a command's own options

Option = Callable[[Any], Any]

run_option = option(
    "--run", required=True, type=PATH, help="Directory of `sacl-train`, or a checkpoint in it.", section=ENCODER
)
train_option = option(
    "--train", "--shards", "train", required=True, help=f"Labelled training images. {IMAGES}", section="Images"
)
tests_option = option(
    *("--test", "--test-shards", "tests"),
    required=True,
    multiple=True,
    help="Labelled test images; may be repeated.",
    section="Images",
)
test_option = option("--test", "--test-shards", "test", required=True, help="Labelled test images.", section="Images")
root_option = option("--root", type=PATH, help="Directory of the DATASET's files.", section="Images")
size_option = option(
    "--size",
    type=COUNT,
    help="Resize images to this side, in pixels; those of shards only with --encoder.",
    section="Images",
)
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
network_option = option(
    "--network",
    default="online",
    show_default=True,
    help="Encoder to evaluate: online, or target for its moving average.",
    section=ENCODER,
)
statistics_option = option(
    "--norm-statistics",
    default="auto",
    show_default=True,
    help="BatchNorm statistics. images: estimated on whole training images; training: the running averages; auto: "
    "images for a run, training for an encoder of another program.",
    section=ENCODER,
)
destroy_option = option(
    "--destroy", is_flag=True, help="Also score the test images with shuffled cells (4x4).", section="Images"
)
model_options = (device_option, network_option, statistics_option)
seed_option = option("--seed", default=0, show_default=True, help="Seed of the random numbers.", section=PROBE)
probe_epochs_option = option(
    "--epochs", default=200, show_default=True, type=COUNT, help="Epochs of the linear probe.", section=PROBE
)


def json_option(name: str) -> Option:
    return option("--json", "output", type=PATH, help=f"JSON file  [default: RUN/eval-{name}.json]", section="Output")


def add_options(*options: Option) -> Option:
    """Return a decorator that adds options to a command, in this order."""

    def add(command: Any) -> Any:
        for add_one in reversed(options):
            command = add_one(command)
        return command

    return add


def probe_options(name: str, *tests: Option) -> Option:
    """Return a decorator that adds the options of a probe with labelled training images."""
    return add_options(
        subject_options, train_option, *tests, root_option, size_option, *model_options, json_option(name)
    )


def finish(
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
    from sacl_train.report.figures import describe_probe, provenance, write_figures

    variant = "-target" if figures["network"] == "target" else ""
    statistics = figures["norm_statistics"]
    is_default = statistics in ("none", default_statistics(isinstance(run, EncoderFile)))
    variant += "" if is_default else f"-{statistics}-statistics"
    output = output or beside(run, f"eval-{figures['probe']}{variant}.json")
    write_figures(output, {**figures, **provenance("sacl-eval")})
    trained, planned = figures["trained_epochs"], figures["planned_epochs"]
    if trained < planned:
        warn(f"{run} is not finished: trained for {trained} of {planned} epochs")
    say(f"{run}: {figures['encoder']}, texture role {figures['texture_role']}, trained for {plural(trained, 'epoch')}")
    print(f"{figures['probe']}: {describe_probe(figures)}")
    for line in above:
        print(line)
    _print_table(heads, rows)
    for line in (*below, f"written to {output}"):
        print(line)


def beside(run: Path | EncoderFile, name: str) -> Path:
    """Return RUN/NAME; for a checkpoint such as RUN/best.pt, with `-best` inserted before the suffix."""
    from sacl_train.training.checkpoint import directory_of, is_checkpoint

    if isinstance(run, EncoderFile):
        return run.results / name
    path, checkpoint = Path(name), f"-{run.stem}" if is_checkpoint(run) else ""
    return directory_of(run) / f"{path.stem}{checkpoint}{path.suffix}"


def percent(value: float | None, places: int = 1) -> str:
    return "-" if value is None else f"{value:.{places}%}"


def _print_table(heads: list[str], rows: list[list[str]]) -> None:
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    for row in [heads, *rows]:
        first, *rest = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print(first, *rest, sep="  ")
