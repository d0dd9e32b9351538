"""From a run and sets of labelled images to the figures of a probe."""

from collections.abc import Callable
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
from sacl_train.evaluate.images import Images, labelled, open_images
from sacl_train.evaluate.knn import fit_knn
from sacl_train.evaluate.linear import fit_linear, sweep_rates
from sacl_train.evaluate.ridge import fit_ridge
from sacl_train.nets import Encoder
from sacl_train.training.resume import load_encoder
from sacl_train.training.setup import choose_device
from texturegen.errors import UserError

Classifier = Callable[[Tensor], Tensor]  # features (N, C) -> scores (N, classes)

# name -> (training features, their labels, **settings) -> classifiers by variant
PROBES: dict[str, Callable[..., dict[str, Classifier]]] = {"knn": fit_knn, "linear": fit_linear, "ridge": fit_ridge}
DESTROYED = 4  # cells a side of a patch-destroyed image


@dataclass(frozen=True)
class Subject:
    """What is evaluated: the encoder of a run, and the labelled images a classifier is trained on."""

    run: Path
    encoder: Encoder
    config: Config
    epochs: int
    device: torch.device
    store: FeatureStore
    train: Images
    features: Features

    def about(self) -> dict[str, Any]:
        """What every probe's figures begin with."""
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
    """Raises UserError when there is no checkpoint in `run`, or `train` has no labels."""
    encoder, config, epochs = load_encoder(Path(run))
    chosen = choose_device(device)
    encoder = encoder.to(chosen)
    images = labelled(open_images(train, root, size))
    store = FeatureStore(Path(run), encoder, config, chosen)
    return Subject(Path(run), encoder, config, epochs, chosen, store, images, store.of(images))


def open_test(place: str | Path, subject: Subject, root: str | Path | None = None, size: int | None = None) -> Images:
    """A labelled test set of the training images' classes and size; UserError when it is not."""
    train = subject.train
    side = train.size[0] if train.size[0] == train.size[1] else None
    test = labelled(open_images(place, root, size or side))
    if test.classes != train.classes:
        raise UserError(f"{place}: its classes {test.classes} are not those of {train.place}, {train.classes}")
    if test.size != train.size:
        raise UserError(f"{place}: images of {test.size} px, but {train.size} px in {train.place}; build with --size")
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
    """Fit `probe` on the labelled images of `train` and score it on each of `tests` (see `images.open_images`).

    Returns what was measured and how, ready for JSON: per test set (and k of kNN) top-1, top-5 (where there are more
    than five classes) and, where the test images carry a `texture_label` (the `shapes` sets), the share of predictions
    that follow the texture; all in 0..1. With `destroy` also "destroyed", top-1 of the same test images with their
    cells, 4 to a side, shuffled: whoever reads texture keeps its accuracy, whoever reads shape loses it.

    `linear` with lr "sweep" chooses it on a held-out tenth of the training images; "sweep" then has what each gave.

    Raises UserError when there is no checkpoint, a set has no labels, or the sets differ in classes or image size.
    """
    subject = load_subject(run, train, device, root, size)
    known = subject.features
    found: dict[str, Any] = {}
    fitted = dict(settings)
    if probe == "linear" and settings.get("lr") == "sweep":
        rest = {key: value for key, value in settings.items() if key != "lr"}
        found["sweep"] = sweep_rates(known.values, known.labels, **rest)
        fitted["lr"] = found["chosen_lr"] = max(found["sweep"], key=lambda rate: found["sweep"][rate])
    classifiers = PROBES[probe](known.values, known.labels, **fitted)
    results = []
    for place in tests:
        images = open_test(place, subject, root, size)
        seen = subject.store.of(images)
        cells = subject.store.of(images, shuffle_cells, f"destroyed {DESTROYED}") if destroy else None
        for variant, classify in classifiers.items():
            row = {"set": str(place), "split": images.split, "variant": variant}
            row |= score(images, classify(seen.values), seen)
            if cells is not None:
                row["destroyed"] = score(images, classify(cells.values), cells)["top1"]
            results.append(row)
    return {"probe": probe, "settings": settings, **subject.about(), **found, "test": results}


def shuffle_cells(images: Tensor, samples: np.ndarray) -> Tensor:
    """Images uint8 (N, C, H, W) with their cells, 4 to a side, in another order, the same for a sample each time."""
    side = min(images.shape[-2:]) // DESTROYED
    return shuffle_patches(images, Draws(0, 0, samples).of(0), (side, side))


def score(images: Images, scores: Tensor, of: Features) -> dict[str, Any]:
    """Figures of scores (N, classes) of the images whose features are `of`."""
    hit = scores.topk(min(5, scores.shape[1]), dim=1).indices == of.labels[:, None]
    figures: dict[str, Any] = {"images": len(of.labels), "top1": hit[:, 0].float().mean().item()}
    if scores.shape[1] > 5:
        figures["top5"] = hit.any(1).float().mean().item()
    if images.textures is not None:
        follows = scores.argmax(1) == torch.from_numpy(images.textures)[of.numbers]
        figures["texture_decisions"] = follows.float().mean().item()
    return figures
