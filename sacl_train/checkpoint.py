"""Checkpoints: written whole or not at all, read without unpickling code."""

import os
from pathlib import Path
from typing import Any

import torch

from texturegen.errors import UserError

NAME = "checkpoint.pt"


def save_checkpoint(run: Path, state: dict[str, Any]) -> None:
    """Write RUN/checkpoint.pt: temporary name, fsync, rename. OSError leaves the one before in place."""
    temporary = run / f"{NAME}.tmp"
    try:
        with open(temporary, "wb") as f:
            torch.save(state, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, run / NAME)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(run: Path) -> dict[str, Any] | None:
    """The run's checkpoint with its tensors on the CPU, None where there is none; UserError when it is damaged."""
    path = run / NAME
    if not path.is_file():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for one fact: these bytes are no checkpoint
        raise UserError(f"{path}: cannot be read ({type(error).__name__}); remove it to start again") from None
