"""The state of a build on disk: one lock for all commands, and no kill that loses a build."""

import errno
import os
import random
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.texturegen import kill
from tests.texturegen.builds.test_build import digests
from texturegen import open_shards
from texturegen.builds import Recipe, build, finish
from texturegen.builds.directory import BuildDirectory
from texturegen.builds.recipe import make_plan
from texturegen.builds.repair import repair
from texturegen.errors import BusyError, MissingError, UserError
from texturegen.shards.merge import merge, split
from texturegen.shards.verify import verify
from texturegen.storage.lock import LOCK, DirectoryLock

RECIPE = Recipe("folder", per_image=0, shard_size=4)
FAILED, REPAIRED = "failed", "repaired"  # the two builds of the data set `photos`


class Photos:
    """Ten images, of which one can be damaged without changing its size, so that the data set stays the same."""

    def __init__(self, root: Path) -> None:
        self.root, self.bad = root, root / "03.png"
        root.mkdir()
        pixels = np.random.default_rng(0)
        for i in range(10):
            cv2.imwrite(str(root / f"{i:02}.png"), pixels.integers(0, 256, (32, 32, 3), np.uint8))
        self.data = self.bad.read_bytes()

    def damage(self) -> None:
        self.bad.write_bytes(self.data[:700] + bytes(len(self.data) - 700))

    def restore(self) -> None:
        self.bad.write_bytes(self.data)


@pytest.fixture
def photos(tmp_path: Path) -> Photos:
    return Photos(tmp_path / "photos")


@pytest.fixture
def builds(photos: Photos, tmp_path: Path) -> dict[str, Path]:
    """The finished build with a failed image, and the one after retrying it."""
    photos.damage()
    build(RECIPE, tmp_path / FAILED, root=str(photos.root))
    photos.restore()
    build(RECIPE, tmp_path / REPAIRED, root=str(photos.root))
    return {name: tmp_path / name for name in (FAILED, REPAIRED)}


def damage(out: Path, number: int) -> None:
    path = out / f"shard-{number:06d}.tar"
    data = bytearray(path.read_bytes())
    data[2000] ^= 1
    path.write_bytes(data)


def files(out: Path) -> set[str]:
    return {path.name for path in out.rglob("*")}


@kill.STRIDES
def test_a_retry_killed_at_any_change_of_the_file_system_can_be_repeated(
    photos: Photos, builds: dict[str, Path], tmp_path: Path, stride: int
) -> None:
    out = tmp_path / "out"
    expected = {name: digests(path) for name, path in builds.items()}
    retry = partial(build, RECIPE, out, root=str(photos.root), retry_failed=True)
    for number in range(0, 1000, stride):
        shutil.copytree(builds[FAILED], out)
        if kill.run(retry, kill_before=number) != kill.KILLED:
            break
        if (out / "build.json").exists():
            assert verify(out) == []
        # An empty or a partly written parts/ beside build.json is ignored by a plain build and removed.
        build(RECIPE, out, root=str(photos.root))
        assert digests(out) in expected.values()
        retry()
        assert digests(out) == expected[REPAIRED]
        shutil.rmtree(out)
    assert 40 < number < 900


@kill.STRIDES
def test_a_build_killed_at_any_change_of_the_file_system_can_be_repeated(
    photos: Photos, builds: dict[str, Path], tmp_path: Path, stride: int
) -> None:
    out = tmp_path / "new" / "out"
    expected = digests(builds[REPAIRED])
    command = partial(build, RECIPE, out, root=str(photos.root))
    for number in range(0, 1000, stride):
        if kill.run(command, kill_before=number) != kill.KILLED:
            break
        command()
        assert digests(out) == expected
        shutil.rmtree(out.parent)
    assert 40 < number < 900


@kill.STRIDES
def test_a_build_without_usable_images_killed_at_any_change_can_be_repeated(
    photos: Photos, tmp_path: Path, stride: int
) -> None:
    out = tmp_path / "out"
    recipe = Recipe("folder", patch_size=64, shard_size=4)
    command = partial(build, recipe, out, root=str(photos.root))
    for number in range(0, 1000, stride):
        code = kill.run(command, kill_before=number)
        if code != kill.KILLED:
            break
        with pytest.raises(UserError, match="none of the 10 images could be used"):
            command()
        assert not out.exists() or files(out) == set()
    assert code == kill.REFUSED
    assert 20 < number < 900


@kill.STRIDES
def test_a_repair_killed_at_any_change_of_the_file_system_can_be_repeated(
    photos: Photos, builds: dict[str, Path], tmp_path: Path, stride: int
) -> None:
    out = tmp_path / "out"
    expected = digests(builds[FAILED])
    command = partial(repair, out, str(photos.root), workers=0)
    for number in range(0, 1000, stride):
        shutil.copytree(builds[FAILED], out)
        damage(out, 0)
        (out / "shard-000002.tar").unlink()
        if kill.run(command, kill_before=number) != kill.KILLED:
            break
        assert command().faults == []
        assert digests(out) == expected
        shutil.rmtree(out)
    assert 20 < number < 900


