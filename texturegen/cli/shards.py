"""The commands on finished shard directories: `info`, `preview`, `verify`, `repair`, `merge`, `split`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from texturegen.console import Progress, fail, plural
from texturegen.system.threads import count_cpus

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
@click.argument("directory", type=click.Path(path_type=Path))
def info(directory: Path) -> None:
    """Print what a shard directory holds."""
    import pyarrow.compute as pc

    from texturegen.shards import open_shards
    from texturegen.shards.layout import QUALITY

    shards = open_shards(directory)
    recipe, counts = shards.build["recipe"], {"ignored": 0, **shards.build["counts"]}
    sizes = sorted(set(zip(shards.heights.tolist(), shards.widths.tolist(), strict=True)))
    size = f"{sizes[0][1]}x{sizes[0][0]}" if len(sizes) == 1 else f"{len(sizes)} sizes"
    lines = {
        "data set": f"{recipe['dataset']}, split {recipe['split']}, {len(shards.classes)} classes",
        "images": f"{counts['samples']} of {size} px, {counts['failed']} failed, {counts['ignored']} files ignored",
        "textures": f"{counts['textures']} ({recipe['per_image']} per image), {recipe['method']} {recipe['settings']}",
        "shards": f"{len(shards.build['shards'])}, {sum(s['bytes'] for s in shards.build['shards']) / 1e6:.1f} MB",
        "seed": recipe["seed"],
        "versions": ", ".join(f"{name} {number}" for name, number in shards.build["versions"].items()),
    }
    if counts["textures"]:
        medians = {name: pc.quantile(shards.manifest[name], 0.5)[0].as_py() for name in QUALITY}
        lines["quality"] = ", ".join(f"{name} {value:.3g}" for name, value in medians.items()) + " (medians)"
    for name, value in lines.items():
        print(f"{name:10}{value}")


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The PNG to write.")
@click.option("--count", default=24, show_default=True, type=click.IntRange(1), help="Images, evenly over the set.")
def preview(directory: Path, output: Path, count: int) -> None:
    """Write a contact sheet: each image beside its textures."""
    import numpy as np

    from texturegen.cli.sheet import contact_sheet
    from texturegen.shards import open_shards
    from texturegen.storage.atomic import write_atomically
    from texturegen.storage.image import encode_png

    shards = open_shards(directory)
    if not len(shards):
        fail(f"{directory}: holds no images")
    shards_label = shards.classes
    picked = [shards[i] for i in np.unique(np.linspace(0, len(shards) - 1, min(count, len(shards))).astype(int))]
    captions = [shards_label[s.label] if 0 <= s.label < len(shards_label) else s.key for s in picked]
    sheet = contact_sheet([[s.image, *s.textures] for s in picked], captions, columns=4)
    write_atomically(output, encode_png(sheet))
    print(f"{output}: {len(picked)} images of {len(shards)}")


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
    from texturegen.builds.repair import repair as repair_shards

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


COMMANDS = (info, preview, verify, repair, merge, split)
