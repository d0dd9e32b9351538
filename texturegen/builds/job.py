"""One job = one shard: a pure function of (plan, shard number)."""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from texturegen.builds.engines import Stopped
from texturegen.builds.listing import read_paths
from texturegen.builds.recipe import Plan, Recipe, open_planned_source, texture_seed
from texturegen.errors import ImageError, SourceLost, UserError
from texturegen.shards import ShardWriter
from texturegen.sources import Item, Source
from texturegen.storage.image import ENCODINGS, encode_image
from texturegen.texture import cut_patches, synthesize
from texturegen.texture.quality import measure

STAGES = ("read", "synthesise", "quality", "encode", "write")


class Stopwatch(dict[str, float]):
    """Seconds per stage; `lap(stage)` adds what passed since the last lap to it."""

    def __init__(self) -> None:
        super().__init__(dict.fromkeys(STAGES, 0.0))
        self.last = time.perf_counter()

    def lap(self, stage: str) -> None:
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
    """Build shard `number` and return its stats.

    `tick(made, failed)` is called after each image with what it was to give (an image alone counts as one) and whether
    it failed; when it returns False the job leaves nothing behind and raises Stopped.
    `known_failures`: positions that are not to be touched but recorded as failed, each with its reason.
    Raises OSError when the shard cannot be written, or a file of the source not read; UserError when the data set is
    not the planned one, or gone.
    """
    watch = Stopwatch()
    source = open_planned_source(plan, root, read_paths(directory, plan.source["digest"]))
    watch.lap("read")
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
    """Make the samples at `positions` of `source` into shard `number`; for the rest see `run_job`."""
    watch = watch or Stopwatch()
    with ShardWriter(directory, number, plan.fingerprint) as writer:
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
    """Make the first texture, where all images are of one size, so that a recipe that suits none is refused at once.

    Raises UserError. An image that cannot be decoded proves nothing; the next is tried, up to three.
    """
    recipe = plan.recipe
    if recipe.per_image == 0 or not source.one_size:
        return
    for position in range(min(plan.items, 3)):
        try:
            item = source[position]
        except ImageError:
            continue
        _make_texture(recipe, item, 0, Stopwatch())
        return


def _add_sample(writer: ShardWriter, recipe: Recipe, source: Source, position: int, watch: Stopwatch) -> str | None:
    """Read, synthesise, write. A bad image is not added: why, is returned."""
    try:
        item = source[position]
        watch.lap("read")
        made = [_make_texture(recipe, item, index, watch) for index in range(recipe.per_image)]
        image, ext = item.data, item.ext
        if image is None:
            image, ext = encode_image(item.image, recipe.encoding), ENCODINGS[recipe.encoding]
            watch.lap("encode")
    except ImageError as error:
        return error.reason  # the row has the key
    except SourceLost:
        raise
    except UserError as error:
        return str(error)
    finally:
        watch.lap("read")  # of a failure; else nothing has passed
    about = {
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
            [data for data, _ in made],
            item.label,
            texture_ext=ENCODINGS[recipe.encoding],
            members=item.members,
        )
    except ValueError as error:  # a key or a member that no shard can hold
        return str(error)
    for place, columns in zip(places, [columns for _, columns in made] or [{}], strict=True):
        writer.add_row(**about, **place, **columns)
    watch.lap("write")
    return None


def _add_failure(writer: ShardWriter, recipe: Recipe, key: str, position: int, reason: str) -> None:
    method = recipe.method if recipe.per_image else None
    writer.add_row(key=key, position=position, method=method, label=-1, status="failed", error=reason, meta="{}")


def _make_texture(recipe: Recipe, item: Item, index: int, watch: Stopwatch) -> tuple[bytes, dict[str, Any]]:
    seed = texture_seed(recipe.seed, item.key, index)
    image = np.ascontiguousarray(item.image)
    patches, boxes = cut_patches(image, seed, side=recipe.patch_size)
    texture = synthesize(patches, image.shape[:2], recipe.method, seed, **recipe.settings)
    watch.lap("synthesise")
    quality = measure(patches, texture.image, seed, source=texture.source)
    watch.lap("quality")
    data = encode_image(texture.image, recipe.encoding)
    watch.lap("encode")
    columns = {
        "method": recipe.method,
        "seed": seed,
        "patches": [list(box) for box in boxes],
        **asdict(quality),
    }
    return data, columns
