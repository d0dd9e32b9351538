"""Probes of features: fit classifiers on a run's labelled features and score them on test sets."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sacl_train.config import Config
from sacl_train.data.draws import Draws
from sacl_train.data.shuffle import shuffle_patches
from sacl_train.evaluate.features import Features, FeatureStore
from sacl_train.evaluate.images import Images, open_images, require_labels
from sacl_train.evaluate.interface import Probe
from sacl_train.evaluate.knn import fit_knn
from sacl_train.evaluate.linear import fit_linear, sweep_rates
from sacl_train.evaluate.ridge import fit_ridge
from sacl_train.nets import Encoder
from sacl_train.training.resume import load_encoder
from sacl_train.training.setup import choose_device
from texturegen.errors import UserError

PROBES: dict[str, Probe] = {"knn": fit_knn, "linear": fit_linear, "ridge": fit_ridge}
SHUFFLED_CELLS = 4  # cells per side of a shuffled image


@dataclass(frozen=True)
class Subject:
    """The encoder to evaluate and the labelled images that classifiers are fitted on.

    Attributes
    ----------
    run : Path
        The run's directory, or a checkpoint in it.
    encoder : Encoder
        In eval mode, on `device`.
    config : Config
        The run's settings.
    epochs : int
        Epochs that the encoder has been trained for.
    device : torch.device
        Device that computes the features.
    store : FeatureStore
        Cache of the encoder's features.
    train : Images
        The labelled training images.
    features : Features
        Their features.
    """

    run: Path
    encoder: Encoder
    config: Config
    epochs: int
    device: torch.device
    store: FeatureStore
    train: Images
    features: Features

    def about(self) -> dict[str, Any]:
        """Return the fields common to the figures of all probes, JSON-serialisable."""
        return {
            "run": str(self.run),
            "method": self.config.method,
            "encoder": self.config.encoder,
            "texture_role": self.config.method_settings.texture_role,
            "trained_epochs": self.epochs,
            "planned_epochs": self.config.epochs,
            "train": self.train.place,
            "train_split": self.train.split,
            "train_images": len(self.features.labels),
        }


def load_subject(
    run: str | Path, train: str | Path, device: str = "auto", root: str | Path | None = None, size: int | None = None
) -> Subject:
    """Load the encoder of a run and extract the features of the training images.

    Parameters
    ----------
    run : str or Path
        Directory of `sacl-train`, or a checkpoint in it.
    train : str or Path
        Labelled training images; see `images.open_images`.
    device : str
        "auto", "cpu", "cuda", "cuda:1", ...
    root, size
        As in `images.open_images`.

    Raises
    ------
    UserError
        If there is no checkpoint in `run`, or no image in `train` has a label.
    """
    encoder, config, epochs = load_encoder(Path(run))
    torch_device = choose_device(device)
    encoder = encoder.to(torch_device)
    images = require_labels(open_images(train, root, size))
    store = FeatureStore(Path(run), encoder, config, torch_device)
    return Subject(Path(run), encoder, config, epochs, torch_device, store, images, store.get(images))


def open_test(place: str | Path, subject: Subject, root: str | Path | None = None, size: int | None = None) -> Images:
    """Open a labelled test set.

    Parameters
    ----------
    place : str or Path
        The test images; see `images.open_images`.
    subject : Subject
        The test set must have the classes and the image size of its training images.
    root, size
        As in `images.open_images`. If size is None, the training images' size is used, provided that they are square.

    Raises
    ------
    UserError
        If no image has a label, or the classes or the image size differ.
    """
    train = subject.train
    side = train.size[0] if train.size[0] == train.size[1] else None
    test = require_labels(open_images(place, root, size or side))
    if test.classes != train.classes:
        raise UserError(f"{place}: its classes {test.classes} differ from those of {train.place}, {train.classes}")
    if test.size != train.size:
        raise UserError(
            f"{place}: images of {test.size} px, but {train.size} px in {train.place}; build both with the same --size"
        )
    return test


def evaluate(
    probe: str,
    run: str | Path,
    train: str | Path,
    tests: list[str | Path],
    device: str = "auto",
    destroy: bool = False,
    root: str | Path | None = None,
    size: int | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Fit a probe on labelled training images and score it on test sets.

    Parameters
    ----------
    probe : str
        One of `PROBES`: "knn", "linear" or "ridge".
    run, train, device, root, size
        As in `load_subject`.
    tests : list of str or Path
        Labelled test sets; see `images.open_images`.
    destroy : bool
        Score the test images again with their cells shuffled, 4x4. A classifier that reads texture keeps its accuracy;
        one that reads shape loses it.
    **settings
        Settings of the probe: of `fit_knn`, `fit_linear` or `fit_ridge`. For "linear", lr="sweep" chooses the learning
        rate on a held-out tenth of the training images.

    Returns
    -------
    dict
        The figures and how they were measured, JSON-serialisable. "test" has a row per test set and variant (each k of
        kNN): "top1"; "top5" if there are more than five classes; "texture_decisions" if the images have a
        `texture_label` (the sets `shapes`), the fraction of predictions that follow the texture; "destroyed" with
        `destroy`, the top-1 accuracy on shuffled images. All are in 0..1. "sweep" and "chosen_lr" with lr="sweep".

    Raises
    ------
    UserError
        If there is no checkpoint, a set has no labels, or the sets differ in classes or image size.

    Examples
    --------
    >>> figures = evaluate("knn", "run", "shards", ["test-shards"], device="cpu", k=(5,))
    >>> [(row["split"], row["variant"], row["images"]) for row in figures["test"]]
    [('conflict', 'k=5', 40)]
    >>> 0 <= figures["test"][0]["top1"] <= 1
    True
    """
    subject = load_subject(run, train, device, root, size)
    features, labels = subject.features.values, subject.features.labels
    sweep: dict[str, Any] = {}
    fit_settings = dict(settings)
    if probe == "linear" and settings.get("lr") == "sweep":
        sweep_settings = {key: value for key, value in settings.items() if key != "lr"}
        accuracies = sweep_rates(features, labels, **sweep_settings)
        fit_settings["lr"] = max(accuracies, key=lambda rate: accuracies[rate])
        sweep = {"sweep": accuracies, "chosen_lr": fit_settings["lr"]}
    classifiers = PROBES[probe](features, labels, **fit_settings)
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
    return {"probe": probe, "settings": settings, **subject.about(), **sweep, "test": rows}


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
        follows_texture = scores.argmax(1) == torch.from_numpy(images.textures)[features.numbers]
        figures["texture_decisions"] = follows_texture.float().mean().item()
    return figures
