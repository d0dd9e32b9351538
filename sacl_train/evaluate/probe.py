"""Probes of features: fit classifiers on a run's labelled features and score them on test sets."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sacl_train.data.draws import Draws
from sacl_train.data.shuffle import shuffle_patches
from sacl_train.evaluate.augmented import fit_augmented
from sacl_train.evaluate.features import Features
from sacl_train.evaluate.images import Images
from sacl_train.evaluate.interface import Classifier, Probe
from sacl_train.evaluate.knn import fit_knn
from sacl_train.evaluate.linear import fit_linear, sweep_rates
from sacl_train.evaluate.norm import DEFAULT_STATISTICS
from sacl_train.evaluate.ridge import fit_ridge
from sacl_train.evaluate.subject import Subject, open_subject, open_test
from texturegen.errors import UserError, nearest

PROBES: dict[str, Probe] = {"knn": fit_knn, "linear": fit_linear, "ridge": fit_ridge}
PROTOCOLS = {
    "knn": "weighted nearest neighbours by cosine, features of whole images",
    "linear": "linear layer by LARS, standardised features of whole images",
    "linear-augment": "linear layer by LARS, standardised features of random crops and flips, tested on whole images",
    "ridge": "ridge regression, standardised features of whole images",
}
SHUFFLED_CELLS = 4  # cells per side of a shuffled image


def evaluate(
    probe: str,
    run: str | Path,
    train: str | Path,
    tests: list[str | Path],
    device: str = "auto",
    destroy: bool = False,
    root: str | Path | None = None,
    size: int | None = None,
    network: str = "online",
    norm_statistics: str = DEFAULT_STATISTICS,
    augment: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Fit a probe on labelled training images and score it on test sets.

    Parameters
    ----------
    probe : str
        One of `PROBES`: "knn", "linear" or "ridge".
    run, train, device, root, size, network, norm_statistics
        As in `subject.open_subject`.
    tests : list of str or Path
        Labelled test sets; see `images.open_images`.
    destroy : bool
        Score the test images again with their cells shuffled, 4x4. A classifier that reads texture keeps its accuracy;
        one that reads shape loses it.
    augment : bool
        For "linear": train on random crops and flips, encoded anew in each epoch (`augmented.fit_augmented`).
    **settings
        Settings of the probe: of `fit_knn`, `fit_linear` or `fit_ridge`. For "linear", lr="sweep" chooses the learning
        rate on a held-out tenth of the training images.

    Returns
    -------
    dict
        The figures and how they were measured, JSON-serialisable. "probe" is "linear-augment" with `augment`;
        "protocol" describes it in words. "test" has a row per test set and variant (each k of
        kNN): "top1"; "top5" if there are more than five classes; "texture_decisions" if the images have a
        `texture_label` (the sets `shapes`), the fraction of predictions that follow the texture; "destroyed" with
        `destroy`, the top-1 accuracy on shuffled images. All are in 0..1. "sweep" and "chosen_lr" with lr="sweep".

    Raises
    ------
    UserError
        If there is no checkpoint, a set has no labels, the sets differ in classes or image size, or `augment` is
        combined with another probe or a sweep.

    Examples
    --------
    >>> figures = evaluate("knn", "run", "shards", ["test-shards"], device="cpu", k=(5,))
    >>> [(row["split"], row["variant"], row["images"]) for row in figures["test"]]
    [('conflict', 'k=5', 40)]
    >>> 0 <= figures["test"][0]["top1"] <= 1
    True
    """
    if augment and (probe != "linear" or settings.get("lr") == "sweep"):
        raise UserError("augment is for the linear probe with a given lr; leave it out or set lr to a number")
    with open_subject(run, train, device, root, size, network, norm_statistics) as subject:
        classifiers, sweep = _fit(probe, subject, augment, settings)
        rows = []
        for place in tests:
            images = open_test(place, subject, root, size)
            whole = subject.store.get(images)
            shuffled = subject.store.get(images, shuffle_cells, f"destroyed {SHUFFLED_CELLS}") if destroy else None
            for variant, classify in classifiers.items():
                row = {"set": str(place), "split": images.split, "variant": variant}
                row |= score(images, classify(whole.values), whole)
                if shuffled is not None:
                    row["destroyed"] = score(images, classify(shuffled.values), shuffled)["top1"]
                rows.append(row)
        name = "linear-augment" if augment else probe
        about = {"probe": name, "protocol": PROTOCOLS[name], "settings": settings, **subject.about()}
        return {**about, **sweep, "test": rows}


def _fit(
    probe: str, subject: Subject, augment: bool, settings: dict[str, Any]
) -> tuple[dict[str, Classifier], dict[str, Any]]:
    """Return the probe's classifiers, and "sweep" and "chosen_lr" if a rate was chosen."""
    if augment:
        return fit_augmented(subject, **settings), {}
    features, labels = subject.features.values, subject.features.labels
    if probe == "linear" and settings.get("lr") == "sweep":
        others = {key: value for key, value in settings.items() if key != "lr"}
        accuracies = sweep_rates(features, labels, **others)
        rate = max(accuracies, key=lambda rate: accuracies[rate])
        return fit_linear(features, labels, lr=rate, **others), {"sweep": accuracies, "chosen_lr": rate}
    return PROBES[probe](features, labels, **settings), {}


def require_probe(name: str) -> None:
    """Raise UserError unless `name` is one of PROBES."""
    if name not in PROBES:
        raise UserError(f"unknown probe '{name}'{nearest(name, PROBES)}; known: {', '.join(PROBES)}")


def shuffle_cells(images: Tensor, samples: np.ndarray) -> Tensor:
    """Shuffle the cells of each image, 4 per side.

    Parameters
    ----------
    images : Tensor uint8 (N, C, H, W)
        The images.
    samples : ndarray int64 (N,)
        Their indices, which seed the order of the cells.

    Returns
    -------
    Tensor uint8 (N, C, H, W)
    """
    side = min(images.shape[-2:]) // SHUFFLED_CELLS
    return shuffle_patches(images, Draws(0, 0, torch.from_numpy(samples)).of(0), (side, side))


def score(images: Images, scores: Tensor, features: Features) -> dict[str, Any]:
    """Return the figures of one classifier on one test set; see `evaluate`.

    Parameters
    ----------
    images : Images
        The test set.
    scores : Tensor float (N, classes)
        The classifier's scores for the images of `features`.
    features : Features
        Features of the labelled images of the set.
    """
    hit = scores.topk(min(5, scores.shape[1]), dim=1).indices == features.labels[:, None]
    figures: dict[str, Any] = {"images": len(features.labels), "top1": hit[:, 0].float().mean().item()}
    if scores.shape[1] > 5:
        figures["top5"] = hit.any(1).float().mean().item()
    if images.textures is not None:
        follows_texture = scores.argmax(1).cpu() == torch.from_numpy(images.textures)[features.numbers]
        figures["texture_decisions"] = follows_texture.float().mean().item()
    return figures
