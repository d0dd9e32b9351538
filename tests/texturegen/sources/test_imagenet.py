"""imagenet: folders and official tars give the same shards; the development kit; damaged and missing tars."""

import io
import json
import os
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from texturegen.builds import Recipe, build
from texturegen.errors import DamagedError, ImageError, MissingError, SourceLost, UserError
from texturegen.shards import verify
from texturegen.sources import open_source
from texturegen.sources.imagenet import DEVKIT, TARS, read_devkit
from texturegen.sources.tar_index import walk_tar

WNIDS = ["n01440764", "n02102040", "n03000684"]


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def roots(tmp_path: Path, photo: np.ndarray) -> tuple[Path, Path]:
    """The same images in torchvision's folders and in the official tars, whose classes and images are not sorted."""
    folders, tars = tmp_path / "folders", tmp_path / "tars"
    tars.mkdir()
    images = {}
    for i in range(9):
        crop = cv2.resize(photo[:, 10 * i : 10 * i + 300], (90, 60 + 5 * i))
        images[i] = cv2.imencode(".jpg", crop)[1].tobytes()
    with tarfile.open(tars / TARS["train"], "w") as outer:
        for label in (2, 0, 1):
            stream = io.BytesIO()
            with tarfile.open(fileobj=stream, mode="w") as inner:
                for i in reversed(range(label, 9, 3)):
                    name = f"{WNIDS[label]}_{i}.JPEG"
                    add(inner, name, images[i])
                    path = folders / "train" / WNIDS[label] / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(images[i])
            add(outer, f"{WNIDS[label]}.tar", stream.getvalue())
    truth = [3, 1, 2, 3]  # numbers of the kit, which are not labels
    by_number = {1: WNIDS[1], 2: WNIDS[0], 3: WNIDS[2]}
    with tarfile.open(tars / TARS["val"], "w") as outer:
        for i, number in enumerate(truth, 1):
            name = f"ILSVRC2012_val_{i:08d}.JPEG"
            add(outer, name, images[i])
            path = folders / "val" / by_number[number] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(images[i])
    rows = [(number, wnid, "a, b", "c", 0) for number, wnid in by_number.items()] + [(4, "n00001740", "entity", "d", 3)]
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    table = io.BytesIO()
    savemat(table, {"synsets": np.array(rows, fields)})
    with tarfile.open(tars / DEVKIT, "w:gz") as kit:
        folder = "ILSVRC2012_devkit_t12/data"
        add(kit, f"{folder}/meta.mat", table.getvalue())
        text = "".join(f"{number}\n" for number in truth)
        add(kit, f"{folder}/ILSVRC2012_validation_ground_truth.txt", text.encode())
    return folders, tars


