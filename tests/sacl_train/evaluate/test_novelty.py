"""The one-class protocol: the figures against scikit-learn, CSI's score of the head against a slow formula, errors."""

import math
from pathlib import Path

import pytest
import torch
from sklearn.metrics import roc_auc_score

from sacl_train import train
from sacl_train.config import load_config
from sacl_train.data.weak import normalise
from sacl_train.evaluate.images import open_images
from sacl_train.evaluate.novelty import csi_shifts_score, evaluate_novelty, shift_score
from sacl_train.methods.shift import ShiftHead, Shifts
from sacl_train.training.resume import load_networks
from texturegen.errors import UserError
from texturegen.shards.merge import split
from texturegen.storage.image import encode_png

SETTINGS = {"method": "simclr", "encoder": "se_resnet8", "width": 4, "stem": "cifar-stride2", "batch_size": 4}
SETTINGS |= {"epochs": 1, "knn_every": 0, "texture_role": "instance", "texture_source": "rotations", "shift_head": 1.0}


def test_known_classes_against_the_others(shapes_shards: Path, shapes_test_shards: Path, tmp_path: Path) -> None:
    split(shapes_shards, tmp_path / "one", where="label == 3")
    rows = train(load_config(None, {**SETTINGS, "device": "cpu"}), tmp_path / "one", tmp_path / "run")
    assert 0 <= rows[0]["shift_accuracy"] <= 1
    found = evaluate_novelty(tmp_path / "run", tmp_path / "one", shapes_test_shards, "cpu")
    assert found["norm_statistics"] == "training"  # CSI's; those of whole images of one class cost twelve points
    labels = open_images(shapes_test_shards).labels
    assert found["known_images"] == (labels == 3).sum() > 0
    assert [row["variant"] for row in found["test"]] == ["knn", "mahalanobis", "csi", "shift", "csi-shifts"]
    method, config, _ = load_networks(tmp_path / "run")
    method.eval()
    images = torch.cat([batch["image"] for batch in open_images(shapes_test_shards).batches()])
    with torch.no_grad():
        logits = [method.encoder(normalise(images.rot90(n, (2, 3)), config.mean, config.std)) for n in range(4)]
        scores = -sum(method.shift_head(x)[:, n] for n, x in enumerate(logits)) / 4
    assert found["test"][3]["auroc"] == pytest.approx(roc_auc_score(labels != 3, scores), abs=1e-3)
    with pytest.raises(UserError, match="the test set needs images of these and of other classes"):
        evaluate_novelty(tmp_path / "run", tmp_path / "one", tmp_path / "one", "cpu")
    folder = tmp_path / "cars"  # its label 0 is another class than label 0 of the shards
    for name in ("bus", "car"):
        (folder / name).mkdir(parents=True)
        (folder / name / "a.png").write_bytes(encode_png(images[0].permute(1, 2, 0).contiguous().numpy()))
    with pytest.raises(UserError, match=r"its classes .*differ"):
        evaluate_novelty(tmp_path / "run", tmp_path / "one", folder, "cpu")


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
    torch.testing.assert_close(shift_score(head, features[:1]), -head(features[0])[:, 0])


def test_score_over_shifts_is_balanced_by_the_training_images() -> None:
    random = torch.Generator().manual_seed(0)
    known, others = ([torch.randn(n, 6, generator=random) for _ in range(4)] for n in (7, 5))
    head = ShiftHead(6, Shifts(turned=True))  # of textures too, which a test image does not have
    project = torch.nn.Linear(6, 3)
    expected = torch.zeros(5)
    with torch.no_grad():
        for kind, x, queries in zip((0, 2, 3, 4), known, others, strict=True):
            bank = project(x)
            norm = sum(math.hypot(*row) for row in bank.tolist()) / 7
            logit = sum(head(x)[:, kind].tolist()) / 7
            for i, z in enumerate(project(queries)):
                nearest = max((z @ row / z.norm() / row.norm()).item() for row in bank)
                expected[i] -= nearest * z.norm() / norm + head(queries[i])[kind] / logit
    torch.testing.assert_close(csi_shifts_score(head, project, known, others), expected)
    torch.testing.assert_close(
        csi_shifts_score(head, None, known[:1] * 4, known[:1] * 4),
        -sum(known[0].norm(dim=1) / known[0].norm(dim=1).mean() + x / x.mean() for x in head(known[0]).T[[0, 2, 3, 4]]),
    )
