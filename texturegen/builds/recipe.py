"""What is to be built: the recipe, and the plan it gives on one data set.

Everything that decides a byte of the shards is in here; workers, engines and places are not.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from texturegen import __version__
from texturegen.errors import UserError, nearest
from texturegen.shards.layout import FORMAT
from texturegen.sources import Listing, Source, find_entry, open_source
from texturegen.storage.image import ENCODINGS
from texturegen.texture import resolve_settings

# Packages that decide bytes; recorded, so that a difference between two machines can be explained.
RECORDED = ("numpy", "numba", "opencv-python-headless", "pyarrow")


@dataclass(frozen=True)
class Recipe:
    """A build, apart from where its images lie and who does the work.

    Attributes
    ----------
    dataset, split, source_options : what `texturegen.sources.open_source` takes; split None is the source's default.
    size : side in pixels to which images are brought; None keeps the data set's own.
    method, settings : of `texturegen.synthesize`.
    per_image : K, textures per image; 0 writes images alone.
    patch_size : side of the patches in pixels; None: half the short side, at most 96 (SACL §3.2, Ge et al. 2021).
    limit : only the first so many images; None is all.
    seed : every texture's seed is derived from it, the image's key and the texture's number.
    shard_size : images per shard.
    encoding : of the textures, and of the images that have no file of their own: a key of `images.ENCODINGS`.
    """

    dataset: str
    split: str | None = None
    source_options: dict[str, Any] = field(default_factory=dict)
    size: int | None = None
    method: str = "coherent"
    settings: dict[str, Any] = field(default_factory=dict)
    per_image: int = 1
    patch_size: int | None = None
    limit: int | None = None
    seed: int = 0
    shard_size: int = 1000
    encoding: str = "png"


@dataclass(frozen=True)
class Plan:
    """A recipe resolved on its data set: `items` images in `shards` shards."""

    recipe: Recipe
    items: int
    source: dict[str, Any]

    @property
    def shards(self) -> int:
        return -(-self.items // self.recipe.shard_size)

    def positions(self, number: int) -> range:
        """Positions in the data set of the images of shard `number`."""
        size = self.recipe.shard_size
        return range(number * size, min((number + 1) * size, self.items))

    def describe(self) -> dict[str, Any]:
        """The recipe and the data set as `build.json` records them; two equal descriptions give equal bytes."""
        return {
            "format": FORMAT,
            "recipe": asdict(self.recipe),
            "source": self.source,
            "texturegen": __version__,
        }

    @classmethod
    def from_description(cls, content: dict[str, Any]) -> "Plan":
        """The plan that described itself so. Raises KeyError or TypeError when something else did."""
        return cls(Recipe(**content["recipe"]), content["source"]["items"], content["source"])

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()


def open_recipe_source(
    recipe: Recipe, root: str | None, download: bool = False, check: bool = True, listing: Listing | None = None
) -> Source:
    find_entry(recipe.dataset, recipe.source_options)  # or an option might pass for one of open_source's
    return open_source(
        recipe.dataset,
        root=root,
        split=recipe.split,
        size=recipe.size,
        download=download,
        check=check,
        listing=listing,
        **recipe.source_options,
    )


def open_planned_source(plan: Plan, root: str | None, paths: Sequence[str] | None = None) -> Source:
    """Open the data set of a plan in a process that need not check it again.

    paths : what `listing.read_paths` gives of a source of files; with it nothing is searched.
    Raises UserError where the data set is not the one that was planned.
    """
    listing = None if paths is None else Listing(paths, plan.source["classes"])
    source = open_recipe_source(plan.recipe, root, check=False, listing=listing)
    if len(source) < plan.items or (listing is None and source.digest != plan.source["digest"]):
        raise UserError(
            f"data set '{plan.recipe.dataset}': its images are not those that this build began with; put them back as "
            "they were and run the same command again, or build into another directory"
        )
    return source


def make_plan(recipe: Recipe, root: str | None = None, download: bool = False) -> tuple[Plan, Source]:
    """Open the data set once, with its checks, and fill in every default of the recipe.

    Returns the plan and the open data set.
    Raises UserError for anything the recipe or the data set has wrong.
    """
    for name, least in (("per_image", 0), ("seed", 0), ("shard_size", 1), ("limit", 1), ("patch_size", 1)):
        value = getattr(recipe, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")
    if recipe.encoding not in ENCODINGS:
        close = nearest(recipe.encoding, ENCODINGS)
        raise UserError(f"unknown encoding '{recipe.encoding}'{close}; there are: {', '.join(ENCODINGS)}")
    settings = resolve_settings(recipe.method, recipe.settings)
    source = open_recipe_source(recipe, root, download)
    options = dict(recipe.source_options)
    if options.get("classes") is not None:
        options["classes"] = list(source.classes)  # what the file holds decides the bytes, not where it lies
    recipe = replace(recipe, split=source.split, settings=settings, source_options=options)
    items = len(source) if recipe.limit is None else min(recipe.limit, len(source))
    about = {"name": source.name, "split": source.split, "items": items, "classes": list(source.classes)}
    about["digest"] = source.digest
    return Plan(recipe, items, about), source


def texture_seed(seed: int, key: str, index: int) -> int:
    """The seed of one texture: 0 <= value < 2**63, a hash of the build's seed, the image's key and the number."""
    digest = hashlib.blake2b(f"{seed}/{key}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
