"""Lines of single steps: cut back to the checkpoint, never filled up."""

import json
from pathlib import Path

import pytest

import sacl_train.metrics
from sacl_train.metrics import Lap, StepLog


def test_lines_behind_the_checkpoint_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    log = StepLog(path)
    log.write({"step": 0})
    saved = log.offset()
    assert saved == path.stat().st_size > 0, "what a checkpoint counts on is on the disk"
    log.write({"step": 1})
    log.close()
    again = StepLog(path, saved)
    again.write({"step": 2})
    again.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 2]


def test_a_log_that_was_lost_begins_anew(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "steps.jsonl", 1000)
    log.write({"step": 5})
    log.close()
    assert (tmp_path / "steps.jsonl").read_bytes() == b'{"step": 5}\n'


def test_speed_is_of_the_steps_since_the_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sacl_train.metrics.time, "monotonic", lambda: 14.0)
    assert Lap(begin=10.0, steps=3, waited=1.0).speed(16) == {"samples_per_second": 12.0, "data_wait": 0.25}
