"""Where a run starts: weights from a file, models of timm, a run that was resumed already; its run in W&B stays one."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from click.testing import CliRunner

from sacl_train import train
from sacl_train.cli.train import train_main
from sacl_train.config import Config, load_config
from sacl_train.methods.sacl import SACL
from sacl_train.training.checkpoint import load_checkpoint
from sacl_train.training.metrics import Board
from sacl_train.training.resume import load_encoder
from texturegen.errors import MissingError, UserError

TINY = {"encoder": "se_resnet8", "width": 4, "stem": "cifar-stride2", "batch_size": 16, "epochs": 2, "knn_every": 0}
TINY |= {"projector_hidden": 8, "projector_out": 8, "predictor_hidden": 4, "device": "cpu", "save_every": 3}
TIMM = {key: value for key, value in TINY.items() if key not in ("width", "stem")}


def state_of(run: Path) -> dict[str, Any]:
    checkpoint = load_checkpoint(run)
    assert checkpoint is not None
    return checkpoint["method"] | {f"optimizer {k}": v for k, v in checkpoint["optimizer"]["state"].items()}


def assert_same_bits(ours: Any, theirs: Any) -> None:
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_same_bits(ours[key], theirs[key])
    else:
        assert ours == theirs


@pytest.mark.parametrize("settings", [TINY, {**TIMM, "encoder": "timm:test_vit"}], ids=["se_resnet8", "timm"])
def test_run_resumed_twice_has_bits_of_uninterrupted_one(
    settings: dict[str, Any], shapes_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(None, settings)
    train(config, shapes_shards, tmp_path / "whole")
    step = SACL.after_step

    def stop_at(number: int) -> None:
        def interrupted(self: SACL, now: int, total: int) -> dict[str, float]:
            if now == number:
                raise KeyboardInterrupt
            return step(self, now, total)

        monkeypatch.setattr(SACL, "after_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(config, shapes_shards, tmp_path / "resumed")
        monkeypatch.undo()

    stop_at(4)  # in the second epoch of four steps, after the checkpoint of step 3
    stop_at(7)
    train(config, shapes_shards, tmp_path / "resumed")
    assert_same_bits(state_of(tmp_path / "whole"), state_of(tmp_path / "resumed"))


def test_run_starts_from_a_file_and_resumes_without_it(
    shapes_shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train(load_config(None, {**TINY, "epochs": 0, "seed": 5}), shapes_shards, tmp_path / "first")
    theirs, _, _ = load_encoder(tmp_path / "first")
    file = tmp_path / "weights.pth"
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}}, file)
    arguments = ["--shards", str(shapes_shards), "--out", str(tmp_path / "run"), "--init", str(file)]
    for key, value in {**TINY, "epochs": 0}.items():
        arguments += ["--set", f"{key}={value}"]
    done = CliRunner().invoke(train_main, arguments)
    assert done.exit_code == 0, done.output
    assert f"initial weights from {file}" in done.output + capfd.readouterr().err
    state = state_of(tmp_path / "run")
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(state[f"encoder.{name}"], tensor)
        assert torch.equal(state[f"target_encoder.{name}"], tensor), "the target is a copy of the loaded weights"
    file.unlink()
    assert CliRunner().invoke(train_main, arguments).exit_code == 0, "the checkpoint holds everything"
    load_encoder(tmp_path / "run")
    with pytest.raises(UserError, match="no such file"):
        train(load_config(None, {**TINY, "init": str(file)}), shapes_shards, tmp_path / "other")


def test_timm_encoder_says_what_it_cannot_do(
    shapes_shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(load_config(None, {**TIMM, "encoder": "timm:test_vit", "epochs": 0}), shapes_shards, tmp_path / "run")
    said = capfd.readouterr().err
    assert "timm:test_vit reduces 16 pixels to one position, so 16 px leave a map of 1 per side" in said
    encoder, config, _ = load_encoder(tmp_path / "run")
    assert config.attention == "none"
    assert encoder(torch.rand(2, 3, 32, 32)).shape == (2, 64)
    with pytest.raises(UserError, match="does not take cells of 8x8 px"):
        train(load_config(None, {**TIMM, "encoder": "timm:test_vit", "grid": 4}), shapes_shards, tmp_path / "x")
    with pytest.raises(UserError, match="attention 'cbam' does not apply to timm:test_vit"):
        train(
            load_config(None, {**TIMM, "encoder": "timm:test_vit", "attention": "cbam"}), shapes_shards, tmp_path / "x"
        )
    with pytest.raises(UserError, match=rf"timm {timm.__version__} has no model 'test_vitt' \(did you mean"):
        train(load_config(None, {**TIMM, "encoder": "timm:test_vitt"}), shapes_shards, tmp_path / "x")


def test_heads_larger_than_encoder_are_reported(
    shapes_shards: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, changes in (("small", {}), ("large", {"projector_hidden": 256})):
        train(load_config(None, {**TINY, **changes, "epochs": 0}), shapes_shards, tmp_path / name)
        said = capfd.readouterr().err
        found = re.search(r"the heads have (\S+) million parameters and the encoder (\S+) million", said)
        assert (found is not None) == (name == "large")
    assert found is not None
    assert float(found[1]) > float(found[2]) > 0
    assert "set smaller projector_hidden, projector_out, predictor_hidden" in said


class FakeWandb(ModuleType):
    """Stands for wandb: keeps what is logged, by the identity of the run."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = SimpleNamespace(name="wandb")  # type: ignore[assignment]
        self.inits: list[dict[str, Any]] = []
        self.logged: dict[str, list[dict[str, Any]]] = {}
        self.finished = 0

    def init(self, **arguments: Any) -> SimpleNamespace:
        self.inits.append(arguments)
        lines = self.logged.setdefault(arguments["id"], [])

        def finish() -> None:
            self.finished += 1

        return SimpleNamespace(log=lines.append, finish=finish, define_metric=lambda *a, **k: None)


