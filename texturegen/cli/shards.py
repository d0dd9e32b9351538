"""The commands on finished shard directories: `info`, `preview`, `verify`, `repair`, `merge`, `split` and `index`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from texturegen.cli.options import ROOT_HELP, WORKERS
from texturegen.console import FriendlyCommand, Progress, fail, plural, say
from texturegen.system.threads import count_cpus

MAX_NAMED = 4  # files that `index` names
DIRECTORY = click.Path(path_type=Path)


@contextmanager
def _counting(total: int | None, unit: str) -> Iterator[Progress]:
    progress = Progress(total, unit)
    try:
        yield progress
    finally:
        progress.close()


@contextmanager
def _all_or_nothing() -> Iterator[None]:
    """On Ctrl-C, say that nothing was written: `merge` and `split` move complete directories into place."""
    try:
        yield
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        sys.exit(130)


@click.command(cls=FriendlyCommand)
@click.argument("directory")
def info(directory: str) -> None:
    """Summarise shards: counts, sizes, recipe, quality.

    DIRECTORY may be a URL.
    """
    from texturegen.shards import open_shards
    from texturegen.shards.card import count_contents

    shards = open_shards(directory)
    recipe, counts = shards.build["recipe"], {"ignored": 0, **shards.build["counts"]}
    sizes = sorted(set(zip(shards.heights.tolist(), shards.widths.tolist(), strict=True)))
    size = f"{sizes[0][1]}x{sizes[0][0]}" if len(sizes) == 1 else f"{len(sizes)} sizes"
    lines = {
        "data set": f"{recipe.get('dataset')}, split {recipe.get('split')}, {len(shards.classes)} classes",
        "images": f"{counts['samples']} of {size} px, {counts['failed']} failed, {counts['ignored']} files ignored",
        "textures": f"{counts['textures']} ({recipe['per_image']} per image), {recipe.get('method')} "
        f"{recipe.get('settings')}",
        "shards": f"{len(shards.build['shards'])}, {sum(s['bytes'] for s in shards.build['shards']) / 1e6:.1f} MB",
        "seed": recipe.get("seed"),
        "versions": ", ".join(f"{name} {number}" for name, number in shards.build.get("versions", {}).items()),
    }
    contents = count_contents([shards.manifest])
    for name, kinds in (("image types", contents.images), ("texture types", contents.textures)):
        if kinds:
            lines[name] = ", ".join(f"{number} {ext}" for ext, number in kinds.items())
    if contents.medians:
        lines["quality"] = ", ".join(f"{name} {value:.3g}" for name, value in contents.medians.items()) + " (medians)"
    width = max(map(len, lines)) + 2
    for name, value in lines.items():
        print(f"{name:{width}}{value}")


@click.command(cls=FriendlyCommand)
@click.argument("directory")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="PNG file to write.")
@click.option("--count", default=24, show_default=True, type=click.IntRange(1), help="Number of images, evenly spaced.")
def preview(directory: str, output: Path, count: int) -> None:
    """Draw a contact sheet of images and their textures.

    DIRECTORY may be a URL. Images larger than 256 pixels are reduced; small ones are enlarged without smoothing.
    """
    import numpy as np

    from texturegen.cli.sheet import contact_sheet
    from texturegen.shards import open_shards
    from texturegen.storage.atomic import write_atomically
    from texturegen.storage.image import encode_png

    shards = open_shards(directory)
    if not len(shards):
        fail(f"{directory}: holds no images")
    names = shards.classes
    picked = [shards[i] for i in np.unique(np.linspace(0, len(shards) - 1, min(count, len(shards))).astype(int))]
    captions = [names[s.label] if 0 <= s.label < len(names) else s.key for s in picked]
    sheet = contact_sheet([[s.image, *s.textures] for s in picked], captions, columns=4)
    write_atomically(output, encode_png(sheet))
    say(f"{output}: {len(picked)} of {len(shards)} images")


@click.command(cls=FriendlyCommand)
@click.argument("directory", type=DIRECTORY)
@click.option("--deep", is_flag=True, help="Decode every image too, and compare its size with the manifest.")
@click.option("--workers", type=WORKERS, help="Number of threads  [default: one per CPU]")
def verify(directory: Path, deep: bool, workers: int | None) -> None:
    """Check the checksums and contents of all shards.

    Reads every shard once. Every fault is one line on stderr; exit status 1 means that there are faults. A line says
    what was not checked. `repair` rebuilds damaged shards.
    """
    from texturegen.shards.verify import inspect

    try:
        with _counting(None, "images") as progress:
            report = inspect(directory, progress, workers, deep)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    faults = [fault for of_file in report.faults.values() for fault in of_file]
    for fault in faults:
        print(fault, file=sys.stderr)
    if faults:
        fail(f"{directory}: {plural(len(faults), 'fault')}")
    for sentence in report.unchecked:
        say(f"{directory}: {sentence}")
    say(f"{directory}: no faults found")


@click.command(cls=FriendlyCommand)
@click.argument("directory", type=DIRECTORY)
@click.option("--root", help=ROOT_HELP)
@click.option("--workers", type=WORKERS, help="Number of processes  [default: one per CPU]")
def repair(directory: Path, root: str | None, workers: int | None) -> None:
    """Verify, and rebuild damaged or missing shards.

    Intact shards are not touched. Needs the data set and the package versions of the build. Exit status 1 means that
    faults remain.
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
        say(f"{directory / name}: rebuilt; its SHA-256 is that of build.json")
    for fault in result.faults:
        print(fault, file=sys.stderr)
    if result.faults:
        fail(f"{directory}: {plural(len(result.faults), 'fault')} that cannot be repaired")
    if not result.rebuilt:
        say(f"{directory}: no faults found")


