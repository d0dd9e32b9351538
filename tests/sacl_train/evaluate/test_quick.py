"""Scores while training: what is held out, what the scores are of, and that the encoder does not change."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sacl_train import distributed, train
from sacl_train.config import load_config
from sacl_train.data.order import held_out
from sacl_train.data.stream import Plan, Stream
from sacl_train.distributed import local_batch_norm
from sacl_train.evaluate import quick
from sacl_train.evaluate.features import extract_features
from sacl_train.evaluate.images import ShardImages
from sacl_train.evaluate.knn import knn_accuracy
from sacl_train.evaluate.norm import estimate_statistics
from sacl_train.evaluate.rank import rank_me
from sacl_train.training.resume import load_encoder
from texturegen import open_shards
from texturegen.errors import UserError

CPU = torch.device("cpu")
TINY = {"encoder": "se_resnet8", "width": 4, "stem": "cifar-stride2", "device": "cpu", "batch_size": 16, "epochs": 1}
TINY |= {"projector_hidden": 16, "projector_out": 16, "predictor_hidden": 8}


def test_held_out_images_are_in_no_epoch(shapes_shards: Path) -> None:
    shards = open_shards(shapes_shards)
    out = held_out(64, 0.25, seed=3)
    stream = Stream(shards, Plan(12, seed=3, held_out=0.25, remainder="wrap"))
    assert (len(out), stream.samples, len(stream)) == (16, 48, 4)
    for epoch in range(2):
        seen = torch.cat([batch["index"] for batch in stream.epoch(epoch)]).tolist()
        assert sorted(seen) == sorted(set(range(64)) - set(out.tolist()))
    assert not np.array_equal(held_out(64, 0.25, seed=4), out)


def test_scores_are_those_of_probes_on_held_out_images(shapes_shards: Path, tmp_path: Path) -> None:
    shards = open_shards(shapes_shards)
    (row,) = train(load_config(None, {**TINY, "held_out": 0.25, "knn_every": 1}), shapes_shards, tmp_path)
    encoder, config, _ = load_encoder(tmp_path)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    expected = pytest.approx({key: row[key] for key in ("knn", "rankme")}, rel=1e-4)
    assert quick.quick_scores(encoder.train(), shards, config, CPU) == expected
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())
    # 64 images: a fifth of them, 12 of the 16 that are held out, are the queries, and the other 48 are the bank.
    queries, bank = quick._choose(shards, config)
    assert (len(queries), len(bank)) == (12, 48)
    assert set(queries) <= set(held_out(64, 0.25, config.seed))
    assert not set(bank) & set(held_out(64, 0.25, config.seed))
    images, picked = ShardImages(shards), np.concatenate([queries, bank])
    estimate_statistics(encoder, images, config, CPU, picked)
    features, _ = extract_features(encoder, images, config, CPU, picked)
    labels = torch.from_numpy(shards.labels)[picked]
    assert row["knn"] == knn_accuracy(features[12:], labels[12:], features[:12], labels[:12])
    assert row["rankme"] == pytest.approx(rank_me(features), rel=1e-4)


def test_batch_size_counts_images_that_are_trained_on(shapes_shards: Path, tmp_path: Path) -> None:
    settings = {**TINY, "batch_size": 64, "held_out": 0.25}
    with pytest.raises(UserError, match=r"holds 64 images, 16 of them held out; set batch_size to 48 or less"):
        train(load_config(None, settings), shapes_shards, tmp_path)
    with pytest.raises(UserError, match=r"held_out is 1.0; it must be at least 0 and below 1"):
        load_config(None, {"held_out": 1.0})


@pytest.mark.parametrize("kind", [nn.SyncBatchNorm, distributed._SyncBatchNorm2d])
def test_one_process_scores_without_the_others(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    expected = nn.BatchNorm2d(3)
    network = nn.Sequential(nn.Identity(), kind(3))
    monkeypatch.setattr(distributed, "average", None)  # waits for other processes
    torch.testing.assert_close(local_batch_norm(network)(x), expected(x))
    torch.testing.assert_close(network[1].running_var, expected.running_var)
