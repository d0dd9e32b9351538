"""Out-of-distribution detection: scores against slow formulas, figures against scikit-learn."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sklearn.covariance import EmpiricalCovariance
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch.nn import functional as F

import sacl_train.evaluate.ood
from sacl_train import train
from sacl_train.cli.evaluate import eval_main
from sacl_train.config import load_config
from sacl_train.evaluate.detection import detection_figures
from sacl_train.evaluate.images import TextureImages
from sacl_train.evaluate.ood import csi_score, evaluate_ood, fit_mahalanobis, knn_distance, make_scores
from sacl_train.evaluate.subject import open_subject
from texturegen import open_shards
from texturegen.errors import UserError

RUN = {"encoder": "se_resnet8", "width": 4, "stem": "cifar-stride2", "epochs": 0, "device": "cpu", "batch_size": 16}
HEADS = {"projector_hidden": 16, "projector_out": 8, "predictor_hidden": 8}


@pytest.fixture(scope="module")
def run(shapes_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ood") / "run"
    train(load_config(None, {**RUN, **HEADS}), shapes_shards, out)
    return out


@pytest.mark.parametrize("levels", [3, 1000])  # with many equal scores, and with few
@pytest.mark.parametrize("counts", [(40, 25), (7, 90), (1, 1)])
def test_figures_equal_those_of_scikit_learn(levels: int, counts: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(levels)
    inside, outside = (torch.randint(0, levels, (n,), generator=generator).double() for n in counts)
    outside += levels // 4
    figures = detection_figures(inside, outside)
    truth, scores = np.repeat([0, 1], counts), torch.cat([inside, outside]).numpy()
    assert figures["auroc"] == pytest.approx(roc_auc_score(truth, scores))
    assert figures["aupr"] == pytest.approx(average_precision_score(truth, scores), rel=1e-12)
    # Inside images are the positives of this rate: the first threshold that accepts 95 % of them.
    false, true, _ = roc_curve(1 - truth, -scores, drop_intermediate=False)
    assert figures["fpr95"] == pytest.approx(false[np.argmax(true >= 0.95)])


def test_knn_and_csi_equal_slow_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    bank, queries = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (30, 7))
    unit = [[v / math.hypot(*row) for v in row] for row in bank.tolist()]
    for k in (1, 4, 99):
        for query, distance in zip(queries.tolist(), knn_distance(bank, queries, k).tolist(), strict=True):
            mine = [v / math.hypot(*query) for v in query]
            assert distance == pytest.approx(sorted(math.dist(mine, row) for row in unit)[min(k, 30) - 1])
    for query, score in zip(queries.tolist(), csi_score(bank, queries).tolist(), strict=True):
        similarities = [sum(a * b for a, b in zip(query, row, strict=True)) / math.hypot(*query) for row in unit]
        assert score == pytest.approx(max(similarities) * math.hypot(*query))
    with pytest.raises(UserError, match="k must be at least 1"):
        knn_distance(bank, queries, 0)


@pytest.mark.parametrize("chunk", [7, 512])
def test_mahalanobis_shares_covariance_and_ignores_constant_directions(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sacl_train.evaluate.ood, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3 * 2  # classes 1 and 3 have no image
    features = torch.randn(60, 4, generator=generator) + labels[:, None]
    features = torch.cat([features, torch.full((60, 1), 0.5)], 1)
    queries = torch.randn(9, 5, generator=generator) * 3
    x, y, q = (tensor.double().numpy() for tensor in (features, labels, queries))
    means = [x[y == label].mean(0) for label in (0, 2, 4)]
    centred = np.concatenate([x[y == label] - mean for label, mean in zip((0, 2, 4), means, strict=True)])
    covariance = EmpiricalCovariance(assume_centered=True).fit(centred)
    expected = np.min([covariance.mahalanobis(q - mean) for mean in means], 0)  # squared
    np.testing.assert_allclose(fit_mahalanobis(features, labels)(queries).numpy(), expected, rtol=1e-6)


def test_scores_use_projector_and_linear_probe(run: Path, shapes_shards: Path) -> None:
    with open_subject(run, shapes_shards, "cpu") as subject:
        x = subject.features.values
        scores = make_scores(subject, 5, epochs=3)
        projector = subject.method.projector.train()
        with torch.no_grad():
            z = projector(x)  # all 64 images are one batch, whose statistics are those of the images
        unit = F.normalize(z, dim=1)
        expected = -(unit @ unit.T).amax(1) * z.norm(dim=1)
        # In eval mode the variance is the unbiased one: 64 / 63 of that of the batch.
        torch.testing.assert_close(scores["csi"](x), expected, rtol=0.05, atol=0.01)
        assert torch.equal(scores["knn"](x), knn_distance(x, x, 5))
        probabilities = -scores["max-softmax"](x)
        assert ((probabilities >= 0.1) & (probabilities <= 1)).all()  # of ten classes


def test_textures_and_other_sets_are_scored(run: Path, shapes_shards: Path, shapes_test_shards: Path) -> None:
    options = ["ood", "--run", run, "--train", shapes_shards, "--test", shapes_shards, "--ood", shapes_test_shards]
    options += ["--textures", "--k", "1", "--epochs", "2", "--device", "cpu"]
    done = CliRunner().invoke(eval_main, list(map(str, options)))
    assert done.exit_code == 0, done.output
    figures = json.loads((run / "eval-ood.json").read_text())
    assert figures["csi_space"] == "projector"
    by = {(row["split"], row["variant"]): row for row in figures["test"]}
    assert {split for split, _ in by} == {"conflict", "textures of train"}
    assert by["conflict", "knn"]["images"] == 40
    # The in-distribution images are in the bank, so their own distance is about 0 and nothing else is as near.
    assert by["textures of train", "knn"]["auroc"] > 0.99
    for text in ("textures of train", "mahalanobis", "AUROC", "FPR@95", "BatchNorm statistics of whole images"):
        assert text in done.output


def test_texture_images_are_textures_of_shards(shapes_shards: Path) -> None:
    shards = open_shards(shapes_shards)
    images = TextureImages(shards)
    (batch,) = images.batches(np.array([5, 2]))
    expected = [torch.from_numpy(shards[i].texture(0).copy()).permute(2, 0, 1) for i in (5, 2)]
    assert torch.equal(batch["image"], torch.stack(expected))
    assert batch["index"].tolist() == [5, 2]


def test_missing_sets_are_one_line(run: Path, shapes_shards: Path, shapes_test_shards: Path) -> None:
    with pytest.raises(UserError, match="no out-of-distribution set; give one with --ood"):
        evaluate_ood(run, shapes_shards, shapes_shards, [], "cpu")
    with pytest.raises(UserError, match="no textures; --textures needs a test set of shards"):
        evaluate_ood(run, shapes_shards, shapes_test_shards, [], "cpu", textures=True)
    with pytest.raises(UserError, match=r"images of \(16, 16\) px"):
        evaluate_ood(run, shapes_shards, shapes_shards, ["shapes:test"], "cpu", size=16)
