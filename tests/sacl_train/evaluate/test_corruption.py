"""Corruptions are deterministic and grow with severity; errors are averaged."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sacl_train import train
from sacl_train.config import load_config
from sacl_train.evaluate import corruption

pytest.importorskip("imagecorruptions", reason="pip install --no-deps imagecorruptions-imaug")
RUN = {"encoder": "se_resnet8", "width": 4, "stem": "cifar-stride2", "epochs": 0, "device": "cpu", "batch_size": 16}


def test_corruption_depends_only_on_image_index_and_severity(photo: np.ndarray) -> None:
    crops = np.stack([photo[80:112, 100:132], photo[90:122, 140:172], photo[80:112, 100:132]])
    images = torch.from_numpy(crops).permute(0, 3, 1, 2)
    np.random.seed(5)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    known = corruption.load_corruptions()
    assert len(known) == 15
    for name, change in known.items():
        damage = []
        for severity in (1, 5):
            made = corruption._corrupt_batch(change, severity, images, np.array([3, 8, 4]))
            assert made.dtype == torch.uint8
            assert made.shape == images.shape
            part = corruption._corrupt_batch(change, severity, images[1:], np.array([8, 4]))
            assert torch.equal(part, made[1:]), name
            damage.append((made.float() - images.float()).abs().mean().item())
        assert 0 < damage[0] < damage[1], name
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


def test_errors_are_means_over_corruptions(shapes_shards: Path, shapes_test_shards: Path, tmp_path: Path) -> None:
    train(load_config(None, {**RUN, "texture_role": "none"}), shapes_shards, tmp_path / "run")
    figures = corruption.evaluate_corruption(
        tmp_path / "run", shapes_shards, shapes_test_shards, "cpu", images=10, severities=(1, 4), epochs=5
    )
    assert figures["images"] == 10
    assert {len(errors) for errors in figures["errors"].values()} == {2}
    assert figures["mean_error"] == pytest.approx(np.mean([e for errors in figures["errors"].values() for e in errors]))
    assert all(0 <= e <= 1 for errors in figures["errors"].values() for e in errors)
    for name in ("clean", "mean"):
        low, high = figures[f"{name}_interval"]
        assert low <= figures[f"{name}_error"] <= high
    assert 0 < figures["mean_interval"][1] - figures["mean_interval"][0] < 0.7


def test_images_that_cannot_be_read_are_not_counted(
    shapes_shards: Path, shapes_test_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(load_config(None, {**RUN, "texture_role": "none"}), shapes_shards, tmp_path / "run")
    extract = corruption.extract_features
    monkeypatch.setattr(corruption, "extract_features", lambda *given: tuple(x[:-1] for x in extract(*given)))
    monkeypatch.setattr(corruption, "load_corruptions", lambda: {"nothing": lambda image, severity: image})
    figures = corruption.evaluate_corruption(
        tmp_path / "run", shapes_shards, shapes_test_shards, "cpu", images=10, severities=(1,), epochs=5
    )
    assert figures["images"] == 9
    assert figures["mean_error"] == figures["clean_error"]
