"""Test for a shortcut: does one direction, "is synthetic", separate all textures from all photographs?

If it does, a contrastive loss can discount its texture negatives at no cost: one direction lowers all their
similarities, whatever the images show, and the negatives teach nothing. The test uses the encoder's features and the
projector's embeddings.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from sacl_train.data.weak import normalise
from sacl_train.evaluate.features import encode_views
from sacl_train.evaluate.images import ShardImages
from sacl_train.evaluate.norm import DEFAULT_STATISTICS, estimate_statistics
from sacl_train.evaluate.ridge import fit_ridge
from sacl_train.evaluate.subject import Model, open_model
from sacl_train.training.precision import autocast
from texturegen.console import plural
from texturegen.errors import UserError
from texturegen.shards import Shards, open_shards

MAX_IMAGES = 2000
MAX_BATCH = 250  # images encoded at once


def evaluate_shortcut(
    run: str | Path,
    shards: str | Path,
    device: str = "auto",
    network: str = "online",
    norm_statistics: str = DEFAULT_STATISTICS,
) -> dict[str, Any]:
    """Measure how a run's networks separate images from their textures.

    Uses up to 2000 images, evenly spaced over the shards, and the first texture of each. Embeddings are L2-normalised
    outputs of the projector, computed with batch statistics, as in training; methods without a projector
    have no embeddings.

    Parameters
    ----------
    run, device, network, norm_statistics
        As in `subject.open_model`; with "images", the BatchNorm statistics behind the features are estimated on the
        images of the shards.
    shards : str or Path
        Shards with textures, as the run was trained on.

    Returns
    -------
    dict
        The figures and how they were measured, JSON-serialisable. "told_apart": accuracy (0..1; chance is 0.5) of
        a linear classifier that separates images from textures by their features, on a held-out half. The other figures
        are those of `explain_similarities` on the embeddings.

    Raises
    ------
    UserError
        If there is no checkpoint, or the shards have no textures or fewer than two images.
    """
    with open_model(run, device, network, norm_statistics) as model:
        dataset = open_shards(shards)
        if not dataset.textures_per_image:
            raise UserError(f"{shards}: these shards have no textures; build shards with --per-image 1")
        if len(dataset) < 2:
            raise UserError(f"{shards}: {plural(len(dataset), 'image')}; the comparison needs at least 2")
        images = ShardImages(dataset)
        model.warn_of_size(images)
        if model.norm_statistics == "images":
            estimate_statistics(model.encoder, images, model.config, model.device)
        count = min(MAX_IMAGES, len(dataset))
        features, embeddings = _encode_pairs(model, dataset, np.linspace(0, len(dataset) - 1, count).astype(int))
        figures = {
            "probe": "shortcut",
            "protocol": "ridge regression, features of whole images and textures",
            **model.about(),
            "shards": str(shards),
            "images": count,
            "told_apart": tell_apart(*features),
        }
        return figures | (explain_similarities(*embeddings) if embeddings else {})


@torch.inference_mode()
def _encode_pairs(model: Model, dataset: Shards, picked: np.ndarray) -> tuple[list[Tensor], list[Tensor]]:
    """Return the features (N, C) of images and of their textures, and their embeddings, if there is a projector."""
    config, method = model.config, model.method
    assert config.mean is not None
    assert config.std is not None
    features: dict[str, list[Tensor]] = {"image": [], "texture": []}
    embeddings: dict[str, list[Tensor]] = {"image": [], "texture": []}
    project = model.projector
    for module in method.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 0.0  # forward passes in train mode must not change the running statistics
    # Embeddings depend on the statistics of their batch, so all batches have the same size (within one image).
    for indices in np.array_split(picked, -(-len(picked) // MAX_BATCH)):
        samples = [dataset[i] for i in indices.tolist()]
        for name, pixels in (
            ("image", [sample.image for sample in samples]),
            ("texture", [sample.texture(0) for sample in samples]),
        ):
            stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).to(model.device)
            x = normalise(stacked, config.mean, config.std)
            method.eval()
            features[name].append(encode_views(model.encoder, x, config))
            if project is not None:
                method.train()  # images and textures are normalised by their own batch statistics, as in training
                with autocast(config, model.device):
                    embeddings[name].append(F.normalize(project(model.encoder(x)).float(), dim=1))
    found = [torch.cat(pieces) for pieces in features.values()]
    return found, [torch.cat(pieces) for pieces in embeddings.values() if pieces]


def tell_apart(images: Tensor, textures: Tensor) -> float:
    """Return the accuracy of a ridge classifier that separates images from textures.

    The classifier is fitted on every second pair and scored on the others.

    Parameters
    ----------
    images, textures : Tensor float (N, C)
        Features of images and of their textures.

    Returns
    -------
    float
        0..1; chance is 0.5.
    """
    values = torch.stack([images, textures], 1)  # keeps an image and its texture in the same half
    labels = torch.tensor([0, 1], device=values.device).expand(len(values), 2)
    classify = fit_ridge(values[::2].flatten(0, 1), labels[::2].flatten())[""]
    is_correct = classify(values[1::2].flatten(0, 1)).argmax(1) == labels[1::2].flatten()
    return is_correct.float().mean().item()


def explain_similarities(images: Tensor, textures: Tensor) -> dict[str, float]:
    """Decompose the similarities of images to textures.

    Parameters
    ----------
    images, textures : Tensor float (N, D)
        Unit vectors; row i of `textures` belongs to image i; N >= 2.

    Returns
    -------
    dict of str to float
        "own_texture", "other_textures", "other_images": mean cosine of an image to its own texture, to other textures
        and to other images. "one_direction", "own_share": subtract the mean similarity to other images from the
        similarities to textures; these are the fractions (0..1) of the sum of squares that are explained by the
        direction from the mean image to the mean texture alone, and by a texture being the image's own.
    """
    off_diagonal = ~torch.eye(len(images), dtype=torch.bool, device=images.device)
    baseline = (images @ images.T)[off_diagonal].mean()
    excess = images @ textures.T - baseline  # similarity to a texture beyond that to another image
    direction = F.normalize(textures.mean(0) - images.mean(0), dim=0)
    centre = images.mean(0)
    along = (images @ direction)[:, None] * ((textures - centre) @ direction)[None, :]
    margin = excess.diagonal().mean() - excess[off_diagonal].mean()
    residual = (excess - along).square().sum()
    own = torch.diag(margin.expand(len(images)))
    total = excess.square().sum()
    return {
        "own_texture": (excess.diagonal().mean() + baseline).item(),
        "other_textures": (excess[off_diagonal].mean() + baseline).item(),
        "other_images": baseline.item(),
        "one_direction": (1 - residual / total).item(),
        "own_share": (1 - (excess - own).square().sum() / total).item(),
    }
