"""Suppressed cues: changes against slow formulas, determinism, and figures of a probe."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from sacl_train import train
from sacl_train.cli.evaluate import eval_main
from sacl_train.config import load_config
from sacl_train.evaluate.bootstrap import bootstrap_interval
from sacl_train.evaluate.suppression import SUPPRESSIONS, evaluate_suppression, relative_accuracy
from texturegen.errors import UserError

RUN = {"encoder": "se_resnet8", "width": 4, "stem": "cifar-stride2", "epochs": 0, "device": "cpu", "batch_size": 16}
CHANGES = {suppression.name: suppression.change for suppression in SUPPRESSIONS}


@pytest.fixture(scope="module")
def run(shapes_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("suppression") / "run"
    train(load_config(None, {**RUN, "texture_role": "none"}), shapes_shards, out)
    return out


@pytest.fixture
def crops(photo: np.ndarray) -> torch.Tensor:
    """uint8 (3, 3, 56, 56); the first and the last are equal."""
    images = np.stack([photo[80:136, 100:156], photo[90:146, 140:196], photo[80:136, 100:156]])
    return torch.from_numpy(images).permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_depends_on_the_image_and_its_index_alone(name: str, crops: torch.Tensor) -> None:
    made = CHANGES[name](crops, np.array([3, 8, 4]))
    assert (made.dtype, made.shape) == (torch.uint8, crops.shape)
    assert not torch.equal(made[0], crops[0])
    assert torch.equal(CHANGES[name](crops[1:], np.array([8, 4])), made[1:])
    assert torch.equal(made[0], made[2]) == ("shuffled" not in name)  # equal images with other indices


@pytest.mark.parametrize("grid", [2, 4, 8])
def test_shuffled_cells_are_those_of_the_image(grid: int, crops: torch.Tensor) -> None:
    made, side = CHANGES[f"{grid}x{grid} cells shuffled"](crops, np.array([3, 8, 4])), 56 // grid
    for image, other in zip(crops, made, strict=True):
        cells = [
            sorted(
                part[:, y : y + side, x : x + side].numpy().tobytes()
                for y in range(0, 56, side)
                for x in range(0, 56, side)
            )
            for part in (image, other)
        ]
        assert cells[0] == cells[1]


def test_smoothing_is_scaled_to_the_image_and_grey_is_luma(crops: torch.Tensor) -> None:
    image = crops[0].permute(1, 2, 0).numpy().copy()  # a quarter of 224 px
    bilateral = CHANGES["bilateral filter 12 px, 170"](crops, np.arange(3))[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(bilateral, cv2.bilateralFilter(image, 3, 170, 75 / 4))
    grey = CHANGES["greyscale"](crops, np.arange(3))[0].permute(1, 2, 0).numpy()
    luma = image @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(grey, np.repeat(luma[..., None], 3, 2), atol=0.51)


def test_intervals_are_those_of_resampled_images() -> None:
    rng = np.random.default_rng(1)
    before, after = (rng.random(60) < 0.7).astype(float), (rng.random(60) < 0.5).astype(float)
    again, ratios = np.random.default_rng(0), []
    for _ in range(1000):
        drawn = again.integers(60, size=60)
        ratios.append(after[drawn].sum() / before[drawn].sum())
    figures = relative_accuracy(before, after)
    assert figures["relative"] == pytest.approx(after.sum() / before.sum())
    assert figures["interval"] == pytest.approx([np.quantile(ratios, 0.025), np.quantile(ratios, 0.975)])
    assert relative_accuracy(np.zeros(5), np.ones(5)) == {"images": 5, "top1": 1.0, "relative": None, "interval": None}


def test_interval_of_a_ratio_is_finite_where_resamples_have_no_hit() -> None:
    low, high = relative_accuracy(np.eye(40)[0], np.eye(40)[1] + np.eye(40)[2])["interval"]
    assert 0 <= low < 2 < high < np.inf


def test_an_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        low, high = bootstrap_interval(rng.normal(size=(80, 1)), lambda means: means[:, 0], resamples=200)
        covered += low < 0 < high
    assert 85 <= covered <= 99


def test_suppression_of_a_run(run: Path, shapes_shards: Path, shapes_test_shards: Path) -> None:
    options = ["suppression", "--run", run, "--train", shapes_shards, "--test", shapes_test_shards, "--probe", "knn"]
    done = CliRunner().invoke(eval_main, [*map(str, options), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    figures = json.loads((run / "eval-suppression.json").read_text())
    rows = {row["variant"]: row for row in figures["test"]}
    assert len(rows) == len(figures["test"]) == 2 * (len(SUPPRESSIONS) + 1)  # of two k
    untouched, grey = rows["k=20: none"], rows["k=20: colour, greyscale"]
    assert (untouched["images"], untouched["relative"], untouched["interval"]) == (40, 1.0, [1.0, 1.0])
    assert grey["relative"] == pytest.approx(grey["top1"] / untouched["top1"])
    assert grey["interval"][0] <= grey["relative"] <= grey["interval"][1]
    assert "k=20: shape, 4x4 cells shuffled" in done.output
    again = evaluate_suppression(run, shapes_shards, shapes_test_shards, "cpu", probe="knn")
    assert again["test"] == figures["test"]
    with pytest.raises(UserError, match="unknown probe 'kn'"):
        evaluate_suppression(run, shapes_shards, shapes_test_shards, "cpu", probe="kn")
