"""The commands on finished shard directories that check or change them; `cli.py` adds them to `texturegen`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from texturegen.console import Progress, fail, plural
from texturegen.threads import count_cpus

WORKERS = click.IntRange(1)
DIRECTORY = click.Path(path_type=Path)


@contextmanager
def _counting(total: int | None, unit: str) -> Iterator[Progress]:
    progress = Progress(total, unit)
    try:
        yield progress
    finally:
        progress.close()


@contextmanager
def _whole_or_not() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        sys.exit(130)


@click.command()
@click.argument("directory", type=DIRECTORY)
@click.option("--deep", is_flag=True, help="Also decode every image and compare its size with the manifest.")
@click.option("--workers", type=WORKERS, help="Threads  [default: the cores at hand]")
def verify(directory: Path, deep: bool, workers: int | None) -> None:
    """Check checksums, counts and the tars' contents; exit status 1 names each bad member.

    Reads every shard once. `repair` makes bad shards again.
    """
    from texturegen.shards.verify import verify as verify_shards

    try:
        with _counting(None, "images") as progress:
            faults = verify_shards(directory, progress, workers, deep)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    for fault in faults:
        print(fault, file=sys.stderr)
    if faults:
        fail(f"{directory}: {plural(len(faults), 'fault')}")
    print(f"{directory}: all is well")


@click.command()
@click.argument("directory", type=DIRECTORY)
@click.option("--root", help="Where the data set's files lie (all but shapes).")
@click.option("--workers", type=WORKERS, help="Processes  [default: the cores at hand]")
def repair(directory: Path, root: str | None, workers: int | None) -> None:
    """Verify, and build the damaged or missing shards again; the others are not touched.

    Needs the data set and the package versions of the build. Exit status 1: something is wrong still.
    """
    from texturegen.build.repair import repair as repair_shards

    bars: list[Progress] = []

    def progress(total: int) -> Callable[[int, int], object]:
        bars.append(Progress(total, "textures"))
        return lambda made, failed: bars[-1](made)

    bars.append(Progress(None, "images checked"))
    try:
        result = repair_shards(directory, root, workers or count_cpus(), bars[0], progress)
    finally:
        for bar in bars:
            bar.close()
    for name in result.rebuilt:
        print(f"{directory / name}: made again, with the sha256 of build.json")
    for fault in result.faults:
        print(fault, file=sys.stderr)
    if result.faults:
        fail(f"{directory}: {plural(len(result.faults), 'fault')} that no rebuilding mends")
    if not result.rebuilt:
        print(f"{directory}: all is well")


@click.command()
@click.argument("directories", nargs=-1, required=True, type=DIRECTORY)
@click.option("-o", "--out", required=True, type=DIRECTORY, help="The new directory.")
@click.option("--shard-size", type=click.IntRange(1), help="Images per shard  [default: the first directory's]")
def merge(directories: tuple[Path, ...], out: Path, shard_size: int | None) -> None:
    """Join shard DIRECTORIES into a new one, in their order. The bytes of images and textures are copied.

    Their classes and textures per image must be equal, and no key may be in two of them.
    """
    from texturegen.shards.merge import merge as merge_shards

    with _whole_or_not(), _counting(None, "images") as progress:
        counts = merge_shards(directories, out, shard_size, progress)
    _print_counts(out, counts)


@click.command()
@click.argument("directory", type=DIRECTORY)
@click.option("-o", "--out", required=True, type=DIRECTORY, help="The new directory for what is chosen.")
@click.option("--rest", type=DIRECTORY, help="A new directory for all others  [default: they are left out]")
@click.option("--filter", "where", metavar="TEXT", help='Condition on manifest columns: "completeness < 12".')
@click.option("--share", type=float, help="Choose at random so large a part of the images, between 0 and 1.")
@click.option("--seed", default=0, show_default=True, help="Of --share.")
@click.option("--shard-size", type=click.IntRange(1), help="Images per shard  [default: the directory's]")
def split(
    directory: Path,
    out: Path,
    rest: Path | None,
    where: str | None,
    share: float | None,
    seed: int,
    shard_size: int | None,
) -> None:
    """Copy the images of a shard directory that a --filter or a --share chooses, with their textures, to a new one.

    A filter has column names, numbers, 'texts', comparisons, in, is None, and, or, not. An image passes when all its
    textures do. A comparison with a null is false.
    """
    from texturegen.shards.merge import split as split_shards

    if (where is None) == (share is None):
        raise click.UsageError("give --filter or --share, one of the two")
    with _whole_or_not(), _counting(None, "images") as progress:
        made = split_shards(
            directory, out, rest, where=where, share=share, seed=seed, shard_size=shard_size, progress=progress
        )
    for target, counts in zip((out, rest), made, strict=False):
        _print_counts(target, counts)


def _print_counts(out: Path | None, counts: dict[str, int]) -> None:
    print(f"{out}: {counts['samples']} images, {counts['textures']} textures, {counts['failed']} failed")


COMMANDS = (verify, repair, merge, split)
