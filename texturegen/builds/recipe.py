"""Recipes, and the plans they give on a data set.

A plan holds everything that decides a byte of the shards. Workers, engines and directories do not.
"""

import hashlib
import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, get_origin, get_type_hints

from texturegen.errors import OtherBuildError, UserError, nearest
from texturegen.shards.layout import FORMAT, PREFIX, PREFIXES, READABLE
from texturegen.sources import Listing, Source, find_entry, open_source
from texturegen.storage.image import ENCODING_OF, ENCODINGS, MAX_PIXELS
from texturegen.texture import PASTE_VERSION, PATCHES_VERSION, PLACES, QUALITY_VERSION, find_method, resolve_settings

if TYPE_CHECKING:
    from texturegen.sources.tar_listing import TarListing

# Packages whose versions decide bytes. build.json records them, to explain differences between two machines.
RECORDED = ("numpy", "numba", "opencv-python-headless", "pyarrow")
# Versions of what happens to an image outside of `texturegen.texture`. Raise one by hand when its output changes;
# entries for encodings have the name of the encoding. The sources have versions of their own, in their digests.
IMAGE_VERSIONS = {"seeds": 1, "decoding": 1, "resizing": 1, "png": 1, "webp": 1, "jpeg": 1}
# Fields of `Recipe` that build.json of texturegen 0.1.0 lacks, with the value that means what 0.1.0 did.
_ADDED: dict[str, Any] = {
    "short_side": None,
    "patches": None,
    "patches_from": None,
    "paste": False,
    "one_kind": None,
    "prefix": None,
}

_SIDE = math.isqrt(MAX_PIXELS)
# Ranges of the recipe's numbers. Beyond them a build ends after hours, or with all memory used, instead of at once.
_RANGES = {
    "size": (1, _SIDE),
    "short_side": (1, _SIDE),
    "per_image": (0, 10**6),
    "patches": (1, 1000),
    "patch_size": (1, _SIDE),
    "limit": (1, 10**15),
    "seed": (0, 2**63 - 1),
    "shard_size": (1, 10**9),
}


@dataclass(frozen=True)
class Recipe:
    """What to build: everything that decides the bytes, except the images themselves.

    Attributes
    ----------
    dataset : str
        A key of `texturegen.sources.SOURCES`.
    split : str or None
        Split of the data set. None: its default.
    source_options : dict
        Options of the data set, such as `classes`.
    size : int or None
        Side in pixels to which images are resized and cropped. None: keep their sizes.
    short_side : int or None
        Length in pixels to which their short sides are scaled before the crop, at least `size`. None: `size`.
    method : str
        Name of a synthesis method, see `texturegen.synthesize`.
    settings : dict
        Settings of the method; missing ones get its defaults. They are not recorded if `per_image` is 0.
    per_image : int
        K, textures per image, at least 0. 0: write images only.
    patches : int or None
        Number of patches per texture, at least 1: one from the centre of the image, the others from random places.
        None: 2.
    patches_from : str or None
        "corners": cut all patches near corners of the image, where objects are rarest, see `texturegen.cut_patches`.
        None: from the centre and random places.
    patch_size : int or None
        Side of the patches in pixels. None: three tenths of the short side of the image, at least 8 and at most 96.
    paste : bool
        Also write, for each texture, the image with the texture pasted into it, and the mask of that place; see
        `texture.paste`.
    limit : int or None
        Build only the first images of the data set, at least 1. None: all.
    seed : int
        At least 0. The seed of each texture is derived from it, the key of the image and the number of the texture.
    shard_size : int
        Images per shard, at least 1.
    encoding : str
        "png", "webp" or "jpeg": format of the textures, and of images that have no file of their own.
    one_kind : str or None
        "png", "jpg" or "webp": encode the images that have another extension, so that all have this one. None: keep
        their files.
    prefix : str or None
        First part of the shards' file names, up to 64 letters, digits, _ and -. None: "shard".

    Examples
    --------
    >>> from texturegen import Recipe
    >>> recipe = Recipe("shapes", limit=100, per_image=2, method="quilting")
    >>> recipe.per_image, recipe.shard_size, recipe.encoding
    (2, 1000, 'png')
    """

    dataset: str
    split: str | None = None
    source_options: dict[str, Any] = field(default_factory=dict)
    size: int | None = None
    short_side: int | None = None
    method: str = "coherent"
    settings: dict[str, Any] = field(default_factory=dict)
    per_image: int = 1
    patches: int | None = None
    patches_from: str | None = None
    patch_size: int | None = None
    paste: bool = False
    limit: int | None = None
    seed: int = 0
    shard_size: int = 1000
    encoding: str = "png"
    one_kind: str | None = None
    prefix: str | None = None

    def __post_init__(self) -> None:
        """Raise UserError for a value of the wrong type: it may come from a file."""
        for name, kind in get_type_hints(Recipe).items():
            value = getattr(self, name)
            is_truth = isinstance(value, bool) and kind is not bool  # which is an int to isinstance
            if not isinstance(value, get_origin(kind) if get_origin(kind) is dict else kind) or is_truth:
                raise UserError(f"recipe: {name} is {reprlib.repr(value)}, of another type than {kind}")


