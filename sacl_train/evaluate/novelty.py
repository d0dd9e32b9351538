"""The one-class protocol: a network trained on images of one class should find those of all other classes novel."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sacl_train.data.rotations import TURNS, quarter_turns
from sacl_train.evaluate.detection import detection_figures
from sacl_train.evaluate.norm import DEFAULT_STATISTICS
from sacl_train.evaluate.ood import distance_scores
from sacl_train.evaluate.subject import open_like, open_subject
from sacl_train.methods.shift import ShiftHead
from texturegen.errors import UserError


def evaluate_novelty(
    run: str | Path,
    train: str | Path,
    test: str | Path,
    device: str = "auto",
    norm_statistics: str = DEFAULT_STATISTICS,
    k: int = 5,
) -> dict[str, Any]:
    """Measure how well a run's encoder detects images of classes that it was not trained on.

    Parameters
    ----------
    run, device, norm_statistics
        As in `subject.open_subject`.
    train : str or Path
        Labelled training images; their classes are the known ones.
    test : str or Path
        Labelled images of known and of other classes.
    k : int
        The neighbour whose distance is the score "knn".

    Returns
    -------
    dict
        The figures and how they were measured, JSON-serialisable. "test" has a row per score ("variant"), with the
        figures of `detection.detection_figures`: "knn", "mahalanobis" and "csi" as in `ood.make_scores`, and, if the
        run has a shift head, "shift", see `shift_score`.

    Raises
    ------
    UserError
        If all images of the test set, or none, are of known classes, and in the cases of `subject.open_subject`.
    """
    with open_subject(run, train, device, norm_statistics=norm_statistics) as subject:
        images = open_like(test, subject)
        features = subject.store.get(images)
        known = torch.isin(features.labels, subject.features.labels.unique())
        if known.all() or not known.any():
            raise UserError(
                f"{images.place}: {int(known.sum())} of {len(known)} images are of the training classes; the test set "
                "needs images of these and of other classes"
            )
        values = {name: score(features.values) for name, score in distance_scores(subject, k).items()}
        if subject.method.shift_head is not None:
            turned = [subject.store.get(images, _turn(n), f"turned {n}").values for n in range(TURNS)]
            values["shift"] = shift_score(subject.method.shift_head, [features.values, *turned])
        rows = [
            {"set": images.place, "split": images.split, "variant": name, "images": len(known)}
            | detection_figures(value[known], value[~known])
            for name, value in values.items()
        ]
        return {
            "probe": "novelty",
            "settings": {"k": k},
            **subject.about(),
            "known_images": int(known.sum()),
            "test": rows,
        }


@torch.no_grad()
def shift_score(head: ShiftHead, features: list[Tensor]) -> Tensor:
    """Return CSI's score by the shift head: the negative logit of the right kind of shift (Tack et al. 2020, eq. 8).

    The mean over the kinds that can be made from a test image: the image itself and, if the head knows them, its
    quarter turns. Textures would have to be synthesised first and are left out.

    Parameters
    ----------
    head : ShiftHead
    features : list of Tensor float (N, C)
        Of the images, and of their turns by 90, 180 and 270 degrees.

    Returns
    -------
    Tensor float (N,)
        Larger for images less like those of the training.
    """
    kinds = {0: features[0]}
    if head.shifts.turned:
        kinds |= {head.shifts.classes - TURNS + n: turned for n, turned in enumerate(features[1:])}
    return -torch.stack([head(x)[:, kind] for kind, x in kinds.items()]).mean(0)


def _turn(number: int) -> Any:
    """Return a transform of batches of images, for `FeatureStore.get`."""

    def turn(images: Tensor, samples: np.ndarray) -> Tensor:
        return quarter_turns(images)[:, number]

    return turn
