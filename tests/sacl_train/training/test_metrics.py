"""The step log and TensorBoard events are truncated to the checkpoint when a run resumes."""

import json
import os
from pathlib import Path

import pytest

import sacl_train.training.metrics
from sacl_train.config import Config
from sacl_train.training.metrics import Board, Lap, StepLog


def test_lines_after_checkpoint_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, sizes = tmp_path / "steps.jsonl", []
    monkeypatch.setattr(sacl_train.training.metrics.os, "fsync", lambda number: sizes.append(os.fstat(number).st_size))
    log = StepLog(path)
    log.write({"step": 0})
    saved = log.sync()
    assert sizes == [saved] == [path.stat().st_size], "what a checkpoint counts on is on the disk"
    log.write({"step": 1})
    log.close()
    again = StepLog(path, saved)
    again.write({"step": 2})
    again.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 2]


def test_lost_log_starts_empty(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "steps.jsonl", 1000)
    log.write({"step": 5})
    log.close()
    assert (tmp_path / "steps.jsonl").read_bytes() == b'{"step": 5}\n'


def test_events_of_repeated_steps_are_dropped(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for begin, end in ((0, 8), (5, 7)):
        board = Board(tmp_path, begin, Config(tensorboard=True))
        for step in range(begin, end):
            board.write("step", {"loss": 10.0 * begin + step, "damaged": 1, "note": "no number"}, step)
        board.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["step/loss", "step/damaged"]
    assert [(e.step, e.value) for e in events.Scalars("step/loss")] == [
        *((step, float(step)) for step in range(5)),
        (5, 55.0),
        (6, 56.0),
    ]


def test_speed_covers_steps_since_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sacl_train.training.metrics.time, "monotonic", lambda: 14.0)
    assert Lap(begin=10.0, steps=3, waited=1.0).speed(16) == {"samples_per_second": 12.0, "data_wait": 0.25}
