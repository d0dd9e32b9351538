"""Stages: when one counts as done, and when directories are set aside."""

import os
from pathlib import Path

import pytest

from pipelines.commands import Commands
from pipelines.grids.runner import _split
from pipelines.stages import (
    assign_devices,
    build_shards,
    claim_run,
    digest_folder,
    is_done,
    mark_done,
    set_aside,
)
from sacl_train import train
from sacl_train.config import load_config
from sacl_train.report.figures import write_figures
from sacl_train.training.checkpoint import exclusive, load_checkpoint
from sacl_train.training.resume import comparable
from texturegen.builds import Recipe, build
from texturegen.builds.directory import BuildDirectory
from texturegen.errors import BusyError, DamagedError
from texturegen.shards import open_shards

RUN = {"encoder": "se_resnet8", "width": 4, "stem": "cifar-stride2", "epochs": 0, "batch_size": 16, "device": "cpu"}
SETS = {"dataset": "shapes", "per_image": 0}


def test_devices_are_assigned_round_robin() -> None:
    assert assign_devices("cpu", 3) == ["cpu"] * 3
    assert assign_devices("cuda:0, cuda:1", 1) == ["cuda:0", "cuda:1"]
    assert assign_devices("cuda:0,cuda:1", 3) == ["cuda:0", "cuda:1", "cuda:0"]


def test_stage_is_done_until_its_inputs_change(tmp_path: Path) -> None:
    result, record = tmp_path / "out.json", tmp_path / "stage.json"
    run = {"settings": comparable(load_config(None, {})), "shards": "a"}
    assert not is_done(record, run, {"x": (1,)}, [result])
    write_figures(result, {"top1": 0.5})
    mark_done(record, run, {"x": (1,)})
    assert is_done(record, run, {"x": (1,)}, [result])
    assert not is_done(record, run, {"x": (2,)}, [result])
    assert not is_done(record, {**run, "shards": "b"}, {"x": (1,)}, [result])
    assert not is_done(record, {**run, "settings": {**run["settings"], "tau": 0.3}}, {"x": (1,)}, [result])
    result.write_text(result.read_text().replace("0.5", "0.7"))
    assert not is_done(record, run, {"x": (1,)}, [result])
    result.unlink()
    assert not is_done(record, run, {"x": (1,)}, [result])


def test_directories_set_aside_are_numbered(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / "x").mkdir()
        assert set_aside(tmp_path / "x") == tmp_path / f"x.old-{number}"


def test_digest_of_folder_depends_on_its_content(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "cat").mkdir(parents=True)
        (tmp_path / name / "cat" / "1.png").write_bytes(b"1")
    assert digest_folder(tmp_path / "a") == digest_folder(tmp_path / "b")
    (tmp_path / "b" / "cat" / "1.png").write_bytes(b"2")
    assert digest_folder(tmp_path / "a") != digest_folder(tmp_path / "b")
    (tmp_path / "a" / "link").symlink_to(tmp_path / "b" / "cat")
    before = digest_folder(tmp_path / "a")
    (tmp_path / "b" / "cat" / "1.png").write_bytes(b"3")
    assert digest_folder(tmp_path / "a") != before
    before = digest_folder(str(tmp_path / "a"))
    with open(os.fsencode(tmp_path / "a") + b"/\xe9.png", "wb"):  # not UTF-8
        pass
    assert digest_folder(tmp_path / "a") != before


def test_damaged_records_of_times_and_copies_are_made_again(
    shapes_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "times.json").write_text("{")
    commands = Commands(tmp_path, 1)
    assert commands.times == {}
    (tmp_path / "part").mkdir()
    (tmp_path / "part.json").write_text("[")
    called = []
    monkeypatch.setattr(Commands, "call", lambda self, name, *line: called.append(line[1]))
    _split(commands, shapes_shards, "label == 1", tmp_path / "part")
    (tmp_path / "part").mkdir()
    _split(commands, shapes_shards, "label == 1", tmp_path / "part")
    assert called == ["split"]


def _build(out: Path, limit: int) -> str:
    """Return "made" or "skipped", depending on what `build_shards` calls for a set of `limit` images."""
    done = []

    def make() -> None:
        build(Recipe(**SETS, limit=limit), out)
        done.append("made")

    build_shards(out, {**SETS, "limit": limit}, make, lambda: done.append("skipped"))
    return done[0]


def test_build_with_other_options_is_set_aside(tmp_path: Path) -> None:
    out = tmp_path / "set"
    assert [_build(out, 4), _build(out, 4), _build(out, 6)] == ["made", "skipped", "made"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "set.old-1"]
    assert len(open_shards(out)) == 6
    assert len(open_shards(tmp_path / "set.old-1")) == 4
    assert not (tmp_path / "set.old-1" / "parts").exists()


def test_build_in_progress_is_not_set_aside(tmp_path: Path) -> None:
    out = tmp_path / "set"
    _build(out, 4)
    with BuildDirectory(out), pytest.raises(BusyError, match="is building"):
        _build(out, 6)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_run_in_training_is_not_set_aside(shapes_shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(load_config(None, RUN), shapes_shards, run)
    with exclusive(run), pytest.raises(BusyError, match="is training"):
        claim_run(run, {**RUN, "tau": 0.5}, shapes_shards)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    claim_run(run, {**RUN, "tau": 0.5}, shapes_shards)
    assert [path.name for path in tmp_path.iterdir()] == ["run.old-1"]
    assert not (tmp_path / "run.old-1" / "lock").exists()
    claim_run(run, RUN, shapes_shards)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_damaged_run_that_was_set_aside_stops_no_other(shapes_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "run.old-1").mkdir()
    (tmp_path / "run.old-1" / "checkpoint-000000.pt").write_bytes(b"damaged")
    with pytest.raises(DamagedError):
        load_checkpoint(tmp_path / "run.old-1")
    claim_run(tmp_path / "run", RUN, shapes_shards)
    assert [path.name for path in tmp_path.iterdir()] == ["run.old-1"]


def test_run_is_kept_when_its_shards_are_repaired(
    shapes_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(load_config(None, RUN), shapes_shards, tmp_path / "run")
    # Repaired samples change mean and std of the shards, but a run keeps its original ones.
    monkeypatch.setattr("sacl_train.training.setup.channel_statistics", lambda shards: ((0.1,) * 3, (0.2,) * 3))
    claim_run(tmp_path / "run", RUN, shapes_shards)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    claim_run(tmp_path / "run", {**RUN, "mean": (0.1, 0.1, 0.1)}, shapes_shards)
    assert [path.name for path in tmp_path.iterdir()] == ["run.old-1"]
