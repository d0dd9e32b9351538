"""Where images come from: `open_source(name, ...)` gives a Source, which has a length and an Item for any index.

    source = open_source("cifar10", root="data", split="test")
    item = source[0]        # item.key, item.image, item.label, ...

To add a source: write its class (see `base.Source`) in a module of its own and enter it in SOURCES. The table says
all that a command line needs to know, so that printing its help imports no source.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from texturegen.errors import UserError, nearest

if TYPE_CHECKING:
    from texturegen.sources.base import Item, Listing, Source

__all__ = ["SOURCES", "Entry", "Item", "Listing", "Source", "open_source"]


@dataclass(frozen=True)
class Entry:
    """What is known of a source before its module is loaded.

    Attributes
    ----------
    location : "module:class" inside this package.
    help : the data set in a few words.
    splits : names that `split` may take; empty when the source has no splits.
    default_split : what split=None means.
    needs_root : whether it reads files under `root`.
    urls : whether `root` may also be a URL or a pattern of names, which it then gets as it was written.
    official : whether those files are a benchmark's, with checksums and a place to download them from.
    options : names of further keyword arguments.
    listed : whether it looks through folders, and takes a Listing in place of that.
    """

    location: str
    help: str
    splits: tuple[str, ...] = ()
    default_split: str | None = None
    needs_root: bool = False
    urls: bool = False
    official: bool = False
    options: tuple[str, ...] = ()
    listed: bool = False


SOURCES: dict[str, Entry] = {
    "shapes": Entry(
        "shapes:Shapes",
        "ten silhouettes filled with photographs, embedded",
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
    ),
    "cifar100": Entry(
        "cifar:Cifar100",
        "CIFAR-100",
        splits=("train", "test"),
        default_split="train",
        needs_root=True,
        official=True,
    ),
    "stl10": Entry(
        "stl10:Stl10",
        "STL-10",
        splits=("train", "test", "unlabeled", "train+unlabeled"),
        default_split="train",
        needs_root=True,
        official=True,
    ),
    "imagenet100": Entry(
        "imagenet100:ImageNet100",
        "100 classes of an ImageNet folder",
        splits=("train", "val"),
        default_split="train",
        needs_root=True,
        options=("classes",),
        listed=True,
    ),
    "folder": Entry("folder:Folder", "any folder of images", needs_root=True, listed=True),
    "webdataset": Entry(
        "webdataset:WebDataset", "WebDataset tars", needs_root=True, urls=True, options=("image", "classes")
    ),
}


def open_source(
    name: str,
    root: str | Path | None = None,
    split: str | None = None,
    size: int | None = None,
    download: bool = False,
    check: bool = True,
    listing: "Listing | None" = None,
    **options: Any,
) -> "Source":
    """Open the source `name`; every mistake in the arguments or the files is a UserError of one sentence.

    root : the folder that holds (or, with download, will hold) the files; for `webdataset` also a URL or a pattern.
    split : None takes the source's default.
    size : give images of size x size (`resize.fit_square`; `shapes` draws them so); None keeps the source's own.
    download : fetch a benchmark's official archive when its files are missing or damaged.
    check : verify a benchmark's checksums; False suits a worker of a process that has done it.
    listing : of a `listed` source, what the process that opened it first found (`source.listing`).
    options : those in the source's entry of SOURCES.
    """
    entry = find_entry(name, options)
    arguments: dict[str, Any] = {"split": _resolve_split(name, entry, split), "size": _check_size(size), **options}
    if entry.needs_root:
        if root is None:
            raise UserError(f"data set '{name}' reads files: say with --root where they are")
        arguments["root"] = str(root) if entry.urls else Path(root)  # Path makes s3:/bucket of s3://bucket
    if entry.listed:
        arguments["listing"] = listing
    if entry.official:
        arguments.update(download=download, check=check)
    module, cls = entry.location.split(":")
    return getattr(import_module(f"{__name__}.{module}"), cls)(**arguments)


def find_entry(name: str, options: Iterable[str]) -> Entry:
    """Return what SOURCES has of `name`; UserError for an unknown one, and for an option that it does not have."""
    if name not in SOURCES:
        raise UserError(f"unknown data set '{name}'{nearest(name, SOURCES)}; there are: {', '.join(SOURCES)}")
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
    if not entry.splits:
        raise UserError(f"data set '{name}' has no splits, but split '{split}' was asked for")
    if split not in entry.splits:
        raise UserError(
            f"data set '{name}' has no split '{split}'{nearest(split, entry.splits)}; splits: {', '.join(entry.splits)}"
        )
    return split


def _check_size(size: int | None) -> int | None:
    if size is not None and size < 1:
        raise UserError(f"size is {size}; it must be at least 1 pixel")
    return size


def __getattr__(name: str) -> Any:
    if name not in ("Item", "Listing", "Source"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.base"), name)  # loads NumPy
