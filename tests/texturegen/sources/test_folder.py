"""folder: classes, order, keys, and files that are not images."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from texturegen.errors import ImageError, UserError
from texturegen.sources import open_source
from texturegen.sources.folder import Folder

Encode = Callable[..., bytes]


def fill(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def open_folder(root: Path, **options: int) -> Folder:
    source = open_source("folder", root=root, **options)
    assert isinstance(source, Folder)
    return source


def test_nested_folders_and_images_beside_class_folders(tmp_path: Path, encode: Encode) -> None:
    png, jpg = encode("RGB", "PNG"), encode("RGB", "JPEG")
    files = {"dog/b.png": png, "dog/deep/er/a.JPEG": jpg, "cat/z.Jpg": jpg, "top.png": png}
    others = {"notes.txt": b"x", "dog/readme.md": b"x", ".hidden": b"x", ".cache/c.png": png, "cat/.d.png": png}
    source = open_folder(fill(tmp_path, files | others))
    items = [source[i] for i in range(len(source))]
    assert source.classes == ["cat", "dog"]
    assert [(item.meta["path"], item.label, item.ext) for item in items] == [
        ("cat/z.Jpg", 0, "jpg"),
        ("dog/b.png", 1, "png"),
        ("dog/deep/er/a.JPEG", 1, "jpg"),
        ("top.png", -1, "png"),
    ]
    assert [item.data for item in items] == [jpg, png, jpg, png]
    assert source.ignored == ["dog/readme.md", "notes.txt"]
    assert source.split is None
    with pytest.raises(IndexError):
        source[4]


def test_a_file_of_the_wanted_size_is_kept_only_if_it_is_not_scaled_first(tmp_path: Path, encode: Encode) -> None:
    fill(tmp_path, {"a.png": encode("RGB", "PNG")})
    side = min(open_folder(tmp_path)[0].image.shape[:2])
    Image.fromarray(open_folder(tmp_path)[0].image[:side, :side]).save(tmp_path / "a.png")
    kept, scaled = open_folder(tmp_path, size=side)[0], open_folder(tmp_path, size=side, short_side=side + 4)[0]
    assert kept.data == (tmp_path / "a.png").read_bytes()
    assert scaled.data is None
    assert (scaled.image != kept.image).any()


def test_a_split_is_a_folder_of_class_folders(
    tmp_path: Path, encode: Encode, capfd: pytest.CaptureFixture[str]
) -> None:
    png = encode("RGB", "PNG")
    fill(tmp_path, {f"{split}/{name}/1.png": png for split in ("train", "val") for name in ("cat", "dog")})
    source = open_source("folder", root=tmp_path, split="val")
    assert (source.classes, source.split, len(source), source[1].label) == (["cat", "dog"], "val", 2, 1)
    assert source.digest == open_folder(tmp_path / "val").digest
    again = open_source("folder", root=tmp_path, split="val", listing=source.listing)
    assert again[1].image.shape == source[1].image.shape
    assert capfd.readouterr().err == ""
    whole = open_folder(tmp_path)
    assert whole.classes == ["train", "val"]
    said = capfd.readouterr().err
    assert "its folders train, val are taken as classes; for the classes below one of them" in said
    for split, message in (("vall", r"no folder 'vall' in .* \(did you mean 'val'\?\)"), ("..", r"no folder '\.\.'")):
        with pytest.raises(UserError, match=message):
            open_source("folder", root=tmp_path, split=split)


def test_a_flat_folder_has_no_classes(tmp_path: Path, encode: Encode) -> None:
    source = open_folder(fill(tmp_path, {"b.png": encode("RGB", "PNG"), "a.png": encode("L", "PNG")}))
    assert source.classes == []
    assert [(source[i].meta["path"], source[i].label) for i in range(2)] == [("a.png", -1), ("b.png", -1)]


def test_an_empty_class_folder_counts(tmp_path: Path, encode: Encode) -> None:
    (tmp_path / "ant").mkdir()
    source = open_folder(fill(tmp_path, {"bee/1.png": encode("RGB", "PNG")}))
    assert (source.classes, source[0].label) == (["ant", "bee"], 1)


def test_keys_and_digest_do_not_depend_on_the_location(tmp_path: Path, encode: Encode) -> None:
    one, two = (fill(tmp_path / name, {"c/a.png": encode("RGB", "PNG")}) for name in ("one", "two"))
    assert open_folder(one).key(0) == open_folder(two).key(0)
    assert open_folder(one).digest == open_folder(two).digest
    fill(two, {"c/b.png": encode("L", "PNG")})
    assert open_folder(one).digest != open_folder(two).digest
    fill(one, {"c/b.png": encode("RGB", "PNG")})  # the same names, but another file size
    assert open_folder(one).digest != open_folder(two).digest


def test_bad_files_are_named_and_the_others_read(tmp_path: Path, encode: Encode, photo: np.ndarray) -> None:
    jpeg = encode("RGB", "JPEG")
    deep = cv2.imencode(".png", photo[..., ::-1].astype(np.uint16) * 257)[1].tobytes()
    first, second = (Image.fromarray(image).convert("P") for image in (photo, photo[::-1]))
    rgba = np.dstack([photo, photo[..., 0]])
    root = fill(
        tmp_path,
        {
            "bad/text.jpg": b"this is a text\n",
            "bad/truncated.jpg": jpeg[: len(jpeg) // 2],
            "bad/empty.png": b"",
            "good/16-bit.png": deep,
            "good/cmyk.jpg": encode("CMYK", "JPEG"),
            "good/1-bit.png": encode("1", "PNG"),
            "good/liar.jpg": encode("RGB", "PNG"),
            "good/notes.txt": b"a text",
        },
    )
    first.save(root / "good" / "animated.gif", save_all=True, append_images=[second])
    Image.fromarray(rgba).save(root / "good" / "rgba.png")
    source = open_folder(root)
    assert len(source) == 9
    reasons = (
        "empty.png: the file is empty",
        "text.jpg: the file is not an image",
        "truncated.jpg: the JPEG file is trunc",
    )
    for i, reason in enumerate(reasons):
        with pytest.raises(ImageError, match=f"^{source.key(i)}: bad/{reason}") as caught:
            source[i]
        assert (caught.value.key, "\n" in str(caught.value)) == (source.key(i), False)
    good = [source[i] for i in range(3, 9)]
    assert all(item.image.shape == photo.shape and item.label == 1 for item in good)
    names = ["1-bit.png", "16-bit.png", "animated.gif", "cmyk.jpg", "liar.jpg", "rgba.png"]
    assert [item.meta["path"] for item in good] == [f"good/{name}" for name in names]
    # Only liar.jpg, an 8-bit RGB PNG, keeps its bytes: readers differ on all others.
    assert [(item.ext, item.data is None) for item in good] == [("png", name != "liar.jpg") for name in names]
    assert source.ignored == ["good/notes.txt"]


def test_a_deleted_file_is_an_image_error(tmp_path: Path, encode: Encode) -> None:
    source = open_folder(fill(tmp_path, {"a.png": encode("RGB", "PNG")}))
    (tmp_path / "a.png").unlink()
    with pytest.raises(ImageError, match=r"a\.png cannot be read: No such file"):
        source[0]


def test_size_gives_squares_without_the_file(tmp_path: Path, encode: Encode, photo: np.ndarray) -> None:
    square = cv2.imencode(".png", photo[:64, :64, ::-1])[1].tobytes()
    source = open_folder(fill(tmp_path, {"wide.png": encode("RGB", "PNG"), "exact.png": square}), size=64)
    exact, wide = source[0], source[1]
    assert wide.image.shape == exact.image.shape == (64, 64, 3)
    assert (wide.data, wide.ext) == (None, "png")
    assert exact.data == square
    centre = cv2.resize(photo[:, 75:375], (64, 64), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(wide.image, centre)


def test_links_are_followed_but_not_in_circles(
    tmp_path: Path, encode: Encode, capsys: pytest.CaptureFixture[str]
) -> None:
    root = fill(tmp_path / "root", {"a/1.png": encode("RGB", "PNG")})
    away = fill(tmp_path / "away", {"2.png": encode("RGB", "PNG")})
    (root / "b").symlink_to(away)
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "again").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    (root / "gone.png").symlink_to(root / "nowhere.png")
    os.mkfifo(root / "pipe.png")  # reading it would block
    source = open_folder(root)
    assert [source[i].meta["path"] for i in range(len(source))] == ["a/1.png", "b/2.png"]
    assert source.ignored == ["gone.png", "pipe.png", "self"]
    assert f"warning: {root}: 2 images left out, because there is no file behind the name" in capsys.readouterr().err
    for name in ("a/1.png", "b/2.png"):
        (root / name).unlink()
    with pytest.raises(UserError, match="no images in"):
        open_folder(root)
    assert "2 images left out" in capsys.readouterr().err


def test_a_file_name_that_is_not_utf8_is_read(tmp_path: Path, encode: Encode) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")
    Path(os.fsdecode(path)).write_bytes(encode("RGB", "PNG"))
    source = open_folder(tmp_path)
    source[0].meta["path"].encode()  # raises for a lone surrogate
    assert len(source.digest) == 64
    assert re.fullmatch("caf_-[0-9a-f]{8}", source.key(0))


def test_folders_without_images_are_an_error(tmp_path: Path) -> None:
    file = tmp_path / "file.png"
    with pytest.raises(UserError, match="does not exist"):
        open_folder(tmp_path / "missing")
    with pytest.raises(UserError, match=r"no images in .* \(it is empty\); extensions: bmp, gif"):
        open_folder(tmp_path)
    file.write_text("x")
    with pytest.raises(UserError, match="is a file"):
        open_folder(file)
    file.rename(tmp_path / "file.txt")
    with pytest.raises(UserError, match="only 1 other file"):
        open_folder(tmp_path)
