"""The loop: learning, exact resumption, signals, errors."""

import csv
import importlib.util
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import sacl_train.training.loop
import sacl_train.training.signals
import sacl_train.training.state
import sacl_train.training.writer
from sacl_train import train
from sacl_train.cli.train import train_main
from sacl_train.config import Config, load_config
from sacl_train.data.order import epoch_order
from sacl_train.data.stream import Batch, Stream
from sacl_train.evaluate import quick
from sacl_train.methods.sacl import SACL
from sacl_train.training.checkpoint import directory_of, exclusive, load_checkpoint
from sacl_train.training.dry_run import plan
from sacl_train.training.optim import cosine_lr
from sacl_train.training.out_of_memory import largest_batch
from sacl_train.training.resume import load_encoder
from sacl_train.training.run import Run
from sacl_train.training.signals import stop_on_signal
from sacl_train.training.speed import Speed
from sacl_train.training.step import Step, StepMetrics
from tests.texturegen import kill
from texturegen import open_shards
from texturegen.builds import Recipe, build
from texturegen.errors import DamagedError, UserError

# Kills of one run. SACL_KILLS=30 kills more often, in a longer run.
KILLS = int(os.environ.get("SACL_KILLS", "5"))

TINY = {"encoder": "se_resnet8", "width": 4, "stem": "cifar-stride2", "batch_size": 16, "epochs": 3, "knn_every": 2}
TINY |= {"projector_hidden": 16, "projector_out": 16, "predictor_hidden": 8, "device": "cpu", "save_every": 4}


def tiny(**changes: object) -> Config:
    return load_config(None, {**TINY, **changes})


def deterministic(rows: list[dict]) -> list[dict]:
    timings = ("samples_per_second", "data_wait")
    return [{name: value for name, value in row.items() if name not in timings} for row in rows]


