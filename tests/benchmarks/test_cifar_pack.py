"""CIFAR-10 packed for a small upload comes out pixel for pixel, and builds."""

from pathlib import Path

import numpy as np
from click.testing import CliRunner

from benchmarks.cifar_pack import main, read_part, write_part
from texturegen.builds import Recipe, build
from texturegen.sources import open_source


def test_any_pixels_come_out_as_they_went_in(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (2600, 32, 32, 3), np.uint8)  # more than a mosaic, less than two
    labels = random.integers(0, 10, 2600).astype(np.uint8)
    write_part(tmp_path, {"train": (images, labels)})
    again, labels_again = read_part(tmp_path, "train")
    assert np.array_equal(again, images)
    assert np.array_equal(labels_again, labels)


def test_the_official_files_go_through_both_parts_to_a_build(cifar10_root: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["pack", str(cifar10_root), str(tmp_path / "packed"), "--limit", "31"])
    assert done.exit_code == 0, done.output
    parts = [str(tmp_path / "packed" / name) for name in ("part0", "part1")]
    done = CliRunner().invoke(main, ["unpack", *parts, "--to", str(tmp_path / "tars")])
    assert done.exit_code == 0, done.output
    official = open_source("cifar10", root=cifar10_root, split="train")
    packed = open_source("webdataset", root=str(tmp_path / "tars" / "train-{0,1}.tar"))
    assert len(packed) == 31
    for i in (0, 15, 16, 30):
        assert np.array_equal(packed[i].image, official[i].image)
        assert packed[i].label == official[i].label
    result = build(Recipe("webdataset"), tmp_path / "shards", root=str(tmp_path / "tars" / "test-1.tar"))
    assert result.counts["samples"] == 31
