"""Does one direction, 'this is synthetic', tell all textures from all photographs?

If so, a contrastive loss is rid of its texture negatives at no cost: their similarities fall together, whatever the
images show, and the negatives teach nothing. Measured on the encoder's features and on the projector's embeddings.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from sacl_train.data.weak import normalise
from sacl_train.evaluate.ridge import fit_ridge
from sacl_train.training.resume import load_method
from sacl_train.training.setup import choose_device
from texturegen.console import plural
from texturegen.errors import UserError
from texturegen.shards import open_shards

SAMPLES = 2000
BATCH = 250  # at most


@torch.inference_mode()
def evaluate_shortcut(run: str | Path, shards: str | Path, device: str = "auto") -> dict[str, Any]:
    """Figures on up to 2000 images of `shards`, evenly over them, and the first texture of each.

    "told_apart": accuracy (0..1; 0.5 is chance) of a ridge classifier, images against textures, on features of images
    and textures it was not fitted on (a half). Of the embeddings, L2-normalised, where the method has a projector, with
    batch statistics as the loss sees them:
    "own_texture", "other_textures", "other_images": mean cosine of an image to those; "one_direction": share (0..1) of
    the sum of squares of its similarities to textures, less its mean similarity to other images, that the direction
    from the images' mean to the textures' explains alone; "own_share": share that is explained by being one's own.

    UserError when the shards have no textures, or fewer than two images.
    """
    method, config, epochs = load_method(Path(run))
    place = choose_device(device)
    method = method.to(place)
    opened = open_shards(shards)
    if not opened.textures_per_image:
        raise UserError(f"{shards}: there are no textures here; build them with --per-image 1")
    if len(opened) < 2:
        raise UserError(f"{shards}: {plural(len(opened), 'image')}; to compare one with others takes two at least")
    assert config.mean is not None
    assert config.std is not None
    picked = np.unique(np.linspace(0, len(opened) - 1, min(SAMPLES, len(opened))).astype(int))
    features: dict[str, list[Tensor]] = {"image": [], "texture": []}
    embeddings: dict[str, list[Tensor]] = {"image": [], "texture": []}
    project = getattr(method, "projector", None)
    for module in method.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 0.0  # a pass by batch statistics must not change the encoder that the next one reads
    for numbers in np.array_split(picked, -(-len(picked) // BATCH)):  # even: the embeddings depend on their batch
        samples = [opened[i] for i in numbers.tolist()]
        for name, pixels in (
            ("image", [sample.image for sample in samples]),
            ("texture", [sample.texture(0) for sample in samples]),
        ):
            x = normalise(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).to(place), config.mean, config.std)
            method.eval()
            features[name].append(method.encoder(x).float().cpu())
            if project is not None:
                method.train()  # each kind normalised by its own batch, as in training
                embeddings[name].append(F.normalize(project(method.encoder(x)).float(), dim=1).cpu())
    images, textures = (torch.cat(features[name]) for name in ("image", "texture"))
    figures = {
        "probe": "shortcut",
        "run": str(run),
        "method": config.method,
        "encoder": config.encoder,
        "texture_role": config.method_settings.texture_role,
        "trained_epochs": epochs,
        "planned_epochs": config.epochs,
        "shards": str(shards),
        "images": len(picked),
        "told_apart": tell_apart(images, textures),
    }
    if project is not None:
        figures |= explain_similarities(*(torch.cat(embeddings[name]) for name in ("image", "texture")))
    return figures


def tell_apart(images: Tensor, textures: Tensor) -> float:
    """Accuracy of a classifier of features (N, C) of images against those of textures, on every second image."""
    values = torch.stack([images, textures], 1)  # an image and its texture are in the same half
    labels = torch.tensor([0, 1]).expand(len(values), 2)
    classify = fit_ridge(values[::2].flatten(0, 1), labels[::2].flatten())[""]
    hit = classify(values[1::2].flatten(0, 1)).argmax(1) == labels[1::2].flatten()
    return hit.float().mean().item()


def explain_similarities(images: Tensor, textures: Tensor) -> dict[str, float]:
    """What an image's similarities to textures are made of; both are unit vectors (N, D), N >= 2."""
    others = ~torch.eye(len(images), dtype=torch.bool)
    between = images @ images.T
    level = between[others].mean()
    logits = images @ textures.T - level  # what a texture is beyond (or below) any other photograph
    direction = F.normalize(textures.mean(0) - images.mean(0), dim=0)
    centre = images.mean(0)
    along = (images @ direction)[:, None] * ((textures - centre) @ direction)[None, :]
    mine = logits.diagonal().mean() - logits[others].mean()
    left = (logits - along).square().sum()
    own = torch.diag(torch.full((len(images),), float(mine)))
    total = logits.square().sum()
    return {
        "own_texture": (logits.diagonal().mean() + level).item(),
        "other_textures": (logits[others].mean() + level).item(),
        "other_images": level.item(),
        "one_direction": (1 - left / total).item(),
        "own_share": (1 - (logits - own).square().sum() / total).item(),
    }
