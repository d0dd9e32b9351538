"""Out-of-distribution detection: which images are unlike those that a probe was fitted on, by four published scores.

A score is larger for an image that is further from the training images. Areas and rates are computed by `detection`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from sacl_train.evaluate.detection import detection_figures
from sacl_train.evaluate.images import BATCH, Images, ShardImages, TextureImages
from sacl_train.evaluate.linear import fit_linear
from sacl_train.evaluate.norm import DEFAULT_STATISTICS, whole_batches
from sacl_train.evaluate.subject import Subject, open_like, open_subject
from texturegen.errors import UserError

Score = Callable[[Tensor], Tensor]  # features float (N, C) -> float (N,), or embeddings (N, D)

CHUNK = 512  # features taken at once
PROTOCOL = "distance to the training images, features of whole images; max-softmax of a linear layer by LARS"


def evaluate_ood(
    run: str | Path,
    train: str | Path,
    test: str | Path,
    ood: list[str | Path],
    device: str = "auto",
    root: str | Path | None = None,
    size: int | None = None,
    network: str = "online",
    norm_statistics: str = DEFAULT_STATISTICS,
    textures: bool = False,
    k: int = 50,
    **settings: Any,
) -> dict[str, Any]:
    """Measure how well a run's encoder detects images of other sets, by four scores.

    Parameters
    ----------
    run, device, root, size, network, norm_statistics
        As in `subject.open_subject`.
    train : str or Path
        Labelled training images, the reference of all scores.
    test : str or Path
        Other images of the same kind: the in-distribution set.
    ood : list of str or Path
        Out-of-distribution sets of the same image size; labels are not read. See `images.open_images`.
    textures : bool
        Use the textures of the test images as an out-of-distribution set too; the test set must be shards that have
        some.
    k : int
        The neighbour whose distance is the score "knn".
    **settings
        Settings of `fit_linear`, for the score "max-softmax".

    Returns
    -------
    dict
        The figures and how they were measured, JSON-serialisable. "test" has a row per out-of-distribution set and
        score ("variant"), with the figures of `detection.detection_figures`. "csi_space": "projector", or "features" if
        the network has no projector.

    Raises
    ------
    UserError
        If there is no out-of-distribution set, the test set has no textures, the image sizes differ, and in the cases
        of `subject.open_subject`.

    Examples
    --------
    >>> figures = evaluate_ood("run", "shards", "shards", ["test-shards"], device="cpu", k=5, epochs=5)
    >>> [row["variant"] for row in figures["test"]]
    ['knn', 'mahalanobis', 'csi', 'max-softmax']
    """
    if not ood and not textures:
        raise UserError("there is no out-of-distribution set; give one with --ood, or --textures")
    with open_subject(run, train, device, root, size, network, norm_statistics) as subject:
        inside = open_like(test, subject, root, size)
        sets = [open_like(place, subject, root, size) for place in ood]
        if textures:
            sets.append(_textures_of(inside))
        scores = make_scores(subject, k, **settings)
        of_inside = subject.store.get(inside, labelled_only=False).values
        rows = []
        for outside in sets:
            values = subject.store.get(outside, labelled_only=False).values
            for name, score in scores.items():
                row = {"set": outside.place, "split": outside.split, "variant": name, "images": len(values)}
                rows.append(row | detection_figures(score(of_inside), score(values)))
        return {
            "probe": "ood",
            "protocol": PROTOCOL,
            "settings": {"k": k, **settings},
            **subject.about(),
            "in_distribution": inside.place,
            "in_distribution_split": inside.split,
            "in_distribution_images": len(of_inside),
            "csi_space": "features" if subject.projector is None else "projector",
            "test": rows,
        }


def make_scores(subject: Subject, k: int = 50, **settings: Any) -> dict[str, Score]:
    """Return the four scores, fitted on the features of a subject's training images.

    Parameters
    ----------
    subject : Subject
        The network and its training images.
    k, settings
        As in `evaluate_ood`.

    Returns
    -------
    dict of str to Score
        Functions of features float (N, C) that return float (N,), larger for images further from the training images.
    """
    classify = fit_linear(subject.features.values, subject.features.labels, **settings)[""]
    return distance_scores(subject, k) | {"max-softmax": lambda x: -classify(x).softmax(1).amax(1)}


def distance_scores(subject: Subject, k: int = 50) -> dict[str, Score]:
    """Return the scores "knn", "mahalanobis" and "csi", which need no classifier.

    Parameters
    ----------
    subject, k
        As in `make_scores`.
    """
    features = subject.features.values
    project = make_projection(subject)
    bank = features if project is None else project(features)
    return {
        "knn": lambda x: knn_distance(features, x, k),
        "mahalanobis": fit_mahalanobis(features, subject.features.labels),
        "csi": lambda x: -csi_score(bank, x if project is None else project(x)),
    }


def knn_distance(bank: Tensor, queries: Tensor, k: int = 50) -> Tensor:
    """Return the Euclidean distance of unit features to their k-th nearest training feature (Sun et al. 2022, eq. 2).

    Parameters
    ----------
    bank, queries : Tensor float (M, C), (N, C)
        Need not be normalised.
    k : int
        At least 1; more than M means M.

    Returns
    -------
    Tensor float (N,)

    Raises
    ------
    UserError
        If k is below 1.
    """
    if k < 1:
        raise UserError(f"k must be at least 1, not {k}")
    bank = F.normalize(bank, dim=1)
    chunks = F.normalize(queries, dim=1).split(CHUNK)
    cosines = torch.cat([(chunk @ bank.T).topk(min(k, len(bank)), dim=1).values[:, -1] for chunk in chunks])
    return (2 - 2 * cosines).clamp_min(0).sqrt()


def fit_mahalanobis(features: Tensor, labels: Tensor) -> Score:
    """Return the squared Mahalanobis distance to the nearest class mean (Lee et al. 2018, eq. 1, 2).

    All classes share one covariance. Computed in float64. Directions in which no training feature varies are ignored.

    Parameters
    ----------
    features : Tensor float (M, C)
    labels : Tensor int64 (M,)
        0 or above; classes without an image are left out.

    Returns
    -------
    Score
    """
    present, index = labels.unique(return_inverse=True)
    means = torch.zeros(len(present), features.shape[1], dtype=torch.float64, device=features.device)
    covariance = means.new_zeros(features.shape[1], features.shape[1])
    # In pieces: a float64 copy of all features of ImageNet would take tens of GB.
    for x, classes in zip(features.split(CHUNK), index.split(CHUNK), strict=True):
        means.index_add_(0, classes, x.double())
    means /= index.bincount()[:, None]
    for x, classes in zip(features.split(CHUNK), index.split(CHUNK), strict=True):
        centred = x.double() - means[classes]
        covariance.addmm_(centred.T, centred, alpha=1 / len(features))
    # The distance is Euclidean after whitening, so all classes are compared at once.
    values, directions = torch.linalg.eigh(covariance)
    varies = values > len(values) * torch.finfo(values.dtype).eps * values.max()  # as torch.linalg.pinv has it
    whiten = directions[:, varies] / values[varies].sqrt()
    centres = means @ whiten

    def score(queries: Tensor) -> Tensor:
        chunks = [torch.cdist(chunk.double() @ whiten, centres).amin(1) for chunk in queries.split(CHUNK)]
        return torch.cat(chunks).square()

    return score


def csi_score(bank: Tensor, queries: Tensor) -> Tensor:
    """Return the cosine similarity to the nearest training embedding, times the norm (Tack et al. 2020, eq. 6).

    Parameters
    ----------
    bank, queries : Tensor float (M, D), (N, D)
        Embeddings, not normalised.

    Returns
    -------
    Tensor float (N,)
        Smaller for images further from the training images.
    """
    unit = F.normalize(bank, dim=1)
    nearest = [(F.normalize(chunk, dim=1) @ unit.T).amax(1) for chunk in queries.split(CHUNK)]
    return torch.cat(nearest) * queries.norm(dim=1)


def make_projection(subject: Subject) -> Score | None:
    """Return the projector behind the encoder, in eval mode, or None if the network has none.

    With norm_statistics "images", its BatchNorm statistics are estimated on the features of the training images.

    Returns
    -------
    callable or None
        Maps features float (N, C) to embeddings float32 (N, D).
    """
    projector = subject.projector
    if projector is None:
        return None
    values = subject.features.values
    if subject.norm_statistics == "images":
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(values))).to(values.device)
        update_bn(values[order[: whole_batches(len(order))]].split(BATCH), projector)
    projector.eval()

    @torch.no_grad()
    def project(features: Tensor) -> Tensor:
        return torch.cat([projector(chunk).float() for chunk in features.split(CHUNK)])

    return project


def _textures_of(images: Images) -> TextureImages:
    if not isinstance(images, ShardImages) or not images.shards.textures_per_image:
        raise UserError(
            f"{images.place}: no textures; --textures needs a test set of shards built with --per-image 1 or more"
        )
    return TextureImages(images.shards, images.bad_share)
