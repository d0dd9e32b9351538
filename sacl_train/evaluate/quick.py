"""A kNN score among training images, for a look while training goes on; figures come from `sacl-eval`."""

import numpy as np
import torch
from torch import nn

from sacl_train.config import Config
from sacl_train.evaluate.features import extract_features
from sacl_train.evaluate.images import ShardImages
from sacl_train.evaluate.knn import knn_accuracy
from texturegen.shards import Shards

SAMPLES = 2500  # training images it looks at: a fifth as queries, the rest as bank


def quick_knn(encoder: nn.Module, shards: Shards, config: Config, device: torch.device) -> float | None:
    """kNN top-1 of training images among other training images; None where fewer than two classes are labelled."""
    labelled = np.flatnonzero(shards.labels >= 0)
    if len(np.unique(shards.labels[labelled])) < 2 or len(labelled) < 10:
        return None
    picked = np.random.default_rng(config.seed).permutation(labelled)[:SAMPLES]
    features, read = extract_features(encoder, ShardImages(shards, config.bad_share), config, device, picked)
    labels = torch.from_numpy(shards.labels)[read]
    split = len(read) // 5
    return knn_accuracy(features[split:], labels[split:], features[:split], labels[:split])
