"""Checkpoints: in their order, and nothing of them is run."""

from pathlib import Path

import pytest
import torch

from sacl_train.training.checkpoint import (
    directory_of,
    list_checkpoints,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from texturegen.errors import UserError


class Harm:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save({"step": 1, "harm": Harm(tmp_path / "done")}, tmp_path / "checkpoint-00000001.pt")
    with pytest.raises(UserError, match=r"checkpoint-00000001.pt: cannot be read"):
        read_checkpoint(tmp_path / "checkpoint-00000001.pt")
    assert not (tmp_path / "done").exists()


def test_the_newest_is_that_of_the_most_steps(tmp_path: Path) -> None:
    for name in ("checkpoint-99999999.pt", "checkpoint-00000002.pt", "checkpoint-x.pt", "checkpoint-3.pt.tmp"):
        torch.save({"step": 0}, tmp_path / name)
    for step in (10**8, 10**8 + 1):
        save_checkpoint(tmp_path, {"step": step}, keep=3, best=step == 10**8)
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "checkpoint-100000001.pt",
        "checkpoint-100000000.pt",
        "checkpoint-99999999.pt",
    ]
    assert load_checkpoint(tmp_path) == {"step": 10**8 + 1}
    assert read_checkpoint(tmp_path / "best.pt") == {"step": 10**8}


def test_a_run_may_be_called_like_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "run.pt").mkdir()
    assert directory_of(tmp_path / "run.pt") == tmp_path / "run.pt"
    assert directory_of(tmp_path / "run" / "best.pt") == tmp_path / "run"
