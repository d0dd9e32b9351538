"""Checkpoints written in the background."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import sacl_train.training.writer
from sacl_train.training.checkpoint import read_checkpoint, save_checkpoint
from sacl_train.training.writer import CheckpointWriter

CONTENT: dict[str, Any] = {"step": 1, "epoch": 0, "running": {}, "optimizer": {}, "scaler": {}, "metrics": []}
CONTENT |= {"steps_bytes": 0, "damaged": {}, "config": {}, "shards": "", "image_size": (8, 8)}


def checkpoint(step: int, weights: torch.Tensor) -> Any:
    return {**CONTENT, "step": step, "method": {"weight": weights, "nested": [(weights,)]}}


def test_checkpoint_has_weights_of_the_moment_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = threading.Event()

    def slow(*given: Any) -> None:
        assert changed.wait(10)
        save_checkpoint(*given)

    monkeypatch.setattr(sacl_train.training.writer, "save_checkpoint", slow)
    weights = torch.arange(3.0)
    with CheckpointWriter(tmp_path, keep=1) as writer:
        writer.write(checkpoint(1, weights))
        weights.add_(10)  # the next step, while the file is being written
        changed.set()
        writer.write(checkpoint(2, weights), is_best=True)
        first = read_checkpoint(tmp_path / "checkpoint-00000001.pt")["method"]
    assert first["weight"].tolist() == first["nested"][0][0].tolist() == [0, 1, 2]
    assert read_checkpoint(tmp_path / "checkpoint-00000002.pt")["method"]["weight"].tolist() == [10, 11, 12]
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-00000002.pt", "best.pt"}


def test_failed_write_is_raised_by_the_next_one_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sacl_train.training.writer, "save_checkpoint", full)
    with CheckpointWriter(tmp_path, keep=1) as writer:
        writer.write(checkpoint(1, torch.zeros(1)))
        with pytest.raises(OSError, match="No space left"):
            writer.write(checkpoint(2, torch.zeros(1)))
    with pytest.raises(OSError, match="No space left"), CheckpointWriter(tmp_path, keep=1) as writer:
        writer.write(checkpoint(1, torch.zeros(1)))
    writer = CheckpointWriter(tmp_path, keep=1)
    writer.write(checkpoint(1, torch.zeros(1)))
    writer.__exit__(KeyError, KeyError(), None)  # the error that ended the run is the one to tell
