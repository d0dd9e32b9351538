"""README.md of a shard directory: what Hugging Face `datasets` reads from it, and what it says."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from texturegen.builds import Recipe, build
from texturegen.cli import main
from texturegen.errors import UserError
from texturegen.shards import open_shards
from texturegen.shards.card import CARD, Contents, describe_kinds, make_card, read_contents
from texturegen.shards.layout import MANIFEST
from texturegen.shards.merge import split
from texturegen.shards.verify import verify

datasets = pytest.importorskip("datasets", reason="needs Hugging Face datasets")


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()


@pytest.fixture
def mixed(image_folder: Path, tmp_path: Path) -> Path:
    """Six images in one shard, two of them JPEG."""
    build(Recipe("folder", method="patch-shuffle"), tmp_path / "mixed", str(image_folder))
    return tmp_path / "mixed"


def test_datasets_loads_the_images_of_a_directory_with_one_tar(mixed: Path) -> None:
    data = datasets.load_dataset(str(mixed), split="train")
    assert data.column_names == ["png", "jpg", "texture0.png", "cls", "__key__", "__url__"]
    assert data.features["cls"].names == ["cats", "eyes"]
    for row, sample in zip(data, open_shards(mixed), strict=True):
        image = row["png"] or row["jpg"]
        assert (row["png"] is None) != (row["jpg"] is None)
        assert np.array_equal(np.asarray(image), sample.image)
        assert np.array_equal(np.asarray(row["texture0.png"]), sample.textures[0])
        assert (row["__key__"], row["cls"]) == (sample.key, sample.label)


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_one_kind_encodes_the_other_images(image_folder: Path, tmp_path: Path, kind: str) -> None:
    recipe = Recipe("folder", per_image=0, one_kind=kind)
    build(recipe, tmp_path / "one", str(image_folder))
    build(Recipe("folder", per_image=0), tmp_path / "kept", str(image_folder))
    assert read_contents(tmp_path / "one" / MANIFEST).images == {kind: 6}
    for one, kept in zip(open_shards(tmp_path / "one"), open_shards(tmp_path / "kept"), strict=True):
        same_file = one.image_bytes == kept.image_bytes
        assert same_file == kept.image_bytes.startswith({"png": b"\x89PNG", "jpg": b"\xff\xd8", "webp": b"RIFF"}[kind])
        assert same_file or np.abs(one.image.astype(int) - kept.image).mean() <= (3 if kind == "jpg" else 0)
    assert build(recipe, tmp_path / "one", str(image_folder)).counts["samples"] == 6, "the same build again"


def test_a_wrong_kind_is_an_error(image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--one-kind is 'gif'; it must be one of png, webp, jpg"):
        build(Recipe("folder", one_kind="gif"), tmp_path / "s", str(image_folder))


def test_build_and_info_say_that_types_are_mixed(image_folder: Path, tmp_path: Path) -> None:
    command = ["build", "--dataset", "folder", "--root", str(image_folder), "--per-image", "0", "--workers", "1"]
    done = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "a")])
    assert done.stderr == (
        "images are of several types (4 png and 2 jpg); for readers that expect one, build with --one-kind\n"
    )
    assert CliRunner().invoke(main, [*command, "--out", str(tmp_path / "b"), "--one-kind", "png"]).stderr == ""
    assert "image types  4 png, 2 jpg\n" in CliRunner().invoke(main, ["info", str(tmp_path / "a")]).stdout


def test_the_card_of_new_directories_describes_them(shapes_shards: Path, tmp_path: Path) -> None:
    text = (shapes_shards / CARD).read_text()
    assert "# shapes train with textures" in text
    assert "64 images (64 png), 1 texture for each" in text
    assert "| completeness | " in text
    split(shapes_shards, tmp_path / "half", share=0.5)
    assert "32 images (32 png)" in (tmp_path / "half" / CARD).read_text()
    shutil.copytree(shapes_shards, tmp_path / "copy")
    (tmp_path / "copy" / CARD).write_text("licence: CC0")  # a user's own
    assert verify(tmp_path / "copy") == []


def test_class_names_and_members_are_valid_yaml() -> None:
    yaml = pytest.importorskip("yaml")
    names = ['"', "a: b", "\x85\x07", "\N{GRINNING FACE}", "no"]
    build = {
        "recipe": {"per_image": 2, "settings": {}, "method": "coherent", "seed": 0},
        "source": {"name": None, "split": None, "classes": names},
        "counts": {"samples": 3, "failed": 0},
    }
    contents = Contents({"png": 2, "jpg": 1}, {"webp": 6}, ["json", "other.png", "txt"], {})
    front = yaml.safe_load(make_card(build, contents).split("---")[1])
    (features,) = (entry["features"] for entry in front["dataset_info"])
    assert list(features[-3]["dtype"]["class_label"]["names"].values()) == names
    columns = {feature["name"]: feature["dtype"] for feature in features[:-3]}
    assert columns == {
        **dict.fromkeys(("png", "jpg", "texture0.webp", "texture1.webp", "other.png"), "image"),
        "txt": "string",
    }
    assert describe_kinds(contents) == "2 png and 1 jpg"
