"""How much a probe relies on the background: its accuracy when the objects of the test images are placed on others.

Xiao et al., "Noise or signal: the role of image backgrounds in object recognition", ICLR 2021 (ImageNet-9). The images
are composed anew from `shapes`, whose layers are known, or from a folder of images with masks of their objects.
"""

import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from sacl_train.evaluate.bootstrap import bootstrap_interval, mean_interval
from sacl_train.evaluate.images import SourceImages
from sacl_train.evaluate.norm import DEFAULT_STATISTICS
from sacl_train.evaluate.probe import PROBES, PROTOCOLS, require_probe
from sacl_train.evaluate.subject import open_subject, open_test
from sacl_train.evaluate.suppression import find_hits
from texturegen.errors import MissingError, UserError
from texturegen.sources.base import Source
from texturegen.sources.files import walk
from texturegen.sources.folder import Folder
from texturegen.sources.resize import fit_square
from texturegen.sources.shapes import Draws, Shapes, compose
from texturegen.storage.image import decode_image

VERSION = 1  # of the composed images, whose features are cached; raise it when any pixel of them changes
MASKS = ("png", "webp", "bmp", "gif", "tif", "tiff", "jpg", "jpeg")  # extensions, in the order of preference

Layers = tuple[np.ndarray, np.ndarray, np.ndarray]


class Layered(Protocol):
    """A function of an image's index.

    It returns the image uint8 (H, W, 3), the mask of its object uint8 (H, W), 255 inside, and its background without
    the object, uint8 (H, W, 3).
    """

    def __call__(self, index: int) -> Layers: ...


def evaluate_backgrounds(
    run: str | Path,
    train: str | Path,
    test: str | Path,
    device: str = "auto",
    root: str | Path | None = None,
    size: int | None = None,
    network: str = "online",
    norm_statistics: str = DEFAULT_STATISTICS,
    masks: Path | None = None,
    probe: str = "linear",
    **settings: Any,
) -> dict[str, Any]:
    """Return the accuracy of a probe on the test images with other backgrounds.

    The probe is fitted on untouched training images. Which background an image gets depends only on its index.

    Parameters
    ----------
    run, train, device, root, size, network, norm_statistics
        As in `subject.open_subject`.
    test : str or Path
        "shapes:SPLIT", or a folder of class folders with `masks`.
    masks : Path or None
        Folder of the masks: that of CLASS/NAME.jpg is CLASS/NAME.png, white where the object is.
    probe : str
        One of `probe.PROBES`: "linear", "knn" or "ridge".
    **settings
        Settings of the probe.

    Returns
    -------
    dict
        The figures and how they were measured, JSON-serialisable. "test" has a row for the images as they are and for
        each of VARIANTS, and for each variant of the probe: "background", "top1" in 0..1 and its 95 % "interval" over
        resampled images. "gaps" has a row for each variant of the probe: "gap", the accuracy of "mixed-same" minus that
        of "mixed-random" (the paper's BG-gap), and its "interval", paired by image. "background_gap" is the first of
        them.

    Raises
    ------
    UserError
        If the test set has no masks, a mask is missing or empty, the probe is unknown, and in the cases of
        `probe.evaluate`.

    Examples
    --------
    >>> figures = evaluate_backgrounds("run", "shards", "shapes:test", device="cpu", probe="knn", k=(5,))
    >>> [row["background"] for row in figures["test"]]
    ['original', 'only-foreground', 'only-background', 'mixed-same', 'mixed-random']
    """
    require_probe(probe)
    with open_subject(run, train, device, root, size, network, norm_statistics) as subject:
        images = open_test(test, subject, root, size)
        if not isinstance(images, SourceImages):
            raise UserError(f"{test}: shards have no masks; use shapes:SPLIT, or a folder of class folders and --masks")
        layers = open_layers(images.source, str(test), masks)
        classifiers = PROBES[probe](subject.features.values, subject.features.labels, **settings)
        name = f"backgrounds {VERSION} {_digest(masks)}"
        sets = {"original": subject.store.get(images)} | {
            variant: subject.store.get(images, partial(_change, layers, make, images.labels), f"{name} {variant}")
            for variant, make in VARIANTS.items()
        }
        rows, gaps = [], []
        for of_probe, classify in classifiers.items():
            hits = {variant: find_hits(classify, features) for variant, features in sets.items()}
            for variant, found in hits.items():
                row = {"set": str(test), "split": images.split, "background": variant, "images": len(found)}
                row["variant"] = ": ".join(filter(None, (of_probe, variant)))
                rows.append({**row, "top1": float(found.mean()), "interval": mean_interval(found)})
            gaps.append({"variant": of_probe, **background_gap(hits["mixed-same"], hits["mixed-random"])})
        return {
            "probe": "backgrounds",
            "protocol": PROTOCOLS[probe],
            "settings": settings,
            **subject.about(),
            "version": VERSION,
            "masks": None if masks is None else str(masks),
            "background_gap": gaps[0]["gap"],
            "gaps": gaps,
            "test": rows,
        }


