"""The commands that make shards: `build`, `finish`, `plan`."""

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from texturegen.builds.engines import ENGINES
from texturegen.cli.options import METHODS_HELP, SOURCES_HELP, read_settings
from texturegen.console import KEPT, Progress, emit, fail, plural
from texturegen.errors import UserError
from texturegen.system.threads import count_cpus

FAILED_IMAGES = 3  # exit status of a build that finished without some images
ENGINES_HELP = "; ".join(f"{name}: {entry.help}" for name, entry in ENGINES.items()) + "."


def read_part(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, int] | None:
    """Callback of I/N, 1 <= I <= N."""
    if text is None:
        return None
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise click.BadParameter(f"{text!r} is not I/N with I from 1 to N", context, parameter)
    return int(i), int(n)


def recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that decide the bytes: the fields of `build.Recipe`, and where the images lie."""
    options = (
        click.option("--dataset", required=True, metavar="NAME", help=SOURCES_HELP),
        click.option("--root", help="Where the data set's files lie (all but shapes)."),
        click.option("--split", help="train, test, ...; what there is depends on the data set."),
        click.option("--method", default="coherent", show_default=True, help=METHODS_HELP),
        click.option("--size", type=int, help="Bring images to this side: short side resized, centre cropped."),
        click.option("--per-image", default=1, show_default=True, help="Textures per image; 0 writes images alone."),
        click.option(
            "--patch-size", type=int, help="Side of the two patches  [default: half the short side, at most 96]"
        ),
        click.option("--encoding", default="png", show_default=True, help="Of what is written: png, webp or jpeg."),
        click.option("--limit", type=int, help="Only the first N images."),
        click.option("--seed", default=0, show_default=True),
        click.option(
            "--shard-size",
            default=1000,
            show_default=True,
            help="Images per shard. A shard is the work of one worker at a time.",
        ),
        click.option(
            "--method-option", "settings", multiple=True, callback=read_settings, help="KEY=VALUE for the method."
        ),
        click.option(
            "--classes",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="imagenet100: a list of WordNet ids; webdataset: class names; one a line.",
        ),
        click.option(
            "--source-option",
            "source_options",
            multiple=True,
            callback=read_settings,
            help="KEY=VALUE for the data set.",
        ),
        click.option("--workers", type=click.IntRange(1), help="Processes  [default: the cores at hand]"),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Directory for the shards.")
@recipe_options
@click.option("--download", is_flag=True, help="Fetch the data set's official files into --root.")
@click.option("--engine", default="processes", show_default=True, help=ENGINES_HELP)
@click.option("--ray-address", help="Of the cluster for --engine ray  [default: $RAY_ADDRESS]")
@click.option(
    "--retry-failed", is_flag=True, help="Make the shards in which images failed again, of a finished build too."
)
@click.option(
    "--shard-range",
    "part",
    metavar="I/N",
    callback=read_part,
    help="Only the I-th of N parts, I from 1: for job arrays. `texturegen finish` joins them.",
)
@click.option("--log-json", is_flag=True, help="Progress and result as JSON lines on stdout.")
def build(
    out: Path,
    root: str | None,
    download: bool,
    workers: int | None,
    engine: str,
    ray_address: str | None,
    part: tuple[int, int] | None,
    retry_failed: bool,
    log_json: bool,
    **recipe: Any,
) -> None:
    """Build shards. Run the same command again to resume; it never does a finished shard twice.

    Exit status 3: finished, but some images could not be used (the manifest says which and why).
    """
    import texturegen.builds as building

    bars: list[Progress] = []

    def progress(total: int, already: int) -> Progress:
        bars.append(Progress(total, "textures" if recipe["per_image"] else "images", already, log_json))
        return bars[0]

    options = {} if ray_address is None else {"address": ray_address}
    try:
        result = building.build(
            _read_recipe(**recipe), out, root, download, workers, engine, options, part, retry_failed, progress
        )
    except UserError as error:
        if log_json:
            emit("error", out=str(out), message=str(error))
        raise
    except OSError as error:  # a full disk, most often
        message = f"{error.filename or out}: {error.strerror or error}; {KEPT} to go on"
        if log_json:
            emit("error", out=str(out), message=message)
        fail(message)
    finally:
        for bar in bars:
            bar.close()
    _print_result(out, result, log_json)


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--log-json", is_flag=True, help="The result as a JSON line on stdout.")
def finish(directory: Path, log_json: bool) -> None:
    """Join what a job array (`build --shard-range`) has made, once all its parts have ended."""
    import texturegen.builds as building

    _print_result(directory, building.finish(directory), log_json)


@click.command()
@recipe_options
@click.option("--seconds", default=10.0, show_default=True, help="How long to try.")
@click.option("--log-json", is_flag=True, help="The result as a JSON line on stdout.")
def plan(root: str | None, workers: int | None, seconds: float, log_json: bool, **recipe: Any) -> None:
    """Say what a build of these options would take: images, shards, bytes, CPU hours, wall time. Writes nothing.

    Made of a short trial on images spread over the set, with all workers at work.
    """
    from texturegen.builds.trial import estimate

    made = estimate(_read_recipe(**recipe), root, workers or count_cpus(), seconds)
    if log_json:
        emit("plan", **asdict(made))
        return
    lines = {
        "images": f"{made.images:,}",
        "textures": f"{made.textures:,}",
        "shards": f"{made.shards:,}",
        "size": f"{made.bytes / 1e9:,.1f} GB" if made.bytes >= 1e9 else f"{made.bytes / 1e6:,.1f} MB",
        "CPU time": f"{made.cpu_hours:,.3g} hours",
        "wall time": f"{_duration(made.wall_seconds)} with {plural(made.workers, 'worker')}",
        "tried": f"{plural(made.tried, 'image')}, {made.failed} failed",
    }
    for name, value in lines.items():
        print(f"{name:11}{value}")


def _read_recipe(classes: Path | None, source_options: dict[str, Any], **fields: Any) -> Any:
    """The build.Recipe of what `recipe_options` read; --classes is short for a source option."""
    from texturegen.builds import Recipe

    if classes is not None:
        source_options = {**source_options, "classes": str(classes)}
    return Recipe(source_options=source_options, **fields)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _print_result(out: Path, result: Any, as_json: bool) -> None:
    """Print what a build made, and leave with FAILED_IMAGES when it made less than it was to."""
    counts = result.counts
    if as_json:
        event = "finished" if result.missing is None else "part"
        failures = [{"key": key, "error": error} for key, error in result.failures]
        missing = result.missing or 0
        emit(event, out=str(out), **counts, missing_shards=missing, seconds=result.seconds, failures=failures)
    else:
        print(f"{out}: {counts['samples']} images, {counts['textures']} textures, {counts['failed']} failed")
    if result.missing is not None:
        others = (
            f"{plural(result.missing, 'shard')} of other parts to come" if result.missing else "all shards are there"
        )
        print(f"{others}; then: texturegen finish {out}", file=sys.stderr)
    if counts.get("ignored"):
        print(f"left out, not images by their extension: {plural(counts['ignored'], 'file')}", file=sys.stderr)
    for key, error in result.failures:
        print(f"failed: {key}: {error}", file=sys.stderr)
    if counts["failed"]:
        print(
            f"error: {plural(counts['failed'], 'image')} failed; the manifest has them all, with reasons; "
            "`texturegen build ... --retry-failed` tries them again",
            file=sys.stderr,
        )
        sys.exit(FAILED_IMAGES)


COMMANDS = (build, finish, plan)
