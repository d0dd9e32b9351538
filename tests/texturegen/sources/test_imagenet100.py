"""imagenet100: class lists, reduced photographs, and incomplete folders."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from texturegen.errors import ImageError, UserError
from texturegen.sources import open_source
from texturegen.sources.imagenet100 import CLASS_LIST, read_class_list
from texturegen.sources.resize import shrink_short
from texturegen.storage.image import decode_image, decode_reduced

Encode = Callable[..., bytes]
DOG, TENCH = "n02102040", "n01440764"


def jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image[..., ::-1])[1].tobytes()


def scaled(photo: np.ndarray, height: int, width: int) -> np.ndarray:
    return cv2.resize(photo, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def root(tmp_path: Path, photo: np.ndarray) -> Path:
    """Two classes in train/ and val/, and a list that reverses their alphabetical order."""
    for split, count in (("train", 3), ("val", 1)):
        for wnid in (DOG, TENCH):
            (tmp_path / split / wnid).mkdir(parents=True)
            for i in range(count):
                (tmp_path / split / wnid / f"{wnid}_{i}.JPEG").write_bytes(jpeg(photo[i:]))
    (tmp_path / "classes.txt").write_text(f"{DOG}\n{TENCH}\n")
    return tmp_path


def test_the_shipped_list_is_the_published_one(shared_data: Path) -> None:
    assert CLASS_LIST.read_bytes() == (shared_data / "imagenet100.txt").read_bytes()
    assert len(read_class_list(CLASS_LIST)) == 100


def test_labels_follow_the_order_of_the_list(root: Path) -> None:
    source = open_source("imagenet100", root=root, classes=root / "classes.txt")
    assert (source.split, source.classes, len(source)) == ("train", [DOG, TENCH], 6)
    assert [source[i].label for i in range(6)] == [0, 0, 0, 1, 1, 1]
    assert source[4].meta["path"] == f"{TENCH}/{TENCH}_1.JPEG"
    assert source[4].key == source.key(4)
    assert source.key(4).startswith(f"{TENCH}-{TENCH}_1-")
    assert len(open_source("imagenet100", root=root, split="val", classes=str(root / "classes.txt"))) == 2


def test_real_images_are_read(shared_data: Path, tmp_path: Path) -> None:
    root = shared_data / "imagenette-mini"
    wnids = sorted(path.name for path in (root / "train").iterdir())
    (tmp_path / "list.txt").write_text("\n".join(wnids))
    source = open_source("imagenet100", root=root, split="val", classes=tmp_path / "list.txt")
    assert len(source) == 200
    for index in (0, 57, 199):
        item = source[index]
        file = root / "val" / item.meta["path"]
        assert (item.image.shape, item.ext, item.data) == ((160, 160, 3), "jpg", file.read_bytes())
        np.testing.assert_array_equal(item.image, np.array(Image.open(file).convert("RGB")))
        assert wnids[item.label] == file.parent.name
    with pytest.raises(UserError, match=r"100 of the 100 class folders are missing in .*/val: n02869837, n01749939"):
        open_source("imagenet100", root=root, split="val")


@pytest.mark.parametrize(
    ("height", "width", "shape", "divisor"),
    [
        (256, 400, (256, 400), 1),
        (200, 900, (200, 900), 1),
        (257, 300, (256, 299), 1),
        (511, 700, (256, 350), 2),  # 1/2 is exactly 256: no resize, but not the pixels of the file
        (600, 420, (366, 256), 1),
        (1100, 2100, (256, 489), 4),
        (2100, 2100, (256, 256), 8),
    ],
)
def test_large_photographs_have_a_short_side_of_256(
    root: Path, photo: np.ndarray, height: int, width: int, shape: tuple[int, int], divisor: int
) -> None:
    data = jpeg(scaled(photo, height, width))
    (root / "train" / DOG / "a.JPEG").write_bytes(data)
    item = open_source("imagenet100", root=root, classes=root / "classes.txt")[0]
    reduced, by = decode_reduced(data, 256)
    assert by == divisor
    assert min(reduced.shape[:2]) >= min(256, height, width)
    assert item.image.shape == (*shape, 3)
    if (height, width) == shape:
        assert (item.data, item.ext) == (data, "jpg")
        np.testing.assert_array_equal(item.image, decode_image(data))
    else:
        assert (item.data, item.ext) == (None, "png")
        whole = cv2.resize(decode_image(data), shape[::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(item.image.astype(int) - whole).mean() < 3  # the decoder does not average like INTER_AREA


def test_size_crops_the_reduced_images(root: Path, photo: np.ndarray) -> None:
    data = jpeg(scaled(photo, 512, 1000))
    (root / "train" / DOG / "a.JPEG").write_bytes(data)
    item = open_source("imagenet100", root=root, size=64, classes=root / "classes.txt")[0]
    small = shrink_short(decode_reduced(data, 256)[0], 256)
    assert small.shape == (256, 500, 3)
    expected = cv2.resize(small[:, 122:378], (64, 64), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(item.image, expected)


def test_reduced_decoding_applies_exif_and_does_not_reduce_png(photo: np.ndarray, encode: Encode) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode("RGB", "JPEG", exif=exif.tobytes(), quality=95)
    image, divisor = decode_reduced(turned, 100)
    assert (image.shape, divisor) == ((226, 150, 3), 2)
    assert np.abs(image.astype(int) - cv2.resize(decode_image(turned), (150, 226))).mean() < 4
    grey, _ = decode_reduced(encode("L", "JPEG"), 75)
    assert grey.shape == (75, 113, 3)
    assert (grey[..., 0] == grey[..., 2]).all()
    same, divisor = decode_reduced(encode("RGB", "PNG"), 10)
    assert divisor == 1
    np.testing.assert_array_equal(same, photo)


def test_reduced_decoding_has_the_same_limits(monkeypatch: pytest.MonkeyPatch, encode: Encode) -> None:
    data = encode("RGB", "JPEG")
    with pytest.raises(UserError, match="truncated"):
        decode_reduced(data[: len(data) // 2], 100)
    monkeypatch.setattr("texturegen.storage.image.MAX_PIXELS", 1000)
    with pytest.raises(UserError, match="more than the limit"):
        decode_reduced(data, 100)


def test_bad_images_are_named_and_other_files_ignored(root: Path, photo: np.ndarray) -> None:
    (root / "train" / DOG / "a.JPEG").write_bytes(b"no image")
    (root / "train" / DOG / "notes.txt").write_bytes(b"x")
    (root / "train" / DOG / ".hidden.JPEG").write_bytes(b"x")
    source = open_source("imagenet100", root=root, classes=root / "classes.txt")
    with pytest.raises(ImageError, match=rf"^{source.key(0)}: {DOG}/a.JPEG: the file is not an image"):
        source[0]
    assert source.ignored == [f"{DOG}/notes.txt"]
    assert source[1].image.shape == (256, 385, 3)


def test_the_root_may_be_the_folder_of_the_split(root: Path) -> None:
    for split, count in (("train", 6), ("val", 2)):
        source = open_source("imagenet100", root=root / split, split=split, classes=root / "classes.txt")
        assert len(source) == count
        assert source.digest == open_source("imagenet100", root, split, classes=root / "classes.txt").digest
    with pytest.raises(UserError, match=r"there is no folder .*val/train; --root must hold train/ and val/"):
        open_source("imagenet100", root=root / "val", classes=root / "classes.txt")


def test_missing_and_empty_classes_are_listed(root: Path) -> None:
    with pytest.raises(UserError, match=r"100 of the 100 class folders are missing in .*train: n0.*, \.\.\.; compl"):
        open_source("imagenet100", root=root)
    (root / "classes.txt").write_text(f"{DOG}\nn00000001\nn00000002\n{TENCH}")
    with pytest.raises(UserError, match=r"2 of the 4 .* are missing in .*: n00000001, n00000002; "):
        open_source("imagenet100", root=root, classes=root / "classes.txt")
    for wnid in ("n00000001", "n00000002"):
        (root / "train" / wnid).mkdir()
    with pytest.raises(UserError, match=r"2 of the 4 .* hold no images in .*: n00000001, n00000002; ") as caught:
        open_source("imagenet100", root=root, classes=root / "classes.txt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "list.txt is empty"),
        (b"\n \n", "list.txt is empty"),
        (b"n01440764\n\ntench\n", r"list.txt, line 3: 'tench' is not a WordNet id"),
        (b"n01440764 tench\n", r"list.txt, line 1: 'n01440764 tench' is not a WordNet id"),
        (b"n01440764\nn02102040\nn01440764", r"list.txt, line 3: n01440764 is already in line 1"),
        (b"../../../etc", "line 1: '../../../etc' is not a WordNet id"),
        (b"\xff\xfe\x00", "is not a text file"),
        (None, "cannot be read: No such file"),
    ],
)
def test_an_error_in_a_list_names_its_line(root: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (root / "list.txt").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        open_source("imagenet100", root=root, classes=root / "list.txt")
    assert "\n" not in str(caught.value)


def test_a_list_may_have_windows_line_ends(root: Path) -> None:
    (root / "list.txt").write_bytes(b"\xef\xbb\xbf" + f"{DOG} \r\n{TENCH}\r\n".encode())
    assert read_class_list(root / "list.txt") == [DOG, TENCH]


def test_digest_depends_on_classes_files_and_resolution(root: Path, photo: np.ndarray) -> None:
    def digest() -> str:
        return open_source("imagenet100", root=root, classes=root / "classes.txt").digest

    digests = [digest()]
    (root / "classes.txt").write_text(f"{TENCH}\n{DOG}\n")
    digests.append(digest())
    (root / "train" / DOG / f"{DOG}_1.JPEG").write_bytes(jpeg(photo[:100]))
    digests.append(digest())
    (root / "train" / DOG / f"{DOG}_9.JPEG").write_bytes(jpeg(photo))
    digests.append(digest())
    assert len(set(digests)) == 4
    assert digest() == digests[3]
