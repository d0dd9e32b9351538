"""The job of a build: write one shard. Its bytes are a pure function of the plan and the shard's number."""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from texturegen.builds.engines import Stopped
from texturegen.builds.listing import read_listing
from texturegen.builds.recipe import Plan, Recipe, open_planned_source, texture_seed
from texturegen.errors import ImageError, SourceLost, UserError
from texturegen.shards import ShardWriter
from texturegen.shards.layout import BOX, MASK, PASTED
from texturegen.sources import Item, Source
from texturegen.storage.image import ENCODING_OF, ENCODINGS, encode_image
from texturegen.storage.names import to_text
from texturegen.texture import find_method

MAX_TRIED = 3  # images that `try_first` reads
STAGES = ("read", "synthesise", "quality", "encode", "write")


class Stopwatch(dict[str, float]):
    """Seconds per stage of STAGES."""

    def __init__(self) -> None:
        super().__init__(dict.fromkeys(STAGES, 0.0))
        self.last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Add the time since the previous lap to a stage."""
        now = time.perf_counter()
        self[stage] += now - self.last
        self.last = now


def run_job(
    plan: Plan,
    root: str | None,
    directory: Path,
    known_failures: Mapping[int, str],
    number: int,
    tick: Callable[[int, int], bool],
) -> dict[str, Any]:
    """Build shard `number` of a plan.

    Parameters
    ----------
    plan : Plan
        The plan.
    root : str or None
        Directory of the data set's files.
    directory : Path
        Where to write; see `directory.prepare_jobs`.
    known_failures : mapping of int to str
        Positions of images to record as failed without trying them, with the reason.
    number : int
        Number of the shard.
    tick : callable
        Called before the first image with (0, 0), and after each image with (textures made, images failed); an image
        without textures counts as one made. The job stops when it returns False.

    Returns
    -------
    dict
        The stats of the shard, see `ShardWriter.commit`.

    Raises
    ------
    Stopped
        `tick` returned False. No file is left behind.
    OtherBuildError
        The data set is not the planned one.
    SourceLost
        The data set cannot be reached.
    OSError
        The shard cannot be written, or a file of the source cannot be read.
    """
    watch = Stopwatch()
    source = open_planned_source(plan, root, read_listing(directory, plan.source))
    watch.lap("read")
    if plan.recipe.per_image:
        _load_kernels(plan.recipe)
        watch.lap("synthesise")
    if not tick(0, 0):  # from here on, an image may be the cause if this process dies
        raise Stopped
    return write_shard(plan, source, directory, number, plan.positions(number), known_failures, tick, watch)


def write_shard(
    plan: Plan,
    source: Source,
    directory: Path,
    number: int,
    positions: Iterable[int],
    known_failures: Mapping[int, str],
    tick: Callable[[int, int], bool],
    watch: Stopwatch | None = None,
) -> dict[str, Any]:
    """Write the samples at `positions` of an open source as shard `number`; see `run_job`."""
    watch = watch or Stopwatch()
    with ShardWriter(directory, number, plan.fingerprint, plan.prefix) as writer:
        for position in positions:
            failure = known_failures.get(position)
            if failure is None:
                failure = _add_sample(writer, plan.recipe, source, position, watch)
            if failure is not None:
                _add_failure(writer, plan.recipe, source.key(position), position, failure)
            if not tick(max(plan.recipe.per_image, 1), int(failure is not None)):
                raise Stopped
        return writer.commit(watch)


def try_first(plan: Plan, source: Source) -> None:
    """Make one texture, so that a recipe that fits no image of the data set is refused before anything is written.

    Does nothing if the images differ in size. If an image cannot be decoded, the next one is tried, up to three.

    Raises
    ------
    UserError
        The recipe does not fit the images.
    """
    recipe = plan.recipe
    if recipe.per_image == 0 or not source.one_size:
        return
    for position in range(min(plan.items, MAX_TRIED)):
        try:
            item = source[position]
        except ImageError:
            continue
        _make_texture(recipe, item, 0, Stopwatch())
        return


def _add_sample(writer: ShardWriter, recipe: Recipe, source: Source, position: int, watch: Stopwatch) -> str | None:
    """Add one sample to the shard; return the reason if it fails, None otherwise."""
    try:
        item = source[position]
        watch.lap("read")
        made = [_make_texture(recipe, item, index, watch) for index in range(recipe.per_image)]
        members = {**item.members}
        for _, _, pasted in made:
            repeated = next(filter(members.__contains__, pasted), None)
            if repeated:
                raise ImageError(item.key, f"its tar has a member {repeated} already; build without --paste")
            members |= pasted
        image, ext = item.data, item.ext
        if image is None or recipe.one_kind not in (None, ext):
            kind = recipe.one_kind or ENCODINGS[recipe.encoding]
            image, ext = encode_image(item.image, ENCODING_OF[kind]), kind
            watch.lap("encode")
    except ImageError as error:
        return error.reason  # without the key, which the manifest row holds
    except SourceLost:
        raise
    except UserError as error:
        return str(error)
    finally:
        watch.lap("read")  # after a failure, its time; otherwise zero
    columns = {
        "key": item.key,
        "position": position,
        "label": item.label,
        "width": item.image.shape[1],
        "height": item.image.shape[0],
        "status": "ok",
        "meta": json.dumps(item.meta, sort_keys=True),
    }
    try:
        places = writer.add(
            item.key,
            image,
            ext,
            [data for data, *_ in made],
            item.label,
            texture_ext=ENCODINGS[recipe.encoding],
            members=members,
        )
    except ValueError as error:  # a key or member that the shard format does not allow
        return str(error)
    for place, of_texture in zip(places, [of_texture for _, of_texture, _ in made] or [{}], strict=True):
        writer.add_row(**columns, **place, **of_texture)
    watch.lap("write")
    return None


def _load_kernels(recipe: Recipe) -> None:
    """Import what makes and measures textures: if that takes too much memory, no image is the cause."""
    find_method(recipe.method).load()
    import_module("texturegen.texture.quality")


def _add_failure(writer: ShardWriter, recipe: Recipe, key: str, position: int, reason: str) -> None:
    method = recipe.method if recipe.per_image else None
    error = to_text(reason)  # it may name a file whose name is no text, which Arrow does not take
    writer.add_row(key=key, position=position, method=method, label=-1, status="failed", error=error, meta="{}")


def _make_texture(
    recipe: Recipe, item: Item, index: int, watch: Stopwatch
) -> tuple[bytes, dict[str, Any], dict[str, bytes]]:
    """Return texture `index` of an image, encoded, its manifest columns, and the members of `--paste`."""
    # Imported on use: a build without textures loads no kernels.
    from texturegen.texture import cut_patches, synthesize
    from texturegen.texture.paste import paste_texture
    from texturegen.texture.quality import measure

    seed = texture_seed(recipe.seed, item.key, index)
    image = np.ascontiguousarray(item.image)
    patches, boxes = cut_patches(image, seed, recipe.patches, recipe.patch_size, recipe.patches_from)
    texture = synthesize(patches, image.shape[:2], recipe.method, seed, **recipe.settings)
    watch.lap("synthesise")
    quality = measure(patches, texture.image, seed, source=texture.source)
    watch.lap("quality")
    data = encode_image(texture.image, recipe.encoding)
    members = {}
    if recipe.paste:
        pasted, mask = paste_texture(image, texture.image, seed)
        members[f"{PASTED}{index}.{ENCODINGS[recipe.encoding]}"] = encode_image(pasted, recipe.encoding)
        members[f"{MASK}{index}.png"] = encode_image(mask)  # never lossy
    watch.lap("encode")
    columns = {
        "method": recipe.method,
        "seed": seed,
        "patches": [dict(zip(BOX, box, strict=True)) for box in boxes],
        **asdict(quality),
    }
    return data, columns, members
