"""shapes: deterministic, balanced, with the documented agreement of shape and texture."""

import hashlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

from texturegen.sources import open_source
from texturegen.sources.shapes import TEXTURES, Draws, draw_texture, load_texture
from texturegen.sources.silhouettes import SILHOUETTES, draw_mask


def test_sizes_of_splits_and_images() -> None:
    assert [len(open_source("shapes", split=s)) for s in ("train", "test", "conflict")] == [4000, 1000, 1000]
    assert open_source("shapes").split == "train"
    for size in (None, 16, 50):
        item = open_source("shapes", size=size)[3]
        assert item.image.shape == ((size or 32), (size or 32), 3)
        assert item.image.dtype == np.uint8
        assert (item.data, item.ext) == (None, "png")


def test_pixels_do_not_depend_on_order_or_process() -> None:
    code = (
        "import hashlib; from texturegen.sources import open_source; s = open_source('shapes', split='test', size=48);"
        "print(hashlib.sha256(s[77].image.tobytes()).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    source = open_source("shapes", split="test", size=48)
    source[5], source[990]
    assert hashlib.sha256(source[77].image.tobytes()).hexdigest() == there


def test_version_1_has_not_changed() -> None:
    # Equal for OpenCV 4.11 and 5.0. Another value means another data set: increase VERSION, then change it here.
    digest = hashlib.sha256()
    for background in ("plain", "photo"):
        source = open_source("shapes", background=background)
        for index in range(20):
            digest.update(source[index].image.tobytes())
    assert digest.hexdigest() == "aebf5463a6cc1783196bbaf54d67565b0f1cc0cb7d922eb73921dd44a2c44e68"


def test_labels_are_balanced_and_test_shares_no_image_with_train() -> None:
    train, test = open_source("shapes"), open_source("shapes", split="test")
    items = [test[i] for i in range(len(test))]
    assert np.bincount([item.label for item in items]).tolist() == [100] * 10
    assert [item.meta["shape"] for item in items[:10]] == test.classes == list(SILHOUETTES)
    seen = {train[i].image.tobytes() for i in range(len(train))}
    assert len(seen) == 4000
    assert not seen & {item.image.tobytes() for item in items}


@pytest.mark.parametrize(("split", "low", "high"), [("train", 0.78, 0.82), ("test", 0.76, 0.84), ("conflict", 0, 0)])
def test_texture_agrees_with_shape_as_often_as_documented(split: str, low: float, high: float) -> None:
    rate = np.array([draw_texture(Draws(9, i), i % 10, split) == i % 10 for i in range(4000)]).mean()
    assert low <= rate <= high
    source = open_source("shapes", split=split)
    metas = [source[i].meta for i in range(0, len(source), 5)]
    agree = [meta["texture_label"] == source.classes.index(meta["shape"]) for meta in metas]
    assert low - 0.06 <= np.mean(agree) <= high + 0.06 if high else not any(agree)
    assert all(list(TEXTURES)[meta["texture_label"]] == meta["texture"] and meta["split"] == split for meta in metas)


def test_other_textures_are_equally_likely() -> None:
    counts = np.bincount([draw_texture(Draws(1, i), 4, "conflict") for i in range(9000)], minlength=10)
    assert counts[4] == 0
    assert (np.abs(np.delete(counts, 4) - 1000) < 150).all()


@pytest.mark.parametrize("size", [16, 32, 96])
def test_silhouettes_lie_inside_and_have_soft_edges(size: int) -> None:
    for number, outlines in enumerate(SILHOUETTES.values()):
        for i in range(50):
            mask = draw_mask(outlines, size, Draws(size, number, i))
            border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
            # The smallest images leave less than a pixel between outline and border.
            assert border.max() <= (64 if size == 16 else 0)
            assert mask.max() == 255 or size == 16
            assert 0.03 < mask.mean() / 255 < 0.65
            assert ((mask > 0) & (mask < 255)).sum() > size / 4


def test_silhouettes_differ_in_shape_at_32_pixels() -> None:
    # Nearest neighbour on features that ignore position, size and rotation: moments, and area over hull.
    def describe(mask: np.ndarray) -> np.ndarray:
        moments = cv2.moments(mask)
        invariants = cv2.HuMoments(moments).ravel()[:4]
        points = np.argwhere(mask > 127).astype(np.int32)
        solid = len(points) / max(cv2.contourArea(cv2.convexHull(points)), 1)
        return np.array([*(np.sign(invariants) * np.log(np.abs(invariants) + 1e-12) / 4), solid * 6])

    def sample(salt: int, count: int) -> np.ndarray:
        shapes = SILHOUETTES.values()
        return np.array(
            [[describe(draw_mask(s, 32, Draws(salt, n, i))) for i in range(count)] for n, s in enumerate(shapes)]
        )

    known, asked = sample(0, 60), sample(1, 20)
    distance = np.linalg.norm(asked.reshape(-1, 1, 5) - known.reshape(1, -1, 5), axis=2)
    right = distance.argmin(axis=1) // 60 == np.repeat(np.arange(10), 20)
    assert right.mean() > 0.85


def test_fill_and_background() -> None:
    plain, photo = open_source("shapes", size=64), open_source("shapes", size=64, background="photo")
    for index in (0, 7, 23):
        a, b = plain[index], photo[index]
        assert a.meta == b.meta
        same = (a.image == b.image).all(axis=2)
        # The same silhouette and fill on another background.
        assert 0.03 < same.mean() < 0.7
        corner = a.image[:3, :3].reshape(-1, 3).astype(int)
        assert (np.ptp(corner, axis=0) <= 48).all()


def test_textures_differ() -> None:
    means = np.array([load_texture(name).reshape(-1, 3).mean(axis=0) for name in TEXTURES])
    spreads = np.array([load_texture(name).std() for name in TEXTURES])
    both = np.column_stack([means, spreads])
    distance = np.linalg.norm(both[:, None] - both[None], axis=2)[~np.eye(10, dtype=bool)]
    assert distance.min() > 5
    assert all(min(load_texture(name).shape[:2]) >= 96 for name in TEXTURES)


def test_digest_depends_on_the_options() -> None:
    digests = {
        open_source("shapes", split=split, size=size, background=background).digest
        for split in ("train", "test")
        for size in (None, 48)
        for background in ("plain", "photo")
    }
    assert len(digests) == 8
    assert open_source("shapes").digest == open_source("shapes", size=32).digest