def logged_steps(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def plain(shapes_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Return the metrics of two epochs with unchanged settings."""
    return train(tiny(epochs=2, knn_every=0), shapes_shards, tmp_path_factory.mktemp("plain"))


def test_run_writes_its_files(shapes_shards: Path, tmp_path: Path, curves: None) -> None:
    rows = train(tiny(log_every=1, sgd_momentum=0.8, weight_decay=1e-3), shapes_shards, tmp_path)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    lines = logged_steps(tmp_path)
    assert [line["lr"] for line in lines] == [cosine_lr(step, 12, 0.1) for step in range(12)]
    for number, row in enumerate(rows):
        steps = lines[4 * number : 4 * number + 4]
        assert {line["epoch"] for line in steps} == {row["epoch"]}
        assert steps[-1]["lr"] == row["lr"]
        for name in ("loss", "embedding_std", "texture_similarity", "m"):
            assert row[name] == pytest.approx(np.mean([line[name] for line in steps]))
    state = load_checkpoint(tmp_path)
    assert state is not None
    (group,) = state["optimizer"]["param_groups"]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (rows[-1]["lr"], 0.8, 1e-3)
    assert ["knn" in row for row in rows] == [False, True, True]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == rows
    with open(tmp_path / "metrics.csv") as f:
        assert [float(row["loss"]) for row in csv.DictReader(f)] == [row["loss"] for row in rows]
    for picture in ("curves.png", "sheet.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    config = load_config(tmp_path / "config.toml", {})
    assert config.mean is not None
    assert config.epochs == 3
    assert not list(tmp_path.glob("*.tmp"))


def test_resumed_run_equals_uninterrupted_one(
    shapes_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tiny(), shapes_shards, tmp_path / "whole")
    step, steps = SACL.after_step, []

    def interrupted(self: SACL, number: int, total: int) -> dict[str, float]:
        steps.append(1)
        if len(steps) == 7:  # in the second epoch of four steps
            raise KeyboardInterrupt
        return step(self, number, total)

    monkeypatch.setattr(SACL, "after_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), shapes_shards, tmp_path / "resumed")
    monkeypatch.undo()
    resumed = train(tiny(), shapes_shards, tmp_path / "resumed")
    assert deterministic(resumed) == deterministic(whole)
    ours, theirs = (load_checkpoint(tmp_path / name) for name in ("whole", "resumed"))
    assert ours is not None
    assert theirs is not None
    assert ours["method"].keys() == theirs["method"].keys()
    assert all(torch.equal(ours["method"][name], theirs["method"][name]) for name in ours["method"])


def test_epochs_and_steps_are_numbered_and_steps_have_their_learning_rate(
    shapes_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epoch, make_step, asked = Stream.epoch, sacl_train.training.loop.make_step, []

    def noted_epoch(self: Stream, number: int, skip: int = 0) -> Iterator[Batch]:
        asked.append((number, skip))
        return epoch(self, number, skip)

    def noted_make_step(*parts: Any) -> Step:
        step = make_step(*parts)

        def noted_step(batch: Batch, *where: Any) -> StepMetrics:
            asked.append(where)
            return step(batch, *where)

        return noted_step

    monkeypatch.setattr(Stream, "epoch", noted_epoch)
    monkeypatch.setattr(sacl_train.training.loop, "make_step", noted_make_step)
    train(tiny(epochs=2, batch_size=32, knn_every=0, warmup_epochs=0.5), shapes_shards, tmp_path)
    rates = [cosine_lr(number, 4, 0.1, 1) for number in range(4)]
    steps = [(number // 2, number, 4, rate) for number, rate in enumerate(rates)]
    assert asked == [(0, 0), *steps[:2], (1, 0), *steps[2:]]


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_checkpoint_and_command_says_how_to_resume(
    sent: signal.Signals, shapes_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = SACL.after_step

    def signalled(self: SACL, number: int, total: int) -> dict[str, float]:
        if number == 1:
            signal.raise_signal(sent)
        return step(self, number, total)

    monkeypatch.setattr(SACL, "after_step", signalled)
    sets = [text for key, value in TINY.items() for text in ("--set", f"{key}={value}")]
    line = ["--shards", str(shapes_shards), "--out", str(tmp_path), *sets]
    monkeypatch.setattr(sys, "argv", ["sacl-train", *line])
    done = CliRunner().invoke(train_main, line)
    assert (done.exit_code, done.exception) == (0, None)
    assert f"stopped at step 2; to resume: {shlex.join(['sacl-train', *line])}\n" in done.output
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert (state["step"], state["running"]["batches"]) == (2, 2)


def test_ctrl_c_before_first_step_prints_no_traceback(
    shapes_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sacl_train.training.state, "build_method", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    sets = [text for key, value in TINY.items() for text in ("--set", f"{key}={value}")]
    done = CliRunner().invoke(train_main, ["--shards", str(shapes_shards), "--out", str(tmp_path / "run"), *sets])
    assert done.exit_code == 130
    assert "Traceback" not in done.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "saved"),
    [
        ({"save_every": 3}, [0, 3, 6, 8]),
        ({"save_every": None}, [0, 8]),
        ({"save_every": None, "save_minutes": 0}, list(range(9))),
    ],
    ids=["steps", "end", "time"],
)
def test_checkpoints_are_written_by_steps_by_time_and_at_the_end(
    settings: dict[str, Any], saved: list[int], shapes_shards: Path, tmp_path: Path
) -> None:
    train(tiny(epochs=2, knn_every=0, keep=9, **settings), shapes_shards, tmp_path)
    assert sorted(int(path.stem[-8:]) for path in tmp_path.glob("checkpoint-*.pt")) == saved


@pytest.mark.parametrize(("scores", "best"), [([0.3, 0.5, 0.4], 2), ([0.4, 0.2, 0.3], 1), ([0.3, None, 0.3], 3)])
def test_best_pt_has_best_score_and_newest_of_equal_scores(
    scores: list[float | None], best: int, shapes_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(scores)
    monkeypatch.setattr("sacl_train.evaluate.quick.quick_scores", lambda *_: {"knn": next(left)})
    train(tiny(knn_every=1, batch_size=64), shapes_shards, tmp_path)
    assert torch.load(tmp_path / "best.pt", weights_only=True)["epoch"] == best


def test_finished_run_is_not_trained_again(shapes_shards: Path, tmp_path: Path) -> None:
    train(tiny(), shapes_shards, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.pt")}
    rows = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(b"")  # as if killed between the checkpoint and them
    assert len(train(tiny(), shapes_shards, tmp_path)) == 3
    assert (tmp_path / "metrics.jsonl").read_bytes() == rows
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.pt")} == before
    assert sorted(path.name for path in before) == ["best.pt", "checkpoint-00000008.pt", "checkpoint-00000012.pt"]


def test_another_run_in_directory_is_refused(shapes_shards: Path, shapes_test_shards: Path, tmp_path: Path) -> None:
    train(tiny(epochs=1), shapes_shards, tmp_path)
    with pytest.raises(UserError, match=r"holds another run \(lr: 0.1 there, 0.2 here\)"):
        train(tiny(epochs=1, lr=0.2), shapes_shards, tmp_path)
    train(tiny(epochs=1, threads=1, device="auto"), shapes_shards, tmp_path)  # not a difference


def test_setting_newer_than_checkpoint_had_its_default(shapes_shards: Path, plain: list[dict], tmp_path: Path) -> None:
    train(tiny(epochs=2, knn_every=0), shapes_shards, tmp_path / "old")
    for path in sorted((tmp_path / "old").glob("checkpoint-*.pt")):
        state = torch.load(path, weights_only=True)
        if state["epoch"] == 2:
            path.unlink()
        else:
            del state["config"]["texture_part"], state["online"]
            torch.save(state, path)
    with pytest.raises(UserError, match="texture_part: 'whole' there, 'inside' here"):
        train(tiny(epochs=2, knn_every=0, texture_part="inside"), shapes_shards, tmp_path / "old")
    assert deterministic(train(tiny(epochs=2, knn_every=0), shapes_shards, tmp_path / "old")) == deterministic(plain)


def test_resuming_with_other_shards_is_refused(shapes_shards: Path, shapes_test_shards: Path, tmp_path: Path) -> None:
    settings = {"epochs": 0, "texture_role": "none", "mean": [0.5] * 3, "std": [0.2] * 3}
    train(tiny(**settings), shapes_shards, tmp_path)
    with pytest.raises(UserError, match="other shards"):
        train(tiny(**settings), shapes_test_shards, tmp_path)


def test_zero_epochs_write_untrained_encoder(shapes_shards: Path, tmp_path: Path) -> None:
    assert train(tiny(epochs=0), shapes_shards, tmp_path) == []
    encoder, _, epochs = load_encoder(tmp_path)
    assert epochs == 0
    assert not encoder.training
    assert encoder(torch.zeros(2, 3, 32, 32)).shape == (2, encoder.out_features)


@pytest.mark.parametrize("role", ["positive", "none"])
def test_other_roles_train(shapes_shards: Path, tmp_path: Path, role: str) -> None:
    rows = train(tiny(texture_role=role, epochs=1), shapes_shards, tmp_path)
    assert rows[0]["loss"] > 0
    assert "texture_similarity" not in rows[0]


def test_shards_without_textures_are_refused(shapes_test_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="these shards have no textures"):
        train(tiny(), shapes_test_shards, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_command_passes_shard_url_unchanged(tmp_path: Path) -> None:
    done = CliRunner().invoke(train_main, ["--shards", "memory://none/shards", "--out", str(tmp_path / "run")])
    assert done.exit_code == 1
    assert "memory://none/shards" in done.output


def test_batch_larger_than_data_set_is_refused(shapes_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"batch_size is 65, but .* holds 64 images"):
        train(tiny(batch_size=65), shapes_shards, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["sacl", "byol"])
def test_batch_of_one_image_at_a_time_is_refused_early(shapes_shards: Path, tmp_path: Path, method: str) -> None:
    config = tiny(method=method, batch_size=4, accumulate=4)
    with pytest.raises(UserError, match=r"batch_size 4 with accumulate 4 is less than two .* to at least 8"):
        plan(config, shapes_shards, tmp_path / "run")
    with pytest.raises(UserError, match="less than two images at a time"):
        train(config, shapes_shards, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def slow_down(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, seconds: float) -> None:
    """Let a function of a module first sleep."""
    function = getattr(module, name)

    def slowly(*arguments: Any) -> Any:
        time.sleep(seconds)
        return function(*arguments)

    monkeypatch.setattr(module, name, slowly)


def test_writing_checkpoints_does_not_count_as_waiting_for_data(
    shapes_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_down(monkeypatch, sacl_train.training.writer, "save_checkpoint", 0.3)
    settings = {"epochs": 2, "knn_every": 0, "save_every": 1, "log_every": 2, "device": "cpu"}
    rows = train(tiny(**settings), shapes_shards, tmp_path)
    lines = logged_steps(tmp_path)
    assert [line["step"] for line in lines] == [0, 2, 4, 6]
    # Three of an epoch's four steps are followed by a slow checkpoint, two of them between two lines.
    assert rows[1]["samples_per_second"] < 64 / 0.9
    assert 16 * 2 / 0.6 > lines[3]["samples_per_second"] > 0
    for row in (rows[1], lines[3]):
        assert 0 <= row["data_wait"] < 0.2


def test_checkpoint_between_epochs_counts_in_the_epoch_that_follows(
    shapes_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_down(monkeypatch, sacl_train.training.loop, "snapshot", 0.5)
    rows = train(tiny(epochs=2, knn_every=0, save_every=4, device="cpu"), shapes_shards, tmp_path)
    assert rows[1]["samples_per_second"] < 64 / 0.5
    assert rows[1]["data_wait"] < 0.2


def test_share_of_peak_and_memory_are_in_progress_lines_logged_steps_and_rows(
    shapes_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    reads: list[float] = []
    open_run = sacl_train.training.loop.open_run

    def show(made: int, note: str) -> None:
        notes.append(note)

    def read_memory(_: Speed) -> float:
        reads.append(2.5)
        return 2.5

    @contextmanager
    def as_on_cuda(*arguments: Any) -> Iterator[Run]:
        with open_run(*arguments) as run:
            yield replace(run, speed=Speed(1e7, 1e12, torch.device("cpu")), progress=show)

    monkeypatch.setattr(sacl_train.training.loop, "open_run", as_on_cuda)
    monkeypatch.setattr(Speed, "peak_memory", read_memory)
    rows = train(tiny(epochs=1, knn_every=0, log_every=3, device="cpu"), shapes_shards, tmp_path)
    logged = logged_steps(tmp_path)
    assert [line["step"] for line in logged] == [0, 3]
    for row in (*rows, *logged):
        assert 0 < row["mfu"] < 1
        assert row["peak_memory_gb"] == 2.5
    # The first step after a logged one has no steady speed yet.
    shown = [note.partition(" of peak, ")[2] for note in notes]
    assert shown == ["", "", "2.5 GB", "2.5 GB"]
    assert len(reads) == 1 + len(rows) + len(logged)  # once for the two lines


def test_images_smaller_than_grid_or_not_divisible_by_it_are_refused(shapes_shards: Path, tmp_path: Path) -> None:
    for grid in (33, 3):
        with pytest.raises(UserError, match="grid"):
            train(tiny(grid=grid), shapes_shards, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_loss_that_is_not_finite_stops_run(shapes_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"step \d+ \(epoch \d\): the loss is (nan|inf); the last good checkpoint is of step 0. Try a lower lr",
    ):
        train(tiny(lr=1e30), shapes_shards, tmp_path)
    assert load_checkpoint(tmp_path) is not None
    assert len(train(tiny(epochs=1), shapes_shards, tmp_path)) == 1, "a run without a finished step starts over"


def test_collapsed_embeddings_are_reported(
    shapes_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny(epochs=1), shapes_shards, tmp_path / "fine")
    assert "collapsed" not in capsys.readouterr().err
    build_method = sacl_train.training.state.build_method

    def collapsed(*args: object, **kwargs: object) -> SACL:
        method = build_method(*args, **kwargs)
        last = method.target_projector[-1]  # its scale gone, its shift left: the same key for every image
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.ones_(last.bias)
        return method

    monkeypatch.setattr(sacl_train.training.state, "build_method", collapsed)
    rows = train(tiny(epochs=1, momentum=1.0), shapes_shards, tmp_path / "collapsed")
    assert rows[0]["embedding_std"] < 1e-3
    assert "the embeddings have collapsed" in capsys.readouterr().err


@pytest.mark.parametrize(("last", "save_every", "good"), [(8, 4, 4), (2, 1, 1)], ids=["epoch", "step"])
def test_weights_that_are_not_finite_are_not_saved(
    last: int, save_every: int, good: int, shapes_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, steps = SACL.after_step, []

    def destroy(self: SACL, number: int, total: int) -> dict[str, float]:
        done = step(self, number, total)
        steps.append(1)
        if len(steps) == last:  # of the second epoch, or before a checkpoint within the first
            next(self.encoder.parameters()).data.fill_(float("nan"))
        return done

    monkeypatch.setattr(SACL, "after_step", destroy)
    with pytest.raises(
        UserError, match=rf"after step {last} weights are no longer finite; the last good checkpoint is of step {good}"
    ):
        train(tiny(save_every=save_every), shapes_shards, tmp_path)
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["step"] == good
    assert all(tensor.isfinite().all() for tensor in state["method"].values())


def test_images_that_are_not_square_train_if_grid_fits(image_folder: Path, tmp_path: Path, photo: np.ndarray) -> None:
    for folder in image_folder.iterdir():
        for path in folder.iterdir():
            cv2.imwrite(str(path), photo[:32, :33])
    build(Recipe("folder"), tmp_path / "s", root=str(image_folder))
    with pytest.raises(UserError, match="32x33 pixels do not split into a 2x2 grid"):
        train(tiny(batch_size=4, epochs=1), tmp_path / "s", tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train(tiny(batch_size=4, epochs=1, grid=1, cells=1), tmp_path / "s", tmp_path / "run")


def test_damaged_checkpoint_is_reported(shapes_shards: Path, tmp_path: Path) -> None:
    train(tiny(epochs=0), shapes_shards, tmp_path)
    (tmp_path / "checkpoint-00000000.pt").write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match=r"checkpoint-00000000.pt: cannot be read"):
        train(tiny(epochs=0), shapes_shards, tmp_path)


def test_truncated_checkpoint_falls_back_to_previous(
    shapes_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    whole = train(tiny(), shapes_shards, tmp_path)
    newest = tmp_path / "checkpoint-00000012.pt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    assert deterministic(train(tiny(), shapes_shards, tmp_path)) == deterministic(whole)
    assert "checkpoint-00000012.pt: cannot be read" in capsys.readouterr().err


def test_checkpoint_with_flipped_bit_falls_back_to_previous(
    shapes_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    whole = train(tiny(), shapes_shards, tmp_path)
    newest = tmp_path / "checkpoint-00000012.pt"
    expected = torch.load(newest, weights_only=True)["method"]
    data = bytearray(newest.read_bytes())
    weight = expected["projector.0.weight"].numpy().tobytes()
    data[data.index(weight) + len(weight) // 2] ^= 0x40
    newest.write_bytes(data)
    assert deterministic(train(tiny(), shapes_shards, tmp_path)) == deterministic(whole)
    assert "checkpoint-00000012.pt: cannot be read (the checksum of" in capsys.readouterr().err
    again = torch.load(newest, weights_only=True)["method"]
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_checkpoint_keeps_layout_of_earlier_versions(shapes_shards: Path, tmp_path: Path) -> None:
    config = tiny(epochs=1, online=True, save_every=2, keep=9)
    rows = train(config, shapes_shards, tmp_path)
    last, middle = tmp_path / "checkpoint-00000004.pt", tmp_path / "checkpoint-00000002.pt"
    saved = torch.load(middle, weights_only=True)
    layout: dict[str, Any] = {
        "step": 2,
        "epoch": 0,
        "running": {"number": 0, "batches": 2, "seconds": 1.0, "waited": 0.5, "sums": saved["running"]["sums"]},
        "method": saved["method"],
        "optimizer": saved["optimizer"],
        "scaler": {},
        "online": {name: saved["online"][name] for name in ("module", "optimizer")},
        "metrics": [],
        "steps_bytes": saved["steps_bytes"],
        "damaged": {},
        "config": saved["config"],
        "shards": open_shards(shapes_shards).digest,
        "shards_place": str(shapes_shards),
        "image_size": (32, 32),
    }
    assert list(saved) == [*layout, "torch_threads"]  # recorded since; a checkpoint without it is resumed
    assert saved["running"].keys() == layout["running"].keys()
    assert {**saved["running"]["sums"]}.keys() >= {"loss", "embedding_std", "online_top1"}
    expected = torch.load(last, weights_only=True)["method"]
    last.unlink()
    torch.save(layout, middle)
    assert deterministic(train(config, shapes_shards, tmp_path)) == deterministic(rows)
    again = torch.load(last, weights_only=True)["method"]
    assert all(torch.equal(again[name], expected[name]) for name in expected)


@pytest.mark.parametrize("part", ["method", "optimizer", "running"])
def test_checkpoint_with_invalid_content_is_reported(part: str, shapes_shards: Path, tmp_path: Path) -> None:
    train(tiny(epochs=1), shapes_shards, tmp_path)
    path = tmp_path / "checkpoint-00000004.pt"
    content = torch.load(path, weights_only=True)
    content[part] = {"unknown": torch.zeros(2)}
    torch.save(content, path)
    with pytest.raises(DamagedError, match=r"checkpoint('s weights)? do(es)? not fit"):
        train(tiny(epochs=1), shapes_shards, tmp_path)
    if part == "method":
        with pytest.raises(DamagedError, match="the checkpoint's weights do not fit its networks"):
            load_encoder(tmp_path)


@pytest.mark.slow
def test_run_killed_at_any_step_ends_with_same_bits(shapes_shards: Path, tmp_path: Path) -> None:
    settings = {**TINY, "epochs": 6 if KILLS < 10 else 12, "save_every": 1, "knn_every": 0}
    sets = [text for key, value in settings.items() for text in ("--set", f"{key}={value}")]
    log = tmp_path / "log"

    def begin(name: str) -> BaseProcess:
        line = ["--shards", str(shapes_shards), *sets, "--out", str(tmp_path / name)]
        return kill.start(partial(kill.run_command, "sacl_train.cli.train:train_main", line, log))

    def end(process: BaseProcess) -> int | None:
        process.join(kill.TIMEOUT)
        return process.exitcode

    assert end(begin("whole")) == 0, log.read_text()
    killed, last = tmp_path / "killed", max(tmp_path.glob("whole/checkpoint-*.pt")).name
    waits, kills = random.Random(0), 0
    while kills < KILLS and not (killed / last).exists():
        process = begin("killed")
        newest = max(killed.glob("*.pt"), default=None)
        while process.is_alive() and max(killed.glob("*.pt"), default=None) == newest:
            time.sleep(0.01)
        time.sleep(waits.uniform(0, 0.15))
        sent = signal.SIGTERM if kills % 3 == 2 else signal.SIGKILL
        with suppress(ProcessLookupError):
            os.kill(process.pid or 0, sent)
        code = end(process)
        if not (killed / last).exists():  # else it may have been past listening
            assert code == (0 if sent == signal.SIGTERM else -signal.SIGKILL)
            assert ("to resume: " in log.read_text()) == (sent == signal.SIGTERM)
        kills += 1
    assert kills >= 3
    assert end(begin("killed")) == 0, log.read_text()
    one, other = (load_checkpoint(tmp_path / name) for name in ("whole", "killed"))
    assert one is not None
    assert other is not None
    assert deterministic(other["metrics"]) == deterministic(one["metrics"])
    assert_equal_states(one, other)


def assert_equal_states(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Compare networks and optimizer of two checkpoints, bit by bit."""
    for part in ("method", "optimizer"):
        ours, theirs = (torch.utils._pytree.tree_leaves(state[part]) for state in (one, other))
        for mine, its in zip(ours, theirs, strict=True):
            assert torch.equal(mine, its) if isinstance(mine, torch.Tensor) else mine == its


def test_run_resumed_with_another_number_of_torch_threads_warns(
    shapes_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"epochs": 2, "knn_every": 0, "keep": 9, "save_every": 2}
    train(tiny(**settings), shapes_shards, tmp_path)
    newest = max(tmp_path.glob("checkpoint-*.pt"))
    threads = torch.get_num_threads()

    def resume(recorded: int | None) -> str:
        newest.unlink()
        before = max(tmp_path.glob("checkpoint-*.pt"))
        content = torch.load(before, weights_only=True)
        content.pop("torch_threads", None)
        torch.save(content if recorded is None else {**content, "torch_threads": recorded}, before)
        capsys.readouterr()
        train(tiny(**settings), shapes_shards, tmp_path)
        return capsys.readouterr().err

    assert "torch threads" not in resume(None)  # a checkpoint from before the number was recorded
    assert "torch threads" not in resume(threads)
    (line,) = [line for line in resume(threads + 3).splitlines() if "torch threads" in line]
    assert f"resumed with {threads} torch threads after {threads + 3}" in line
    assert line.endswith(f"OMP_NUM_THREADS={threads + 3} gives the same bits")
    newest.unlink()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    train(tiny(**settings), shapes_shards, tmp_path)
    assert "torch threads" in capsys.readouterr().err
    train(tiny(**settings), shapes_shards, tmp_path)  # nothing is left to train
    assert "torch threads" not in capsys.readouterr().err


def test_unlabelled_images_train_without_knn_score(image_folder: Path, tmp_path: Path) -> None:
    build(Recipe("folder"), tmp_path / "s", root=str(image_folder / "cats"))
    assert set(open_shards(tmp_path / "s").labels.tolist()) == {-1}
    rows = train(tiny(epochs=1, batch_size=2, knn_every=1), tmp_path / "s", tmp_path / "run")
    assert rows[0]["knn"] is None
    assert rows[0]["rankme"] >= 1
    with pytest.raises(UserError, match="no labelled images, and the online probe needs them"):
        train(tiny(epochs=1, batch_size=2, online=True), tmp_path / "s", tmp_path / "other")


def test_knn_score_excludes_its_bank(shapes_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards, seen = open_shards(shapes_shards), []

    def numbers_of(encoder: Any, images: Any, config: Config, device: Any, picked: np.ndarray) -> tuple:
        return torch.from_numpy(picked)[:, None], torch.from_numpy(picked)

    monkeypatch.setattr(quick, "MAX_IMAGES", 50)
    monkeypatch.setattr(quick, "extract_features", numbers_of)
    monkeypatch.setattr(quick, "knn_accuracy", lambda *of: seen.append(of) or 0.5)
    for seed in (0, 1):
        scores = quick.quick_scores(torch.nn.Identity(), shards, tiny(seed=seed), torch.device("cpu"))
        assert scores["knn"] == 0.5
    for bank, of_bank, queries, of_queries in seen:
        assert (len(queries), len(bank), len(torch.cat([queries, bank]).unique())) == (10, 40, 50)
        for numbers, labels in ((bank, of_bank), (queries, of_queries)):
            assert torch.equal(labels, torch.from_numpy(shards.labels)[numbers[:, 0]])
    assert not torch.equal(seen[0][0], seen[1][0])


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"accumulate": 2},
        {"optimizer": "lars", "lr": 0.5, "warmup_epochs": 0.5},
        {"deterministic": True},
        {"checkpointing": True},
        {"order": "shards", "shuffle_buffer": 8, "remainder": "wrap", "batch_size": 12},
        {"texture_source": "patch-shuffle"},
        {"texture_source": "both"},
        {"texture_part": "inside"},
        {"online": True},
        {"texture_role": "instance"},
        {"texture_view": "query", "momentum_schedule": "cosine"},
        {"attention": "gc", "placement": "pre"},
        {"cache": "none", "texture_draw": "all"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_run_with_any_setting_resumes_within_epoch(
    shapes_shards: Path, plain: list[dict], tmp_path: Path, changes: dict[str, object]
) -> None:
    """Each setting has its own loss, and a run resumed after a step has the same bits."""
    changes = {"epochs": 2, "knn_every": 0, "save_every": 1, "keep": 100, "log_every": 1, **changes}
    rows = train(tiny(**changes), shapes_shards, tmp_path)
    assert rows[0]["loss"] > 0
    same = {"deterministic", "checkpointing", "cache", "online"} & changes.keys()
    assert (rows[0]["loss"] == plain[0]["loss"]) == bool(same)
    if changes.get("precision") is not None:
        assert rows[0]["loss"] == pytest.approx(plain[0]["loss"], rel=0.05)
    last = load_checkpoint(tmp_path)
    lines = logged_steps(tmp_path)
    assert last is not None
    assert [line["step"] for line in lines] == list(range(last["step"]))
    for checkpoint in sorted(tmp_path.glob("checkpoint-*.pt"))[4:]:
        checkpoint.unlink()
    assert deterministic(train(tiny(**changes), shapes_shards, tmp_path)) == deterministic(rows)
    again = load_checkpoint(tmp_path)
    assert again is not None
    assert all(torch.equal(again["method"][name], last["method"][name]) for name in last["method"])
    assert deterministic(logged_steps(tmp_path)) == deterministic(lines)


def test_patch_shuffle_needs_no_textures(shapes_test_shards: Path, tmp_path: Path) -> None:
    rows = train(tiny(epochs=1, texture_source="patch-shuffle"), shapes_test_shards, tmp_path)
    assert -1 <= rows[0]["texture_similarity"] <= 1


@pytest.mark.slow
def test_compiled_networks_learn_same(shapes_shards: Path, tmp_path: Path) -> None:
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    settings = {"epochs": 1, "knn_every": 0}
    compiled = train(tiny(compile="default", **settings), shapes_shards, tmp_path / "compiled")
    plain = train(tiny(**settings), shapes_shards, tmp_path / "plain")
    assert compiled[0]["loss"] == pytest.approx(plain[0]["loss"], rel=1e-3)
    encoder, _, _ = load_encoder(tmp_path / "compiled")
    assert encoder(torch.zeros(2, 3, 32, 32)).isfinite().all()


def test_compile_and_checkpointing_are_refused_together() -> None:
    with pytest.raises(UserError, match="compile and checkpointing do not go together"):
        tiny(compile="default", checkpointing=True)


def test_out_of_memory_error_names_step_and_settings(
    shapes_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SACL, "_queries", full)
    with pytest.raises(UserError, match=r"step 0: the device is out of memory with 16 images at once.*accumulate=2"):
        train(tiny(), shapes_shards, tmp_path)


def test_largest_batch_is_estimated_from_small_one() -> None:
    # 1 GB of weights, 2 GB more for 16 images: 8 images a GB, of which 0.9 * 9 GB are left.
    assert largest_batch(10**9, 3 * 10**9, 16, 10**10) == 64


def test_tensorboard_gets_metrics(shapes_shards: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra is not installed")
    train(tiny(tensorboard=True, log_every=1, epochs=2, knn_every=0), shapes_shards, tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    lines = logged_steps(tmp_path)
    assert [e.value for e in events.Scalars("step/loss")] == pytest.approx([line["loss"] for line in lines], rel=1e-6)
    # At the last step of each epoch, whatever the step of the last checkpoint.
    assert [e.step for e in events.Scalars("epoch/texture_similarity")] == [3, 7]


def test_second_signal_within_a_second_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    with stop_on_signal() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        monkeypatch.setattr(sacl_train.training.signals, "ECHO_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_run_resumes_after_sample_was_damaged_or_repaired(
    shapes_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample, step, steps = open_shards(shapes_shards)[3], SACL.after_step, []

    def stop(self: SACL, number: int, total: int) -> dict[str, float]:
        steps.append(1)
        if len(steps) == 6:  # in the second of three epochs
            raise KeyboardInterrupt
        return step(self, number, total)

    for name in ("damaged", "repaired"):
        shards = tmp_path / name
        shutil.copytree(shapes_shards, shards)
        tar = shards / Path(sample.shard).name
        sound = tar.read_bytes()
        harmed = sound.replace(sample.image_bytes, bytes(len(sample.image_bytes)))
        tar.write_bytes(sound if name == "damaged" else harmed)
        steps.clear()
        monkeypatch.setattr(SACL, "after_step", stop)
        with pytest.raises(KeyboardInterrupt):
            train(tiny(bad_share=0.02, knn_every=0), shards, tmp_path / "run" / name)
        monkeypatch.undo()
        tar.write_bytes(harmed if name == "damaged" else sound)
        plan(tiny(bad_share=0.02, knn_every=0), shards, tmp_path / "run" / name)
        rows = train(tiny(bad_share=0.02, knn_every=0), shards, tmp_path / "run" / name)
        assert [row["damaged"] for row in rows] == ([0, 1, 1] if name == "damaged" else [1, 0, 0])
        assert (tmp_path / "run" / name / "damaged.txt").read_text().count(sample.key) == 1


def test_damage_found_before_checkpoint_still_counts(shapes_shards: Path, tmp_path: Path) -> None:
    shards = open_shards(shapes_shards)
    sample = shards[int(epoch_order(shards.numbers, 0, 0)[0])]  # of the first batch
    shutil.copytree(shapes_shards, tmp_path / "s")
    tar = tmp_path / "s" / Path(sample.shard).name
    tar.write_bytes(tar.read_bytes().replace(sample.image_bytes, bytes(len(sample.image_bytes))))
    config = tiny(epochs=1, knn_every=0, save_every=1, keep=9, bad_share=0.02)
    train(config, tmp_path / "s", tmp_path / "run")
    (tmp_path / "run" / "checkpoint-00000004.pt").unlink()
    (row,) = train(config, tmp_path / "s", tmp_path / "run")
    assert row["damaged"] == 1


def test_directory_is_locked_against_second_run_and_unlocked_by_crash(shapes_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    with exclusive(out), pytest.raises(UserError, match=rf"run: process {os.getpid()} on .* is training there"):
        train(tiny(epochs=0), shapes_shards, out)
    assert not out.parent.exists()
    out.mkdir(parents=True)
    dies = "import os, sys; from pathlib import Path; from texturegen.storage.lock import acquire; "
    dies += "lock = acquire(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", dies, out / "lock"]).returncode == -signal.SIGKILL
    assert (out / "lock").exists()
    train(tiny(epochs=0), shapes_shards, out)
    assert not (out / "lock").exists()


def test_damage_that_other_processes_found_counts(
    shapes_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gather(value: object) -> list[object]:
        return [value, {5: "one", 6: "two"}] if isinstance(value, dict) else [value]

    monkeypatch.setattr(sacl_train.training.loop.distributed, "gather_objects", gather)
    with pytest.raises(UserError, match="2 of 64 samples are damaged, more than bad_share allows; the last one: two"):
        train(tiny(bad_share=0.02), shapes_shards, tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.pt"))


def test_processes_that_see_different_directories_do_not_train(
    shapes_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gather(value: object) -> list[object]:
        return [value, 4] if isinstance(value, int) else [value]

    monkeypatch.setattr(sacl_train.training.loop.distributed, "gather_objects", gather)
    with pytest.raises(UserError, match=r"found checkpoints of steps \[0, 4\]; all must see the same directory"):
        train(tiny(), shapes_shards, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_scale_of_fp16_is_resumed(shapes_shards: Path, tmp_path: Path) -> None:
    config = tiny(precision="fp16", batch_size=64, epochs=2, knn_every=0, save_every=1, keep=9)
    train(config, shapes_shards, tmp_path)
    first, last = tmp_path / "checkpoint-00000001.pt", tmp_path / "checkpoint-00000002.pt"
    state = torch.load(first, weights_only=True)
    state["scaler"]["scale"] = 1024.0
    torch.save(state, first)
    last.unlink()
    train(config, shapes_shards, tmp_path)
    assert torch.load(last, weights_only=True)["scaler"]["scale"] == 1024


def test_missing_tensorboard_is_reported_before_anything_is_written(
    shapes_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find(name))
    for work in (plan, train):
        with pytest.raises(UserError, match="tensorboard is not installed: pip install"):
            work(tiny(tensorboard=True), shapes_shards, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_encoder_of_best_score_can_be_loaded(shapes_shards: Path, tmp_path: Path) -> None:
    train(tiny(epochs=1, knn_every=1), shapes_shards, tmp_path)
    best, _, epochs = load_encoder(tmp_path / "best.pt")
    assert epochs == 1
    saved = torch.load(tmp_path / "best.pt", weights_only=True)["method"]
    assert all(torch.equal(tensor, saved[f"encoder.{name}"]) for name, tensor in best.state_dict().items())
    # Of it, and not of the newest one, which is gone here.
    for path in tmp_path.glob("checkpoint-*.pt"):
        path.unlink()
    load_encoder(tmp_path / "best.pt")
    assert directory_of(tmp_path / "best.pt") == directory_of(tmp_path) == tmp_path
    with pytest.raises(UserError, match=r"other.pt: there is no such checkpoint"):
        load_encoder(tmp_path / "other.pt")
    (tmp_path / "best.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"best.pt: cannot be read"):
        load_encoder(tmp_path / "best.pt")
