"""From a run and two shard directories to the figures of a probe."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sacl_train.data.draws import Draws
from sacl_train.data.shuffle import shuffle_patches
from sacl_train.evaluate.features import extract_features
from sacl_train.evaluate.knn import knn_predict
from sacl_train.evaluate.linear import linear_predict
from sacl_train.evaluate.ridge import ridge_predict
from sacl_train.run import choose_device, load_encoder
from texturegen.errors import UserError
from texturegen.shards import Shards, open_shards

# name -> (training features, their labels, test features, **settings) -> scores (N, classes)
PROBES: dict[str, Callable[..., torch.Tensor]] = {"knn": knn_predict, "linear": linear_predict, "ridge": ridge_predict}
DESTROYED = 4  # cells a side of a patch-destroyed image


def evaluate(
    probe: str,
    run: str | Path,
    shards: str | Path,
    test_shards: list[str | Path],
    device: str = "auto",
    destroy: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Fit `probe` on the labelled images of `shards` and score it on each of `test_shards`.

    Returns what was measured and how, ready for JSON: per test set top-1, top-5 (where there are more than five
    classes) and, where the test images carry a `texture_label` (the `shapes` sets), the share of predictions that
    follow the texture; all in 0..1. With `destroy` also "destroyed", top-1 of the same test images with their cells, 4
    to a side, shuffled: whoever reads texture keeps its accuracy, whoever reads shape loses it.

    Raises UserError when there is no checkpoint, a set has no labels, or the sets differ in classes or image size.
    """
    encoder, config, epochs = load_encoder(Path(run))
    chosen = choose_device(device)
    encoder = encoder.to(chosen)
    bank = labelled(shards)
    features, read = extract_features(encoder, bank, config, chosen)
    labels = torch.from_numpy(bank.labels)[read]
    keep = labels >= 0
    size = bank.image_size()
    results = []
    for directory in test_shards:
        test = labelled(directory)
        if test.classes != bank.classes:
            raise UserError(f"{directory}: its classes {test.classes} are not those of {shards}, {bank.classes}")
        if test.image_size() != size:
            raise UserError(
                f"{directory}: images of {test.image_size()} px, but {size} px in {shards}; build with --size"
            )
        queries, found = extract_features(encoder, test, config, chosen)
        split = test.build["source"]["split"]
        result = {"shards": str(directory), "split": split}
        seen = queries
        if destroy:
            cells, same = extract_features(encoder, test, config, chosen, change=shuffle_cells)
            assert torch.equal(same, found)
            seen = torch.cat([queries, cells])
        scores = PROBES[probe](features[keep], labels[keep], seen, **settings).split(len(queries))
        result |= _score(test, scores[0], found)
        if destroy:
            result["destroyed"] = _score(test, scores[1], found)["top1"]
        results.append(result)
    return {
        "probe": probe,
        "settings": settings,
        "run": str(run),
        "encoder": config.encoder,
        "texture_role": config.method_settings.texture_role,
        "trained_epochs": epochs,
        "planned_epochs": config.epochs,
        "train_shards": str(shards),
        "train_images": int(keep.sum()),
        "test": results,
    }


def shuffle_cells(images: torch.Tensor, samples: np.ndarray) -> torch.Tensor:
    """Images uint8 (N, C, H, W) with their cells, 4 to a side, in another order, the same for a sample each time."""
    side = min(images.shape[-2:]) // DESTROYED
    return shuffle_patches(images, Draws(0, 0, samples).of(0), (side, side))


def labelled(directory: str | Path) -> Shards:
    """The shards, if there are labels; else UserError."""
    shards = open_shards(directory)
    if len(shards) == 0 or shards.labels.max() < 0:
        raise UserError(f"{directory}: no labelled images here; a probe needs labels")
    return shards


def _score(test: Shards, scores: torch.Tensor, read: torch.Tensor) -> dict[str, Any]:
    labels = torch.from_numpy(test.labels)[read]
    keep = labels >= 0
    scores, labels = scores[keep], labels[keep]
    hit = scores.topk(min(5, scores.shape[1]), dim=1).indices == labels[:, None]
    figures: dict[str, Any] = {"images": len(labels), "top1": hit[:, 0].float().mean().item()}
    if scores.shape[1] > 5:
        figures["top5"] = hit.any(1).float().mean().item()
    textures = [meta.get("texture_label") for meta in test.metas()]
    if None not in textures:
        follows = scores.argmax(1) == torch.tensor(textures)[read][keep]
        figures["texture_decisions"] = follows.float().mean().item()
    return figures