@dataclass(frozen=True)
class Plan:
    """A recipe resolved on its data set.

    Attributes
    ----------
    recipe : Recipe
        With every default filled in.
    items : int
        Images to build.
    source : dict
        The data set as build.json describes it: name, split, items, classes and digest.
    algorithms : dict of str to int
        Versions of the algorithms that the recipe uses.
    """

    recipe: Recipe
    items: int
    source: dict[str, Any]
    algorithms: dict[str, int] = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        """First part of the shards' file names."""
        return self.recipe.prefix or PREFIX

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.items // self.recipe.shard_size)

    def positions(self, number: int) -> range:
        """Return the positions, in the data set, of the images of shard `number`."""
        size = self.recipe.shard_size
        return range(number * size, min((number + 1) * size, self.items))

    def describe(self) -> dict[str, Any]:
        """Return the plan as build.json records it, in types of JSON; equal descriptions give equal bytes."""
        content = {
            "format": FORMAT,
            "recipe": asdict(self.recipe),
            "source": self.source,
            "algorithms": self.algorithms,
        }
        described: dict[str, Any] = json.loads(json.dumps(content))
        return described

    def read_description(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """Return what `describe` returned when build.json or recipe.json, whose content this is, was written.

        An algorithm that the file does not mention has version 1: the release that wrote it did not record versions
        yet, or not that one. Without textures, settings decide nothing, but texturegen 0.1.0 recorded them.

        Raises
        ------
        KeyError, TypeError
            The content is not a description.
        """
        described = {name: content[name] for name in ("format", "recipe", "source")}
        if described["format"] in READABLE:  # the tars are the same, and `publish` converts the manifest's rows
            described["format"] = FORMAT
        described["recipe"] = _ADDED | described["recipe"]
        if described["recipe"]["per_image"] == 0:
            described["recipe"]["settings"] = {}
        described["algorithms"] = dict.fromkeys(self.algorithms, 1) | content.get("algorithms", {})
        return described

    def matches(self, content: Mapping[str, Any]) -> bool:
        """Return True if the content of a build.json or recipe.json describes this plan."""
        try:
            return self.read_description(content) == self.read_description(self.describe())
        except (KeyError, TypeError):
            return False

    @classmethod
    def from_description(cls, content: Mapping[str, Any]) -> "Plan":
        """Return the plan that `describe` described. Raises KeyError, TypeError or UserError for anything else."""
        recipe = Recipe(**content["recipe"])
        return cls(recipe, content["source"]["items"], content["source"], dict(content.get("algorithms", {})))

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that decides bytes; recorded in the stats of each shard of an unfinished build.

        Version 1 of an algorithm and an unset later field of the recipe are left out, so that a release may record one
        more without changing the fingerprint.
        """
        described = self.describe()
        for name, value in _ADDED.items():
            if described["recipe"][name] == value:
                del described["recipe"][name]
        changed = {name: number for name, number in described.pop("algorithms").items() if number != 1}
        # texturegen 0.1.0, whose format was 2, hashed its own version in place of the algorithms', which were all 1.
        hashed = {**described, "format": READABLE[0], "texturegen": "0.1.0"}
        hashed |= {"algorithms": changed} if changed else {}
        return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()


def open_recipe_source(
    recipe: Recipe,
    root: str | None,
    download: bool | None = False,
    check: bool = True,
    listing: "Listing | TarListing | None" = None,
) -> Source:
    """Open the data set of a recipe, see `texturegen.sources.open_source`."""
    # Checked first: an option named like a parameter of open_source would be passed as that parameter.
    find_entry(recipe.dataset, recipe.source_options)
    return open_source(
        recipe.dataset,
        root=root,
        split=recipe.split,
        size=recipe.size,
        short_side=recipe.short_side,
        download=download,
        check=check,
        listing=listing,
        **recipe.source_options,
    )


def open_planned_source(plan: Plan, root: str | None, listing: "Listing | TarListing | None" = None) -> Source:
    """Open the data set of a plan in a job, without repeating its checks.

    Parameters
    ----------
    plan : Plan
        The plan.
    root : str or None
        Directory of the data set's files.
    listing : Listing or TarListing, optional
        What `listing.read_listing` returns for a source of files or tars; nothing is searched then.

    Raises
    ------
    OtherBuildError
        The data set is not the one that was planned.
    """
    source = open_recipe_source(plan.recipe, root, check=False, listing=listing)
    if len(source) < plan.items or (listing is None and source.digest != plan.source["digest"]):
        raise OtherBuildError(
            f"data set '{plan.recipe.dataset}': its images are not those that this build began with; restore them and "
            "run the same command again, or build into another directory"
        )
    return source


def make_plan(recipe: Recipe, root: str | None = None, download: bool | None = False) -> tuple[Plan, Source]:
    """Open the data set of a recipe, with all checks, and fill in the defaults of the recipe.

    Parameters
    ----------
    recipe : Recipe
        The recipe.
    root : str, optional
        Directory of the data set's files.
    download : bool or None
        Download missing files. None: only without a root.

    Returns
    -------
    plan : Plan
        The resolved plan.
    source : Source
        The open data set.

    Raises
    ------
    UserError
        The recipe or the data set is invalid.
    """
    for name, (least, most) in _RANGES.items():
        value = getattr(recipe, name)
        if value is not None and not least <= value <= most:
            bound = f"at least {least}" if value < least else f"at most {most}"
            raise UserError(f"--{name.replace('_', '-')} is {reprlib.repr(value)}; it must be {bound}")
    if recipe.encoding not in ENCODINGS:
        close = nearest(recipe.encoding, ENCODINGS)
        raise UserError(f"unknown encoding {recipe.encoding!r}{close}; encodings: {', '.join(ENCODINGS)}")
    if recipe.one_kind is not None and recipe.one_kind not in ENCODING_OF:
        raise UserError(f"--one-kind is {recipe.one_kind!r}; it must be one of {', '.join(ENCODING_OF)}")
    if recipe.paste and recipe.per_image == 0:
        raise UserError("--paste pastes textures, but --per-image is 0; set it to 1 or more")
    if recipe.patches_from is not None and recipe.patches_from not in PLACES:
        close = nearest(recipe.patches_from, PLACES)
        raise UserError(f"--patches-from is '{recipe.patches_from}'{close}; it must be one of {', '.join(PLACES)}")
    if recipe.prefix is not None and not PREFIXES.fullmatch(recipe.prefix):
        raise UserError(f"--prefix is {recipe.prefix!r}; use up to 64 letters, digits, _ and -, as in cifar10-train")
    find_method(recipe.method)
    settings: dict[str, Any] = {}
    if recipe.per_image or recipe.settings:  # imports kernels, which a build without textures does not need
        settings = resolve_settings(recipe.method, recipe.settings)
    source = open_recipe_source(recipe, root, download)
    options = dict(recipe.source_options)
    if options.get("classes") is not None:
        options["classes"] = list(source.classes)  # a file of classes: its content, not its path
    recipe = replace(recipe, split=source.split, settings=settings if recipe.per_image else {}, source_options=options)
    items = len(source) if recipe.limit is None else min(recipe.limit, len(source))
    description = {"name": source.name, "split": source.split, "items": items, "classes": list(source.classes)}
    description["digest"] = source.digest
    return Plan(recipe, items, description, list_algorithms(recipe)), source


def root_for_jobs(root: str | None, source: Source) -> str | None:
    """Return the given root, or where the source found its files: jobs may run in another directory or machine."""
    return root if root is not None or source.root is None else str(source.root)


def list_algorithms(recipe: Recipe) -> dict[str, int]:
    """Return the name and version of each algorithm that decides bytes of a recipe's shards."""
    versions = {"decoding": IMAGE_VERSIONS["decoding"], recipe.encoding: IMAGE_VERSIONS[recipe.encoding]}
    if recipe.one_kind is not None:
        versions[ENCODING_OF[recipe.one_kind]] = IMAGE_VERSIONS[ENCODING_OF[recipe.one_kind]]
    if recipe.size is not None:
        versions["resizing"] = IMAGE_VERSIONS["resizing"]
    if recipe.per_image:
        versions[recipe.method] = find_method(recipe.method).version
        versions |= {"patches": PATCHES_VERSION, "quality": QUALITY_VERSION, "seeds": IMAGE_VERSIONS["seeds"]}
    if recipe.paste:
        versions |= {"paste": PASTE_VERSION, "png": IMAGE_VERSIONS["png"]}
    return dict(sorted(versions.items()))


def texture_seed(seed: int, key: str, index: int) -> int:
    """Return the seed of a texture, 0 <= seed < 2**63: a hash of the recipe's seed, the image's key and the number."""
    digest = hashlib.blake2b(f"{seed}/{key}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