def test_resumed_run_is_one_run_of_wandb(shapes_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = load_config(None, {**TINY, "wandb": True, "log_every": 1, "epochs": 1})
    monkeypatch.setattr(SACL, "after_step", lambda self, now, total: {} if now < 3 else exec("raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        train(config, shapes_shards, tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    train(config, shapes_shards, tmp_path / "run")
    identity = json.loads((tmp_path / "run" / "wandb.json").read_text())["id"]
    assert [(made["id"], made["resume"], made["name"]) for made in fake.inits] == [(identity, "allow", "run")] * 2
    assert fake.inits[0]["config"]["encoder"] == "se_resnet8"
    lines = fake.logged[identity]
    assert [line["trained/step"] for line in lines if "step/loss" in line] == [0, 1, 2, 3]
    assert [line["trained/step"] for line in lines if "epoch/loss" in line] == [3]  # at the epoch's last step
    assert fake.finished == 2
    train(load_config(None, {**TINY, "epochs": 1, "log_every": 1}), shapes_shards, tmp_path / "run")  # may be left out


def test_wandb_that_is_missing_or_refuses_is_one_line(
    shapes_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(None, {**TINY, "wandb": True})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingError, match=r"wandb is not installed: pip install 'sacl-texture\[wandb\]'"):
        train(config, shapes_shards, tmp_path / "run")
    monkeypatch.undo()
    fake = FakeWandb()
    monkeypatch.setattr(fake, "init", lambda **arguments: 1 / 0)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.raises(UserError, match=r"wandb cannot start \(division by zero\); run `wandb login`, or set"):
        train(config, shapes_shards, tmp_path / "run")


def test_wandb_itself_takes_the_metrics_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = Config(wandb=True)
    for step in (0, 1):
        board = Board(tmp_path, step, config)
        board.write("step", {"loss": 1.0, "note": "no number"}, step)
        board.close()
    identity = json.loads((tmp_path / "wandb.json").read_text())["id"]
    runs = [path.name for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert len(runs) in (1, 2)  # two sessions within a second share a directory
    assert all(name.endswith(identity) for name in runs)
