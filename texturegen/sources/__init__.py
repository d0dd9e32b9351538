"""Data sets: `open_source` returns a `Source`, which has a length and an `Item` (image, label, key) for every index.

`SOURCES` is the registry. To add a source, write its class (see `base.Source`) in a module of its own and enter it
here. The entries hold what a command line needs, so `--help` imports no source and no NumPy.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from texturegen.errors import UserError, nearest

if TYPE_CHECKING:
    from texturegen.sources.base import Item, Listing, Source
    from texturegen.sources.tar_listing import TarListing

__all__ = ["SOURCES", "Entry", "Item", "Listing", "Source", "open_source"]


@dataclass(frozen=True)
class Entry:
    """A source in the registry: where its class is, and what it accepts.

    Attributes
    ----------
    location : "module:class" inside this package.
    help : the data set in under 40 characters, for `--help`.
    splits : values of `split`; empty if the source has no splits, or any.
    any_split : whether `split` may be any name: of a folder below `root`.
    default_split : the split that None stands for.
    needs_root : whether it reads files below `root`.
    urls : whether `root` may also be a URL or a pattern; it is then passed on as a string.
    official : whether the files are those of a benchmark, with checksums and a download.
    located : whether `root` may be left out: the files are then looked for in `official.data_folders`.
    options : names of further keyword arguments.
    listed : whether it searches folders or tars, so that a `Listing` or a `TarListing` can spare it the search.
    """

    location: str
    help: str
    splits: tuple[str, ...] = ()
    any_split: bool = False
    default_split: str | None = None
    needs_root: bool = False
    urls: bool = False
    official: bool = False
    located: bool = False
    options: tuple[str, ...] = ()
    listed: bool = False


SOURCES: dict[str, Entry] = {
    "shapes": Entry(
        "shapes:Shapes",
        "ten generated silhouettes",
        splits=("train", "test", "conflict"),
        default_split="train",
        options=("background",),
    ),
    "cifar10": Entry(
        "cifar:Cifar10",
        "CIFAR-10",
        splits=("train", "test"),
        default_split="train",
        needs_root=True,
        official=True,
        located=True,
    ),
    "cifar100": Entry(
        "cifar:Cifar100",
        "CIFAR-100",
        splits=("train", "test"),
        default_split="train",
        needs_root=True,
        official=True,
        located=True,
    ),
    "stl10": Entry(
        "stl10:Stl10",
        "STL-10",
        splits=("train", "test", "unlabeled", "train+unlabeled"),
        default_split="train",
        needs_root=True,
        official=True,
        located=True,
    ),
    "imagenet": Entry(
        "imagenet:ImageNet",
        "ImageNet, from folders or tars",
        splits=("train", "val"),
        default_split="train",
        needs_root=True,
        located=True,
        listed=True,
    ),
    "imagenet100": Entry(
        "imagenet100:ImageNet100",
        "100 classes of an ImageNet folder",
        splits=("train", "val"),
        default_split="train",
        needs_root=True,
        located=True,
        options=("classes",),
        listed=True,
    ),
    "folder": Entry("folder:Folder", "any folder of images", any_split=True, needs_root=True, listed=True),
    "webdataset": Entry(
        "webdataset:WebDataset",
        "existing WebDataset tars",
        needs_root=True,
        urls=True,
        options=("image", "classes", "rename_keys", "label", "key"),
        listed=True,
    ),
}


def open_source(
    name: str,
    root: str | Path | None = None,
    split: str | None = None,
    size: int | None = None,
    short_side: int | None = None,
    download: bool | None = False,
    check: bool = True,
    listing: "Listing | TarListing | None" = None,
    **options: Any,
) -> "Source":
    """Open a data set.

    Parameters
    ----------
    name : key in `SOURCES`.
    root : the folder that holds the files, or will hold them after the download; for `webdataset` also a URL or a
        pattern. None, for a benchmark, `imagenet` or `imagenet100`: $TEXTUREGEN_DATA, data/ or the user's cache,
        whichever first holds them.
    split : name of a split; None for the source's default. For `folder`, a folder below `root`, such as train.
    size : side in pixels: images are resized so that the short side has this length, and cropped to the central square
        (`shapes` draws them at this size). None keeps their own sizes.
    short_side : length to which the short side is scaled before the crop, at least `size`; None: `size`.
    download : fetch a benchmark's official archive if its files are missing or damaged; None: only if `root` is None.
    check : verify a benchmark's checksums; workers skip it, because the process that started them has done it.
    listing : `Source.listing`, or `Source.index`, of the same data set, opened in another process; spares a search of
        its folders or tars.
    **options : the options of the source, named in its entry in `SOURCES`.

    Returns
    -------
    A source with len(source) items; source[i] is an `Item`.

    Raises
    ------
    UserError : an unknown name, split or option; a folder without images; an official file that is missing
        (`MissingError`) or damaged (`DamagedError`).

    References
    ----------
    .. [1] R. Geirhos et al., "ImageNet-trained CNNs are biased towards texture", ICLR 2019 (`shapes`).
    .. [2] A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009 (`cifar10`, `cifar100`).
    .. [3] A. Coates, A. Ng, H. Lee, "An analysis of single-layer networks in unsupervised feature learning",
           AISTATS 2011 (`stl10`).
    .. [4] Y. Tian, D. Krishnan, P. Isola, "Contrastive multiview coding", ECCV 2020 (`imagenet100`).

    Examples
    --------
    >>> from texturegen.sources import open_source
    >>> source = open_source("shapes", split="test", size=48)
    >>> len(source), source.classes[:3]
    (1000, ['disc', 'square', 'triangle'])
    >>> item = source[2]
    >>> item.key, source.classes[item.label], item.image.shape, item.image.dtype.name
    ('shapes-test-00000002', 'triangle', (48, 48, 3), 'uint8')
    """
    entry = find_entry(name, options)
    arguments: dict[str, Any] = {"split": _resolve_split(name, entry, split), "size": _check_size(size), **options}
    if entry.needs_root:
        if root is None and not entry.located:
            raise UserError(f"data set '{name}' reads files; give their folder with --root")
        if root == "":  # most often an unset variable of a shell script; it would mean the current directory
            raise UserError(f"data set '{name}': --root is empty; give the folder of its files, or . for this one")
        # Path would turn s3://bucket into s3:/bucket
        arguments["root"] = root if root is None else str(root) if entry.urls else Path(root)
    if entry.listed:
        arguments["listing"] = listing
    if entry.official:
        arguments.update(download=download, check=check)
    module, cls = entry.location.split(":")
    source: Source = getattr(import_module(f"{__name__}.{module}"), cls)(**arguments)
    source.short_side = _check_short_side(short_side, size)
    return source


def find_entry(name: str, options: Iterable[str]) -> Entry:
    """Return the entry of `name` in SOURCES; UserError for an unknown name, or an option that the source lacks."""
    if name not in SOURCES:
        raise UserError(f"unknown data set '{name}'{nearest(name, SOURCES)}; data sets: {', '.join(SOURCES)}")
    entry = SOURCES[name]
    for option in options:
        if option not in entry.options:
            known = ", ".join(entry.options) or "none"
            raise UserError(
                f"data set '{name}' has no option '{option}'{nearest(option, entry.options)}; options: {known}"
            )
    return entry


def _resolve_split(name: str, entry: Entry, split: str | None) -> str | None:
    if split is None:
        return entry.default_split
    if entry.any_split:
        return split
    if not entry.splits:
        raise UserError(f"data set '{name}' has no splits; leave out --split {split}")
    if split not in entry.splits:
        raise UserError(
            f"data set '{name}' has no split '{split}'{nearest(split, entry.splits)}; splits: {', '.join(entry.splits)}"
        )
    return split


def _check_size(size: int | None) -> int | None:
    if size is not None and size < 1:
        raise UserError(f"size must be at least 1 pixel, not {size}")
    return size


def _check_short_side(short_side: int | None, size: int | None) -> int | None:
    if short_side is not None and (size is None or short_side < size):
        given = "--size is not given" if size is None else f"--size is {size}"
        raise UserError(f"--short-side is {short_side}, but {given}; give a --size of at most the short side")
    return None if short_side == size else short_side


def __getattr__(name: str) -> Any:
    if name not in ("Item", "Listing", "Source"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.base"), name)  # loads NumPy