@click.command(cls=FriendlyCommand)
@click.argument("directories", nargs=-1, required=True, type=DIRECTORY)
@click.option("-o", "--out", required=True, type=DIRECTORY, help="New directory to write.")
@click.option("--shard-size", type=click.IntRange(1), help="Images per shard  [default: as in the first directory]")
def merge(directories: tuple[Path, ...], out: Path, shard_size: int | None) -> None:
    """Join shard directories into a new one.

    The DIRECTORIES are joined in the order given, and images and textures are copied byte for byte. All must have the
    same classes and the same number of textures per image, and no key may occur twice.
    """
    from texturegen.shards.merge import merge as merge_shards

    with _all_or_nothing(), _counting(None, "images") as progress:
        counts = merge_shards(directories, out, shard_size, progress)
    _print_counts(out, counts)


@click.command(cls=FriendlyCommand)
@click.argument("directory", type=DIRECTORY)
@click.option("-o", "--out", required=True, type=DIRECTORY, help="New directory for the selected images.")
@click.option("--rest", type=DIRECTORY, help="New directory for the other images  [default: not written]")
@click.option("--filter", "where", metavar="TEXT", help='Condition on manifest columns, such as "completeness < 12".')
@click.option("--share", type=float, help="Select this fraction of the images at random, between 0 and 1.")
@click.option("--seed", default=0, show_default=True, help="Seed of --share.")
@click.option("--shard-size", type=click.IntRange(1), help="Images per shard  [default: as in DIRECTORY]")
def split(
    directory: Path,
    out: Path,
    rest: Path | None,
    where: str | None,
    share: float | None,
    seed: int,
    shard_size: int | None,
) -> None:
    """Copy selected images and their textures to a new directory.

    Select with --filter or with --share. A filter combines column names, numbers, 'strings', comparisons, in, is None,
    and, or, not. An image is selected if all its textures pass; a comparison with a null is false.
    """
    from texturegen.shards.merge import split as split_shards

    if (where is None) == (share is None):
        raise click.UsageError("give either --filter or --share")
    with _all_or_nothing(), _counting(None, "images") as progress:
        made = split_shards(
            directory, out, rest, where=where, share=share, seed=seed, shard_size=shard_size, progress=progress
        )
    for target, counts in zip((out, rest), made, strict=False):
        _print_counts(target, counts)


@click.command(cls=FriendlyCommand)
@click.argument("directory", type=DIRECTORY)
@click.option(
    "--for",
    "names",
    required=True,
    metavar="NAME,...",
    help="dali, wids, timm, energon, hf (Hugging Face datasets), croissant; separate several with commas.",
)
def index(directory: Path, names: str) -> None:
    """Write the small files that other readers want.

    They are made from the manifest and build.json, without reading a tar. `verify` compares them with the manifest.
    """
    from texturegen.shards.index import write_indexes

    paths = write_indexes(directory, [name.strip() for name in names.split(",")])
    named = ", ".join(str(path.relative_to(directory)) for path in paths[:MAX_NAMED])
    more = f" and {len(paths) - MAX_NAMED} more" if len(paths) > MAX_NAMED else ""
    say(f"{directory}: wrote {named}{more}")


def _print_counts(out: Path | None, counts: dict[str, int]) -> None:
    say(f"{out}: {counts['samples']} images, {counts['textures']} textures, {counts['failed']} failed")


COMMANDS = (info, preview, verify, repair, merge, split, index)
