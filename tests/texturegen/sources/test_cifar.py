"""cifar10 and cifar100 against torchvision's readers; damaged and hostile pickles."""

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from texturegen.errors import UserError
from texturegen.sources import open_source
from texturegen.sources.cifar import CIFAR10, CIFAR100, Batch, Cifar10, Cifar100, _load_batch

COUNTS = {"data_batch_1": 4, "data_batch_2": 3, "test_batch": 5}


@pytest.fixture(autouse=True)
def _forget_batches() -> Iterator[None]:
    yield
    _load_batch.cache_clear()  # else the real batches would stay in memory


def write_batch(path: Path, count: int, labels: str, classes: int) -> dict[str, Any]:
    rng = np.random.default_rng(len(path.name))
    content = {
        "data": rng.integers(0, 256, (count, 3072), np.uint8),
        labels: [int(n) for n in rng.integers(0, classes, count)],
    }
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=4))
    return content


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """A small CIFAR-10 below tmp_path: training batches of 4 and 3 images, a test batch of 5."""
    folder = tmp_path / CIFAR10.archive.folder
    written = {file: write_batch(folder / file, count, "labels", 10) for file, count in COUNTS.items()}
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    train, test = [], []
    for file, count in COUNTS.items():
        (test if file == "test_batch" else train).append(Batch(file, "0" * 32, count))
    monkeypatch.setattr(Cifar10, "layout", replace(CIFAR10, batches={"train": tuple(train), "test": tuple(test)}))
    return written


def test_every_index_is_read_from_its_batch(tmp_path: Path, small: dict[str, dict[str, Any]]) -> None:
    source = open_source("cifar10", root=tmp_path, check=False)
    assert (len(source), source.classes, source.split) == (7, list("abcdefghij"), "train")
    for index in (6, 0, 4, 3, 5):
        batch, row = ("data_batch_1", index) if index < 4 else ("data_batch_2", index - 4)
        item = source[index]
        planes = small[batch]["data"][row].reshape(3, 32, 32)
        np.testing.assert_array_equal(item.image, np.dstack(list(planes)))
        assert item.label == small[batch]["labels"][row]
        assert item.key == source.key(index) == f"cifar10-train-{index:08d}"
    with pytest.raises(IndexError):
        source[7]
    assert len(open_source("cifar10", root=tmp_path, split="test", check=False)) == 5


def test_at_most_two_batches_are_in_memory(tmp_path: Path, small: dict[str, dict[str, Any]]) -> None:
    for split in ("train", "test"):
        source = open_source("cifar10", root=tmp_path, split=split, check=False)
        assert [source[i].label for i in range(len(source))]
    assert _load_batch.cache_info().misses == 3
    assert _load_batch.cache_info().currsize == 2


def test_a_wrong_checksum_names_the_file(tmp_path: Path, small: dict[str, dict[str, Any]]) -> None:
    with pytest.raises(UserError, match=r"data_batch_1 is damaged \(MD5"):
        open_source("cifar10", root=tmp_path)


def test_a_missing_file_is_named(tmp_path: Path, small: dict[str, dict[str, Any]]) -> None:
    (tmp_path / CIFAR10.archive.folder / "data_batch_2").unlink()
    with pytest.raises(
        UserError, match=r"data_batch_2 is not in .*cifar-10-batches-py; add --download, or unpack https"
    ):
        open_source("cifar10", root=tmp_path, check=False)
    open_source("cifar10", root=tmp_path, split="test", check=False)  # needs only the test batch


class _Touch:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_cannot_run_code(tmp_path: Path, small: dict[str, dict[str, Any]]) -> None:
    trace = tmp_path / "trace"
    (tmp_path / CIFAR10.archive.folder / "data_batch_1").write_bytes(pickle.dumps({"data": _Touch(trace)}))
    source = open_source("cifar10", root=tmp_path, check=False)
    with pytest.raises(UserError, match=r"data_batch_1 is not a CIFAR file: it refers to "):
        source[0]
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a CIFAR file"),
        (b"\x80\x04garbage", "is not a CIFAR file"),
        (pickle.dumps([1, 2]), "holds no dictionary"),
        (pickle.dumps({"data": "text", "labels": [0] * 4}), "does not hold 4 CIFAR images"),
        (pickle.dumps({"data": np.zeros((3, 3072), np.uint8), "labels": [0] * 3}, 4), "does not hold 4 CIFAR images"),
        (pickle.dumps({"data": np.zeros((4, 3072), np.uint8), "labels": [0] * 3}, 4), "does not hold 4 labels"),
    ],
)
def test_a_file_with_other_contents_is_named(
    tmp_path: Path, small: dict[str, dict[str, Any]], content: bytes, message: str
) -> None:
    (tmp_path / CIFAR10.archive.folder / "data_batch_1").write_bytes(content)
    with pytest.raises(UserError, match=f"data_batch_1 .*{message}|data_batch_1 {message}"):
        open_source("cifar10", root=tmp_path, check=False)[0]


def test_cifar100_has_the_fine_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / CIFAR100.archive.folder
    content = write_batch(folder / "test", 6, "fine_labels", 100)
    (folder / "test").write_bytes(pickle.dumps({**content, "coarse_labels": [0] * 6}, protocol=4))
    names = {"fine_label_names": [f"fine{i}" for i in range(100)], "coarse_label_names": ["coarse"]}
    (folder / "meta").write_bytes(pickle.dumps(names))
    monkeypatch.setattr(Cifar100, "layout", replace(CIFAR100, batches={"test": (Batch("test", "", 6),)}))
    source = open_source("cifar100", root=tmp_path, split="test", check=False)
    assert [source[i].label for i in range(6)] == content["fine_labels"]
    assert (source.classes[99], source.key(5)) == ("fine99", "cifar100-test-00000005")


@pytest.mark.parametrize(("layout", "name"), [(CIFAR10, "CIFAR10"), (CIFAR100, "CIFAR100")])
def test_paths_and_checksums_match_torchvision(layout: Any, name: str) -> None:
    theirs = getattr(pytest.importorskip("torchvision").datasets, name)
    assert (layout.archive.url, layout.archive.md5) == (theirs.url, theirs.tgz_md5)
    assert layout.archive.folder == theirs.base_folder
    assert layout.meta == (theirs.meta["filename"], theirs.meta["md5"])
    assert layout.class_names == theirs.meta["key"]
    for split, files in (("train", theirs.train_list), ("test", theirs.test_list)):
        assert [[batch.file, batch.md5] for batch in layout.batches[split]] == files


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_real_cifar10_matches_torchvision(cifar10_root: Path, split: str) -> None:
    datasets = pytest.importorskip("torchvision").datasets
    theirs = datasets.CIFAR10(cifar10_root, train=split == "train")
    ours = open_source("cifar10", root=cifar10_root, split=split)
    assert len(ours) == len(theirs)
    assert ours.classes == theirs.classes
    for index in [*range(0, len(ours), 997), len(ours) - 1, 9_999]:
        image, label = theirs[index]
        item = ours[index]
        np.testing.assert_array_equal(item.image, np.array(image))
        assert item.label == label
        assert item.data is None
