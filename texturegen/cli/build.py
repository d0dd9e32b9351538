"""The commands that make shards: `build`, `finish` and `plan`."""

import errno
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from texturegen.builds.engines import ENGINES
from texturegen.cli.recipe_options import read_recipe, recipe_options
from texturegen.console import (
    KEPT,
    FriendlyCommand,
    Progress,
    emit,
    error_events,
    escape_controls,
    explain_denial,
    note,
    option,
    plural,
    say,
)
from texturegen.errors import UserError
from texturegen.system.threads import count_cpus

MAX_IGNORED = 3  # ignored files that are named
FAILED_IMAGES = 3  # exit status of a build that finished without some of the images


def read_part(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, int] | None:
    """Callback of an option I/N with 1 <= I <= N."""
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    i, n = map(int, found.groups()) if found else (0, 0)
    if not 1 <= i <= n:
        raise click.BadParameter(f"{text!r} is not I/N with I from 1 to N", context, parameter)
    return i, n


@click.command(cls=FriendlyCommand)
@recipe_options
@option("--out", section="Shards", required=True, type=click.Path(path_type=Path), help="Directory to write.")
@option(
    "--download/--no-download",
    section="Execution",
    default=None,
    help="Download the data set's official files that are missing  [default: only without --root]",
)
@option(
    "--engine",
    section="Execution",
    default="processes",
    show_default=True,
    metavar="NAME",
    registry=ENGINES,
    help="What runs the workers.",
)
@option(
    "--ray-address",
    section="Execution",
    help="Address of the Ray cluster, for --engine ray  [default: $RAY_ADDRESS]",
)
@option(
    "--retry-failed",
    section="Execution",
    is_flag=True,
    help="Rebuild the shards with failed images, even of a finished build.",
)
@option(
    "--shard-range",
    "part",
    section="Execution",
    metavar="I/N",
    callback=read_part,
    help="Build only part I of N, counted from 1, for job arrays; `texturegen finish` joins the parts.",
)
@option("--log-json", section="Execution", is_flag=True, help="Print progress and result on stdout as JSON lines.")
def build(
    out: Path,
    root: str | None,
    download: bool | None,
    workers: int | None,
    engine: str,
    ray_address: str | None,
    part: tuple[int, int] | None,
    retry_failed: bool,
    log_json: bool,
    **recipe: Any,
) -> None:
    """Build shards of images and textures, or resume a build.

    Run the same command again after an interruption: finished shards are kept. The same options give the same bytes,
    whatever the number of workers.

    Exit status 3 means that the build is finished, but some images failed; the manifest lists them with the reason.
    """
    import texturegen.builds as building

    bars: list[Progress] = []

    def progress(total: int, already: int) -> Progress:
        bars.append(Progress(total, "textures" if recipe["per_image"] else "images", already, log_json))
        return bars[0]

    options = {} if ray_address is None else {"address": ray_address}
    try:
        with error_events(log_json, out=str(out)), _advice_on_files(out):
            result = building.build(
                read_recipe(**recipe), out, root, download, workers, engine, options, part, retry_failed, progress
            )
    finally:
        for bar in bars:
            bar.close()
    _print_result(out, result, log_json)


@click.command(cls=FriendlyCommand)
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--log-json", is_flag=True, help="Print the result on stdout as a line of JSON.")
def finish(directory: Path, log_json: bool) -> None:
    """Join the parts of a job array (build --shard-range).

    Run it once, after all parts have ended.
    """
    import texturegen.builds as building

    with error_events(log_json, out=str(directory)):
        result = building.finish(directory)
    _print_result(directory, result, log_json)


@click.command(cls=FriendlyCommand)
@recipe_options
@option("--seconds", section="Execution", default=10.0, show_default=True, help="Duration of the trial.")
@option("--log-json", section="Execution", is_flag=True, help="Print the result on stdout as a line of JSON.")
def plan(root: str | None, workers: int | None, seconds: float, log_json: bool, **recipe: Any) -> None:
    """Estimate the size and duration of a build.

    Runs all workers for a few seconds on images from the whole data set, and prints the number of images and shards,
    bytes, CPU hours and wall time. Writes nothing.
    """
    from texturegen.builds.trial import estimate

    with error_events(log_json):
        made = estimate(read_recipe(**recipe), root, workers or count_cpus(), seconds)
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


@contextmanager
def _advice_on_files(out: Path) -> Iterator[None]:
    """Raise UserError, which says what to do, for an error of a build's file: most often the disk is full."""
    try:
        yield
    except OSError as error:
        advice = f"{KEPT} to resume"
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            denial = explain_denial(error) or "make the directory writable for this user"
            advice = f"{denial} or choose another --out"
        raise UserError(f"{error.filename or out}: {error.strerror or error}; {advice}") from None


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _print_result(out: Path, result: Any, as_json: bool) -> None:
    """Print the result of a build, and exit with FAILED_IMAGES if images failed."""
    counts = result.counts
    if as_json:
        event = "finished" if result.missing is None else "part"
        failures = [{"key": key, "error": error} for key, error in result.failures]
        missing = result.missing or 0
        figures = {**counts, "missing_shards": missing, "seconds": result.seconds}
        emit(event, out=str(out), **figures, failures=failures, ignored_files=list(result.ignored))
    else:
        say(f"{out}: {counts['samples']} images, {counts['textures']} textures, {counts['failed']} failed")
    if result.missing is not None:
        others = f"{plural(result.missing, 'shard')} of other parts missing" if result.missing else "all shards exist"
        hint = f"{others}; when all parts have ended: texturegen finish {shlex.quote(str(out))}"
        print(escape_controls(hint), file=sys.stderr)
    if not as_json and result.missing is None:
        _note_mixed(out)
    if counts.get("ignored"):
        names = ", ".join(map(escape_controls, result.ignored[:MAX_IGNORED]))
        more = ", ..." if counts["ignored"] > MAX_IGNORED else ""
        named = f": {names}{more}" if names else ""
        kind = "not an image" if counts["ignored"] == 1 else "not images"
        print(f"ignored {plural(counts['ignored'], 'file')} ({kind}){named}", file=sys.stderr)
    for key, error in result.failures:
        print(f"failed: {key}: {escape_controls(error)}", file=sys.stderr)
    if counts["failed"]:
        print(
            f"error: {plural(counts['failed'], 'image')} failed; the manifest lists them with the reasons; "
            "`texturegen build ... --retry-failed` tries them again",
            file=sys.stderr,
        )
        sys.exit(FAILED_IMAGES)


def _note_mixed(out: Path) -> None:
    """Say if images have several extensions: readers that look for one of them would skip the others."""
    from texturegen.shards.card import describe_kinds, read_contents
    from texturegen.shards.layout import MANIFEST

    kinds = describe_kinds(read_contents(out / MANIFEST))
    if kinds is not None:
        note(f"images are of several types ({kinds}); for readers that expect one, build with --one-kind")


COMMANDS = (build, finish, plan)
