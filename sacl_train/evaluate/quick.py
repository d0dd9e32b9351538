"""Scores of an encoder while it is trained, for monitoring a run. Reported figures come from `sacl-eval`."""

import copy

import numpy as np
import torch
from torch import nn

from sacl_train.config import Config
from sacl_train.data.order import held_out
from sacl_train.distributed import local_batch_norm
from sacl_train.evaluate.features import extract_features
from sacl_train.evaluate.images import ShardImages
from sacl_train.evaluate.knn import knn_accuracy
from sacl_train.evaluate.norm import DEFAULT_STATISTICS, estimate_statistics, resolve_statistics
from sacl_train.evaluate.rank import rank_me
from texturegen.shards import Shards

MAX_IMAGES = 2500  # images to encode: a fifth as queries, the rest as the bank


def quick_scores(encoder: nn.Module, shards: Shards, config: Config, device: torch.device) -> dict[str, float | None]:
    """Return the kNN top-1 accuracy and RankMe of an encoder on up to 2500 of the run's images.

    The queries of the kNN are never in its bank. With `config.held_out` above 0 they are images that the run does not
    train on; at 0 the run trains on all of them.

    Parameters
    ----------
    encoder : nn.Module
        Maps normalised images float (N, 3, H, W) to features (N, C). It is not changed: the BatchNorm statistics that
        `sacl-eval` uses by default are estimated in a copy.
    shards : Shards
        The run's shards.
    config : Config
        Settings of the run, with the normalisation and the seed.
    device : torch.device
        The encoder's device.

    Returns
    -------
    dict
        "knn", in 0..1; None if fewer than two classes or ten images are labelled, or no labelled image is held out.
        "rankme", at least 1: the effective rank of the features (`rank.rank_me`); None if there is one image.
    """
    queries, bank = _choose(shards, config)
    picked = np.concatenate([queries, bank])
    if len(picked) < 2:
        return {"knn": None, "rankme": None}
    images = ShardImages(shards, config.bad_share)
    encoder = local_batch_norm(copy.deepcopy(encoder))  # only one process scores: it must not wait for the others
    if resolve_statistics(DEFAULT_STATISTICS, encoder) == "images":
        estimate_statistics(encoder, images, config, device, picked)
    features, read = extract_features(encoder, images, config, device, picked)
    is_query = torch.from_numpy(np.isin(read.numpy(), queries))
    labels = torch.from_numpy(shards.labels)[read]
    knn = None
    if len(queries):
        mask, labels = is_query.to(device), labels.to(device)
        knn = knn_accuracy(features[~mask], labels[~mask], features[mask], labels[mask])
    return {"knn": knn, "rankme": rank_me(features)}


def _choose(shards: Shards, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the queries and of the bank; without enough labels, no queries and a bank of any images."""
    random, labels = np.random.default_rng(config.seed), shards.labels
    order = random.permutation(np.flatnonzero(labels >= 0))
    if len(np.unique(labels[order])) < 2 or len(order) < 10:
        return np.array([], int), random.permutation(len(labels))[:MAX_IMAGES]
    count = min(len(order), MAX_IMAGES) // 5
    if not config.held_out:
        return order[:count], order[count:MAX_IMAGES]
    is_held_out = np.isin(order, held_out(len(labels), config.held_out, config.seed))
    queries = order[is_held_out][:count]
    return queries, order[~is_held_out][: MAX_IMAGES - len(queries)]