def background_gap(same: np.ndarray, random: np.ndarray) -> dict[str, Any]:
    """Return how much accuracy a background of the object's class adds, with its 95 % interval.

    Parameters
    ----------
    same, random : ndarray float (N,)
        Which of the same objects are classified correctly on a background of their own class, and of any.

    Examples
    --------
    >>> background_gap(np.array([1.0, 1.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0, 0.0]))["gap"]
    0.5
    """
    pairs = np.stack([same, random], 1)
    return {
        "gap": float(same.mean() - random.mean()),
        "interval": list(bootstrap_interval(pairs, lambda means: means[:, 0] - means[:, 1])),
    }


def open_layers(source: Source, place: str, masks: Path | None) -> Layered:
    """Return the layers of a source's images: those of `shapes`, or those that masks give.

    Raises
    ------
    UserError
        If the source has no masks.
    """
    if isinstance(source, Shapes):
        if masks is not None:
            raise UserError("shapes has masks of its own; leave out --masks")
        return source.layers
    if not isinstance(source, Folder) or masks is None:
        raise UserError(f"{place}: there are no masks; use shapes:SPLIT, or a folder of class folders and --masks")
    return partial(_read_layers, source, masks)


def tile_background(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return an image without its object: its largest strip beside the object's bounding box, repeated.

    This is the paper's "only-BG-T". If the object leaves no strip, the image is black.

    Parameters
    ----------
    image : ndarray uint8 (H, W, 3)
    mask : ndarray uint8 (H, W)
        Above 0 where the object is, at least at one pixel.
    """
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    strips = (image[: rows[0]], image[rows[-1] + 1 :], image[:, : columns[0]], image[:, columns[-1] + 1 :])
    strip = max(strips, key=lambda strip: strip.shape[0] * strip.shape[1])
    if strip.size == 0:
        return np.zeros_like(image)
    tiled = np.tile(strip, (-(-height // strip.shape[0]), -(-width // strip.shape[1]), 1))
    return tiled[:height, :width]


def _read_layers(source: Folder, masks: Path, index: int) -> Layers:
    image = source[index].image
    path = Path(source.listing.paths[index])
    candidates = [masks / path.with_suffix(f".{extension}") for extension in MASKS]
    found = next(filter(Path.is_file, candidates), None)
    if found is None:
        raise MissingError(f"{path}: there is no mask {candidates[0]}")
    mask = decode_image(found.read_bytes())
    if mask.shape[:2] != image.shape[:2]:
        # Resized and cropped like the image, whose own size it should have.
        mask = fit_square(mask, source.size) if source.size else mask
    if mask.shape[:2] != image.shape[:2]:
        raise UserError(f"{found}: {mask.shape[:2]} pixels, but {path} has {image.shape[:2]}")
    mask = cv2.cvtColor(mask, cv2.COLOR_RGB2GRAY)
    if not mask.any():
        raise UserError(f"{found}: the mask is black, so there is no object; leave the image out")
    return image, mask, tile_background(image, mask)


def _digest(masks: Path | None) -> str:
    """Return a digest of the masks, a part of the key of cached features."""
    files = [masks / name for name, kind in sorted(walk(masks)) if kind == "file"] if masks is not None else []
    states = [(os.fspath(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(states).encode()).hexdigest()[:16]


# A variant makes an image from the layers of all images, the labels, and an index.
Variant = Callable[[Layered, np.ndarray, int], np.ndarray]


def _only_foreground(layers: Layered, labels: np.ndarray, index: int) -> np.ndarray:
    front, mask, behind = layers(index)
    return compose(front, mask, np.zeros_like(behind))


def _only_background(layers: Layered, labels: np.ndarray, index: int) -> np.ndarray:
    return layers(index)[2]


def _mixed(layers: Layered, labels: np.ndarray, index: int, same: bool) -> np.ndarray:
    front, mask, _ = layers(index)
    return compose(front, mask, layers(choose_donor(labels, index, same))[2])


def choose_donor(labels: np.ndarray, index: int, same: bool) -> int:
    """Return the image whose background image `index` gets: one of its class, or of a class drawn at random.

    Never the image itself, unless it is the only one of the class.
    """
    draws = Draws(VERSION, index, int(same))
    classes = np.unique(labels[labels >= 0])
    label = labels[index] if same else classes[draws.below(len(classes))]
    others = np.flatnonzero((labels == label) & (np.arange(len(labels)) != index))
    return int(others[draws.below(len(others))]) if len(others) else index


VARIANTS: dict[str, Variant] = {
    "only-foreground": _only_foreground,
    "only-background": _only_background,
    "mixed-same": partial(_mixed, same=True),
    "mixed-random": partial(_mixed, same=False),
}


def _change(layers: Layered, make: Variant, labels: np.ndarray, images: Tensor, indices: np.ndarray) -> Tensor:
    """Replace images uint8 (N, 3, H, W) by their variants."""
    made = np.stack([make(layers, labels, int(index)) for index in indices])
    return torch.from_numpy(made).permute(0, 3, 1, 2)
