"""Shape bias on cue-conflict stimuli (Geirhos et al. 2019, "ImageNet-trained CNNs are biased towards texture").

A stimulus has the shape of one class and the texture of another; the bias measures how often a classifier predicts the
shape rather than the texture. Stimuli are files CLASS/SHAPE<k>-TEXTURE<k>.EXT, as the authors publish them (toolbox
model-vs-human).
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sacl_train.evaluate.categories import CATEGORIES, CATEGORY_BY_CLASS
from sacl_train.evaluate.features import encode_images
from sacl_train.evaluate.images import Images
from sacl_train.evaluate.interface import Classifier
from sacl_train.evaluate.linear import fit_linear
from sacl_train.evaluate.norm import DEFAULT_STATISTICS
from sacl_train.evaluate.probe import PROTOCOLS
from sacl_train.evaluate.subject import Subject, open_subject, open_test
from texturegen.errors import DamagedError, MissingError, UserError
from texturegen.sources.resize import fit_square
from texturegen.storage.image import decode_image

STIMULUS = re.compile(r"([a-z]+)\d+-([a-z]+)\d+")


def shape_bias(decisions: list[str], shapes: list[str], textures: list[str]) -> dict[str, Any]:
    """Return the shape bias, and the fractions of decisions for the shape and for the texture.

    Stimuli with shape and texture of the same class are left out.

    Parameters
    ----------
    decisions : list of str
        The category predicted for each stimulus.
    shapes, textures : list of str
        Categories of the stimuli's shapes and textures.

    Returns
    -------
    dict
        "stimuli"; "shape_decisions", "texture_decisions" and "bias" in 0..1, or None if undefined; the bias is the
        fraction of shape decisions among those for shape or texture (section 3). "classes": the same for the stimuli of
        each shape.

    Examples
    --------
    >>> figures = shape_bias(["cat", "dog", "car"], ["cat", "cat", "cat"], ["dog", "dog", "dog"])
    >>> figures["bias"]
    0.5
    """
    rows = [row for row in zip(decisions, shapes, textures, strict=True) if row[1] != row[2]]

    def count(rows: list[tuple[str, str, str]]) -> dict[str, Any]:
        shape = sum(decision == s for decision, s, _ in rows)
        texture = sum(decision == t for decision, _, t in rows)
        return {
            "stimuli": len(rows),
            "shape_decisions": shape / len(rows) if rows else None,
            "texture_decisions": texture / len(rows) if rows else None,
            "bias": shape / (shape + texture) if shape + texture else None,
        }

    return {**count(rows), "classes": {c: count([r for r in rows if r[1] == c]) for c in sorted({r[1] for r in rows})}}


def read_stimuli(directory: Path, side: int) -> tuple[np.ndarray, list[str], list[str]]:
    """Read all stimuli of a directory.

    Parameters
    ----------
    directory : Path
        Files CLASS/SHAPE<k>-TEXTURE<k>.EXT; others are ignored.
    side : int
        Resize stimuli to this side in pixels.

    Returns
    -------
    images : ndarray uint8 (N, side, side, 3)
    shapes, textures : list of str
        Categories of the shapes and the textures.

    Raises
    ------
    UserError
        If there are no stimuli, or one cannot be decoded.
    """
    images, shapes, textures = [], [], []
    for path in sorted(directory.glob("*/*")):
        match = STIMULUS.fullmatch(path.stem)
        if match and set(match.groups()) <= set(CATEGORIES):
            try:
                images.append(fit_square(decode_image(path.read_bytes()), side))
            except ValueError as error:
                raise DamagedError(f"{path}: {error}") from None
            shapes.append(match[1])
            textures.append(match[2])
    if not images:
        raise MissingError(
            f"{directory}: no stimuli found; expected files like CLASS/cat7-bottle2.png of the categories "
            f"{', '.join(CATEGORIES)}"
        )
    return np.stack(images), shapes, textures


def categorise(scores: torch.Tensor, classes: list[str]) -> list[str]:
    """Return the predicted category of each stimulus.

    The probability of a category is the mean over its classes (section 2.4); classes without a category are
    ignored.

    Parameters
    ----------
    scores : Tensor float (N, classes)
        Logits.
    classes : list of str
        Names of the classes.

    Raises
    ------
    UserError
        If the classes cover fewer than two categories.
    """
    category = [CATEGORY_BY_CLASS.get(name, name) for name in classes]
    known = sorted(set(category) & set(CATEGORIES))
    if len(known) < 2:
        raise UserError(f"the classes {', '.join(classes[:5])} ... include fewer than two of {', '.join(CATEGORIES)}")
    probability = scores.double().softmax(dim=1)
    means = [probability[:, [i for i, c in enumerate(category) if c == name]].mean(dim=1) for name in known]
    return [known[i] for i in torch.stack(means, dim=1).argmax(dim=1).tolist()]


def evaluate_shape_bias(
    run: str | Path,
    train: str | Path,
    stimuli: str | Path,
    device: str = "auto",
    root: str | Path | None = None,
    size: int | None = None,
    network: str = "online",
    norm_statistics: str = DEFAULT_STATISTICS,
    **settings: Any,
) -> dict[str, Any]:
    """Return the shape bias of a linear probe on a run's encoder.

    Only stimuli with both shape and texture among the classes of the training images are scored.

    Parameters
    ----------
    run, train, device, root, size, network, norm_statistics
        As in `subject.open_subject`.
    stimuli : str or Path
        A directory of stimuli, or images with a class for the shape and one for the texture (`shapes:conflict`, or
        shards of it).
    **settings
        Settings of `fit_linear`.

    Returns
    -------
    dict
        The figures of `shape_bias` and how they were measured, JSON-serialisable.

    Raises
    ------
    UserError
        If no stimulus can be scored, and in the cases of `probe.evaluate`.
    """
    with open_subject(run, train, device, root, size, network, norm_statistics) as subject:
        about = {"probe": "shape-bias", "protocol": PROTOCOLS["linear"], "settings": settings, **subject.about()}
        about["stimuli_directory"] = str(stimuli)
        classify = fit_linear(subject.features.values, subject.features.labels, **settings)[""]
        if (Path(stimuli) / "build.json").is_file() or not Path(stimuli).exists():
            return {**about, **_score_images(subject, classify, open_test(stimuli, subject, root, size))}
        return {**about, **_score_stimuli(subject, classify, Path(stimuli))}


def _score_images(subject: Subject, classify: Classifier, conflict: Images) -> dict[str, Any]:
    """Return the shape bias on images that have a class for the shape and one for the texture."""
    if conflict.textures is None:
        raise UserError(
            f"{conflict.place}: the images have no texture class; use a directory of stimuli or shapes:conflict"
        )
    classes, found = subject.train.classes, subject.store.get(conflict)
    decisions = [classes[i] for i in classify(found.values).argmax(1).tolist()]
    shape_names = [classes[i] for i in found.labels.tolist()]
    texture_names = [classes[i] for i in conflict.textures[found.numbers.numpy()].tolist()]
    return shape_bias(decisions, shape_names, texture_names)


def _score_stimuli(subject: Subject, classify: Classifier, stimuli: Path) -> dict[str, Any]:
    """Return the shape bias on a directory of stimuli."""
    trained = subject.features.labels.unique()  # the probe cannot predict a class without training images
    classes = [subject.train.classes[i] for i in trained.tolist()]
    images, shapes, textures = read_stimuli(stimuli, min(subject.train.size))
    known = {CATEGORY_BY_CLASS.get(name, name) for name in classes}
    picked = [i for i in range(len(images)) if {shapes[i], textures[i]} <= known]
    if not picked:
        raise UserError(
            f"{stimuli}: no stimulus has both its shape and its texture among the classes of {subject.train.place}; "
            f"the categories are {', '.join(CATEGORIES)}"
        )
    pixels = torch.from_numpy(images[picked]).permute(0, 3, 1, 2)
    queries = encode_images(subject.encoder, pixels, subject.config, subject.device)
    decisions = categorise(classify(queries)[:, trained], classes)
    return shape_bias(decisions, [shapes[i] for i in picked], [textures[i] for i in picked])
