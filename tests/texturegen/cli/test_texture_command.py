"""`texturegen texture`: one texture from picture files."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.commands import call
from texturegen import synthesize
from texturegen.texture.quality import measure

TEXTUREGEN = Path(sys.executable).parent / "texturegen"


def made(*arguments: str | Path | int) -> str:
    status, stdout, stderr = call("texturegen", "texture", *arguments)
    assert (status, stderr) == (0, "")
    assert stdout.count("\n") == 1
    return stdout


def refused(*arguments: str | Path | int) -> str:
    status, stdout, stderr = call("texturegen", "texture", *arguments)
    assert (status, stdout) == (1, "")
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    return stderr


def read(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


@pytest.fixture
def pictures(tmp_path: Path, photo: np.ndarray) -> list[Path]:
    """A PNG of 40x30 and one of 25x36 pixels."""
    crops = [photo[100:140, 150:180], photo[150:175, 200:236]]
    paths = [tmp_path / "fur.png", tmp_path / "eye.png"]
    for path, crop in zip(paths, crops, strict=True):
        Image.fromarray(crop).save(path)
    return paths


def test_one_picture_gives_a_texture_of_its_size(pictures: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    line = made(pictures[0], "-o", out)
    patches = [read(pictures[0])]
    expected = synthesize(patches, (40, 30))
    np.testing.assert_array_equal(read(out), expected.image)
    assert line.startswith(f"{out}: 40x30 from 1 picture by coherent in ")
    quality = measure(patches, expected.image, source=expected.source)
    for name in ("histogram", "autocorrelation", "coherence", "completeness", "verbatim", "largest_copy"):
        assert f"{name} {getattr(quality, name):.3g}" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eye.png", "fur.png", "out.png"]


@pytest.mark.parametrize(
    ("options", "size", "arguments"),
    [
        (["--size", "20"], (20, 20), {}),
        (["--size", "12X31", "--seed", 7], (12, 31), {"seed": 7}),
        (
            ["--method", "wei-levoy", "--method-option", "window=7", "--method-option", "levels=none", "--size", 9],
            (9, 9),
            {"method": "wei-levoy", "window": 7},
        ),
    ],
)
def test_options(
    pictures: list[Path], tmp_path: Path, options: list[str], size: tuple[int, int], arguments: dict
) -> None:
    out = tmp_path / "out.png"
    assert "from 2 pictures" in made(*pictures, "-o", out, *options)
    np.testing.assert_array_equal(read(out), synthesize([read(path) for path in pictures], size, **arguments).image)


def test_formats(pictures: list[Path], tmp_path: Path) -> None:
    expected = synthesize([read(pictures[0])], (40, 30)).image
    for name in ("out.webp", "out.PNG", "out.jpg", "out.jpeg"):
        out = tmp_path / name
        out.write_text("is replaced")
        made(pictures[0], "-o", out)
        assert Image.open(out).format == {"webp": "WEBP", "png": "PNG"}.get(name[4:].lower(), "JPEG")
        difference = np.abs(read(out).astype(int) - expected).mean()
        assert difference == 0 if name[4:] in ("webp", "PNG") else 0 < difference < 8


def test_grey_stays_grey_unless_another_picture_has_colour(pictures: list[Path], tmp_path: Path) -> None:
    grey, same, out = tmp_path / "grey.png", tmp_path / "same.png", tmp_path / "out.png"
    Image.open(pictures[0]).convert("L").save(grey)
    Image.open(grey).convert("RGB").save(same)
    for path in (grey, same):
        made(path, "-o", out, "--size", 16)
        np.testing.assert_array_equal(read(out), synthesize([read(grey)], (16, 16)).image)
    made(grey, pictures[1], "-o", out, "--size", 16)
    expected = synthesize([np.dstack([read(grey)] * 3), read(pictures[1])], (16, 16)).image
    np.testing.assert_array_equal(read(out), expected)


def test_exif_orientation_is_applied_and_alpha_dropped(pictures: list[Path], tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90 degrees
    Image.open(pictures[0]).save(tmp_path / "turned.jpg", exif=exif)
    out = tmp_path / "out.png"
    assert "30x40" in made(tmp_path / "turned.jpg", "-o", out)
    clear = np.dstack([read(pictures[0]), np.zeros((40, 30), np.uint8)])
    Image.fromarray(clear).save(tmp_path / "clear.png")
    made(tmp_path / "clear.png", "-o", out)
    np.testing.assert_array_equal(read(out), synthesize([read(pictures[0])], (40, 30)).image)


def test_outputs_that_cannot_be_written_are_refused_before_any_work(pictures: list[Path], tmp_path: Path) -> None:
    # bad.png is not a picture: reading it would give another error.
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    assert "use one of .png, .webp, .jpg, .jpeg" in refused(bad, "-o", tmp_path / "out.gif")
    assert "cannot be written" in refused(bad, "-o", tmp_path / "png")
    assert f"the directory {tmp_path / 'none'} does not exist" in refused(bad, "-o", tmp_path / "none" / "out.png")
    (tmp_path / "folder.png").mkdir()
    assert "folder.png is a directory" in refused(bad, "-o", tmp_path / "folder.png")
    os.link(pictures[0], tmp_path / "link.png")
    before = pictures[0].read_bytes()
    assert "is one of the pictures and would be overwritten" in refused(
        pictures[1], pictures[0], "-o", tmp_path / "link.png"
    )
    assert pictures[0].read_bytes() == before
    assert "at most 16383 pixels, the texture 2x16384" in refused(
        pictures[0], "-o", tmp_path / "out.webp", "--size", "2x16384"
    )


def test_unusable_pictures_are_named(pictures: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    half, small = tmp_path / "half.png", tmp_path / "small.png"
    half.write_bytes(pictures[0].read_bytes()[:500])
    Image.open(pictures[0]).crop((0, 0, 30, 4)).save(small)
    assert "none.png: No such file" in refused(pictures[0], tmp_path / "none.png", "-o", out)
    assert f"{tmp_path}: Is a directory" in refused(tmp_path, "-o", out)
    assert f"error: {half}: the PNG file is truncated" in refused(pictures[0], half, "-o", out)
    assert f"error: {small} is 4x30 pixels, too small for windows of" in refused(pictures[0], small, "-o", out)
    assert not out.exists()


def test_wrong_options_are_refused(pictures: list[Path], tmp_path: Path) -> None:
    arguments = [pictures[0], "-o", tmp_path / "out.png"]
    assert "did you mean 'coherent'" in refused(*arguments, "--method", "coherant")
    assert "did you mean 'window'" in refused(*arguments, "--method-option", "windows=5")
    assert "an odd integer" in refused(*arguments, "--method-option", "window=4")
    assert "seed must be" in refused(*arguments, "--seed", "-1")
    for size in ("0", "-3", "3x", "3x4x5", "big", "1.5"):
        status, _, stderr = call("texturegen", "texture", *arguments, "--size", size)
        assert (status, f"'{size}' is neither N nor HEIGHTxWIDTH" in stderr) == (2, True)
    assert call("texturegen", "texture", pictures[0])[0] == 2
    assert call("texturegen", "texture", "-o", tmp_path / "out.png")[0] == 2
    assert not (tmp_path / "out.png").exists()


def test_a_full_disk_leaves_the_old_file(pictures: list[Path], tmp_path: Path, uncovered: dict[str, str]) -> None:
    out = tmp_path / "out.png"
    made(*pictures, "-o", out, "--size", 16)  # compiles first, because the limit applies to Numba's cache too
    before = out.read_bytes()
    # A limit on the size of files simulates the full disk.
    script = "import resource, signal, sys, os; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    script += "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", script, TEXTUREGEN, "texture", *pictures, "-o", out, "--size", "200"]
    done = subprocess.run(command, capture_output=True, text=True, env=uncovered)
    assert (done.returncode, "File too large" in done.stderr, done.stderr.count("\n")) == (1, True, 1)
    assert out.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


def test_ctrl_c_ends_the_command_at_once_and_leaves_nothing(tmp_path: Path, photo: np.ndarray) -> None:
    # This takes an hour in one kernel if not interrupted.
    path, out = tmp_path / "photo.png", tmp_path / "out.png"
    assert cv2.imwrite(str(path), photo)
    arguments = [path, "-o", out, "--method", "efros-leung", "--size", "2000"]
    made(path, "-o", out, "--method", "efros-leung", "--size", "3")  # compiles
    before = out.read_bytes()
    process = subprocess.Popen([TEXTUREGEN, "texture", *map(str, arguments)], stderr=subprocess.PIPE, text=True)
    try:
        while "llvmlite" not in Path(f"/proc/{process.pid}/maps").read_text():  # not yet past click
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20)[1] == "stopped; nothing was written\n"
        assert process.returncode == 130
    finally:
        process.kill()
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.png", "photo.png"]
