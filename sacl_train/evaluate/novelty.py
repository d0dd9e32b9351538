"""The one-class protocol: a network trained on images of one class should find those of all other classes novel.

BatchNorm keeps its running averages of the training by default, as in CSI (Tack et al. 2020), where other probes
estimate the statistics of whole images. Here these are of a single class, and a network that also saw shifted copies
was trained with other statistics: with rotations kNN loses twelve points of AUROC (docs/negatives.md).
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sacl_train.data.rotations import TURNS, quarter_turns
from sacl_train.evaluate.detection import detection_figures
from sacl_train.evaluate.ood import Score, csi_score, distance_scores, make_projection
from sacl_train.evaluate.subject import open_subject, open_test
from sacl_train.methods.shift import ShiftHead
from texturegen.errors import UserError


def evaluate_novelty(
    run: str | Path,
    train: str | Path,
    test: str | Path,
    device: str = "auto",
    norm_statistics: str = "training",
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
        Labelled images of known and of other classes; the names of the classes are those of the training images.
    k : int
        The neighbour whose distance is the score "knn".

    Returns
    -------
    dict
        The figures and how they were measured, JSON-serialisable. "test" has a row per score ("variant"), with the
        figures of `detection.detection_figures`: "knn", "mahalanobis" and "csi" as in `ood.make_scores`, and, if the
        run has a shift head, "shift", see `shift_score`, and "csi-shifts", see `csi_shifts_score`.

    Raises
    ------
    UserError
        If all images of the test set, or none, are of known classes, and in the cases of `subject.open_test`.
    """
    with open_subject(run, train, device, norm_statistics=norm_statistics) as subject:
        images = open_test(test, subject)
        features = subject.store.get(images)
        known = torch.isin(features.labels, subject.features.labels.unique())
        if known.all() or not known.any():
            raise UserError(
                f"{images.place}: {int(known.sum())} of {len(known)} images are of the training classes; the test set "
                "needs images of these and of other classes"
            )
        values = {name: score(features.values) for name, score in distance_scores(subject, k).items()}
        head = subject.method.shift_head
        if head is not None:
            known_of, test_of = (
                [whole.values, *(subject.store.get(of, _turn(n), f"turned {n}").values for n in range(_turns(head)))]
                for of, whole in ((subject.train, subject.features), (images, features))
            )
            values["shift"] = shift_score(head, test_of)
            values["csi-shifts"] = csi_shifts_score(head, make_projection(subject), known_of, test_of)
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
        Of the images and, if the head knows them, of their turns by 90, 180 and 270 degrees.

    Returns
    -------
    Tensor float (N,)
        Larger for images less like those of the training.
    """
    kinds = _kinds(head)
    return -torch.stack([head(x)[:, kind] for kind, x in zip(kinds, features, strict=True)]).mean(0)


@torch.no_grad()
def csi_shifts_score(head: ShiftHead, project: Score | None, known: list[Tensor], features: list[Tensor]) -> Tensor:
    """Return CSI's whole score: eq. 6 and the logit of the head, over the shifts of an image (Tack et al. 2020, eq. 9).

    Each term is divided by its mean over the training images, whose nearest one is itself. The shifts are those of
    `shift_score`.

    Parameters
    ----------
    head : ShiftHead
    project : callable or None
        Features -> embeddings; None: the features are the embeddings.
    known, features : list of Tensor float (M, C), (N, C)
        Of the training images and of others; lists as in `shift_score`.

    Returns
    -------
    Tensor float (N,)
        Larger for images less like those of the training.
    """
    total = torch.zeros(len(features[0]), device=features[0].device)
    for kind, x, queries in zip(_kinds(head), known, features, strict=True):
        bank, z = (x, queries) if project is None else (project(x), project(queries))
        total += csi_score(bank, z) / bank.norm(dim=1).mean()
        total += head(queries)[:, kind] / head(x)[:, kind].mean()
    return -total


def _turns(head: ShiftHead) -> int:
    """Return the number of quarter turns that the head knows."""
    return TURNS if head.shifts.turned else 0


def _kinds(head: ShiftHead) -> list[int]:
    """Return the classes of an image and of its quarter turns, if the head knows them."""
    turns = _turns(head)
    return [0, *range(head.shifts.classes - turns, head.shifts.classes)]


def _turn(number: int) -> Any:
    """Return a transform of batches of images, for `FeatureStore.get`."""

    def turn(images: Tensor, samples: np.ndarray) -> Tensor:
        return quarter_turns(images)[:, number]

    return turn
