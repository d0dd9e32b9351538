"""Shape bias on hand-made decisions and, if available, on the published stimuli."""

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner

import texturegen.sources
from sacl_train import train
from sacl_train.cli.evaluate import eval_main
from sacl_train.config import load_config
from sacl_train.evaluate.categories import CATEGORIES, CATEGORY_BY_CLASS
from sacl_train.evaluate.probe import evaluate
from sacl_train.evaluate.shape_bias import (
    categorise,
    evaluate_shape_bias,
    read_stimuli,
    shape_bias,
)
from texturegen.builds import Recipe, build
from texturegen.errors import UserError

SMALL = {"encoder": "se_resnet8", "width": 4, "stem": "cifar-stride2", "projector_hidden": 16, "projector_out": 16}


def test_shape_bias_equals_manual_count() -> None:
    shapes = ["cat", "cat", "cat", "dog", "dog", "cat"]
    textures = ["dog", "dog", "dog", "cat", "cat", "cat"]  # the last is not in conflict
    decisions = ["cat", "dog", "car", "dog", "dog", "cat"]
    figures = shape_bias(decisions, shapes, textures)
    assert figures["stimuli"] == 5
    assert figures["shape_decisions"] == 3 / 5
    assert figures["texture_decisions"] == 1 / 5
    assert figures["bias"] == 3 / 4
    assert figures["classes"]["cat"] == {
        "stimuli": 3,
        "shape_decisions": 1 / 3,
        "texture_decisions": 1 / 3,
        "bias": 1 / 2,
    }
    assert figures["classes"]["dog"]["bias"] == 1
    assert shape_bias(["car"], ["cat"], ["dog"])["bias"] is None


def test_category_is_mean_of_its_classes() -> None:
    # Two dogs of .3 and .1 against a cat of .25: the mean of the dogs is .2. Cheese is not a category.
    scores = torch.tensor([[0.3, 0.1, 0.25, 0.35]]).log()
    assert categorise(scores, ["n02086240", "n02086910", "n02123045", "cheese"]) == ["cat"]
    assert categorise(scores, ["automobile", "ship", "bird", "frog"]) == ["car"]
    with pytest.raises(UserError, match="include fewer than two of airplane"):
        categorise(scores, ["a", "b", "c", "dog"])


def test_categories_have_the_classes_of_the_paper() -> None:
    synsets = (Path(timm.__file__).parent / "data" / "_info" / "imagenet_synsets.txt").read_text().split()
    assert len(CATEGORIES) == 16
    of_imagenet = {name: category for name, category in CATEGORY_BY_CLASS.items() if name.startswith("n0")}
    assert len(of_imagenet) == 207
    # The authors' own indices of the classes of some categories.
    for category, indices in {
        "airplane": [404],
        "boat": [472, 554, 625, 814, 914],
        "cat": [281, 282, 283, 284, 285, 286],
        "chair": [423, 559, 765, 857],
        "truck": [555, 569, 656, 675, 717, 734, 864, 867],
    }.items():
        assert [i for i, wnid in enumerate(synsets) if of_imagenet.get(wnid) == category] == indices
    counts = Counter(of_imagenet.values())
    assert (counts["bird"], counts["dog"]) == (49, 109)
    # Of all of ImageNet, a stimulus of each category is scored.
    scores = torch.full((16, 1000), -9.0)
    for row, category in zip(scores, CATEGORIES, strict=True):
        row[[i for i, wnid in enumerate(synsets) if of_imagenet.get(wnid) == category]] = 9
    assert categorise(scores, synsets) == list(CATEGORIES)
    hundred = (Path(texturegen.sources.__file__).parent / "imagenet100.txt").read_text().split()
    assert {of_imagenet[wnid] for wnid in hundred if wnid in of_imagenet} == {
        *("bird", "cat", "chair", "dog", "keyboard", "oven", "truck"),
    }