def test_a_full_disk_during_a_retry_keeps_the_finished_build(
    photos: Photos, builds: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    out, root = builds[FAILED], str(photos.root)
    for name in ("write_stats", "write_listing", "as_json", "write_atomically"):
        with monkeypatch.context() as patch:
            patch.setattr(f"texturegen.builds.directory.{name}", fail)
            with pytest.raises(OSError, match="No space"):
                build(RECIPE, out, root=root, retry_failed=True)
        assert open_shards(out).build["counts"]["failed"] == 1
        assert build(RECIPE, out, root=root).counts["failed"] == 1
    assert build(RECIPE, out, root=root, retry_failed=True).counts["failed"] == 0


def run_commands(commands: list[Callable[[], object]]) -> Callable[[Any], None]:
    """Return a callback that expects every command to be refused because of the lock."""

    def callback(*arguments: Any) -> None:
        for command in commands:
            with pytest.raises(BusyError, match=rf"process {os.getpid()} on .* is .* there"):
                command()

    return callback


def test_every_command_excludes_every_other(photos: Photos, builds: dict[str, Path], tmp_path: Path) -> None:
    out, root = builds[FAILED], str(photos.root)
    commands: list[Callable[[], object]] = [
        partial(build, RECIPE, out, root=root),
        partial(build, RECIPE, out, root=root, part=(1, 2)),
        partial(build, RECIPE, out, root=root, retry_failed=True),
        partial(finish, out),
        partial(repair, out, root),
    ]
    refused = run_commands(commands)
    damage(out, 0)
    repair(out, root, workers=0, checked=refused, progress=lambda total: refused)
    result = build(
        RECIPE, out, root=root, retry_failed=True, progress=lambda total, already: lambda made, failed: refused()
    )
    assert result.counts["failed"] == 0
    assert digests(out) == digests(builds[REPAIRED])


def test_nothing_is_read_before_the_lock_is_held(
    photos: Photos, builds: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # While this process waits to lock, another one reopens the finished build: then it is not finished any more.
    out, root = builds[FAILED], str(photos.root)
    enter = DirectoryLock.__enter__

    def reopen_first(lock: DirectoryLock) -> DirectoryLock:
        with monkeypatch.context() as patch:
            patch.setattr(DirectoryLock, "__enter__", enter)
            plan, source = make_plan(RECIPE, root)
            with BuildDirectory(out) as directory:
                if directory.is_finished:
                    directory.reopen(plan, 0, source)
        return enter(lock)

    for command, message in ((repair, "this build is not finished"), (finish, None), (build, None)):
        with monkeypatch.context() as patch:
            patch.setattr(DirectoryLock, "__enter__", reopen_first)
            if command is build:
                assert build(RECIPE, out, root=root).counts["failed"] == 1
            elif message is None:
                command(out)
            else:
                with pytest.raises(MissingError, match=message):
                    command(out)
        assert build(RECIPE, out, root=root).counts["failed"] == 1


def train_on(shards: Path, run: Path) -> None:
    from sacl_train import load_config, train

    settings: dict[str, Any] = {"method": "simclr", "texture_role": "none", "encoder": "se_resnet8", "width": 2}
    settings |= {"stem": "cifar-stride2", "batch_size": 4, "epochs": 1, "knn_every": 0, "device": "cpu"}
    train(load_config(None, settings), shards, run)
    shutil.rmtree(run)


def check(out: Path) -> None:
    for fault in verify(out, workers=1):
        assert fault.isprintable()


PAIRS = [(one, other) for one in range(8) for other in range(8)]
ROUNDS = int(os.environ.get("TEXTUREGEN_PAIRS", "0"))  # of all pairs; 0 takes every fifth pair once


@pytest.mark.parametrize("turn", range(max(ROUNDS, 1)))
def test_pairs_of_commands_with_kills_never_lose_the_build(
    photos: Photos, builds: dict[str, Path], tmp_path: Path, turn: int
) -> None:
    out, root, draws = tmp_path / "out", str(photos.root), random.Random(turn)
    split(builds[REPAIRED], tmp_path / "a", tmp_path / "b", share=0.5)
    commands = [
        partial(build, RECIPE, out, root=root),
        partial(finish, out),
        partial(repair, out, root, workers=0),
        partial(build, RECIPE, out, root=root, retry_failed=True),
        partial(merge, [tmp_path / "a", tmp_path / "b"], out),
        partial(split, builds[REPAIRED], out, tmp_path / "rest", share=0.5),
        partial(check, out),
        partial(train_on, out, tmp_path / "run"),
    ]
    sizes = {}
    for number in (4, 5):
        commands[number]()
        sizes[number] = samples_of(out)
        shutil.rmtree(out)
        shutil.rmtree(tmp_path / "rest", ignore_errors=True)
    expected = [digests(path) for path in builds.values()]
    assert kill.run(commands[0]) == kill.run(commands[7]) == kill.DONE  # starts the fork server
    codes = []
    for one, other in PAIRS if ROUNDS else PAIRS[::5]:
        for path in (out, tmp_path / "rest", tmp_path / "out.partial", tmp_path / "rest.partial", tmp_path / "run"):
            shutil.rmtree(path, ignore_errors=True)
        start = draws.choice(["finished", "finished", "begun", "damaged", "empty"])
        if start == "begun":
            build(RECIPE, out, root=root, part=(1, 2))
        elif start != "empty":
            shutil.copytree(builds[FAILED], out)
        if start == "damaged":
            damage(out, draws.randrange(3))
        pair = [kill.start(commands[number]) for number in (one, other)]
        time.sleep(draws.uniform(0, 0.06))
        for process in draws.sample(pair, draws.randrange(3)):
            process.kill()
        for process in pair:
            process.join(kill.TIMEOUT)
            codes.append(process.exitcode)
        case = f"{start}: {commands[one]} beside {commands[other]}"
        assert 1 not in codes, case
        if start in ("finished", "damaged"):  # it is still there, or again
            assert kill.run(commands[3]) in (kill.DONE, kill.REFUSED), case  # refused: a damaged shard
            if (out / "build.json").exists():
                assert repair(out, root, workers=0).faults == [], case
        if (out / "build.json").exists() and "derived" in open_shards(out).build:
            assert start in ("begun", "empty"), case
            assert samples_of(out) in sizes.values(), case
            continue
        assert build(RECIPE, out, root=root).counts["samples"] >= 9, case
        assert digests(out) in expected, case
    assert kill.DONE in codes


def samples_of(out: Path) -> dict[str, bytes]:
    return {sample.key: sample.image_bytes for sample in open_shards(out)}


def test_a_lock_file_left_by_a_killed_process_is_removed(builds: dict[str, Path], photos: Photos) -> None:
    out = builds[FAILED]
    (out / LOCK).write_text("process 1 on elsewhere is building\n")
    before = files(out) - {LOCK}
    assert verify(out) == []
    assert len(open_shards(out)) == 9
    build(RECIPE, out, root=str(photos.root))
    assert files(out) == before


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write into read-only directories")
def test_a_finished_build_in_a_read_only_directory_is_recognised(builds: dict[str, Path], photos: Photos) -> None:
    out = builds[REPAIRED]
    out.chmod(0o555)
    try:
        assert build(RECIPE, out, root=str(photos.root)).counts["samples"] == 10
        assert repair(out, str(photos.root)).rebuilt == []
    finally:
        out.chmod(0o755)


def test_parts_without_shards_do_not_exclude_each_other(tmp_path: Path) -> None:
    recipe = Recipe("shapes", limit=2, per_image=0)
    plan, source = make_plan(recipe)
    with BuildDirectory(tmp_path / "out", part=range(0)) as first:  # of a part of five, for one shard
        first.claim(plan, 0, source)
        assert build(recipe, tmp_path / "out", part=(2, 5)).missing == 1
        assert build(recipe, tmp_path / "out", part=(5, 5)).missing == 0
    assert finish(tmp_path / "out").counts["samples"] == 2


def test_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for command in (partial(build, Recipe("shapes", limit=2)), finish, repair):
        for path in (tmp_path / "file", tmp_path / "file" / "below"):
            with pytest.raises(UserError, match=r"not a directory|no shards here"):
                command(path)
    assert (tmp_path / "file").read_text() == "mine"


def test_an_out_inside_the_folder_of_images_is_refused(photos: Photos) -> None:
    with pytest.raises(UserError, match="lies in the data set's folder"):
        build(RECIPE, photos.root / "shards", root=str(photos.root))
    assert not (photos.root / "shards").exists()
    with pytest.raises(UserError, match="lies in the data set's folder"):
        build(RECIPE, photos.root, root=str(photos.root))
    of_a_split = Recipe("folder", split=photos.root.name, per_image=0)
    with pytest.raises(UserError, match="lies in the data set's folder"):
        build(of_a_split, photos.root / "shards", root=str(photos.root.parent))
    hidden = photos.root / ".shards"  # hidden folders are not part of the data set
    assert build(RECIPE, hidden, root=str(photos.root)) == build(RECIPE, hidden, root=str(photos.root))
