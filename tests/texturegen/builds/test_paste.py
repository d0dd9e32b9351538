"""`build --paste`: members beside the textures, read, verified, repaired, merged and split like any others."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from texturegen import open_shards
from texturegen.builds import Recipe, build
from texturegen.builds.recipe import Plan, make_plan
from texturegen.builds.repair import repair
from texturegen.errors import DamagedError, UserError
from texturegen.shards import verify
from texturegen.shards.merge import merge, split
from texturegen.texture.paste import paste_texture

RECIPE = Recipe("shapes", limit=6, shard_size=3, per_image=2, paste=True)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("paste") / "out"
    build(RECIPE, out)
    return out


def test_members_are_the_image_with_its_texture_and_the_mask(shards: Path) -> None:
    assert verify(shards) == []
    opened = open_shards(shards)
    seeds = iter(opened.manifest["seed"].to_pylist())
    for sample in opened:
        assert set(sample.members) == {"pasted0.png", "pasted1.png", "mask0.png", "mask1.png"}
        assert sample.pasted.shape == (2, 32, 32, 3)
        assert sample.masks.shape == (2, 32, 32)
        for pasted, mask, texture in zip(sample.pasted, sample.masks, sample.textures, strict=True):
            expected, place = paste_texture(sample.image, texture, next(seeds))
            np.testing.assert_array_equal(pasted, expected)
            np.testing.assert_array_equal(mask, place)
    with tarfile.open(shards / "shard-000000.tar") as tar:
        data = tar.extractfile("shapes-train-00000000.mask1.png").read()
    assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED).ndim == 2  # a grey file


def test_other_members_do_not_depend_on_it(shards: Path, tmp_path: Path) -> None:
    build(replace(RECIPE, paste=False), tmp_path / "plain")
    for mine, plain in zip(open_shards(shards), open_shards(tmp_path / "plain"), strict=True):
        assert (mine.image_bytes, mine.texture_bytes) == (plain.image_bytes, plain.texture_bytes)
    with pytest.raises(UserError, match=r"no member pasted0\.png; build the shards with --paste"):
        _ = plain.pasted
    assert json.loads((shards / "build.json").read_text())["recipe"]["paste"] is True
    assert json.loads((shards / "build.json").read_text())["algorithms"]["paste"] == 1
    plan, _ = make_plan(replace(RECIPE, paste=False))
    before = plan.describe()
    del before["recipe"]["paste"]  # as an earlier release wrote it
    assert plan.matches(before)
    assert Plan.from_description(before).fingerprint == plan.fingerprint != make_plan(RECIPE)[0].fingerprint


def test_repair_merge_and_split_carry_them(shards: Path, tmp_path: Path) -> None:
    build(RECIPE, tmp_path / "again")
    whole = (tmp_path / "again" / "shard-000001.tar").read_bytes()
    assert whole == (shards / "shard-000001.tar").read_bytes()
    broken = bytearray(whole)
    broken[whole.index(b"mask0.png") + 700] ^= 1
    (tmp_path / "again" / "shard-000001.tar").write_bytes(broken)
    samples = list(open_shards(tmp_path / "again"))[3:]
    with pytest.raises(DamagedError, match="mask0"):
        [sample.masks for sample in samples]
    assert repair(tmp_path / "again", workers=0).rebuilt == ["shard-000001.tar"]
    assert (tmp_path / "again" / "shard-000001.tar").read_bytes() == whole
    build(replace(RECIPE, split="test", limit=2), tmp_path / "other")
    merge([shards, tmp_path / "other"], tmp_path / "merged")
    split(shards, tmp_path / "part", where="label < 4")
    for made, count in ((tmp_path / "merged", 8), (tmp_path / "part", 4)):
        assert verify(made) == []
        assert [sample.masks.shape for sample in open_shards(made)] == [(2, 32, 32)] * count


def test_a_member_of_the_same_name_is_a_failed_image(tmp_path: Path, photo: np.ndarray) -> None:
    image = cv2.imencode(".png", photo[:32, :32])[1].tobytes()
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (("w.png", image), ("w.mask0.json", b"{}"), ("x.png", image), ("x.mask0.png", b"mine")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    result = build(Recipe("webdataset", paste=True), tmp_path / "out", str(tmp_path / "a.tar"))
    assert result.failures == [("x", "its tar has a member mask0.png already; build without --paste")]
    (sample,) = open_shards(tmp_path / "out")
    assert (sample.members["mask0.json"], sample.masks.shape) == (b"{}", (1, 32, 32))


def test_nothing_to_paste_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--per-image is 0"):
        build(replace(RECIPE, per_image=0), tmp_path / "out")
