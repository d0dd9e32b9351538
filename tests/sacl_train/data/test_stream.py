"""The stream of batches: every sample at most once an epoch, the same order for the same seed, true pixels."""

from pathlib import Path

import numpy as np
import pytest

from sacl_train.data.stream import Plan, Stream, channel_statistics
from texturegen import open_shards
from texturegen.build import Recipe, build
from texturegen.errors import UserError


@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_an_epoch_gives_whole_batches_of_distinct_samples(shapes_shards: Path, cache_gb: float) -> None:
    shards = open_shards(shapes_shards)
    stream = Stream(shards, Plan(10, seed=3, textures="all"), cache_gb=cache_gb)
    for epoch in (0, 1):  # the second is served from the cache where there is one
        batches = list(stream.epoch(epoch))
        assert [len(batch["image"]) for batch in batches] == [10] * 6
        seen = np.concatenate([batch["index"] for batch in batches])
        assert len(set(seen.tolist())) == 60
        for batch in batches:
            for i, index in enumerate(batch["index"].tolist()):
                sample = shards[index]
                np.testing.assert_array_equal(batch["image"][i].permute(1, 2, 0), sample.image)
                np.testing.assert_array_equal(batch["texture"][i].permute(0, 2, 3, 1), sample.textures)


def test_the_order_is_a_function_of_seed_and_epoch(shapes_shards: Path) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        stream = Stream(open_shards(shapes_shards), Plan(16, seed))
        return np.concatenate([batch["index"] for batch in stream.epoch(epoch)]).tolist()

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 0)
    assert order(0, 1) != order(1, 1)


def test_in_order_gives_every_sample_once_without_textures_unless_asked(shapes_shards: Path) -> None:
    stream = Stream(open_shards(shapes_shards), Plan(50))
    batches = list(stream.in_order())
    assert np.concatenate([batch["index"] for batch in batches]).tolist() == list(range(64))
    assert "texture" not in batches[0]
    assert [batch["index"].tolist() for batch in stream.in_order(np.array([7, 5]))] == [[7, 5]]


def test_textures_that_are_not_there_are_asked_for(shapes_test_shards: Path) -> None:
    with pytest.raises(UserError, match="these shards hold no textures"):
        Stream(open_shards(shapes_test_shards), Plan(4, textures="one"))


def test_images_of_different_sizes_are_refused(image_folder: Path, tmp_path: Path, photo: np.ndarray) -> None:
    import cv2

    cv2.imwrite(str(image_folder / "cats" / "large.png"), photo[:64, :48])
    build(Recipe("folder"), tmp_path / "s", root=str(image_folder))
    with pytest.raises(UserError, match=r"images of 2 sizes.* build with --size"):
        Stream(open_shards(tmp_path / "s"), Plan(4))


def test_channel_statistics_are_those_of_the_pixels(shapes_shards: Path) -> None:
    shards = open_shards(shapes_shards)
    pixels = np.concatenate([sample.image.reshape(-1, 3) for sample in shards]) / 255
    mean, std = channel_statistics(shards)
    np.testing.assert_allclose(mean, pixels.mean(0), atol=1e-4)
    np.testing.assert_allclose(std, pixels.std(0), atol=1e-4)