@pytest.mark.parametrize("split", ["train", "val"])
def test_folders_and_tars_give_the_same_shards(split: str, roots: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = Recipe("imagenet", split=split, size=32, shard_size=3)
    for root, workers in zip(roots, (0, 2), strict=True):
        result = build(recipe, tmp_path / root.name / "out", str(root), workers=workers)
        assert result.counts["failed"] == 0
    first, second = (tmp_path / root.name / "out" for root in roots)
    names = sorted(path.name for path in first.iterdir() if not path.name.startswith("."))
    assert names == sorted(path.name for path in second.iterdir() if not path.name.startswith("."))
    for name in names:
        made = [(out / name).read_bytes() for out in (first, second)]
        if name == "build.json":
            made = [{k: v for k, v in json.loads(data).items() if k not in ("run", "sha256")} for data in made]
        assert made[0] == made[1], name
    assert verify(second) == []
    source = open_source("imagenet", roots[1], split)
    assert source.classes == WNIDS
    paths = [item.meta["path"] for item in map(source.__getitem__, range(len(source)))]
    assert paths == sorted(paths)
    assert all(item.label == WNIDS.index(item.meta["path"][:9]) for item in map(source.__getitem__, range(len(source))))


def test_files_keep_their_bytes(roots: tuple[Path, Path]) -> None:
    folders, tars = (open_source("imagenet", root) for root in roots)
    for i in range(len(folders)):
        assert folders[i].data == tars[i].data is not None
        assert folders.key(i) == tars.key(i)
    assert folders.digest == tars.digest


def test_tars_made_anew_with_their_folders_give_the_same_images(roots: tuple[Path, Path], tmp_path: Path) -> None:
    folders, tars = roots
    (folders / "train" / WNIDS[0] / ".hidden.JPEG").touch()
    (folders / "train" / WNIDS[0] / "notes.txt").touch()
    (folders / "train" / WNIDS[0] / "link.JPEG").symlink_to("nowhere")
    with tarfile.open(tars / TARS["train"], "w") as outer:
        for wnid in WNIDS:
            with tarfile.open(tmp_path / "inner", "w") as inner:
                inner.add(folders / "train" / wnid, wnid)
            add(outer, f"{wnid}.tar", (tmp_path / "inner").read_bytes())
    source = open_source("imagenet", tars)
    assert [source.key(i) for i in range(len(source))] == [open_source("imagenet", folders).key(i) for i in range(9)]
    hidden = f"{WNIDS[0]}/.hidden.JPEG"  # not listed in a folder at all
    assert sorted(source.ignored) == [hidden, f"{WNIDS[0]}/link.JPEG", f"{WNIDS[0]}/notes.txt"]


def test_a_damaged_image_whose_name_is_no_text_is_a_failed_image(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as inner:
        add(inner, os.fsdecode(b"caf\xe9.JPEG"), b"no image")
        add(inner, "good.JPEG", cv2.imencode(".jpg", np.zeros((32, 32, 3), np.uint8))[1].tobytes())
    with tarfile.open(tmp_path / TARS["train"], "w") as outer:
        add(outer, f"{WNIDS[0]}.tar", stream.getvalue())
    result = build(Recipe("imagenet", per_image=0), tmp_path / "out", str(tmp_path))
    assert [reason.partition(":")[0] for _, reason in result.failures] == [f"{WNIDS[0]}/caf\ufffd.JPEG"]


def test_a_build_goes_on_with_the_tars_it_began_with(roots: tuple[Path, Path]) -> None:
    folders, tars = roots
    listing = open_source("imagenet", tars).index
    (folders / "train").rename(tars / "train")  # as if somebody unpacked them meanwhile
    assert open_source("imagenet", tars, listing=listing)[0].data
    (tars / TARS["train"]).unlink()
    with pytest.raises(SourceLost, match=r"ILSVRC2012_img_train\.tar can no longer be read: No such file"):
        open_source("imagenet", tars, listing=listing)[0]


def test_a_tar_that_is_rewritten_while_it_is_listed_has_changed(
    roots: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = roots[1] / TARS["train"]

    def list_and_rewrite(*arguments: object) -> object:
        tar.write_bytes(tar.read_bytes())
        return walk_tar(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("texturegen.sources.imagenet.walk_tar", list_and_rewrite)
    source = open_source("imagenet", roots[1])
    with pytest.raises(SourceLost, match="changed after the build began"):
        source[0]


def test_what_is_missing_or_damaged_is_named(roots: tuple[Path, Path], tmp_path: Path) -> None:
    _, tars = roots
    with pytest.raises(UserError, match=r"neither .*train/ nor .*ILSVRC2012_img_train.tar exists"):
        open_source("imagenet", tmp_path)
    (tars / DEVKIT).rename(tmp_path / "kit")
    with pytest.raises(MissingError, match=r"the classes of the validation images need .*devkit_t12\.tar\.gz"):
        open_source("imagenet", tars, "val")
    (tmp_path / "kit").write_bytes((tmp_path / "kit").read_bytes()[:100])
    with pytest.raises(DamagedError, match="not ImageNet's development kit"):
        read_devkit(tmp_path / "kit")
    whole = (tars / TARS["train"]).read_bytes()
    source = open_source("imagenet", tars)
    offset = source.index.members(0)[0].offset
    (tars / TARS["train"]).write_bytes(whole[:offset] + b"no image" + whole[offset + 8 :])
    with pytest.raises(SourceLost, match="changed after the build began"):
        source[0]
    with pytest.raises(ImageError, match=rf"{WNIDS[0]}/.*JPEG: "):
        open_source("imagenet", tars)[0]
    (tars / TARS["train"]).write_bytes(whole[:3000])
    with pytest.raises(DamagedError, match=r"n03000684.tar"):
        open_source("imagenet", tars)
