"""One job = one shard: a pure function of (plan, shard number)."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from texturegen.build.engine import Stopped
from texturegen.build.recipe import Plan, Recipe, open_recipe_source, texture_seed
from texturegen.errors import UserError
from texturegen.images import encode_png
from texturegen.shards import ShardWriter
from texturegen.sources import ImageError, Item, Source
from texturegen.texture import cut_patches, synthesize
from texturegen.texture.quality import measure


def run_job(plan: Plan, root: str | None, directory: Path, number: int, tick: Callable[[int], bool]) -> dict[str, Any]:
    """Build shard `number` and return its stats.

    `tick(textures)` is called after each image with what it was to give (an image alone counts as one); when it
    returns False the job leaves nothing behind and raises Stopped.
    """
    source = open_recipe_source(plan.recipe, root, check=False)
    with ShardWriter(directory, number, plan.fingerprint) as writer:
        for position in plan.positions(number):
            _add_sample(writer, plan.recipe, source, position)
            if not tick(max(plan.recipe.per_image, 1)):
                raise Stopped
        return writer.commit()


def try_first(plan: Plan, root: str | None) -> None:
    """Make the first texture, where all images are of one size, so that a recipe that suits none is refused at once.

    Raises UserError. An image that cannot be decoded proves nothing; the next is tried, up to three.
    """
    recipe = plan.recipe
    source = open_recipe_source(recipe, root, check=False)
    if recipe.per_image == 0 or not source.one_size:
        return
    for position in range(min(plan.items, 3)):
        try:
            item = source[position]
        except ImageError:
            continue
        _make_texture(recipe, item, 0)
        return


def _add_sample(writer: ShardWriter, recipe: Recipe, source: Source, position: int) -> None:
    """Read, synthesise, write; a bad image becomes a row with its error."""
    key = source.key(position)
    try:
        item = source[position]
        made = [_make_texture(recipe, item, index) for index in range(recipe.per_image)]
        image = encode_png(item.image) if item.data is None else item.data
    except (UserError, OSError) as error:
        # OSError: the source's file vanished or cannot be read. The writer's own are not caught here.
        row = {"key": key, "position": position, "method": recipe.method if recipe.per_image else None}
        reason = error.reason if isinstance(error, ImageError) else str(error)  # the row has the key
        writer.add_row(**row, label=-1, status="failed", error=reason, meta="{}")
        return
    about = {
        "key": key,
        "position": position,
        "label": item.label,
        "width": item.image.shape[1],
        "height": item.image.shape[0],
        "status": "ok",
        "meta": json.dumps(item.meta, sort_keys=True),
    }
    places = writer.add(key, image, item.ext, [data for data, _ in made], item.label)
    for place, columns in zip(places, [columns for _, columns in made] or [{}], strict=True):
        writer.add_row(**about, **place, **columns)


def _make_texture(recipe: Recipe, item: Item, index: int) -> tuple[bytes, dict[str, Any]]:
    seed = texture_seed(recipe.seed, item.key, index)
    image = np.ascontiguousarray(item.image)
    patches, boxes = cut_patches(image, seed, side=recipe.patch_size)
    texture = synthesize(patches, image.shape[:2], recipe.method, seed, **recipe.settings)
    quality = measure(patches, texture.image, seed, source=texture.source)
    columns = {
        "method": recipe.method,
        "seed": seed,
        "patches": [list(box) for box in boxes],
        **asdict(quality),
    }
    return encode_png(texture.image), columns
