"""Swapped backgrounds: layers of `shapes` and of masks, composed images, donors, and figures of a probe."""

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
from sacl_train.evaluate import backgrounds
from sacl_train.evaluate.backgrounds import (
    VARIANTS,
    background_gap,
    choose_donor,
    evaluate_backgrounds,
    open_layers,
    tile_background,
)
from texturegen.errors import UserError
from texturegen.sources import open_source
from texturegen.sources.shapes import SPLITS

RUN = {"encoder": "se_resnet8", "width": 4, "stem": "cifar-stride2", "epochs": 0, "device": "cpu", "batch_size": 16}


@pytest.fixture(scope="module")
def run(shapes_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("backgrounds") / "run"
    train(load_config(None, {**RUN, "texture_role": "none"}), shapes_shards, out)
    return out


def test_layers_of_shapes_make_the_image() -> None:
    for background in ("plain", "photo"):
        source = open_source("shapes", split="test", size=40, background=background)
        for index in (0, 7, 13):
            fill, mask, behind = source.layers(index)
            share = mask[..., None] / 255
            np.testing.assert_allclose(source[index].image, share * fill + (1 - share) * behind, atol=0.51)
            assert mask.min() == 0
            assert mask.max() == 255


def test_variants_of_shapes() -> None:
    source = open_source("shapes", split="test")
    layers = open_layers(source, "shapes:test", None)
    labels = np.arange(len(source)) % 10
    made = {name: make(layers, labels, 21) for name, make in VARIANTS.items()}
    fill, mask, behind = source.layers(21)
    inside, outside = mask == 255, mask == 0
    for name in ("only-foreground", "mixed-same", "mixed-random"):
        np.testing.assert_array_equal(made[name][inside], fill[inside])
    assert (made["only-foreground"][outside] == 0).all()
    np.testing.assert_array_equal(made["only-background"], behind)
    for name, same in (("mixed-same", True), ("mixed-random", False)):
        donor = choose_donor(labels, 21, same)
        np.testing.assert_array_equal(made[name][outside], source.layers(donor)[2][outside])


def test_donors_are_of_the_same_class_or_of_all() -> None:
    labels = np.array([0, 1, 2, -1] * 30)
    same = [choose_donor(labels, i, True) for i in range(120) if labels[i] >= 0]
    assert [labels[donor] for donor in same] == [label for label in labels if label >= 0]
    assert all(donor != i for donor, i in zip(same, [i for i in range(120) if labels[i] >= 0], strict=True))
    found = [int(labels[choose_donor(labels, i, False)]) for i in range(0, 120, 4)]  # all of class 0
    assert set(found) == {0, 1, 2}
    assert choose_donor(np.array([0, 1]), 0, True) == 0  # there is no other


@pytest.mark.parametrize(
    ("object_at", "expected"),
    [
        ((slice(0, 4), slice(2, 11)), (slice(4, 10), slice(0, 12))),  # the strip below is the largest
        ((slice(3, 9), slice(0, 4)), (slice(0, 10), slice(4, 12))),  # on the right
    ],
)
def test_background_is_tiled_from_the_largest_strip(object_at: tuple, expected: tuple) -> None:
    image = np.arange(360).reshape(10, 12, 3).astype(np.uint8)
    mask = np.zeros((10, 12), np.uint8)
    mask[object_at] = 255
    strip = image[expected]
    height, width = strip.shape[:2]
    tiled = tile_background(image, mask)
    for y in range(10):
        for x in range(12):
            np.testing.assert_array_equal(tiled[y, x], strip[y % height, x % width])
    assert not tile_background(image, np.full((10, 12), 255, np.uint8)).any()


def test_gap_is_paired() -> None:
    same = np.array([1.0, 1.0, 0.0, 0.0] * 20)
    figures = background_gap(same, same)
    assert figures == {"gap": 0.0, "interval": [0.0, 0.0]}
    figures = background_gap(same, np.zeros(80))
    assert figures["gap"] == 0.5
    assert 0.3 < figures["interval"][0] < 0.5 < figures["interval"][1] < 0.7


def test_backgrounds_of_shapes(run: Path, shapes_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SPLITS, "test", 40)
    options = ["backgrounds", "--run", run, "--train", shapes_shards, "--test", "shapes:test", "--probe", "ridge"]
    done = CliRunner().invoke(eval_main, [*map(str, options), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    figures = json.loads((run / "eval-backgrounds.json").read_text())
    top1 = {row["background"]: row["top1"] for row in figures["test"]}
    assert list(top1) == ["original", *VARIANTS]
    assert figures["background_gap"] == pytest.approx(top1["mixed-same"] - top1["mixed-random"])
    assert "background gap: " in done.output
    with pytest.raises(UserError, match="shards have no masks"):
        evaluate_backgrounds(run, shapes_shards, shapes_shards, "cpu")
    with pytest.raises(UserError, match="leave out --masks"):
        evaluate_backgrounds(run, shapes_shards, "shapes:test", "cpu", masks=run)


def test_masks_of_a_folder(image_folder: Path, tmp_path: Path) -> None:
    source = open_source("folder", image_folder, size=16)
    masks = tmp_path / "masks"
    layers = open_layers(source, str(image_folder), masks)
    with pytest.raises(UserError, match=r"cats/0.jpg: there is no mask .*cats/0.png"):
        layers(0)
    (masks / "cats").mkdir(parents=True)
    mask = np.zeros((32, 32), np.uint8)
    cv2.imwrite(str(masks / "cats" / "0.png"), mask)
    with pytest.raises(UserError, match="the mask is black"):
        layers(0)
    mask[8:16, 4:20] = 255
    cv2.imwrite(str(masks / "cats" / "0.png"), mask)
    image, found, behind = layers(0)
    np.testing.assert_array_equal(image, source[0].image)
    np.testing.assert_array_equal(found, mask[::2, ::2])  # resized like the image
    np.testing.assert_array_equal(behind[:8], image[8:16])  # the strip below
    assert torch.from_numpy(behind).shape == (16, 16, 3)
    before = backgrounds._digest(masks)
    assert backgrounds._digest(masks) == before != backgrounds._digest(None)
    cv2.imwrite(str(masks / "cats" / "0.png"), mask[::-1])
    assert backgrounds._digest(masks) != before  # so that features of the old images are not found
    (masks / "dogs").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    linked = backgrounds._digest(masks)
    (tmp_path / "elsewhere" / "1.png").write_bytes(b"")
    assert backgrounds._digest(masks) != linked
    with pytest.raises(UserError, match="there are no masks"):
        open_layers(source, "folder", None)
