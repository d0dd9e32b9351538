"""The one-class protocol: the figures against scikit-learn, CSI's score of the head against a slow formula, errors."""

from pathlib import Path

import pytest
import torch
from sklearn.metrics import roc_auc_score

from sacl_train import train
from sacl_train.config import load_config
from sacl_train.data.weak import normalise
from sacl_train.evaluate.images import open_images
from sacl_train.evaluate.novelty import evaluate_novelty, shift_score
from sacl_train.methods.shift import ShiftHead, Shifts
from sacl_train.training.resume import load_networks
from texturegen.errors import UserError
from texturegen.shards.merge import split

SETTINGS = {"method": "simclr", "encoder": "se_resnet8", "width": 4, "stem": "cifar-stride2", "batch_size": 4}
SETTINGS |= {"epochs": 1, "knn_every": 0, "texture_role": "instance", "texture_source": "rotations", "shift_head": 1.0}


def test_known_classes_against_the_others(shapes_shards: Path, shapes_test_shards: Path, tmp_path: Path) -> None:
    split(shapes_shards, tmp_path / "one", where="label == 3")
    rows = train(load_config(None, {**SETTINGS, "device": "cpu"}), tmp_path / "one", tmp_path / "run")
    assert 0 <= rows[0]["shift_accuracy"] <= 1
    found = evaluate_novelty(tmp_path / "run", tmp_path / "one", shapes_test_shards, "cpu", "training")
    labels = open_images(shapes_test_shards).labels
    assert found["known_images"] == (labels == 3).sum() > 0
    assert [row["variant"] for row in found["test"]] == ["knn", "mahalanobis", "csi", "shift"]
    method, config, _ = load_networks(tmp_path / "run")
    method.eval()
    images = torch.cat([batch["image"] for batch in open_images(shapes_test_shards).batches()])
    with torch.no_grad():
        logits = [method.encoder(normalise(images.rot90(n, (2, 3)), config.mean, config.std)) for n in range(4)]
        scores = -sum(method.shift_head(x)[:, n] for n, x in enumerate(logits)) / 4
    assert found["test"][3]["auroc"] == pytest.approx(roc_auc_score(labels != 3, scores), abs=1e-3)
    with pytest.raises(UserError, match="the test set needs images of these and of other classes"):
        evaluate_novelty(tmp_path / "run", tmp_path / "one", tmp_path / "one", "cpu")


def test_score_of_the_head_uses_the_kinds_that_a_test_image_can_have() -> None:
    torch.manual_seed(0)
    features = [torch.randn(5, 6) for _ in range(4)]
    for shifts, kinds in ((Shifts(turned=True), [0, 2, 3, 4]), (Shifts(of_shards=False, turned=True), [0, 1, 2, 3])):
        head = ShiftHead(6, shifts)
        expected = [
            -sum((head.weight[kind] @ x[i] + head.bias[kind]).item() for kind, x in zip(kinds, features, strict=True))
            / 4
            for i in range(5)
        ]
        assert shift_score(head, features).tolist() == pytest.approx(expected, abs=1e-6)
    head = ShiftHead(6, Shifts(shuffled=True))
    torch.testing.assert_close(shift_score(head, features), -head(features[0])[:, 0])
