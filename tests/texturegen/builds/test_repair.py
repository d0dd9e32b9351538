"""repair: rebuilds the damaged shards and no others, with the recorded bytes or not at all."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.commands import call, refused
from tests.texturegen.builds.test_build import digests
from texturegen.builds import Recipe, build
from texturegen.builds import repair as module
from texturegen.builds.directory import REPAIR
from texturegen.builds.engines import ENGINES, Entry, Lost
from texturegen.builds.repair import repair
from texturegen.errors import BusyError, UserError
from texturegen.shards.merge import split
from texturegen.shards.verify import verify
from texturegen.storage.lock import LOCK, DirectoryLock
from texturegen.storage.sealed import seal

RECIPE = Recipe("shapes", limit=12, shard_size=5)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("repair") / "built"
    build(RECIPE, out)
    return out


@pytest.fixture
def shards(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "shards"))


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[2000] ^= 1
    path.write_bytes(data)


def test_damaged_and_missing_shards_are_rebuilt_and_no_others(built: Path, shards: Path) -> None:
    damage(shards / "shard-000000.tar")
    (shards / "shard-000002.tar").unlink()
    untouched = [(shards / name).stat() for name in ("shard-000001.tar", "manifest.parquet", "build.json")]
    totals: list[int] = []
    result = repair(shards, progress=lambda total: totals.append(total) or (lambda made, failed: None))  # type: ignore[func-returns-value]
    assert result.rebuilt == ["shard-000000.tar", "shard-000002.tar"]
    assert result.faults == []
    assert totals == [7]
    assert digests(shards) == digests(built)
    for name, before in zip(("shard-000001.tar", "manifest.parquet", "build.json"), untouched, strict=True):
        after = (shards / name).stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert verify(shards, deep=True) == []
    assert build(RECIPE, shards).counts["samples"] == 12  # still a finished build


def test_an_intact_directory_is_unchanged(built: Path, shards: Path) -> None:
    assert repair(shards).rebuilt == []
    assert digests(shards) == digests(built)


def test_images_that_failed_stay_failed_even_if_readable_now(
    image_folder: Path, tmp_path: Path, photo: np.ndarray
) -> None:
    bad = image_folder / "cats" / "1.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    out = tmp_path / "s"
    build(Recipe("folder", shard_size=3, per_image=2), out, root=str(image_folder))
    assert json.loads((out / "build.json").read_text())["counts"]["failed"] == 1
    before = digests(out)
    bad.write_bytes(whole)
    damage(out / "shard-000000.tar")
    totals: list[int] = []
    result = repair(out, str(image_folder), progress=lambda total: totals.append(total) or (lambda made, failed: None))  # type: ignore[func-returns-value]
    assert (result.rebuilt, totals) == (["shard-000000.tar"], [6])
    assert digests(out) == before


def test_another_data_set_is_refused(image_folder: Path, tmp_path: Path, photo: np.ndarray) -> None:
    out = tmp_path / "s"
    build(Recipe("folder", shard_size=3), out, root=str(image_folder))
    damage(out / "shard-000000.tar")
    before = digests(out)
    cv2.imwrite(str(image_folder / "cats" / "9.png"), photo[:32, :32])
    with pytest.raises(UserError, match="not the one it was built from"):
        repair(out, root=str(image_folder))
    assert digests(out) == before


def test_a_rebuilt_shard_that_differs_is_discarded(shards: Path) -> None:
    content = json.loads((shards / "build.json").read_text())
    content["shards"][1]["sha256"] = "0" * 64  # as if other package versions had built it
    damage(shards / "shard-000001.tar")
    (shards / "build.json").write_text(json.dumps(seal(content)))
    before = digests(shards)
    with pytest.raises(UserError, match=r"shard-000001.tar is not replaced.*recorded versions are installed"):
        repair(shards)
    content["versions"]["numpy"] = "1.0"
    (shards / "build.json").write_text(json.dumps(seal(content)))
    with pytest.raises(UserError, match=r"numpy 1.0 recorded, .* installed"):
        repair(shards)
    assert {**digests(shards), "build.json": ""} == {**before, "build.json": ""}


def test_a_damaged_manifest_is_refused(shards: Path) -> None:
    damage(shards / "manifest.parquet")
    with pytest.raises(UserError, match="a manifest cannot be repaired"):
        repair(shards)
    (shards / "manifest.parquet").unlink()
    with pytest.raises(UserError, match="a manifest cannot be repaired"):
        repair(shards)


def test_a_split_directory_has_no_recipe_to_rebuild_from(shards: Path, tmp_path: Path) -> None:
    split(shards, tmp_path / "kept", share=0.5)
    assert repair(tmp_path / "kept").rebuilt == []
    damage(tmp_path / "kept" / "shard-000000.tar")
    with pytest.raises(UserError, match=r"run the `texturegen split` that made"):
        repair(tmp_path / "kept")
    assert not (tmp_path / "kept" / REPAIR).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"algorithms": {"coherent": 9, "patches": 2}, "texturegen": "9.9"},
            r"\(coherent version 9 there, 2 here\); repair it with texturegen 9.9",
        ),
        ({"algorithms": {"coherent": 2, "patches": 2, "grain": 1}}, r"\(grain version 1 there, None here\)"),
        ({"algorithms": ["coherent"]}, "build.json: damaged"),
        ({"recipe": {"colour": 3}}, "recipe is from another version"),
    ],
)
def test_a_build_of_another_version_is_refused(shards: Path, change: dict, message: str) -> None:
    content = json.loads((shards / "build.json").read_text())
    if "recipe" in change:
        change = {"recipe": content["recipe"] | change["recipe"]}
    (shards / "build.json").write_text(json.dumps(seal({**content, **change})))
    damage(shards / "shard-000000.tar")
    with pytest.raises(UserError, match=message):
        repair(shards)


def test_a_repair_a_build_and_a_second_repair_exclude_each_other(built: Path, shards: Path) -> None:
    damage(shards / "shard-000001.tar")
    with DirectoryLock(shards, "repairing"):
        with pytest.raises(BusyError, match="process"):
            repair(shards)
        with pytest.raises(BusyError, match="process"):
            build(RECIPE, shards)
    (shards / LOCK).touch()  # left by a process that was killed
    assert repair(shards).rebuilt == ["shard-000001.tar"]
    assert digests(shards) == digests(built)


def test_an_interrupted_repair_leaves_old_or_new_shards(
    built: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("shard-000000.tar", "shard-000001.tar"):
        damage(shards / name)
    damaged = (shards / "shard-000001.tar").read_bytes()

    real = ENGINES["processes"].load()

    def stop_after_one(*arguments: Any) -> Iterator[Any]:
        yield next(real(*arguments))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Entry, "load", lambda entry: stop_after_one)
        with pytest.raises(KeyboardInterrupt):
            repair(shards)
    assert (shards / "shard-000000.tar").read_bytes() == (built / "shard-000000.tar").read_bytes()
    assert (shards / "shard-000001.tar").read_bytes() == damaged
    # A killed repair leaves its directory; the next one removes it.
    (shards / REPAIR / "parts").mkdir(parents=True)
    (shards / REPAIR / "shard-000001.tar").write_bytes(b"half")
    assert repair(shards).rebuilt == ["shard-000001.tar"]
    assert digests(shards) == digests(built)


def test_a_shard_whose_worker_died_is_named_and_the_others_are_rebuilt(
    built: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("shard-000000.tar", "shard-000001.tar"):
        damage(shards / name)
    real = ENGINES["processes"].load()

    def lose_the_first(job: Any, numbers: list[int], workers: int, progress: Any, directory: Path) -> Iterator[Any]:
        assert workers == 3
        yield Lost(numbers[0], (1, 1, 1))
        yield from real(job, numbers[1:], 0, progress, directory)

    monkeypatch.setattr(Entry, "load", lambda entry: lose_the_first)
    with pytest.raises(UserError, match=r"shard-000000.tar is not rebuilt, because the worker process died"):
        repair(shards, workers=3)
    assert (shards / "shard-000001.tar").read_bytes() == (built / "shard-000001.tar").read_bytes()
    assert not any("shard-000001" in fault for fault in verify(shards))


def test_faults_that_remain_are_reported_as_a_failure(shards: Path) -> None:
    damage(shards / "shard-000000.tar")
    shutil.copy(shards / "shard-000001.tar", shards / "stray.tar")
    result = repair(shards)
    assert result.rebuilt == ["shard-000000.tar"]
    (fault,) = result.faults
    assert "stray.tar: not in build.json" in fault
    status, stdout, stderr = call("texturegen", "repair", shards)
    assert (status, stdout) == (1, "")
    assert stderr.splitlines() == [fault, f"error: {shards}: 1 fault that cannot be repaired"]


def test_a_recipe_that_resolves_differently_is_refused(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damage(shards / "shard-000000.tar")
    before = digests(shards)
    real = module.make_plan

    def other_seed(recipe: Recipe, root: str | None):
        plan, ignored = real(recipe, root)
        return dataclasses.replace(plan, recipe=dataclasses.replace(plan.recipe, seed=1)), ignored

    monkeypatch.setattr(module, "make_plan", other_seed)
    with pytest.raises(UserError, match="resolves differently"):
        repair(shards)
    assert digests(shards) == before


def test_the_commands(shards: Path, tmp_path: Path) -> None:
    assert "no faults found" in call("texturegen", "repair", shards)[1]
    damage(shards / "shard-000002.tar")
    status, _, stderr = call("texturegen", "verify", shards, "--workers", 2)
    assert status == 1
    assert stderr.splitlines()[-1].startswith("error: ")
    status, stdout, _ = call("texturegen", "repair", shards)
    assert status == 0
    assert "shard-000002.tar: rebuilt" in stdout
    assert call("texturegen", "verify", "--deep", shards)[0] == 0
    kept, rest, joined = (tmp_path / name for name in ("kept", "rest", "joined"))
    status, stdout, _ = call("texturegen", "split", shards, "--share", 0.75, "--out", kept, "--rest", rest)
    assert status == 0
    assert stdout.splitlines() == [f"{kept}: 9 images, 9 textures, 0 failed", f"{rest}: 3 images, 3 textures, 0 failed"]
    status, stdout, _ = call("texturegen", "merge", kept, rest, "--out", joined)
    assert (status, stdout) == (0, f"{joined}: 12 images, 12 textures, 0 failed\n")
    assert call("texturegen", "info", joined)[0] == 0
    assert "did you mean 'completeness'" in refused(
        "texturegen", "split", shards, "--filter", "completness < 3", "--out", tmp_path / "x"
    )
    assert call("texturegen", "split", shards, "--out", tmp_path / "x")[0] == 2
    assert "no shards here" in refused("texturegen", "repair", tmp_path / "nowhere")
    assert "no shards here" in refused("texturegen", "verify", tmp_path / "nowhere")
