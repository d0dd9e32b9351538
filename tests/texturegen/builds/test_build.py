"""Builds: bytes do not depend on the workers, builds resume, and every failed image is recorded."""

import errno
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from texturegen import open_shards
from texturegen.builds import Recipe, build, finish
from texturegen.builds.engines import ENGINES, Entry, Lost, Stopped
from texturegen.builds.job import STAGES, run_job
from texturegen.builds.recipe import make_plan, texture_seed
from texturegen.builds.trial import estimate
from texturegen.errors import OtherBuildError, UserError
from texturegen.shards import verify
from texturegen.shards.layout import FORMAT, QUALITY
from texturegen.shards.merge import split
from texturegen.sources import files
from texturegen.sources.files import EXTENSIONS
from texturegen.storage.image import decode_image
from texturegen.storage.lock import acquire
from texturegen.storage.sealed import seal
from texturegen.texture import cut_patches, synthesize
from texturegen.texture.quality import measure

DEADLY = "3 worker processes died at this image (out of memory, or a crash)"
TINY = Recipe("shapes", limit=12, shard_size=5)
KILLS = int(os.environ.get("TEXTUREGEN_KILLS", "6"))  # at random moments


def digests(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every file, of build.json without `run` and its checksum."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.name == "build.json":
                content = json.loads(data)
                assert set(content.pop("run")["seconds"]) == {*STAGES}
                content.pop("sha256", None)  # texturegen 0.1.0 wrote none
                data = json.dumps(content).encode()
            found[str(path.relative_to(directory))] = hashlib.sha256(data).hexdigest()
    return found


@pytest.mark.slow
def test_workers_do_not_change_the_bytes(tmp_path: Path) -> None:
    build(TINY, tmp_path / "one")
    build(TINY, tmp_path / "four", workers=4)
    assert digests(tmp_path / "one") == digests(tmp_path / "four")
    assert len(digests(tmp_path / "one")) == 6  # three shards, the manifest, the card, build.json


def test_a_texture_depends_on_seed_and_key_not_on_the_shards(tmp_path: Path) -> None:
    build(TINY, tmp_path / "a")
    build(Recipe("shapes", limit=7, shard_size=3), tmp_path / "b")
    build(Recipe("shapes", limit=7, seed=1), tmp_path / "c")
    a, b, c = (open_shards(tmp_path / name) for name in "abc")
    assert a.keys[:7] == b.keys == c.keys
    assert [s.texture_bytes for s in a][:7] == [s.texture_bytes for s in b]
    assert [s.texture_bytes for s in b] != [s.texture_bytes for s in c]
    assert [s.image_bytes for s in b] == [s.image_bytes for s in c]


def test_a_manifest_row_reproduces_its_texture(tmp_path: Path) -> None:
    build(Recipe("shapes", limit=3, per_image=2, method="wei-levoy"), tmp_path / "s")
    shards = open_shards(tmp_path / "s")
    rows = shards.manifest.to_pylist()
    assert [(row["key"], row["index"]) for row in rows] == [(key, i) for key in shards.keys for i in (0, 1)]
    for number, row in enumerate(rows):
        sample = shards[number // 2]
        patches = [sample.image[y : y + h, x : x + w] for y, x, h, w in map(dict.values, row["patches"])]
        settings = shards.build["recipe"]["settings"]
        again = synthesize(patches, (row["height"], row["width"]), row["method"], row["seed"], **settings)
        np.testing.assert_array_equal(again.image, sample.textures[row["index"]])
        assert row["seed"] == texture_seed(0, sample.key, row["index"])
        quality = asdict(measure(patches, again.image, row["seed"], source=again.source))
        assert list(quality) == list(QUALITY)
        assert [row[figure] for figure in QUALITY] == pytest.approx(list(quality.values()))
    assert len({row["seed"] for row in rows}) == 6


def test_an_interrupted_build_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    build(TINY, tmp_path / "whole")
    made: list[int] = []

    def stop_in_the_second_shard(total: int, already: int):
        def progress(textures: int, failed: int) -> None:
            made.append(textures)
            if sum(made) == 7:
                raise KeyboardInterrupt

        return progress

    with pytest.raises(KeyboardInterrupt):
        build(TINY, tmp_path / "stopped", progress=stop_in_the_second_shard)
    assert [p.name for p in (tmp_path / "stopped").glob("shard*")] == ["shard-000000.tar"]
    with pytest.raises(UserError, match="not finished"):
        open_shards(tmp_path / "stopped")
    first = (tmp_path / "stopped" / "shard-000000.tar").stat()
    seen: list[int] = []
    build(
        TINY,
        tmp_path / "stopped",
        progress=lambda total, already: seen.extend((total, already)) or (lambda made, failed: None),
    )
    assert seen == [12, 5]
    assert (tmp_path / "stopped" / "shard-000000.tar").stat().st_mtime_ns == first.st_mtime_ns
    assert digests(tmp_path / "stopped") == digests(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_build_resumes_to_the_same_bytes(tmp_path: Path, uncovered: dict[str, str]) -> None:
    recipe = Recipe("shapes", limit=300, shard_size=30)
    build(recipe, tmp_path / "whole", workers=0)
    command = [sys.executable, "-m", "texturegen", "build", "--dataset", "shapes", "--limit", "300"]
    command += ["--shard-size", "30", "--workers", "2", "--out", tmp_path / "killed"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=uncovered)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "killed").glob("shard-*.tar")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)  # the workers hold the pipe, and end with their parent
    assert not (tmp_path / "killed" / "build.json").exists()
    build(recipe, tmp_path / "killed", workers=2)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--workers", "1", "--size", "96"],
        ["--workers", "2", "--size", "96"],
        ["--workers", "2", "--size", "300", "--method", "efros-leung"],  # takes many seconds per image
    ],
)
def test_ctrl_c_ends_within_two_seconds_and_says_how_to_resume(tmp_path: Path, options: list[str]) -> None:
    command = [sys.executable, "-m", "texturegen", "build", "--dataset", "shapes", "--shard-size", "20", *options]
    process = subprocess.Popen([*command, "--out", tmp_path / "s"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    wanted = "shard-*.tmp" if "efros-leung" in options else "shard-*.tar"
    while not list((tmp_path / "s").glob(wanted)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.5)
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert time.monotonic() - asked < 2 + 6  # two seconds, and more on a busy machine
    assert process.returncode == 130
    assert stderr.splitlines()[-1].startswith("stopped;")
    assert "Traceback" not in stderr
    assert not list((tmp_path / "s").rglob("*.tmp"))


@pytest.mark.slow
def test_ctrl_c_during_startup_prints_one_line(tmp_path: Path, uncovered: dict[str, str]) -> None:
    command = [sys.executable, "-m", "texturegen", "build", "--dataset", "shapes", "--workers", "2", "--out"]
    for number, moment in enumerate(np.linspace(0, 1.5, 4)):
        process = subprocess.Popen(
            [*command, tmp_path / f"{number}"], stderr=subprocess.PIPE, text=True, start_new_session=True, env=uncovered
        )
        while not (tmp_path / f"{number}" / "parts" / "recipe.json").exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(moment)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, stderr = process.communicate(timeout=30)
        assert process.returncode == 130
        assert "Traceback" not in stderr
        assert stderr.strip().startswith("stopped;")
        assert "\n" not in stderr.strip()


def test_a_second_build_in_a_directory_is_refused(tmp_path: Path) -> None:
    build(TINY, tmp_path / "alone")

    def start_another(total: int, already: int) -> Callable[[int, int], None]:
        writing = tmp_path / "s" / "shard-000000.tar.1a2b3c4d.tmp"
        writing.write_bytes(b"being written")
        with pytest.raises(UserError, match=rf"s: process {os.getpid()} on .* is building there"):
            build(TINY, tmp_path / "s")
        assert writing.read_bytes() == b"being written"
        writing.unlink()
        return lambda made, failed: None

    build(TINY, tmp_path / "s", progress=start_another)
    assert digests(tmp_path / "s") == digests(tmp_path / "alone")


def test_a_second_build_of_another_recipe_is_refused(tmp_path: Path) -> None:
    build(TINY, tmp_path / "alone")

    def start_another(total: int, already: int) -> Callable[[int, int], None]:
        claimed = (tmp_path / "s" / "parts" / "recipe.json").read_bytes()
        (tmp_path / "s" / "parts" / "recipe.json").unlink()  # as another node may see it for a moment
        with pytest.raises(UserError, match="is building there"):
            build(replace(TINY, seed=1), tmp_path / "s")
        assert not (tmp_path / "s" / "parts" / "recipe.json").exists()
        (tmp_path / "s" / "parts" / "recipe.json").write_bytes(claimed)
        return lambda made, failed: None

    build(TINY, tmp_path / "s", progress=start_another)
    assert digests(tmp_path / "s") == digests(tmp_path / "alone")


def test_the_lock_of_a_dead_process_does_not_block(tmp_path: Path) -> None:
    holder = "from texturegen.storage.lock import acquire; import os, sys; from pathlib import Path; "
    holder += "lock = acquire(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    path = tmp_path / "lock"
    assert subprocess.run([sys.executable, "-c", holder, path]).returncode == -signal.SIGKILL
    assert path.read_text().startswith("process ")
    with acquire(path):
        assert path.read_text().startswith(f"process {os.getpid()} on ")


@pytest.mark.parametrize("ticks", [0, 2])
def test_a_stopped_job_leaves_no_file(tmp_path: Path, ticks: int) -> None:
    plan, _ = make_plan(TINY)
    answers = iter([True] * ticks + [False])
    with pytest.raises(Stopped):
        run_job(plan, None, tmp_path, {}, 0, lambda made, failed: next(answers))
    assert not list(tmp_path.iterdir())


def test_a_finished_build_is_not_repeated(tmp_path: Path) -> None:
    first = build(TINY, tmp_path / "s")
    before = digests(tmp_path / "s")
    again = build(TINY, tmp_path / "s", progress=lambda total, already: pytest.fail("worked again"))
    assert again == first
    assert digests(tmp_path / "s") == before


def test_a_repeated_key_ends_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Our sources refuse repeated keys when they are opened; a user's own source may not.
    monkeypatch.setattr("texturegen.sources.shapes.Shapes.key", lambda source, index: f"k-{index % 11}")
    with pytest.raises(UserError, match="gives the key 'k-0' to more than one image"):
        build(TINY, tmp_path / "s")
    assert not (tmp_path / "s" / "build.json").exists()


def test_a_limit_above_the_size_of_the_data_set_means_all(image_folder: Path) -> None:
    plan, _ = make_plan(Recipe("folder", limit=100, shard_size=4), root=str(image_folder))
    assert (plan.items, plan.shards, plan.positions(1)) == (6, 2, range(4, 6))


def test_another_recipe_is_refused_with_the_difference(tmp_path: Path) -> None:
    build(TINY, tmp_path / "s")
    before = digests(tmp_path / "s")
    with pytest.raises(UserError, match=r"holds another build \(recipe.limit 12 there, 13 requested\)"):
        build(Recipe("shapes", limit=13, shard_size=5), tmp_path / "s")
    with pytest.raises(UserError, match=r"\(recipe.method 'coherent' there, 'efros-leung' requested\)"):
        build(Recipe("shapes", limit=12, shard_size=5, method="efros-leung"), tmp_path / "s")
    assert digests(tmp_path / "s") == before
    content = json.loads((tmp_path / "s" / "build.json").read_text())
    content["algorithms"]["quality"] = 2
    (tmp_path / "s" / "build.json").write_text(json.dumps(seal(content)))
    with pytest.raises(UserError, match=r"\(algorithms.quality 2 there, 1 requested\)"):
        build(TINY, tmp_path / "s")
    (tmp_path / "s" / "build.json").unlink()
    with pytest.raises(UserError, match="holds other files"):
        build(TINY, tmp_path / "s")


def test_failed_images_are_recorded_and_the_rest_is_built(image_folder: Path, tmp_path: Path) -> None:
    (image_folder / "cats" / "broken.png").write_text("no image")
    (image_folder / "cats" / "notes.txt").write_text("not an image at all")
    cv2.imwrite(str(image_folder / "eyes" / "small.png"), np.zeros((4, 4, 3), np.uint8))
    out = tmp_path / "s"
    told = [0, 0]

    def progress(made: int, failed: int) -> None:
        told[:] = told[0] + made, told[1] + failed

    result = build(
        Recipe("folder", shard_size=3), out, root=str(image_folder), progress=lambda total, already: progress
    )
    assert result.counts == {"samples": 6, "textures": 6, "failed": 2, "ignored": 1}
    assert told == [8, 2]
    assert len(result.failures) == 2
    shards = open_shards(out)
    assert len(shards) == 6
    failed = [row for row in shards.manifest.to_pylist() if row["status"] == "failed"]
    assert sorted(row["key"].rsplit("-", 1)[0] for row in failed) == ["cats-broken", "eyes-small"]
    assert all(row["error"] and row["key"] not in row["error"] and row["shard"] is None for row in failed)
    assert all(row["label"] == -1 for row in failed)
    assert verify(out) == []
    # Original files are stored unchanged.
    names = {p.read_bytes() for p in image_folder.rglob("*.*")}
    assert all(sample.image_bytes in names for sample in shards)
    assert sorted(set(shards.manifest["image_ext"].to_pylist()) - {None}) == ["jpg", "png"]
    assert shards.classes == ["cats", "eyes"]


def test_a_changed_folder_is_another_build(image_folder: Path, tmp_path: Path) -> None:
    build(Recipe("folder"), tmp_path / "s", root=str(image_folder))
    shutil.copy(image_folder / "cats" / "1.png", image_folder / "cats" / "7.png")
    with pytest.raises(UserError, match="holds another build"):
        build(Recipe("folder"), tmp_path / "s", root=str(image_folder))


def test_a_file_removed_during_the_build_is_recorded(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    plan, _ = make_plan(Recipe("folder"), root=str(image_folder))
    removed = threading.Event()

    def vanish(made: int, failed: int) -> bool:
        if not removed.is_set():
            removed.set()
            os.unlink(image_folder / "eyes" / "2.png")
        return True

    stats = run_job(plan, str(image_folder), tmp_path, {}, 0, vanish)
    assert (stats["samples"], stats["failed"]) == (5, 1)


def after(textures: int, do: Callable[[], object]) -> Callable[[int, int], Callable[[int, int], None]]:
    """Return a `progress` that calls `do` once `textures` textures are made."""
    made = [0]

    def progress(more: int, failed: int) -> None:
        made[0] += more
        if made[0] == textures:
            do()

    return lambda total, already: progress


def test_a_folder_that_changes_during_the_build_shifts_no_image(image_folder: Path, tmp_path: Path) -> None:
    recipe = Recipe("folder", shard_size=2)
    build(recipe, tmp_path / "whole", root=str(image_folder))

    def change() -> None:
        os.unlink(image_folder / "eyes" / "0.jpg")
        shutil.copy(image_folder / "cats" / "1.png", image_folder / "a.png")

    result = build(recipe, tmp_path / "s", root=str(image_folder), progress=after(2, change))
    assert result.counts == {"samples": 5, "textures": 5, "failed": 1, "ignored": 0}
    whole, changed = open_shards(tmp_path / "whole"), open_shards(tmp_path / "s")
    gone = next(key for key in whole.keys if key.startswith("eyes-0-"))
    assert changed.keys == [key for key in whole.keys if key != gone]
    assert result.failures[0][0] == gone
    assert verify(tmp_path / "s") == []


def test_a_folder_that_disappears_ends_the_build_without_failed_images(image_folder: Path, tmp_path: Path) -> None:
    recipe = Recipe("folder", shard_size=2)
    build(recipe, tmp_path / "whole", root=str(image_folder))
    away = after(3, lambda: image_folder.rename(tmp_path / "away"))
    with pytest.raises(UserError, match="images cannot be reached any more"):
        build(recipe, tmp_path / "s", root=str(image_folder), progress=away)
    (tmp_path / "away").rename(image_folder)
    assert build(recipe, tmp_path / "s", root=str(image_folder)).counts["failed"] == 0
    assert digests(tmp_path / "s") == digests(tmp_path / "whole")


def test_files_removed_and_added_since_the_start_are_named(image_folder: Path, tmp_path: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(Recipe("folder", shard_size=2), tmp_path / "s", root=str(image_folder), progress=after(3, stop))
    (image_folder / "cats" / "1.png").rename(image_folder / "cats" / "7.png")
    with pytest.raises(UserError, match=r"images differ: 1 file removed: cats/1\.png, 1 file added: cats/7\.png"):
        build(Recipe("folder", shard_size=2), tmp_path / "s", root=str(image_folder))


def test_a_temporary_read_error_is_retried(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("texturegen.storage.ranges.RETRY_DELAYS", (0.01, 0.01))
    read, calls = files._read, []

    def stale(path: Path) -> tuple[bytes, os.stat_result]:
        calls.append(path.name)
        if path.suffix == ".jpg" and calls.count(path.name) % 3:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return read(path)

    monkeypatch.setattr(files, "_read", stale)
    assert build(Recipe("folder"), tmp_path / "s", root=str(image_folder)).counts["failed"] == 0
    assert calls.count("0.jpg") == 6  # one in each class


@pytest.mark.parametrize("finished", [True, False])
def test_failed_images_can_be_retried(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool
) -> None:
    recipe, root = Recipe("folder", shard_size=2, per_image=2), str(image_folder)
    build(recipe, tmp_path / "whole", root=root)
    with monkeypatch.context() as patch:
        bad = (image_folder / "cats" / "2.png").read_bytes()

        def decode(data: bytes) -> np.ndarray:
            if data == bad:
                raise UserError("for now")
            return decode_image(data)

        patch.setattr("texturegen.sources.folder.decode_image", decode)
        if finished:
            assert build(recipe, tmp_path / "s", root=root).counts["failed"] == 1
        else:
            build(recipe, tmp_path / "s", root=root, part=(2, 2))
    before = (tmp_path / "s" / "shard-000002.tar").stat().st_mtime_ns
    if finished:
        assert build(recipe, tmp_path / "s", root=root).counts["failed"] == 1  # only retried on request
        content = json.loads((tmp_path / "s" / "build.json").read_text())
        content["run"]["seconds"]["read"] = 1000.0
        (tmp_path / "s" / "build.json").write_text(json.dumps(seal(content)))
        with pytest.raises(UserError, match="retry its failed images without --shard-range"):
            build(recipe, tmp_path / "s", root=root, part=(1, 2), retry_failed=True)
    result = build(recipe, tmp_path / "s", root=root, retry_failed=True)
    assert result.counts["failed"] == 0
    assert finished == (1000 <= result.seconds["read"] < 1100)  # both runs together
    assert (tmp_path / "s" / "shard-000002.tar").stat().st_mtime_ns == before
    assert digests(tmp_path / "s") == digests(tmp_path / "whole")


@pytest.mark.parametrize("harm", ["tar cut short", "stats empty", "rows missing", "rows cut short", "another's"])
def test_an_incomplete_shard_is_rebuilt(tmp_path: Path, harm: str) -> None:
    build(TINY, tmp_path / "whole")
    build(TINY, tmp_path / "s", part=(1, 2))
    if harm == "tar cut short":
        os.truncate(tmp_path / "s" / "shard-000000.tar", 1000)
    elif harm == "stats empty":
        os.truncate(tmp_path / "s" / "parts" / "000000.json", 0)
    elif harm == "rows missing":
        (tmp_path / "s" / "parts" / "000000.parquet").unlink()
    elif harm == "another's":
        stats = tmp_path / "s" / "parts" / "000000.json"
        stats.write_text(json.dumps({**json.loads(stats.read_text()), "fingerprint": "0" * 64}))
        tar = tmp_path / "s" / "shard-000000.tar"
        tar.write_bytes(bytes(tar.stat().st_size))
    else:
        os.truncate(tmp_path / "s" / "parts" / "000000.parquet", 100)
    build(TINY, tmp_path / "s")
    assert digests(tmp_path / "s") == digests(tmp_path / "whole")


def test_an_array_part_removes_only_its_own_leftovers(tmp_path: Path) -> None:
    build(TINY, tmp_path / "whole")
    build(TINY, tmp_path / "s", part=(1, 3))
    names = [f"shard-00000{n}.tar.1a2b.tmp" for n in range(3)] + [f"parts/00000{n}.parquet.1a2b.tmp" for n in range(3)]
    names += ["manifest.parquet.1a2b.tmp", "build.json.1a2b.tmp"]
    for name in names:
        (tmp_path / "s" / name).write_bytes(b"half")
    build(TINY, tmp_path / "s", part=(2, 3))
    assert [name for name in names if not (tmp_path / "s" / name).exists()] == [names[1], names[4]]
    build(TINY, tmp_path / "s")
    assert digests(tmp_path / "s") == digests(tmp_path / "whole")


def test_the_first_of_simultaneous_parts_decides_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def another_was_quicker(path: Path, content: str) -> bool:
        path.write_text(json.dumps(seal(json.loads(content.replace('"seed": 0', '"seed": 1')))))
        return False

    monkeypatch.setattr("texturegen.builds.directory.write_once", another_was_quicker)
    with pytest.raises(UserError, match=r"holds another build \(recipe.seed 1 there, 0 requested\)"):
        build(TINY, tmp_path / "s", part=(1, 2))
    assert not list((tmp_path / "s").glob("shard-*"))


def test_a_finished_build_without_its_manifest_is_refused(tmp_path: Path) -> None:
    build(TINY, tmp_path / "s")
    manifest = tmp_path / "s" / "manifest.parquet"
    data = manifest.read_bytes()
    manifest.write_bytes(data[:-20] + bytes(20))
    with pytest.raises(UserError, match=r"manifest.parquet: damaged"):
        build(TINY, tmp_path / "s")
    manifest.unlink()
    with pytest.raises(UserError, match=r"manifest.parquet: missing"):
        build(TINY, tmp_path / "s")


def test_a_job_refuses_another_data_set(tmp_path: Path) -> None:
    plan, _ = make_plan(TINY)
    (tmp_path / "parts").mkdir()
    with pytest.raises(UserError, match="not those that this build began with"):
        run_job(replace(plan, source={**plan.source, "digest": "0"}), None, tmp_path, {}, 0, lambda made, failed: True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source_options": {"split": "test"}}, "has no option 'split'"),
        ({"per_image": -1}, "--per-image is -1"),
        ({"shard_size": 0}, "--shard-size is 0"),
        ({"limit": 0}, "--limit is 0"),
        ({"seed": -1}, "--seed is -1"),
        ({"patch_size": 0}, "--patch-size is 0"),
        ({"size": 32, "short_side": 16}, "--short-side is 16, but --size is 32"),
        ({"patches_from": "corner"}, r"--patches-from is 'corner' \(did you mean 'corners'\?\); it must be one of"),
        ({"patches": 0}, "--patches is 0; it must be at least 1"),
        ({"encoding": "jpg"}, "did you mean 'jpeg'"),
        ({"method": "coherant"}, "did you mean 'coherent'"),
        ({"settings": {"windw": 5}}, "windw"),
        ({"dataset": "shape"}, "did you mean 'shapes'"),
        ({"split": "tets"}, "tets"),
    ],
)
def test_a_wrong_recipe_is_refused_before_anything_is_written(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(Recipe(**{"dataset": "shapes", **changes}), tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_recipe_sets_number_and_side_of_the_patches(tmp_path: Path) -> None:
    build(replace(TINY, limit=1, patches=3, patch_size=12), tmp_path / "s")
    (boxes,) = open_shards(tmp_path / "s").manifest["patches"].to_pylist()
    assert [(box["height"], box["width"]) for box in boxes] == [(12, 12)] * 3
    assert boxes[0] == {"y": 10, "x": 10, "height": 12, "width": 12}
    recorded = json.loads((tmp_path / "s" / "build.json").read_text())["recipe"]
    assert (recorded["patches"], recorded["patch_size"]) == (3, 12)
    with pytest.raises(OtherBuildError, match=r"recipe.patches 3 there, None requested"):
        build(replace(TINY, limit=1, patch_size=12), tmp_path / "s")


def test_a_recipe_sets_the_places_of_the_patches(tmp_path: Path) -> None:
    build(replace(TINY, limit=3, patches_from="corners"), tmp_path / "s")
    shards = open_shards(tmp_path / "s")
    for sample, seed in zip(shards, shards.manifest["seed"].to_pylist(), strict=True):
        patches, _ = cut_patches(sample.image, seed, place="corners")
        np.testing.assert_array_equal(sample.texture(0), synthesize(patches, (32, 32), seed=seed).image)
    assert json.loads((tmp_path / "s" / "build.json").read_text())["recipe"]["patches_from"] == "corners"


def test_build_json_has_counts_versions_and_checksums(shapes_shards: Path) -> None:
    content = json.loads((shapes_shards / "build.json").read_text())
    assert content["counts"] == {"samples": 64, "textures": 64, "failed": 0, "ignored": 0}
    assert [shard["samples"] for shard in content["shards"]] == [20, 20, 20, 4]
    for shard in content["shards"]:
        data = (shapes_shards / shard["name"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
    assert content["versions"]["numpy"] == np.__version__
    assert not (shapes_shards / "parts").exists()


@pytest.mark.parametrize("names", [["notes.tmp"], ["parts/thesis.txt"], ["parts/lock", "shard-000000.tar.txt"]])
def test_a_directory_with_other_files_is_refused_and_unchanged(tmp_path: Path, names: list[str]) -> None:
    (tmp_path / "parts").mkdir()
    for name in names:
        (tmp_path / name).write_text("mine")
    before = digests(tmp_path)
    with pytest.raises(UserError, match="holds other files"):
        build(TINY, tmp_path)
    assert digests(tmp_path) == before


def test_a_finished_build_without_a_shard_is_refused(tmp_path: Path) -> None:
    build(TINY, tmp_path / "s")
    (tmp_path / "s" / "shard-000001.tar").unlink()
    with pytest.raises(
        UserError, match=r"shard-000001.tar: missing; rebuild it from the data set with `texturegen repair`"
    ):
        build(TINY, tmp_path / "s")


def test_a_discarded_build_leaves_files_of_the_user(image_folder: Path, tmp_path: Path) -> None:
    recipe, out = Recipe("folder", patch_size=64, shard_size=3), tmp_path / "s"
    for number in (1, 2):
        build(recipe, out, root=str(image_folder), part=(number, 2))
    (out / "holiday-2020.tar").write_bytes(b"mine")
    with pytest.raises(UserError, match="none of the 6 images could be used"):
        finish(out)
    assert [path.name for path in out.iterdir()] == ["holiday-2020.tar"]


def test_a_recipe_that_fits_no_image_is_refused_and_leaves_nothing(image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="64"):
        build(Recipe("shapes", patch_size=64), tmp_path / "s")
    assert not (tmp_path / "s").exists()
    unreadable = image_folder / "cats" / "0.jpg"
    whole = unreadable.read_bytes()
    unreadable.write_bytes(b"no image")  # the next image is tried instead
    with pytest.raises(UserError, match="64"):
        build(Recipe("folder", size=32, patch_size=64), tmp_path / "s", root=str(image_folder))
    unreadable.write_bytes(whole)
    assert not (tmp_path / "s").exists()
    with pytest.raises(UserError, match=r"none of the 6 images could be used; the first failed with: .*64"):
        build(Recipe("folder", patch_size=64), tmp_path / "s", root=str(image_folder))
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "bad.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="none of the 1 images could be used"):
        build(Recipe("folder", size=32), tmp_path / "s", root=str(tmp_path / "one"))
    build(Recipe("folder"), tmp_path / "s", root=str(image_folder))  # the directory is empty again
    assert len(open_shards(tmp_path / "s")) == 6


@pytest.mark.parametrize("changes", [{"one_kind": "webp", "per_image": 0}, {"encoding": "webp"}])
def test_an_image_too_long_for_the_format_is_a_failed_image(
    changes: dict[str, Any], image_folder: Path, photo: np.ndarray, tmp_path: Path
) -> None:
    cv2.imwrite(str(image_folder / "long.png"), np.tile(photo[:16, :400, ::-1], (1, 41, 1)))
    result = build(Recipe("folder", method="patch-shuffle", **changes), tmp_path / "s", str(image_folder))
    assert (result.counts["samples"], result.counts["failed"]) == (6, 1)
    assert "16400x16 pixels, but a side of a webp file has at most 16383" in result.failures[0][1]


def test_opencv_under_another_name_does_not_end_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("texturegen.builds.directory.RECORDED", ("numpy", "opencv-of-a-distribution"))
    build(Recipe("shapes", limit=1, per_image=0), tmp_path / "s")
    versions = open_shards(tmp_path / "s").build["versions"]
    assert (versions["numpy"], versions["opencv-of-a-distribution"]) == (np.__version__, "unknown")


def test_a_split_whose_name_is_not_utf8_is_built(image_folder: Path, tmp_path: Path) -> None:
    split = os.fsdecode(b"caf\xe9")
    image_folder.rename(tmp_path / split)
    build(Recipe("folder", split=split, per_image=0), tmp_path / "s", str(tmp_path))
    assert verify(tmp_path / "s") == []
    assert "# folder caf\ufffd" in (tmp_path / "s" / "README.md").read_text()


def test_a_folder_of_every_extension_is_built_and_only_plain_originals_are_kept(
    tmp_path: Path, photo: np.ndarray
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    image = Image.fromarray(photo[:40, :32])
    formats = {"jpg": "JPEG", "jpeg": "JPEG", "tif": "TIFF", "tiff": "TIFF", "pgm": "PPM", "ppm": "PPM"}
    for extension in EXTENSIONS:
        image.convert("L" if extension == "pgm" else "RGB").save(
            folder / f"{extension}-file.{extension}", formats.get(extension, extension.upper())
        )
    turned = Image.Exif()
    turned[0x0112] = 6
    image.save(folder / "turned.jpg", exif=turned)
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("RGBA").save(folder / "alpha.png")
    cv2.imwrite(str(folder / "deep.png"), photo[:40, :32].astype(np.uint16) * 257)
    build(Recipe("folder"), tmp_path / "s", root=str(folder))
    assert verify(tmp_path / "s") == []
    shards = open_shards(tmp_path / "s")
    assert len(shards) == len(EXTENSIONS) + 4
    kept = sorted(s.meta["path"] for s in shards if s.image_bytes == (folder / s.meta["path"]).read_bytes())
    assert kept == ["jpeg-file.jpeg", "jpg-file.jpg", "png-file.png", "webp-file.webp"]
    for sample in shards:  # other decoders show the image that the textures were made from
        with Image.open(io.BytesIO(sample.image_bytes)) as opened:
            assert np.abs(np.asarray(opened.convert("RGB")).astype(int) - sample.image).max() <= 8
            assert sample.textures.shape[1:] == sample.image.shape


@pytest.mark.slow
def test_the_parts_of_an_array_join_to_the_same_bytes(tmp_path: Path) -> None:
    recipe = Recipe("shapes", limit=28, shard_size=4)
    build(recipe, tmp_path / "whole")
    command = [sys.executable, "-m", "texturegen", "build", "--dataset", "shapes", "--limit", "28", "--shard-size", "4"]
    command += ["--workers", "1", "--out", str(tmp_path / "array"), "--shard-range"]
    array = [subprocess.Popen([*command, f"{i}/3"], stdout=subprocess.PIPE, text=True) for i in (1, 2, 3)]
    counted = [int(process.communicate(timeout=120)[0].split(": ")[1].split()[0]) for process in array]
    assert [process.returncode for process in array] == [0, 0, 0]
    assert counted == [8, 8, 12]
    with pytest.raises(UserError, match="not finished"):
        open_shards(tmp_path / "array")
    assert finish(tmp_path / "array").counts["samples"] == 28
    assert digests(tmp_path / "array") == digests(tmp_path / "whole")
    assert finish(tmp_path / "array").counts["samples"] == 28  # again: unchanged


def test_finish_names_missing_shards(tmp_path: Path) -> None:
    recipe = Recipe("shapes", limit=28, shard_size=4)
    assert build(recipe, tmp_path / "s", part=(2, 3)).missing == 5
    with pytest.raises(UserError, match=r"5 of 7 shards are missing \(0, 1, 4, 5, 6\)"):
        finish(tmp_path / "s")
    for i in (-1, 0, 4):
        with pytest.raises(UserError, match="numbered from 1 to 3"):
            build(recipe, tmp_path / "s", part=(i, 3))
    with pytest.raises(UserError, match="no shards here"):
        finish(tmp_path / "other")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no build to finish"):
        finish(tmp_path / "empty")
    build(recipe, tmp_path / "s")  # a whole build reuses the shards of the part
    assert len(open_shards(tmp_path / "s")) == 28


def test_a_whole_build_and_a_part_exclude_each_other(tmp_path: Path) -> None:
    def start_others(total: int, already: int) -> Callable[[int, int], None]:
        with pytest.raises(UserError, match="is building there"):
            build(TINY, tmp_path / "s")
        with pytest.raises(UserError, match="is building there"):
            build(TINY, tmp_path / "s", part=(1, 2))
        with pytest.raises(UserError, match="is building there"):
            finish(tmp_path / "s")
        build(TINY, tmp_path / "s", part=(2, 2))
        return lambda made, failed: None

    build(TINY, tmp_path / "s", part=(1, 2), progress=start_others)
    assert finish(tmp_path / "s").counts["samples"] == 12


@pytest.mark.slow
def test_an_image_that_kills_every_worker_is_recorded_and_the_rest_is_built(
    tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Workers import this module, which installs a decoder that one image kills.
    monkeypatch.setenv("TEST_DEADLY_IMAGE", hashlib.sha256((image_folder / "cats" / "2.png").read_bytes()).hexdigest())
    monkeypatch.setattr("texturegen.builds.run.run_job", run_deadly_job)
    result = build(Recipe("folder", shard_size=2), tmp_path / "s", root=str(image_folder), workers=2)
    assert result.counts == {"samples": 5, "textures": 5, "failed": 1, "ignored": 0}
    ((key, reason),) = result.failures
    assert key.startswith("cats-2-")
    assert reason == DEADLY
    assert verify(tmp_path / "s") == []


@pytest.mark.parametrize(
    ("deaths", "lost"),
    [
        ({(1, 0): (4, 4, 4)}, None),  # three workers died at one image: rebuilt without it
        ({(1, 0): (4, 2, 4)}, "1"),  # at different images
        ({(0, 0): (), (2, 0): (3, 1, 3)}, "0, 2"),
        ({(1, 0): (4, 4, 4), (1, 1): (4, 4, 4)}, "1"),  # dies again without that image
        ({(1, 0): (10, 10, 10)}, "1"),  # after the last image
    ],
)
def test_the_image_that_killed_the_workers_is_found_from_their_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaths: dict[tuple[int, int], tuple[int, ...]], lost: str | None
) -> None:
    real, tried = ENGINES["processes"].load(), [0, 0, 0]

    def die(job: Any, numbers: list[int], workers: int, progress: Any, directory: Path) -> Any:
        for number in numbers:
            made = deaths.get((number, tried[number]))
            tried[number] += 1
            if made is None:
                yield from real(job, [number], 0, progress, directory)
            else:
                yield Lost(number, made)

    monkeypatch.setattr(Entry, "load", lambda entry: die)
    recipe = replace(TINY, per_image=2)
    if lost is None:
        result = build(recipe, tmp_path / "s")
        plan, source = make_plan(recipe)
        assert result.failures == [(source.key(plan.positions(1).start + 2), DEADLY)]
        assert (result.counts["samples"], result.counts["failed"]) == (11, 1)
    else:
        some = len(lost.split(","))
        message = rf"{some} of 3 shards could not be built, .* died 3 times \(killed, or out of memory\): {lost};"
        with pytest.raises(UserError, match=message):
            build(recipe, tmp_path / "s")
        assert max(tried) <= 2
        assert len(list((tmp_path / "s").glob("shard-*.tar"))) == 3 - some


def run_deadly_job(*arguments: Any) -> dict[str, Any]:
    import texturegen.sources.folder as folder

    def decode(data: bytes) -> np.ndarray:
        if hashlib.sha256(data).hexdigest() == os.environ["TEST_DEADLY_IMAGE"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode_image(data)

    folder.decode_image = decode
    return run_job(*arguments)


@pytest.mark.parametrize(("encoding", "start"), [("webp", b"RIFF"), ("jpeg", b"\xff\xd8")])
def test_textures_and_generated_images_have_the_requested_encoding(tmp_path: Path, encoding: str, start: bytes) -> None:
    build(TINY, tmp_path / "png")
    build(replace(TINY, encoding=encoding), tmp_path / "s")
    for sample, lossless in zip(open_shards(tmp_path / "s"), open_shards(tmp_path / "png"), strict=True):
        assert sample.image_bytes.startswith(start)
        assert sample.texture_bytes[0].startswith(start)
        assert np.abs(sample.textures[0].astype(int) - lossless.textures[0]).mean() <= 16 * (encoding == "jpeg")
    assert verify(tmp_path / "s") == []


def test_an_estimate_matches_the_build(tmp_path: Path) -> None:
    recipe = Recipe("shapes", limit=60, shard_size=25, per_image=2)
    estimated = estimate(recipe, workers=1, seconds=0.5)
    build(recipe, tmp_path / "s")
    assert (estimated.images, estimated.textures, estimated.shards) == (60, 120, 3)
    assert 0 < estimated.cpu_hours < 1
    assert 0 < estimated.wall_seconds < 3600
    size = sum(path.stat().st_size for path in (tmp_path / "s").iterdir() if path.name != "build.json")
    assert estimated.bytes == pytest.approx(size, rel=0.15)


@pytest.mark.slow
def test_a_build_killed_at_random_moments_ends_with_the_same_bytes(tmp_path: Path, uncovered: dict[str, str]) -> None:
    recipe = Recipe("shapes", size=96, limit=1500, shard_size=25)
    build(recipe, tmp_path / "whole", workers=0)
    command = [sys.executable, "-m", "texturegen", "build", "--dataset", "shapes", "--size", "96", "--limit", "1500"]
    command += ["--shard-size", "25", "--workers", "2", "--out"]
    moments = random.Random(0)
    kills, number = 0, 0
    while kills < KILLS:
        out = tmp_path / f"killed{number}"
        process = subprocess.Popen(
            [*command, out],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=uncovered,
        )
        time.sleep(moments.uniform(0.05, 3.5))
        if process.poll() is not None:
            number += 1  # finished before the kill
            continue
        if kills % 2:
            os.killpg(process.pid, signal.SIGKILL)  # the workers too
        else:
            process.kill()
        process.wait()
        kills += 1
    for out in tmp_path.glob("killed*"):
        build(recipe, out, workers=0)
        assert digests(out) == digests(tmp_path / "whole")


def test_a_full_disk_is_reported_and_finished_shards_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    class Full(io.BufferedWriter):
        def write(self, data: Any) -> int:
            written.append(len(data))
            if sum(written) > 60_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    def open_full(path: Path, mode: str = "r") -> Any:
        return Full(io.FileIO(path, "w")) if mode == "wb" else open(path, mode)

    build(TINY, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("texturegen.shards.writer.open", open_full, raising=False)
        with pytest.raises(OSError, match="No space left") as caught:
            build(TINY, tmp_path / "s")
    assert caught.value.filename == str(tmp_path / "s")
    assert [p.name for p in (tmp_path / "s").iterdir() if p.name != "parts"] == ["shard-000000.tar"]
    build(TINY, tmp_path / "s")
    assert digests(tmp_path / "s") == digests(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read as Linux tells it")
def test_a_workers_memory_does_not_grow_with_the_data_set(tmp_path: Path) -> None:
    # The unlabelled split of STL-10: 100,000 images, 2.7 GB, here a sparse file of zeros.
    peaks = []
    for images in (1000, 100_000):
        folder = tmp_path / str(images) / "stl10_binary"
        folder.mkdir(parents=True)
        with open(folder / "unlabeled_X.bin", "wb") as f:
            f.truncate(images * 3 * 96 * 96)
        program = f"""
from pathlib import Path
from texturegen.builds.job import run_job
from texturegen.builds.recipe import Plan, Recipe, open_recipe_source
out = Path({str(tmp_path / str(images))!r})
recipe = Recipe("stl10", split="unlabeled", per_image=0, shard_size=500)
plan = Plan(recipe, {images}, {{"digest": open_recipe_source(recipe, str(out), check=False).digest}})
(out / "parts").mkdir()
for number in (0, plan.shards // 2, plan.shards - 1):
    run_job(plan, str(out), out, {{}}, number, lambda made, failed: True)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(status["VmHWM"].split()[0])  # getrusage would include the parent's
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) / 1024)  # MiB
    # Pages read from the mapped file count as memory, though the system can reclaim them: 1500 images, 40 MiB.
    assert abs(peaks[1] - peaks[0]) < 50
    assert peaks[1] < 600


def test_finish_counts_ignored_files_and_refuses_another_version(image_folder: Path, tmp_path: Path) -> None:
    (image_folder / "notes.txt").write_text("no image")
    build(Recipe("folder", shard_size=4), tmp_path / "s", root=str(image_folder), part=(1, 1))
    begun = tmp_path / "s" / "parts" / "recipe.json"
    content = json.loads(begun.read_text())
    begun.write_text(json.dumps(seal({**content, "format": FORMAT + 1, "texturegen": "9.9"})))
    with pytest.raises(UserError, match=rf"started by another version \(format {FORMAT + 1}, texturegen 9.9\)"):
        finish(tmp_path / "s")
    begun.write_text(json.dumps(content))
    assert finish(tmp_path / "s").counts == {"samples": 6, "textures": 6, "failed": 0, "ignored": 1}


def test_finish_refuses_merged_and_damaged_directories(shapes_shards: Path, tmp_path: Path) -> None:
    split(shapes_shards, tmp_path / "some", share=0.5)
    with pytest.raises(UserError, match="made by merge or split"):
        finish(tmp_path / "some")
    (tmp_path / "some" / "build.json").write_text("{}")
    with pytest.raises(UserError, match=r"build.json: damaged"):
        finish(tmp_path / "some")


def test_a_build_without_textures_loads_no_kernel(tmp_path: Path) -> None:
    code = """if True:
        import sys
        import texturegen.cli.build
        from texturegen.builds import Recipe, build
        assert build(Recipe("shapes", limit=2, per_image=0), sys.argv[1]).counts["samples"] == 2
        assert "cv2" in sys.modules
        assert "numba" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], check=True)


@pytest.mark.parametrize(
    "change",
    [{"size": 1 << 40}, {"patches": 1 << 40}, {"per_image": 1 << 40}, {"shard_size": 10**400}, {"seed": -1}],
    ids=str,
)
def test_a_number_out_of_range_is_refused_at_once(change: dict[str, int], tmp_path: Path) -> None:
    (name,) = change
    with pytest.raises(UserError, match=rf"--{name.replace('_', '-')} is .*; it must be at (least|most) "):
        build(replace(TINY, **change), tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_value_of_another_type_is_refused() -> None:
    truths: list[dict[str, Any]] = [{"per_image": True}, {"per_image": False}]
    for change in (*truths, {"limit": "4"}, {"method": None}, {"settings": [1]}, {"seed": 0.5}):
        with pytest.raises(UserError, match=r"recipe: \w+ is .*, of another type than"):
            Recipe(**{"dataset": "shapes", **change})