def test_error_of_folder_without_stimuli_shows_their_names(image_folder: Path) -> None:
    with pytest.raises(UserError, match=r"no stimuli found; expected files like CLASS/cat7-bottle2.png"):
        read_stimuli(image_folder, 32)


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Return an untrained run, shards of light cats and dark dogs, and stimuli named as if in conflict."""
    root, random = tmp_path_factory.mktemp("bias"), np.random.default_rng(0)
    for name, level in (("cat", 200), ("dog", 50)):
        (root / "images" / name).mkdir(parents=True)
        (root / "stimuli" / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.clip(random.normal(level, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(root / "images" / name / f"{i}.png"), pixels)
            other = {"cat": "dog", "dog": "cat"}[name]
            if i < 3:
                cv2.imwrite(str(root / "stimuli" / name / f"{name}{i}-{other}1.png"), cv2.resize(pixels, (64, 64)))
    cv2.imwrite(str(root / "stimuli" / "cat" / "cat9-bear1.png"), pixels)  # a category outside the probe's classes
    # A class of the shards that has no image: the probe has no score for it.
    (root / "images" / "truck").mkdir()
    (root / "images" / "truck" / "0.png").write_text("not an image")
    build(Recipe("folder", per_image=0), root / "shards", root=str(root / "images"))
    settings = {**SMALL, "predictor_hidden": 8, "epochs": 0, "texture_role": "none", "batch_size": 4, "device": "cpu"}
    train(load_config(None, settings), root / "shards", root / "run")
    return root / "run", root / "shards", root / "stimuli"


def test_probe_that_predicts_shapes_has_bias_of_one(two_classes: tuple[Path, Path, Path]) -> None:
    figures = evaluate_shape_bias(*two_classes, device="cpu", epochs=20)
    assert figures["stimuli"] == 6
    assert figures["shape_decisions"] == figures["bias"] == 1


def test_command_prints_and_writes_bias(two_classes: tuple[Path, Path, Path], tmp_path: Path) -> None:
    options = [
        text for pair in zip(("--run", "--shards", "--stimuli"), map(str, two_classes), strict=True) for text in pair
    ]
    done = CliRunner().invoke(eval_main, ["shape-bias", *options, "--epochs", "20", "--json", str(tmp_path / "f.json")])
    assert done.exit_code == 0, done.output
    assert "100.0%" in done.output
    assert json.loads((tmp_path / "f.json").read_text())["classes"]["dog"]["stimuli"] == 3


def test_conflict_split_of_shapes_can_be_stimuli(shapes_shards: Path, shapes_test_shards: Path, tmp_path: Path) -> None:
    settings = {**SMALL, "predictor_hidden": 8, "epochs": 0, "texture_role": "none", "batch_size": 4, "device": "cpu"}
    train(load_config(None, settings), shapes_shards, tmp_path)
    figures = evaluate_shape_bias(tmp_path, shapes_shards, shapes_test_shards, "cpu", epochs=5)
    (linear,) = evaluate("linear", tmp_path, shapes_shards, [shapes_test_shards], "cpu", epochs=5)["test"]
    assert figures["stimuli"] == 40
    assert figures["shape_decisions"] == pytest.approx(linear["top1"])
    assert figures["texture_decisions"] == pytest.approx(linear["texture_decisions"])
    build(Recipe("folder", per_image=0), tmp_path / "s", root=str(_two_folders(tmp_path)))
    with pytest.raises(UserError, match="no texture class"):
        evaluate_shape_bias(tmp_path, tmp_path / "s", tmp_path / "s", "cpu", epochs=5)


def _two_folders(root: Path) -> Path:
    for name in ("a", "b"):
        (root / "images" / name).mkdir(parents=True)
        for i in range(2):
            cv2.imwrite(str(root / "images" / name / f"{i}.png"), np.full((32, 32, 3), 50 * i, np.uint8))
    return root / "images"


def test_read_stimuli_reads_published_set(shared_data: Path) -> None:
    images, shapes, textures = read_stimuli(shared_data / "cue-conflict", 32)
    assert images.shape == (1280, 32, 32, 3)
    assert {shapes.count(c) for c in CATEGORIES} == {80}
    assert set(textures) == set(CATEGORIES)
    assert sum(s == t for s, t in zip(shapes, textures, strict=True)) == 80
