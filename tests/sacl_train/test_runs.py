"""Default directories: a run without --out, and the newest run without --run."""

import os
import shutil
from pathlib import Path

import fsspec
import pytest
from click.testing import CliRunner

from sacl_train.cli.evaluate import eval_main
from sacl_train.cli.runs import default_out, newest_run
from sacl_train.cli.train import train_main
from sacl_train.config import load_config
from texturegen.errors import MissingError
from texturegen.shards import open_shards

TINY = ["--encoder", "se_resnet8", "--epochs", "0", "--device", "cpu", "--batch-size", "16", "--set", "width=4"]


def test_training_without_out_finds_its_run_again(
    shapes_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    memory = fsspec.filesystem("memory")
    memory.put(f"{shapes_shards}/", "memory://runs-test/", recursive=True)
    for shards in (str(shapes_shards), "memory://runs-test", f"file://{shapes_shards}"):  # the same bytes: the same run
        done = CliRunner().invoke(train_main, ["--shards", shards, *TINY])
        assert done.exit_code == 0, done.output
        (run,) = (tmp_path / "runs").iterdir()
        assert done.stderr.startswith(f"run directory: runs/{run.name}\n")
    assert run.name.startswith("sacl-se_resnet8-")
    assert CliRunner().invoke(train_main, ["--shards", str(shapes_shards), *TINY, "--seed", "1"]).exit_code == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2
    memory.rm("memory://runs-test", recursive=True)


def test_the_directory_depends_on_shards_and_settings_alone(shapes_shards: Path) -> None:
    digest = open_shards(shapes_shards).digest
    out = default_out(load_config(None, {"encoder": "timm:resnet18"}), digest)
    assert out.parent == Path("runs")
    assert out.name.startswith("sacl-timm-resnet18-")
    assert len(out.name) == len("sacl-timm-resnet18-") + 8
    assert default_out(load_config(None, {"encoder": "timm:resnet18", "device": "cpu", "keep": 5}), digest) == out
    assert default_out(load_config(None, {"encoder": "timm:resnet18", "lr": 0.2}), digest) != out
    assert default_out(load_config(None, {"encoder": "timm:resnet18"}), "0" * 64) != out


def test_evaluation_without_run_takes_the_newest(
    shapes_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingError, match=r"there is no run in .*runs; give one with --run, or train one"):
        newest_run()
    assert CliRunner().invoke(train_main, ["--shards", str(shapes_shards), "--out", "runs/b", *TINY]).exit_code == 0
    shutil.copytree("runs/b", "runs/a")
    for path in (tmp_path / "runs" / "b").glob("*.pt"):
        os.utime(path, (1, 1))
    done = CliRunner().invoke(eval_main, ["knn", "--train", str(shapes_shards), "--test", str(shapes_shards)])
    assert done.exit_code == 0, done.output
    assert done.stderr.startswith("without --run: runs/a, the newest\n")
    assert (tmp_path / "runs" / "a" / "eval-knn.json").is_file()
