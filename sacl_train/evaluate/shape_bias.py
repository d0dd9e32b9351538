"""Shape bias on the cue-conflict stimuli (Geirhos et al. 2019, "ImageNet-trained CNNs are biased towards texture").

A stimulus has the shape of one class and the texture of another; what matters is which of the two a classifier names.
Stimuli are files CLASS/SHAPE<k>-TEXTURE<k>.EXT, as the paper's authors publish them (toolbox model-vs-human).
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sacl_train.evaluate.features import encode_images
from sacl_train.evaluate.linear import fit_linear
from sacl_train.evaluate.probe import load_subject, open_test
from texturegen.errors import UserError
from texturegen.sources.resize import fit_square
from texturegen.storage.image import decode_image

CATEGORIES = (
    *("airplane", "bear", "bicycle", "bird", "boat", "bottle", "car", "cat"),
    *("chair", "clock", "dog", "elephant", "keyboard", "knife", "oven", "truck"),
)

# What CIFAR-10, STL-10 and ImageNet-100 call them. For ImageNet the paper's own assignment of WordNet ids to the
# categories (its section 2.4), as far as the ids are among the hundred.
NAMES = {
    "automobile": "car",
    "ship": "boat",
    "n03085013": "keyboard",
    "n04111531": "oven",
    "n04099969": "chair",
    "n04429376": "chair",
    "n02123045": "cat",
    "n03930630": "truck",
}
NAMES |= dict.fromkeys(("n01558993", "n01820546", "n01855672", "n02009229", "n02018207"), "bird")
NAMES |= dict.fromkeys(("n02086240", "n02086910", "n02087046", "n02089867", "n02089973", "n02090622"), "dog")
NAMES |= dict.fromkeys(("n02091831", "n02093428", "n02099849", "n02100583", "n02104029", "n02105505"), "dog")
NAMES |= dict.fromkeys(("n02106550", "n02107142", "n02109047", "n02113799", "n02113978"), "dog")
STIMULUS = re.compile(r"([a-z]+)\d+-([a-z]+)\d+")


def shape_bias(decisions: list[str], shapes: list[str], textures: list[str]) -> dict[str, Any]:
    """Shares of decisions for the shape, for the texture, and for neither; all in 0..1 or None where undefined.

    Stimuli whose shape is their texture are left out. "bias": shape decisions among those for either (section 3 of the
    paper); the same for the stimuli of each shape in "classes".
    """
    rows = [row for row in zip(decisions, shapes, textures, strict=True) if row[1] != row[2]]

    def bias(of: list[tuple[str, str, str]]) -> dict[str, Any]:
        shape = sum(decision == s for decision, s, _ in of)
        texture = sum(decision == t for decision, _, t in of)
        return {
            "stimuli": len(of),
            "shape_decisions": shape / len(of) if of else None,
            "texture_decisions": texture / len(of) if of else None,
            "bias": shape / (shape + texture) if shape + texture else None,
        }

    return {**bias(rows), "classes": {c: bias([r for r in rows if r[1] == c]) for c in sorted({r[1] for r in rows})}}


def read_stimuli(directory: Path, side: int) -> tuple[np.ndarray, list[str], list[str]]:
    """All stimuli as uint8 (N, side, side, 3), their shapes and textures. UserError when there are none."""
    images, shapes, textures = [], [], []
    for path in sorted(directory.glob("*/*")):
        match = STIMULUS.fullmatch(path.stem)
        if match and set(match.groups()) <= set(CATEGORIES):
            try:
                images.append(fit_square(decode_image(path.read_bytes()), side))
            except ValueError as error:
                raise UserError(f"{path}: {error}") from None
            shapes.append(match[1])
            textures.append(match[2])
    if not images:
        raise UserError(
            f"{directory}: no stimuli here; they are files like CLASS/cat7-bottle2.png of the classes "
            f"{', '.join(CATEGORIES)}"
        )
    return np.stack(images), shapes, textures


def categorise(scores: torch.Tensor, classes: list[str]) -> list[str]:
    """The category decided for, per row of logits (N, classes).

    A category's probability is the mean of its classes', the paper's rule; classes of no category are not answers.
    """
    category = [NAMES.get(name, name) for name in classes]
    known = sorted(set(category) & set(CATEGORIES))
    if len(known) < 2:
        raise UserError(f"the classes {', '.join(classes[:5])} ... hold fewer than two of {', '.join(CATEGORIES)}")
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
    **settings: Any,
) -> dict[str, Any]:
    """Shape bias of a linear probe that is trained on `train`, on the stimuli whose shape and texture it knows.

    stimuli: a folder of them, or a set of images that have a class of shape and one of texture (`shapes:conflict`, or
    shards of it). settings: of `fit_linear`. Raises UserError when the classes are none of the stimuli's.
    """
    subject = load_subject(run, train, device, root, size)
    classes = subject.train.classes
    told = {"probe": "shape-bias", "settings": settings, **subject.about(), "stimuli_directory": str(stimuli)}
    classify = fit_linear(subject.features.values, subject.features.labels, **settings)[""]
    if (Path(stimuli) / "build.json").is_file() or not Path(stimuli).exists():
        conflict = open_test(stimuli, subject, root, size)
        if conflict.textures is None:
            raise UserError(f"{stimuli}: its images have no class of texture; give stimuli or shapes:conflict")
        seen = subject.store.of(conflict)
        named = [classes[i] for i in classify(seen.values).argmax(1).tolist()]
        of_texture = [classes[i] for i in conflict.textures[seen.numbers.numpy()].tolist()]
        return {**told, **shape_bias(named, [classes[i] for i in seen.labels.tolist()], of_texture)}
    images, shapes, textures = read_stimuli(Path(stimuli), min(subject.train.size))
    known = {NAMES.get(name, name) for name in classes}
    picked = [i for i in range(len(images)) if {shapes[i], textures[i]} <= known]
    if not picked:
        raise UserError(f"{train}: its classes are none of the stimuli's, {', '.join(CATEGORIES)}")
    shown = torch.from_numpy(images[picked]).permute(0, 3, 1, 2)
    queries = encode_images(subject.encoder, shown, subject.config, subject.device)
    named = categorise(classify(queries), classes)
    return {**told, **shape_bias(named, [shapes[i] for i in picked], [textures[i] for i in picked])}
