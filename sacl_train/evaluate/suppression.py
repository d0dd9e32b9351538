"""Which cue a probe relies on: its accuracy when shape, texture or colour of the test images is suppressed.

Burgert et al., "ImageNet-trained CNNs are not biased towards texture: Revisiting feature reliance through controlled
suppression", NeurIPS 2025. Unlike the shape bias, it needs no stimuli: any labelled images will do, thousands of them,
and no cue is in conflict with another. `SUPPRESSIONS` has the settings of the authors' code (transform.py,
reliance_protocol.py), which are for images of 224 px; lengths in pixels are scaled to the images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from sacl_train.data.draws import Draws
from sacl_train.data.shuffle import shuffle_patches
from sacl_train.evaluate.bootstrap import bootstrap_interval
from sacl_train.evaluate.features import Features
from sacl_train.evaluate.interface import Classifier
from sacl_train.evaluate.norm import DEFAULT_STATISTICS
from sacl_train.evaluate.probe import PROBES, PROTOCOLS, require_probe
from sacl_train.evaluate.subject import open_subject, open_test
from texturegen.errors import UserError

SIDE = 224  # pixels; the settings are for images of this side
VERSION = 1  # of the changed images, whose features are cached; raise it when any pixel of them changes
SHUFFLES = 0x5C  # purpose of `Draws`


def shuffle_grid(images: Tensor, indices: np.ndarray, grid: int) -> Tensor:
    """Shuffle the cells of each image, `grid` per side; the order depends on the image's index alone."""
    side = min(images.shape[-2:]) // grid
    if side < 1:
        raise UserError(f"images of {images.shape[-2]}x{images.shape[-1]} px have no {grid} cells per side")
    return shuffle_patches(images, Draws(0, 0, torch.from_numpy(indices)).of(SHUFFLES + grid), (side, side))


def smooth_bilateral(images: Tensor, indices: np.ndarray, diameter: int, sigma_colour: float) -> Tensor:
    """Smooth by a bilateral filter, which keeps strong edges; `diameter` is in pixels of an image of SIDE."""
    scaled = max(round(diameter * _scale(images)), 3)  # OpenCV takes a smaller diameter for 3
    return _each(images, lambda image: cv2.bilateralFilter(image, scaled, sigma_colour, 75 * _scale(images)))


def make_grey(images: Tensor, indices: np.ndarray) -> Tensor:
    """Replace colours by their luma (ITU-R BT.601)."""
    return _each(images, lambda image: cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB))


@dataclass(frozen=True)
class Suppression:
    """A change that suppresses a cue.

    Attributes
    ----------
    cue : str
        "shape", "texture" or "colour".
    name : str
        The change and its strength.
    change : callable
        Images uint8 (N, 3, H, W) and their indices int64 (N,) -> uint8 (N, 3, H, W).
    """

    cue: str
    name: str
    change: Callable[[Tensor, np.ndarray], Tensor]


# In each cue from weak to strong. The strongest smoothing that the authors combine with others is 12 px, 170.
SUPPRESSIONS = (
    *(Suppression("shape", f"{g}x{g} cells shuffled", partial(shuffle_grid, grid=g)) for g in (2, 4, 8)),
    *(
        Suppression("texture", f"bilateral filter {d} px, {c}", partial(smooth_bilateral, diameter=d, sigma_colour=c))
        for d, c in ((4, 50), (8, 110), (12, 170))
    ),
    Suppression("colour", "greyscale", make_grey),
)


def evaluate_suppression(
    run: str | Path,
    train: str | Path,
    test: str | Path,
    device: str = "auto",
    root: str | Path | None = None,
    size: int | None = None,
    network: str = "online",
    norm_statistics: str = DEFAULT_STATISTICS,
    probe: str = "linear",
    **settings: Any,
) -> dict[str, Any]:
    """Return the accuracy of a probe under each suppression, also relative to its accuracy on the untouched images.

    The probe is fitted on untouched training images. The change of a test image depends only on its index.

    Parameters
    ----------
    run, train, device, root, size, network, norm_statistics
        As in `subject.open_subject`.
    test : str or Path
        Labelled test images; see `images.open_images`.
    probe : str
        One of `probe.PROBES`: "linear", "knn" or "ridge".
    **settings
        Settings of the probe.

    Returns
    -------
    dict
        The figures and how they were measured, JSON-serialisable. "test" has a row for the untouched images and for
        each suppression and variant of the probe: "cue", "change", "top1" in 0..1, "relative" = top1 / that of the
        untouched images, and "interval", the 95 % interval of "relative" over resampled images (None if the probe is
        never right).

    Raises
    ------
    UserError
        If the probe is unknown, an image has fewer than 8 pixels per side, and in the cases of `probe.evaluate`.

    Examples
    --------
    >>> figures = evaluate_suppression("run", "shards", "test-shards", device="cpu", probe="knn", k=(5,))
    >>> figures["test"][0]["cue"], figures["test"][1]["change"], len(figures["test"])
    ('none', '2x2 cells shuffled', 8)
    """
    require_probe(probe)
    with open_subject(run, train, device, root, size, network, norm_statistics) as subject:
        images = open_test(test, subject, root, size)
        classifiers = PROBES[probe](subject.features.values, subject.features.labels, **settings)
        untouched = subject.store.get(images)
        sets = {("none", "untouched"): untouched} | {
            (s.cue, s.name): subject.store.get(images, s.change, f"suppression {VERSION}: {s.name}")
            for s in SUPPRESSIONS
        }
        rows = []
        for name, classify in classifiers.items():
            before = find_hits(classify, untouched)
            for (cue, change), features in sets.items():
                row = {"set": str(test), "split": images.split, "cue": cue, "change": change}
                row["variant"] = ": ".join(
                    part for part in (name, cue if cue == "none" else f"{cue}, {change}") if part
                )
                rows.append(row | relative_accuracy(before, find_hits(classify, features)))
        return {
            "probe": "suppression",
            "protocol": PROTOCOLS[probe],
            "settings": settings,
            **subject.about(),
            "version": VERSION,
            "test": rows,
        }


def find_hits(classify: Classifier, features: Features) -> np.ndarray:
    """Return which images a classifier gets right, float64 (N,) of 0 and 1."""
    hits = classify(features.values).argmax(1) == features.labels
    return hits.double().cpu().numpy()


def relative_accuracy(before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    """Return the accuracy after a change, and relative to that before, with its interval.

    Parameters
    ----------
    before, after : ndarray float (N,)
        Which of the same images are classified correctly, 0 or 1.

    Returns
    -------
    dict
        "images", "top1", "relative" and "interval"; the last two are None if no image is right before.

    Examples
    --------
    >>> relative_accuracy(np.array([1.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0]))["relative"]
    0.5
    """
    figures: dict[str, Any] = {"images": len(after), "top1": float(after.mean()), "relative": None, "interval": None}
    if before.any():
        figures["relative"] = float(after.mean() / before.mean())
        pairs = np.stack([before, after], 1)
        figures["interval"] = list(bootstrap_interval(pairs, lambda means: means[:, 1] / means[:, 0]))
    return figures


def _scale(images: Tensor) -> float:
    return min(images.shape[-2:]) / SIDE


def _each(images: Tensor, change: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    """Apply a function of an image uint8 (H, W, 3) to images uint8 (N, 3, H, W)."""
    made = [change(np.ascontiguousarray(image)) for image in images.permute(0, 2, 3, 1).numpy()]
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)
