"""Pixels that stay on the device give the batches of the stream."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import sacl_train.data.resident
from sacl_train.data.resident import ResidentStream, fits_on_device
from sacl_train.data.stream import Plan, Stream
from texturegen import open_shards
from texturegen.builds import Recipe, build
from texturegen.errors import DamagedError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shards_of_three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return 40 images with three textures each, in shards of ten."""
    out = tmp_path_factory.mktemp("three") / "shards"
    build(Recipe("shapes", limit=40, per_image=3, shard_size=10), out)
    return out


def assert_equal_epochs(one: Stream, other: Stream, skip: int = 0) -> None:
    assert len(one) == len(other)
    for epoch in (0, 1):
        pairs = list(zip(one.epoch(epoch, skip), other.epoch(epoch, skip), strict=True))
        assert len(pairs) == len(one) - skip
        for batch, expected in pairs:
            assert batch.keys() == expected.keys()
            for name, values in batch.items():
                assert torch.equal(values, expected[name]), name
                assert values.stride() == expected[name].stride(), name


@pytest.mark.parametrize(
    "plan",
    [
        {"textures": "one"},
        {"textures": "all", "remainder": "wrap"},
        {"textures": "none", "order": "shards", "shuffle_buffer": 8},
        {"textures": "one", "order": "shards", "rank": 1, "ranks": 2, "accumulate": 2},
    ],
    ids=lambda plan: "-".join(map(str, plan.values())),
)
def test_batches_equal_those_of_the_stream(plan: dict[str, Any], shards_of_three: Path) -> None:
    shards = open_shards(shards_of_three)
    plan = Plan(batch_size=12, seed=3, **plan)
    assert_equal_epochs(ResidentStream(shards, plan, CPU), Stream(shards, plan))
    assert_equal_epochs(ResidentStream(shards, plan, CPU), Stream(shards, plan), skip=1)


def test_damaged_samples_are_replaced_as_in_the_stream(shards_of_three: Path, tmp_path: Path) -> None:
    shutil.copytree(shards_of_three, tmp_path / "damaged")
    sample = open_shards(shards_of_three)[7]
    tar = tmp_path / "damaged" / Path(sample.shard).name
    tar.write_bytes(tar.read_bytes().replace(sample.image_bytes, bytes(len(sample.image_bytes))))
    plan = Plan(batch_size=12, textures="one")
    streams = [make(open_shards(tmp_path / "damaged")) for make in (
        lambda s: ResidentStream(s, plan, CPU, bad_share=0.1), lambda s: Stream(s, plan, bad_share=0.1)
    )]  # fmt: skip
    for stream in streams:
        list(stream.epoch(0))  # both have met the damage
    assert streams[0].damaged.found().keys() == streams[1].damaged.found().keys() != set()
    assert_equal_epochs(*streams)
    with pytest.raises(DamagedError, match="more than bad_share allows"):
        list(ResidentStream(open_shards(tmp_path / "damaged"), plan, CPU, bad_share=0).epoch(0))


def test_damage_of_all_trained_samples_is_refused(shards_of_three: Path) -> None:
    shards, plan = open_shards(shards_of_three), Plan(batch_size=12, held_out=0.5)
    for stream in (Stream(shards, plan, bad_share=0.9), ResidentStream(shards, plan, CPU, bad_share=0.9)):
        stream.damaged.add(dict.fromkeys(stream._order(0).tolist(), "damaged"))
        with pytest.raises(DamagedError, match=r"are damaged, all that are trained on.*texturegen repair"):
            next(iter(stream.epoch(1)))


def test_pixels_may_take_half_of_the_free_memory(shards_of_three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards, cuda = open_shards(shards_of_three), torch.device("cuda")
    size = 40 * 4 * 32 * 32 * 3
    for free, fits in ((2 * size, True), (2 * size - 2, False)):
        monkeypatch.setattr(sacl_train.data.resident.torch.cuda, "mem_get_info", lambda _, free=free: (free, 0))
        assert fits_on_device(shards, Plan(8, textures="one"), cuda) == fits
    assert fits_on_device(shards, Plan(8, textures="none"), cuda)  # a quarter of the pixels
    assert fits_on_device(shards, Plan(8, textures="one"), cuda, limit_gb=1.01 * size / 1e9)
    assert not fits_on_device(shards, Plan(8, textures="one"), cuda, limit_gb=0.9 * size / 1e9)
    assert not fits_on_device(shards, Plan(8), CPU)
