"""stl10: files in the official layout, compared with torchvision's reader."""

from pathlib import Path

import numpy as np
import pytest

from texturegen.errors import UserError
from texturegen.sources import open_source
from texturegen.sources import stl10 as module

COUNTS = {"train": 7, "test": 5, "unlabeled": 9}


@pytest.fixture
def written(tmp_path: Path, photo: np.ndarray) -> dict[str, np.ndarray]:
    """Write crops of a photograph as STL-10 below tmp_path; return the images of each part, (N, 96, 96, 3)."""
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    rng = np.random.default_rng(0)
    images = {}
    for part, count in COUNTS.items():
        corners = [(rng.integers(0, 200), rng.integers(0, 350)) for _ in range(count)]
        images[part] = np.stack([photo[y : y + 96, x : x + 96] for y, x in corners])
        planes = [np.asfortranarray(image[:, :, c]).tobytes("F") for image in images[part] for c in range(3)]
        (folder / f"{part}_X.bin").write_bytes(b"".join(planes))
        if part != "unlabeled":
            (folder / f"{part}_y.bin").write_bytes(bytes(1 + i * 3 % 10 for i in range(count)))
    (folder / "class_names.txt").write_text("airplane\nbird\ncar\ncat\ndeer\ndog\nhorse\nmonkey\nship\ntruck\n")
    return images


@pytest.mark.parametrize("split", ["train", "test", "unlabeled", "train+unlabeled"])
def test_every_split_is_read_as_torchvision_reads_it(
    tmp_path: Path, written: dict[str, np.ndarray], split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("torchvision").datasets
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda self: True)
    theirs = datasets.STL10(tmp_path, split=split)
    ours = open_source("stl10", root=tmp_path, split=split, check=False)
    originals = np.concatenate([written[part] for part in split.split("+")])
    assert len(ours) == len(theirs) == len(originals)
    assert ours.classes == theirs.classes
    for index in reversed(range(len(ours))):
        image, label = theirs[index]
        item = ours[index]
        np.testing.assert_array_equal(item.image, np.array(image))
        np.testing.assert_array_equal(item.image, originals[index])
        assert item.label == label
        assert type(item.image) is np.ndarray  # a copy, not a view of the mapped file


def test_a_key_names_the_part_of_its_image(tmp_path: Path, written: dict[str, np.ndarray]) -> None:
    both = open_source("stl10", root=tmp_path, split="train+unlabeled", check=False)
    keys = [both.key(i) for i in range(len(both))]
    assert keys[:7] == [f"stl10-train-{i:08d}" for i in range(7)]
    assert keys[7:] == [f"stl10-unlabeled-{i:08d}" for i in range(9)]
    alone = open_source("stl10", root=tmp_path, split="unlabeled", check=False)
    assert alone.key(8) == keys[-1] == both[15].key
    assert alone.digest != both.digest


def test_images_are_mapped_and_not_loaded(tmp_path: Path, written: dict[str, np.ndarray]) -> None:
    # 60 GB if they were read; a hole in a file takes no disk space.
    count = 2_200_000
    with open(tmp_path / "stl10_binary" / "unlabeled_X.bin", "r+b") as file:
        file.truncate(count * 3 * 96 * 96)
    source = open_source("stl10", root=tmp_path, split="unlabeled", check=False)
    assert len(source) == count
    assert not source[count - 1].image.any()
    np.testing.assert_array_equal(source[3].image, written["unlabeled"][3])


def test_size_scales(tmp_path: Path, written: dict[str, np.ndarray]) -> None:
    item = open_source("stl10", root=tmp_path, size=32, check=False)[0]
    expected = written["train"][0].reshape(32, 3, 32, 3, 3).mean(axis=(1, 3))
    assert np.abs(item.image - expected).max() <= 0.5


def test_only_the_files_of_the_split_are_verified(
    tmp_path: Path, written: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"unlabeled_X\.bin is damaged \(MD5 .*, official 5242ba1f"):
        open_source("stl10", root=tmp_path, split="unlabeled")
    (tmp_path / "stl10_binary" / "unlabeled_X.bin").unlink()
    open_source("stl10", root=tmp_path, split="test", check=False)
    with pytest.raises(UserError, match=r"unlabeled_X\.bin is not in .*stl10_binary; add --download, or unpack http"):
        open_source("stl10", root=tmp_path, split="train+unlabeled", check=False)


def test_a_file_of_another_layout_is_named(tmp_path: Path, written: dict[str, np.ndarray]) -> None:
    folder = tmp_path / "stl10_binary"
    (folder / "test_X.bin").write_bytes(b"x" * 30_000)
    with pytest.raises(UserError, match=r"test_X\.bin is not a whole number of images"):
        open_source("stl10", root=tmp_path, split="test", check=False)
    for labels in (bytes([1] * 6), bytes([1] * 6 + [11]), bytes([0] + [1] * 6)):
        (folder / "train_y.bin").write_bytes(labels)
        with pytest.raises(UserError, match=r"train_y\.bin does not hold 7 labels from 1 to 10"):
            open_source("stl10", root=tmp_path, check=False)


def test_paths_and_checksums_match_torchvision() -> None:
    theirs = pytest.importorskip("torchvision").datasets.STL10
    assert (module.ARCHIVE.url, module.ARCHIVE.md5) == (theirs.url, theirs.tgz_md5)
    assert module.ARCHIVE.folder == theirs.base_folder
    assert dict(theirs.train_list + theirs.test_list) == module.MD5
