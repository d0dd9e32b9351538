"""A kNN score on training images, for monitoring a run. Reported figures come from `sacl-eval`."""

import numpy as np
import torch
from torch import nn

from sacl_train.config import Config
from sacl_train.evaluate.features import extract_features
from sacl_train.evaluate.images import ShardImages
from sacl_train.evaluate.knn import knn_accuracy
from texturegen.shards import Shards

MAX_IMAGES = 2500  # training images to encode: a fifth as queries, the rest as the bank


def quick_knn(encoder: nn.Module, shards: Shards, config: Config, device: torch.device) -> float | None:
    """Return the kNN top-1 accuracy (0..1) on training images, with other training images as the bank.

    Parameters
    ----------
    encoder : nn.Module
        Maps normalised images float (N, 3, H, W) to features (N, C).
    shards : Shards
        The training set.
    config : Config
        Settings of the run, with the normalisation and the seed.
    device : torch.device
        The encoder's device.

    Returns
    -------
    float or None
        None if fewer than two classes or ten images are labelled.
    """
    labelled = np.flatnonzero(shards.labels >= 0)
    if len(np.unique(shards.labels[labelled])) < 2 or len(labelled) < 10:
        return None
    picked = np.random.default_rng(config.seed).permutation(labelled)[:MAX_IMAGES]
    features, read = extract_features(encoder, ShardImages(shards, config.bad_share), config, device, picked)
    labels = torch.from_numpy(shards.labels)[read]
    split = len(read) // 5
    return knn_accuracy(features[split:], labels[split:], features[:split], labels[:split])
