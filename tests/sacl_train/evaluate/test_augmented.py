"""The linear probe on augmented images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from sacl_train import train
from sacl_train.cli.evaluate import eval_main
from sacl_train.config import load_config
from sacl_train.data.draws import Draws
from sacl_train.data.operations import Crop, Flip
from sacl_train.data.weak import Policy, WeakAugment
from sacl_train.evaluate import augmented
from sacl_train.evaluate.augmented import fit_augmented
from sacl_train.evaluate.linear import LinearLayer
from sacl_train.evaluate.probe import evaluate
from sacl_train.evaluate.standardise import feature_scale
from sacl_train.evaluate.subject import open_subject
from texturegen.errors import UserError

RUN = {"encoder": "se_resnet8", "width": 8, "stem": "cifar-stride2", "epochs": 0, "device": "cpu", "batch_size": 16}


@pytest.fixture(scope="module")
def run(shapes_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("augmented") / "run"
    train(load_config(None, RUN), shapes_shards, out)
    return out


def test_probe_learns_from_new_views_in_each_epoch(
    run: Path, shapes_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    encode = augmented.encode_views
    monkeypatch.setattr(augmented, "encode_views", lambda *of: seen.append(of[1]) or encode(*of))
    with open_subject(run, shapes_shards, "cpu") as subject:
        before = {name: tensor.clone() for name, tensor in subject.encoder.state_dict().items()}
        first, again = (fit_augmented(subject, epochs=40, batch_size=16)[""] for _ in range(2))
        scores = first(subject.features.values)
        assert torch.equal(scores, again(subject.features.values))
        assert (scores.argmax(1) == subject.features.labels).float().mean() > 0.2  # of ten classes
        assert all(torch.equal(before[name], tensor) for name, tensor in subject.encoder.state_dict().items())
    assert [len(views) for views in seen] == [64] * 80
    sums = torch.stack([views.double().sum() for views in seen[:40]])
    assert len(sums.unique()) == 40


def test_layer_sees_standardised_features_of_crops_and_flips(
    run: Path, shapes_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt: list[torch.Tensor] = []
    monkeypatch.setattr(LinearLayer, "learn", lambda self, features, *of: learnt.append(features))
    with open_subject(run, shapes_shards, "cpu") as subject:
        fit_augmented(subject, epochs=1, batch_size=64, seed=3)
        (batch,) = subject.train.batches(np.random.default_rng(3).permutation(64))
        policy = Policy(((Crop((0.08, 1.0)), 1.0), (Flip(), 0.5)))
        views = WeakAugment(policy, subject.config.mean, subject.config.std)
        features = subject.encoder(views(batch["image"], Draws(3, 0, batch["index"]).of(0)))
        mean, std = (values.float() for values in feature_scale(subject.features.values))
    torch.testing.assert_close(learnt, [(features - mean) / std], rtol=0, atol=1e-3)


def test_command_names_probe_in_table_and_file(run: Path, shapes_shards: Path) -> None:
    options = ["--run", str(run), "--train", str(shapes_shards), "--test", str(shapes_shards), "--device", "cpu"]
    done = CliRunner().invoke(eval_main, ["linear", *options, "--augment", "--epochs", "2", "--network", "target"])
    assert done.exit_code == 0, done.output
    figures = json.loads((run / "eval-linear-augment-target.json").read_text())
    assert "linear-augment: linear layer by LARS, standardised features of random crops and flips" in done.output
    assert "; target network, BatchNorm statistics of whole images, fp32" in done.output
    assert (figures["probe"], figures["network"], figures["norm_statistics"]) == ("linear-augment", "target", "images")
    assert figures["protocol"] in done.output


def test_augmenting_needs_linear_probe_with_rate(run: Path, shapes_shards: Path) -> None:
    for probe, settings in (("knn", {}), ("linear", {"lr": "sweep"})):
        with pytest.raises(UserError, match="augment is for the linear probe with a given lr"):
            evaluate(probe, run, shapes_shards, [shapes_shards], "cpu", augment=True, **settings)
