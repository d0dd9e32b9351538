"""open_source: names, splits, options, sizes; the contract of all sources."""

import pickle
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from texturegen.errors import ImageError, UserError
from texturegen.sources import SOURCES, Source, open_source
from texturegen.sources.base import Item, fit_item
from texturegen.sources.resize import fit_square


def test_the_registry_matches_the_classes() -> None:
    for name, entry in SOURCES.items():
        module, cls = entry.location.split(":")
        source = getattr(import_module(f"texturegen.sources.{module}"), cls)
        assert issubclass(source, Source)
        assert source.name == name
        assert entry.default_split in (entry.splits or (None,))


def test_importing_the_package_loads_no_source() -> None:
    code = (
        "import sys, texturegen.sources as s; print([m for m in sys.modules if m.split('.')[0] in "
        "('cv2', 'PIL', 'skimage', 'torch', 'numba', 'pooch')], list(s.SOURCES))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "[] ['shapes', 'cifar10', 'cifar100', 'stl10', 'imagenet', 'imagenet100', 'folder', 'webdataset']\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cifar11",), r"unknown data set 'cifar11' \(did you mean 'cifar10.*'\?\); data sets: shapes, cifar10,"),
        (("nothing-like-it",), "unknown data set 'nothing-like-it'; data sets: shapes"),
        (("shapes", None, "tset"), r"no split 'tset' \(did you mean 'test'\?\); splits: train, test, conflict"),
        (("webdataset", ".", "train"), "'webdataset' has no splits"),
        (("folder",), "--root"),
        (("shapes", None, None, 0), "size must be at least 1 pixel, not 0"),
        (("shapes", None, None, 15), "at least 16"),
    ],
)
def test_a_wrong_argument_is_an_error(arguments: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_source(*arguments)
    assert "\n" not in str(caught.value)


def test_a_wrong_option_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no option 'backgroud' \(did you mean 'background'\?\)"):
        open_source("shapes", backgroud="photo")
    with pytest.raises(UserError, match=r"no background 'foto' \(did you mean 'photo'\?\)"):
        open_source("shapes", background="foto")
    with pytest.raises(UserError, match="options: none"):
        open_source("folder", root=".", background="photo")


def test_an_index_out_of_range_is_an_error() -> None:
    source = open_source("shapes", split="test")
    for index in (-1, len(source)):
        with pytest.raises(IndexError, match="1000 images"):
            source[index]


def test_an_image_error_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(ImageError("cat-1", "is truncated")))
    assert (error.key, error.reason, str(error)) == ("cat-1", "is truncated", "cat-1: is truncated")
    assert isinstance(error, UserError)


def test_fit_square_scales_the_short_side_and_crops_the_centre() -> None:
    image = np.zeros((40, 100, 3), np.uint8)
    image[:, 30:70] = 200  # the central square
    image[:, 30:50, 0] = 100
    small = fit_square(image, 10)
    assert small.shape == (10, 10, 3)
    assert (small[..., 1] == 200).all()
    assert (small[:, :5, 0] == 100).all()
    assert (small[:, 5:, 0] == 200).all()
    assert fit_square(image.transpose(1, 0, 2), 40).min() >= 100
    assert fit_square(image, 90).shape == (90, 90, 3)


def test_a_short_side_of_its_own_is_scaled_before_the_crop() -> None:
    image = np.arange(20 * 32 * 3, dtype=np.uint8).reshape(20, 32, 3)
    assert (fit_square(image, 14, short_side=20) == image[3:17, 9:23]).all()
    assert (fit_square(image, 14, short_side=40) == fit_square(image, 40)[13:27, 13:27]).all()
    source = open_source("shapes", size=16, short_side=24)
    drawn = open_source("shapes", size=16)[3].image
    assert (source[3].image == fit_square(drawn, 24)[4:20, 4:20]).all()
    assert (open_source("shapes", size=16, short_side=16)[3].image == drawn).all()
    for size, reason in ((32, "--size is 32"), (None, "--size is not given")):
        with pytest.raises(
            UserError, match=f"--short-side is 24, but {reason}; give a --size of at most the short side"
        ):
            open_source("shapes", size=size, short_side=24)


def test_reduction_averages() -> None:
    checks = np.indices((64, 64)).sum(axis=0)[..., None].repeat(3, axis=2) % 2 * np.uint8(200)
    assert (fit_square(checks.astype(np.uint8), 16) == 100).all()


def test_a_resized_item_loses_its_file() -> None:
    item = Item("a", np.zeros((20, 20, 3), np.uint8), 3, b"file", "jpg", {"path": "a.jpg"})
    assert fit_item(item, 20) is item
    fitted = fit_item(item, 10)
    assert (fitted.data, fitted.ext, fitted.label, fitted.meta) == (None, "png", 3, {"path": "a.jpg"})


def test_keys_are_valid_unique_and_those_of_the_items() -> None:
    source = open_source("shapes", split="conflict")
    keys = [source.key(i) for i in range(len(source))]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch("[A-Za-z0-9_-]{1,100}", key) for key in keys)
    assert source[12].key == keys[12] == "shapes-conflict-00000012"


@pytest.mark.parametrize("name", [name for name, entry in SOURCES.items() if entry.needs_root])
def test_an_empty_root_is_not_the_current_directory(name: str) -> None:
    with pytest.raises(UserError, match=f"data set '{name}': --root is empty"):
        open_source(name, "")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("webdataset", {"image": 5}),
        ("webdataset", {"image": {"png": 1}}),
        ("webdataset", {"classes": 5}),
        ("imagenet100", {"classes": 5}),
    ],
)
def test_an_option_of_the_wrong_type_is_refused(name: str, options: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="; it must be "):
        open_source(name, tmp_path, **options)
